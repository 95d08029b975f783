"""Calibration of each member: one temperature and class biases, fitted together.

``log p_k = log softmax(z / t + b)_k`` with ``b_K = 0`` minimises the negative log-likelihood on the
selection rows; it is convex in ``1/t`` and ``b``. Without ridge the mean prediction at the optimum
is the selection prior exactly, so that members, however their training was weighted, end calibrated
to one prior and cannot be corrected twice (docs/methods.md 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysere.base.errors import DataError

_VOTE = np.log(1e-12)  # the second class of a bare label has no more
_Terms = tuple[float, np.ndarray, np.ndarray]
_LOW, _HIGH = 1e-2, 1e2  # bounds of the slope on logits of unit spread: perfectly separated rows have no finite optimum


@dataclass(frozen=True)
class Calibration:
    """Temperature and class biases of one member, ``bias`` float64 (K,) with a last entry of 0.

    ``votes`` (K, K), for a member that only answers labels: log-probabilities of the classes
    (columns) for each answer (rows), which take the place of its logits.
    """

    temperature: float
    bias: np.ndarray
    votes: np.ndarray | None = None

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated log-probabilities, same shape (..., K) as ``logits`` (or log-probabilities),
        float32.
        """
        if self.votes is not None:
            logits = self.votes[np.asarray(logits).argmax(-1)]
        return log_softmax(np.asarray(logits, np.float32) / np.float32(self.temperature) + self.bias.astype(np.float32))

    @classmethod
    def identity(cls, classes: int) -> Calibration:
        return cls(1.0, np.zeros(classes))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Along the last axis, without overflow; keeps the dtype."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def nll(logp: np.ndarray, label: np.ndarray, weights: np.ndarray | None = None) -> float:
    """(Weighted) mean negative log-likelihood in nats; ``logp`` (N, K), ``label`` int (N,)."""
    picked = -np.take_along_axis(logp, label[:, None], axis=-1)[:, 0].astype(np.float64)
    return float(np.average(picked, weights=weights))


def class_shares(label: np.ndarray, classes: int, smoothing: float = 0.0) -> np.ndarray:
    """Class shares (K,) float64 of ``label``; ``smoothing`` pseudo-counts for each class."""
    counts = np.bincount(label, minlength=classes)[:classes] + smoothing
    return counts / counts.sum()


def design_effect(logp: np.ndarray, label: np.ndarray, group: np.ndarray) -> float:
    """How many rows tell as much about class biases as one independent row, at least 1.

    A classifier that takes the voice of one speaker for anger errs on all clips of that speaker, so
    that rows are no independent observations. With r_i the one-hot label less the predicted
    probabilities, less its mean over all rows, and G groups, this is
    ``G / (G - 1) * sum_g |sum_{i in g} r_i|^2 / sum_i |r_i|^2``: the variance of the estimating
    equations of the biases by groups over that by rows, as sandwich estimators compare them (Liang
    and Zeger 1986). It is 1 in the mean for independent rows.

    Args:
        logp: (N, K) log-probabilities. label: int (N,). group: (N,) what the rows are correlated
            within. One group tells nothing: 1.
    """
    names, number = np.unique(group, return_inverse=True)
    if len(names) < 2:
        return 1.0
    residual = -np.exp(logp.astype(np.float64))
    residual[np.arange(len(label)), label] += 1
    residual -= residual.mean(0)
    sums = np.zeros((len(names), logp.shape[1]))
    np.add.at(sums, number, residual)
    total = (residual**2).sum()
    return max(1.0, len(names) / (len(names) - 1) * float((sums**2).sum() / total)) if total > 0 else 1.0


def fit_calibration(
    logits: np.ndarray,
    label: np.ndarray,
    *,
    member_prior: np.ndarray | None = None,
    ridge: float = 1.0,
    bias_ridge: float | None = None,
    biases: bool = True,
) -> Calibration:
    """Newton's method on the joint negative log-likelihood.

    Args:
        logits: (N, K) logits or log-probabilities of rows that the member did not train on.
        label: int (N,).
        member_prior: class prior pi (K,) that the member's logits carry by its training (natural
            cross-entropy: the training shares). The temperature then divides what is left without
            it, and the biases are drawn towards ``log(selection prior) - log(pi) / t``: two
            trainings that differ in their prior alone come to the same. None: towards 0.
        ridge, bias_ridge: prior observations; the penalty is
            ``(bias_ridge |b - b0|^2 + ridge (slope - 1)^2) / (2 N)`` with the slope on logits of
            unit spread, so that scaled logits still give the scaled temperature. 0: maximum
            likelihood. The second is as the first where it is None.
        biases: False fits the temperature alone, which never changes an argmax.

    Returns:
        the Calibration. Raises DataError without rows, with logits that are not finite, or with
        labels outside 0..K-1.
    """
    z = np.asarray(logits, np.float64)
    count, classes = z.shape
    label = np.asarray(label)
    if count == 0:
        raise DataError("No development row is left to calibrate a member")
    if not np.isfinite(z).all():
        raise DataError("Logits that are not finite cannot be calibrated")
    if label.min() < 0 or label.max() >= classes:
        raise DataError(f"Labels run from {label.min()} to {label.max()}, but there are {classes} classes")
    carried = np.zeros(classes)
    target = np.zeros(classes)
    if biases and member_prior is not None:
        carried = np.log(np.maximum(np.asarray(member_prior, np.float64), 1e-6))
        target = np.log(class_shares(label, classes, 0.5))
        target -= target[-1]
    z = z - carried
    z -= z.mean(1, keepdims=True)
    spread = float(np.sqrt((z**2).mean()))
    flat = spread < 1e-12  # a member that always says the same of all classes: only biases can be learned
    z = z / (1.0 if flat else spread)
    centre = np.r_[1.0, target[:-1]]
    theta = centre.copy()
    strength = np.r_[ridge, np.full(classes - 1, ridge if bias_ridge is None else bias_ridge)] / count
    free = np.r_[not flat, np.full(classes - 1, biases)]
    cells = label * count + np.arange(count)
    z = np.ascontiguousarray(z.T)
    toward = np.r_[np.take(z, cells).mean(), class_shares(label, classes)[:-1]]
    value, gradient, hessian = _loss(theta, z, cells, toward, centre, strength)
    for _ in range(200):
        move = free.copy()
        if (theta[0] <= _LOW and gradient[0] > 0) or (theta[0] >= _HIGH and gradient[0] < 0):
            move[0] = False
        if not move.any() or np.abs(gradient[move]).max() < 1e-11:
            break
        inner = hessian[np.ix_(move, move)]
        step = np.zeros_like(theta)
        step[move] = -np.linalg.solve(inner + 1e-13 * np.trace(inner) * np.eye(len(inner)) + 1e-15 * np.eye(len(inner)), gradient[move])
        step *= min(1.0, 5.0 / max(np.abs(step).max(), 1e-300))
        slope, size = float(gradient @ step), 1.0
        last = -slope < 1e-13 * max(1.0, abs(value))  # what is left to gain is below rounding: one full step, no search
        while True:
            trial = theta + size * step
            trial[0] = np.clip(trial[0], _LOW, _HIGH)
            trial[1:] = np.clip(trial[1:], -50.0, 50.0)
            result = _loss(trial, z, cells, toward, centre, strength)
            if last or size < 1e-6 or result[0] <= value + 1e-4 * size * slope:
                break
            size /= 2
        theta, (value, gradient, hessian) = trial, result
        if last:
            break
    temperature = (1.0 if flat else spread) / float(theta[0])
    bias = np.r_[theta[1:], 0.0] - carried / temperature
    return Calibration(temperature, bias - bias[-1])


def _loss(theta: np.ndarray, z: np.ndarray, cells: np.ndarray, toward: np.ndarray, centre: np.ndarray, strength: np.ndarray) -> _Terms:
    """Mean negative log-likelihood with penalties of ``strength`` (K,): value, gradient and Hessian
    in (slope, b_0 .. b_{K-2}).

    ``z`` (K, N) has the class first, so that every sum over classes adds whole rows; ``cells`` (N,)
    is where the label of an item stands in it, ``toward`` (K,) the mean of z at the labels (first)
    and the class shares but the last: what the gradient compares with.
    """
    classes, count = z.shape
    p = theta[0] * z
    p += np.r_[theta[1:], 0.0][:, None]
    p -= p.max(0)
    picked = np.take(p, cells)
    np.exp(p, out=p)
    total = p.sum(0)
    p /= total
    pz = p * z
    expected = pz.sum(0)
    mean_p = p.mean(1)
    gradient = np.r_[expected.mean(), mean_p[:-1]] - toward
    hessian = np.empty((classes, classes))
    hessian[0, 0] = (np.vdot(pz, z) - expected @ expected) / count
    hessian[0, 1:] = hessian[1:, 0] = (pz.mean(1) - p @ expected / count)[:-1]
    hessian[1:, 1:] = (np.diag(mean_p) - p @ p.T / count)[:-1, :-1]
    away = theta - centre
    value = float(np.log(total).mean() - picked.mean() + 0.5 * strength @ away**2)
    return value, gradient + strength * away, hessian + np.diag(strength)


def vote_table(votes: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """``log P(class | vote)`` (K, K) float32 on selection rows, Dirichlet +1: for a member that
    only answers labels; a row a vote.
    """
    table = np.ones((classes, classes))
    np.add.at(table, (votes, label), 1.0)
    return np.log(table / table.sum(1, keepdims=True)).astype(np.float32)


def only_votes(logp: np.ndarray) -> bool:
    """Whether log-probabilities (N, K) are bare labels: all of the probability on one class, in
    every row.
    """
    return bool(len(logp)) and logp.shape[1] > 1 and bool((np.sort(logp, axis=1)[:, -2] <= _VOTE).all())
