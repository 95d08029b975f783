"""Stored features as methods see them: batches of ragged rows on a device, joined by utterance id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from raysere.base.errors import ConfigError, DataError
from raysere.base.files import digest
from raysere.features.device_cache import CACHE
from raysere.features.rows import JoinedLayers, LayerSource, MemoryLayers, Placement, gather, offsets, pack
from raysere.features.spec import common_stats

if TYPE_CHECKING:
    from raysere.features.prefix import PrefixSums
    from raysere.features.spec import FeatureSpec, StreamShape

_BLOCK = 1 << 14  # rows of a float64 copy, and what is left of the last utterance


@dataclass
class Stream:
    """Rows of B utterances.

    ``layers`` float32 (B, T, D) each, zeros where ``mask`` (B, T) is False; T is 1 for utterance
    granularity. ``stats`` is how many statistics of the backbone's dim stand side by side in D (2:
    mean, std), 1 where the layers differ. Granularity ``pooled`` is not stored: the training loop
    makes one vector for each utterance (see ``Method.pools``), the only entry of ``layers``, with T
    1.
    """

    layers: dict[int, Tensor]
    mask: Tensor  # bool
    stats: int
    granularity: Literal["utterance", "chunk", "frame", "pooled"]
    kind: Literal["dense", "counts"] = "dense"


class FeatureView:
    """Features of N utterances in a fixed order.

    Attributes:
        spec: what the rows are.
        utterances: N ids; every ``rows`` argument counts in this order.
        present: bool (N,); False where there are no features (quarantined, no transcript, not
            extracted yet).

    Views travel between processes as paths; the bytes stay in the mapped files.
    """

    def __init__(self, spec: FeatureSpec, utterances: Sequence[str], placement: Placement, source: LayerSource) -> None:
        self.spec = spec
        self.utterances = list(utterances)
        if len(self.utterances) != len(placement) or len(set(self.utterances)) != len(self.utterances):
            raise DataError(
                f"{len(self.utterances)} utterance ids ({len(set(self.utterances))} different) and {len(placement)} places cannot be joined"
            )
        self.placement, self.source = placement, source
        self.present = placement.present
        self._token = digest(source.token + placement.fingerprint)
        self._numbers: dict[str, int] | None = None

    def joined(self, others: Mapping[str, FeatureView]) -> FeatureView:
        """This view, followed by the utterances of views of the same layers, whose ids get ``@``
        and the view's name appended.
        """
        views = [self, *others.values()]
        starts = np.concatenate([[0], np.cumsum([view.placement.shard.max(initial=-1) + 1 for view in views])]).tolist()
        shards = [np.where(view.present, view.placement.shard + start, -1) for view, start in zip(views, starts, strict=False)]
        placement = Placement(
            np.concatenate(shards).astype(np.int32),
            np.concatenate([view.placement.first for view in views]),
            np.concatenate([view.placement.rows for view in views]),
        )
        ids = [*self.utterances, *(f"{utterance}@{name}" for name, view in others.items() for utterance in view.utterances)]
        return FeatureView(self.spec, ids, placement, JoinedLayers([view.source for view in views], starts[:-1]))

    @classmethod
    def from_arrays(cls, spec: FeatureSpec, utterances: Sequence[str], layers: Mapping[int, Sequence[np.ndarray | None]]) -> FeatureView:
        """A view of arrays in memory:

        ``layers[number][i]`` is (rows, width) of utterance i, or None where it is absent.
        """
        if not layers:
            raise DataError("A view needs at least one layer")
        counts = {
            number: np.array([0 if array is None else len(array) for array in arrays], dtype=np.int64) for number, arrays in layers.items()
        }
        rows = next(iter(counts.values()))
        packed = {}
        for number, arrays in layers.items():
            width = spec.width(number)
            wrong = [
                utterance
                for utterance, array in zip(utterances, arrays, strict=True)
                if array is not None and (array.ndim != 2 or array.shape[1] != width)
            ]
            if wrong or not np.array_equal(counts[number], rows):
                raise DataError(
                    f"The arrays of layer {number} are not (rows, {width}) with the same rows in all layers",
                    where=", ".join(map(str, wrong[:5])) or None,
                )
            rows_of_all = np.concatenate([np.zeros((0, width), spec.dtype), *[array for array in arrays if array is not None]])
            packed[number] = rows_of_all.astype(spec.dtype, copy=False)
        if spec.granularity == "utterance" and (rows > 1).any():
            raise DataError("Utterance granularity has one row for each utterance")
        placement = Placement(np.where(rows > 0, 0, -1).astype(np.int32), offsets(rows)[:-1], rows)
        return cls(spec, utterances, placement, MemoryLayers(packed))

    def __len__(self) -> int:
        return len(self.utterances)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_numbers": None}

    def shape(self) -> StreamShape:
        """Widths and statistics of the rows, by layer."""
        return self.spec.shape()

    def rows_of(self, utterances: Sequence[str]) -> np.ndarray:
        """Row numbers int64 (n,) of utterance ids.

        Raises DataError for an id that is not in the view.
        """
        if self._numbers is None:
            self._numbers = {utterance: number for number, utterance in enumerate(self.utterances)}
        missing = [utterance for utterance in utterances if utterance not in self._numbers]
        if missing:
            raise DataError(f"{len(missing)} utterances are not in these features", where=", ".join(missing[:5]))
        return np.array([self._numbers[utterance] for utterance in utterances], dtype=np.int64)

    def lengths(self, rows: Any) -> np.ndarray:
        """Rows (frames, chunks, or 1) of each asked utterance, 0 where absent: int64 (n,)."""
        return self.placement.rows[_numpy(rows)]

    def batch(self, rows: Tensor | np.ndarray, layers: Sequence[int], device: str | torch.device = "cpu") -> Stream:
        """The asked utterances, padded with zeros to the longest: absent ones are zeros with an
        all-False mask.

        Raises ConfigError for a layer that is not cached.
        """
        self._check(layers)
        flat_view = self.spec.granularity == "utterance"
        steps = 1 if flat_view else max(1, int(self.lengths(rows).max(initial=0)))
        tensors: dict[int, Tensor] = {}
        mask: Tensor | None = None
        for layer in layers:
            packed = CACHE.layer(self.source, self._token, layer, self.placement, self.spec.width(layer), np.dtype(self.spec.dtype), device)
            if packed is None:
                tensors[layer] = gather(self.source, layer, self.placement, _numpy(rows), self.spec.width(layer), steps).to(device)
                continue
            index = torch.as_tensor(rows, dtype=torch.long, device=packed.values.device)
            step = torch.arange(steps, device=index.device)
            valid = step < packed.count[index][:, None]
            if len(packed.values):
                place = torch.where(valid, packed.start[index][:, None] + step, 0)
                values = packed.values.index_select(0, place.reshape(-1)).float().reshape(len(index), steps, -1)
                tensors[layer] = values.masked_fill_(~valid[..., None], 0)
            else:
                tensors[layer] = torch.zeros(len(index), steps, self.spec.width(layer), device=index.device)
            mask = valid
        if mask is None:
            mask = torch.from_numpy(np.arange(steps) < self.lengths(rows)[:, None]).to(device)
        return Stream(tensors, mask, common_stats(self.spec, layers), self.spec.granularity, self.spec.kind)

    def matrix(self, layer: int, rows: Any = None) -> np.ndarray:
        """One row an utterance, float32 (n, width), zeros where absent; a copy.

        Raises ConfigError unless the granularity is utterance.
        """
        self._check([layer])
        if self.spec.granularity != "utterance":
            raise ConfigError(
                f"A matrix needs one row for each utterance; these features have {self.spec.granularity}s", choices=["utterance"]
            )
        rows = np.arange(len(self)) if rows is None else _numpy(rows)
        return gather(self.source, layer, self.placement, rows, self.spec.width(layer), 1)[:, 0].numpy()

    def packed(self, layer: int, rows: Any) -> np.ndarray:
        """All rows of the asked utterances, one utterance after the other: (sum of lengths, width)
        in the store's dtype, a copy.
        """
        self._check([layer])
        rows, places = _numpy(rows), self.placement
        here = Placement(places.shard[rows], places.first[rows], places.rows[rows])
        return pack(self.source, layer, here, self.spec.width(layer), np.dtype(self.spec.dtype))

    def moments(self, layer: int, rows: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population standard deviation over all valid rows of the asked utterances:
        float64 (width,) each.

        Raises DataError where none of them is present.
        """
        self._check([layer])
        rows = np.arange(len(self)) if rows is None else _numpy(rows)
        mean, std = CACHE.remember(
            (self._token, layer, digest(np.ascontiguousarray(rows, dtype=np.int64).tobytes())), lambda: self._moments(layer, rows)
        )
        return mean.copy(), std.copy()

    def prefix(self, layer: int, rows: Any = None, device: str | torch.device = "cpu") -> PrefixSums:
        """Prefix sums over the frames of the asked utterances (default: all), for the mean and std
        of any chunks.

        They take 16 bytes a value. Where that fits the budget (RAYSERE_RESIDENT_GB) they stay for
        the next alignment and the next trial of this process; else they are made anew, so ask for
        fewer utterances at a time then.
        """
        from raysere.features.prefix import prefix_sums

        self._check([layer])
        rows = np.arange(len(self)) if rows is None else _numpy(rows)
        counts, width = self.lengths(rows), self.spec.width(layer)

        def make() -> PrefixSums:
            frames = (
                gather(self.source, layer, self.placement, rows[at : at + 1], width, max(1, int(count)))[0, :count].to(device)
                for at, count in enumerate(counts.tolist())
            )
            return prefix_sums(frames, counts, width, device)

        key = ("prefix", self._token, layer, digest(np.ascontiguousarray(rows, dtype=np.int64).tobytes()))
        kept = CACHE.hold(key, device, 16 * width * int(counts.sum() + len(counts)), make)
        return make() if kept is None else kept

    def _moments(self, layer: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In the order of ``rows``, whatever shards hold them: chance decides who writes a shard,
        and no result may depend on it.
        """
        width, rows = self.spec.width(layer), rows[self.present[rows]]
        count, mean, squares = 0, np.zeros(width), np.zeros(width)
        stretch = offsets(self.lengths(rows))[:-1] // _BLOCK
        for part in np.split(rows, np.flatnonzero(np.diff(stretch)) + 1):  # merged after Chan, Golub and LeVeque: no large float64 copy
            block = self.packed(layer, part).astype(np.float64)
            if size := len(block):
                centre = block.mean(0)
                step = centre - mean
                squares += ((block - centre) ** 2).sum(0) + step**2 * (count * size / (count + size))
                mean += step * (size / (count + size))
                count += size
        if not count:
            raise DataError("None of the asked utterances has features", where=self.spec.backbone)
        return mean, np.sqrt(squares / count)

    def _check(self, layers: Sequence[int]) -> None:
        for layer in layers:
            self.spec.layer(layer)


def _numpy(rows: Any) -> np.ndarray:
    return rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows, dtype=np.int64)
