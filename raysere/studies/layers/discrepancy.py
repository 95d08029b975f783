"""How far apart the features of two corpora are, without any label (docs/methods.md 8.5).

Mean gap, covariance gap and maximum mean discrepancy are one statistic, the squared maximum mean
discrepancy (Gretton et al. 2012), of three kernels:

    <x, y>                        |mean_S - mean_T|^2            mean gap
    <x, y>^2, rows centred        |C_S - C_T|_F^2                covariance gap
    exp(-|x - y|^2 / median)      MMD                            everything that a Gaussian kernel sees

and it needs nothing but the sums of the kernel over pairs of speakers. So intervals by speaker and
the null cost products of small matrices, and pairs of one speaker (whose utterances are alike,
which is no property of a language) can be left out.

Values are the **debiased** ones: within a corpus only pairs of different speakers count, so that
two corpora of the same population have the expectation 0 whatever the width of a layer is; they may
be negative. The plain forms (all pairs, the published formulas) have sampling noise that grows with
the effective width of a layer and would rank layers by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysere.base.errors import DataError
from raysere.studies.estimate import Estimate, percentiles, permutation_p, speaker_draws

_EPS = 1e-12


def moved_by(reference: ArrayLike, x: ArrayLike) -> NDArray[np.float64]:
    """Rows (n, D) z-scored by the mean and population standard deviation of the rows of
    ``reference`` (m, D); columns that are constant there become 0.
    """
    reference, x = np.asarray(reference, dtype=np.float64), np.asarray(x, dtype=np.float64)
    return (x - reference.mean(0)) / _divisor(reference.std(0))


def zscored(x: ArrayLike) -> NDArray[np.float64]:
    """Columns of a corpus (n, D) with mean 0 and population standard deviation 1 over its rows;
    constant columns become 0.
    """
    return moved_by(x, x)


def shared_scale(source: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both corpora moved and scaled by the same numbers: the middle of their means, the root of the
    mean of their variances.

    After a z-score of each corpus on its own all means are equal, so that a mean gap would be 0 by
    construction; and since the mean holds every speaker, it would push different speakers of a
    corpus apart, which makes a debiased MMD negative (-.05 where 8 speakers differ as much as their
    utterances do).
    """
    s, t = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    middle, scale = (s.mean(0) + t.mean(0)) / 2, _divisor(np.sqrt((s.var(0) + t.var(0)) / 2))
    return (s - middle) / scale, (t - middle) / scale


def _divisor(scale: NDArray) -> NDArray:
    return np.where(scale > _EPS * max(float(scale.max(initial=0.0)), 1.0), scale, np.inf)


@dataclass(frozen=True)
class SpeakerSums:
    """Sums of a kernel over the pairs of utterances of each two speakers.

    ``sums`` float64 (G, G); ``count`` float64 (G,) utterances of each speaker; ``target`` bool
    (G,): the corpus of a speaker.
    """

    sums: NDArray[np.float64]
    count: NDArray[np.float64]
    target: NDArray[np.bool_]

    def means(self, source: NDArray, target: NDArray, *, debiased: bool) -> tuple[NDArray, NDArray, NDArray]:
        """Mean kernel within the source, within the target, and between, each (B,), for weights (B,
        G) of the speakers of each side.

        Debiased: within a side, pairs of the same speaker are left out (also of one that a
        bootstrap drew twice); NaN where there are no others.
        """
        pairs = np.outer(self.count, self.count)
        sums, kept = (self.sums * (1 - np.eye(len(pairs))), pairs * (1 - np.eye(len(pairs)))) if debiased else (self.sums, pairs)

        def mean(first: NDArray, second: NDArray, over: NDArray, number: NDArray) -> NDArray:
            total = ((first @ number) * second).sum(1)
            return np.where(total > 0, ((first @ over) * second).sum(1) / np.where(total > 0, total, 1), np.nan)

        return mean(source, source, sums, kept), mean(target, target, sums, kept), mean(source, target, self.sums, pairs)


def speaker_sums(kernel: NDArray, speakers: ArrayLike, target: ArrayLike) -> SpeakerSums:
    """Sums of ``kernel`` (n, n) over pairs of speakers (n,); ``target`` bool (n,) says of which
    corpus a row is.

    Raises DataError where a speaker is in both corpora.
    """
    names, codes = np.unique(np.asarray(speakers).astype(str), return_inverse=True)
    side = np.asarray(target, dtype=bool)
    member = np.zeros((len(codes), len(names)))
    member[np.arange(len(codes)), codes] = 1
    of_target = member.T @ side
    count = member.sum(0)
    if both := [str(name) for name, part, whole in zip(names, of_target, count, strict=True) if 0 < part < whole]:
        raise DataError(f"{len(both)} speakers are in both corpora", where=", ".join(both[:5]))
    return SpeakerSums(member.T @ kernel @ member, count, of_target > 0)


def linear_kernel(x: NDArray) -> NDArray:
    """``<x, y> / D``: its discrepancy is the mean over dimensions of the squared difference of the
    means.
    """
    return x @ x.T / x.shape[1]


def quadratic_kernel(x: NDArray) -> NDArray:
    """``<x, y>^2``: for centred rows its discrepancy is the squared Frobenius distance of the
    (population) covariances.
    """
    return np.square(x @ x.T)


def gaussian_kernel(x: NDArray) -> NDArray:
    """``exp(-|x - y|^2 / m)`` with m the median of the squared distances of different rows (the
    median heuristic).
    """
    norms = np.square(x).sum(1)
    distances = np.maximum(norms[:, None] + norms - 2 * (x @ x.T), 0)
    median = float(np.median(distances[np.triu_indices(len(x), 1)]))
    return np.exp(-distances / (median if median > 0 else 1.0))


def _distance(within_s: NDArray, within_t: NDArray, between: NDArray) -> NDArray:
    return within_s + within_t - 2 * between


def _relative(within_s: NDArray, within_t: NDArray, between: NDArray) -> NDArray:
    scale = np.sqrt(np.maximum(within_s, 0) * np.maximum(within_t, 0))
    return np.where(scale > 0, _distance(within_s, within_t, between) / np.where(scale > 0, scale, 1), np.nan)


@dataclass(frozen=True)
class Discrepancy:
    """One of the measures: its scale (``corpus``: each corpus z-scored on its own, ``shared``),
    kernel, and form.
    """

    scale: str
    kernel: Callable[[NDArray], NDArray]
    form: Callable[[NDArray, NDArray, NDArray], NDArray]


#: By name. ``covariance_gap`` is ``|C_S - C_T|_F^2 / (|C_S|_F |C_T|_F)``; all are 0 for equal
#: corpora, and smaller is more alike.
DISCREPANCIES: dict[str, Discrepancy] = {
    "covariance_gap": Discrepancy("corpus", quadratic_kernel, _relative),
    "mean_gap": Discrepancy("shared", linear_kernel, _distance),
    "mmd": Discrepancy("shared", gaussian_kernel, _distance),
}


def kernel_sums(name: str, source: ArrayLike, target: ArrayLike, speakers: tuple[ArrayLike, ArrayLike]) -> SpeakerSums:
    """The sums of one of :data:`DISCREPANCIES` over two corpora (n_S, D), (n_T, D), with the
    speakers (n_S,), (n_T,) of their rows.
    """
    measure = DISCREPANCIES[name]
    parts = (zscored(source), zscored(target)) if measure.scale == "corpus" else shared_scale(source, target)
    if parts[0].shape[1] != parts[1].shape[1]:
        raise DataError(f"A layer of both corpora has one width, not {parts[0].shape[1]} and {parts[1].shape[1]}")
    rows = np.concatenate(parts)
    names = np.concatenate([np.asarray(side).astype(str) for side in speakers])
    return speaker_sums(measure.kernel(rows), names, np.arange(len(rows)) >= len(parts[0]))


def plain(name: str, sums: SpeakerSums) -> float:
    """The published formula over all pairs, with its sampling noise."""
    s, t = (~sums.target).astype(float)[None], sums.target.astype(float)[None]
    return float(DISCREPANCIES[name].form(*sums.means(s, t, debiased=False))[0])


def discrepancy(name: str, sums: SpeakerSums, *, draws: int = 1000, permutations: int = 999, seed: int = 0) -> Estimate:
    """The debiased measure with its bootstrap interval over the speakers of each corpus, and its
    null.

    The null deals the speakers of both corpora to two sides of the same sizes: what would be found
    if the corpora were two parts of one population. ``p`` is one-sided (a gap as large as this or
    larger).
    """
    form, generator = DISCREPANCIES[name].form, np.random.default_rng(seed)
    number = len(sums.target)
    here, there = np.flatnonzero(~sums.target), np.flatnonzero(sums.target)

    def value(s: NDArray, t: NDArray) -> NDArray:
        return form(*sums.means(s, t, debiased=True))

    observed = float(value((~sums.target).astype(float)[None], sums.target.astype(float)[None])[0])
    if min(len(here), len(there)) < 2:
        return Estimate(float("nan"), reason="a corpus has one speaker only: speaker and corpus cannot be separated")
    if not np.isfinite(observed):
        return Estimate(float("nan"), reason="a layer without variance")
    s, t = np.zeros((draws, number)), np.zeros((draws, number))
    s[:, here], t[:, there] = speaker_draws(len(here), draws, generator), speaker_draws(len(there), draws, generator)
    low, high = percentiles(value(s, t))
    dealt = np.stack([generator.permutation(sums.target) for _ in range(permutations)]).astype(float)
    null = value(1 - dealt, dealt)
    return Estimate(observed, low, high, float(np.nanmean(null)), float(np.nanquantile(null, 0.95)), permutation_p(observed, null))
