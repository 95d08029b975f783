"""Prefix sums over frames: mean and standard deviation of any chunk of any utterance in two reads.

The sums restart at every utterance and are taken around the utterance's own mean, so that the error
of a chunk grows with the length and spread of one utterance, not with the size of the corpus.
Float64 where the device has it; elsewhere each sum is a pair of float32 (value and rest).
Utterances lie one after the other without padding, and the sums of a frame and of its squares side
by side, so that an edge of a chunk is one read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raysere.base.errors import DataError
from raysere.features.rows import empty, offsets

_BLOCK = 1 << 16  # values of a chunk's edge that are worked on at once on a CPU: 512 KiB, which stay in its cache


@dataclass(frozen=True)
class PrefixSums:
    """Sums over the frames of B utterances.

    ``sums`` (frames + B, 2, D) are those of values around ``shift`` (B, D) and of their squares, as
    a tuple (value,) or (value, rest): an utterance has a row of zeros at ``first`` int64 (B,), then
    a row for each of its ``count`` int64 (B,) frames.
    """

    sums: tuple[Tensor, ...]
    shift: Tensor
    first: Tensor
    count: Tensor

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.sums)

    def chunk_stats(
        self, starts: Tensor, ends: Tensor, rows: Tensor | None = None, *, out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and population standard deviation of chunks.

        Args:
            starts, ends: int64 (n, C) frame numbers within the utterance; a chunk is
                ``[start, end)``.
            rows: int64 (n,) which of the B utterances each line of ``starts`` is of; default: line
                i is of utterance i.
            out: mean and std of an earlier alignment of this shape, to be written over: fresh
                memory can cost more than the work.

        Returns:
            mean and std, float32 (n, C, D); zeros for an empty chunk (start == end).

        Raises:
            DataError: a chunk ends before it starts or reaches beyond its utterance; ``out`` of
                another shape.
        """
        device, dim = self.count.device, self.shift.shape[1]
        starts, ends = (torch.as_tensor(value, dtype=torch.long, device=device) for value in (starts, ends))
        rows = torch.arange(len(starts), device=device) if rows is None else torch.as_tensor(rows, dtype=torch.long, device=device)
        if starts.shape != ends.shape or starts.dim() != 2 or len(rows) != len(starts):
            raise DataError(f"starts {tuple(starts.shape)}, ends {tuple(ends.shape)} and rows {tuple(rows.shape)} do not fit together")
        if bool(((starts < 0) | (ends < starts) | (ends > self.count[rows][:, None])).any()):
            raise DataError("A chunk ends before it starts or reaches beyond its utterance")
        n, chunks = starts.shape
        low, high = ((self.first[rows][:, None] + place) for place in (starts, ends))
        frames = (ends - starts).clamp(min=1)[..., None].to(self.shift.dtype)
        on_cpu = device.type == "cpu"
        fresh = (empty((n, chunks, dim)) if on_cpu else torch.empty(n, chunks, dim, device=device) for _ in range(2))
        mean, std = fresh if out is None else out
        if mean.shape != (n, chunks, dim) or std.shape != mean.shape:
            raise DataError(f"out has the shapes {tuple(mean.shape)} and {tuple(std.shape)}, and the chunks {(n, chunks, dim)}")
        step = max(1, _BLOCK // max(1, 2 * chunks * dim)) if on_cpu else max(1, n)
        for begin in range(0, n, step):
            block = slice(begin, begin + step)
            sums = _difference(self.sums, low[block].reshape(-1), high[block].reshape(-1)).view(-1, chunks, 2, dim)
            first, second = sums.div_(frames[block, :, None]).unbind(2)
            own = std[block].copy_(second.sub_(first.square()))  # no fused multiply-add: one frame has a std of exactly 0
            own.clamp_(min=0).sqrt_()
            mean[block] = first.add_(self.shift[rows[block], None])
        none = starts == ends
        if bool(none.any()):
            mean[none] = std[none] = 0
        return mean, std


def prefix_sums(frames: Iterable[Tensor], counts: np.ndarray, width: int, device: str | torch.device = "cpu") -> PrefixSums:
    """Prefix sums of utterances that come one after the other:

    ``frames`` (count, width) each, ``counts`` int (B,) of them.
    """
    device = torch.device(device)
    exact = device.type != "mps"  # the one device without float64
    where = device if exact else torch.device("cpu")
    start = offsets(counts)
    size = (int(start[-1]) + len(counts), 2, width)
    sums = empty(size, np.float64) if where.type == "cpu" else torch.empty(size, dtype=torch.float64, device=where)
    shift = torch.zeros(len(counts), width, dtype=torch.float64, device=where)
    first = start[:-1] + np.arange(len(counts))
    for at, values, begin, count in zip(range(len(counts)), frames, first.tolist(), np.asarray(counts).tolist(), strict=True):
        own = sums[begin : begin + count + 1]
        own[0] = 0
        if count:
            wide = values.to(where, torch.float64)
            shift[at] = wide.mean(0)
            centred = wide - shift[at]
            torch.cumsum(centred, 0, out=own[1:, 0])
            torch.cumsum(centred.square_(), 0, out=own[1:, 1])
    places = (torch.from_numpy(np.asarray(part, dtype=np.int64)).to(device) for part in (first, counts))
    if exact:
        return PrefixSums((sums,), shift, *places)
    return PrefixSums(as_pair(sums, device), shift.float().to(device), *places)


def as_pair(values: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """A float64 tensor as two float32: the nearest value, and what it misses."""
    value = values.float()
    return value.to(device), (values - value.double()).float().to(device)


def _difference(sums: tuple[Tensor, ...], low: Tensor, high: Tensor) -> Tensor:
    """Rows ``high`` minus rows ``low``: (n, 2, D)."""
    if len(sums) == 1:
        return sums[0].index_select(0, high).sub_(sums[0].index_select(0, low))
    a, b = sums[0].index_select(0, high), -sums[0].index_select(0, low)
    total = a + b
    back = total - a
    rest = (a - (total - back)) + (b - back)  # two-sum: what the float32 difference rounded away
    return total + (rest + (sums[1].index_select(0, high) - sums[1].index_select(0, low)))
