"""Features of a trial on the device: one normalised matrix for each fold, indexed by batches.

At utterance granularity the asked layers stand side by side in one matrix (n, W). It is normalised
once per fold where memory allows, once for all folds where the statistics do not depend on the
fold, and else batch by batch; normalised matrices stay for the next trials of the process that read
the same layers. Chunk and frame rows stand one utterance after the other in such a matrix, with a
row of zeros at its end that all padding points to; where it does not fit, the view reads them batch
by batch. Where a method pools them by fixed rules before its first weight, they are pooled once, to
such a matrix of one row for each utterance.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raysere.base.files import digest
from raysere.features.device_cache import CACHE
from raysere.features.rows import offsets
from raysere.training import normalise

if TYPE_CHECKING:
    from raysere.features.views import FeatureView, Stream
    from raysere.training.method import Pool
    from raysere.training.task import Labels

_POOL_ROWS = 256  # utterances that are pooled at once


def memory_budget(device: torch.device) -> int:
    """Bytes that the matrices of a trial may take: half of what the card has free, or 2 GiB of main
    memory.
    """
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2 << 30


@dataclass(frozen=True)
class _Kept:
    """A normalised matrix between trials."""

    values: Tensor

    @property
    def bytes(self) -> int:
        return self.values.nbytes


class TrialStream:
    """One feature stream of a trial, joined to the labels by utterance id.

    Args:
        layers: the layers that the configuration reads.
        rows: rows of the labels that the trial sees (training, development and test of all folds).
        folds: how many folds will ask for a normalised matrix.
        budget: bytes for the matrix and its normalised copies.
        dtype: of matrices of utterance granularity. bfloat16 where products are computed in it
            anyway: rounded once, and half the bytes to gather. Rows over time stay float32, for
            their means and deviations.
    """

    def __init__(
        self,
        view: FeatureView,
        layers: Sequence[int],
        labels: Labels,
        rows: np.ndarray,
        *,
        device: torch.device,
        folds: int,
        budget: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.view, self.layers, self.device = view, list(layers), device
        self.columns = normalise.columns_of({layer: view.spec.width(layer) for layer in self.layers})
        self.at = _join(view, labels.utterances)
        self.rows = rows
        width = max(stop for _, stop in self.columns.values())
        self.ragged = view.spec.granularity != "utterance"
        self.dtype, self.product = torch.float32 if self.ragged else dtype, dtype
        self.budget = budget // (4 * folds)  # values of a matrix of each fold
        self.complete = bool(self.present[rows].all())
        self.count = self.lengths_of(rows) if self.ragged else np.ones(len(rows), dtype=np.int64)
        self.size = (int(self.count.sum()) + self.ragged) * width
        self.flat = not self.ragged and 4 * self.size <= budget
        self.copies = 4 * self.size * (folds + (folds > 1)) <= budget
        self.last = folds == 1
        self._raw: Tensor | None = None
        self._shared: Tensor | None = None
        self._at = torch.from_numpy(self.at).to(device)
        place = np.zeros(len(labels), dtype=np.int64)
        place[rows] = np.arange(len(rows))
        self.place = torch.from_numpy(place).to(device)
        self.starts, self.lengths = (torch.from_numpy(part).to(device) for part in (offsets(self.count)[:-1], self.count))

    @property
    def present(self) -> np.ndarray:
        """Bool (N,): rows of the labels that have features."""
        return self.at >= 0

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """int64 (n,) feature rows of label rows, 0 where absent."""
        return np.where(self.at[rows] >= 0, self.view.lengths(self.at[rows]), 0)

    def mask(self, rows: Tensor) -> Tensor | None:
        """Bool of the shape of ``rows``: which of these label rows have features; None where all of
        the trial do.
        """
        return None if self.complete else self._at[rows] >= 0

    def raw(self) -> Tensor:
        """The layers side by side (n, W) float32 on the device; zeros where absent.

        With rows over time n counts those, and the zeros.
        """
        if self._raw is None:
            width = max(stop for _, stop in self.columns.values())
            matrix = torch.zeros(self.size // width, width)
            here = self.at[self.rows] >= 0
            for layer, (start, stop) in self.columns.items() if self.ragged else ():
                matrix[:-1, start:stop] = torch.from_numpy(self.view.packed(layer, self.at[self.rows[here]]))
            for layer, (start, stop) in self.columns.items() if not self.ragged else ():
                values = torch.from_numpy(self.view.matrix(layer, self.at[self.rows[here]]))
                if len(self.columns) == 1 and here.all():
                    matrix = values
                else:
                    matrix[torch.from_numpy(here), start:stop] = values
            self._raw = matrix.to(self.device)
        return self._raw

    def fold(self, normaliser: normalise.Normaliser, pool: Pool | None = None) -> FoldStream:
        """This stream as one fold sees it, pooled where the method can say how and the result fits
        the memory of the trial.
        """
        if pool is not None and self.ragged and len(self.rows) * pool.width <= self.budget:
            return FoldStream(self, normaliser, self._pooled(normaliser, pool), True, pooled=True)
        matrix: Tensor | None = None
        ready = False
        if self.flat or (self.ragged and self.copies):
            group = None if normaliser.group is None else normaliser.group[torch.from_numpy(self.rows).to(self.device)]
            if self.ragged and group is not None:
                group = torch.cat([group.repeat_interleave(self.lengths), group[:1]])
            if normaliser.shared:
                if self._shared is None:
                    self._shared = self._normalised(normaliser, group, alone=True)
                matrix, ready = self._shared, True
            elif self.copies:
                matrix, ready = self._normalised(normaliser, group, alone=self.last), True
            else:
                matrix = self.raw()
        return FoldStream(self, normaliser, matrix, ready)

    def _normalised(self, normaliser: normalise.Normaliser, group: Tensor | None, *, alone: bool) -> Tensor:
        """The matrix by these statistics, from an earlier trial or made; ``alone``: nobody else
        needs the raw values.
        """

        def make() -> _Kept:
            values = normaliser.apply_(self.raw() if alone else self.raw().clone(), group)
            if self.ragged:
                values[-1] = 0
            return _Kept(values.to(self.dtype))

        return self._held(normaliser, group, str(self.dtype), self.size * self.dtype.itemsize, make)

    def _held(self, normaliser: normalise.Normaliser, group: Tensor | None, what: Hashable, size: int, make: Callable[[], _Kept]) -> Tensor:
        """What depends on the rows, the layers and these statistics alone: kept between trials
        where there is room for ``size`` bytes.
        """
        rows = self.at[self.rows]
        parts = [rows, *(x.cpu().numpy() for x in (normaliser.mean, normaliser.scale, normaliser.idf, group) if x is not None)]
        content = digest(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
        kept = CACHE.hold((self.view._token, tuple(self.layers), normaliser.kind, what, content), self.device, size, make)
        return (make() if kept is None else kept).values

    def _pooled(self, normaliser: normalise.Normaliser, pool: Pool) -> Tensor:
        """One vector an utterance (n, D), pooled from its normalised rows; the matrix of all rows
        is not needed for it.
        """

        def make() -> _Kept:
            stream = FoldStream(self, normaliser, None, False)
            values = torch.empty(len(self.rows), pool.width, dtype=self.product, device=self.device)
            longest_first = torch.from_numpy(self.rows[np.argsort(-self.count, kind="stable")]).to(self.device)
            with torch.no_grad():
                for rows in longest_first.split(_POOL_ROWS):
                    values[self.place[rows]] = pool(stream.batch(rows)).to(self.product)
            return _Kept(values)

        size = len(self.rows) * pool.width * self.product.itemsize
        return self._held(normaliser, normaliser.group, (pool.key, str(self.product)), size, make)

    def release(self) -> None:
        """Forget the raw matrix once every fold has its own."""
        if self.copies:
            self._raw = None


class FoldStream:
    """Batches of one stream in one fold, normalised."""

    def __init__(
        self, source: TrialStream, normaliser: normalise.Normaliser, matrix: Tensor | None, ready: bool, *, pooled: bool = False
    ) -> None:
        self.source, self.normaliser, self.matrix, self.ready = source, normaliser, matrix, ready
        view = source.view
        self._kind, self._granularity = view.spec.kind, "pooled" if pooled else view.spec.granularity
        stats = {1} if pooled else {len(view.spec.stats(layer)) for layer in source.layers}
        self._stats = stats.pop() if len(stats) == 1 else 1
        self._columns = {0: (0, matrix.shape[1])} if pooled and matrix is not None else source.columns
        self._ragged = source.ragged and not pooled
        self._valid = torch.ones(0, 1, dtype=torch.bool, device=source.device)

    @property
    def flat(self) -> bool:
        """Whether a matrix on the device has one row for each utterance."""
        return self.matrix is not None and not self._ragged

    def batch(self, rows: Tensor) -> Stream:
        """The stream of label rows int64 (B,) on the device."""
        if self.matrix is not None and self._ragged:
            return self._padded(self.matrix, rows)
        if self.matrix is not None:
            x = self._rows(self.matrix, rows)
            here = self.source.mask(rows)
            if here is not None:
                return self._stream(x, here.unsqueeze(-1))
            if len(self._valid) < len(rows):
                with torch.inference_mode(False):  # a mask that a prediction made first must still serve training
                    self._valid = torch.ones(len(rows), 1, dtype=torch.bool, device=x.device)
            return self._stream(x, self._valid[: len(rows)])
        stream = self.source.view.batch(self.source._at[rows].clamp_min(0), self.source.layers, self.source.device)
        here = self.source.mask(rows)
        if here is not None:
            stream.mask = stream.mask & here.unsqueeze(-1)
        group = None if self.normaliser.group is None else self.normaliser.group[rows]
        return normalised(stream, self.normaliser, group)

    def _padded(self, matrix: Tensor, rows: Tensor) -> Stream:
        """One gather: the padding is read from the row of zeros."""
        from raysere.features.views import Stream

        at = self.source.place[rows]
        count = self.source.lengths[at].unsqueeze(1)
        step = torch.arange(max(1, int(count.max())), device=matrix.device)
        mask = step < count
        index = torch.where(mask, self.source.starts[at].unsqueeze(1) + step, len(matrix) - 1)
        x = matrix.index_select(0, index.flatten()).view(*index.shape, -1)
        layers = {layer: x[..., start:stop] for layer, (start, stop) in self.source.columns.items()}
        return Stream(layers, mask, self._stats, self._granularity, self._kind)

    def _rows(self, matrix: Tensor | None, rows: Tensor) -> Tensor:
        assert matrix is not None  # whoever asks has seen that the source is flat
        x = matrix.index_select(0, self.source.place[rows])
        return x if self.ready else self.normaliser.apply_(x, None if self.normaliser.group is None else self.normaliser.group[rows])

    def _stream(self, x: Tensor, mask: Tensor) -> Stream:
        from raysere.features.views import Stream

        layers = {layer: x[..., start:stop].unsqueeze(-2) for layer, (start, stop) in self._columns.items()}
        return Stream(layers, mask, self._stats, self._granularity, self._kind)


def stacked_batch(streams: Sequence[FoldStream], rows: Tensor) -> Stream:
    """The stream of several folds at once: line f of the label rows (F, B) as fold f sees them,
    layers (F, B, 1, D).

    Needs streams that are :attr:`FoldStream.flat`.
    """
    first = streams[0]
    if all(stream.matrix is first.matrix for stream in streams) and first.ready:
        x = first._rows(first.matrix, rows.flatten()).view(*rows.shape, -1)
    else:
        x = torch.stack([stream._rows(stream.matrix, own) for stream, own in zip(streams, rows, strict=True)])
    here = first.source.mask(rows)
    return first._stream(x, torch.ones(*rows.shape, 1, dtype=torch.bool, device=x.device) if here is None else here.unsqueeze(-1))


def normalised(stream: Stream, normaliser: normalise.Normaliser, group: Tensor | None) -> Stream:
    """Normalise a stream from a view in place; the padding stays zero."""
    for layer, x in stream.layers.items():
        normaliser.apply_(x, group, layer).masked_fill_(~stream.mask.unsqueeze(-1), 0)
    return stream


def _join(view: FeatureView, utterances: list[str]) -> np.ndarray:
    """Row of the view for each utterance, -1 where it is not there or has no features."""
    if view.utterances == utterances:
        rows = np.arange(len(utterances))
    else:
        known = {utterance: number for number, utterance in enumerate(view.utterances)}
        rows = np.array([known.get(utterance, -1) for utterance in utterances], dtype=np.int64)
    return np.where((rows >= 0) & view.present[np.maximum(rows, 0)], rows, -1)
