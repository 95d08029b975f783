"""``python -m benchmarks.transfer [--feature speech|acoustic ...] [--pair emodb-emovo ...]
[--trials N] [--only search|again|speed|page]``.

Every row of every ordered pair of corpora: search without target labels, choice without target
labels, answers for target speakers that no adaptation has heard; then the chosen configurations
with three seeds, transductively, and with one part taken out. Needs RAYSERE_CORPORA and
RAYSERE_MODELS; RAYSERE_BENCH_CACHE names the folder of what is kept. It may be stopped at any time:
what is finished is not done again. Draws ``docs/transfer.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks._wrap import write_wrapped
from benchmarks.accuracy.data import folder
from benchmarks.accuracy.running import need_folders, run
from benchmarks.transfer.again import run_again
from benchmarks.transfer.systems import FEATURES, PAIRS, ROWS, experiment

HERE = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=__doc__)
    parser.add_argument("--feature", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--pair", nargs="+", choices=["-".join(pair) for pair in PAIRS], default=["-".join(pair) for pair in PAIRS])
    parser.add_argument("--row", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--trials", type=int, default=20, help="of each row in each outer fold")
    parser.add_argument("--only", choices=["search", "again", "speed", "page"])
    asked = parser.parse_args()
    need_folders("RAYSERE_CORPORA", "RAYSERE_MODELS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.only == "speed":
        _measure_speed()
    elif asked.only != "page":
        from raysere.base.cluster import start_ray, stop_ray

        start_ray()  # once for all pairs
        try:
            for feature in asked.feature:
                for pair in asked.pair:
                    source, target = pair.split("-")
                    settings = experiment(source, target, feature, asked.trials, asked.row)
                    if asked.only != "again":
                        run(settings, until="tune")
                    if asked.only != "search" and (run_folder(pair, feature) / "leaderboard.parquet").is_file():
                        run_again(run_folder(pair, feature), kept_again(pair, feature), asked.row)
        finally:
            stop_ray()
    _write()
    return 0


def _measure_speed() -> None:
    from benchmarks.transfer.speed import measure
    from raysere.base.cluster import start_ray, stop_ray
    from raysere.base.files import write_json

    start_ray()
    try:
        write_json(HERE / "results" / "transfer_speed.json", measure())
    finally:
        stop_ray()


def run_folder(pair: str, feature: str) -> Path:
    """Of a pair's search."""
    return folder("runs") / f"{pair}-{feature}"


def kept_again(pair: str, feature: str) -> Path:
    """Where the trainings of its chosen configurations stand."""
    return folder("again") / f"{pair}-{feature}.jsonl"


def _write() -> None:
    from benchmarks.__main__ import machine
    from benchmarks.transfer.again import read
    from benchmarks.transfer.page import draw
    from benchmarks.transfer.summary import add_again, complete, read_pair, whole
    from raysere.base.files import read_json, write_json
    from raysere.base.versions import versions

    speed = HERE / "results" / "transfer_speed.json"
    result: dict[str, Any] = {
        "format": "raysere.transfer/2",
        "features": {},
        "speed": read_json(speed) if speed.is_file() else None,
        "machine": {**machine(), "versions": versions()},
    }
    for feature in FEATURES:
        done = {}
        for source, target in PAIRS:
            pair = f"{source}-{target}"
            if (run_folder(pair, feature) / "leaderboard.parquet").is_file():
                found = read_pair(run_folder(pair, feature))
                if complete(found, feature):
                    done[pair] = found
                    add_again(found, read(kept_again(pair, feature)).values())
        if done:
            result["features"][feature] = whole(done)
    write_json(HERE / "results" / "transfer.json", result)
    write_wrapped((HERE.parent / "docs" / "transfer.md"), draw(result))


if __name__ == "__main__":
    sys.exit(main())
