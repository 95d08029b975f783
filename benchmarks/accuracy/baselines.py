"""The baselines, in scikit-learn: every choice by inner speaker folds, one refit on the pool, one
look at the test speakers.

A family gives scores (rows, classes) for each point of its grid; :func:`nested` chooses the point
with the highest UAR (or other metric) over the inner folds of each outer fold. Normalisation reads
no label: ``none`` takes mean and standard deviation of the training rows, ``speaker`` those of each
speaker's own rows (so a prediction depends on the speaker's other clips).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.accuracy.data import Data

COSTS = tuple(float(10 ** (half / 2)) for half in range(-4, 5))  # of an SVM whose kernel is divided by the number of columns
GAMMAS = (0.1, 0.3, 1.0)
PROBE_COSTS = (1e-4, 1e-3, 1e-2, 1e-1)
POOLINGS = ("mean", "mean and std")
Point = tuple[Any, ...]


class Family(Protocol):
    def scores(self, train: np.ndarray, test: np.ndarray, only: Point | None = None) -> Iterator[tuple[Point, np.ndarray]]:
        """Scores (test rows, classes) of every point of the grid, or of ``only`` one, fitted on
        ``train`` rows.
        """
        ...


@dataclass
class Svm:
    """A support vector machine on z-normed columns, classes weighed equally; ``gammas`` None is the
    linear kernel.
    """

    data: Data
    x: np.ndarray
    normalise: str
    gammas: Sequence[float] | None = None

    def scores(self, train: np.ndarray, test: np.ndarray, only: Point | None = None) -> Iterator[tuple[Point, np.ndarray]]:
        from sklearn.svm import SVC

        z = normed(self.x, self.data.speaker, train, self.normalise)
        gram = z[np.concatenate([train, test])] @ z[train].T / z.shape[1]
        if self.gammas is not None:
            own = np.einsum("nd,nd->n", z, z) / z.shape[1]
            gram = own[np.concatenate([train, test])][:, None] + own[train] - 2 * gram
        for gamma in self.gammas or (None,):
            kernel = gram if gamma is None else np.exp(-gamma * gram)
            for cost in COSTS:
                point = (cost,) if gamma is None else (gamma, cost)
                if only in (None, point):
                    machine = SVC(C=cost, kernel="precomputed", class_weight="balanced", decision_function_shape="ovr")
                    machine.fit(kernel[: len(train)], self.data.label[train])
                    yield point, whole(machine.decision_function(kernel[len(train) :]), machine.classes_, len(self.data.classes))


@dataclass
class Probe:
    """Logistic regression on one pooled layer, classes weighed equally; layer, pooling and C are
    the grid.
    """

    data: Data
    layers: dict[int, np.ndarray]
    normalise: str

    def scores(self, train: np.ndarray, test: np.ndarray, only: Point | None = None) -> Iterator[tuple[Point, np.ndarray]]:
        from sklearn.linear_model import LogisticRegression

        for number, table in self.layers.items():
            for pooling in POOLINGS:
                if only is not None and (number, pooling) != only[:2]:
                    continue
                x = table[:, : table.shape[1] // 2] if pooling == "mean" else table
                z = normed(x, self.data.speaker, train, self.normalise)
                # the optimum lies in the span of the training rows: a rotation into it changes no
                # prediction
                basis = np.linalg.svd(z[train], full_matrices=False)[2].T if z.shape[1] > len(train) else np.eye(z.shape[1])
                inside = z @ basis
                probe = LogisticRegression(class_weight="balanced", max_iter=500, tol=1e-3, warm_start=True)
                for cost in PROBE_COSTS:
                    point = (number, pooling, cost)
                    if only in (None, point):
                        probe.set_params(C=cost).fit(inside[train], self.data.label[train])
                        yield point, whole(probe.decision_function(inside[test]), probe.classes_, len(self.data.classes))


def normed(x: np.ndarray, speaker: np.ndarray, train: np.ndarray, kind: str) -> np.ndarray:
    """Columns to mean 0 and standard deviation 1, over the training rows or within each speaker; a
    constant column becomes 0.
    """
    if kind == "none":
        return standard(x, x[train])
    z = np.empty_like(x)
    for who in np.unique(speaker):
        z[speaker == who] = standard(x[speaker == who], x[speaker == who])
    return z


def standard(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    mean, std = reference.mean(axis=0), reference.std(axis=0)
    varies = std > 1e-9 * (1 + np.abs(mean))
    return np.clip((x - mean) * np.where(varies, 1 / np.where(varies, std, 1), 0), -10, 10)


def whole(scores: np.ndarray, present: np.ndarray, classes: int) -> np.ndarray:
    """Scores (n, classes); a class without training rows is never chosen.

    Two classes come as one column.
    """
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], axis=1)
    result = np.full((len(scores), classes), -1e3)
    result[:, present] = scores
    return result


@dataclass
class Scored:
    """Scores of every row while it is tested (N, C); ``inner`` (O, N, C) those over the inner
    folds, NaN for test rows.

    ``chosen``: the point of each outer fold, and the UAR over the inner folds that chose it.
    """

    test: np.ndarray
    inner: np.ndarray
    chosen: list[Any]


def nested(family: Family, data: Data, outers: Iterable[int] | None = None, metric: str = "uar") -> Scored:
    """Choose by inner folds, refit, score the test rows; outer fold after outer fold."""
    from raysere.training.metrics import confusion, statistic_of

    classes, number = len(data.classes), len(data.inner)
    test = np.full((len(data.label), classes), np.nan)
    inner = np.full((number, len(data.label), classes), np.nan)
    chosen: list[Any] = [None] * number
    for outer in range(number) if outers is None else outers:
        within = data.inner[outer]
        pool = np.flatnonzero(within >= 0)
        found: dict[Point, np.ndarray] = {}
        for fold in range(within.max() + 1):
            train, dev = np.flatnonzero((within >= 0) & (within != fold)), np.flatnonzero(within == fold)
            for point, scores in family.scores(train, dev):
                found.setdefault(point, np.full_like(test, np.nan))[dev] = scores
        counts = {point: confusion(data.label[pool], scores[pool].argmax(axis=1), classes) for point, scores in found.items()}
        values = {point: float(statistic_of(metric)(one)) for point, one in counts.items()}
        best = max(values, key=values.__getitem__)  # of equals the first: the smaller C
        rows = np.flatnonzero(data.outer == outer)
        test[rows] = next(iter(family.scores(pool, rows, best)))[1]
        inner[outer] = found[best]
        chosen[outer] = [*best, round(values[best], 4)]
    return Scored(test, inner, chosen)


def average(data: Data, parts: Sequence[Scored]) -> Scored:
    """Mean of the probabilities of several systems, each with a temperature fitted to its scores
    over the inner folds.
    """
    test = np.zeros_like(parts[0].test)
    inner = np.zeros_like(parts[0].inner)
    chosen: list[Any] = []
    for outer in range(len(data.inner)):
        pool, rows = np.flatnonzero(data.inner[outer] >= 0), np.flatnonzero(data.outer == outer)
        scales = [temperature(part.inner[outer][pool], data.label[pool]) for part in parts]
        for part, scale in zip(parts, scales, strict=True):
            test[rows] += softmax(part.test[rows] * scale) / len(parts)
            inner[outer] += softmax(part.inner[outer] * scale) / len(parts)
        chosen.append([round(float(scale), 4) for scale in scales])
    with np.errstate(divide="ignore"):
        return Scored(np.log(test), np.log(inner), chosen)


def temperature(scores: np.ndarray, label: np.ndarray) -> float:
    """The factor on scores that makes their softmax most likely, classes weighed equally."""
    from scipy.optimize import minimize_scalar

    weight = (1 / np.bincount(label))[label]

    def loss(log_scale: float) -> float:
        p = softmax(scores * np.exp(log_scale))
        return float(-(weight * np.log(p[np.arange(len(label)), label].clip(1e-12))).sum() / weight.sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))


def softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
