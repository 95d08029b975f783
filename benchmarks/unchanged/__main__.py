"""``python -m benchmarks.unchanged OLD [--new CHECKOUT] [--only CASE ...]``: do two checkouts give
the same results, bit for bit?

Both run the same small experiments (``cases.py``) through the command line, side by side on this
machine, each with one trial and one thread at a time; what they leave is compared: leaderboards,
predictions, weights of models and ensembles, answers of ``predict``, feature keys and features,
tables of the studies. Nothing of it is kept, since bits change with the processor.

An earlier version as a checkout: ``git worktree add --detach ../old REVISION``. The script is that
of this checkout in both cases. It needs ``RAYSERE_CORPORA`` (EmoDB and EMOVO), and
``RAYSERE_MODELS`` for the case with a pretrained encoder. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.unchanged.cases import CASES, Case
from benchmarks.unchanged.record import Record, differences, flat, record

HERE = Path(__file__).resolve().parent.parent.parent
MINUTES = 15  # of one command
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unchanged", description=__doc__)
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("--new", type=Path, default=HERE, help="the other checkout; default: this one")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="these cases alone")
    parser.add_argument("--keep", type=Path, help="new folder for what both sides leave; default: a temporary one, removed at the end")
    parser.add_argument("--lines", type=int, default=20, help="differences printed for each case")
    asked = parser.parse_args()
    checkouts = {"old": asked.old.resolve(), "new": asked.new.resolve()}
    for checkout in checkouts.values():
        if not (checkout / "raysere" / "__init__.py").is_file():
            parser.error(f"{checkout} is no checkout of raysere")
    cases = [case for case in CASES if not asked.only or case.name in asked.only]
    print(f"{len(cases)} cases, about a minute and a half each on two cores.", flush=True)
    with tempfile.TemporaryDirectory(prefix="raysere-unchanged-") as temporary:
        folder = asked.keep.resolve() if asked.keep else Path(temporary)
        if asked.keep:
            folder.mkdir(parents=True)
        return 1 if sum([compare(case, checkouts, folder, asked.lines) for case in cases]) else 0


def compare(case: Case, checkouts: dict[str, Path], folder: Path, most: int) -> int:
    """Run a case in both checkouts at once and print what differs; the number of differences."""
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        sides = list(pool.map(lambda side: run(case, checkouts[side], folder / side / case.name), ("old", "new")))
    lines = differences(*sides)
    told = "the same" if not lines else f"{len(lines)} DIFFER"
    print(f"{case.name}: {told} ({len(sides[0])} values, {time.monotonic() - started:.0f} s)", flush=True)
    for line in lines[:most]:
        print(f"  {line}")
    if len(lines) > most:
        print(f"  ... and {len(lines) - most} more")
    return len(lines)


def run(case: Case, checkout: Path, folder: Path) -> Record:
    """The record of a case in one checkout. Raises RuntimeError where a command fails."""
    folder.mkdir(parents=True)
    case.prepare(folder)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYSERE_STORAGE"))}
    environment = inherited | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    found: Record = {}
    for number, arguments in enumerate(case.commands):
        command = [sys.executable, "-m", "raysere", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60 * MINUTES)
        if done.returncode:
            raise RuntimeError(f"{checkout}: raysere {' '.join(arguments)} ended with code {done.returncode}\n{done.stderr[-3000:]}")
        if "--json" in arguments:
            found |= flat(json.loads(done.stdout), folder, f"answer of command {number + 1}")
    for output in case.outputs:
        found |= record(folder, output, folder)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
