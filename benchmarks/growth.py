"""How cost grows with utterances and with trials: at 1, 4 and 16 times the size, against growing in
proportion.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import ROUNDS, Row, result
from benchmarks._runs import CLASSES, make_data, make_run, make_study

TITLE = "Growth"
TIMES = (1, 4, 16)
UTTERANCES, WIDTH, EPOCHS, TRIALS = 2_000, 256, 3, 60
_TRIALS_IN_ONE_PROCESS = """
import sys
from pathlib import Path
from benchmarks.growth import job
from raysere.search.trial import TrialRun, TrialCache

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096

cache = TrialCache()
for number in range(16):
    run = TrialRun(Path(sys.argv[1]), job(sys.argv[1], number), cache)
    assert run.advance()["status"] == "done"
    if number + 1 in (1, 4, 16):
        print(resident())
"""


def growing(what: str, calls: list[Callable[[], Any]], checked: str, **detail: Any) -> Row:
    """A row of what 16 times the size costs, over 16 times the cost of the smallest; ``calls`` are
    in the order of :data:`TIMES`.
    """
    for call in calls:
        call()
    seconds = np.array([[_seconds(call) for call in calls] for _ in range(ROUNDS)])
    middle = np.median(seconds, axis=0)
    return Row(
        what,
        "growth in proportion to the size (16 times)",
        (seconds[:, 2] / seconds[:, 0] / TIMES[2]).tolist(),
        unit="of proportional",
        goal=1.1,
        higher=False,
        checked=checked,
        detail={
            **{f"seconds at {times} times": float(value) for times, value in zip(TIMES, middle, strict=True)},
            "4 times, of proportional": float(middle[1] / middle[0] / TIMES[1]),
            **detail,
        },
    )


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def trained(data: Any) -> Any:
    from raysere.methods.pooled import Pooled
    from raysere.training.loop import Trainer

    params = {"hidden": 256, "epochs": EPOCHS, "patience": EPOCHS, "batch": 64, "lr": 1e-3}
    trainer = Trainer(Pooled(), params, data, seed=0, threads=1)
    while not trainer.finished:
        trainer.epoch()
    return trainer.predictions()


def greedy(items: int) -> Callable[[], Any]:
    from benchmarks.ensemble import library
    from raysere.ensemble.fit.greedy import Candidates, GreedyParams, contributions, greedy_weights
    from raysere.ensemble.fit.objective import Objective

    logp, label, speaker = library(60, items)
    present = np.ones(logp.shape[:2], bool)
    scores = contributions(logp, present, np.ones(logp.shape[2]), log_pool=False)
    candidates = Candidates(scores, present, label, speaker, np.ones(items), [f"m{m:03d}" for m in range(60)])
    params = GreedyParams(bags=2, steps=25, patience=25)
    return lambda: greedy_weights(candidates, Objective("uar"), params, threads=1)


def job(folder: str | Path, number: int) -> dict[str, Any]:
    """What a worker is given for a trial of the run at ``folder``; configurations differ with the
    number.
    """
    from raysere.search.study import read_study

    study = read_study(Path(folder), "bench")
    params = {**study.parsed_space().default_config(), "dropout": 0.05 + 0.02 * (number % 16), "lr": 1e-3 * (1 + number / 1000)}
    return {
        "study": study.name,
        "outer": 0,
        "number": number,
        "trial": study.trial_id(0, number),
        "params": params,
        "config": study.config_hash(params),
        "attempt": f"a{number}",
        "stamp": "s",
        "cpu": 1.0,
        "gpu": 0.0,
    }


def finished_trials(folder: Path, count: int) -> Path:
    """A run folder with ``count`` finished trials that nobody trained."""
    from raysere.search.ledger import Ledger
    from raysere.search.study import save_study
    from raysere.search.trial import head

    study = make_study(8, count)
    folder.mkdir(parents=True)
    save_study(folder, study)
    ledger, generator = Ledger(folder), np.random.default_rng(0)
    for number in range(count):
        score = float(generator.uniform(0.2, 0.6))
        done = {
            "status": "done",
            "score": score,
            "epoch": 3,
            "epochs": 5,
            "seconds": 1.0,
            "error": None,
            "metrics": {"uar": score, "accuracy": score},
            "describe": {"effective_prior": dict.fromkeys(CLASSES, 0.25), "folds": 1},
            "twin_of": None,
        }
        ledger.record_without_training({**head(study, job(folder, number)), "resolved": {}}, done, f"a{number}")
    return folder


def driver(folder: Path, count: int) -> Callable[[], Any]:
    """What a driver does with the finished trials at its start and its end."""
    from raysere.search.lane import Lane
    from raysere.search.leaderboard import leaderboard
    from raysere.search.ledger import Ledger
    from raysere.search.study import read_study

    study = read_study(folder, "bench")

    def call() -> None:
        records = Ledger(folder).trials()
        lane = Lane(study, 0, records)
        table = leaderboard(folder)
        assert len(records) == len(table) == count
        assert not lane.free

    return call


def run() -> dict[str, Any]:
    import torch

    from raysere.search.study import save_study
    from raysere.search.trial import TrialCache

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place, study = Path(name), make_study(WIDTH, 16)
        runs = [make_run(place / f"utterances{times}", make_data(UTTERANCES * times, WIDTH)) for times in TIMES]
        data = [TrialCache().data(folder, study, 0) for folder in runs]
        rows = [
            growing(
                "training one trial, with the number of utterances",
                [lambda one=one: trained(one) for one in data],
                f"{EPOCHS} epochs of all utterances at each size",
                utterances=str([UTTERANCES * times for times in TIMES]),
            ),
            growing(
                "reading manifest, labels, splits and feature index, with the number of utterances",
                [lambda folder=folder: TrialCache().data(folder, study, 0) for folder in runs],
                f"rows of the data: {[len(one.labels.utterances) for one in data]}",
            ),
            growing(
                "greedy selection, with the number of utterances",
                [greedy(25_000 * times // 16) for times in TIMES],
                "60 members, 2 bags of 25 steps at each size",
            ),
            growing(
                "ledger, lane and leaderboard of the driver, with the number of finished trials",
                [driver(finished_trials(place / f"trials{times}", TRIALS * times), TRIALS * times) for times in TIMES],
                "every trial is in the records and in the table",
                trials=str([TRIALS * times for times in TIMES]),
            ),
        ]
        save_study(runs[1], study)
        resident = np.array([_resident(runs[1]) for _ in range(ROUNDS)])
        rows.append(
            Row(
                "memory of a worker process after 16 trials",
                "its memory after the first trial",
                (resident[:, 2] / resident[:, 0]).tolist(),
                unit="of the first",
                goal=1.1,
                higher=False,
                checked="16 trials of different configurations in one process, all done",
                detail={f"MB after {times}": float(value) for times, value in zip(TIMES, np.median(resident, axis=0) / 1e6, strict=True)},
            )
        )
    limits = """Figures below 1 have a fixed part that is not paid again when the size grows (the
        start of a trial, files that are opened once). Figures above 1 come from data that
        outgrows the processor's cache."""
    return result(rows, limits)


def _resident(folder: Path) -> list[int]:
    command = [sys.executable, "-c", _TRIALS_IN_ONE_PROCESS, str(folder)]
    found = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    return [int(line) for line in found.stdout.split()]
