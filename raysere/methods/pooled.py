"""``pooled``: layers mixed, rows pooled, one small network. The challenge baseline on frozen features (papers 3.2, 3.5).

    rows (B, T, D) of L layers -> softmax-weighted mix, one layer, the sum of four, or all side by side
    -> mean | mean and std | attentive statistics over valid rows -> dropout -> [Linear LayerNorm ReLU dropout] x depth -> heads

The defaults are the published baseline, adapted to frozen features ("our version" of papers 3.2): learned layer weights,
mean and standard deviation, one hidden layer of 1,024, dropout .5, cross-entropy with weights N / (C n_k). What differs is
the learning rate: the published 1e-5 tunes a whole transformer, a fresh head on frozen features needs 1e-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.errors import ConfigError
from raysere.training import losses
from raysere.training.dropout import Dropout, dropout
from raysere.training.method import Batch, LoopParams, Method, Prediction, Shapes, Step, StreamShape
from raysere.training.pooling import AttentiveStatistics, masked_mean, masked_mean_std, pooled_dim
from raysere.training.samplers import balanced_at
from raysere.training.stacking import LayerNorm, Linear
from raysere.training.task import Labels, Task

TOP = 4  # layers of the equal-weight sum (papers 3.5)
MIX_GAIN = 10.0  # the mix is softmax(10 w): at the heads' learning rate plain weights would hardly leave their start in 30 short epochs


class PooledParams(LoopParams):
    """Ranges as searched by the challenge teams (papers 3.5). ``layer`` counts from the input; 0 enters the first block."""

    layers: Literal["mix", "one", "top", "concat"] = Field(
        "mix", description="learned softmax weights over all layers, one layer, equal sum of four from `layer` on, all side by side"
    )
    layer: int | None = Field(None, ge=0, description="for one and top; default: the last layer, the last four")
    pooling: Literal["mean", "mean_std", "attentive"] = "mean_std"
    bottleneck: int = Field(128, ge=8, le=1024, description="width of the attention of attentive pooling")
    hidden: int = Field(1024, ge=8, le=8192)
    depth: int = Field(1, ge=0, le=2, description="hidden layers; 0 is a linear head")
    dropout: float = Field(0.5, ge=0, le=0.9)
    loss: Literal["ce", "kl", "vs", "logit_adjusted"] = Field(
        "ce", description="cross-entropy, KL to the vote distribution, vector scaling, logit adjustment"
    )
    class_weight: float = Field(1.0, ge=0, le=1, description="alpha of class weights (N / (C n_k))^alpha")
    focal: float = Field(0.0, ge=0, le=5, description="gamma of (1 - p)^gamma")
    label_smoothing: float = Field(0.0, ge=0, le=0.5)
    vs_gamma: float = Field(0.3, ge=0, le=1, description="gamma of Delta_k = (n_max / n_k)^gamma, loss vs")
    tau: float = Field(1.0, ge=0, le=2, description="weight of log prior, losses vs and logit_adjusted")
    f1_term: float = Field(0.0, ge=0, le=0.5, description="weight of the soft macro-F1 term")
    attribute_term: float = Field(0.3, ge=0, le=1, description="weight of 1 - CCC beside a categorical loss")
    gender_term: float = Field(0.0, ge=0, le=1, description="weight of a gender head")
    other: Literal["drop", "soft"] = Field("drop", description="items without an agreed class: left out, or kept by their votes")
    rater_dropout: float = Field(0.0, ge=0, le=0.9, description="probability that a rater's vote is left out, loss kl")
    mixup: float = Field(0.0, ge=0, le=1, description="probability of manifold mixup of a batch, before the last ReLU's input")
    mixup_alpha: float = Field(0.2, gt=0, le=10)


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


class StreamPool(nn.Module):
    """One feature stream (B, T, D) of some layers to one vector (B, ``width``)."""

    def __init__(self, shape: StreamShape, numbers: list[int], params: PooledParams) -> None:
        super().__init__()
        self.numbers, self.kind, self.pooling, self.flat = numbers, params.layers, params.pooling, shape.granularity == "utterance"
        # utterance granularity: rows are pooled already, and of [mean; std] plain mean keeps the first half
        halves = self.flat and params.pooling == "mean"
        self.take = [shape.layers[number] // 2 if halves and shape.stats_of(number) == 2 else shape.layers[number] for number in numbers]
        self.mix = LayerMix(self.take, params.hidden) if self.kind == "mix" and len(numbers) > 1 else None
        dim = self.mix.dim if self.mix else sum(self.take) if self.kind == "concat" else self.take[0]
        self.attention = AttentiveStatistics(dim, params.bottleneck) if self.pooling == "attentive" else None
        self.width = dim if self.flat else pooled_dim(self.pooling, dim)

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
        layers = [stream.layers[number] for number in self.numbers]
        if self.flat:
            layers = [x[..., 0, :take] for x, take in zip(layers, self.take, strict=True)]
        if len(layers) == 1:
            x = layers[0]
        elif self.mix is not None:
            x = self.mix(layers)
        else:
            x = torch.cat(layers, dim=-1) if self.kind == "concat" else torch.stack(layers).mean(0)
        if self.flat:
            return x
        if self.attention is not None:
            return self.attention(x, stream.mask)
        return masked_mean(x, stream.mask) if self.pooling == "mean" else masked_mean_std(x, stream.mask)


class PooledModel(nn.Module):
    """Streams pooled and put side by side, a trunk, and a linear head a task."""

    params: PooledParams
    prior: Tensor
    weights: Tensor

    def __init__(self, params: PooledParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__()
        task = shapes.task
        self.names = list(shapes.streams)
        self.params = params
        pools = [StreamPool(shapes.streams[name], layers[name], params) for name in self.names]
        self.pools = nn.ModuleList(pools)
        width = sum(pool.width for pool in pools)
        self.first = Dropout(params.dropout)
        blocks = []
        for _ in range(params.depth):
            blocks.append(nn.Sequential(Linear(width, params.hidden), LayerNorm(params.hidden)))
            width = params.hidden
        self.blocks = nn.ModuleList(blocks)
        self.classes = Linear(width, len(task.classes)) if task.categorical else None
        self.attributes = Linear(width, len(task.attributes)) if task.dimensional else None
        if self.attributes is not None:
            nn.init.constant_(self.attributes.bias, 0.5)  # the middle of the scale
        self.gender = Linear(width, 2) if params.gender_term else None
        self.dropout = params.dropout
        prior = torch.tensor(shapes.train_prior or (1.0,) * max(len(task.classes), 1))
        self.register_buffer("prior", prior / prior.sum(), persistent=False)
        self.register_buffer("weights", losses.class_weights(self.prior, params.class_weight), persistent=False)

    def forward(self, streams: Mapping[str, Any], mixing: tuple[float, Tensor] | None = None) -> Tensor:
        """Last hidden vector (B, H); ``mixing`` blends the items of the batch before the last non-linearity (papers 3.4)."""
        pooled = [pool(streams[name]) for name, pool in zip(self.names, self.pools, strict=True)]
        x = self.first(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1))
        for number, block in enumerate(self.blocks):
            x = block(x)
            if mixing is not None and number == len(self.blocks) - 1:
                x = losses.mix(x, *mixing)
            x = dropout(torch.relu(x), self.dropout, self.training)
        return losses.mix(x, *mixing) if mixing is not None and not len(self.blocks) else x

    def layer_weights(self) -> dict[str, dict[int, float]]:
        """Share of each layer by stream, where shares are learned."""
        result = {}
        for name, pool in zip(self.names, self.pools, strict=True):
            if isinstance(pool, StreamPool) and pool.mix is not None:
                result[name] = dict(zip(pool.numbers, pool.mix.shares().tolist(), strict=True))
        return result


class Pooled(Method):
    """The challenge baseline family; see the module."""

    name = "pooled"
    Params = PooledParams

    def check(self, params: PooledParams, shapes: Shapes) -> None:
        if params.pooling == "attentive":
            flat = [name for name, stream in shapes.streams.items() if stream.granularity == "utterance"]
            if flat:
                raise ConfigError(
                    f"Attentive pooling needs rows over time, and the features {', '.join(flat)} have one row an utterance",
                    where="pooling",
                    choices=["mean", "mean_std"],
                    remedy="Set granularity: chunk or frame for these features, or choose another pooling.",
                )
        if params.sampler != "natural" and not shapes.task.categorical:
            raise ConfigError(
                f"The sampler {params.sampler!r} needs classes, and the task is dimensional", where="sampler", choices=["natural"]
            )
        for name, numbers in self.layers(params, shapes).items():
            widths = {shapes.streams[name].layers[number] for number in numbers}
            if params.layers == "top" and len(widths) > 1:
                raise ConfigError(
                    f"layers: top sums layers, and those of the features {name!r} are of different width ({sorted(widths)})",
                    where="layers",
                    choices=["mix", "one", "concat"],
                )

    def layers(self, params: PooledParams, shapes: Shapes) -> dict[str, list[int]]:
        return {name: _chosen(params, name, sorted(stream.layers)) for name, stream in shapes.streams.items()}

    def pools(self, params: PooledParams, shapes: Shapes) -> dict[str, StreamPool]:
        """Streams of which one layer, a sum or layers side by side are pooled by mean or mean and deviation."""
        chosen = self.layers(params, shapes)
        pools = {name: StreamPool(stream, chosen[name], params) for name, stream in shapes.streams.items()}
        return {name: pool for name, pool in pools.items() if pool.fixed}

    def stacks(self, params: PooledParams, shapes: Shapes) -> bool:
        """Rows over time are padded per batch, and mixup and rater dropout draw per fold: those train one fold after the other."""
        drawn = params.mixup or (params.rater_dropout and params.loss == "kl")
        pooled = self.pools(params, shapes)
        return not drawn and all(name in pooled or stream.granularity == "utterance" for name, stream in shapes.streams.items())

    def train_rows(self, params: PooledParams, labels: Labels, rows: np.ndarray, task: Task) -> np.ndarray:
        return rows[labels.has_target(task, soft=params.other == "soft")[rows]]

    def build(self, params: PooledParams, shapes: Shapes) -> PooledModel:
        return PooledModel(params, shapes, self.layers(params, shapes))

    def losses(self, model: Any, batch: Batch, step: Step) -> dict[str, Tensor]:
        params: PooledParams = model.params
        mixing = losses.mixup_draw(len(batch.label), params.mixup, params.mixup_alpha, step.generator)
        if mixing is not None:
            mixing = (mixing[0], mixing[1].to(batch.label.device))
        hidden = model(batch.streams, mixing)
        terms: dict[str, Tensor] = {}
        if model.classes is not None:
            terms |= self._class_terms(model, model.classes(hidden).float(), batch, step, mixing)
        if model.attributes is not None and batch.attributes is not None:
            target = batch.attributes if mixing is None else losses.mix(batch.attributes, *mixing)
            share = params.attribute_term if model.classes is not None else 1.0
            if share:
                terms["attributes"] = share * losses.ccc_loss(model.attributes(hidden), target)
        if model.gender is not None:
            sex = losses.hard_targets(batch.sex, 2)
            sex = sex if mixing is None else losses.mix(sex, *mixing)
            terms["gender"] = params.gender_term * losses.cross_entropy(model.gender(hidden), sex)
        return terms

    def _class_terms(
        self, model: PooledModel, logits: Tensor, batch: Batch, step: Step, mixing: tuple[float, Tensor] | None
    ) -> dict[str, Tensor]:
        params = model.params
        # a balanced epoch shows every class equally often: weights and priors of the natural shares would correct twice
        balanced = balanced_at(params.sampler, step.epoch)
        weights = None if balanced or not params.class_weight else model.weights
        plain = params.loss == "ce" and params.other == "drop" and not (params.focal or params.label_smoothing or params.f1_term)
        if (
            plain and mixing is None and model.attributes is None and logits.dim() == 2
        ):  # the published loss in one call: every row has a class here
            return {"class": nn.functional.cross_entropy(logits, batch.label, weights, ignore_index=-1)}
        targets = losses.smooth(self._targets(params, batch, step, logits.shape[-1]), params.label_smoothing)
        if mixing is not None:
            targets = losses.mix(targets, *mixing)
        trained = logits
        if params.loss in ("vs", "logit_adjusted") and not balanced:
            trained = losses.adjusted_logits(logits, model.prior, tau=params.tau, gamma=params.vs_gamma if params.loss == "vs" else 0.0)
        terms = {"class": losses.cross_entropy(trained, targets, weights=weights, gamma=params.focal, divergence=params.loss == "kl")}
        if params.f1_term:
            terms["f1"] = params.f1_term * losses.soft_macro_f1(logits, targets)
        return terms

    @staticmethod
    def _targets(params: PooledParams, batch: Batch, step: Step, classes: int) -> Tensor:
        hard = losses.hard_targets(batch.label, classes)
        if batch.soft is None or (params.loss != "kl" and params.other == "drop"):
            return hard
        votes = batch.soft
        if params.rater_dropout and params.loss == "kl" and batch.votes is not None:
            votes = losses.drop_raters(votes, batch.votes, params.rater_dropout, losses.device_generator(step.generator, votes.device))
        soft = losses.vote_targets(batch.label, votes)
        if params.other == "drop":
            soft = soft * (batch.label >= 0).unsqueeze(-1)
        return soft if params.loss == "kl" else torch.where((batch.label >= 0).unsqueeze(-1), hard, soft)

    def predict(self, model: Any, batch: Batch) -> Prediction:
        hidden = model(batch.streams)
        logits = None if model.classes is None else model.classes(hidden).float()
        attributes = None if model.attributes is None else model.attributes(hidden).float().clamp(0, 1)
        return Prediction(logits, attributes)

    def effective_prior(self, params: PooledParams, train_prior: tuple[float, ...]) -> tuple[float, ...]:
        """Proportional to ``pi^(1 - alpha - tau)``: class weights take away alpha, the log prior of a training-time adjustment
        tau; uniform where the sampler is balanced (papers 3.7 step 1)."""
        if not train_prior or params.sampler != "natural":
            return (1 / len(train_prior),) * len(train_prior) if train_prior else ()
        exponent = 1 - params.class_weight - (params.tau if params.loss in ("vs", "logit_adjusted") else 0)
        shares = np.maximum(np.asarray(train_prior, dtype=np.float64), 1e-6) ** exponent
        return tuple((shares / shares.sum()).tolist())


def _chosen(params: PooledParams, stream: str, numbers: list[int]) -> list[int]:
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
