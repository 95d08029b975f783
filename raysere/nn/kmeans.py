"""k-means over frames that are streamed in batches: k-means++ start, mini-batch steps, exact Lloyd
passes, several seeds side by side.

Mini-batch steps after Sculley, "Web-scale k-means clustering", WWW 2010; the start after Arthur and
Vassilvitskii, SODA 2007. All seeds are trained in the same passes over the data, since reading and
not arithmetic is what a corpus costs. Distances are float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from raysere.base.errors import DataError

Batches = Callable[[int], Iterable[Tensor]]
_DECAY = 0.5  # of the counts that slow a centre down, from one mini-batch pass to the next: late passes still move centres
_SPLIT = 0.5  # the halves of a split cluster lie so many standard deviations from its centre
_BLOCK = 1 << 24  # values of a distance matrix held at once


@dataclass(frozen=True)
class Clustering:
    """``centres`` float32 (K, D), ``counts`` int64 (K,) of the data, and ``inertia``, the mean
    squared distance to the own centre.
    """

    centres: Tensor
    counts: Tensor
    inertia: float
    seed: int


def squared_distances(frames: Tensor, centres: Tensor) -> Tensor:
    """float32 (n, K), not negative. Both are float32, (n, D) and (K, D); half precision would flip
    the nearest one.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])).tolist()
        [[25.0]]
    """
    frames, centres = frames.float(), centres.float()
    cross = frames @ centres.T
    return (frames.square().sum(1)[:, None] - 2 * cross + centres.square().sum(1)[None]).clamp_(min=0)


def nearest(frames: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the nearest centre, int64 (n,), the lowest of equals, and the squared distance to
    it, float32 (n,).
    """
    step = max(1, _BLOCK // max(len(centres), 1))
    parts = [squared_distances(block, centres).min(1) for block in frames.split(step)]
    if not parts:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0)
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def kmeans_plus_plus(sample: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """``k`` rows of the sample, float32 (k, D): each drawn with a probability in proportion to its
    squared distance to those before.

    Greedy form: of 2 + log k draws the one that leaves the least inertia.
    """
    chosen = [int(torch.randint(len(sample), (1,), generator=generator))]
    best = squared_distances(sample, sample[chosen])[:, 0]
    draws = 2 + int(math.log(k))
    for _ in range(k - 1):
        weights = best.double() if bool(best.sum() > 0) else torch.ones(len(best), dtype=torch.float64)
        ends = weights.cumsum(0)
        picks = torch.searchsorted(ends, ends[-1] * torch.rand(draws, generator=generator, dtype=torch.float64)).clamp_(max=len(sample) - 1)
        left = torch.minimum(best, squared_distances(sample[picks], sample))  # (draws, n)
        winner = int(left.double().sum(1).argmin())
        chosen.append(int(picks[winner]))
        best = left[winner]
    return sample[chosen].clone()


def kmeans(
    batches: Batches,
    k: int,
    *,
    seeds: Iterable[int] = (0,),
    passes: int = 4,
    lloyd: int = 8,
    sample: int = 20_000,
    tolerance: float = 1e-4,
) -> list[Clustering]:
    """Cluster streamed data, once for each seed; the results come in the order of the seeds.

    Args:
        batches: called with the number of the pass; gives float32 batches (n, D) that together are
            the whole data.
        k: number of clusters.
        passes: mini-batch passes. lloyd: at most so many exact passes follow, until the inertia
            falls by less than ``tolerance`` of itself.
        sample: frames, drawn from the first pass, among which k-means++ starts (at least 10 k).

    A cluster that nothing is nearest to takes half of the largest one.

    Raises:
        DataError: fewer frames than clusters.
    """
    seeds = list(seeds)
    start = _sample(batches(0), max(sample, 10 * k), seeds[0])
    if len(start) < k:
        raise DataError(f"{len(start)} frames cannot make {k} clusters", remedy="Ask for fewer units, or give more speech.")
    centres = torch.stack([kmeans_plus_plus(start, k, torch.Generator().manual_seed(seed)) for seed in seeds])
    del start
    weight = torch.zeros(len(seeds), k)
    for number in range(passes):
        total = _Totals(centres)
        for batch in batches(number + 1):
            before = centres.clone()
            part = _Totals(before)
            part.add(batch, before)
            weight += part.counts
            centres += (part.sums - part.counts[..., None] * before) / weight.clamp(min=1)[..., None]
            total += part
        _refill(centres, total)
        weight *= _DECAY
    found: list[Clustering | None] = [None] * len(seeds)
    before_inertia = torch.full((len(seeds),), float("inf"))
    for number in range(lloyd + 1):
        total = _Totals(centres)
        for batch in batches(passes + number + 1):
            total.add(batch, centres)
        inertia = total.inertia / total.counts.sum(1).clamp(min=1)
        for place, seed in enumerate(seeds):  # what is kept is the best that was measured, not the step after it
            now, best = float(inertia[place]), found[place]
            if best is None or now < best.inertia or bool((best.counts == 0).any() and not (total.counts[place] == 0).any()):
                found[place] = Clustering(centres[place].clone(), total.counts[place].long(), now, seed)
        still = before_inertia - inertia > tolerance * before_inertia.clamp(max=1e30)
        if number == lloyd or not (bool(still.any()) or bool((total.counts == 0).any())):
            break
        before_inertia = inertia
        centres = torch.where(total.counts[..., None] > 0, (total.sums / total.counts.clamp(min=1)[..., None]).float(), centres)
        _refill(centres, total)
    return [one for one in found if one is not None]


class _Totals:
    """Counts (S, K), sums and sums of squares (S, K, D) of the members of every cluster, and the
    summed squared distance (S,).
    """

    def __init__(self, centres: Tensor) -> None:
        self.counts = torch.zeros(centres.shape[:2], dtype=torch.float64)
        self.sums, self.squares = torch.zeros_like(centres), torch.zeros_like(centres)
        self.inertia = torch.zeros(len(centres), dtype=torch.float64)

    def add(self, batch: Tensor, centres: Tensor) -> None:
        squared = batch.square()
        for seed, own in enumerate(centres):
            units, distance = nearest(batch, own)
            self.counts[seed] += torch.bincount(units, minlength=len(own)).double()
            self.sums[seed].index_add_(0, units, batch)
            self.squares[seed].index_add_(0, units, squared)
            self.inertia[seed] += distance.double().sum()

    def __iadd__(self, other: _Totals) -> _Totals:
        self.counts += other.counts
        self.sums += other.sums
        self.squares += other.squares
        self.inertia += other.inertia
        return self


def _refill(centres: Tensor, total: _Totals) -> None:
    """Give each empty cluster half of the largest one, in place."""
    for seed in range(len(centres)):
        counts = total.counts[seed].clone()
        for empty in torch.nonzero(counts == 0).flatten().tolist():
            largest = int(counts.argmax())
            mean = total.sums[seed, largest] / total.counts[seed, largest].clamp(min=1)
            spread = (total.squares[seed, largest] / total.counts[seed, largest].clamp(min=1) - mean.square()).clamp(min=0).sqrt()
            old = centres[seed, largest].clone()
            centres[seed, empty], centres[seed, largest] = old + _SPLIT * spread.float(), old - _SPLIT * spread.float()
            counts[largest] /= 2
            counts[empty] = counts[largest]
            for table in (total.sums, total.squares):  # so that a half that is split again is split by its own size
                table[seed, largest] /= 2
                table[seed, empty] = table[seed, largest]
            total.counts[seed, largest] = total.counts[seed, empty] = counts[largest]


def _sample(batches: Iterable[Tensor], size: int, seed: int) -> Tensor:
    """A uniform sample without replacement of a stream: the rows with the smallest random keys."""
    generator = torch.Generator().manual_seed(seed)
    kept: Tensor | None = None
    keys = torch.zeros(0)
    for batch in batches:
        kept = batch.float() if kept is None else torch.cat([kept, batch.float()])
        keys = torch.cat([keys, torch.rand(len(batch), generator=generator)])
        if len(keys) > size:
            order = keys.topk(size, largest=False).indices
            kept, keys = kept[order], keys[order]
    return torch.zeros(0, 1) if kept is None else kept
