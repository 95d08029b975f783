"""Dropout that is fast on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_STEPS = 256
_FOLDS: list[tuple[Sequence[torch.Generator], Sequence[int]]] = []  # innermost last; empty: torch's global generator


@contextlib.contextmanager
def drawn_by_fold(generators: Sequence[torch.Generator], items: Sequence[int]) -> Iterator[None]:
    """Inside, :func:`dropout` of values (F, B, ...) draws the mask of fold f from its own
    generator.

    It draws for the first ``items[f]`` of the B rows, as the fold would alone; the rest, which are
    padding, become zero.
    """
    _FOLDS.append((generators, items))
    try:
        yield
    finally:
        _FOLDS.pop()


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Inverted dropout of ``x`` from torch's global generator (or :func:`drawn_by_fold`).

    Each 64-bit draw decides eight values, so ``probability`` is rounded to 1/256 (and the scale
    with it: the expectation stays ``x``); on a CPU about eight times as fast as torch's own.
    """
    if not training or not probability:
        return x
    dropped = min(max(round(probability * _STEPS), 1), _STEPS - 1)
    if _FOLDS:
        draws = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        for part, generator, items in zip(draws, *_FOLDS[-1], strict=True):
            part[:items] = _bytes(part[:items].shape, x.device, generator)
    else:
        draws = _bytes(x.shape, x.device, None)
    # a comparison would give bool, and every operation on bool is an order slower here: 0 or 1 by
    # clamping instead
    kept = draws.clamp_(dropped - 1, dropped).sub_(dropped - 1).to(x.dtype)
    return x * kept.mul_(_STEPS / (_STEPS - dropped))


def _bytes(shape: torch.Size, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Uniform uint8 values."""
    values = shape.numel()
    draws = torch.empty((values + 7) // 8, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return draws.view(torch.uint8)[:values].view(shape)


class Dropout(torch.nn.Module):
    """:func:`dropout` as a module."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability, self.training)
