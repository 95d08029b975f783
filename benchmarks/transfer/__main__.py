"""``python -m benchmarks.transfer [--feature speech|acoustic ...] [--pair emodb-emovo ...] [--trials N] [--workers N] [--only page]``.

Every row of every ordered pair of corpora: search without target labels, choice without target labels, answers for target speakers that no
adaptation has heard. Needs RAYSERE_CORPORA and RAYSERE_MODELS; RAYSERE_BENCH_CACHE names the folder of what is kept. It may be stopped at
any time: finished trials are not done again. Draws ``docs/transfer.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.accuracy.running import need_folders, run
from benchmarks.transfer.systems import FEATURES, PAIRS, ROWS, experiment

HERE = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--feature", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--pair", nargs="+", choices=["-".join(pair) for pair in PAIRS], default=["-".join(pair) for pair in PAIRS])
    parser.add_argument("--row", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--trials", type=int, default=20, help="of each row in each outer fold")
    parser.add_argument("--only", choices=["page"])
    asked = parser.parse_args()
    need_folders("RAYSERE_CORPORA", "RAYSERE_MODELS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.only is None:
        from raysere.cluster import start_ray, stop_ray

        start_ray()  # once for all pairs
        try:
            for feature in asked.feature:
                for pair in asked.pair:
                    source, target = pair.split("-")
                    run(experiment(source, target, feature, asked.trials, asked.row), until="tune")
        finally:
            stop_ray()
    _write()
    return 0


def _write() -> None:
    from benchmarks.__main__ import machine
    from benchmarks.accuracy.data import folder
    from benchmarks.transfer.page import draw
    from benchmarks.transfer.summary import agreement, figures, paired, read_pair
    from benchmarks.transfer.systems import METHODS
    from raysere.doctor import versions
    from raysere.files import write_json

    result: dict[str, Any] = {"format": "raysere.transfer/1", "features": {}, "machine": {**machine(), "versions": versions()}}
    for feature in FEATURES:
        done = {}
        for source, target in PAIRS:
            run_folder = folder("runs") / f"{source}-{target}-{feature}"
            if (run_folder / "leaderboard.parquet").is_file():
                done[source, target] = read_pair(run_folder)
        if not done:
            continue
        common = [row for row in ROWS if all((row, "raysere") in pair["answers"] for pair in done.values())]
        groups = {"seen": [p for key, p in done.items() if key[1] != "urdu"], "urdu": [p for key, p in done.items() if key[1] == "urdu"]}
        result["features"][feature] = {
            "pairs": {"-".join(key): figures(pair) for key, pair in done.items()},
            "against": {
                method: {
                    rival: {name: paired(group, method, rival) for name, group in groups.items() if group}
                    for rival in common
                    if rival not in METHODS
                }
                for method in METHODS
                if method in common
            },
            "agreement": agreement([trial for pair in done.values() for trial in pair["trials"]]),
        }
    write_json(HERE / "results" / "transfer.json", result)
    (HERE.parent / "docs" / "transfer.md").write_text(draw(result), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
