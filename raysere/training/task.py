"""The task of a run, and the data of a trial: labels, speakers and features joined by utterance id."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from raysere.features.views import FeatureView

ATTRIBUTES: tuple[Literal["arousal", "valence", "dominance"], ...] = ("arousal", "valence", "dominance")


class Task(BaseModel):
    """What is predicted and how it is scored.

    ``classes`` is the resolved, ordered tuple of class names (empty for a dimensional task);
    ``scale`` the interval of the attributes. ``metric`` is maximised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["categorical", "dimensional", "both"] = "categorical"
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    scale: tuple[float, float] = (1.0, 7.0)
    metric: Literal["uar", "macro_f1", "accuracy", "ccc"] = "uar"

    @property
    def categorical(self) -> bool:
        return self.kind in ("categorical", "both")

    @property
    def dimensional(self) -> bool:
        return self.kind in ("dimensional", "both")


@dataclass(frozen=True)
class Labels:
    """Targets and groups, one row for each utterance, in one order that everything else is joined
    to by id.

    Attributes:
        utterances: N ids.
        label: int64 (N,), -1 where there is none.
        soft: float32 (N, C) vote distribution (rows of zeros where there are no votes), or None.
        attributes: float32 (N, A) on the task's scale, NaN where missing, or None.
        speaker, corpus: int64 (N,) codes; ``speakers`` and ``corpora`` their names.
        sex: int64 (N,), 0 female, 1 male, -1 unknown.
        duration_s: float64 (N,).
        votes: float32 (N,) number of votes behind each row of ``soft``, or None.
    """

    utterances: list[str]
    label: np.ndarray
    soft: np.ndarray | None
    attributes: np.ndarray | None
    speaker: np.ndarray
    speakers: list[str]
    corpus: np.ndarray
    corpora: list[str]
    sex: np.ndarray
    duration_s: np.ndarray
    votes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.utterances)

    def has_target(self, task: Task, *, soft: bool = False) -> np.ndarray:
        """Bool (N,): rows with a class (or, if ``soft``, at least one vote) or an attribute that
        the task asks for.
        """
        result = np.zeros(len(self), dtype=bool)
        if task.categorical:
            result |= self.label >= 0
            if soft and self.soft is not None:
                result |= self.soft.sum(1) > 0
        if task.dimensional and self.attributes is not None:
            result |= np.isfinite(self.attributes).any(1)
        return result


@dataclass(frozen=True)
class Fold:
    """One training: row numbers into :class:`Labels`.

    ``dev`` scores; ``test`` is only ever predicted.
    """

    number: int
    train: np.ndarray
    dev: np.ndarray


@dataclass(frozen=True)
class TrialData:
    """All that a trial sees: labels, the folds of one outer split, the test rows, features by name.

    Labels of rows outside the folds are not there: -1, no votes, NaN. ``unlabelled`` int64 are rows
    of a target domain that may be learned from without them.

    ``original`` int64 (N,) is the row of the clip that a row is an altered copy of, -1 for clips
    themselves; None without copies. Folds and test rows hold clips only: copies are trained on
    where their originals are.
    """

    task: Task
    labels: Labels
    folds: tuple[Fold, ...]
    test: np.ndarray
    features: dict[str, FeatureView]
    original: np.ndarray | None = None
    unlabelled: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def with_copies(self, rows: np.ndarray) -> np.ndarray:
        """These label rows, followed by their altered copies."""
        if self.original is None:
            return rows
        copies = np.flatnonzero(self.original >= 0)
        return np.concatenate([rows, copies[np.isin(self.original[copies], rows)]])
