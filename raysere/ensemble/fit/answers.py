"""The result of a fit over all outer splits: final parts and held-out answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raysere.ensemble.data.predictions import FitRows, MemberInfo
from raysere.ensemble.fit.part import OuterFit


@dataclass
class Answers:
    """Held-out answers of all systems for n rows of one outer split.

    Attributes:
        answer: system to class (n,) int; values: system to attributes (n, A), for all but the vote.
        natural: log-probabilities (n, K) of the ensemble under the selection prior (calibrated);
            logp: under the decision prior.
        answered: bool (n,), whether any member of the ensemble could answer.
        best: the single member that was chosen.
        in_sample: the ensemble's own (answer, values) on the rows that it was fitted on, with those
            rows.
    """

    outer: int
    utterances: tuple[str, ...]
    answer: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    natural: np.ndarray
    logp: np.ndarray
    answered: np.ndarray
    best: list[MemberInfo]
    in_sample: list[tuple[FitRows, np.ndarray, np.ndarray]] = field(default_factory=list)


@dataclass
class Fitted:
    """The final parts, the held-out answers, and the name of how they were held out (test,
    out_of_fold, nested).

    ``diversity`` has a report for each part. ``seconds`` of processor time, all threads, went into
    fitting and answering.
    """

    parts: list[OuterFit]
    answers: list[Answers]
    split: str
    notes: list[str]
    diversity: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
