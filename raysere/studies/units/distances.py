"""Distances between distributions over units.

All take counts or probabilities in the last axis and give float64 in bits or [0, 1].

A distribution without mass gives NaN, never 0. Definitions and bounds: docs/methods.md 7.3; JS
after Lin (1991), whose square root is a metric (Endres and Schindelin, 2003); the bias of the
plug-in estimate is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from raysere.base.errors import DataError

LN2 = float(np.log(2.0))


def normalised(counts: Any) -> np.ndarray:
    """Probabilities float64, NaN where there is no mass."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(-1, keepdims=True)
    return counts / np.where(total > 0, total, np.nan)


def entropy(p: Any) -> np.ndarray:
    """Entropy in nats of probabilities; 0 log 0 is 0, NaN stays."""
    p = np.asarray(p, dtype=np.float64)
    return -np.where(p == 0, 0.0, p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


def js(p: Any, q: Any) -> np.ndarray:
    """Jensen-Shannon divergence in bits, in [0, 1]: H((p + q) / 2) - (H(p) + H(q)) / 2."""
    p, q = normalised(p), normalised(q)
    return np.clip((entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2) / LN2, 0.0, 1.0)


def weighted_js(counts_p: Any, counts_q: Any) -> np.ndarray:
    """The form with weights n_p / n and n_q / n, in nats: 2 n of it is the G statistic of the two
    rows of counts.

    That statistic is chi-squared for independent draws only; frames are not, so no p-value is made
    of it.
    """
    counts_p, counts_q = np.asarray(counts_p, dtype=np.float64), np.asarray(counts_q, dtype=np.float64)
    n_p, n_q = counts_p.sum(-1), counts_q.sum(-1)
    share = n_p / np.where(n_p + n_q > 0, n_p + n_q, np.nan)
    p, q = normalised(counts_p), normalised(counts_q)
    mixture = share[..., None] * p + (1 - share[..., None]) * q
    return np.maximum(entropy(mixture) - share * entropy(p) - (1 - share) * entropy(q), 0.0)


def hellinger(p: Any, q: Any) -> np.ndarray:
    """sqrt(1 - sum sqrt(p q)), in [0, 1]."""
    return np.sqrt(np.clip(1.0 - np.sqrt(normalised(p) * normalised(q)).sum(-1), 0.0, 1.0))


def total_variation(p: Any, q: Any) -> np.ndarray:
    """Half the summed absolute difference, in [0, 1]."""
    return 0.5 * np.abs(normalised(p) - normalised(q)).sum(-1)


def cosine(p: Any, q: Any) -> np.ndarray:
    """1 - cosine of the two vectors of probabilities, in [0, 1]."""
    p, q = normalised(p), normalised(q)
    return np.clip(1.0 - (p * q).sum(-1) / np.sqrt((p * p).sum(-1) * (q * q).sum(-1)), 0.0, 1.0)


def symmetric_kl(counts_p: Any, counts_q: Any) -> np.ndarray:
    """KL(p | q) + KL(q | p) in bits of smoothed counts: each unit gets 1 / K more, one in all."""
    counts_p, counts_q = np.asarray(counts_p, dtype=np.float64), np.asarray(counts_q, dtype=np.float64)
    empty = (counts_p.sum(-1) == 0) | (counts_q.sum(-1) == 0)
    units = counts_p.shape[-1]
    p, q = normalised(counts_p + 1 / units), normalised(counts_q + 1 / units)
    return np.where(empty, np.nan, ((p - q) * np.log(p / q)).sum(-1) / LN2)


def ground_cost(centres: np.ndarray) -> np.ndarray:
    """Distances between the centres of the units, scaled to a largest one of 1: float64 (K, K)."""
    centres = np.asarray(centres, dtype=np.float64)
    squares = (centres**2).sum(1)
    cost = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * centres @ centres.T, 0.0))
    np.fill_diagonal(cost, 0.0)
    return cost / max(cost.max(), 1e-300)


def emd(p: Any, q: Any, cost: np.ndarray) -> float:
    """Earth mover's distance of two vectors (K,) under a ground cost (K, K): the transport problem,
    solved exactly.

    What both have in a unit stays there, which is optimal for a cost that is a metric, so that only
    the difference is moved.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    p, q = normalised(p), normalised(q)
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        return float("nan")
    give, take = np.flatnonzero(p > q), np.flatnonzero(q > p)
    if not len(give) or not len(take):
        return 0.0
    supply, demand = p[give] - q[give], q[take] - p[take]
    demand = demand * supply.sum() / demand.sum()
    index = np.arange(len(give) * len(take))
    rows = np.concatenate([index // len(take), len(give) + index % len(take)])
    constraints = coo_array((np.ones(2 * len(index)), (rows, np.tile(index, 2)))).tocsr()
    # the last equality follows from the others; rounding would contradict it
    solved = linprog(cost[np.ix_(give, take)].ravel(), A_eq=constraints[:-1], b_eq=np.concatenate([supply, demand])[:-1], method="highs")
    if solved.status != 0:
        raise DataError(f"The transport problem was not solved: {solved.message}")
    return float(solved.fun)


DISTANCES: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "js": js,
    "hellinger": hellinger,
    "tv": total_variation,
    "cosine": cosine,
    "kl": symmetric_kl,
}


def corrected(
    one: np.ndarray,
    other: np.ndarray,
    *,
    rng: np.random.Generator,
    distance: Callable[[Any, Any], np.ndarray] = js,
    splits: int = 20,
    shared: bool = False,
) -> tuple[float, float]:
    """(plain, corrected) distance of two cells of counts by speaker, int64 (speakers, K) each.

    The plug-in estimate is biased upwards by (K - 1) / 8 (1/n1 + 1/n2) nats and by who happens to
    speak. Corrected: the mean distance of a half of the speakers of one cell to a half of the
    other's, less the mean distance of the two halves within each cell (average of the two), all
    four parts subsampled to one count. It may be negative. NaN where a cell has fewer than two
    speakers.

    Args:
        shared: the rows of both are the same speakers; then their halves are paired so that nobody
            is compared with himself.
    """
    plain = float(distance(one.sum(0), other.sum(0)))
    if not np.isfinite(plain):
        return plain, float("nan")
    across, within = [], []
    for _ in range(splits):
        halves = _halves(one, rng), _halves(other, rng)
        if shared:
            side = rng.permutation(len(one)) < len(one) // 2
            halves = (one[side].sum(0), one[~side].sum(0)), (other[side].sum(0), other[~side].sum(0))
        parts = [*halves[0], *halves[1]]
        count = int(min(part.sum() for part in parts))
        if count == 0:
            continue
        a, b, c, d = (subsample(part, count, rng) for part in parts)
        across.append((distance(a, d) + distance(b, c)) / 2)
        within.append((distance(a, b) + distance(c, d)) / 2)
    return plain, float(np.mean(across) - np.mean(within)) if across else float("nan")


def _halves(cell: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two halves of the speakers that are heard in the cell."""
    there = rng.permutation(np.flatnonzero(cell.sum(1) > 0))
    return cell[there[: len(there) // 2]].sum(0), cell[there[len(there) // 2 :]].sum(0)


def subsample(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Counts of ``size`` frames drawn without replacement from those of a cell, int64 (K,)."""
    counts = np.asarray(counts, dtype=np.int64)
    if size >= counts.sum():
        return counts
    return rng.multivariate_hypergeometric(counts, size, method="marginals")


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of two sets of vectors (n, d) taken as Gaussian: |m1 - m2|^2 + tr(C1 + C2 -
    2 (C1^1/2 C2 C1^1/2)^1/2).
    """
    means = one.mean(0, dtype=np.float64), other.mean(0, dtype=np.float64)
    covariances = [np.atleast_2d(np.cov(np.asarray(part, dtype=np.float64), rowvar=False)) for part in (one, other)]
    return gaussian_frechet(means[0], covariances[0], means[1], covariances[1])


def gaussian_frechet(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
    """The same of two Gaussians."""
    values, vectors = np.linalg.eigh(cov_1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_2 @ root), 0)).sum()
    return float(max(((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1) + np.trace(cov_2) - 2 * cross, 0.0))


def mmd(one: np.ndarray, other: np.ndarray, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with a Gaussian kernel (Gretton et al., 2012); its
    width: the median distance.
    """
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    both = np.concatenate([one, other])
    squares = (both**2).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0.0)
    if bandwidth is None:
        bandwidth = float(np.sqrt(np.median(distances[np.triu_indices(len(both), 1)])))
    kernel = np.exp(-distances / (2 * max(bandwidth, 1e-12) ** 2))
    n, m = len(one), len(other)
    a, b, cross = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    return float((a.sum() - np.trace(a)) / (n * (n - 1)) + (b.sum() - np.trace(b)) / (m * (m - 1)) - 2 * cross.mean())
