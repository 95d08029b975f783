"""Decision offsets: the answer is ``argmax_k (log p_k + delta_k)`` with ``delta_K = 0``
(docs/methods.md 4.9).

A ladder of three: no offset; ``-tau log pi``, one number; the full vector. The vector is found by
exact coordinate ascent: while one class is raised, every item changes its answer once, at a
threshold that is known, so that a sort and two running sums tell the objective of every offset of
that class at once, in O(K N log N) a round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysere.ensemble.fit.objective import Objective, confusion_counts

#: From simple to complex; the rule of ``choice.first_near_best`` moves towards the front.
LADDER = ("none", "scalar", "vector")
RIDGE = 1e-3  # price of |delta|^2, in units of the objective
_TAUS = np.linspace(-2.0, 2.0, 81)
_ROUNDS, _STARTS, _BEYOND = 20, 5, 0.5
_GAIN = 1e-12


def sweep(scores: np.ndarray, label: np.ndarray, delta: np.ndarray, k: int, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """The objective for every offset of class ``k``, the other offsets as they are.

    Item i answers k once ``delta_k > t_i = max_{j != k} (s_ij + delta_j) - s_ik``; between two
    thresholds nothing changes.

    Args:
        scores: float (N, K) log-probabilities. label: int (N,). delta: (K,).

    Returns:
        (offsets (I,), values (I,)): the middle of each interval between distinct thresholds (half a
        nat beyond the outer ones) in rising order, and the objective there.
    """
    count, classes = scores.shape
    others = scores + delta
    others[:, k] = -np.inf
    rival = others.argmax(1)
    threshold = others[np.arange(count), rival] - scores[:, k]
    order = np.argsort(threshold, kind="stable")
    threshold, rival, truth = threshold[order], rival[order], label[order]
    support = np.bincount(label, minlength=classes).astype(np.float64)
    row = objective.row_weights(support)
    step = np.arange(count)
    right, said = np.zeros((count + 1, classes)), np.zeros((count + 1, classes))
    weight = row[truth]
    # before any item has turned to k, everybody answers its rival
    right[0] = np.bincount(truth, weights=weight * (rival == truth), minlength=classes)
    said[0] = np.bincount(rival, weights=weight, minlength=classes)
    right[step + 1, truth] = weight * ((truth == k).astype(np.float64) - (rival == truth))
    said[step + 1, rival] = -weight
    said[1:, k] = weight
    np.cumsum(right, axis=0, out=right)
    np.cumsum(said, axis=0, out=said)
    starts = np.r_[0, 1 + np.flatnonzero(threshold[1:] > threshold[:-1]), count]  # items that turn together cannot be parted
    edges = threshold[starts[1:] - 1] if count else threshold
    middle = np.r_[edges[0] - _BEYOND, (edges[1:] + edges[:-1]) / 2, edges[-1] + _BEYOND]
    return middle, objective.of_margins(right[starts], said[starts], support)


def fit_vector(
    scores: np.ndarray,
    label: np.ndarray,
    objective: Objective,
    *,
    begin: Sequence[np.ndarray] = (),
    starts: int = _STARTS,
    ridge: float = RIDGE,
    seed: int = 0,
) -> tuple[np.ndarray, list[float]]:
    """Offsets (K,) with a last entry of 0 that maximise ``objective - ridge |delta|^2`` by
    coordinate sweeps.

    Args:
        begin: offsets to start from besides 0; random ones fill up to ``starts``.

    Returns:
        (delta, penalised objective after each accepted move of the best start, which never falls).
    """
    classes = scores.shape[1]
    generator = np.random.default_rng(seed)
    first = [np.zeros(classes), *(np.asarray(one) - one[-1] for one in begin)]
    while len(first) < starts:
        first.append(np.r_[generator.normal(0, 1.0, classes - 1), 0.0])
    best: tuple[float, np.ndarray, list[float]] | None = None
    for delta in first[:starts]:
        delta = delta.astype(np.float64)
        value = value_of(scores, label, delta, objective) - ridge * float(delta @ delta)
        path = [value]
        for _ in range(_ROUNDS):
            before = value
            for k in range(classes):
                middle, values = sweep(scores, label, delta, k, objective)
                # the last class stays at 0: raising it lowers all the others
                moved = np.repeat(delta[None], len(middle), axis=0)
                moved[:, k] = middle
                moved -= moved[:, -1:]
                penalised = values - ridge * (moved**2).sum(1)
                top = int(penalised.argmax())
                if penalised[top] > value + _GAIN:
                    delta, value = moved[top], float(penalised[top])
                    path.append(value)
            if value <= before + _GAIN:
                break
        if best is None or value > best[0] + _GAIN:
            best = (value, delta, path)
    assert best is not None
    return best[1], best[2]


def fit_scalar(scores: np.ndarray, label: np.ndarray, prior: np.ndarray, objective: Objective, *, ridge: float = RIDGE) -> np.ndarray:
    """Offsets ``-tau log prior`` (K,), shifted to a last entry of 0; of equally good tau the one
    nearest to 0.
    """
    direction = -np.log(np.maximum(prior, 1e-12))
    direction = direction - direction[-1]
    values = np.array([value_of(scores, label, tau * direction, objective) - ridge * tau**2 for tau in _TAUS])
    good = np.flatnonzero(values >= values.max() - _GAIN)
    return float(_TAUS[good[np.abs(_TAUS[good]).argmin()]]) * direction


def value_of(scores: np.ndarray, label: np.ndarray, delta: np.ndarray, objective: Objective) -> float:
    """The objective of ``argmax (scores + delta)``."""
    return float(objective(confusion_counts(label, (scores + delta).argmax(1), scores.shape[1]))[0])


def fit_offsets(
    level: str, scores: np.ndarray, label: np.ndarray, prior: np.ndarray, objective: Objective, *, seed: int = 0, starts: int = _STARTS
) -> np.ndarray:
    """Offsets (K,) of a rung of the ladder; ``prior`` (K,) are the class shares of the selection
    rows.
    """
    if level == "none":
        return np.zeros(scores.shape[1])
    scalar = fit_scalar(scores, label, prior, objective)
    if level == "scalar":
        return scalar
    return fit_vector(scores, label, objective, begin=[scalar], starts=starts, seed=seed)[0]


def cross_fitted_answers(
    level: str, scores: np.ndarray, label: np.ndarray, fold: np.ndarray, prior: np.ndarray, objective: Objective, *, seed: int = 0
) -> np.ndarray:
    """Answers (N,) to the rows of each fold with the offsets of the others; ``scores`` are
    themselves held-out predictions.
    """
    answer = scores.argmax(1)
    if level == "none":
        return answer
    for number in np.unique(fold):
        held = fold == number
        if (~held).any():
            delta = fit_offsets(level, scores[~held], label[~held], prior, objective, seed=seed, starts=2)
            answer[held] = (scores[held] + delta).argmax(1)
    return answer
