"""``xattn_std``: the standard cross-attention transformer, as a yardstick for ``xattn`` and
``deepser``.

    stream -> layers mixed -> Linear LayerNorm + sinusoids -> x                                     (each stream)
    blocks times: x + attention(norm x, norm of the others' x) -> x + feed-forward(norm x)          (all streams at once)
    LayerNorm -> attention pooling -> all side by side -> [Linear LayerNorm ReLU dropout] x depth -> heads

Two pre-norm blocks, d 512; the block is the crossmodal one of Tsai et al. 2019 (arXiv:1906.00295).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.methods.parts.fusion import FusionMethod, SequenceModel, SequenceParams, others
from raysere.methods.parts.heads import Mixing
from raysere.nn.attention import CrossLayer, sinusoids
from raysere.nn.dropout import dropout
from raysere.training.method import Shapes


class XattnStdParams(SequenceParams):
    blocks: int = Field(2, ge=1, le=6)
    feed_forward: int = Field(4, ge=1, le=8, description="width of the feed-forward layer in widths")


class XattnStdModel(SequenceModel):
    def __init__(self, params: XattnStdParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__(params, shapes, layers)
        kind = (params.width, params.heads, params.dropout, params.feed_forward)
        self.crossing = nn.ModuleList([nn.ModuleList([CrossLayer(*kind) for _ in self.names]) for _ in range(params.blocks)])
        self.norms = nn.ModuleList([nn.LayerNorm(params.width) for _ in self.names])
        self.width = params.width
        self.finish(params, shapes, self.pooled_width)

    def forward(self, streams: Mapping[str, Any], mixing: Mixing | None = None) -> Tensor:
        x, masks = self.read(streams)
        x = [dropout(rows + sinusoids(rows.shape[1], self.width, rows.device), self.params.dropout, self.training) for rows in x]
        blocks: Any = self.crossing
        for layer in blocks:
            x = [block(x[number], *others(x, masks, number)) for number, block in enumerate(layer)]
        x = [norm(rows) for norm, rows in zip(self.norms, x, strict=True)]
        return self.trunk(torch.cat(self.pool_each(x, masks), dim=-1), mixing)


class XattnStd(FusionMethod):
    """The standard cross-attention transformer; see the module."""

    name = "xattn_std"
    Params = XattnStdParams

    def build(self, params: XattnStdParams, shapes: Shapes) -> XattnStdModel:
        return XattnStdModel(params, shapes, self.layers(params, shapes))
