"""What each finished trial adds to the ensemble of the others: the value that
``objective: ensemble_gain`` feeds the sampler with.

After Levesque, Gagne and Sabourin 2016 (arXiv:1605.06394): at proposal n an ensemble of
:data:`SIZE` slots is chosen greedily with replacement from all finished trials, slot ``n mod SIZE``
is emptied, and every finished trial is valued by the score of the ensemble with that trial in the
empty slot. So all values of one proposal stand on one ground, trials that are good by themselves
but alike are worth little, and the slots come by turns. A value is a function of the finished
trials' predictions and of n alone; it is made anew for each proposal and recorded nowhere. What a
trial's record holds stays its own score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from raysere.training import metrics
from raysere.training.predictions import read_predictions

if TYPE_CHECKING:
    from raysere.training.task import Labels, Task

SIZE = 8  # slots of the ensemble
TIE = 1e-6  # share of a trial's own score in its value: parts what the ensemble's score, a step function, does not
_BLOCK = 1 << 22  # values that are pooled at once


class Gains:
    """Development predictions of the finished trials of one outer fold, whatever their study.

    Args:
        labels: of all utterances; development rows are found by utterance. task: of all the trials.
    """

    def __init__(self, labels: Labels, task: Task) -> None:
        self.labels, self.task = labels, task
        self._row = {utterance: row for row, utterance in enumerate(labels.utterances)}
        self._found: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # rows, and values (n, K): probabilities or attributes

    def add(self, trial: str, predictions: pl.DataFrame) -> None:
        """Take a finished trial; a trial that is there already is replaced."""
        found = read_predictions(predictions, self.task, "dev")
        values = found.attributes if self.task.metric == "ccc" else found.probabilities
        assert values is not None  # the task's metric says which of the two it predicts
        self._found[trial] = (np.array([self._row[utterance] for utterance in found.utterances], dtype=np.int64), values)

    def values(self, number: int) -> dict[str, float]:
        """By trial the gain in score that it brings to the empty slot of proposal ``number``."""
        if not self._found:
            return {}
        trials = sorted(self._found)
        rows = np.unique(np.concatenate([self._found[trial][0] for trial in trials]))
        members, present = self._stacked(trials, rows)
        own = self._scores(np.zeros_like(members[0]), np.zeros(len(rows)), members, present, rows)
        slots: list[int] = []
        sums, counts = np.zeros_like(members[0]), np.zeros(len(rows))
        for _ in range(SIZE):
            best = int(np.argmax(self._scores(sums, counts, members, present, rows) + TIE * own))
            slots.append(best)
            sums, counts = sums + members[best], counts + present[best]
        empty = slots[number % SIZE]
        sums, counts = sums - members[empty], counts - present[empty]
        without = self._scores(sums, counts, np.zeros_like(members[:1]), np.zeros_like(present[:1]), rows)[0]
        gains = self._scores(sums, counts, members, present, rows) - without + TIE * own
        return dict(zip(trials, gains.tolist(), strict=True))

    def _stacked(self, trials: list[str], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M, N, K) with zeros where a trial has no prediction, and float (M, N) 1 where it has
        one.
        """
        width = self._found[trials[0]][1].shape[1]
        members, present = np.zeros((len(trials), len(rows), width)), np.zeros((len(trials), len(rows)))
        for number, trial in enumerate(trials):
            own, values = self._found[trial]
            at = np.searchsorted(rows, own)
            members[number, at], present[number, at] = values, 1.0
        return members, present

    def _scores(self, sums: np.ndarray, counts: np.ndarray, members: np.ndarray, present: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Score (M,) of the mean of the ensemble (``sums`` (N, K) over ``counts`` (N,) members) and
        each candidate.
        """
        step = max(1, _BLOCK // max(1, sums.size))
        parts = [self._block(sums + members[at : at + step], counts + present[at : at + step], rows) for at in range(0, len(members), step)]
        return np.concatenate(parts)

    def _block(self, sums: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if self.task.metric == "ccc":
            assert self.labels.attributes is not None  # a dimensional task has them
            middle = sum(self.task.scale) / 2  # where nobody answers
            means = np.where(counts[..., None] > 0, sums / np.maximum(counts, 1)[..., None], middle)
            truth = self.labels.attributes[rows]
            return np.array([metrics.score(self.task, attributes=truth, predicted_attributes=mean) for mean in means])
        label, classes = self.labels.label[rows], len(self.task.classes)
        kept = label >= 0
        cells = label[kept] * classes + sums[:, kept].argmax(-1)  # the mean has the same largest class as the sum
        counted = np.stack([np.bincount(own, minlength=classes * classes) for own in cells]).reshape(-1, classes, classes)
        return metrics.CATEGORICAL[self.task.metric](counted)
