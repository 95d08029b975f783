"""``held_out.parquet``: the answer of each system to each held-out utterance."""

from __future__ import annotations

import numpy as np
import polars as pl

from raysere.ensemble.fit.answers import Fitted
from raysere.training.task import Task


def held_out_table(fitted: Fitted, task: Task) -> pl.DataFrame:
    """One row an utterance: ``utterance``, ``outer``, the ensemble's ``p.CLASS`` under the decision
    prior (null where no member could answer), and ``SYSTEM`` with the class that each system
    answered, and/or ``SYSTEM.ATTRIBUTE``. Labels are in the manifest.
    """
    tables = []
    for one in fitted.answers:
        columns: dict[str, object] = {"utterance": list(one.utterances), "outer": np.full(len(one.utterances), one.outer)}
        if task.categorical:
            shares = np.where(one.answered[:, None], np.exp(one.logp), np.nan)
            columns |= {f"p.{name}": shares[:, number] for number, name in enumerate(task.classes)}
            names = np.array(task.classes, dtype=object)
            columns |= {system: names[answer].tolist() for system, answer in one.answer.items()}
        for system, values in one.values.items():
            columns |= {f"{system}.{name}": values[:, number] for number, name in enumerate(task.attributes)}
        tables.append(pl.DataFrame(columns))
    return pl.concat(tables).fill_nan(None)
