"""Features of a trial on the device: one normalised matrix a fold where it fits, index batches, no DataLoader.

At utterance granularity the asked layers stand side by side in one matrix (n, W). It is normalised once per fold where
memory allows, once for all folds where the statistics do not depend on the fold, and else batch by batch. Chunk and frame
rows come from the view batch by batch; the view keeps them on the device where they fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raysere.training import normalise

if TYPE_CHECKING:
    from raysere.features.views import FeatureView, Stream
    from raysere.training.task import Labels


def memory_budget(device: torch.device) -> int:
    """Bytes that the matrices of a trial may take: half of what the card has free, or 2 GiB of main memory."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2 << 30


class TrialStream:
    """One feature stream of a trial, joined to the labels by utterance id.

    Args:
        layers: the layers that the configuration reads.
        rows: rows of the labels that the trial sees (training, development and test of all folds).
        folds: how many folds will ask for a normalised matrix.
        budget: bytes for the matrix and its normalised copies.
    """

    def __init__(
        self, view: FeatureView, layers: Sequence[int], labels: Labels, rows: np.ndarray, *, device: torch.device, folds: int, budget: int
    ) -> None:
        self.view, self.layers, self.device = view, list(layers), device
        self.columns = normalise.columns_of({layer: view.spec.width(layer) for layer in self.layers})
        self.at = _join(view, labels.utterances)
        self.rows = rows
        width = max(stop for _, stop in self.columns.values())
        size = 4 * width * len(rows)
        self.flat = view.spec.granularity == "utterance" and size <= budget
        self.copies = self.flat and (folds == 1 or size * (folds + 1) <= budget)
        self.last = folds == 1
        self._raw: Tensor | None = None
        self._shared: Tensor | None = None
        self._at = torch.from_numpy(self.at).to(device)
        place = np.zeros(len(labels), dtype=np.int64)
        place[rows] = np.arange(len(rows))
        self.place = torch.from_numpy(place).to(device)

    @property
    def present(self) -> np.ndarray:
        """Bool (N,): rows of the labels that have features."""
        return self.at >= 0

    def raw(self) -> Tensor:
        """The layers side by side (n, W) float32 on the device; zeros where absent."""
        if self._raw is None:
            width = max(stop for _, stop in self.columns.values())
            matrix = torch.zeros(len(self.rows), width)
            here = self.at[self.rows] >= 0
            for layer, (start, stop) in self.columns.items():
                values = torch.from_numpy(self.view.matrix(layer, self.at[self.rows[here]]))
                if len(self.columns) == 1 and here.all():
                    matrix = values
                else:
                    matrix[torch.from_numpy(here), start:stop] = values
            self._raw = matrix.to(self.device)
        return self._raw

    def fold(self, normaliser: normalise.Normaliser) -> FoldStream:
        """This stream as one fold sees it."""
        matrix: Tensor | None = None
        ready = False
        if self.flat:
            group = None if normaliser.group is None else normaliser.group[torch.from_numpy(self.rows).to(self.device)]
            if normaliser.shared:
                if self._shared is None:
                    self._shared = normaliser.apply_(self.raw(), group)  # in place: nobody needs the raw values after this
                matrix, ready = self._shared, True
            elif self.copies:
                matrix, ready = normaliser.apply_(self.raw() if self.last else self.raw().clone(), group), True
            else:
                matrix = self.raw()
        return FoldStream(self, normaliser, matrix, ready)

    def release(self) -> None:
        """Forget the raw matrix once every fold has its own."""
        if self.copies:
            self._raw = None


class FoldStream:
    """Batches of one stream in one fold, normalised."""

    def __init__(self, source: TrialStream, normaliser: normalise.Normaliser, matrix: Tensor | None, ready: bool) -> None:
        self.source, self.normaliser, self.matrix, self.ready = source, normaliser, matrix, ready
        view = source.view
        self._kind, self._granularity = view.spec.kind, view.spec.granularity
        stats = {len(view.spec.stats(layer)) for layer in source.layers}
        self._stats = stats.pop() if len(stats) == 1 else 1
        self._valid = torch.ones(0, 1, dtype=torch.bool, device=source.device)

    def batch(self, rows: Tensor) -> Stream:
        """The stream of label rows int64 (B,) on the device."""
        from raysere.features.views import Stream

        if self.matrix is not None:
            x = self.matrix.index_select(0, self.source.place[rows])
            if not self.ready:
                x = self.normaliser.apply_(x, None if self.normaliser.group is None else self.normaliser.group[rows])
            if len(self._valid) < len(rows):
                self._valid = torch.ones(len(rows), 1, dtype=torch.bool, device=x.device)
            layers = {layer: x[:, start:stop].unsqueeze(1) for layer, (start, stop) in self.source.columns.items()}
            return Stream(layers, self._valid[: len(rows)], self._stats, self._granularity, self._kind)
        stream = self.source.view.batch(self.source._at[rows], self.source.layers, self.source.device)
        group = None if self.normaliser.group is None else self.normaliser.group[rows]
        return normalised(stream, self.normaliser, group)


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
