"""``concat``: each stream pooled, the vectors side by side, one network. After BIIC's entry to the
2025 challenge.

    stream -> layers mixed -> pooled -> vector, or a learned one where the stream is missing        (each stream)
    -> all side by side -> dropout -> [Linear LayerNorm Mish dropout] x depth -> heads

Published: separately tuned WavLM and RoBERTa, concatenated 2,048 + 1,024 -> Mish MLP. Ours: frozen
features, the width and depth of the network, LayerNorm (as in ``pooled``), the learned vector of a
missing stream (see :mod:`raysere.methods.parts.fusion`). It differs from ``pooled`` on two streams
in that: there an utterance needs all streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raysere.methods.parts.fusion import FusionMethod, FusionParams
from raysere.methods.parts.streams import needs_rows
from raysere.methods.pooled import PooledModel
from raysere.training.method import Shapes


class ConcatParams(FusionParams):
    pooling: Literal["mean", "mean_std", "attention", "attentive"] = "mean_std"


class ConcatModel(PooledModel):
    """Pooled streams side by side, in the order of their names."""

    def __init__(self, params: ConcatParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        ordered = Shapes(shapes.task, dict(sorted(shapes.streams.items())), shapes.train_prior)
        super().__init__(params, ordered, layers)
        self.missing = nn.ParameterList([torch.zeros(width) for width in self.widths])

    def activation(self, x: Tensor) -> Tensor:
        return nn.functional.mish(x)

    def pooled(self, streams: Mapping[str, Any]) -> list[Tensor]:
        found = super().pooled(streams)
        present = [streams[name].mask.any(1, keepdim=True) for name in self.names]
        return [torch.where(here, x, own.to(x.dtype)) for here, x, own in zip(present, found, self.missing, strict=True)]


class Concat(FusionMethod):
    """Pooled streams side by side; see the module."""

    name = "concat"
    Params = ConcatParams

    def check(self, params: ConcatParams, shapes: Shapes) -> None:
        super().check(params, shapes)
        needs_rows(params.pooling, shapes)

    def build(self, params: ConcatParams, shapes: Shapes) -> ConcatModel:
        return ConcatModel(params, shapes, self.layers(params, shapes))
