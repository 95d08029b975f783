"""Parts shared by fusion methods: several streams with masks, and missing streams.

**A missing stream.** An utterance is used where at least one of its streams has features. A stream
that is not there is one learned row in its place, zeros at the start, which the others attend to
like to any other row. Training utterances that lack it teach it, and so does ``modality_dropout``:
with that probability an utterance of a training batch is shown without one of its streams, drawn at
random, never without all. With ``modality_dropout: 0`` and complete training data the row stays
zeros, and what is predicted without that stream was never trained for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raysere.methods.parts.heads import HeadedMethod, HeadedModel, HeadParams
from raysere.methods.parts.streams import StreamLayers, StreamParams, chosen_layers, layer_weights
from raysere.nn.pooling import Pooling
from raysere.training.method import Batch, Needs, Shapes, Step, StreamShape


class FusionParams(StreamParams, HeadParams):
    """Losses by default as most teams had them: soft targets where votes exist, class weights to
    the power .5 (docs/methods.md 1.3).
    """

    hidden: int = Field(512, ge=8, le=8192)
    dropout: float = Field(0.3, ge=0, le=0.9)
    loss: Literal["ce", "kl", "vs", "logit_adjusted"] = Field("kl", description="as in pooled; kl takes the label where there are no votes")
    class_weight: float = Field(0.5, ge=0, le=1, description="alpha of class weights (N / (C n_k))^alpha")
    modality_dropout: float = Field(0.1, ge=0, le=0.9, description="probability that a training utterance is shown without one stream")


class SequenceParams(FusionParams):
    """Of the members that read rows over time; features of utterance granularity are sequences of
    one row.
    """

    lr: float = Field(3e-4, gt=0, le=1)
    pooling: Literal["attention", "mean", "mean_std", "attentive"] = "attention"
    width: int = Field(512, ge=8, le=2048, description="d of all sequences")
    heads: int = Field(8, ge=1, le=32)

    @model_validator(mode="after")
    def _even(self) -> SequenceParams:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not an even multiple of heads {self.heads}")
        return self


class StreamRows(StreamLayers):
    """Rows of one stream in the common width, with the learned row where the stream is missing.

    Args:
        project: from the width of the (mixed) layers to the common one; a function of that width.
    """

    def __init__(self, shape: StreamShape, numbers: list[int], params: SequenceParams, project: Any) -> None:
        super().__init__(shape, numbers, params.layers, params.width)
        self.project = project(self.dim)
        self.missing = nn.Parameter(torch.zeros(params.width))

    def forward(self, stream: Any) -> tuple[Tensor, Tensor]:
        """(x (B, T, width), mask bool (B, T)) with a valid row in each item; x of padding is
        finite.
        """
        rows, mask = self.rows(stream), stream.mask
        if self.flat:
            rows = rows.unsqueeze(1)
        x = self.project(torch.where(mask.unsqueeze(-1), rows, 0.0))  # where: anything may stand in the padding, also NaN
        gap = torch.zeros_like(mask)
        gap[:, 0] = ~mask.any(1)
        return torch.where(gap.unsqueeze(-1), self.missing.to(x.dtype), x), mask | gap


class SequenceModel(HeadedModel):
    """Streams as sequences of one width: :meth:`read`, what a subclass does between them,
    :meth:`pool_each`.
    """

    def __init__(self, params: SequenceParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__()
        self.names = sorted(shapes.streams)  # the same order wherever the features are listed in another
        self.readers = nn.ModuleList(
            [StreamRows(shapes.streams[name], layers[name], params, self.projection(params)) for name in self.names]
        )
        # one row is its own pooled vector
        kinds = ["mean" if reader.flat else params.pooling for reader in self.readers]
        pools = [Pooling(kind, params.width, params.bottleneck) for kind in kinds]
        self.pools, self.pooled_width = nn.ModuleList(pools), sum(pool.out for pool in pools)

    @staticmethod
    def projection(params: SequenceParams) -> Any:
        """The module that brings rows of some width to ``params.width``, as a function of that
        width.
        """
        return lambda dim: nn.Sequential(nn.Linear(dim, params.width), nn.LayerNorm(params.width))

    def read(self, streams: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """Rows and masks of all streams."""
        found = [reader(streams[name]) for name, reader in zip(self.names, self.readers, strict=True)]
        return [x for x, _ in found], [mask for _, mask in found]

    def pool_each(self, sequences: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """One vector a stream."""
        return [pool(x, mask) for pool, x, mask in zip(self.pools, sequences, masks, strict=True)]

    def layer_weights(self) -> dict[str, dict[int, float]]:
        """Share of each layer by stream, where shares are learned."""
        return layer_weights(self.names, self.readers)


def others(sequences: list[Tensor], masks: list[Tensor], number: int) -> tuple[Tensor, Tensor]:
    """All streams but one, behind each other in time: (B, T', D) and their mask."""
    return joined([x for n, x in enumerate(sequences) if n != number], [mask for n, mask in enumerate(masks) if n != number])


def joined(sequences: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences behind each other in time."""
    if len(sequences) == 1:
        return sequences[0], masks[0]
    return torch.cat(sequences, 1), torch.cat(masks, 1)


def without_a_stream(streams: Mapping[str, Any], probability: float, generator: torch.Generator) -> Mapping[str, Any]:
    """The same batch in which each utterance lacks, with ``probability``, one of its streams; never
    its only one.
    """
    if not probability:
        return streams
    names = sorted(streams)
    present = torch.stack([streams[name].mask.any(1) for name in names])  # (S, B)
    hit = torch.rand(present.shape[1], generator=generator) < probability
    lots = torch.rand(present.shape, generator=generator).to(present.device).masked_fill(~present, -1.0)
    hit = hit.to(present.device) & (present.sum(0) > 1)
    gone = (lots == lots.amax(0)) & hit
    return {name: replace(streams[name], mask=streams[name].mask & ~own.unsqueeze(1)) for name, own in zip(names, gone, strict=True)}


class FusionMethod(HeadedMethod):
    """A method of two or more streams; an utterance may lack some."""

    needs: ClassVar[Needs] = Needs(streams=2, partial=True)

    def check(self, params: Any, shapes: Shapes) -> None:
        super().check(params, shapes)
        chosen_layers(params, shapes)

    def layers(self, params: Any, shapes: Shapes) -> dict[str, list[int]]:
        return chosen_layers(params, shapes)

    def training_streams(self, params: Any, batch: Batch, step: Step) -> Mapping[str, Any]:
        return without_a_stream(batch.streams, params.modality_dropout, step.generator)
