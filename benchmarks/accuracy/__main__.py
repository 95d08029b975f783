"""``python -m benchmarks.accuracy [--only baselines|raysere|page] [--corpus NAME ...] [--workers
N]``: do what is missing, draw the page.

Needs RAYSERE_CORPORA and RAYSERE_MODELS, and scikit-learn and opensmile. RAYSERE_BENCH_CACHE names
the folder of what is kept between starts. It may be stopped at any time; a finished piece is not
done again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks._wrap import write_wrapped
from benchmarks.accuracy.running import need_folders

HERE = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--only", choices=["baselines", "raysere", "page"])
    parser.add_argument("--corpus", nargs="+", choices=["emodb", "emovo", "ravdess", "nemo"], help="raysere's rows of these alone")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of the baselines")
    asked = parser.parse_args()
    need_folders("RAYSERE_CORPORA", "RAYSERE_MODELS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports numpy: the processes share the cores
    from benchmarks.accuracy import pieces
    from benchmarks.accuracy.data import CORPORA

    if asked.only in (None, "baselines"):
        pieces.run_all(asked.workers)
    if asked.only in (None, "raysere"):
        _own_rows(asked.corpus or list(CORPORA))
    _write()
    return 0


def _own_rows(corpora: list[str]) -> None:
    import numpy as np

    from benchmarks.accuracy import systems
    from benchmarks.accuracy.data import load
    from benchmarks.accuracy.pieces import NORMALISED
    from benchmarks.accuracy.running import run
    from benchmarks.accuracy.summary import own_path

    for corpus in corpora:
        for row in systems.ROWS:
            for normalise in NORMALISED:
                path = own_path(corpus, row, normalise)
                if not path.is_file():
                    said = systems.answers(run(systems.experiment(corpus, row, normalise)), load(corpus))
                    np.save(path.with_suffix(".part.npy"), said)
                    path.with_suffix(".part.npy").rename(path)


def _write() -> None:
    from benchmarks.__main__ import machine
    from benchmarks.accuracy.data import CORPORA
    from benchmarks.accuracy.page import draw
    from benchmarks.accuracy.summary import DRAWS, summarise
    from raysere.base.files import write_json
    from raysere.base.versions import versions

    result: dict[str, Any] = {
        "format": "raysere.accuracy/1",
        "interval": {"level": 0.95, "method": "percentile bootstrap over speakers", "draws": DRAWS},
        "corpora": {name: summarise(name) for name in CORPORA},
        "machine": {**machine(), "versions": versions()},
    }
    write_json(HERE / "results" / "accuracy.json", result)
    write_wrapped((HERE.parent / "docs" / "accuracy.md"), draw(result))
    for corpus in result["corpora"].values():
        for row in corpus["rows"]:
            print(f"{corpus['title']:8} {row['system']:15} {row['normalise']:8} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")


if __name__ == "__main__":
    sys.exit(main())
