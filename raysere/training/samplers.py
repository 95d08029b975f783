"""Order of training rows in an epoch: natural, balanced, or balanced from epoch 4 on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raysere.base.errors import ConfigError

BALANCED_FROM = 4  # epoch (from 0) at which natural_then_balanced turns (docs/methods.md 1.5)


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers (trial seed, fold, purpose); independent streams for
    different parts.
    """
    return int(np.random.SeedSequence([part % 2**32 for part in parts]).generate_state(2, np.uint64)[0] >> np.uint64(1))


def fold_generator(seed: int, fold: int) -> torch.Generator:
    """The one generator of all random choices of a fold: order, mixup, rater dropout.

    It lives on the CPU.
    """
    return torch.Generator().manual_seed(seed_of(seed, fold))


def balanced_at(kind: str, epoch: int) -> bool:
    """Whether that epoch shows the classes in equal shares."""
    return kind == "balanced" or (kind == "natural_then_balanced" and epoch >= BALANCED_FROM)


@dataclass(frozen=True)
class Sampler:
    """Orders of training rows.

    Attributes:
        kind: ``natural``, ``balanced`` or ``natural_then_balanced``.
        label: int64 (n,) of the training rows, -1 for items without a class (they form one more
            group, of the size of a class, as in docs/methods.md 1.5).
        batch: items a batch.

    An epoch always holds n items, so the number of steps is known before training. A balanced epoch
    takes every class equally often, each class by turns through fresh permutations of its rows, so
    no row comes back before all others of its class have been seen.
    """

    kind: str
    label: Tensor
    batch: int

    def __post_init__(self) -> None:
        if self.kind != "natural" and not bool((self.label >= 0).any()):
            raise ConfigError(
                f"The sampler {self.kind!r} needs classes, and this task or this fold has none", remedy="Use sampler: natural."
            )

    @property
    def steps(self) -> int:
        return len(self.cuts())

    def cuts(self) -> list[int]:
        """Sizes of the batches of an epoch: a last batch of one or two items is merged into the one
        before.
        """
        n = len(self.label)
        sizes = [self.batch] * (n // self.batch)
        rest = n - sum(sizes)
        if rest and (rest > 2 or not sizes):
            sizes.append(rest)
        elif rest:
            sizes[-1] += rest
        return sizes

    def order(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Positions (n,) into the training rows."""
        n = len(self.label)
        if not balanced_at(self.kind, epoch):
            return torch.randperm(n, generator=generator)
        groups = [torch.nonzero(self.label == value).flatten() for value in torch.unique(self.label).tolist()]
        share, extra = divmod(n, len(groups))
        lucky = set(torch.randperm(len(groups), generator=generator)[:extra].tolist())
        parts = [_cycle(group, share + (number in lucky), generator) for number, group in enumerate(groups)]
        together = torch.cat(parts)
        return together[torch.randperm(len(together), generator=generator)]


def _cycle(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rounds = -(-count // len(rows)) if count else 0
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)] or [rows[:0]])[:count]
