"""What a command costs before it does anything: help, the leaderboard and the status of a run of
1,000 finished trials.

Every command is a process of its own, as a user starts it; the alternative is a process that only
imports torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks._measure import Row, alternate, result, speed

TITLE = "Start of commands"
TRIALS = 1000


def fill(folder: Path, trials: int = TRIALS) -> float:
    """A run of finished trials under ``folder``, recorded by the ledger itself; returns its highest
    score.
    """
    from raysere.base.files import atomic_folder, write_yaml
    from raysere.corpora.manifest import Manifest
    from raysere.pipeline.prepare import RUN_FORMAT
    from raysere.search.ledger import Ledger, write_head
    from raysere.search.study import StudyFeature, StudySpec, save_study
    from raysere.search.trial import head
    from raysere.training.task import Task

    classes = ("anger", "happiness", "neutral", "sadness")
    row = {"utterance": "toy/a", "corpus": "toy", "language": "en", "speaker": "toy/a", "emotion": "anger", "transcript": "a"}
    Manifest.checked(pl.DataFrame([row])).write(folder / "manifest.parquet")
    write_yaml(folder / "experiment.yaml", {"format": RUN_FORMAT, "name": "toy"})
    task = Task(classes=classes)
    feature = StudyFeature(name="speech", spec_key="0123456789abcdef")
    study = StudySpec(
        name="pooled", space={"name": "pooled"}, method="pooled", features=(feature,), store="features", task=task, trials=trials
    )
    save_study(folder, study)
    ledger, rng = Ledger(folder), np.random.default_rng(0)
    for number in range(trials):
        params: dict[str, Any] = {"layers": "mix", "pooling": "mean_std", "normalise": "speaker", "epochs": 20}
        params |= {"lr": float(10 ** rng.uniform(-4, -2)), "dropout": float(rng.uniform(0, 0.6)), "hidden": int(rng.choice([64, 128, 256]))}
        params |= {f"other_{name}": float(rng.uniform()) for name in ("decay", "smoothing", "mixup", "focal")}
        if number % 3 == 0:  # a branch
            params |= {"layers": "one", "layer": int(rng.integers(0, 12))}
        trial, score = study.trial_id(0, number), float(rng.uniform(0.3, 0.8))
        job = {"trial": trial, "outer": 0, "number": number, "params": params, "config": study.config_hash(params)}
        staged = ledger.staged_path(trial, "benchmark", 20)
        resolved = {**params, **{f"default_{place}": place / 7 for place in range(25)}}
        with atomic_folder(staged) as temporary:
            write_head(temporary, {**head(study, job), "resolved": resolved})
            pl.DataFrame({"epoch": range(20), "score": rng.uniform(0.3, score, 20)}).write_parquet(temporary / "metrics.parquet")
        done = {"status": "done", "score": score, "epoch": 12, "epochs": 20, "seconds": 4.2, "error": None, "twin_of": None}
        metrics = {"uar": score, "macro_f1": score, "accuracy": score}
        describe = {"parameters": 1331975, "folds": 5, "train_rows": [420] * 5, "effective_prior": dict.fromkeys(classes, 0.25)}
        ledger.finalise(trial, staged, {**done, "metrics": metrics, "describe": describe})
    return max(record.score or 0.0 for record in ledger.trials())


def command(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


def ledger_row(folder: Path) -> Row:
    """What a resumed search reads first: every record."""
    import yaml

    from raysere.search.ledger import Ledger

    def plainly() -> list[tuple[dict[str, Any], dict[str, Any]]]:
        found = []
        for trial in sorted((folder / "trials").iterdir()):
            done = json.loads((trial / "DONE").read_text(encoding="utf-8"))
            found.append((done, yaml.load((trial / "params.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)))
        return found

    same = [
        (record.trial, record.params, record.resolved, record.score) == (head["trial"], head["params"], head["resolved"], done["score"])
        for record, (done, head) in zip(Ledger(folder).trials(), plainly(), strict=True)
    ]
    assert all(same)
    return speed(
        f"reading the ledger of {TRIALS} trials",
        "reading DONE and params.yaml of each (libyaml)",
        alternate(lambda: Ledger(folder).trials(), plainly),
        checked=f"{len(same)} of {TRIALS} records have the same parameters and score by both ways",
    )


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        best = fill(folder)
        board = json.loads(command("-m", "raysere", "leaderboard", str(folder), "--json", "--top", "0"))
        status = json.loads(command("-m", "raysere", "status", str(folder), "--json"))
        assert len(board) == len({entry["trial"] for entry in board}) == TRIALS == status["studies"]["pooled"]["status"]["done"]
        assert board[0]["score"] == best == status["studies"]["pooled"]["best"]
        assert [entry["score"] for entry in board] == sorted((entry["score"] for entry in board), reverse=True)
        asked = (
            ("raysere --help", ["--help"], 1, "prints the usage"),
            (
                f"raysere leaderboard, {TRIALS} finished trials",
                ["leaderboard", str(folder)],
                1,
                f"the printed table holds {TRIALS} different trials, ordered by score, the best of them {best:.4f} as recorded",
            ),
            (
                f"raysere status, {TRIALS} finished trials",
                ["status", str(folder)],
                None,
                f"{TRIALS} trials counted, the best score as recorded",
            ),
        )
        rows = []
        for name, arguments, goal, checked in asked:

            def ours(arguments: list[str] = arguments) -> None:
                assert command("-m", "raysere", *arguments)

            seconds = alternate(ours, lambda: command("-c", "import torch"))
            rows.append(speed(name, "python -c 'import torch'", seconds, goal=goal, checked=checked))
        rows.append(ledger_row(folder))
    limits = """For a leaderboard, most of the time goes to importing polars, numpy and pydantic,
        which read and check the study, and most of the rest to opening a thousand small files.
        torch, Ray and pandas are not imported. Records that an earlier version wrote are read
        from YAML, which takes eight times as long."""
    return result(rows, limits)
