"""A measured value with its interval and its null distribution; rank correlation and p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from raysere.base.errors import DataError

NAN = float("nan")


@dataclass(frozen=True)
class Estimate:
    """A value; NaN has a ``reason``.

    ``low`` and ``high`` are a 95 % interval over speakers. ``null`` and ``null_edge`` are the mean
    of the value where there is nothing to find, and the end of its one-sided 95 % range; ``p`` is
    the permutation p of that null, never 0.
    """

    value: float
    low: float = NAN
    high: float = NAN
    null: float = NAN
    null_edge: float = NAN
    p: float = NAN
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, null for NaN."""
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in asdict(self).items()}


def percentiles(draws: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of bootstrap draws, NaN left out; (NaN, NaN) where fewer than half of
    them are numbers.
    """
    values = np.asarray(draws, dtype=np.float64)
    finite = values[np.isfinite(values)]
    if len(finite) < max(2, len(values) / 2):
        return NAN, NAN
    tail = 50 * (1 - level)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return float(low), float(high)


def permutation_p(observed: float, null: ArrayLike) -> float:
    """``(1 + #{null >= observed}) / (1 + B)``: never 0, since the order that was seen is one of
    those that could be (docs/methods.md 9.4).

    Values equal but for rounding count as equal. NaN where ``observed`` is NaN or no permutation
    gave a number.
    """
    values = np.asarray(null, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not math.isfinite(observed) or not len(values):
        return NAN
    slack = 1e-12 * max(1.0, abs(observed))
    return float((1 + (values >= observed - slack).sum()) / (1 + len(values)))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation (ties get their mean rank) of the pairs of which both are
    numbers; NaN with fewer than three, or where one side is constant. Raises DataError for
    different lengths.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise DataError(f"A rank correlation needs two rows of equal length: {x.shape} and {y.shape}")
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 3:
        return NAN
    a, b = rankdata(x[both]), rankdata(y[both])
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else NAN


def spearman_test(x: ArrayLike, y: ArrayLike, *, permutations: int = 999, seed: int = 0) -> Estimate:
    """Spearman's correlation with the one-sided p of a positive one, by permuting ``y``."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    value = spearman(x, y)
    if not math.isfinite(value):
        return Estimate(value, reason="fewer than three pairs of numbers, or a constant side")
    generator = np.random.default_rng(seed)
    null = [spearman(x, y[generator.permutation(len(y))]) for _ in range(permutations)]
    return Estimate(value, null=float(np.mean(null)), null_edge=float(np.quantile(null, 0.95)), p=permutation_p(value, null))


def jackknife_interval(
    value: float, left_out: Sequence[ArrayLike], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """``value`` and 1.96 standard errors of the delete-a-group jackknife to either side, cut to
    ``bounds``.

    For what a bootstrap would bias: it holds some speakers twice, which blurs centroids and which
    CKA takes for structure. Two corpora are drawn independently, so their variances add.

    Args:
        left_out: for each corpus the values without each of its groups of speakers (G,).

    Returns:
        (NaN, NaN) where a corpus has fewer than two groups, or a value is no number.
    """
    variance = 0.0
    for values in left_out:
        one = np.asarray(values, dtype=np.float64)
        if len(one) < 2 or not np.isfinite(one).all():
            return NAN, NAN
        variance += (len(one) - 1) / len(one) * float(np.square(one - one.mean()).sum())
    reach = 1.96 * math.sqrt(variance)
    return max(bounds[0], value - reach), min(bounds[1], value + reach)


def speaker_groups(speakers: ArrayLike, most: int, seed: int = 0) -> list[NDArray]:
    """The different speakers in at most ``most`` groups of about one size."""
    people = np.unique(np.asarray(speakers).astype(str))
    return np.array_split(np.random.default_rng(seed).permutation(people), min(most, len(people)))


def speaker_draws(count: int, draws: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """How often each of ``count`` speakers stands in each bootstrap draw: float64 (draws, count)."""
    return generator.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
