"""A codebook in training: codes, usage and class posteriors of each code as running tables
(docs/methods.md 6.2, 6.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysere.nn import quantization as maths
from raysere.nn.kmeans import kmeans

_COUNT_MEMORY = 0.9  # of the units a step that each code gets
_STARTS = 3  # of k-means; the best is kept
_NOISE = 0.1  # standard deviation of what replaces a dead code (variance .01)


class TrainedCodebook(nn.Module):
    """G groups of K codes, shared by both domains.

    A unit z (d,) is cut into G parts of d / G values, and each has the nearest code of its group.
    One code an utterance cannot say more than log K, and so loses what emotions are told by; G
    codes say G times as much (product quantization, Jegou et al. 2011). Tables have one row for
    each of the M = G K codes, group after group. Soft codes are shares of all M, 1 / G in each
    group: what is a mean or a divergence of codes is then the mean over the groups of theirs.

    Attributes:
        codes: parameter (M, d / G). active: bool (M,); a code that is not is never taken (more
            codes than units can fill).
        scale: running mean of the squared distance to the nearest code: the unit of the
            temperature.
        usage: (2, M) running shares of the codes in the source (0) and in the target (1).
        sums, mass: running numerator (M, C) and denominator (M,) of the posteriors of
            :meth:`posteriors`.
        counts, vectors: (M,), (M, d / G) running numbers and sums of a step's units of each code.
        ready: whether :meth:`fill` has been called.
    """

    codes: Tensor
    active: Tensor
    scale: Tensor
    usage: Tensor
    sums: Tensor
    mass: Tensor
    counts: Tensor
    vectors: Tensor
    ready: Tensor

    def __init__(self, size: int, width: int, classes: int, *, learned: bool, groups: int = 1) -> None:
        super().__init__()
        self.groups, self.size = groups, size
        self._unscaled = False  # counts are those of a whole start, not of a step
        total = groups * size
        self.codes = nn.Parameter(torch.randn(total, width // groups), requires_grad=learned)
        self.register_buffer("active", torch.ones(total, dtype=torch.bool))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("usage", torch.full((2, total), 1 / total))
        self.register_buffer("sums", torch.full((total, classes), 1 / classes))
        self.register_buffer("mass", torch.ones(total))
        self.register_buffer("counts", torch.zeros(total))
        self.register_buffer("vectors", torch.zeros(total, width // groups), persistent=False)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def _parts(self, z: Tensor) -> Tensor:
        """(n, d) as (n, G, d / G)."""
        return z.unflatten(1, (self.groups, -1))

    def distances(self, z: Tensor) -> Tensor:
        """(n, G, K) of units (n, d), infinite to codes that are not active."""
        found = maths.distances(self._parts(z).transpose(0, 1), self.codes.unflatten(0, (self.groups, -1))).transpose(0, 1)
        return found.masked_fill(~self.active.view(self.groups, -1), torch.inf)

    def nearest(self, squared: Tensor) -> Tensor:
        """Row of the tables (n, G) of each unit's codes, by distances (n, G, K)."""
        return maths.hard_codes(squared) + self.size * torch.arange(self.groups, device=squared.device)

    def values(self, nearest: Tensor) -> Tensor:
        """zq (n, d) of rows (n, G)."""
        return self.codes[nearest].flatten(1)

    def soft(self, squared: Tensor, tau: float) -> Tensor:
        """Soft codes (n, M) of distances (n, G, K), of sum 1."""
        return maths.soft_codes(squared, tau * self.scale).flatten(1) / self.groups

    def posteriors(self) -> Tensor:
        """(M, C), with nothing at 0."""
        return maths.floored(self.sums / self.mass.clamp_min(1e-12).unsqueeze(1))

    @torch.no_grad()
    def fill(self, units: Tensor, labelled: Tensor, label: Tensor, generator: torch.Generator, *, random: bool = False) -> None:
        """Start from k-means of ``units`` (n, d); posteriors from units with a class and one
        observation spread over all (Dirichlet).

        Args:
            labelled, label: (m, d) units of the source and their class (m,). random: leave the
                codes where they are drawn.
        """
        size = int(min(self.size, max(2, len(units) // 8)))  # fewer than eight units a code tell nothing of it
        self.active.view(self.groups, -1)[:] = torch.arange(self.size, device=self.active.device) < size
        if not random:
            own, runs = self._parts(units).float().cpu(), _STARTS if self.groups == 1 else 1
            for group in range(self.groups):
                seed = int(torch.randint(2**31, (1,), generator=generator))
                centres = _best_centres(own[:, group], size, range(seed, seed + runs))
                self.codes.data[group * self.size : group * self.size + size] = centres.to(self.codes)
        squared = self.distances(units)
        self.scale.fill_(float(squared.min(-1).values.mean().clamp_min(1e-6)))
        at = self.nearest(self.distances(labelled)).flatten()
        told = label.repeat_interleave(self.groups)
        table = torch.zeros_like(self.sums)
        table.index_put_((at, told), torch.ones(len(told), dtype=table.dtype, device=table.device), accumulate=True)
        self.sums.copy_(table + 1 / table.shape[1])
        self.mass.copy_(self.sums.sum(1))
        self.mass /= len(label) / size  # as a step of an even share counts
        self.sums /= len(label) / size
        self.counts.copy_(torch.bincount(self.nearest(squared).flatten(), minlength=len(self.counts)))
        self.vectors.copy_(self.codes * self.counts.unsqueeze(1))
        self._unscaled = True
        self.ready.fill_(True)

    @torch.no_grad()
    def follow(self, z: Tensor, squared: Tensor, q: tuple[Tensor, Tensor], memory: float, move: float | None = None) -> None:
        """Running scale, counts, means, and usage by the soft codes of the source and of the
        target, of a step's units z (n, d).

        ``move``: memory of exponential averages that the codes become (``codebook: ema``); None
        leaves the codes to gradients.
        """
        self.scale.mul_(0.99).add_(0.01 * squared.min(-1).values.mean())
        for domain, soft in enumerate(q):
            self.usage[domain].mul_(memory).add_((1 - memory) * soft.mean(0))
        if self._unscaled:
            share = len(z) * self.groups / self.counts.sum().clamp_min(1)
            self.counts *= share
            self.vectors *= share
            self._unscaled = False
        rows, parts = self.nearest(squared).flatten(), self._parts(z).flatten(0, 1)
        counts, vectors, codes = maths.ema_codebook(self.counts, self.vectors, rows, parts, _COUNT_MEMORY if move is None else move)
        self.counts.copy_(counts)
        self.vectors.copy_(vectors)
        if move is not None:
            self.codes.copy_(torch.where(self.active.unsqueeze(1), codes, self.codes))

    @torch.no_grad()
    def learn_posteriors(self, q: Tensor, posterior: Tensor, weights: Tensor, memory: float) -> None:
        """Running tables of which class the units of each code have; ``q`` (n, M), ``posterior``
        (n, C), ``weights`` (n,).
        """
        weighted = self.groups * q * (weights * len(weights) / weights.sum().clamp_min(1e-12)).unsqueeze(1)
        self.sums.mul_(memory).add_((1 - memory) * weighted.T @ posterior)
        self.mass.mul_(memory).add_((1 - memory) * weighted.sum(0))

    @torch.no_grad()
    def restart(self, units: tuple[Tensor, Tensor], posterior: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """Replace dead codes by units of the domain that uses them less, a little moved; bool (M,)
        of those replaced.

        Args:
            units: of a step, (n, d) of the source and (m, d) of the target; posterior: (n, C), (m,
                C) what is thought of them.
        """
        total = float(sum(len(part) for part in units)) * self.groups
        dead = maths.dead_codes(self.counts, total) & self.active
        for code in torch.nonzero(dead).flatten().tolist():
            domain = int(self.usage[1, code] < self.usage[0, code])
            row = int(torch.randint(len(units[domain]), (1,), generator=generator))
            unit = self._parts(units[domain][row : row + 1])[0, code // self.size]
            self.codes.data[code] = unit + _NOISE * torch.randn(unit.shape, generator=generator).to(unit)
            self.sums[code] = posterior[domain][row] * self.mass[code].clamp_min(1e-3)
            self.mass[code] = self.mass[code].clamp_min(1e-3)
            self.counts[code] = total / len(self.counts)  # as alive as any, until it shows otherwise
            self.vectors[code] = self.codes[code] * self.counts[code]
        return dead


def _best_centres(units: Tensor, size: int, seeds: range) -> Tensor:
    """(size, d) of the best of several k-means of units (n, d)."""
    return min(kmeans(lambda _: [units], size, seeds=seeds, passes=0, lloyd=25), key=lambda one: one.inertia).centres
