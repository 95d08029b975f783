"""Resampling for the units study: permutations and bootstraps whose unit is the speaker, and
corrections for many tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raysere.studies.units.distances import LN2, entropy, normalised


def permutation_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(1 + number of null values >= observed) / (1 + B) of ``null`` (B, ...); NaN where the
    observed value or a null value is.
    """
    with np.errstate(invalid="ignore"):
        p = (1 + (null >= observed - 1e-12).sum(0)) / (1 + len(null))
    return np.where(np.isfinite(observed) & np.isfinite(null).all(0), p, np.nan)


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values that bound the false discovery rate (Benjamini and Hochberg, 1995); NaN
    stays and counts as no test.

    Examples:
        >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.005]).round(3).tolist()
        [0.02, 0.04, 0.04, 0.02]
    """
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - JS of rows of mass (P, K) and (Q, K): float64 (P, Q)."""
    p, q = normalised(one), normalised(other)
    mixture = entropy((p[:, None] + q[None]) / 2)
    return 1.0 - np.clip((mixture - (entropy(p)[:, None] + entropy(q)[None]) / 2) / LN2, 0.0, 1.0)


def matched_similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 - JS of rows that belong together: masses (..., K), float64 (...)."""
    p, q = normalised(one), normalised(other)
    return 1.0 - np.clip((entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2) / LN2, 0.0, 1.0)


def match_margin(matrix: np.ndarray) -> np.ndarray:
    """By how much a phone is more like its namesake than like the others on average: diagonal minus
    mean of the rest of the row.
    """
    size = len(matrix)
    own = np.diagonal(matrix)
    return own - (matrix.sum(1) - own) / max(size - 1, 1) if size > 1 else np.full(size, np.nan)


def match_ranks(matrix: np.ndarray, match: Sequence[int]) -> np.ndarray:
    """Rank (1 is the best, equals count against it) of column ``match[i]`` in row i of a matrix of
    similarities; NaN for a row with NaN.
    """
    own = matrix[np.arange(len(matrix)), list(match)]
    rank = (matrix >= own[:, None] - 1e-12).sum(1).astype(np.float64)
    return np.where(np.isfinite(matrix).all(1), rank, np.nan)


def shuffled_phones(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mass (speakers, phones, K) with the labels of the phones permuted within each speaker, summed
    over speakers: (phones, K).
    """
    order = rng.permuted(np.broadcast_to(np.arange(counts.shape[1]), counts.shape[:2]), axis=1)
    return np.take_along_axis(counts, order[..., None], axis=1).sum(0)


def shuffled_emotions(counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mass (speakers, phones, emotions, K) with the labels of the emotions permuted within each
    speaker, all phones together, summed over speakers: (phones, emotions, K). A speaker's
    labels go round among the emotions that he is heard in.
    """
    heard = counts.sum((1, 3)) > 0
    order = np.broadcast_to(np.arange(counts.shape[2]), counts.shape[::2][:2]).copy()
    for speaker, present in enumerate(heard):
        places = np.flatnonzero(present)
        order[speaker, places] = rng.permutation(places)
    return np.take_along_axis(counts, order[:, None, :, None], axis=2).sum(0)


def null_distribution(draw: Callable[[np.random.Generator], np.ndarray], count: int, seed: int) -> np.ndarray:
    """``count`` values of a statistic under permuted labels: float64 (count, ...)."""
    rng = np.random.default_rng(seed)
    return np.stack([draw(rng) for _ in range(count)])


def speaker_weights(speakers: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each speaker is in each bootstrap draw of as many speakers: float64 (draws,
    speakers).
    """
    return rng.multinomial(speakers, np.full(speakers, 1 / speakers), size=draws).astype(np.float64)


def spearman(one: Any, other: Any) -> float:
    """Rank correlation over pairs of finite values; NaN for fewer than three or for ties
    throughout.
    """
    from scipy.stats import rankdata

    one, other = np.asarray(one, dtype=np.float64).ravel(), np.asarray(other, dtype=np.float64).ravel()
    good = np.isfinite(one) & np.isfinite(other)
    if good.sum() < 3:
        return float("nan")
    a, b = rankdata(one[good]), rankdata(other[good])
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


def mantel(one: np.ndarray, other: np.ndarray, permutations: int, seed: int) -> tuple[float, float]:
    """(Spearman correlation of two symmetric matrices of distances over pairs of different rows,
    permutation p of a positive one).

    Mantel (1967): rows and columns of one matrix are permuted together. NaN for fewer than four
    rows.
    """
    size = len(one)
    upper = np.triu_indices(size, 1)
    observed = spearman(one[upper], other[upper])
    if size < 4 or not np.isfinite(observed):
        return observed, float("nan")

    def draw(rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(size)
        return np.array(spearman(one[np.ix_(order, order)][upper], other[upper]))

    return observed, float(permutation_p(np.array(observed), null_distribution(draw, permutations, seed)))


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b over pairs of finite values; NaN for fewer than two."""
    from scipy.stats import kendalltau

    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    good = np.isfinite(a) & np.isfinite(b)
    return float(kendalltau(a[good], b[good]).statistic) if good.sum() >= 2 else float("nan")
