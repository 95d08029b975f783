"""The leaderboard: one row a finished trial, best first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.files import atomic_write, canonical_json
from raysere.search.ledger import STATUSES, Ledger, Record

COLUMNS: dict[str, Any] = {
    "trial": pl.String,
    "study": pl.String,
    "space": pl.String,
    "method": pl.String,
    "features": pl.String,
    "modality": pl.String,
    "outer": pl.Int32,
    "status": pl.String,
    "score": pl.Float64,
    "metric": pl.String,
    "epoch": pl.Int32,
    "epochs": pl.Int32,
    "seconds": pl.Float64,
    "twin_of": pl.String,
    "error": pl.String,
}


def leaderboard(run_dir: str | os.PathLike[str], *, write: bool = True, records: Sequence[Record] | None = None) -> pl.DataFrame:
    """All finished trials of a run: best score first, trials without a score last.

    Args:
        run_dir: folder of the run.
        write: whether to write ``leaderboard.parquet`` as well.
        records: trials to show instead of all that the folder holds.

    Returns:
        A row for each trial. ``params.NAME`` is null where the branch was not taken; a parameter that
        is a number in some trials and a text in others is a text. ``error`` is the first line of what
        went wrong.

    Example:
        >>> raysere.leaderboard("runs/emodb").head()  # doctest: +SKIP
    """
    run_dir = Path(run_dir)
    records = Ledger(run_dir).trials() if records is None else records
    metrics = _metrics(run_dir, records)
    data: dict[str, list[Any]] = {name: [_cell(record, name, metrics) for record in records] for name in COLUMNS}
    frame = pl.DataFrame({name: pl.Series(name, values, dtype=COLUMNS[name]) for name, values in data.items()})
    names = list(dict.fromkeys(name for record in records for name in record.params))
    frame = frame.with_columns([_param_series(name, [record.params.get(name) for record in records]) for name in names])
    order = pl.col("status").replace_strict({status: rank for rank, status in enumerate(STATUSES)}, return_dtype=pl.Int8)
    frame = frame.sort(pl.col("score"), order, pl.col("trial"), descending=[True, False, False], nulls_last=True)
    if write:
        with atomic_write(run_dir / "leaderboard.parquet") as temporary:
            frame.write_parquet(temporary)
    return frame


def _metrics(run_dir: Path, records: Sequence[Record]) -> dict[str, str]:
    """Study to the name of its metric."""
    from raysere.search.study import read_study

    return {name: read_study(run_dir, name).task.metric for name in {record.study for record in records}}


def _cell(record: Record, name: str, metrics: dict[str, str]) -> Any:
    if name == "features":
        return "+".join(record.features)
    if name == "metric":
        return metrics[record.study]
    if name == "score":
        return record.score if record.scored else None
    if name == "error":
        lines = [line for line in (record.error or "").strip().splitlines() if line.strip()]
        return None if not lines else lines[-1] if record.status == "error" else lines[0]
    return getattr(record, name)


def _param_series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    column = f"params.{name}"
    if kinds <= {bool}:
        return pl.Series(column, values, dtype=pl.Boolean)
    if kinds <= {int}:
        return pl.Series(column, values, dtype=pl.Int64)
    if kinds <= {int, float}:
        return pl.Series(column, [None if value is None else float(value) for value in values], dtype=pl.Float64)
    return pl.Series(
        column, [value if value is None or isinstance(value, str) else canonical_json(value) for value in values], dtype=pl.String
    )
