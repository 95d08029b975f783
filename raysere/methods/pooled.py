"""``pooled``: layers mixed, rows pooled, one small network. The challenge baseline on frozen
features (docs/methods.md 2.1).

    rows (B, T, D) of L layers -> softmax-weighted mix, one layer, the sum of four, or all side by side
    -> mean | mean and std | attentive statistics over valid rows -> dropout -> [Linear LayerNorm ReLU dropout] x depth -> heads

The defaults are the published baseline, adapted to frozen features (docs/methods.md 2.1): learned
layer weights, mean and standard deviation, one hidden layer of 1,024, dropout .5, cross-entropy
with weights N / (C n_k). What differs is the learning rate: the published 1e-5 tunes a whole
transformer, a fresh head on frozen features needs 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raysere.methods.parts.heads import HeadedMethod, HeadedModel, HeadParams, Mixing
from raysere.methods.parts.streams import StreamParams, StreamPool, chosen_layers, layer_weights, needs_rows
from raysere.nn.dropout import Dropout
from raysere.training.method import Shapes


class PooledParams(StreamParams, HeadParams):
    """Ranges as searched by the challenge teams (docs/methods.md 1.3)."""

    pooling: Literal["mean", "mean_std", "attentive"] = "mean_std"


class PooledModel(HeadedModel):
    """Streams pooled and put side by side, a trunk, and a linear head a task."""

    def __init__(self, params: Any, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__()
        self.names = list(shapes.streams)
        pools = [StreamPool(shapes.streams[name], layers[name], params, params.hidden) for name in self.names]
        self.pools = nn.ModuleList(pools)
        self.first = Dropout(params.dropout)
        self.widths = [pool.width for pool in pools]
        self.finish(params, shapes, sum(self.widths))

    def pooled(self, streams: Mapping[str, Any]) -> list[Tensor]:
        """One vector a stream."""
        return [pool(streams[name]) for name, pool in zip(self.names, self.pools, strict=True)]

    def forward(self, streams: Mapping[str, Any], mixing: Mixing | None = None) -> Tensor:
        pooled = self.pooled(streams)
        return self.trunk(self.first(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)), mixing)

    def layer_weights(self) -> dict[str, dict[int, float]]:
        """Share of each layer by stream, where shares are learned."""
        return layer_weights(self.names, self.pools)


class Pooled(HeadedMethod):
    """The challenge baseline family; see the module."""

    name = "pooled"
    Params = PooledParams

    def check(self, params: PooledParams, shapes: Shapes) -> None:
        super().check(params, shapes)
        needs_rows(params.pooling, shapes)
        chosen_layers(params, shapes)

    def layers(self, params: PooledParams, shapes: Shapes) -> dict[str, list[int]]:
        return chosen_layers(params, shapes)

    def pools(self, params: PooledParams, shapes: Shapes) -> dict[str, StreamPool]:
        """Streams of which one layer, a sum or layers side by side are pooled by mean or mean and
        deviation.
        """
        chosen = self.layers(params, shapes)
        pools = {name: StreamPool(stream, chosen[name], params, params.hidden) for name, stream in shapes.streams.items()}
        return {name: pool for name, pool in pools.items() if pool.fixed}

    def stacks(self, params: PooledParams, shapes: Shapes) -> bool:
        """Rows over time are padded per batch, and mixup and rater dropout draw per fold: those
        train one fold after the other.
        """
        drawn = params.mixup or (params.rater_dropout and params.loss == "kl")
        pooled = self.pools(params, shapes)
        return not drawn and all(name in pooled or stream.granularity == "utterance" for name, stream in shapes.streams.items())

    def build(self, params: PooledParams, shapes: Shapes) -> PooledModel:
        return PooledModel(params, shapes, self.layers(params, shapes))
