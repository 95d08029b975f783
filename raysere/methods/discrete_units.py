"""``discrete_units``: an utterance as a bag of discrete speech units (docs/methods.md 7.6).

    rows (B, T, D) of one layer -> nearest of K units -> shares of the units (B, K), square root or
    tf-idf -> head

Units are k-means of the training rows of a fold, so that no held-out utterance shapes them. The
square root is the Hellinger map: its dot product compares distributions, not counts. Counting
discards order and, with ``dedup``, duration, which carries emotion: off by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from raysere.base.errors import ConfigError
from raysere.features.views import Stream
from raysere.methods.parts.heads import HeadedMethod, HeadedModel, HeadParams, Mixing
from raysere.nn.kmeans import kmeans, nearest
from raysere.training.method import Batch, Feed, Needs, Shapes, Step

ROWS = 200_000  # training rows that units are learned from, at most
_FAR = 1e6  # where units lie that too few rows would fill
_EACH = 8  # rows for each unit at least


class UnitsParams(HeadParams):
    """Defaults of the study; the head is multinomial logistic regression."""

    depth: int = Field(0, ge=0, le=2, description="hidden layers; 0 is a linear head")
    dropout: float = Field(0.0, ge=0, le=0.9)
    lr: float = Field(1e-2, gt=0, le=1)
    units: int = Field(500, ge=2, le=8192)
    layer: int | None = Field(None, ge=0, description="default: three quarters of the way up (9 of 12, 18 of 24)")
    weighting: Literal["hellinger", "tfidf"] = "hellinger"
    dedup: bool = Field(False, description="a unit that goes on counts once")


class UnitsModel(HeadedModel):
    """Units of one stream, and a head on how often each occurs."""

    centres: Tensor
    idf: Tensor

    def __init__(self, params: UnitsParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__()
        self.name = next(iter(shapes.streams))
        self.number = layers[self.name][0]
        width = shapes.streams[self.name].layers[self.number]
        self.register_buffer("centres", torch.full((params.units, width), _FAR))
        self.register_buffer("idf", torch.ones(params.units))
        self.finish(params, shapes, params.units)
        self.known: tuple[Tensor, Tensor] | None = None  # sorted label rows of the training utterances, and their vectors

    @torch.no_grad()
    def counts(self, stream: Any) -> Tensor:
        """How often each unit occurs, float32 (B, K)."""
        x, mask = stream.layers[self.number].float(), stream.mask
        units = torch.zeros(mask.shape, dtype=torch.long, device=mask.device)
        units[mask] = nearest(x[mask], self.centres)[0]
        counted = mask.clone()
        if self.params.dedup:
            counted[:, 1:] &= (units[:, 1:] != units[:, :-1]) | ~mask[:, :-1]
        found = torch.zeros(len(mask), len(self.centres), device=mask.device)
        return found.scatter_add_(1, units, counted.float())

    def vector(self, stream: Any) -> Tensor:
        """(B, K), of a size that one learning rate serves: shares of the units under the root, or
        tf-idf of length 1, times sqrt(K).
        """
        counts = self.counts(stream)
        share = counts / counts.sum(1, keepdim=True).clamp_min(1)
        if self.params.weighting == "hellinger":
            return share.sqrt() * share.shape[1] ** 0.5
        weighted = share * self.idf
        return weighted / weighted.norm(dim=1, keepdim=True).clamp_min(1e-12) * share.shape[1] ** 0.5

    def forward(self, streams: Mapping[str, Any], mixing: Mixing | None = None) -> Tensor:
        stream = streams[self.name]
        return self.trunk(stream.layers[0][:, 0] if stream.granularity == "pooled" else self.vector(stream), mixing)

    def remembered(self, batch: Batch) -> Batch:
        """The batch with the vectors of its utterances, where they are known from the start of the
        epoch.
        """
        if self.known is None:
            return batch
        rows, vectors = self.known
        place = torch.searchsorted(rows, batch.rows).clamp(max=len(rows) - 1)
        if not bool((rows[place] == batch.rows).all()):
            return batch
        mask = torch.ones(len(place), 1, dtype=torch.bool, device=rows.device)
        return replace(batch, streams={self.name: Stream({0: vectors[place].unsqueeze(1)}, mask, 1, "pooled")})


class DiscreteUnits(HeadedMethod):
    """Bag of units; see the module."""

    name = "discrete_units"
    Params = UnitsParams
    needs = Needs(granularities=frozenset({"chunk", "frame"}), modalities=frozenset({"audio"}))

    def check(self, params: UnitsParams, shapes: Shapes) -> None:
        super().check(params, shapes)
        if len(shapes.streams) != 1:
            raise ConfigError(f"Units are of one feature, and this search names {len(shapes.streams)}", choices=list(shapes.streams))
        numbers = sorted(next(iter(shapes.streams.values())).layers)
        if params.layer is not None and params.layer not in numbers:
            raise ConfigError(f"The features have no layer {params.layer}", where="layer", choices=numbers)

    def layers(self, params: UnitsParams, shapes: Shapes) -> dict[str, list[int]]:
        def chosen(numbers: list[int]) -> int:
            return numbers[round(0.75 * (len(numbers) - 1))] if params.layer is None else params.layer

        return {name: [chosen(sorted(stream.layers))] for name, stream in shapes.streams.items()}

    def build(self, params: UnitsParams, shapes: Shapes) -> UnitsModel:
        return UnitsModel(params, shapes, self.layers(params, shapes))

    def begin_epoch(self, model: Any, feed: Feed, epoch: int, seed: int) -> None:
        """Before the first step: units of the training rows, and the vectors of the training
        utterances.
        """
        if epoch:
            return
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for batch in feed.source():
            stream = batch.streams[model.name]
            parts.append(stream.layers[model.number][stream.mask].float().cpu())
        rows = torch.cat(parts)
        if len(rows) > ROWS:
            rows = rows[torch.randperm(len(rows), generator=generator)[:ROWS]]
        size = min(len(model.centres), max(2, len(rows) // _EACH))
        found = kmeans(lambda _: rows.split(4096), size, seeds=(seed % 2**31,), passes=2, lloyd=4)[0]
        model.centres.fill_(_FAR)
        model.centres[:size] = found.centres.to(model.centres)
        label_rows = torch.cat([batch.rows for batch in feed.source()])
        counts = torch.cat([model.counts(batch.streams[model.name]) for batch in feed.source()])
        model.idf.copy_(torch.log((1 + len(counts)) / (1 + (counts > 0).sum(0))) + 1)
        vectors = torch.cat([model.vector(batch.streams[model.name]) for batch in feed.source()])
        order = label_rows.argsort()
        model.known = label_rows[order], vectors[order]

    def losses(self, model: Any, batch: Batch, step: Step) -> dict[str, Tensor]:
        return super().losses(model, model.remembered(batch), step)
