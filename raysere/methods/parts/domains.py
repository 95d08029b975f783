"""Parts shared by methods for a labelled source and an unlabelled target (docs/methods.md 5).

    streams -> one vector h (B, D) -> f = dropout(ReLU(LN(W1 h))) (B, H) -> logits = W2 f (B, C)

Layer norm, not batch norm: statistics of mixed batches leak the domain and act as an adaptation of
their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.base.errors import ConfigError
from raysere.methods.parts.heads import tempered_prior
from raysere.methods.parts.streams import StreamParams, StreamPool, chosen_layers, layer_weights
from raysere.nn import alignment, losses
from raysere.training.method import Batch, Feed, Method, Needs, Prediction, Shapes, Step


class DomainParams(StreamParams):
    """Published or our own defaults of 0.2.

    ``patience`` does nothing: the last epoch is kept, as no label tells a better one.
    """

    weight_decay: float = Field(1e-3, ge=0, le=10)
    epochs: int = Field(30, ge=1, le=10000)
    normalise: Literal["none", "corpus", "speaker", "domain"] = "domain"
    layers: Literal["mix", "one", "top", "concat"] = "one"
    pooling: Literal["mean", "mean_std"] = "mean"
    hidden: int = Field(256, ge=8, le=4096, description="width of the trunk")
    dropout: float = Field(0.3, ge=0, le=0.9)
    class_weight: float = Field(1.0, ge=0, le=1, description="alpha of source class weights (N / (C n_k))^alpha")
    label_smoothing: float = Field(0.1, ge=0, le=0.5)
    balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far the target's answers are moved towards even shares of the classes; wrong where shares are uneven",
    )


class Trunk(nn.Module):
    """``f`` (B, H) of h (B, D), and logits of it."""

    def __init__(self, width: int, classes: int, params: Any) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, params.hidden), nn.LayerNorm(params.hidden), nn.ReLU(), nn.Dropout(params.dropout))
        self.classes = nn.Linear(params.hidden, classes)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(f, logits)."""
        f = self.hidden(h)
        return f, self.classes(f)


class SourceModel(nn.Module):
    """What the class loss on the source needs: the shares of its classes, and their weights."""

    prior: Tensor
    weights: Tensor
    offset: Tensor  # (C,) of the target's logits, see ``balance``

    def __init__(self, params: Any, shapes: Shapes) -> None:
        super().__init__()
        self.params, self.count = params, len(shapes.task.classes)
        prior = torch.tensor(shapes.train_prior or (1.0,) * self.count)
        self.register_buffer("prior", prior / prior.sum(), persistent=False)
        self.register_buffer("weights", losses.class_weights(self.prior, params.class_weight), persistent=False)
        self.register_buffer("offset", torch.zeros(self.count))

    def class_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Weighted cross-entropy of source items with smoothed labels."""
        targets = losses.smooth(losses.hard_targets(label, self.count), self.params.label_smoothing)
        return losses.cross_entropy(logits, targets, weights=self.weights)


class DomainModel(SourceModel):
    """Vectors of all streams side by side. A subclass has a :class:`Trunk`."""

    def __init__(self, params: Any, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__(params, shapes)
        self.names = list(shapes.streams)
        pools = [StreamPool(shapes.streams[name], layers[name], params, params.hidden) for name in self.names]
        self.pools = nn.ModuleList(pools)
        self.width = sum(pool.width for pool in pools)

    def vector(self, streams: Mapping[str, Any]) -> Tensor:
        """h (B, ``width``)."""
        parts = [pool(streams[name]) for name, pool in zip(self.names, self.pools, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def layer_weights(self) -> dict[str, dict[int, float]]:
        """Share of each layer by stream, where shares are learned."""
        return layer_weights(self.names, self.pools)


class DomainMethod(Method):
    """A method that learns from a labelled source and unlabelled target items; classes only."""

    needs = Needs(target_domain=True)

    def check(self, params: Any, shapes: Shapes) -> None:
        if shapes.task.kind != "categorical":
            raise ConfigError(f"The method {self.name!r} tells classes, and the task has attributes", where="task.kind")
        chosen_layers(params, shapes)

    def layers(self, params: Any, shapes: Shapes) -> dict[str, list[int]]:
        return chosen_layers(params, shapes)

    def pools(self, params: Any, shapes: Shapes) -> dict[str, StreamPool]:
        """Streams whose vector no weight enters."""
        chosen = self.layers(params, shapes)
        pools = {name: StreamPool(stream, chosen[name], params, params.hidden) for name, stream in shapes.streams.items()}
        return {name: pool for name, pool in pools.items() if pool.fixed}

    def begin_epoch(self, model: Any, feed: Feed, epoch: int, seed: int) -> None:
        """Before the last epoch: what evens the target's answers."""
        own = self.source_model(model)
        if own.params.balance and epoch == own.params.epochs - 1:
            logits = torch.cat([model(batch)[1] for batch in feed.target()]).float()
            own.offset.copy_(own.params.balance * alignment.even_offset(logits))

    def source_model(self, model: Any) -> SourceModel:
        """The part of the model that knows the classes."""
        return model

    def predict(self, model: Any, batch: Batch) -> Prediction:
        hidden, logits = model(batch)
        offset = self.source_model(model).offset
        if batch.is_target_domain is not None:  # a clip of the source keeps its answer
            offset = offset * batch.is_target_domain.unsqueeze(1)
        return Prediction(logits + offset, hidden=hidden)

    def effective_prior(self, params: Any, train_prior: tuple[float, ...]) -> tuple[float, ...]:
        """Proportional to ``pi^(1 - alpha)``, as class weights take away alpha; even with a
        balanced sampler.
        """
        return tempered_prior(train_prior, 0.0 if params.sampler == "balanced" else 1 - params.class_weight)


def progress(step: Step) -> float:
    """Strength of adaptation, 0 at the first step and almost 1 at the last."""
    return alignment.ramp(step.step / max(step.total - 1, 1))
