"""Run all benchmarks, or those that are named:

``python -m benchmarks [NAME ...]``; ``--page`` only draws ``docs/performance.md`` again.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMIT_S = 1800  # of one benchmark


def main() -> int:
    from benchmarks._page import write_page
    from raysere.base.errors import UnknownNameError

    # packages are studies with a command and a page of their own: too long for this list
    known = sorted(found.name for found in pkgutil.iter_modules([str(HERE)]) if not found.ispkg and not found.name.startswith("_"))
    if sys.argv[1:2] == ["--one"]:
        return one(sys.argv[2])
    if sys.argv[1:] == ["--page"]:
        write_page(HERE / "results", HERE.parent / "docs" / "performance.md")
        return 0
    wanted = sys.argv[1:] or known
    for name in wanted:
        if name not in known:
            print(f"Error: {UnknownNameError('benchmark', name, known)}", file=sys.stderr)
            return 2
    failed = []
    for name in wanted:
        print(f"{name} ...", flush=True)
        # one thread unless a benchmark says otherwise: a ratio should be of work and not of
        # scheduling
        environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(HERE.parent)}
        try:
            code = subprocess.run(
                [sys.executable, "-m", "benchmarks", "--one", name], env=environment, timeout=LIMIT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"no end after {LIMIT_S} s"
        if code:
            failed.append(f"{name} ({code})")
    write_page(HERE / "results", HERE.parent / "docs" / "performance.md")
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def one(name: str) -> int:
    """Run one benchmark in this process, write its JSON, print its rows."""
    from benchmarks._page import figure
    from raysere.base.files import write_json
    from raysere.base.versions import versions

    module = importlib.import_module(f"benchmarks.{name}")
    start = time.monotonic()
    result = module.run()
    head = {"format": "raysere.benchmark/1", "benchmark": name, "title": module.TITLE}
    tail = {"took_s": round(time.monotonic() - start), "machine": {**machine(), "versions": versions()}}
    write_json(HERE / "results" / f"{name}.json", {**head, **result, **tail})
    for row in result["rows"]:
        print(f"  {row['what']} against {row['against']}: {figure(row)}")
    return 0


def machine() -> dict[str, object]:
    """Processor, cores, memory in GiB, GPU; no names and no paths of the machine."""
    model = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found: dict[str, object] = {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory), "gpu": None}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        found["gpu"] = sys.modules["torch"].cuda.get_device_name(0)
    return found


if __name__ == "__main__":
    sys.exit(main())
