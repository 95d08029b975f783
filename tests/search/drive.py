"""A driver process for the kill tests: ``python drive.py RUN CPUS TRIALS EPOCHS``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from toy import SPACE, toy_study

from raysere.base.cluster import start_ray, stop_ray
from raysere.search.study import Asha, StudySpec
from raysere.search.tuner import run_search


def studies(trials: int, epochs: int) -> list[StudySpec]:
    """Two studies, one of them nested: three lanes, with successive halving."""
    space = {**SPACE, "defaults": {**SPACE["defaults"], "epochs": epochs, "patience": epochs}}
    asha = Asha(grace=2, reduction=2)
    return [
        toy_study("flat", space=space, trials=trials, asha=asha),
        toy_study("nested", space=space, trials=trials, outer=(0, 1), asha=asha),
    ]


if __name__ == "__main__":
    run_dir, cpus, trials, epochs = Path(sys.argv[1]), *map(int, sys.argv[2:])
    start_ray(cpus=cpus, object_store_gb=0.3)
    try:
        run_search(run_dir, studies(trials, epochs), max_concurrent=cpus)
    finally:
        stop_ray()
