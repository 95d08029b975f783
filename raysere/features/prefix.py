"""Prefix sums over frames: mean and standard deviation of any chunk of any utterance in two reads.

The sums restart at every utterance and are taken around the utterance's own mean, so that the error of a chunk grows with
the length and spread of one utterance, not with the size of the corpus. Float64 where the device has it; elsewhere
each sum is a pair of float32 (value and rest).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysere.errors import DataError


@dataclass(frozen=True)
class PrefixSums:
    """Sums over the frames of B utterances.

    ``first`` (B, T + 1, D) of values around ``shift`` (B, 1, D), ``second`` of their squares, each a tuple (value,) or
    (value, rest); ``count`` int64 (B,) valid frames.
    """

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    shift: Tensor
    count: Tensor

    def chunk_stats(self, starts: Tensor, ends: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and population standard deviation of chunks.

        Args:
            starts, ends: int64 (n, C) frame numbers within the utterance; a chunk is ``[start, end)``.
            rows: int64 (n,) which of the B utterances each line of ``starts`` is of; default: line i is of utterance i.

        Returns:
            mean and std, float32 (n, C, D); zeros for an empty chunk (start == end).

        Raises:
            DataError: a chunk ends before it starts or reaches beyond its utterance.
        """
        device = self.count.device
        starts, ends = (torch.as_tensor(value, dtype=torch.long, device=device) for value in (starts, ends))
        rows = torch.arange(len(starts), device=device) if rows is None else torch.as_tensor(rows, dtype=torch.long, device=device)
        if starts.shape != ends.shape or starts.dim() != 2 or len(rows) != len(starts):
            raise DataError(f"starts {tuple(starts.shape)}, ends {tuple(ends.shape)} and rows {tuple(rows.shape)} do not fit together")
        if bool(((starts < 0) | (ends < starts) | (ends > self.count[rows][:, None])).any()):
            raise DataError("A chunk ends before it starts or reaches beyond its utterance")
        frames = (ends - starts).clamp(min=1)[..., None].to(self.shift.dtype)
        line = rows[:, None]
        mean = _difference(self.first, line, starts, ends) / frames
        spread = (_difference(self.second, line, starts, ends) / frames - mean * mean).clamp(min=0)
        empty = (ends == starts)[..., None]
        mean = (mean + self.shift[rows]).masked_fill(empty, 0)
        return mean.float(), spread.sqrt().masked_fill(empty, 0).float()


def prefix_sums(values: Tensor, mask: Tensor) -> PrefixSums:
    """Prefix sums of ``values`` (B, T, D) over the valid frames of ``mask`` (B, T), which lead each line."""
    exact = values.device.type != "mps"  # the one device without float64
    wide = values.to("cpu" if not exact else values.device, torch.float64)
    valid = mask.to(wide.device)[..., None]
    count = valid.sum(1)
    wide = wide.masked_fill(~valid, 0)
    shift = wide.sum(1) / count.clamp(min=1)
    centred = (wide - shift[:, None]).masked_fill(~valid, 0)
    sums = [torch.nn.functional.pad(torch.cumsum(part, 1), (0, 0, 1, 0)) for part in (centred, centred * centred)]
    if exact:
        return PrefixSums((sums[0],), (sums[1],), shift[:, None], count[:, 0])
    first, second = (as_pair(part, values.device) for part in sums)
    return PrefixSums(first, second, shift[:, None].float().to(values.device), count[:, 0].to(values.device))


def as_pair(values: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """A float64 tensor as two float32: the nearest value, and what it misses."""
    value = values.float()
    return value.to(device), (values - value.double()).float().to(device)


def _difference(sums: tuple[Tensor, ...], line: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    high = sums[0][line, ends] - sums[0][line, starts]
    if len(sums) == 1:
        return high
    a, b = sums[0][line, ends], -sums[0][line, starts]
    back = high - a
    rest = (a - (high - back)) + (b - back)  # two-sum: what the float32 difference rounded away
    return high + (rest + (sums[1][line, ends] - sums[1][line, starts]))
