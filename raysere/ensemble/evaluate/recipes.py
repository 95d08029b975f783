"""The published recipes that an ensemble is compared with (docs/methods.md 4.12).

Best single member, plain mean, majority vote, mean of two systems, random-forest stack, linear
meta-classifier with a weight soup.

They run on the same library and are chosen and fitted on the same selection rows, uncalibrated, as
they are usually run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions
from raysere.ensemble.evaluate import forest, meta
from raysere.ensemble.fit.alone import mean_target, member_scores, top_members
from raysere.ensemble.fit.calibration import class_shares, nll
from raysere.ensemble.fit.classes import decide
from raysere.ensemble.fit.pools import POOLS
from raysere.ensemble.fit.priors import likeliest_class
from raysere.training.task import Task

#: In the order in which they are shown. The last two answer classes only, and so does the vote.
RECIPES = ("best_single", "average", "majority_vote", "two_system_mean", "forest", "meta_soup")
Answer = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Baselines:
    """The chosen members of the plain recipes, and the fitted stackers where they are wanted.

    ``prior`` (K,) are the class shares and ``middle`` (A,) the mean attributes of the selection
    rows: the answer where a recipe has none.
    """

    best: MemberInfo
    members: tuple[MemberInfo, ...]
    prior: np.ndarray
    middle: np.ndarray
    two: tuple[MemberInfo, ...] = ()
    forest: forest.Forest | None = None
    meta: meta.MetaSoup | None = None

    def answers(self, predictions: StackedPredictions) -> dict[str, Answer]:
        """Recipe to (class int (N,), attributes (N, A) or None); only those that were fitted."""
        found: dict[str, Answer] = {"best_single": self.best_single(predictions), "average": self.average(predictions)}
        if predictions.classes:
            found["majority_vote"] = (self.majority_vote(predictions), None)
        if self.two:
            found["two_system_mean"] = self._pool(predictions.aligned(self.two), "linear")
        fallback = likeliest_class(self.prior, self.prior, predictions.classes) if predictions.classes else 0
        if self.forest is not None:
            found["forest"] = (decide(self.forest.predict(predictions), fallback), None)
        if self.meta is not None:
            found["meta_soup"] = (decide(self.meta.predict(predictions), fallback), None)
        return found

    def best_single(self, predictions: StackedPredictions) -> tuple[np.ndarray, np.ndarray]:
        """The member with the best selection score: (answer int (N,), attributes (N, A))."""
        return self._pool(predictions.aligned((self.best,)), "linear")

    def average(self, predictions: StackedPredictions) -> tuple[np.ndarray, np.ndarray]:
        """Plain mean of probabilities and of attributes over the library."""
        return self._pool(predictions.aligned(self.members), "linear")

    def majority_vote(self, predictions: StackedPredictions) -> np.ndarray:
        """Plurality of the members' labels (N,); ties by the mean probability."""
        return self._pool(predictions.aligned(self.members), "vote")[0]

    def _pool(self, found: StackedPredictions, pool: str) -> tuple[np.ndarray, np.ndarray]:
        equal = np.ones(len(found.members))
        answer = (
            decide(POOLS[pool](found.logp, equal, found.present), likeliest_class(self.prior, self.prior, found.classes))
            if found.classes
            else np.zeros(len(found.utterances), np.int64)
        )
        number = found.present.sum(0)[:, None]
        total = np.where(found.present[..., None], found.values, 0.0).astype(np.float64).sum(0)
        return answer, np.where(number > 0, total / np.maximum(number, 1), self.middle)


def wanted_recipes(config: EnsembleConfig, task: Task) -> tuple[str, ...]:
    """The recipes beside best single, mean and vote: those that are named, or (``auto``) all that
    can run here.
    """
    if config.recipes != "auto":
        return config.recipes
    stackers = (*(("forest",) if forest.forest_available() else ()), "meta_soup") if task.categorical else ()
    return ("two_system_mean", *stackers)


def fit_baselines(selection: FitRows, task: Task, config: EnsembleConfig) -> Baselines:
    """Choose the best single member, and the library of the plain recipes, on all selection rows
    (see ``member_scores``).
    """
    capped = top_members(selection, config.top, task.metric)
    scores, members = member_scores(capped, task.metric), capped.predictions.members
    labelled = capped.label[capped.label >= 0]
    prior = class_shares(labelled, len(task.classes), 0.5) if task.categorical else np.zeros(0)
    order = sorted(range(len(members)), key=lambda m: (-scores[m], _raw_nll(capped, m, prior) if task.categorical else 0.0, members[m].id))
    wanted = wanted_recipes(config, task)
    stackable = task.categorical and len(np.unique(labelled)) > 1

    def best(count: int) -> FitRows:
        return capped.take_members(sorted(order[:count]))

    return Baselines(
        members[order[0]],
        members,
        prior,
        mean_target(capped.target),
        two_systems(members, order) if "two_system_mean" in wanted else (),
        forest.fit_forest(best(forest.MEMBERS), config.seed) if "forest" in wanted and stackable else None,
        meta.fit_meta_soup(best(meta.MEMBERS), config.seed) if "meta_soup" in wanted and stackable else None,
    )


def two_systems(members: tuple[MemberInfo, ...], order: list[int]) -> tuple[MemberInfo, ...]:
    """The best member and the best that hears something else (docs/methods.md 4.12): of another
    modality, else of another study, else the next; ``order`` numbers the members from the best on.
    """
    first = members[order[0]]
    rest = [members[m] for m in order[1:]]
    other = next((one for one in rest if one.modality != first.modality), None)
    other = other or next((one for one in rest if (one.run, one.study) != (first.run, first.study)), None)
    other = other or (rest[0] if rest else None)
    return (first,) if other is None else (first, other)


def _raw_nll(selection: FitRows, member: int, prior: np.ndarray) -> float:
    rows = selection.label >= 0
    found = selection.predictions
    filled = np.where(found.present[member, rows, None], found.logp[member, rows], np.log(prior))
    return nll(filled, selection.label[rows]) if rows.any() else np.inf
