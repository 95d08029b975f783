"""Convex weights: the target-weighted likelihood of a pool, maximised over the simplex
(docs/methods.md 4.7).

Both problems are convex: ``-log sum_m w_m p_m(y)`` in the linear pool,
``log sum_k exp(sum_m w_m log p_mk) - sum_m w_m log p_my`` in the log pool. Members are brought in
as their gradient asks for them, and over those that are in, Newton steps are quadratic programs on
the simplex, solved exactly by an active set; so a weight is 0 or not, and the conditions of the
optimum hold to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raysere.ensemble.fit.calibration import log_softmax

_TOLERANCE = 1e-7  # of the conditions, in nats
_BATCH, _ROUNDS, _NEWTON = 16, 60, 50
_FLOOR = 1e-12


@dataclass(frozen=True)
class Problem:
    """A convex loss of weights (M,):

    ``value(w)``, ``gradient(w)`` (M,), ``terms(w, members)``: gradient and Hessian of some members.
    """

    members: int
    value: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]
    terms: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def linear_problem(logp: np.ndarray, present: np.ndarray, label: np.ndarray, item_weights: np.ndarray) -> Problem:
    """Weighted negative log-likelihood of the linear pool.

    Args:
        logp: float32 (M, N, K). present: bool (M, N). label: int (N,). item_weights: (N,), such as
            ``target prior / selection prior`` of the label. Where a member is absent it counts as
            the mean of those present; items that nobody answers do not count.
    """
    here, share = _items(present, item_weights)
    index = label[here]
    likelihood = np.stack([np.exp(one[here, index], dtype=np.float64) for one in logp])
    likelihood = np.maximum(_filled(likelihood, present[:, here]), _FLOOR)

    def value(w: np.ndarray) -> float:
        return float(-share @ np.log(w @ likelihood))

    def gradient(w: np.ndarray) -> np.ndarray:
        return -likelihood @ (share / (w @ likelihood))

    def terms(w: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pooled = w @ likelihood
        relative = likelihood[members] / pooled
        return -relative @ share, (relative * share) @ relative.T

    return Problem(len(logp), value, gradient, terms)


def log_problem(logp: np.ndarray, present: np.ndarray, label: np.ndarray, item_weights: np.ndarray, ratio: np.ndarray) -> Problem:
    """Weighted negative log-likelihood of the log pool under the target prior; ``ratio`` (K,) is
    target over selection prior.
    """
    here, share = _items(present, item_weights)
    index = label[here]
    table = logp[:, here].copy()
    if not present[:, here].all():
        for k in range(table.shape[2]):
            table[:, :, k] = _filled(table[:, :, k], present[:, here])
    picked = np.take_along_axis(table, index[None, :, None], axis=2)[:, :, 0].astype(np.float64)
    flat = table.reshape(len(table), -1)
    shift = np.log(np.maximum(ratio, 1e-12))
    constant = float(share @ shift[index])

    def pool(w: np.ndarray) -> np.ndarray:
        use = np.flatnonzero(w)
        return (w[use].astype(np.float32) @ flat[use]).reshape(table.shape[1:]).astype(np.float64) + shift

    def value(w: np.ndarray) -> float:
        scores = pool(w)
        top = scores.max(1)
        return float(share @ (top + np.log(np.exp(scores - top[:, None]).sum(1))) - share @ (w @ picked)) - constant

    def gradient(w: np.ndarray) -> np.ndarray:
        p = (np.exp(log_softmax(pool(w))) * share[:, None]).astype(np.float32)
        return (flat @ p.ravel()).astype(np.float64) - picked @ share

    def terms(w: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = np.exp(log_softmax(pool(w)))
        rows = table[members].astype(np.float64)
        expected = (rows * p).sum(2)
        spread = ((rows - expected[:, :, None]) * np.sqrt(p * share[:, None])).reshape(len(members), -1)
        return expected @ share - picked[members] @ share, spread @ spread.T

    return Problem(len(logp), value, gradient, terms)


def _items(present: np.ndarray, item_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    here = np.asarray(present.any(0))
    share = np.asarray(item_weights, np.float64)[here]
    return here, share / share.sum()


def _filled(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Values (M, N) with the mean of the present members where one is absent."""
    if present.all():
        return values
    mean = np.where(present, values, 0.0).sum(0) / np.maximum(present.sum(0), 1)
    return np.where(present, values, mean)


def convex_weights(problem: Problem) -> np.ndarray:
    """The weights (M,), non-negative with sum 1, at which the loss is least."""
    singles = [problem.value(np.eye(problem.members)[m]) for m in range(problem.members)] if problem.members <= _BATCH else None
    w = np.zeros(problem.members)
    if singles is not None:
        w[int(np.argmin(singles))] = 1.0
    else:
        w[:] = 1 / problem.members
        w = np.eye(problem.members)[int(np.argmin(problem.gradient(w)))]
    working = np.flatnonzero(w > 0)
    for _ in range(_ROUNDS):
        gradient = problem.gradient(w)
        level = float(gradient @ w)
        outside = np.setdiff1d(np.arange(problem.members), working)
        wanted = outside[gradient[outside] < level - _TOLERANCE]
        settled = np.abs(gradient[w > 0] - level).max() <= _TOLERANCE and (gradient[working] >= level - _TOLERANCE).all()
        if settled and not len(wanted):
            break
        working = np.sort(np.r_[np.flatnonzero(w > 0), wanted[np.argsort(gradient[wanted], kind="stable")][:_BATCH]])
        w = _newton(problem, w, working)
    return w


def _newton(problem: Problem, w: np.ndarray, working: np.ndarray) -> np.ndarray:
    """Minimise over the simplex of the members ``working``."""
    value = problem.value(w)
    for _ in range(_NEWTON):
        gradient, hessian = problem.terms(w, working)
        here = w[working]
        aim = simplex_quadratic(gradient - hessian @ here, hessian, here)
        step = aim - here
        slope = float(gradient @ step)
        if slope > -1e-14:
            break
        size = 1.0
        while True:
            trial = w.copy()
            trial[working] = np.maximum(here + size * step, 0.0)
            trial /= trial.sum()
            new = problem.value(trial)
            if new <= value + 1e-4 * size * slope or size < 1e-8:
                break
            size /= 2
        gain, w, value = value - new, (trial if new <= value else w), min(new, value)
        if gain <= 0 or -slope < 1e-12:
            break
    return w


def simplex_quadratic(linear: np.ndarray, hessian: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Minimise ``linear . x + x' H x / 2`` over the simplex by a primal active set from the
    feasible ``start`` (n,); H is (n, n), psd.
    """
    count = len(start)
    matrix = hessian + 1e-10 * max(float(np.trace(hessian)) / count, 1e-12) * np.eye(count)
    x = start / start.sum()
    free = x > 0
    for _ in range(20 * count + 50):
        inside = np.flatnonzero(free)
        system = np.zeros((len(inside) + 1, len(inside) + 1))
        system[:-1, :-1] = matrix[np.ix_(inside, inside)]
        system[-1, :-1] = system[:-1, -1] = 1.0
        solved = np.linalg.solve(system, np.r_[-linear[inside], 1.0])
        aim = np.zeros(count)
        aim[inside] = solved[:-1]
        if (aim[inside] >= -1e-15).all():
            x = np.maximum(aim, 0.0)
            multiplier = linear + matrix @ x + solved[-1]
            multiplier[free] = 0.0
            worst = int(multiplier.argmin())
            if multiplier[worst] >= -1e-12:
                break
            free[worst] = True
            continue
        falls = inside[aim[inside] < 0]
        ratios = x[falls] / (x[falls] - aim[falls])
        x = x + float(ratios.min()) * (aim - x)
        gone = falls[ratios <= ratios.min() + 1e-15]
        x[gone] = 0.0
        free[gone] = False
    x = np.maximum(x, 0.0)
    return x / x.sum()


def conditions(problem: Problem, weights: np.ndarray) -> tuple[float, float]:
    """How far ``weights`` are from the optimum's conditions (Karush, Kuhn, Tucker), both 0 there.

    Returns:
        (largest difference of the gradients on the support, how far below them one off the support
        lies).
    """
    gradient, support = problem.gradient(weights), weights > 0
    level = float(gradient @ weights)
    off = gradient[~support]
    return float(np.abs(gradient[support] - level).max()), float(max(0.0, level - off.min())) if len(off) else 0.0
