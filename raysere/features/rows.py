"""Ragged rows of utterances: one packed array with offsets, and its arithmetic."""

from __future__ import annotations

import math
import os
import uuid
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from raysere.base.bounds import npy_header
from raysere.base.errors import DataError, machine_fault
from raysere.base.files import digest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """N utterances:

    ``shard`` int32 (N,), -1 where absent; ``first`` int64 (N,) row in the shard; ``rows`` int64
    (N,), 0 where absent.
    """

    shard: np.ndarray
    first: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def present(self) -> np.ndarray:
        return self.shard >= 0

    @property
    def fingerprint(self) -> str:
        return digest(self.shard.tobytes() + self.first.tobytes() + self.rows.tobytes())


class LayerSource(Protocol):
    """Arrays (rows, width) by shard and layer.

    ``token`` names the content: equal tokens hold equal bytes.
    """

    token: str

    def array(self, shard: int, layer: int) -> np.ndarray: ...


class MappedLayers:
    """Shards of one key on disk, mapped copy-on-write.

    Copy-on-write because a stray in-place write by a consumer is a segmentation fault on a
    read-only map and changes the file on a shared one; here it stays private to the process that
    wrote.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.token = str(self.folder.resolve())
        self._open: dict[tuple[int, int], np.ndarray] = {}

    def array(self, shard: int, layer: int) -> np.ndarray:
        if (shard, layer) not in self._open:
            path = layer_path(self.folder / shard_name(shard), layer)
            try:
                self._open[shard, layer] = _mapped(path)
            except (OSError, ValueError, RuntimeError) as error:
                if fault := machine_fault(error, path):
                    raise fault from error
                raise DataError(
                    f"The features of layer {layer} cannot be opened: {error}",
                    where=path,
                    remedy="Remove this shard folder and extract again: only its utterances are computed anew.",
                ) from error
        return self._open[shard, layer]

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "token": self.token, "_open": {}}  # paths travel between processes, bytes stay mapped


class MemoryLayers:
    """Arrays at hand: one shard, number 0."""

    def __init__(self, layers: dict[int, np.ndarray]) -> None:
        self.token = uuid.uuid4().hex
        self.layers = layers

    def array(self, shard: int, layer: int) -> np.ndarray:
        return self.layers[layer]


class JoinedLayers:
    """Several sources as one: the shards of the second are numbered on from ``starts[1]``, and so
    on.
    """

    def __init__(self, sources: Sequence[LayerSource], starts: Sequence[int]) -> None:
        self.token = digest([source.token for source in sources])
        self.sources, self.starts = list(sources), list(starts)

    def array(self, shard: int, layer: int) -> np.ndarray:
        number = bisect_right(self.starts, shard) - 1
        return self.sources[number].array(shard - self.starts[number], layer)


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def layer_path(folder: Path, number: int) -> Path:
    return folder / f"layer-{number:02d}.npy"


def offsets(rows: np.ndarray) -> np.ndarray:
    """Start of each utterance when rows are packed one after the other; int64 (N + 1,), the last is
    the total.
    """
    result = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(rows, out=result[1:])
    return result


def flat(first: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """All row numbers of ragged stretches, in order:

    ``first[i], ..., first[i] + rows[i] - 1`` for each i; int64 (sum of rows,).
    """
    start = offsets(rows)
    return np.repeat(np.asarray(first, dtype=np.int64) - start[:-1], rows) + np.arange(start[-1], dtype=np.int64)


def pack(source: LayerSource, layer: int, placement: Placement, width: int, dtype: np.dtype | type) -> np.ndarray:
    """The rows of all utterances of ``placement``, one utterance after the other: (sum of rows,
    width), copied from the shards.
    """
    start = offsets(placement.rows)
    packed = np.empty((start[-1], width), dtype=dtype)
    for shard in np.unique(placement.shard[placement.present]):
        here = np.flatnonzero(placement.shard == shard)
        packed[flat(start[here], placement.rows[here])] = source.array(int(shard), layer)[flat(placement.first[here], placement.rows[here])]
    return packed


def gather(source: LayerSource, layer: int, placement: Placement, rows: np.ndarray, width: int, steps: int) -> Tensor:
    """Rows of the chosen utterances straight from the shards, zeros where there are none: float32
    (n, steps, width) on the CPU.

    Nothing is kept: the mapped pages of the shards are the one copy of all processes of a node.
    """
    import torch

    out = empty((len(rows), steps, width))
    shard, first, count = placement.shard[rows], placement.first[rows], placement.rows[rows]
    numbers = np.unique(shard[count > 0]).tolist()
    if steps == 1:
        values = out.numpy()[:, 0]
        values[count == 0] = 0
        for number in numbers:
            here = np.flatnonzero((shard == number) & (count > 0))
            values[here] = source.array(number, layer)[first[here]]
        return out
    arrays = {number: torch.from_numpy(source.array(number, layer)) for number in numbers}
    for line, number, begin, length in zip(out, shard.tolist(), first.tolist(), count.tolist(), strict=True):
        if length:
            line[:length].copy_(arrays[number][begin : begin + length])
        line[length:].zero_()
    return out


def empty(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> Tensor:
    """An uninitialised CPU tensor:

    NumPy asks for huge pages and torch does not, so the first write to it takes a sixth of the
    time.
    """
    import torch

    return torch.from_numpy(np.empty(shape, dtype=dtype))


def _mapped(path: Path) -> np.ndarray:
    """An ``.npy`` file mapped copy-on-write.

    Unlike ``numpy.memmap`` it holds no file open, so there is no limit of 1,024 of them.
    """
    import torch

    with path.open("rb") as file:
        dtype, shape, by_columns, start = npy_header(file)
        there = os.fstat(file.fileno()).st_size
    if by_columns or dtype.kind != "f":
        raise ValueError(f"{dtype} values by {'columns' if by_columns else 'rows'}")
    size = start + math.prod(shape) * dtype.itemsize  # whole numbers of any size: a product of int64 could come round to a small one
    if size > there:
        raise ValueError(f"its header says {size} bytes, the file has {there}")
    values = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)  # RuntimeError where the file is shorter
    return values.numpy()[start:].view(dtype).reshape(shape)
