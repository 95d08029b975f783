"""A codebook in training: codes, usage and class posteriors of each code as running tables (papers_crosslingual 1.2, 1.3, 1.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysere.training import quantization as maths
from raysere.training.kmeans import kmeans

_COUNT_MEMORY = 0.99  # of the units a step that each code gets
_STARTS = 3  # of k-means, of which the best is taken
_NOISE = 0.1  # standard deviation of what replaces a dead code (variance .01)


class Codebook(nn.Module):
    """K codes of d values, shared by both domains.

    Attributes:
        codes: parameter (K, d). active: bool (K,); a code that is not is never taken (more codes than units can fill, or another domain's).
        scale: running mean of the squared distance to the nearest code: the unit of the temperature.
        usage: (2, K) running shares of the codes in the source (0) and in the target (1).
        sums, mass: running numerator (K, C) and denominator (K,) of the posteriors of :meth:`posteriors`.
        counts, vectors: (K,), (K, d) running numbers and sums of a step's units of each code.
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

    def __init__(self, size: int, width: int, classes: int, *, learned: bool) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(size, width), requires_grad=learned)
        self.register_buffer("active", torch.ones(size, dtype=torch.bool))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("usage", torch.full((2, size), 1 / size))
        self.register_buffer("sums", torch.full((size, classes), 1 / classes))
        self.register_buffer("mass", torch.ones(size))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("vectors", torch.zeros(size, width), persistent=False)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def distances(self, z: Tensor) -> Tensor:
        """(n, K), infinite to codes that are not active."""
        return maths.distances(z, self.codes).masked_fill(~self.active, torch.inf)

    def posteriors(self) -> Tensor:
        """(K, C), with nothing at 0."""
        return maths.floored(self.sums / self.mass.clamp_min(1e-12).unsqueeze(1))

    @torch.no_grad()
    def fill(self, units: Tensor, labelled: Tensor, label: Tensor, generator: torch.Generator, *, random: bool = False) -> None:
        """Start from k-means of ``units`` (n, d); posteriors from units with a class and one observation spread over all (Dirichlet).

        Args:
            labelled, label: (m, d) units of the source and their class (m,). random: leave the codes where they are drawn.
        """
        size = int(min(len(self.codes), max(2, len(units) // 8)))  # fewer than eight units a code tell nothing of it
        self.active[:] = torch.arange(len(self.codes), device=self.active.device) < size
        if not random:
            seed = int(torch.randint(2**31, (1,), generator=generator))
            starts = kmeans(lambda _: [units.float().cpu()], size, seeds=range(seed, seed + _STARTS), passes=0, lloyd=25)
            self.codes.data[:size] = min(starts, key=lambda one: one.inertia).centres.to(self.codes)
        squared = self.distances(units)
        self.scale.fill_(float(squared.min(1).values.mean().clamp_min(1e-6)))
        nearest = maths.hard_codes(self.distances(labelled))
        table = torch.zeros_like(self.sums)
        table.index_put_((nearest, label), torch.ones(len(label), dtype=table.dtype, device=table.device), accumulate=True)
        self.sums.copy_(table + 1 / table.shape[1])
        self.mass.copy_(self.sums.sum(1))
        self.mass /= len(label) / size  # as a step of an even share counts
        self.sums /= len(label) / size
        self.counts.fill_(len(units) / size)
        self.vectors.copy_(self.codes * self.counts.unsqueeze(1))
        self.ready.fill_(True)

    @torch.no_grad()
    def follow(self, z: Tensor, squared: Tensor, q: tuple[Tensor, Tensor], memory: float, move: float | None = None) -> None:
        """Running scale, counts, means, and usage by the soft codes of the source and of the target, of a step's units z (n, d).

        ``move``: memory of exponential averages that the codes become (``codebook: ema``); None leaves the codes to gradients.
        """
        self.scale.mul_(0.99).add_(0.01 * squared.min(1).values.mean())
        for domain, soft in enumerate(q):
            self.usage[domain].mul_(memory).add_((1 - memory) * soft.mean(0))
        nearest = maths.hard_codes(squared)
        counts, vectors, codes = maths.ema_codebook(self.counts, self.vectors, nearest, z, _COUNT_MEMORY if move is None else move)
        self.counts.copy_(counts)
        self.vectors.copy_(vectors)
        if move is not None:
            self.codes.copy_(torch.where(self.active.unsqueeze(1), codes, self.codes))

    @torch.no_grad()
    def learn_posteriors(self, q: Tensor, posterior: Tensor, weights: Tensor, memory: float) -> None:
        """Running tables of which class the units of each code have; ``q`` (n, K), ``posterior`` (n, C), ``weights`` (n,)."""
        weighted = q * (weights * len(weights) / weights.sum().clamp_min(1e-12)).unsqueeze(1)
        self.sums.mul_(memory).add_((1 - memory) * weighted.T @ posterior)
        self.mass.mul_(memory).add_((1 - memory) * weighted.sum(0))

    @torch.no_grad()
    def restart(self, units: tuple[Tensor, Tensor], posterior: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """Replace dead codes by units of the domain that uses them less, a little moved; bool (K,) of those replaced.

        Args:
            units: of a step, (n, d) of the source and (m, d) of the target; posterior: (n, C), (m, C) what is thought of them.
        """
        total = float(sum(len(part) for part in units))
        dead = maths.dead_codes(self.counts, total) & self.active
        for code in torch.nonzero(dead).flatten().tolist():
            domain = int(self.usage[1, code] < self.usage[0, code])
            row = int(torch.randint(len(units[domain]), (1,), generator=generator))
            unit = units[domain][row]
            self.codes.data[code] = unit + _NOISE * torch.randn(unit.shape, generator=generator).to(unit)
            self.sums[code] = posterior[domain][row] * self.mass[code].clamp_min(1e-3)
            self.mass[code] = self.mass[code].clamp_min(1e-3)
            self.counts[code] = total / len(self.counts)  # as alive as any, until it shows otherwise
            self.vectors[code] = self.codes[code] * self.counts[code]
        return dead
