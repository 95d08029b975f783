"""Run all benchmarks, or those that are named: ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one thread, so that ratios are of work and not of scheduling

HERE = Path(__file__).resolve().parent


def main() -> int:
    from raysere.doctor import versions
    from raysere.errors import UnknownNameError
    from raysere.files import write_json

    known = sorted(module.name for module in pkgutil.iter_modules([str(HERE)]) if not module.name.startswith("_"))
    wanted = sys.argv[1:] or known
    for name in wanted:
        if name not in known:
            print(f"Error: {UnknownNameError('benchmark', name, known)}", file=sys.stderr)
            return 2
    for name in wanted:
        result = importlib.import_module(f"benchmarks.{name}").run()
        machine = {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0)), "versions": versions()}
        write_json(HERE / "results" / f"{name}.json", {"format": "raysere.benchmark/1", "benchmark": name, **result, "machine": machine})
        for row in result["rows"]:
            versus = f"{row['ratio']:.2f} times as fast as {row['against']}"
            print(f"{name}: {row['what']}: {versus} (each of {row['rounds']} rounds: {row['ratios']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
