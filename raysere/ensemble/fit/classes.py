"""One class ensemble: calibrated members, a pool, weights, offsets (docs/methods.md 4).

Everything here takes FitRows, never test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions
from raysere.ensemble.fit.calibration import (
    Calibration,
    class_shares,
    design_effect,
    fit_calibration,
    log_softmax,
    nll,
    only_votes,
    vote_table,
)
from raysere.ensemble.fit.convex import convex_weights, linear_problem, log_problem
from raysere.ensemble.fit.greedy import Candidates, GreedyParams, contributions, greedy_weights
from raysere.ensemble.fit.objective import Objective
from raysere.ensemble.fit.pools import POOLS, RankReference, pooled_scores
from raysere.ensemble.fit.priors import Posterior, decision_prior, estimate_prior, likeliest_class, shift_prior
from raysere.ensemble.fit.stacking import PENALTIES, Stack, fit_stacks
from raysere.training.task import Task

POOL_NAMES = (*POOLS, "stack")
_TIE_BREAK = 1e-6  # of a vote, as in pools.vote


@dataclass(frozen=True)
class ClassFit:
    """Members with weight, their calibrations, their pool, and the priors between which the pooled
    prediction is moved.

    ``temperature`` divides the pooled log-probabilities: the mean of calibrated members that
    disagree is less sure than it is right. It acts after the prior is moved, so that it changes how
    sure an answer is and never which class is answered, the one by which members were chosen.

    Attributes:
        offsets: (K,) decision offsets that are added under the decision prior, or None; ``ladder``
            names their kind.
        stack: the regression of the family ``stack``, whose ``weights`` only tell how much each
            member counts.
        ranks, scale: of the pool ``rank``: the members' reference, and what makes log-probabilities
            of mean normal scores.
        estimate: decide under the class prior of the rows that are answered together, as they are
            estimated to have it.
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
    offsets: np.ndarray | None = None
    ladder: str = "none"
    stack: Stack | None = None
    ranks: RankReference | None = None
    scale: Calibration | None = None
    estimate: bool = False

    def posterior(self, predictions: StackedPredictions) -> Posterior:
        """The pool with the prior that it carries, before the temperature, NaN where nobody
        answers.
        """
        found = predictions.aligned(self.members)
        calibrated = np.stack([calibration.apply(logp) for calibration, logp in zip(self.calibrations, found.logp)])
        if self.stack is not None:
            return Posterior(self.stack.logp(calibrated, found.present, self.prior / self.selection_prior), self.prior)
        if self.pool == "vote":  # votes are cast under the decision prior: which class is answered is no matter of another one
            cast = shift_prior(calibrated, self.selection_prior, self.prior)
            return Posterior(log_softmax(np.log(POOLS["vote"](cast, self.weights, found.present))), self.prior)
        if self.ranks is not None and self.scale is not None:
            scores = pooled_scores(self.ranks.scores(calibrated), self.weights, found.present)
            return Posterior(self.scale.apply(scores).astype(np.float64), self.selection_prior)
        return Posterior(POOLS[self.pool](calibrated, self.weights, found.present), self.selection_prior)

    def pooled(self, predictions: StackedPredictions) -> np.ndarray:
        """Pooled log-probabilities (N, K) float64 under the selection prior, before the
        temperature; NaN where nobody answers.
        """
        return self.posterior(predictions).under(self.selection_prior).logp

    def natural(self, predictions: StackedPredictions) -> np.ndarray:
        """Calibrated pooled log-probabilities (N, K) float64 under the selection prior, NaN where
        nobody answers.
        """
        return self._temper(self.pooled(predictions))

    def _temper(self, logp: np.ndarray) -> np.ndarray:
        return logp if self.temperature == 1 else log_softmax(logp / self.temperature)

    def predict(self, predictions: StackedPredictions) -> np.ndarray:
        """Log-probabilities (N, K) float64 under the decision prior, offsets included, NaN where
        nobody answers.
        """
        posterior = self.posterior(predictions)
        if self.estimate:  # the estimate is of the tempered posterior, so that is what it moves
            natural = self._temper(posterior.under(self.selection_prior).logp)
            answered = np.isfinite(natural).all(1)
            target = estimate_prior(natural[answered], self.selection_prior) if answered.any() else self.selection_prior
            return Posterior(natural, self.selection_prior).under(target).logp
        decided = posterior.under(self.prior).logp
        return self._temper(decided if self.offsets is None else log_softmax(decided + self.offsets))

    def fallback(self, classes: Sequence[str]) -> int:
        """The class that is answered where nobody answers."""
        return likeliest_class(self.prior, self.selection_prior, classes)


def class_metric(task: Task) -> str:
    """The metric of the class part: the task's, or UAR where the task is scored by its attributes."""
    return "uar" if task.metric == "ccc" else task.metric


def class_objective(task: Task, config: EnsembleConfig, prior: np.ndarray) -> Objective:
    """The run's metric; macro-F1 under the prior that the user says the test has, if one is said."""
    metric = class_metric(task)
    stated = metric == "macro_f1" and config.prior not in ("auto", "same", "estimate")
    return Objective(metric, tuple(float(share) for share in prior) if stated else None)


def decide(logp: np.ndarray, fallback: int) -> np.ndarray:
    """Most probable class (N,) int; ``fallback`` (see ``likeliest_class``) where nobody answers."""
    answered = np.isfinite(logp).all(1)
    answer = np.full(len(logp), fallback, np.int64)
    answer[answered] = logp[answered].argmax(1)
    return answer


#: Families whose weights are averaged in ``blend``: the one follows the metric, the other the
#: likelihood.
BLENDED = ("greedy", "convex")


@dataclass
class CalibratedMembers:
    """Calibrated members of some selection rows: what all families and pools share.

    ``logp`` float32 (M, N, K) under ``selection_prior``; ``ratio`` (K,) decision over selection
    prior; ``weights`` found so far, by family and pool, for one task and config.
    """

    rows: FitRows
    calibrations: list[Calibration]
    logp: np.ndarray
    selection_prior: np.ndarray
    prior: np.ndarray
    weights: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def ratio(self) -> np.ndarray:
        return self.prior / self.selection_prior

    def candidates(self, pool: str) -> Candidates:
        """What each member adds to the scores of a pool."""
        found = self.rows.predictions
        _, group = np.unique(self.rows.group, return_inverse=True)
        return Candidates(
            self._contributions(pool),
            found.present,
            self.rows.label,
            group,
            self.ratio[self.rows.label],
            [member.id for member in found.members],
            pool in ("log", "rank"),
            self.prior,
            likeliest_class(self.prior, self.selection_prior, found.classes),
        )

    def _contributions(self, pool: str) -> np.ndarray:
        present = self.rows.predictions.present
        if pool in ("linear", "log"):
            return contributions(self.logp, present, self.ratio, log_pool=pool == "log")
        if pool == "rank":
            return contributions(RankReference.of(self.logp, present).scores(self.logp), present, np.ones(len(self.ratio)), log_pool=True)
        cast = shift_prior(self.logp, self.selection_prior, self.prior)
        votes = np.where(np.eye(cast.shape[2], dtype=bool)[cast.argmax(2)], np.float32(1), np.float32(0))
        with np.errstate(divide="ignore"):
            return contributions(np.log(votes + np.float32(_TIE_BREAK) * np.exp(cast)), present, np.ones(len(self.ratio)), log_pool=False)


def prepare(rows: FitRows, task: Task, config: EnsembleConfig) -> CalibratedMembers:
    """Calibrate every member on ``rows``, all of which have a label."""
    found = rows.predictions
    classes = len(found.classes)
    selection_prior = class_shares(rows.label, classes, 0.5)
    prior = decision_prior(config.prior, class_metric(task), selection_prior, found.classes)
    calibrations = []
    calibrated = np.empty_like(found.logp)
    for m, (member, here) in enumerate(zip(found.members, found.present)):
        carried = None if member.prior is None else np.asarray(member.prior)
        logp, label, group = found.logp[m], rows.label, rows.group
        if not here.all():
            logp, label, group = logp[here], label[here], group[here]
        calibrations.append(_calibration(logp, label, group, carried, selection_prior, config))
        calibrated[m] = calibrations[m].apply(found.logp[m])
    return CalibratedMembers(rows, calibrations, calibrated, selection_prior, prior)


def _calibration(
    logp: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    carried: np.ndarray | None,
    selection_prior: np.ndarray,
    config: EnsembleConfig,
) -> Calibration:
    classes = logp.shape[1]
    votes = vote_table(logp.argmax(1), label, classes) if only_votes(logp) else None
    if votes is not None:  # its table has the prior of the selection rows already
        logp, carried = votes[logp.argmax(1)], selection_prior
    if config.calibrate and np.unique(label).size > 1:
        pull = config.bias_ridge * design_effect(logp, label, group)
        return replace(fit_calibration(logp, label, member_prior=carried, ridge=config.ridge, bias_ridge=pull), votes=votes)
    if config.calibrate or carried is None:
        return replace(Calibration.identity(classes), votes=votes)
    # without calibration, too, every member comes to the selection prior first, so that the
    # decision prior is moved to once
    bias = np.log(selection_prior) - np.log(np.maximum(carried, 1e-6))
    return Calibration(1.0, bias - bias[-1], votes)


def greedy_params(config: EnsembleConfig) -> GreedyParams:
    return GreedyParams(config.steps, config.start, config.patience, config.gain, config.bags, config.prune, config.seed)


def _weights_once(prepared: CalibratedMembers, family: str, pool: str, task: Task, config: EnsembleConfig) -> np.ndarray:
    """:func:`family_weights`, kept with the rows: the blend and the choice between families ask for
    the same.
    """
    if (family, pool) not in prepared.weights:
        prepared.weights[family, pool] = family_weights(prepared, family, pool, task, config)
    return prepared.weights[family, pool]


def family_weights(prepared: CalibratedMembers, family: str, pool: str, task: Task, config: EnsembleConfig) -> np.ndarray:
    """Weights (M,) with sum 1 of every family but the stack."""
    members = len(prepared.calibrations)
    objective = class_objective(task, config, prepared.prior)
    if family in ("average", "vote"):
        return np.full(members, 1 / members)
    if family == "blend":
        return np.mean([_weights_once(prepared, one, pool, task, config) for one in BLENDED], axis=0)
    if family == "convex":
        rows = prepared.rows
        weighing = (prepared.logp, rows.predictions.present, rows.label, prepared.ratio[rows.label])
        problem = log_problem(*weighing, prepared.ratio) if pool == "log" else linear_problem(*weighing)
        return convex_weights(problem)
    params = greedy_params(config)
    if family == "best_single":
        params = replace(params, steps=1, start=1, bags=0)
    elif family == "greedy_once":
        params = replace(params, bags=0)
    return greedy_weights(prepared.candidates(pool), objective, params)


def weigh(
    prepared: CalibratedMembers, family: str, pool: str, task: Task, config: EnsembleConfig, penalty: float = 1e-2, *, temper: bool = True
) -> ClassFit:
    """One family in one pool on prepared rows; ``penalty`` is that of the stack.

    ``temper`` False leaves the pool's temperature at 1.
    """
    if family == "stack":
        fit = stack_fits(prepared, task, config, [penalty])[0]
    else:
        pool = "vote" if family == "vote" else pool
        weights = _weights_once(prepared, family, pool, task, config)
        kept = np.flatnonzero(weights > 0)
        fit = _class_fit(prepared, kept, weights[kept] / weights[kept].sum(), pool, family, config)
        if pool == "rank":
            fit = _with_ranks(fit, prepared, kept, config)
    return replace(fit, temperature=_pool_temperature(fit, prepared.rows, config)) if config.calibrate and temper else fit


def stack_fits(
    prepared: CalibratedMembers, task: Task, config: EnsembleConfig, penalties: Sequence[float] = PENALTIES, *, tolerance: float = 1e-6
) -> list[ClassFit]:
    """The stack at each penalty (in rising order), on the best members by themselves
    (``config.stack_members``).
    """
    found = prepared.rows.predictions
    scores = single_scores(prepared, class_objective(task, config, prepared.prior))
    order = sorted(range(len(found.members)), key=lambda m: (-scores[m], found.members[m].id))
    kept = np.sort(np.array(order[: config.stack_members], dtype=np.int64))
    label, ratio = prepared.rows.label, prepared.ratio
    stacks = fit_stacks(prepared.logp[kept], found.present[kept], label, ratio, ratio[label], penalties, tolerance=tolerance)
    return [replace(_class_fit(prepared, kept, stack.shares, "stack", "stack", config), stack=stack) for stack in stacks]


def single_scores(prepared: CalibratedMembers, objective: Objective) -> np.ndarray:
    """The objective (M,) of each calibrated member by itself, over all rows."""
    from raysere.ensemble.fit.objective import confusion_counts

    found, classes = prepared.rows.predictions, len(prepared.prior)
    fallback = likeliest_class(prepared.prior, prepared.selection_prior, found.classes)
    shift = np.log(prepared.ratio).astype(np.float32)
    answers = (np.where(here, (logp + shift).argmax(1), fallback) for logp, here in zip(prepared.logp, found.present))
    return np.array([float(objective(confusion_counts(prepared.rows.label, answer, classes))[0]) for answer in answers])


def _class_fit(
    prepared: CalibratedMembers, kept: np.ndarray, weights: np.ndarray, pool: str, family: str, config: EnsembleConfig
) -> ClassFit:
    members = prepared.rows.predictions.members
    return ClassFit(
        tuple(members[m] for m in kept),
        weights,
        tuple(prepared.calibrations[m] for m in kept),
        pool,
        prepared.selection_prior,
        prepared.prior,
        family,
        estimate=config.prior == "estimate",
    )


def _with_ranks(fit: ClassFit, prepared: CalibratedMembers, kept: np.ndarray, config: EnsembleConfig) -> ClassFit:
    """Ranks carry no prior and no spread: both come from the selection rows, as for a member."""
    present = prepared.rows.predictions.present[kept]
    ranks = RankReference.of(prepared.logp[kept], present)
    scores = pooled_scores(ranks.scores(prepared.logp[kept]), fit.weights, present)
    here = np.isfinite(scores).all(1)
    scale = fit_calibration(scores[here], prepared.rows.label[here], ridge=config.ridge)
    return replace(fit, ranks=ranks, scale=scale)


def _pool_temperature(fit: ClassFit, rows: FitRows, config: EnsembleConfig) -> float:
    """Temperature of the pooled log-probabilities on the selection rows; 1 where the (penalised)
    fit would not lower their NLL.
    """
    pooled = fit.pooled(rows.predictions)
    answered = np.isfinite(pooled).all(1)
    pooled, label = pooled[answered], rows.label[answered]
    if np.unique(label).size < 2:
        return 1.0
    temperature = fit_calibration(pooled, label, ridge=config.ridge, biases=False).temperature
    return temperature if nll(log_softmax(pooled / temperature), label) < nll(pooled, label) else 1.0
