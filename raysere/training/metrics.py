"""Metrics and their intervals, shared by training, search, ensemble and report.

Every statistic here is a function of sums over items: a confusion matrix (C, C), or six moment sums
of two variables. Sums over items are sums over speakers, so a bootstrap over speakers re-weighs
per-speaker sums and never touches an item again: 2,000 draws cost one matrix product.

Labels of -1 mean "no label" and are left out everywhere; so are attribute values that are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysere.base.errors import DataError
from raysere.training.task import Task

GUARD = 1e-8  # in the denominator of the concordance correlation (docs/methods.md 9.2)
Statistic = Callable[[NDArray], NDArray]


# ---- from sums to scores: arrays of shape (..., C, C) or (..., 6) to (...) -----------------------


def uar_of(confusion: ArrayLike) -> NDArray:
    """Unweighted average recall: mean recall over the classes that have items. NaN when no class
    has any.

    Example:
        >>> float(uar_of([[8, 2], [1, 1]]))
        0.65
    """
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(-1)
    shares = np.diagonal(counts, axis1=-2, axis2=-1) / np.maximum(totals, 1e-300)
    present = (totals > 0).sum(-1)
    return np.where(present > 0, shares.sum(-1) / np.maximum(present, 1), np.nan)


def macro_f1_of(confusion: ArrayLike) -> NDArray:
    """Macro-F1: mean of 2 tp / (true + predicted) over the classes that occur as true or as
    predicted class.

    Example:
        >>> round(float(macro_f1_of([[8, 2], [1, 1]])), 3)
        0.621
    """
    counts = np.asarray(confusion, dtype=np.float64)
    both = counts.sum(-1) + counts.sum(-2)
    f1 = 2 * np.diagonal(counts, axis1=-2, axis2=-1) / np.maximum(both, 1e-300)
    present = (both > 0).sum(-1)
    return np.where(present > 0, f1.sum(-1) / np.maximum(present, 1), np.nan)


def accuracy_of(confusion: ArrayLike) -> NDArray:
    """Share of items on the diagonal. NaN for an empty matrix.

    Example:
        >>> float(accuracy_of([[8, 2], [1, 1]]))
        0.75
    """
    counts = np.asarray(confusion, dtype=np.float64)
    total = counts.sum((-2, -1))
    return np.where(total > 0, np.trace(counts, axis1=-2, axis2=-1) / np.maximum(total, 1e-300), np.nan)


def weighted_f1_of(confusion: ArrayLike) -> NDArray:
    """Mean of the classes' F1 weighed by their true items, as MELD's authors report it. NaN for an
    empty matrix.

    Example:
        >>> round(float(weighted_f1_of([[8, 2], [1, 1]])), 3)
        0.768
    """
    counts = np.asarray(confusion, dtype=np.float64)
    support = counts.sum(-1)
    f1 = 2 * np.diagonal(counts, axis1=-2, axis2=-1) / np.maximum(support + counts.sum(-2), 1e-300)
    total = support.sum(-1)
    return np.where(total > 0, (support * f1).sum(-1) / np.maximum(total, 1e-300), np.nan)


def ccc_of(moments: ArrayLike) -> NDArray:
    """Concordance correlation from moment sums (..., 6): n, sum x, sum y, sum xx, sum yy, sum xy
    (docs/methods.md 9.2).

    ``2 cov / (var x + var y + (mean x - mean y)^2 + 1e-8)`` with population moments; 0 when both
    are constant.
    """
    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(moments, dtype=np.float64), -1, 0)
    n = np.maximum(n, 1e-300)
    mean_x, mean_y = x / n, y / n
    var_x, var_y = np.maximum(xx / n - mean_x**2, 0), np.maximum(yy / n - mean_y**2, 0)
    constant = (var_x <= 1e-14 * np.maximum(xx / n, 1e-300)) & (var_y <= 1e-14 * np.maximum(yy / n, 1e-300))
    value = 2 * (xy / n - mean_x * mean_y) / (var_x + var_y + (mean_x - mean_y) ** 2 + GUARD)
    return np.where(constant, 0.0, value)


def mean_ccc_of(moments: ArrayLike) -> NDArray:
    """Mean CCC over attributes from moment sums (..., A, 6)."""
    return ccc_of(moments).mean(-1)


CATEGORICAL: dict[str, Statistic] = {"uar": uar_of, "macro_f1": macro_f1_of, "accuracy": accuracy_of}
#: Those that a task may choose by, and what is reported beside them.
REPORTED: dict[str, Statistic] = {**CATEGORICAL, "weighted_f1": weighted_f1_of}


def statistic_of(metric: str) -> Statistic:
    """The function from sums to score for a :class:`Task` metric or a reported one: on (..., C, C)
    counts, or (..., A, 6) moments for ``ccc``.

    Example:
        >>> statistic_of("uar") is uar_of
        True
    """
    return mean_ccc_of if metric == "ccc" else REPORTED[metric]


# ---- from items to scores ------------------------------------------------------------------------


def confusion(labels: ArrayLike, predicted: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts (C, C), rows true, columns predicted; items without a label (-1) are left out.

    Example:
        >>> confusion([0, 0, 1], [0, 1, 1], 2).tolist()
        [[1, 1], [0, 1]]
    """
    labels, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    kept = labels >= 0
    return np.bincount(labels[kept] * classes + predicted[kept], minlength=classes * classes).reshape(classes, classes)


def _classes(labels: ArrayLike, predicted: ArrayLike, classes: int | None) -> int:
    return classes if classes is not None else int(max(np.max(labels, initial=0), np.max(predicted, initial=0))) + 1


def uar(labels: ArrayLike, predicted: ArrayLike, classes: int | None = None) -> float:
    """Unweighted average recall (0..1) over the classes with at least one item.

    Example:
        >>> uar([0, 0, 1], [0, 1, 1])
        0.75
    """
    return float(uar_of(confusion(labels, predicted, _classes(labels, predicted, classes))))


def macro_f1(labels: ArrayLike, predicted: ArrayLike, classes: int | None = None) -> float:
    """Macro-F1 (0..1) over the classes that occur among labels or predictions.

    Example:
        >>> round(macro_f1([0, 0, 1], [0, 1, 1]), 3)
        0.667
    """
    return float(macro_f1_of(confusion(labels, predicted, _classes(labels, predicted, classes))))


def accuracy(labels: ArrayLike, predicted: ArrayLike, classes: int | None = None) -> float:
    """Share of labelled items that are right.

    Example:
        >>> round(accuracy([0, 0, 1], [0, 1, 1]), 3)
        0.667
    """
    return float(accuracy_of(confusion(labels, predicted, _classes(labels, predicted, classes))))


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[NDArray, NDArray]:
    """Columns (N, A) in float64, centred on the mean label so that sums of squares keep their
    digits; NaN pairs as 0 with n = 0.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    x, y = (x[:, None], y[:, None]) if x.ndim == 1 else (x, y)
    valid = np.isfinite(x) & np.isfinite(y)
    count = np.maximum(valid.sum(0), 1)
    centre = np.where(valid, y, 0).sum(0) / count
    x, y = np.where(valid, x - centre, 0), np.where(valid, y - centre, 0)
    return np.stack([valid, x, y, x * x, y * y, x * y], axis=-1).astype(np.float64), valid


def ccc(x: ArrayLike, y: ArrayLike) -> float:
    """Concordance correlation of predictions ``x`` and labels ``y`` (n,), pairs with NaN left out
    (docs/methods.md 9.2).

    Example:
        >>> round(ccc([1.0, 2.0, 3.0], [1.0, 2.0, 4.0]), 3)
        0.857
    """
    return float(ccc_of(_pairs(x, y)[0].sum(0))[0])


def mean_ccc(x: ArrayLike, y: ArrayLike) -> float:
    """Mean over attributes of the CCC of predictions ``x`` and labels ``y``, both (N, A)."""
    return float(mean_ccc_of(_pairs(x, y)[0].sum(0)))


def scores(
    task: Task,
    *,
    label: ArrayLike | None = None,
    scores_of_classes: ArrayLike | None = None,
    attributes: ArrayLike | None = None,
    predicted_attributes: ArrayLike | None = None,
) -> dict[str, float]:
    """All metrics of a task by name.

    Args:
        label: int (N,), -1 for none. scores_of_classes: (N, C) logits, log-probabilities or
            probabilities (the arg-max decides).
        attributes: (N, A) labels on any scale, NaN where missing. predicted_attributes: (N, A) on
            the same scale.

    Returns:
        ``uar``, ``macro_f1``, ``accuracy`` and/or ``ccc`` with ``ccc.NAME`` per attribute.
    """
    result: dict[str, float] = {}
    if task.categorical and scores_of_classes is not None and label is not None:
        counts = confusion(label, np.argmax(np.asarray(scores_of_classes), axis=-1), len(task.classes))
        result |= {name: float(function(counts)) for name, function in CATEGORICAL.items()}
    if task.dimensional and predicted_attributes is not None and attributes is not None:
        values = ccc_of(_pairs(predicted_attributes, attributes)[0].sum(0))
        result["ccc"] = float(values.mean())
        result |= {f"ccc.{name}": float(value) for name, value in zip(task.attributes, values, strict=True)}
    return result


def score(
    task: Task,
    *,
    label: ArrayLike | None = None,
    scores_of_classes: ArrayLike | None = None,
    attributes: ArrayLike | None = None,
    predicted_attributes: ArrayLike | None = None,
) -> float:
    """The task's own metric, to be maximised; arguments as :func:`scores`.

    Raises DataError when its inputs are not given.
    """
    values = scores(
        task, label=label, scores_of_classes=scores_of_classes, attributes=attributes, predicted_attributes=predicted_attributes
    )
    if task.metric not in values:
        raise DataError(f"The metric {task.metric!r} cannot be computed from what a {task.kind} task predicts here", choices=sorted(values))
    return values[task.metric]


# ---- intervals: bootstrap of groups (speakers) ---------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A value with a percentile interval. Unpacks as ``low, high``.

    ``redrawn`` counts the draws that lacked a class and were drawn again; ``groups`` the groups
    that were resampled. With fewer than two groups there is nothing to resample, and ``low``,
    ``high`` and ``error`` are NaN. ``error`` is the standard error: the standard deviation over the
    draws.
    """

    value: float
    low: float
    high: float
    draws: int
    redrawn: int
    groups: int
    error: float = float("nan")

    def __iter__(self):
        yield self.low
        yield self.high


def _codes(groups: ArrayLike) -> tuple[NDArray[np.int64], int]:
    names, codes = np.unique(np.asarray(groups), return_inverse=True)
    return codes.astype(np.int64), len(names)


def group_confusions(labels: ArrayLike, predicted: ArrayLike, groups: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Confusion counts per group (G, C, C); groups in sorted order, so two systems on the same
    items line up.

    Example:
        >>> group_confusions([0, 1, 1], [0, 1, 0], ["a", "a", "b"], 2).tolist()
        [[[1, 0], [0, 1]], [[0, 0], [1, 0]]]
    """
    labels, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    kept = labels >= 0
    codes, number = _codes(np.asarray(groups)[kept])
    cells = (codes * classes + labels[kept]) * classes + predicted[kept]
    return np.bincount(cells, minlength=number * classes * classes).reshape(number, classes, classes)


def group_moments(predicted: ArrayLike, attributes: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """Moment sums per group (G, A, 6) of predictions and labels (N, A), ready for :func:`ccc_of`
    (both shifted by the mean label).
    """
    sums, valid = _pairs(predicted, attributes)
    kept = valid.any(-1)
    codes, number = _codes(np.asarray(groups)[kept])
    result = np.zeros((number, *sums.shape[1:]))
    np.add.at(result, codes, sums[kept])
    return result


def _draws(sums: NDArray, draws: int, seed: int) -> tuple[NDArray, int]:
    """How often each group stands in each draw (draws, G); a draw that lacks a class of the whole
    is drawn again.
    """
    generator = np.random.default_rng(seed)
    number = len(sums)
    even = np.full(number, 1 / number)
    weights = generator.multinomial(number, even, size=draws).astype(np.float64)
    if sums.ndim != 3 or sums.shape[1] != sums.shape[2]:
        return weights, 0
    support = sums.sum(2)  # (G, C)
    support = support[:, support.sum(0) > 0].astype(np.float64)
    redrawn = 0
    for _ in range(1000):  # a class that one group alone holds is missed by about e^-1 of all draws, so this ends early
        bad = np.flatnonzero((weights @ support <= 0).any(1))
        if not len(bad):
            break
        redrawn += len(bad)
        weights[bad] = generator.multinomial(number, even, size=len(bad))
    return weights, redrawn


def _resample(sums: NDArray, weights: NDArray) -> NDArray:
    return (weights @ sums.reshape(len(sums), -1)).reshape(len(weights), *sums.shape[1:])


def bootstrap_by_group(sums: ArrayLike, statistic: Statistic, *, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile bootstrap over groups (docs/methods.md 4.14).

    Args:
        sums: per-group sums (G, ...) from :func:`group_confusions` or :func:`group_moments`.
        statistic: from summed counts or moments (..., C, C) or (..., A, 6) to scores (...), such as
            ``statistic_of("uar")``.
    """
    sums = np.asarray(sums, dtype=np.float64)
    value = float(statistic(sums.sum(0)))
    if len(sums) < 2:
        return Interval(value, float("nan"), float("nan"), 0, 0, len(sums))
    weights, redrawn = _draws(sums, draws, seed)
    return _interval(value, statistic(_resample(sums, weights)), level, redrawn, len(sums))


def bootstrap_difference(
    first: ArrayLike, second: ArrayLike, statistic: Statistic, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Interval of ``statistic(first) - statistic(second)`` on the same resamples of the same groups
    (paired).

    Raises DataError when the two do not cover the same groups with the same true labels.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise DataError(f"A paired difference needs the same groups and classes on both sides: {first.shape} against {second.shape}")
    if first.ndim == 3 and first.shape[1] == first.shape[2] and not np.array_equal(first.sum(2), second.sum(2)):
        raise DataError("A paired difference needs the same items on both sides: the true labels differ by group")
    value = float(statistic(first.sum(0)) - statistic(second.sum(0)))
    if len(first) < 2:
        return Interval(value, float("nan"), float("nan"), 0, 0, len(first))
    weights, redrawn = _draws(first, draws, seed)
    return _interval(value, statistic(_resample(first, weights)) - statistic(_resample(second, weights)), level, redrawn, len(first))


def _interval(value: float, drawn: NDArray, level: float, redrawn: int, groups: int) -> Interval:
    tail, finite = 50 * (1 - level), drawn[np.isfinite(drawn)]
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Interval(value, float(low), float(high), len(drawn), redrawn, groups, float(finite.std()))


def bootstrap(
    metric: str, truth: ArrayLike, predicted: ArrayLike, groups: ArrayLike, *, classes: int | None = None, draws: int = 2000, seed: int = 0
) -> Interval:
    """Interval of a metric straight from items.

    Args:
        metric: ``uar``, ``macro_f1``, ``accuracy`` (``truth`` and ``predicted`` int (N,)) or
            ``ccc`` (float (N, A)).
        groups: (N,) speakers.
    """
    if metric == "ccc":
        sums: NDArray = group_moments(predicted, truth, groups)
    else:
        sums = group_confusions(truth, predicted, groups, _classes(truth, predicted, classes))
    return bootstrap_by_group(sums, statistic_of(metric), draws=draws, seed=seed)
