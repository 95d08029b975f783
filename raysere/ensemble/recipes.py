"""The recipes that an ensemble is compared with: best single member, plain mean, majority vote.

They run on the same library and are chosen on the same selection rows, uncalibrated, as they are usually run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysere.ensemble.calibration import class_shares, nll
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.fit import decide
from raysere.ensemble.library import MemberInfo, Predictions, Selection, mean_target, member_scores
from raysere.ensemble.pools import POOLS
from raysere.ensemble.priors import likeliest_class
from raysere.training.task import Task


@dataclass(frozen=True)
class Baselines:
    """The chosen member and the members of the plain recipes.

    ``prior`` (K,) are the class shares and ``middle`` (A,) the mean attributes of the selection rows: the answer where a
    recipe has none.
    """

    best: MemberInfo
    members: tuple[MemberInfo, ...]
    prior: np.ndarray
    middle: np.ndarray

    def best_single(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
        """The member with the best selection score: (answer int (N,), attributes (N, A))."""
        return self._pool(predictions.aligned((self.best,)), "linear")

    def average(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
        """Plain mean of probabilities and of attributes over the library."""
        return self._pool(predictions.aligned(self.members), "linear")

    def majority_vote(self, predictions: Predictions) -> np.ndarray:
        """Plurality of the members' labels (N,); ties by the mean probability."""
        return self._pool(predictions.aligned(self.members), "vote")[0]

    def _pool(self, found: Predictions, pool: str) -> tuple[np.ndarray, np.ndarray]:
        equal = np.ones(len(found.members))
        answer = (
            decide(POOLS[pool](found.logp, equal, found.present), likeliest_class(self.prior, self.prior, found.classes))
            if found.classes
            else np.zeros(len(found.utterances), np.int64)
        )
        number = found.present.sum(0)[:, None]
        total = np.where(found.present[..., None], found.values, 0.0).astype(np.float64).sum(0)
        return answer, np.where(number > 0, total / np.maximum(number, 1), self.middle)


def fit_baselines(selection: Selection, task: Task, config: EnsembleConfig) -> Baselines:
    """Choose the best single member, and the library of the plain recipes, on all selection rows (see ``member_scores``)."""
    capped = selection.top(config.top, task.metric)
    scores, members = member_scores(capped, task.metric), capped.predictions.members
    labelled = capped.label[capped.label >= 0]
    prior = class_shares(labelled, len(task.classes), 0.5) if task.categorical else np.zeros(0)
    best = min(range(len(members)), key=lambda m: (-scores[m], _raw_nll(capped, m, prior) if task.categorical else 0.0, members[m].id))
    return Baselines(members[best], members, prior, mean_target(capped.target))


def _raw_nll(selection: Selection, member: int, prior: np.ndarray) -> float:
    rows = selection.label >= 0
    found = selection.predictions
    filled = np.where(found.present[member, rows, None], found.logp[member, rows], np.log(prior))
    return nll(filled, selection.label[rows]) if rows.any() else np.inf
