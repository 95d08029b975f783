"""Fit one outer split: calibrate, choose, weight, match. Test rows cannot enter.

A fitted ensemble is a mixture of *parts* with equal shares: one part for a holdout or out-of-fold
run, one for each outer fold of a nested run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from raysere.base.errors import DataError
from raysere.ensemble.config import ATTRIBUTE_FAMILIES, EnsembleConfig
from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions
from raysere.ensemble.fit.alone import top_members
from raysere.ensemble.fit.attributes import AttributeFit, fit_attribute, group_folds
from raysere.ensemble.fit.auto import choose, first_near_best, fit_plan
from raysere.ensemble.fit.classes import ClassFit
from raysere.ensemble.fit.unlabelled_target import near_members
from raysere.training.task import Task


@dataclass(frozen=True)
class AttributePart:
    """The members of one attribute's pool, and its fit; ``index`` is the attribute's place in the
    task.
    """

    members: tuple[MemberInfo, ...]
    index: int
    fit: AttributeFit
    choice: tuple[tuple[str, float], ...] = ()

    def predict(self, predictions: StackedPredictions) -> np.ndarray:
        found = predictions.aligned(self.members)
        return self.fit.predict(found.values[:, :, self.index], found.present)


@dataclass(frozen=True)
class OuterFit:
    """One fitted ensemble: class fit and/or one fit for each attribute."""

    classes: ClassFit | None
    attributes: tuple[AttributePart, ...]

    @property
    def members(self) -> tuple[MemberInfo, ...]:
        """All members with weight, by id."""
        found = {member.id: member for member in (self.classes.members if self.classes else ())}
        for attribute in self.attributes:
            found |= {member.id: member for member in attribute.members}
        return tuple(found[name] for name in sorted(found))

    def predict(self, predictions: StackedPredictions) -> tuple[np.ndarray, np.ndarray]:
        """(log-probabilities (N, K), attributes (N, A)), float64, NaN where nobody answers; K or A
        may be 0.
        """
        count = len(predictions.utterances)
        logp = self.classes.predict(predictions) if self.classes else np.zeros((count, 0))
        values = (
            np.stack([attribute.predict(predictions) for attribute in self.attributes], axis=1) if self.attributes else np.zeros((count, 0))
        )
        return logp, values


def mixture(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Uniform mixture of the predictions of parts; a part that cannot answer an item (or one
    attribute of it) is left out for it.
    """
    if len(parts) == 1:
        return parts[0]
    logp = _mean_over_answering(np.exp(np.stack([part[0] for part in parts])))
    with np.errstate(divide="ignore"):
        return np.log(logp), _mean_over_answering(np.stack([part[1] for part in parts]))


def _mean_over_answering(values: np.ndarray) -> np.ndarray:
    answered = np.isfinite(values)
    total = np.where(answered, values, 0.0).sum(0)
    number = answered.sum(0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def fit_part(selection: FitRows, task: Task, config: EnsembleConfig) -> OuterFit:
    """Do everything on these rows: cap the library, calibrate, choose the family, weigh, match.

    Raises DataError when no row has a label of the task.
    """
    capped = top_members(selection, config.top, task.metric)
    classes = fit_classes(capped, task, config) if task.categorical else None
    attributes = (
        tuple(fit_one_attribute(capped, number, task, config) for number in range(len(task.attributes))) if task.dimensional else ()
    )
    return OuterFit(classes, attributes)


def fit_classes(selection: FitRows, task: Task, config: EnsembleConfig) -> ClassFit:
    """The categorical procedure (docs/methods.md 4): what the config leaves open is chosen on inner
    folds, then fitted on all rows.
    """
    labelled = selection.label >= 0
    if not labelled.any():
        raise DataError("No selection row has a class label")
    rows = selection.take_rows(labelled)
    if config.near is not None:
        rows = rows.take_members(near_members(rows, task, config.near))
    return fit_plan(rows, choose(rows, task, config), task, config)


# ---- attributes ----------------------------------------------------------------------------------


def fit_one_attribute(selection: FitRows, index: int, task: Task, config: EnsembleConfig) -> AttributePart:
    """One attribute by the dimensional procedure (docs/methods.md 4.11)."""
    rated = np.isfinite(selection.target[:, index])
    if not rated.any():
        raise DataError(f"No selection row has a value of {task.attributes[index]}")
    rows = selection.take_rows(rated)
    family: str = config.dimensional
    choice: tuple[tuple[str, float], ...] = ()
    if family == "auto":
        family, choice = _choose_attribute_family(rows, index, task, config)
    fit = _attribute(rows, index, family, task, config)
    kept = np.flatnonzero(fit.weights > 0)
    ranks = None if fit.ranks is None else replace(fit.ranks, knots=fit.ranks.knots[kept])
    smaller = replace(fit, weights=fit.weights[kept], mean=fit.mean[kept], sd=fit.sd[kept], ranks=ranks)
    return AttributePart(tuple(rows.predictions.members[m] for m in kept), index, smaller, choice)


def _attribute(rows: FitRows, index: int, family: str, task: Task, config: EnsembleConfig) -> AttributeFit:
    found = rows.predictions
    return fit_attribute(
        found.values[:, :, index].astype(np.float64),
        found.present,
        rows.target[:, index],
        rows.group,
        [member.id for member in found.members],
        family,
        task.scale,
        config,
    )


def _choose_attribute_family(rows: FitRows, index: int, task: Task, config: EnsembleConfig) -> tuple[str, tuple[tuple[str, float], ...]]:
    from raysere.training.metrics import group_moments, mean_ccc_of

    fold = group_folds(rows.group, config.inner_folds, config.seed)
    if len(rows.predictions.members) == 1 or len(np.unique(fold)) < 2:
        return ("best_single" if len(rows.predictions.members) == 1 else "average"), ()
    target = rows.target[:, index]
    held_out = {family: np.full(len(target), np.nan) for family in ATTRIBUTE_FAMILIES}
    for number in np.unique(fold):
        held = fold == number
        inner, apart = rows.take_rows(~held), rows.predictions.take_rows(held)
        for family in ATTRIBUTE_FAMILIES:
            held_out[family][held] = _attribute(inner, index, family, task, config).predict(
                apart.values[:, :, index].astype(np.float64), apart.present
            )
    fallback = float(target.mean())
    sums = {
        family: group_moments(np.where(np.isfinite(value), value, fallback)[:, None], target[:, None], rows.group)
        for family, value in held_out.items()
    }
    return first_near_best(sums, mean_ccc_of, config.margin, config.seed)
