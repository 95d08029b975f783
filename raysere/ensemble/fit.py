"""The procedure: calibrate, choose, weigh, match. Everything in this file takes a Selection, which cannot hold test rows.

A fitted ensemble is a mixture of *parts* with equal shares: one part for a holdout or out-of-fold run, one for each outer
fold of a nested run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from raysere.ensemble.calibration import Calibration, class_shares, fit_calibration, log_softmax, nll
from raysere.ensemble.config import ATTRIBUTE_FAMILIES, FAMILIES, EnsembleConfig
from raysere.ensemble.dimensional import AttributeFit, fit_attribute, group_folds
from raysere.ensemble.greedy import Candidates, GreedyParams, contributions, greedy_weights
from raysere.ensemble.library import MemberInfo, Predictions, Selection
from raysere.ensemble.objective import Objective
from raysere.ensemble.pools import POOLS
from raysere.ensemble.priors import decision_prior, likeliest_class, shift_prior
from raysere.errors import DataError
from raysere.training.task import Task

#: Candidate answers (members x items x classes x steps x bags x folds) above which ``auto`` goes straight to greedy.
AUTO_LIMIT = 2e10
_SE_DRAWS = 500


@dataclass(frozen=True)
class ClassFit:
    """Members with weight, their calibrations, and the priors between which the pooled prediction is moved.

    ``temperature`` divides the pooled log-probabilities: the mean of calibrated members that disagree is less sure than it is
    right. It acts after the prior is moved, so that it changes how sure an answer is and never which class is answered, the one by
    which members were chosen.
    """

    members: tuple[MemberInfo, ...]
    weights: np.ndarray
    calibrations: tuple[Calibration, ...]
    pool: str
    selection_prior: np.ndarray
    prior: np.ndarray
    family: str
    choice: tuple[tuple[str, float], ...] = ()  # inner-fold scores by which ``auto`` chose
    temperature: float = 1.0

    def pooled(self, predictions: Predictions) -> np.ndarray:
        """Pooled log-probabilities (N, K) float64 before the temperature, NaN where nobody answers."""
        found = predictions.aligned(self.members)
        calibrated = np.stack([calibration.apply(logp) for calibration, logp in zip(self.calibrations, found.logp)])
        return POOLS[self.pool](calibrated, self.weights, found.present)

    def natural(self, predictions: Predictions) -> np.ndarray:
        """Calibrated pooled log-probabilities (N, K) float64 under the selection prior, NaN where nobody answers."""
        return self._temper(self.pooled(predictions))

    def _temper(self, logp: np.ndarray) -> np.ndarray:
        return logp if self.temperature == 1 else log_softmax(logp / self.temperature)

    def predict(self, predictions: Predictions) -> np.ndarray:
        """Log-probabilities (N, K) float64 under the decision prior, NaN where nobody answers."""
        return self._temper(shift_prior(self.pooled(predictions), self.selection_prior, self.prior))

    def fallback(self, classes: Sequence[str]) -> int:
        """The class that is answered where nobody answers."""
        return likeliest_class(self.prior, self.selection_prior, classes)


@dataclass(frozen=True)
class AttributePart:
    """The members of one attribute's pool, and its fit; ``index`` is the attribute's place in the task."""

    members: tuple[MemberInfo, ...]
    index: int
    fit: AttributeFit
    choice: tuple[tuple[str, float], ...] = ()

    def predict(self, predictions: Predictions) -> np.ndarray:
        found = predictions.aligned(self.members)
        return self.fit.predict(found.values[:, :, self.index], found.present)


@dataclass(frozen=True)
class Part:
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

    def predict(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
        """(log-probabilities (N, K), attributes (N, A)), float64, NaN where nobody answers; K or A may be 0."""
        count = len(predictions.utterances)
        logp = self.classes.predict(predictions) if self.classes else np.zeros((count, 0))
        values = (
            np.stack([attribute.predict(predictions) for attribute in self.attributes], axis=1) if self.attributes else np.zeros((count, 0))
        )
        return logp, values


def mixture(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Uniform mixture of the predictions of parts; a part that cannot answer an item (or one attribute of it) is left out for it."""
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


def fit_part(selection: Selection, task: Task, config: EnsembleConfig) -> Part:
    """Do everything on these rows: cap the library, calibrate, choose the family, weigh, match.

    Raises DataError when no row has a label of the task.
    """
    capped = selection.top(config.top, task.metric)
    classes = fit_classes(capped, task, config) if task.categorical else None
    attributes = (
        tuple(fit_one_attribute(capped, number, task, config) for number in range(len(task.attributes))) if task.dimensional else ()
    )
    return Part(classes, attributes)


# ---- classes -------------------------------------------------------------------------------------------------------------------


def class_metric(task: Task) -> str:
    """The metric of the class part: the task's, or UAR where the task is scored by its attributes."""
    return "uar" if task.metric == "ccc" else task.metric


def class_objective(task: Task, config: EnsembleConfig, prior: np.ndarray) -> Objective:
    """The run's metric; macro-F1 under the prior that the user says the test has, if one is said."""
    metric = class_metric(task)
    stated = metric == "macro_f1" and config.prior not in ("auto", "same")
    return Objective(metric, tuple(float(share) for share in prior) if stated else None)


def fit_classes(selection: Selection, task: Task, config: EnsembleConfig) -> ClassFit:
    """The categorical procedure (papers 3.7 steps 1 to 5) with the family that the config names."""
    labelled = selection.label >= 0
    if not labelled.any():
        raise DataError("No selection row has a class label")
    rows = selection.part(labelled)
    choice: tuple[tuple[str, float], ...] = ()
    family: str = config.family
    if family == "auto":
        family, choice = _choose_class_family(rows, task, config)
    prepared = _prepare(rows, task, config)
    return _weigh(prepared, rows, family, task, config, choice)


@dataclass(frozen=True)
class _Prepared:
    calibrations: list[Calibration]
    candidates: Candidates
    selection_prior: np.ndarray
    prior: np.ndarray


def _prepare(rows: Selection, task: Task, config: EnsembleConfig) -> _Prepared:
    found = rows.predictions
    classes = len(found.classes)
    selection_prior = class_shares(rows.label, classes, 0.5)
    prior = decision_prior(config.prior, class_metric(task), selection_prior, found.classes)
    calibrations = []
    calibrated = np.empty_like(found.logp)
    for m, (member, here) in enumerate(zip(found.members, found.present)):
        usable = config.calibrate and np.unique(rows.label[here]).size > 1
        carried = None if member.prior is None else np.asarray(member.prior)
        calibrations.append(
            fit_calibration(*_answered(found.logp[m], rows.label, here), member_prior=carried, ridge=config.ridge)
            if usable
            else Calibration.identity(classes)
        )
        calibrated[m] = calibrations[m].apply(found.logp[m])
    ratio = prior / selection_prior
    scores = contributions(calibrated, found.present, ratio, log_pool=config.pool == "log")
    _, group = np.unique(rows.speaker, return_inverse=True)
    candidates = Candidates(
        scores,
        found.present,
        rows.label,
        group,
        ratio[rows.label],
        [member.id for member in found.members],
        config.pool == "log",
        prior,
        likeliest_class(prior, selection_prior, found.classes),
    )
    return _Prepared(calibrations, candidates, selection_prior, prior)


def _answered(logp: np.ndarray, label: np.ndarray, here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (logp, label) if here.all() else (logp[here], label[here])


def _weigh(
    prepared: _Prepared, rows: Selection, family: str, task: Task, config: EnsembleConfig, choice: tuple[tuple[str, float], ...] = ()
) -> ClassFit:
    objective = class_objective(task, config, prepared.prior)
    members = rows.predictions.members
    if family == "average":
        weights = np.full(len(members), 1 / len(members))
    elif family == "best_single":
        weights = greedy_weights(prepared.candidates, objective, GreedyParams(steps=1, start=1, bags=0, seed=config.seed))
    else:
        weights = greedy_weights(prepared.candidates, objective, greedy_params(config))
    kept = np.flatnonzero(weights > 0)
    fit = ClassFit(
        tuple(members[m] for m in kept),
        weights[kept] / weights[kept].sum(),
        tuple(prepared.calibrations[m] for m in kept),
        config.pool,
        prepared.selection_prior,
        prepared.prior,
        family,
        choice,
    )
    return replace(fit, temperature=_pool_temperature(fit, rows, config)) if config.calibrate else fit


def _pool_temperature(fit: ClassFit, rows: Selection, config: EnsembleConfig) -> float:
    """Temperature of the pooled log-probabilities on the selection rows; 1 where the (penalised) fit would not lower their NLL."""
    pooled = fit.pooled(rows.predictions)
    answered = np.isfinite(pooled).all(1)
    pooled, label = pooled[answered], rows.label[answered]
    if np.unique(label).size < 2:
        return 1.0
    temperature = fit_calibration(pooled, label, ridge=config.ridge, biases=False).temperature
    return temperature if nll(log_softmax(pooled / temperature), label) < nll(pooled, label) else 1.0


def greedy_params(config: EnsembleConfig) -> GreedyParams:
    return GreedyParams(config.steps, config.start, config.patience, config.gain, config.bags, config.prune, config.seed)


def _choose_class_family(rows: Selection, task: Task, config: EnsembleConfig) -> tuple[str, tuple[tuple[str, float], ...]]:
    """By inner speaker folds and the one-standard-error rule; greedy where that would take too long or there is one speaker."""
    members, count = rows.predictions.present.shape
    if members == 1:
        return "best_single", ()
    cost = members * count * len(rows.predictions.classes) * config.steps * max(config.bags, 1) * config.inner_folds
    fold = group_folds(rows.speaker, config.inner_folds, config.seed)
    if cost > AUTO_LIMIT or len(np.unique(fold)) < 2:
        return "greedy", ()
    classes = len(rows.predictions.classes)
    answers = {family: np.zeros(count, np.int64) for family in FAMILIES}
    for number in np.unique(fold):
        held = fold == number
        inner = rows.part(~held)
        prepared = _prepare(inner, task, config)
        apart = rows.predictions.take_rows(held)
        for family in FAMILIES:
            fit = _weigh(prepared, inner, family, task, config)
            answers[family][held] = decide(fit.predict(apart), fit.fallback(apart.classes))
    names, group = np.unique(rows.speaker, return_inverse=True)
    objective = class_objective(
        task, config, decision_prior(config.prior, class_metric(task), class_shares(rows.label, classes, 0.5), rows.predictions.classes)
    )
    sums = {family: _group_counts(rows.label, answer, group, len(names), classes) for family, answer in answers.items()}
    return one_standard_error(sums, objective, config.seed)


def _group_counts(label: np.ndarray, answer: np.ndarray, group: np.ndarray, groups: int, classes: int) -> np.ndarray:
    cells = (group * classes + label) * classes + answer
    return np.bincount(cells, minlength=groups * classes**2).reshape(groups, classes, classes).astype(np.float64)


def one_standard_error(sums: dict[str, np.ndarray], statistic, seed: int) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The first family (simple to complex) that is within one standard error of the best.

    The standard error is that of the paired difference to the best, by a bootstrap of speakers.

    Args:
        sums: family to per-speaker sums (G, ...), in order of complexity. statistic: from sums (..., ) to scores.
    """
    scores = {family: float(statistic(value.sum(0))) for family, value in sums.items()}
    best = max(scores, key=lambda family: scores[family])
    groups = len(sums[best])
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=_SE_DRAWS).astype(np.float64)

    def drawn(family: str) -> np.ndarray:
        value = sums[family]
        return statistic((draws @ value.reshape(groups, -1)).reshape(_SE_DRAWS, *value.shape[1:]))

    top = drawn(best)
    chosen = next(family for family in sums if family == best or scores[best] - scores[family] <= np.nanstd(top - drawn(family)))
    return chosen, tuple((family, round(score, 6)) for family, score in scores.items())


def decide(logp: np.ndarray, fallback: int) -> np.ndarray:
    """Most probable class (N,) int; ``fallback`` (see ``likeliest_class``) where nobody answers."""
    answered = np.isfinite(logp).all(1)
    answer = np.full(len(logp), fallback, np.int64)
    answer[answered] = logp[answered].argmax(1)
    return answer


# ---- attributes ----------------------------------------------------------------------------------------------------------------


def fit_one_attribute(selection: Selection, index: int, task: Task, config: EnsembleConfig) -> AttributePart:
    """One attribute by the dimensional procedure (papers 3.8)."""
    rated = np.isfinite(selection.target[:, index])
    if not rated.any():
        raise DataError(f"No selection row has a value of {task.attributes[index]}")
    rows = selection.part(rated)
    family: str = config.dimensional
    choice: tuple[tuple[str, float], ...] = ()
    if family == "auto":
        family, choice = _choose_attribute_family(rows, index, task, config)
    fit = _attribute(rows, index, family, task, config)
    kept = np.flatnonzero(fit.weights > 0)
    smaller = AttributeFit(fit.weights[kept], fit.mean[kept], fit.sd[kept], fit.slope, fit.intercept, fit.kappa, fit.scale, family)
    return AttributePart(tuple(rows.predictions.members[m] for m in kept), index, smaller, choice)


def _attribute(rows: Selection, index: int, family: str, task: Task, config: EnsembleConfig) -> AttributeFit:
    found = rows.predictions
    return fit_attribute(
        found.values[:, :, index].astype(np.float64),
        found.present,
        rows.target[:, index],
        rows.speaker,
        [member.id for member in found.members],
        family,
        task.scale,
        config,
    )


def _choose_attribute_family(rows: Selection, index: int, task: Task, config: EnsembleConfig) -> tuple[str, tuple[tuple[str, float], ...]]:
    from raysere.training.metrics import group_moments, mean_ccc_of

    fold = group_folds(rows.speaker, config.inner_folds, config.seed)
    if len(rows.predictions.members) == 1 or len(np.unique(fold)) < 2:
        return ("best_single" if len(rows.predictions.members) == 1 else "average"), ()
    target = rows.target[:, index]
    held_out = {family: np.full(len(target), np.nan) for family in ATTRIBUTE_FAMILIES}
    for number in np.unique(fold):
        held = fold == number
        inner, apart = rows.part(~held), rows.predictions.take_rows(held)
        for family in ATTRIBUTE_FAMILIES:
            held_out[family][held] = _attribute(inner, index, family, task, config).predict(
                apart.values[:, :, index].astype(np.float64), apart.present
            )
    fallback = float(target.mean())
    sums = {
        family: group_moments(np.where(np.isfinite(value), value, fallback)[:, None], target[:, None], rows.speaker)
        for family, value in held_out.items()
    }
    return one_standard_error(sums, mean_ccc_of, config.seed)
