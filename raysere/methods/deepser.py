"""``deepser``: streams fused at two depths. After the member "DeepSER" of Medusa, the winner of the
2025 challenge's class task.

    stream -> layers mixed -> Linear ReLU Linear -> two transformer layers -> h1, h2; h3 = mean of h2     (each stream)
    leg A: all h1 behind each other in time -> two transformer layers -> a2
    leg B: all h2 and a2 behind each other in time -> two transformer layers -> mean b
    all h3 and b side by side -> [Linear, manifold mixup, ReLU] -> class logits, attributes by a sigmoid over the scale

Published: that, 1-head layers of width 512, soft targets, class weights to the power .5, 1.5 x
class term + .4 x squared error of the attributes, mixup by Beta(.2, .2) with probability .3, a
balanced epoch from epoch 4 on (plain cross-entropy, items without agreement as one more class-sized
group), patience 8. The sources do not say how many layers the legs have beyond leg A's second, nor
the feed-forward width: two, and four widths here. Changed: masks everywhere (the released program
has none), the mean of b over valid rows, learning rate 1e-4 instead of 1e-5 (whose 30 epochs leave
a fresh head on a few thousand utterances near its start), no tenfold lower rate in the balanced
epochs (the cosine does that), a learned row for a missing stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.methods.parts.fusion import FusionMethod, SequenceModel, SequenceParams, joined
from raysere.methods.parts.heads import Mixing
from raysere.nn.attention import EncoderLayer
from raysere.nn.pooling import Pooling
from raysere.training.method import Shapes


class DeepSerParams(SequenceParams):
    """The published configuration, but for what the module names."""

    lr: float = Field(1e-4, gt=0, le=1)
    patience: int = Field(8, ge=1, description="epochs without a better development score before a trial stops itself")
    heads: int = Field(1, ge=1, le=32)
    dropout: float = Field(0.1, ge=0, le=0.9)
    pooling: Literal["attention", "mean", "mean_std", "attentive"] = "mean"
    feed_forward: int = Field(4, ge=1, le=8, description="width of the feed-forward layers in widths")
    class_term: float = Field(1.5, gt=0, le=10, description="weight of the class term beside the others")
    attribute_term: float = Field(0.4, ge=0, le=1, description="weight of the attributes beside a categorical loss")
    attribute_loss: Literal["ccc", "mse"] = Field("mse", description="1 - CCC, or the mean squared error in points of a scale of 1 to 7")
    attribute_head: Literal["linear", "sigmoid"] = Field("sigmoid", description="linear and held to the scale, or a sigmoid over the scale")
    other: Literal["drop", "soft"] = Field("soft", description="items without an agreed class: left out, or kept by their votes")
    mixup: float = Field(0.3, ge=0, le=1, description="probability of manifold mixup of a batch, before the last ReLU's input")
    sampler: Literal["natural", "balanced", "natural_then_balanced"] = "natural_then_balanced"


class Tower(nn.Module):
    """Two transformer layers, both of whose outputs are used."""

    def __init__(self, params: DeepSerParams) -> None:
        super().__init__()
        kind = (params.width, params.heads, params.dropout, params.feed_forward)
        self.first, self.second = EncoderLayer(*kind), EncoderLayer(*kind)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        once = self.first(x, mask)
        return once, self.second(once, mask)


class DeepSerModel(SequenceModel):
    normed = False

    def __init__(self, params: DeepSerParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__(params, shapes, layers)
        self.towers = nn.ModuleList([Tower(params) for _ in self.names])
        self.leg_a, self.leg_b = Tower(params), Tower(params)
        self.last = Pooling(params.pooling, params.width, params.bottleneck)
        self.finish(params, shapes, self.pooled_width + self.last.out)

    @staticmethod
    def projection(params: SequenceParams) -> Any:
        return lambda dim: nn.Sequential(nn.Linear(dim, params.width), nn.ReLU(), nn.Linear(params.width, params.width))

    def forward(self, streams: Mapping[str, Any], mixing: Mixing | None = None) -> Tensor:
        x, masks = self.read(streams)
        both = [tower(rows, mask) for tower, rows, mask in zip(self.towers, x, masks, strict=True)]
        h1, h2 = [once for once, _ in both], [twice for _, twice in both]
        h3 = self.pool_each(h2, masks)
        whole, mask = joined(h1, masks)
        a2 = self.leg_a(whole, mask)[1]
        whole, mask = joined([*h2, a2], [*masks, mask])
        b = self.last(self.leg_b(whole, mask)[1], mask)
        return self.trunk(torch.cat([*h3, b], dim=-1), mixing)


class DeepSer(FusionMethod):
    """Streams fused at two depths; see the module."""

    name = "deepser"
    Params = DeepSerParams

    def build(self, params: DeepSerParams, shapes: Shapes) -> DeepSerModel:
        return DeepSerModel(params, shapes, self.layers(params, shapes))
