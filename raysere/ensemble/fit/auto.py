"""Choose family, pool and offsets on inner folds of speakers (docs/methods.md 4.8 to 4.10).

Members are calibrated once for each inner fold and shared by all families and pools. Offsets are
fitted on held-out predictions, never on those that the weights were fitted on, and scored by the
folds again; the penalty of the stack is the one with the least loss on the same folds, so that
nothing is nested a third time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from raysere.ensemble.config import FAMILIES, EnsembleConfig
from raysere.ensemble.data.predictions import FitRows
from raysere.ensemble.fit.attributes import group_folds
from raysere.ensemble.fit.calibration import class_shares
from raysere.ensemble.fit.classes import ClassFit, class_metric, class_objective, decide, prepare, stack_fits, weigh
from raysere.ensemble.fit.objective import Objective
from raysere.ensemble.fit.offsets import LADDER, cross_fitted_answers, fit_offsets
from raysere.ensemble.fit.priors import decision_prior, likeliest_class
from raysere.ensemble.fit.stacking import PENALTIES
from raysere.training.task import Task

#: Candidate answers (members x items x classes x steps x passes x folds) above which bagged greedy
#: is not tried by ``auto`` but taken.
AUTO_LIMIT = 2e10
_SE_DRAWS = 500
_POOLED = ("blend", "average", "greedy_once", "greedy", "convex")  # families that a choice of pool matters to


@dataclass(frozen=True)
class FitPlan:
    """What is to be fitted: family, pool, rung of the ladder with its offsets (K,), penalty of a
    stack; scores of all that was tried.
    """

    family: str
    pool: str
    ladder: str = "none"
    offsets: np.ndarray | None = None
    penalty: float = 1e-2
    scores: tuple[tuple[str, float], ...] = ()


def name_of(family: str, pool: str, ladder: str = "none") -> str:
    """Such as ``greedy``, ``greedy/log``, ``average/linear+vector``: the linear pool and no offsets
    are not said.
    """
    return family + (f"/{pool}" if pool != "linear" and family in _POOLED else "") + (f"+{ladder}" if ladder != "none" else "")


def choose(rows: FitRows, task: Task, config: EnsembleConfig) -> FitPlan:
    """Choose what the config leaves open (``auto``) on labelled selection rows.

    The rungs of the ladder are tried for the family and pool that would be chosen without, and for
    the one with the best score.
    """
    wanted = _candidates(rows, config)
    levels = ladder_of(task, config)
    fold = group_folds(rows.group, config.inner_folds, config.seed)
    if len(np.unique(fold)) < 2:
        family = "greedy" if config.family == "auto" and len(rows.predictions.members) > 1 else wanted[0][0]
        return FitPlan(family, wanted[0][1] if config.family != "auto" else "linear")
    if len(wanted) == 1 and levels == ("none",) and wanted[0][0] != "stack":
        return FitPlan(*wanted[0])
    held, penalty = held_out_predictions(rows, wanted, fold, task, config)
    shares = class_shares(rows.label, len(rows.predictions.classes), 0.5)
    prior = decision_prior(config.prior, class_metric(task), shares, rows.predictions.classes)
    objective = class_objective(task, config, prior)
    fallback = likeliest_class(prior, shares, rows.predictions.classes)
    names, group = np.unique(rows.group, return_inverse=True)

    def sums(answer: np.ndarray) -> np.ndarray:
        return group_counts(rows.label, answer, group, len(names), len(shares))

    def answers(one: tuple[str, str], level: str) -> np.ndarray:
        logp, answer = held[one], decide(held[one], fallback)
        there = np.isfinite(logp).all(1)
        if level != "none" and there.any():
            answer[there] = cross_fitted_answers(level, logp[there], rows.label[there], fold[there], shares, objective, seed=config.seed)
        return answer

    found = {(*one, level): sums(answers(one, level)) for one in wanted for level in levels[:1]}
    if len(levels) > 1:
        plain = _chosen(found, objective, config.margin, config.seed)[0]
        best = max(found, key=lambda key: float(objective(found[key].sum(0))))
        for family, pool, _ in {plain, best}:
            found |= {(family, pool, level): sums(answers((family, pool), level)) for level in levels[1:]}
    chosen, scores = _chosen(found, objective, config.margin, config.seed)
    family, pool, level = chosen
    offsets = None
    if level != "none":
        logp = held[family, pool]
        there = np.isfinite(logp).all(1)
        offsets = fit_offsets(level, logp[there], rows.label[there], shares, objective, seed=config.seed) if there.any() else None
    return FitPlan(family, pool, level if offsets is not None else "none", offsets, penalty, scores)


def ladder_of(task: Task, config: EnsembleConfig) -> tuple[str, ...]:
    """The rungs that may be taken.

    A prior that the user states is a decision of theirs, and offsets that maximise another
    objective would take it back: with one, ``auto`` stays at none, unless the objective itself is
    that prior's (macro-F1). With an estimated prior there are never offsets: they would correct
    once more what it corrects.
    """
    if config.prior == "estimate":
        return ("none",)
    if config.offsets != "auto":
        return (config.offsets,)
    own = config.prior == "auto" or class_objective(task, config, np.ones(max(len(task.classes), 1))).prior is not None
    return LADDER if own else ("none",)


def _candidates(rows: FitRows, config: EnsembleConfig) -> list[tuple[str, str]]:
    """(family, pool) from simple to complex, of those that the config leaves open."""
    members, count = rows.predictions.present.shape
    pools = ("linear", "log") if config.pool == "auto" else (config.pool,)
    if members == 1:
        return [("best_single" if config.family in ("auto", "stack") else config.family, pools[0])]
    if config.family == "auto":
        cost = members * count * len(rows.predictions.classes) * config.steps * config.inner_folds * (max(config.bags, 1) * len(pools))
        if cost > AUTO_LIMIT:
            return [("greedy", pools[0])]
        families = [one for one in FAMILIES if not (one == "greedy_once" and config.bags == 0)]
        families = [one for one in families if not (one in ("convex", "blend") and config.pool in ("rank", "vote"))]
    else:
        families = [config.family]
    return [(family, pool) for family in families for pool in (pools if family in _POOLED else pools[:1])]


def _chosen(
    found: dict[tuple[str, str, str], np.ndarray], objective: Objective, margin: float, seed: int
) -> tuple[tuple[str, str, str], tuple[tuple[str, float], ...]]:
    order = sorted(found, key=lambda key: (FAMILIES.index(key[0]), LADDER.index(key[2]), key[1] != "linear"))
    name, scores = first_near_best({name_of(*key): found[key] for key in order}, objective, margin, seed)
    return next(key for key in order if name_of(*key) == name), scores


def held_out_predictions(
    rows: FitRows, wanted: list[tuple[str, str]], fold: np.ndarray, task: Task, config: EnsembleConfig
) -> tuple[dict[tuple[str, str], np.ndarray], float]:
    """Log-probabilities (N, K) under the decision prior of each (family, pool), fitted on the other
    folds; and the stack's penalty.
    """
    shape = (len(rows.label), len(rows.predictions.classes))
    held = {one: np.full(shape, np.nan) for one in wanted}
    stacks = [np.full(shape, np.nan) for _ in PENALTIES]
    for number in np.unique(fold):
        here = fold == number
        prepared = prepare(rows.take_rows(~here), task, config)
        apart = rows.predictions.take_rows(here)
        for family, pool in wanted:
            if family == "stack":
                for table, fit in zip(stacks, stack_fits(prepared, task, config, tolerance=1e-5)):
                    table[here] = fit.predict(apart)
            else:
                held[family, pool][here] = weigh(prepared, family, pool, task, config, temper=False).predict(apart)
    penalty = PENALTIES[0]
    for one in wanted:
        if one[0] == "stack":
            ratio = decision_ratio(rows, task, config)
            losses = [_loss(table, rows.label, ratio) for table in stacks]
            best = int(np.argmin(losses))
            penalty, held[one] = PENALTIES[best], stacks[best]
    return held, penalty


def decision_ratio(rows: FitRows, task: Task, config: EnsembleConfig) -> np.ndarray:
    """Decision prior over class shares (K,) of the rows."""
    shares = class_shares(rows.label, len(rows.predictions.classes), 0.5)
    return decision_prior(config.prior, class_metric(task), shares, rows.predictions.classes) / shares


def _loss(logp: np.ndarray, label: np.ndarray, ratio: np.ndarray) -> float:
    there = np.isfinite(logp).all(1)
    return float(np.average(-logp[there, label[there]], weights=ratio[label[there]])) if there.any() else np.inf


def group_counts(label: np.ndarray, answer: np.ndarray, group: np.ndarray, groups: int, classes: int) -> np.ndarray:
    """Confusion counts (G, K, K) float64 of each group."""
    cells = (group * classes + label) * classes + answer
    return np.bincount(cells, minlength=groups * classes**2).reshape(groups, classes, classes).astype(np.float64)


def first_near_best(
    sums: dict[str, np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], margin: float, seed: int
) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The first family (simple to complex) that is within ``margin`` standard errors of the best
    (see :func:`near_best`).

    The standard error is that of the paired difference to the best, by a bootstrap of speakers. The
    papers' rule has a margin of one; the best of a dozen choices on a handful of speakers is that
    far ahead by luck more often than not.

    Args:
        sums: family to per-speaker sums (G, ...), in order of complexity. statistic: from sums
            (..., ) to scores.
    """
    scores, near = near_best(sums, statistic, margin, seed)
    return near[0], tuple((family, round(score, 6)) for family, score in scores.items())


def near_best(
    sums: dict[str, np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], margin: float, seed: int
) -> tuple[dict[str, float], list[str]]:
    """The score of each, and which are within ``margin`` standard errors of the best, both in the
    order of ``sums``.
    """
    scores = {family: float(statistic(value.sum(0))) for family, value in sums.items()}
    best = max(scores, key=lambda family: scores[family])
    groups = len(sums[best])
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=_SE_DRAWS).astype(np.float64)

    def drawn(family: str) -> np.ndarray:
        value = sums[family]
        return statistic((draws @ value.reshape(groups, -1)).reshape(_SE_DRAWS, *value.shape[1:]))

    top = drawn(best)
    near = [family for family in sums if family == best or scores[best] - scores[family] <= margin * np.nanstd(top - drawn(family))]
    return scores, near


def fit_plan(rows: FitRows, plan: FitPlan, task: Task, config: EnsembleConfig) -> ClassFit:
    """Fit what was chosen on all the rows."""
    fit = weigh(prepare(rows, task, config), plan.family, plan.pool, task, config, plan.penalty)
    return replace(fit, choice=plan.scores, ladder=plan.ladder, offsets=plan.offsets)
