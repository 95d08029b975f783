"""Parts shared in front of the trunk: layers of a stream and their pooling."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.base.errors import ConfigError
from raysere.nn.pooling import attention_of, pool, pooled_dim
from raysere.nn.stacking import Linear
from raysere.training.method import LoopParams, Shapes, StreamShape

TOP = 4  # layers of the equal-weight sum (docs/methods.md 1.1)
MIX_GAIN = 10.0  # the mix is softmax(10 w): at the heads' learning rate plain weights would hardly leave their start in 30 short epochs


class StreamParams(LoopParams):
    """``layer`` counts from the input; 0 enters the first block."""

    layers: Literal["mix", "one", "top", "concat"] = Field(
        "mix", description="learned softmax weights over all layers, one layer, equal sum of four from `layer` on, all side by side"
    )
    layer: int | None = Field(None, ge=0, description="for one and top; default: the last layer, the last four")
    bottleneck: int = Field(128, ge=8, le=1024, description="width of the attention of attention and attentive pooling")


class LayerMix(nn.Module):
    """``sum_l softmax(10 w)_l x_l``; layers of different width are projected to one first."""

    def __init__(self, dims: list[int], width: int) -> None:
        super().__init__()
        equal = len(set(dims)) == 1
        self.dim = dims[0] if equal else width
        self.weights = nn.Parameter(torch.zeros(len(dims)))
        self.projections = nn.ModuleList([] if equal else [Linear(dim, width) for dim in dims])

    def shares(self) -> Tensor:
        return torch.softmax(MIX_GAIN * self.weights, dim=-1)

    def forward(self, layers: list[Tensor]) -> Tensor:
        if len(self.projections):
            layers = [projection(x) for projection, x in zip(self.projections, layers, strict=True)]
        if len(layers) == 1:
            return layers[0]
        at = self.weights.dim() - 1  # behind the folds of a stack
        return torch.matmul(self.shares().unsqueeze(-2), torch.stack(layers, at).flatten(at + 1)).view(layers[0].shape)


class StreamLayers(nn.Module):
    """The layers of one feature stream as one: rows (B, T, ``dim``), or (B, ``dim``) of utterance
    granularity.

    Args:
        numbers: the layers that are read. kind: as in :class:`StreamParams`. width: of layers that
            must be projected to be mixed.
        mean_only: of rows of utterance granularity that are statistics keep the mean.
    """

    def __init__(self, shape: StreamShape, numbers: list[int], kind: str, width: int, *, mean_only: bool = False) -> None:
        super().__init__()
        self.numbers, self.kind, self.flat = numbers, kind, shape.granularity == "utterance"
        means = self.flat and mean_only
        self.take = [shape.layers[number] // (shape.stats_of(number) if means else 1) for number in numbers]
        self.mix = LayerMix(self.take, width) if kind == "mix" and len(numbers) > 1 else None
        self.dim = self.mix.dim if self.mix else sum(self.take) if kind == "concat" else self.take[0]

    def rows(self, stream: Any) -> Tensor:
        """What stands in the padding is undefined."""
        layers = [stream.layers[number] for number in self.numbers]
        if self.flat:
            layers = [x[..., 0, :take] for x, take in zip(layers, self.take, strict=True)]
        if len(layers) == 1:
            return layers[0]
        if self.mix is not None:
            return self.mix(layers)
        return torch.cat(layers, dim=-1) if self.kind == "concat" else torch.stack(layers).mean(0)

    def shares(self) -> dict[int, float] | None:
        """Learned share of each layer, None where nothing is learned."""
        return None if self.mix is None else dict(zip(self.numbers, self.mix.shares().tolist(), strict=True))


class StreamPool(StreamLayers):
    """One feature stream (B, T, D) of some layers to one vector (B, ``width``); rows of utterance
    granularity are pooled already.
    """

    def __init__(self, shape: StreamShape, numbers: list[int], params: Any, width: int) -> None:
        # of rows that are statistics plain mean keeps the first
        super().__init__(shape, numbers, params.layers, width, mean_only=params.pooling == "mean")
        self.pooling = params.pooling
        self.attention = None if self.flat else attention_of(self.pooling, self.dim, params.bottleneck)
        self.width = self.dim if self.flat else pooled_dim(self.pooling, self.dim)

    @property
    def fixed(self) -> bool:
        """Whether rows over time come together without any weight."""
        return not self.flat and self.mix is None and self.attention is None

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.kind, self.pooling, *self.numbers)

    def forward(self, stream: Any) -> Tensor:
        if stream.granularity == "pooled":
            return stream.layers[0][..., 0, :]
        x = self.rows(stream)
        return x if self.flat else pool(self.pooling, x, stream.mask, self.attention)


class LayerVectors(nn.Module):
    """Streams as one vector for each layer (B, D), side by side (B, ``width``) for a stream that
    the loop has pooled already.
    """

    def __init__(self, shape: StreamShape, numbers: list[int], pooling: str) -> None:
        super().__init__()
        single = SimpleNamespace(layers="one", pooling=pooling, bottleneck=0)
        parts = [StreamPool(shape, [number], single, 0) for number in numbers]
        self.parts = nn.ModuleList(parts)
        self.widths = [part.width for part in parts]
        self.width = sum(self.widths)
        self.key = ("layers", pooling, *numbers)
        self.fixed = all(part.fixed for part in parts)

    def forward(self, stream: Any) -> Tensor:
        """All layers side by side."""
        if stream.granularity == "pooled":
            return stream.layers[0][..., 0, :]
        return torch.cat([part(stream) for part in self.parts], dim=-1)


def layer_weights(names: list[str], parts: Any) -> dict[str, dict[int, float]]:
    """Share of each layer by stream, where shares are learned; ``parts`` are the
    :class:`StreamLayers` of the ``names``.
    """
    return {name: shares for name, part in zip(names, parts, strict=True) if (shares := part.shares()) is not None}


def chosen_layers(params: StreamParams, shapes: Shapes) -> dict[str, list[int]]:
    """The layers that a configuration reads, by stream.

    Raises ConfigError for a layer that a stream does not have, and for layers of different width
    that are to be summed.
    """
    chosen = {name: _chosen(params, name, sorted(stream.layers)) for name, stream in shapes.streams.items()}
    for name, numbers in chosen.items():
        widths = {shapes.streams[name].layers[number] for number in numbers}
        if params.layers == "top" and len(widths) > 1:
            raise ConfigError(
                f"layers: top sums layers, and those of the features {name!r} are of different width ({sorted(widths)})",
                where="layers",
                choices=["mix", "one", "concat"],
            )
    return chosen


def needs_rows(pooling: str, shapes: Shapes) -> None:
    """Raise ConfigError where pooling by attention finds no rows over time in any stream."""
    if pooling in ("attention", "attentive") and all(stream.granularity == "utterance" for stream in shapes.streams.values()):
        raise ConfigError(
            f"Attentive pooling needs rows over time, and the features {', '.join(shapes.streams)} have one row for each utterance",
            where="pooling",
            choices=["mean", "mean_std"],
            remedy="Set granularity: chunk or frame for these features, or choose another pooling.",
        )


def _chosen(params: StreamParams, stream: str, numbers: list[int]) -> list[int]:
    """The layers that this configuration reads. A stream of one layer has no choice."""
    if len(numbers) == 1 or params.layers in ("mix", "concat"):
        return numbers
    span = min(TOP, len(numbers)) if params.layers == "top" else 1
    layer = numbers[-span] if params.layer is None else params.layer
    if layer not in numbers:
        raise ConfigError(f"The features {stream!r} have no layer {layer}", where="layer", choices=numbers)
    first = numbers.index(layer)
    if first + span > len(numbers):
        raise ConfigError(
            f"layers: top sums {span} layers, and only {len(numbers) - first} stand from layer {layer} on in the features {stream!r}",
            where="layer",
            choices=numbers[: len(numbers) - span + 1],
        )
    return numbers[first : first + span]
