"""raysere's own rows: an experiment of search and ensemble for each corpus, on the same folds, as
``raysere run`` would do it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.data import Data, encoder, settings
from benchmarks.accuracy.pieces import WINDOW

ROWS = {"acoustic": "raysere, acoustic", "speech": "raysere, acoustic and encoder"}
NORMALISE = {"none": "corpus", "speaker": "speaker"}  # as raysere calls them
ENSEMBLE = {"family": "auto", "recipes": []}


def searches(row: str, normalise: str) -> list[dict[str, Any]]:
    """What is searched for a row."""
    fixed = {"normalise": NORMALISE[normalise]}
    if row == "acoustic":
        return [
            {"space": "kernel", "features": "acoustic", "trials": 16, "fixed": fixed},
            {"space": "pooled_small", "features": "acoustic", "trials": 4, "fixed": {**fixed, "augment": False}},
        ]
    return [
        {"space": "kernel", "features": "acoustic", "trials": 8, "fixed": fixed},
        {"space": "kernel", "features": "speech", "trials": 14, "fixed": fixed},
        {"space": "pooled_small", "features": "speech", "trials": 4, "fixed": fixed},
    ]


def experiment(corpus: str, row: str, normalise: str) -> dict[str, Any]:
    """The experiment of a row as a user would write it."""
    features: dict[str, Any] = {"acoustic": {"backbone": "acoustic", "statistics": "order", "silence_db": 30, "speeds": [0.9, 1.1]}}
    if row == "speech":
        features["speech"] = {**encoder(WINDOW), "statistics": "order", "silence_db": 30}
    search = searches(row, normalise)
    return {"name": f"{corpus}-{row}-{normalise}", "features": features, "search": search, "ensemble": ENSEMBLE, **settings(corpus)}


def answers(run_folder: Path, data: Data) -> np.ndarray:
    """int64 (N,) class that the run's ensemble gave to each utterance while it was tested."""
    import polars as pl

    table = pl.read_parquet(run_folder / "held_out.parquet")
    said = dict(zip(table["utterance"], table["ensemble"], strict=True))
    return np.array([data.classes.index(said[utterance]) for utterance in data.utterances])
