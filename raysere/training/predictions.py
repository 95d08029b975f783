"""The table of predictions of a trial:

``utterance, fold, split, p.CLASS...`` and/or attributes; never a label.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from raysere.base.bounds import read_parquet
from raysere.base.errors import DataError, MissingFileError
from raysere.training.task import Task

SPLITS = ("dev", "test")


@dataclass(frozen=True)
class TrialPredictions:
    """Predictions as arrays, columns in the task's order whatever the order in the file.

    Attributes:
        utterances: n ids. fold: int32 (n,), -1 for none. split: n of "dev" or "test".
        probabilities: float32 (n, C) or None. attributes, std: float32 (n, A) on the task's scale,
            or None.
    """

    utterances: list[str]
    fold: np.ndarray
    split: np.ndarray
    probabilities: np.ndarray | None
    attributes: np.ndarray | None
    std: np.ndarray | None = None


def prediction_table(
    task: Task,
    utterances: Sequence[str],
    split: str,
    fold: Sequence[int | None],
    *,
    probabilities: np.ndarray | None = None,
    attributes: np.ndarray | None = None,
    std: np.ndarray | None = None,
) -> pl.DataFrame:
    """Rows of one split.

    ``attributes`` are on the task's scale and are held to it. Raises DataError for values that are
    not finite.
    """
    columns: dict[str, pl.Series] = {
        "utterance": pl.Series(list(utterances), dtype=pl.String),
        "fold": pl.Series(list(fold), dtype=pl.Int32),
        "split": pl.Series([split] * len(utterances), dtype=pl.String),
    }
    if task.categorical:
        columns |= _columns([f"p.{name}" for name in task.classes], probabilities)
    if task.dimensional:
        columns |= _columns(task.attributes, None if attributes is None else np.clip(attributes, *task.scale))
        if std is not None:
            columns |= _columns([f"{name}.std" for name in task.attributes], std)
    return pl.DataFrame(columns)


def _columns(names: Sequence[str], values: np.ndarray | None) -> dict[str, pl.Series]:
    if values is None or values.shape[1] != len(names):
        raise DataError(f"Predictions are missing or have another width than the task: {', '.join(names)}")
    if not np.isfinite(values).all():
        raise DataError("A prediction is not a finite number", where=", ".join(names))
    return {name: pl.Series(np.ascontiguousarray(values[:, number], dtype=np.float32)) for number, name in enumerate(names)}


def read_predictions(source: str | os.PathLike[str] | pl.DataFrame, task: Task, split: str | None = None) -> TrialPredictions:
    """Read what :func:`prediction_table` made, from a parquet file or a frame, aligned by column
    name.

    Raises MissingFileError, or DataError where a class of the task has no column, a class outside
    it has one, or an utterance stands twice in a split.
    """
    where = None if isinstance(source, pl.DataFrame) else Path(source)
    if where is not None and not where.is_file():
        raise MissingFileError("This folder has no predictions", where=where)
    frame = source if isinstance(source, pl.DataFrame) else read_parquet(source)
    if split is not None:
        frame = frame.filter(pl.col("split") == split)
    expected = [
        "utterance",
        "fold",
        "split",
        *([f"p.{name}" for name in task.classes] if task.categorical else []),
        *(task.attributes if task.dimensional else []),
    ]
    missing = [name for name in expected if name not in frame.columns]
    extra = [name for name in frame.columns if task.categorical and name.startswith("p.") and name not in expected]
    if missing or extra:
        raise DataError(
            f"These predictions are of another task: without {missing or 'nothing'}, beyond it {extra or 'nothing'}",
            where=where,
            choices=expected,
        )
    if frame.select("split", "utterance").is_duplicated().any():
        raise DataError("An utterance is predicted twice in one split", where=where)
    std = [f"{name}.std" for name in task.attributes]
    return TrialPredictions(
        frame["utterance"].to_list(),
        frame["fold"].cast(pl.Int32).fill_null(-1).to_numpy(),
        frame["split"].to_numpy(),
        _matrix(frame, [f"p.{name}" for name in task.classes]) if task.categorical else None,
        _matrix(frame, list(task.attributes)) if task.dimensional else None,
        _matrix(frame, std) if task.dimensional and all(name in frame.columns for name in std) else None,
    )


def _matrix(frame: pl.DataFrame, names: list[str]) -> np.ndarray:
    return np.stack([frame[name].cast(pl.Float32).to_numpy() for name in names], axis=1)
