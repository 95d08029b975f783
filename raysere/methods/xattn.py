"""``xattn``: recurrent streams that attend to each other. After a member of UNICAMP's entry to the
2025 challenge.

    stream -> layers mixed -> Linear LayerNorm -> biGRU -> h                                        (each stream)
    h + attention of h to the h of the other streams -> attention pooling                           (each stream)
    -> all side by side -> LayerNorm -> [Linear ReLU dropout] x depth -> heads

Published: each stream Linear 512 + LayerNorm -> biGRU -> cross-attention both ways with residual ->
attention pooling -> concat -> LayerNorm -> MLP; pairs and triples of encoders. Ours: 8 heads, a GRU
of half the width in each direction, dropout where it stands, the width of the network, and that of
three streams each attends to both others at once. The published neutral-against-rest head and its
sampler are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from raysere.methods.parts.fusion import FusionMethod, SequenceModel, SequenceParams, others
from raysere.methods.parts.heads import Mixing
from raysere.nn.attention import Attention
from raysere.nn.dropout import dropout
from raysere.training.method import Shapes


class XattnParams(SequenceParams):
    """The published width is 512."""


class Recurrent(nn.Module):
    """A bidirectional GRU over the valid rows of each item, which come first; zeros behind them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(1).cpu()
        weight: Any = self.gru.weight_hh_l0
        with torch.autocast(x.device.type, enabled=False):  # its state runs through all steps: float32
            packed = pack_padded_sequence(x.to(weight.dtype), lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=x.shape[1])[0]


class XattnModel(SequenceModel):
    normed = False  # one LayerNorm stands before the trunk

    def __init__(self, params: XattnParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__(params, shapes, layers)
        self.recurrent = nn.ModuleList([Recurrent(params.width) for _ in self.names])
        self.crossing = nn.ModuleList([Attention(params.width, params.heads, params.dropout) for _ in self.names])
        self.norm = nn.LayerNorm(self.pooled_width)
        self.finish(params, shapes, self.pooled_width)

    def forward(self, streams: Mapping[str, Any], mixing: Mixing | None = None) -> Tensor:
        x, masks = self.read(streams)
        chance = self.params.dropout
        h = [
            dropout(recurrent(dropout(rows, chance, self.training), mask), chance, self.training)
            for recurrent, rows, mask in zip(self.recurrent, x, masks, strict=True)
        ]
        crossed = [own + self.crossing[number](own, *others(h, masks, number)) for number, own in enumerate(h)]
        return self.trunk(self.norm(torch.cat(self.pool_each(crossed, masks), dim=-1)), mixing)


class Xattn(FusionMethod):
    """Recurrent streams that attend to each other; see the module."""

    name = "xattn"
    Params = XattnParams

    def build(self, params: XattnParams, shapes: Shapes) -> XattnModel:
        return XattnModel(params, shapes, self.layers(params, shapes))
