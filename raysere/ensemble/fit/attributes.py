"""Weights and variance matching for one attribute, arousal, valence or dominance by itself
(docs/methods.md 4.11).

Members are standardised by their selection mean and deviation, weighed, brought back to natural
units, and matched to the spread of the labels: with correlation rho the concordance of any affine
map is at most ``|rho|``, reached by ``sd_y / sd_f`` and equal means, and averaging members shrinks
the spread below that.

Everywhere: ``values`` float (M, N) predictions on the task's scale, ``present`` bool (M, N),
``target`` float (N,), finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls as scipy_nnls
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from raysere.base.errors import DataError
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.fit.greedy import GreedyParams, prune
from raysere.ensemble.fit.pools import KNOTS, knot_scores, row_weights
from raysere.training.metrics import ccc

KAPPAS = (0.0, 0.5, 0.75, 1.0)
POWERS = (1.0, 2.0, 4.0)
_TIE = 1e-12


@dataclass(frozen=True)
class AttributeRanks:
    """What the rank option keeps of the selection rows, each by its values at the normal scores
    ``KNOTS`` (Q,).

    Attributes:
        knots: (M, Q) of each member. pool: (Q,) of the weighted mean of their scores. labels: (Q,)
            of the target, which is answered.
    """

    knots: np.ndarray
    pool: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, present: np.ndarray, weights: np.ndarray, target: np.ndarray) -> AttributeRanks:
        share = ndtr(KNOTS)
        knots = np.stack([np.quantile(one[here], share) if here.any() else np.zeros(len(KNOTS)) for one, here in zip(values, present)])
        pooled = cls(knots, KNOTS, KNOTS).mean_scores(values, present, weights)
        answered = np.isfinite(pooled)
        return cls(knots, np.quantile(pooled[answered], share), np.quantile(target, share))

    def mean_scores(self, values: np.ndarray, present: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted mean (N,) of the present members' normal scores; NaN where nobody answers."""
        use = np.flatnonzero(weights > 0)
        scores = np.stack([knot_scores(values[m], self.knots[m]) for m in use])
        return np.where(present[use], row_weights(weights[use], present[use]) * scores, 0.0).sum(0) + _nobody(present[use])

    def pooled(self, values: np.ndarray, present: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The pool in units of the labels (N,), before matching: blind to monotone maps of any
        member, but for the width of a knot.
        """
        found = self.mean_scores(values, present, weights)
        return np.where(np.isfinite(found), np.interp(knot_scores(found, self.pool), KNOTS, self.labels), np.nan)


def _nobody(present: np.ndarray) -> np.ndarray:
    return np.where(present.any(0), 0.0, np.nan)


@dataclass(frozen=True)
class AttributeFit:
    """A fitted pool of one attribute.

    ``f = sum_m w_m (x_m - mean_m) / sd_m`` over present members with renormalised weights; in
    natural units ``f0 = sum w mean + f sum w sd``; the answer is
    ``clip(slope * f0 + intercept, scale)``. With ``ranks`` f0 is their pool instead.
    """

    weights: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    slope: float
    intercept: float
    kappa: float
    scale: tuple[float, float]
    family: str
    ranks: AttributeRanks | None = None

    def pooled(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        """``f0`` (N,), NaN where no member with weight is present."""
        if self.ranks is not None:
            return self.ranks.pooled(values, present, self.weights)
        return natural_pool(values, present, self.weights, self.mean, self.sd)

    def predict(self, values: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Pooled attribute (N,) on the scale; NaN where no member with weight is present."""
        return np.clip(self.slope * self.pooled(values, present) + self.intercept, *self.scale)


def natural_pool(values: np.ndarray, present: np.ndarray, weights: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """The pool before matching, in natural units (N,)."""
    use = np.flatnonzero(weights > 0)
    shares = row_weights(weights[use], present[use])
    standard = np.where(present[use], (values[use] - mean[use, None]) / sd[use, None], 0.0)
    pooled = (shares * standard).sum(0)
    return float(weights @ mean / weights.sum()) + float(weights @ sd / weights.sum()) * pooled


def standardise(values: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(standardised (M, N) with absent items at 0, mean (M,), sd (M,)); population moments; a
    constant member gets sd 1.
    """
    count = np.maximum(present.sum(1), 1)
    filled = np.where(present, values, 0.0).astype(np.float64)
    mean = filled.sum(1) / count
    away = np.where(present, filled - mean[:, None], 0.0)
    sd = np.sqrt((away**2).sum(1) / count)
    sd = np.where(sd > 1e-9, sd, 1.0)
    return away / sd[:, None], mean, sd


# ---- weights: standardised members (M, N) and centred target to (M,) that sum to 1 ---------------


def ccc_weights(cccs: np.ndarray, power: float = 1.0) -> np.ndarray:
    """``w`` proportional to ``max(0, CCC_m) ^ power``; equal where no member has a positive CCC."""
    raw = np.maximum(cccs, 0.0) ** power
    return raw / raw.sum() if raw.sum() > 0 else np.full(len(cccs), 1 / len(cccs))


def nnls_weights(standard: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Non-negative least squares of the centred target on centred members.

    Its direction has the highest correlation with the target of all non-negative combinations.
    """
    centred = standard - standard.mean(1, keepdims=True)
    raw, _ = scipy_nnls(centred.T, target - target.mean())
    return raw / raw.sum() if raw.sum() > 0 else np.full(len(standard), 1 / len(standard))


def shrunk_weights(standard: np.ndarray, target: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """``(S + ridge I)^-1 c`` with Ledoit and Wolf's covariance S and ``c = cov(member, target)``;
    negative weights cut to 0.
    """
    centred = standard - standard.mean(1, keepdims=True)
    covariance = ledoit_wolf(centred)
    raw = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), centred @ (target - target.mean()) / len(target))
    raw = np.maximum(raw, 0.0)
    return raw / raw.sum() if raw.sum() > 0 else np.full(len(standard), 1 / len(standard))


def ledoit_wolf(centred: np.ndarray) -> np.ndarray:
    """Covariance (M, M) shrunk towards a multiple of the identity (Ledoit and Wolf, 2004);
    ``centred`` (M, N).
    """
    members, count = centred.shape
    sample = centred @ centred.T / count
    level = np.trace(sample) / members
    distance = ((sample - level * np.eye(members)) ** 2).sum()
    noise = ((centred**2) @ (centred**2).T / count - sample**2).sum() / count
    share = 1.0 if distance <= 0 else min(max(noise / distance, 0.0), 1.0)
    return (1 - share) * sample + share * level * np.eye(members)


def greedy_ccc_weights(standard: np.ndarray, target: np.ndarray, group: np.ndarray, ids: Sequence[str], params: GreedyParams) -> np.ndarray:
    """Greedy selection with replacement on the CCC after matching, which is the correlation; bagged
    as for classes.
    """
    order = np.array(sorted(range(len(ids)), key=lambda m: ids[m]), dtype=np.int64)
    seen: dict[bytes, int] = {}
    unique = np.array([m for m in order if seen.setdefault(np.ascontiguousarray(standard[m]).tobytes(), int(m)) == m], dtype=np.int64)
    library, members = standard[unique], len(unique)
    if params.bags == 0 or members == 1:
        weights = _greedy_pass(library, target, np.ones(len(target)), params)
    else:
        weights = np.zeros(members)
        names, codes = np.unique(group, return_inverse=True)
        for bag in range(params.bags):
            generator = np.random.default_rng([params.seed, bag])
            half = np.sort(generator.choice(members, (members + 1) // 2, replace=False))
            repeats = generator.multinomial(len(names), np.full(len(names), 1 / len(names)))[codes].astype(np.float64)
            weights[half] += _greedy_pass(library[half], target, repeats, params)
        weights /= params.bags
    result = np.zeros(len(ids))
    result[unique] = prune(weights, params.prune)
    return result


def _greedy_pass(standard: np.ndarray, target: np.ndarray, repeats: np.ndarray, params: GreedyParams) -> np.ndarray:
    """Weights (M,) of one pass.

    Sums and products of members are counted once, so that a step costs O(M), not O(M N).
    """
    share = repeats / repeats.sum()
    centred = standard - (standard @ share)[:, None]
    y = target - target @ share
    gram, toward = (centred * share) @ centred.T, (centred * share) @ y
    spread = np.sqrt(max(float(share @ y**2), 1e-30))
    single = toward / (np.sqrt(np.maximum(np.diagonal(gram), 1e-30)) * spread)
    order = sorted(range(len(standard)), key=lambda m: (-round(float(single[m]) / _TIE), m))
    chosen: list[int] = []
    values: list[float] = []
    square, product, cross = 0.0, 0.0, np.zeros(len(standard))  # |sum|^2, sum . y, sum . member
    best, since = -np.inf, 0
    for step in range(params.steps):
        after = (product + toward) / (np.sqrt(np.maximum(square + 2 * cross + np.diagonal(gram), 1e-30)) * spread)
        member = order[step] if step < min(params.start, len(order)) else int(np.flatnonzero(after >= after.max() - _TIE)[0])
        square += float(2 * cross[member] + gram[member, member])
        product += float(toward[member])
        cross = cross + gram[member]
        chosen.append(member)
        values.append(float(after[member]))
        since = 0 if values[-1] > best + params.gain else since + 1
        best = max(best, values[-1])
        if since >= params.patience:
            break
    length = next(i for i, value in enumerate(values) if value >= max(values) - _TIE) + 1
    return np.bincount(chosen[:length], minlength=len(standard)) / length


# ---- matching ------------------------------------------------------------------------------------


def match_variance(
    pooled: np.ndarray, target: np.ndarray, kappa: float, scale: tuple[float, float], *, rounds: int = 3
) -> tuple[float, float]:
    """Slope and intercept of the answer, fitted on selection rows.

    ``a = sd_y / sd_f``, shrunk ``a <- 1 + kappa (a - 1)``, ``b = mean_y - a mean_f``. Clipping to
    the scale takes spread away again, so slope and intercept are moved until the clipped answer has
    the aimed-at moments (at most ``rounds`` times).
    """
    mean, sd = float(pooled.mean()), float(pooled.std())
    if sd < 1e-12:
        return 0.0, float(target.mean())
    slope = 1 + kappa * (float(target.std()) / sd - 1)
    aim_sd, aim_mean = slope * sd, float(target.mean())
    intercept = aim_mean - slope * mean
    for _ in range(rounds):
        clipped = np.clip(slope * pooled + intercept, *scale)
        spread = float(clipped.std())
        if spread < 1e-12 or (abs(spread - aim_sd) < 1e-9 and abs(float(clipped.mean()) - aim_mean) < 1e-9):
            break
        factor = min(aim_sd / spread, 2.0)
        # about the clipped mean: stretch to the aimed-at spread, then shift to the aimed-at mean
        slope, intercept = slope * factor, aim_mean + factor * (intercept - float(clipped.mean()))
    return slope, intercept


def rank_pool(values: np.ndarray, weights: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean of normal scores of each member's ranks, mapped to the quantiles of ``target``: blind to
    monotone maps of any member (N,).
    """
    count = values.shape[1]
    scores = ndtri((rankdata(values, axis=1) - 0.5) / count)
    order = (rankdata((weights[:, None] * scores).sum(0)) - 0.5) / count
    return np.quantile(target, order)


def ambiguity(values: np.ndarray, weights: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """The two sides of ``sum w MSE_m - MSE_f = sum w mean (f_m - f)^2`` for weights that sum to 1."""
    pooled = weights @ values
    left = float(weights @ ((values - target) ** 2).mean(1) - ((pooled - target) ** 2).mean())
    return left, float(weights @ ((values - pooled) ** 2).mean(1))


def expected_ccc(members: int, correlation: float, validity: float) -> tuple[float, float]:
    """CCC of the mean of M unit-variance members, mean pair correlation r and validity q:
    (unmatched, matched).
    """
    variance = (1 + (members - 1) * correlation) / members
    return 2 * validity / (variance + 1), validity / float(np.sqrt(variance))


def fit_attribute(
    values: np.ndarray,
    present: np.ndarray,
    target: np.ndarray,
    group: np.ndarray,
    ids: Sequence[str],
    family: str,
    scale: tuple[float, float],
    config: EnsembleConfig,
    *,
    kappa: float | None = None,
) -> AttributeFit:
    """Weights by ``family`` and a matched answer.

    ``kappa`` None: chosen by speaker folds. Raises DataError without rows or members.
    """
    if values.shape[0] == 0 or values.shape[1] == 0:
        raise DataError("There is nothing to fit an attribute on: no members or no rows")
    standard, mean, sd = standardise(values, present)
    # over all rows, the mean where a member is absent: one that answers only easy rows is not the
    # best
    cccs = np.array([ccc(np.where(here, values[m], target.mean()), target) if here.any() else 0.0 for m, here in enumerate(present)])
    by_id = sorted(range(len(ids)), key=lambda m: (not present[m].any(), -round(float(cccs[m]) / _TIE), ids[m]))
    members = len(ids)
    if family == "best_single":
        weights = np.zeros(members)
        weights[by_id[0]] = 1.0
    elif family in ("average", "rank"):
        weights = np.full(members, 1 / members)
    elif family == "ccc_weighted":
        weights = ccc_weights(cccs, choose_power(values, present, target, group, config.inner_folds, config.seed))
    elif family == "nnls":
        weights = prune(nnls_weights(standard, target), config.prune)
    elif family == "shrunk":
        weights = prune(shrunk_weights(standard, target), config.prune)
    else:
        weights = greedy_ccc_weights(
            standard,
            target,
            group,
            ids,
            GreedyParams(config.steps, config.start, config.patience, config.gain, config.bags, config.prune, config.seed),
        )
    ranks = AttributeRanks.of(values, present, weights, target) if family == "rank" and present.any() else None
    fit = AttributeFit(weights, mean, sd, 1.0, 0.0, 0.0, scale, family, ranks)
    pooled = fit.pooled(values, present)
    answered = np.isfinite(pooled)
    if not answered.any():
        return fit
    if kappa is None:
        kappa = choose_kappa(pooled[answered], target[answered], group[answered], scale, config.inner_folds, config.seed)
    slope, intercept = match_variance(pooled[answered], target[answered], kappa, scale)
    return replace(fit, slope=slope, intercept=intercept, kappa=kappa)


def choose_kappa(pooled: np.ndarray, target: np.ndarray, group: np.ndarray, scale: tuple[float, float], folds: int, seed: int) -> float:
    """The kappa with the best CCC on held-out speakers; of equal ones the larger."""
    fold = group_folds(group, folds, seed)
    if len(np.unique(fold)) < 2:
        return 1.0
    scores = []
    for kappa in KAPPAS:
        held = np.empty(len(pooled))
        for number in np.unique(fold):
            rest = fold != number
            slope, intercept = match_variance(pooled[rest], target[rest], kappa, scale)
            held[~rest] = np.clip(slope * pooled[~rest] + intercept, *scale)
        scores.append(ccc(held, target))
    return max(zip(scores, KAPPAS))[1]


def choose_power(values: np.ndarray, present: np.ndarray, target: np.ndarray, group: np.ndarray, folds: int, seed: int) -> float:
    """The exponent of :func:`ccc_weights` whose pool correlates best with the target on held-out
    speakers; of equal ones the smaller.

    The correlation is the concordance after matching. A member's concordance is that on the other
    folds.
    """
    fold = group_folds(group, folds, seed)
    if len(np.unique(fold)) < 2 or len(values) == 1:
        return 2.0
    held = {power: np.full(len(target), np.nan) for power in POWERS}
    for number in np.unique(fold):
        rest, here = fold != number, fold == number
        _, mean, sd = standardise(values[:, rest], present[:, rest])
        apart = np.array(
            [ccc(np.where(seen[rest], one[rest], target[rest].mean()), target[rest]) for one, seen in zip(values, present)], np.float64
        )
        for power in POWERS:
            held[power][here] = natural_pool(values[:, here], present[:, here], ccc_weights(apart, power), mean, sd)
    scores = {}
    for power, pooled in held.items():
        there = np.isfinite(pooled)
        spread = pooled[there].std() * target[there].std() if there.any() else 0.0
        scores[power] = float(np.corrcoef(pooled[there], target[there])[0, 1]) if spread > 1e-12 else -1.0
    return max(POWERS, key=lambda power: (round(scores[power], 9), -power))


def group_folds(group: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold number (N,) of each item: whole groups, large ones first, each to the fold with the
    fewest items; seeded.
    """
    names, codes, counts = np.unique(group, return_inverse=True, return_counts=True)
    folds = min(folds, len(names))
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    fill, of_group = np.zeros(folds), np.zeros(len(names), np.int64)
    for number in order:
        of_group[number] = fold = int(np.argmin(fill))
        fill[fold] += counts[number]
    return of_group[codes]
