"""Stacking: multinomial logistic regression on the members' centred log-probabilities
(docs/methods.md 4.8).

It is written as a correction of the plain log pool,
``logits = mean_m log p_m + log(target / selection prior) + X D``, and what is penalised is D, the
distance from that mean: with C towards 0 the answer is the mean, with C large an unpenalised
regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from raysere.ensemble.fit.calibration import log_softmax

#: Strengths that are tried, from the mean (small) to free (large): the C of
#: ``C * sum of losses + |D|^2 / 2``.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclass(frozen=True)
class Stack:
    """The correction:

    ``coefficients`` float64 (M, K, K), from log-probability to logit, and ``intercept`` (K,).
    """

    coefficients: np.ndarray
    intercept: np.ndarray
    penalty: float

    def logp(self, logp: np.ndarray, present: np.ndarray, ratio: np.ndarray) -> np.ndarray:
        """Log-probabilities (N, K) under the target prior, NaN where nobody answers; ``ratio`` (K,)
        target over selection prior.
        """
        features, base = stack_inputs(logp, present, ratio)
        found = log_softmax(base + features @ self.coefficients.reshape(-1, logp.shape[2]) + self.intercept)
        found[~present.any(0)] = np.nan
        return found

    @property
    def shares(self) -> np.ndarray:
        """How much each member counts (M,), sum 1: the size of its block of the whole regression,
        the mean included.
        """
        members, classes, _ = self.coefficients.shape
        size = np.sqrt(((self.coefficients + np.eye(classes) / members) ** 2).sum((1, 2)))
        return size / size.sum()


def stack_inputs(logp: np.ndarray, present: np.ndarray, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features (N, M K), base logits (N, K)) of members' log-probabilities (M, N, K).

    Features are centred over the classes. A member that is absent for an item is 0 there and the
    others are scaled up, as renormalised weights would, so that the base is the mean over those
    present.
    """
    members, items, classes = logp.shape
    centred = logp - logp.mean(2, keepdims=True)
    scale = np.where(present, members / np.maximum(present.sum(0), 1), 0.0).astype(np.float32)
    features = (centred * scale[:, :, None]).transpose(1, 0, 2).reshape(items, members * classes).astype(np.float64)
    base = features.reshape(items, members, classes).mean(1) + np.log(np.maximum(ratio, 1e-12))
    return features, base


def fit_stacks(
    logp: np.ndarray,
    present: np.ndarray,
    label: np.ndarray,
    ratio: np.ndarray,
    item_weights: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
    *,
    tolerance: float = 1e-6,
) -> list[Stack]:
    """One Stack for each penalty, in rising order, each started from the one before.

    Args:
        logp: float32 (M, N, K) calibrated to the selection prior. item_weights: (N,)
            ``target / selection prior`` of the label, ``1 / (K pi_y)`` for a uniform target.
    """
    here = present.any(0)
    features, base = stack_inputs(logp[:, here], present[:, here], ratio)
    count, width = features.shape
    classes = base.shape[1]
    truth, weight = label[here], np.asarray(item_weights, np.float64)[here]
    total = float(weight.sum())
    weight = weight / total
    rows = np.arange(count)
    theta = np.zeros((width + 1) * classes)
    found = []
    for penalty in sorted(penalties):
        strength = 1 / (penalty * total)

        def loss(flat: np.ndarray, strength: float = strength) -> tuple[float, np.ndarray]:
            matrix = flat.reshape(width + 1, classes)
            logits = log_softmax(base + features @ matrix[:-1] + matrix[-1])
            value = -float(weight @ logits[rows, truth]) + 0.5 * strength * float(flat @ flat)
            away = np.exp(logits)
            away[rows, truth] -= 1.0
            away *= weight[:, None]
            gradient = np.vstack([features.T @ away, away.sum(0)]).ravel() + strength * flat
            return value, gradient

        theta = minimize(loss, theta, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-9, "gtol": tolerance}).x
        matrix = theta.reshape(width + 1, classes)
        found.append(Stack(matrix[:-1].reshape(-1, classes, classes).copy(), matrix[-1].copy(), float(penalty)))
    return found
