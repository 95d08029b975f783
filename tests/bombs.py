"""Opens a hostile file in a process of its own that may take 1 GB more than it has, and 10 s, and
tells what became of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SECONDS, BYTES = 10, 1 << 30

_CHILD = """
import json, os, resource, sys, time
exec(sys.argv[1])  # the imports; what they take is not the file's
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * os.sysconf("SC_PAGE_SIZE") + int(sys.argv[4])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[5]), int(sys.argv[5])))
path = sys.argv[3]
try:
    answer = ["opened", str(eval(sys.argv[2]))]
except Exception as error:
    answer = [type(error).__name__, str(error)]
print("ANSWER" + json.dumps(answer), flush=True)
os._exit(0)
"""


def opened(imports: str, call: str, path: Path) -> tuple[str, str]:
    """(class of the error, its message), or ("opened", the value). ``call`` is an expression of
    ``path``. Raises AssertionError where the process died, by a signal, memory or time.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, imports, call, str(path), str(BYTES), str(SECONDS)], capture_output=True, text=True, timeout=120
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert lines, f"the process ended with {done.returncode} and no answer: {done.stderr[-500:]}"
    kind, text = json.loads(lines[0][len("ANSWER") :])
    return kind, text
