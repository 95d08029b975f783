"""Pools: many members' predictions to one, with members that are missing for an item masked
(docs/methods.md 4.5).

Everywhere: ``logp`` float32 (M, N, K) log-probabilities, ``weights`` (M,) non-negative, ``present``
bool (M, N). The weights of the members that are present are renormalised for each item; an item
that nobody answers is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from raysere.ensemble.data.predictions import FLOOR
from raysere.ensemble.fit.calibration import log_softmax

KNOTS = np.linspace(-3.0, 3.0, 33)  # normal scores of a RankReference


def row_weights(weights: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weights (M, N) float64 of present members, summing to 1 for each item; NaN where nobody is
    present.
    """
    masked = np.asarray(weights, np.float64)[:, None] * present
    total = masked.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, masked / total, np.nan)


def _weigh(weights: np.ndarray, values: np.ndarray, present: np.ndarray) -> np.ndarray:
    shares = row_weights(weights, present)
    answered = np.isfinite(shares).all(0)
    total = np.zeros(values.shape[1:], np.float64)
    for share, value, here in zip(shares, values, present):  # one member at a time: no second copy of the library
        use = here & answered
        total[use] += share[use, None] * value[use]
    total[~answered] = np.nan
    return total


def linear(logp: np.ndarray, weights: np.ndarray, present: np.ndarray) -> np.ndarray:
    """``p = sum_m w_m p_m`` as log-probabilities (N, K) float64."""
    keep = np.asarray(weights) > 0
    return np.log(np.maximum(_weigh(np.asarray(weights)[keep], np.exp(logp[keep]), present[keep]), FLOOR))


def log(logp: np.ndarray, weights: np.ndarray, present: np.ndarray) -> np.ndarray:
    """``p`` proportional to ``prod_m p_m ^ w_m`` as log-probabilities (N, K) float64."""
    keep = np.asarray(weights) > 0
    return log_softmax(_weigh(np.asarray(weights)[keep], logp[keep], present[keep]))


def rank(logp: np.ndarray, weights: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weighted mean of normal scores of each member's ranks within a class: scores (N, K), not
    probabilities.

    It needs all items at once and is blind to monotone distortions of any member.
    """
    return pooled_scores(normal_scores(logp, present), weights, present)


def pooled_scores(scores: np.ndarray, weights: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weighted mean (N, K) of normal scores (M, N, K)."""
    return _weigh(weights, scores, present)


def normal_scores(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """``Phi^-1((rank - 1/2) / n)`` over the present items (axis 1) of (M, N, K); ties share their
    mean rank; absent: 0.
    """
    scores = np.zeros(values.shape, np.float64)
    for m, here in enumerate(present):
        if here.any():
            scores[m, here] = ndtri((rankdata(values[m, here], axis=0) - 0.5) / here.sum())
    return scores


@dataclass(frozen=True)
class RankReference:
    """Where the selection rows of each member lie, so that a new item gets its normal score without
    the others of its batch.

    ``knots`` float32 (M, K, Q): the values of a member for a class whose normal scores are
    ``KNOTS`` (Q,) from -3 to 3.
    """

    knots: np.ndarray

    @classmethod
    def of(cls, logp: np.ndarray, present: np.ndarray) -> RankReference:
        """From selection rows (M, N, K); a member that answers none of them gets equal knots, and
        scores of 0.
        """
        knots = np.zeros((len(logp), logp.shape[2], len(KNOTS)), np.float32)
        for m, here in enumerate(present):
            if here.any():
                knots[m] = np.quantile(logp[m, here], ndtr(KNOTS), axis=0).T
        return cls(knots)

    def scores(self, logp: np.ndarray) -> np.ndarray:
        """Normal scores float32 (M, N, K), linear between knots; a value that stands at several
        knots has their mean.
        """
        found = np.empty(logp.shape, np.float32)
        for m in range(len(logp)):
            for k in range(logp.shape[2]):
                found[m, :, k] = knot_scores(logp[m, :, k], self.knots[m, k])
        return found


def knot_scores(values: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Normal scores (N,) of ``values`` (N,) by one row of knots (Q,)."""
    distinct, number = np.unique(knots, return_inverse=True)
    return np.interp(values, distinct, np.bincount(number, weights=KNOTS) / np.bincount(number))


def vote(logp: np.ndarray, weights: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weighted plurality: share of the votes (N, K); equal shares are parted by the mean
    probability.
    """
    hard = np.eye(logp.shape[2], dtype=np.float32)[logp.argmax(-1)]
    shares = _weigh(weights, hard, present)
    return shares + 1e-6 * _weigh(weights, np.exp(logp), present)


POOLS = {"linear": linear, "log": log, "rank": rank, "vote": vote}
