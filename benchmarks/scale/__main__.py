"""``python -m benchmarks.scale [--only runs|far|page] [--rounds N]``: a cluster's price against
real runs, and past this machine.

Predicted before the first run (constants of raysere/pipeline/cluster_cost.py as they stood): wall
times of one, two and three nodes within 20 % of the model, and three nodes at least 2.2 times as
fast as one in each stage, less what starts and ends once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.__main__ import machine
from benchmarks._wrap import write_wrapped
from benchmarks.scale.page import draw
from raysere.base.files import read_json, write_json

HERE = Path(__file__).resolve().parent.parent
RESULT = HERE / "results" / "scale.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--only", choices=["runs", "far", "page"])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found = read_json(RESULT) if RESULT.is_file() else {"format": "raysere.pipeline.cluster_cost/1"}
    if asked.only in (None, "runs"):
        from benchmarks.scale.runs import measure as measure_runs

        with tempfile.TemporaryDirectory() as folder:
            found["runs"] = measure_runs(Path(folder), asked.rounds)
        found.pop("note", None)  # of earlier runs
    if asked.only in (None, "far"):
        from benchmarks.scale.far import measure as measure_far

        found["constants"] = measure_far()
    if asked.only != "page":
        found["machine"] = machine()
        write_json(RESULT, found)
    write_wrapped((HERE.parent / "docs" / "scale.md"), draw(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
