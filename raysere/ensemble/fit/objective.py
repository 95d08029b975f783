"""The objective of the ensemble as a function of confusion counts.

``counts[..., j, k]`` is the weight of items of class j that are answered k. Classes without items
are left out of means: a bootstrap draw or a small fold may lack one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysere.base.errors import DataError
from raysere.training.metrics import CATEGORICAL

_ROUNDING = 1e-9  # running sums of weights come back to 0 but for their rounding


def prior_macro_f1(counts: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
    """Macro-F1 that the same conditional answers would have under class prior ``prior`` (uniform
    when None): (...,).

    ``r_jk = P(answer k | class j)``; ``F1_k = 2 pi_k r_kk / (pi_k + sum_j pi_j r_jk)``
    (docs/methods.md 4.4): equals macro-F1 after replicating every class to ``pi``, without the
    noise of subsampling.
    """
    support = counts.sum(-1)
    rates = counts / np.maximum(support, 1e-300)[..., None]
    pi = (support > 0).astype(np.float64) if prior is None else np.where(support > 0, np.asarray(prior, np.float64), 0.0)
    pi = pi / np.maximum(pi.sum(-1, keepdims=True), 1e-300)
    diagonal = pi * np.diagonal(rates, axis1=-2, axis2=-1)
    answered = (pi[..., None] * rates).sum(-2)
    total = pi + answered
    occurring = np.maximum((total > 0).sum(-1), 1)
    return (2 * diagonal / np.maximum(total, 1e-300)).sum(-1) / occurring


@dataclass(frozen=True)
class Objective:
    """The metric of the task, on confusion counts; with ``prior``, macro-F1 is that of the given
    class prior.
    """

    metric: str
    prior: tuple[float, ...] | None = None

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        if self.metric == "macro_f1" and self.prior is not None:
            return prior_macro_f1(counts, np.asarray(self.prior))
        if self.metric not in CATEGORICAL:
            raise DataError(f"{self.metric!r} is not a metric of class predictions", choices=sorted(CATEGORICAL))
        return CATEGORICAL[self.metric](counts)

    def row_weights(self, support: np.ndarray) -> np.ndarray:
        """Weight (K,) of an item of each class in the margins that :meth:`of_margins` reads;
        ``support`` (K,) items of each class.
        """
        if self.metric == "macro_f1" and self.prior is not None:
            return self._shares(support) / np.maximum(support, 1e-300)
        return np.ones(len(support))

    def of_margins(self, right: np.ndarray, said: np.ndarray, support: np.ndarray) -> np.ndarray:
        """The same value (...,) from weighted margins of the counts:

        ``right`` (..., K) on the diagonal, ``said`` (..., K) column sums.
        """
        there = support > 0
        if self.metric == "accuracy":
            return right.sum(-1) / max(support.sum(), 1e-300)
        if self.metric == "uar":
            return right[..., there] @ (1 / support[there]) / max(int(there.sum()), 1)
        if self.metric != "macro_f1":
            raise DataError(f"{self.metric!r} cannot be computed from margins", choices=["accuracy", "macro_f1", "uar"])
        total = said + (support if self.prior is None else self._shares(support))
        occurring = np.maximum((total > _ROUNDING).sum(-1), 1)
        return np.where(total > _ROUNDING, 2 * right / np.maximum(total, _ROUNDING), 0.0).sum(-1) / occurring

    def _shares(self, support: np.ndarray) -> np.ndarray:
        shares = np.where(support > 0, np.asarray(self.prior, np.float64), 0.0)
        return shares / max(shares.sum(), 1e-300)


def confusion_counts(label: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Counts (C, K, K) of C candidate answers ``predicted`` int (C, N) to ``label`` int (N,),
    float64, rows weighted.
    """
    predicted = np.atleast_2d(predicted)
    candidates = predicted.shape[0]
    flat = (np.arange(candidates, dtype=np.int64)[:, None] * classes + label[None, :]) * classes + predicted
    repeated = None if weights is None else np.broadcast_to(weights, predicted.shape).ravel()
    return (
        np.bincount(flat.ravel(), weights=repeated, minlength=candidates * classes**2)
        .astype(np.float64)
        .reshape(candidates, classes, classes)
    )
