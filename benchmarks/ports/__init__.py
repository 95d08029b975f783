"""Which ports each command opens, and whether a stranger can run a task in its Ray.

A command is started as a user starts it. All listening sockets of its process tree are collected
until it ends, and as soon as its Ray is up the command is stopped (SIGSTOP) while other processes
try to run a task there: without a token, with a wrong one, and with the right one, which shows that
a task would have run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raysere.base.listeners import Listener, listeners, process_tree

_STEP_S = 0.1
_TASK = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
print("RAN", ray.get(ray.remote(num_cpus=0)(lambda: 7).remote(), timeout=60))
"""
_STRANGERS: dict[str, dict[str, str]] = {
    "without a token": {"RAY_AUTH_MODE": "disabled"},
    "with a wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
}
OWNER = "with the token"


@dataclass
class Watched:
    """What was seen of one command.

    Attributes:
        code: its exit code. output: what it printed.
        open: every listening socket that was seen, once for each name that its process had (a
            worker takes that of its task).
        ran: who ran a task in its Ray: "without a token", "with a wrong token", "with the token".
    """

    code: int
    output: str
    open: list[Listener] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    @property
    def beyond(self) -> list[Listener]:
        return [one for one in self.open if one.beyond]


def watch(
    command: Sequence[str], environment: dict[str, str], folder: Path, *, until: Callable[[str], bool] | None = None, limit_s: float = 500
) -> Watched:
    """Run ``command`` in ``folder`` and collect what it opens.

    Args:
        until: of a server: whether what it has printed says that it is ready; it is then sent
            SIGTERM, after the tries.
        limit_s: seconds after which it is killed.
    """
    seen: set[Listener] = set()
    ran: list[str] | None = None
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output"
        with output.open("w") as log:
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        end = time.monotonic() + limit_s
        try:
            while process.poll() is None and time.monotonic() < end:
                tree = process_tree(process.pid)
                found = listeners(tree)
                seen.update(found)
                ready = until is None or until(output.read_text())
                gcs = next((one for one in found if one.process == "gcs_server"), None)
                if ran is None and gcs and ready and any(one.pid == process.pid for one in found):  # the command is connected to its Ray
                    os.kill(process.pid, signal.SIGSTOP)
                    ran = _try_tasks(gcs, environment, tree)
                    os.kill(process.pid, signal.SIGCONT)
                if ready and until is not None and (ran is not None or gcs is None):
                    process.send_signal(signal.SIGTERM)
                    until = lambda text: False  # noqa: E731  once
                time.sleep(_STEP_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        return Watched(process.returncode, output.read_text(), sorted(seen), ran or [])


def _try_tasks(gcs: Listener, environment: dict[str, str], tree: set[int]) -> list[str]:
    """Who runs a task in the Ray of a GCS."""
    plain = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    plain |= {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    tries = {}
    with contextlib.ExitStack() as stack:
        for name, more in (_STRANGERS | {OWNER: _credentials(tree)}).items():
            tries[name] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _TASK, f"127.0.0.1:{gcs.port}"],
                    # Ray takes the machine's own address for the loopback one, unless it is told
                    # that there are no clusters
                    env={**plain, **more, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1" if gcs.beyond else "0"},
                    cwd=tempfile.gettempdir(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
        ran = []
        for name, one in tries.items():
            try:
                output, _ = one.communicate(timeout=90)
            except subprocess.TimeoutExpired:
                one.kill()
                output, _ = one.communicate()
            if "RAN 7" in output:
                ran.append(name)
    return ran


def _credentials(tree: set[int]) -> dict[str, str]:
    """What the owner of a Ray knows: the authentication in the environment of its GCS."""
    for pid in tree:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            if words[0].endswith("gcs_server"):
                pairs = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
                return {name: value for name, _, value in (pair.partition("=") for pair in pairs) if name.startswith("RAY_AUTH")}
    return {}
