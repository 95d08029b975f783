"""Parts shared behind the features: a trunk, a linear head for each task, and the losses
(docs/methods.md 1.3).

    vector (B, W) -> [Linear (LayerNorm) ReLU dropout] x depth -> hidden (B, H) -> C logits | A
    attributes | 2 for gender

A method that ends so gives a :class:`HeadedModel` whose ``forward`` ends in
:meth:`HeadedModel.trunk`, and inherits its losses, predictions, training rows and effective prior
from :class:`HeadedMethod`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.base.errors import ConfigError
from raysere.nn import losses
from raysere.nn.dropout import dropout
from raysere.nn.stacking import LayerNorm, Linear
from raysere.training.method import Batch, LoopParams, Method, Prediction, Shapes, Step
from raysere.training.samplers import balanced_at
from raysere.training.task import Labels, Task

Mixing = tuple[float, Tensor]  # share and order (B,) of a mixup


class HeadParams(LoopParams):
    """Ranges as searched by the challenge teams (docs/methods.md 1.3)."""

    hidden: int = Field(1024, ge=8, le=8192)
    depth: int = Field(1, ge=0, le=2, description="hidden layers; 0 is a linear head")
    dropout: float = Field(0.5, ge=0, le=0.9)
    loss: Literal["ce", "kl", "vs", "logit_adjusted"] = Field(
        "ce", description="cross-entropy, KL to the vote distribution, vector scaling, logit adjustment"
    )
    class_term: float = Field(1.0, gt=0, le=10, description="weight of the class term beside the others")
    class_weight: float = Field(1.0, ge=0, le=1, description="alpha of class weights (N / (C n_k))^alpha")
    focal: float = Field(0.0, ge=0, le=5, description="gamma of (1 - p)^gamma")
    label_smoothing: float = Field(0.0, ge=0, le=0.5)
    vs_gamma: float = Field(0.3, ge=0, le=1, description="gamma of Delta_k = (n_max / n_k)^gamma, loss vs")
    tau: float = Field(1.0, ge=0, le=2, description="weight of log prior, losses vs and logit_adjusted")
    f1_term: float = Field(0.0, ge=0, le=0.5, description="weight of the soft macro-F1 term")
    attribute_term: float = Field(0.3, ge=0, le=1, description="weight of the attributes beside a categorical loss")
    attribute_loss: Literal["ccc", "mse"] = Field("ccc", description="1 - CCC, or the mean squared error in points of a scale of 1 to 7")
    attribute_head: Literal["linear", "sigmoid"] = Field("linear", description="linear and held to the scale, or a sigmoid over the scale")
    gender_term: float = Field(0.0, ge=0, le=1, description="weight of a gender head")
    other: Literal["drop", "soft"] = Field("drop", description="items without an agreed class: left out, or kept by their votes")
    rater_dropout: float = Field(0.0, ge=0, le=0.9, description="probability that a rater's vote is left out, loss kl")
    mixup: float = Field(0.0, ge=0, le=1, description="probability of manifold mixup of a batch, before the last ReLU's input")
    mixup_alpha: float = Field(0.2, gt=0, le=10)


class HeadedModel(nn.Module):
    """Trunk and heads.

    A subclass builds what comes before, then calls :meth:`finish`; its ``forward(streams, mixing)``
    ends in :meth:`trunk`.
    """

    normed: ClassVar[bool] = True  # a LayerNorm in each block of the trunk
    params: Any
    prior: Tensor
    weights: Tensor

    def finish(self, params: HeadParams, shapes: Shapes, width: int) -> None:
        """Trunk and heads of vectors of that width, and the class weights of the training rows."""
        task = shapes.task
        self.params = params
        blocks = []
        for _ in range(params.depth):
            norm = [LayerNorm(params.hidden)] if self.normed else []
            blocks.append(nn.Sequential(Linear(width, params.hidden), *norm))
            width = params.hidden
        self.blocks = nn.ModuleList(blocks)
        self.classes = Linear(width, len(task.classes)) if task.categorical else None
        self.attributes = Linear(width, len(task.attributes)) if task.dimensional else None
        if self.attributes is not None:  # the middle of the scale
            nn.init.constant_(self.attributes.bias, 0.5 if params.attribute_head == "linear" else 0.0)
        self.gender = Linear(width, 2) if params.gender_term else None
        prior = torch.tensor(shapes.train_prior or (1.0,) * max(len(task.classes), 1))
        self.register_buffer("prior", prior / prior.sum(), persistent=False)
        self.register_buffer("weights", losses.class_weights(self.prior, params.class_weight), persistent=False)

    def activation(self, x: Tensor) -> Tensor:
        """Of the trunk."""
        return torch.relu(x)

    def trunk(self, x: Tensor, mixing: Mixing | None = None) -> Tensor:
        """Last hidden vector (B, H) of x (B, W); ``mixing`` mixes items before the last
        non-linearity (docs/methods.md 1.5).
        """
        for number, block in enumerate(self.blocks):
            x = block(x)
            if mixing is not None and number == len(self.blocks) - 1:
                x = losses.mix(x, *mixing)
            x = dropout(self.activation(x), self.params.dropout, self.training)
        return losses.mix(x, *mixing) if mixing is not None and not len(self.blocks) else x

    def attribute_values(self, hidden: Tensor) -> Tensor:
        """Attributes (B, A), 0 to 1 over the scale; a linear head may leave it."""
        assert self.attributes is not None  # whoever asks has a dimensional task
        values = self.attributes(hidden)
        return torch.sigmoid(values) if self.params.attribute_head == "sigmoid" else values


class HeadedMethod(Method):
    """A method whose modules are :class:`HeadedModel` and whose ``Params`` extend
    :class:`HeadParams`.
    """

    def check(self, params: Any, shapes: Shapes) -> None:
        if params.sampler != "natural" and not shapes.task.categorical:
            raise ConfigError(
                f"The sampler {params.sampler!r} needs classes, and the task is dimensional", where="sampler", choices=["natural"]
            )

    def train_rows(self, params: Any, labels: Labels, rows: np.ndarray, task: Task) -> np.ndarray:
        return rows[labels.has_target(task, soft=params.other == "soft")[rows]]

    def training_streams(self, params: Any, batch: Batch, step: Step) -> Mapping[str, Any]:
        """What the module sees in training; a hook for what hides or disturbs features."""
        return batch.streams

    def losses(self, model: Any, batch: Batch, step: Step) -> dict[str, Tensor]:
        params: HeadParams = model.params
        mixing = losses.mixup_draw(len(batch.label), params.mixup, params.mixup_alpha, step.generator)
        if mixing is not None:
            mixing = (mixing[0], mixing[1].to(batch.label.device))
        hidden = model(self.training_streams(params, batch, step), mixing)
        terms: dict[str, Tensor] = {}
        if model.classes is not None:
            terms |= _class_terms(model, model.classes(hidden).float(), batch, step, mixing)
        if model.attributes is not None and batch.attributes is not None:
            target = batch.attributes if mixing is None else losses.mix(batch.attributes, *mixing)
            share = params.attribute_term if model.classes is not None else 1.0
            if share:
                term = losses.ccc_loss if params.attribute_loss == "ccc" else losses.attribute_mse
                terms["attributes"] = share * term(model.attribute_values(hidden), target)
        if model.gender is not None:
            sex = losses.hard_targets(batch.sex, 2)
            sex = sex if mixing is None else losses.mix(sex, *mixing)
            terms["gender"] = params.gender_term * losses.cross_entropy(model.gender(hidden), sex)
        return terms

    def predict(self, model: Any, batch: Batch) -> Prediction:
        hidden = model(batch.streams)
        logits = None if model.classes is None else model.classes(hidden).float()
        attributes = None if model.attributes is None else model.attribute_values(hidden).float().clamp(0, 1)
        return Prediction(logits, attributes)

    def effective_prior(self, params: Any, train_prior: tuple[float, ...]) -> tuple[float, ...]:
        """Proportional to ``pi^(1 - alpha - tau)``: class weights take away alpha, the log prior of
        a training-time adjustment tau; uniform where the sampler is balanced (docs/methods.md 1.6).
        """
        exponent = 1 - params.class_weight - (params.tau if params.loss in ("vs", "logit_adjusted") else 0)
        return tempered_prior(train_prior, exponent if params.sampler == "natural" else 0)


def tempered_prior(prior: tuple[float, ...], exponent: float) -> tuple[float, ...]:
    """``pi^exponent``, normalised; empty without classes."""
    shares = np.maximum(np.asarray(prior, dtype=np.float64), 1e-6) ** exponent
    return tuple((shares / shares.sum()).tolist())


def _class_terms(model: HeadedModel, logits: Tensor, batch: Batch, step: Step, mixing: Mixing | None) -> dict[str, Tensor]:
    params = model.params
    # a balanced epoch shows every class equally often: weights and priors of the natural shares
    # would correct twice
    balanced = balanced_at(params.sampler, step.epoch)
    weights = None if balanced or not params.class_weight else model.weights
    plain = params.loss == "ce" and params.other == "drop" and not (params.focal or params.label_smoothing or params.f1_term)
    if plain and mixing is None and model.attributes is None and logits.dim() == 2:
        # the published loss in one call: every row has a class here
        return {"class": _weighed(nn.functional.cross_entropy(logits, batch.label, weights, ignore_index=-1), params.class_term)}
    targets = losses.smooth(_targets(params, batch, step, logits.shape[-1]), params.label_smoothing)
    if mixing is not None:
        targets = losses.mix(targets, *mixing)
    trained = logits
    if params.loss in ("vs", "logit_adjusted") and not balanced:
        trained = losses.adjusted_logits(logits, model.prior, tau=params.tau, gamma=params.vs_gamma if params.loss == "vs" else 0.0)
    value = losses.cross_entropy(trained, targets, weights=weights, gamma=params.focal, divergence=params.loss == "kl")
    terms = {"class": _weighed(value, params.class_term)}
    if params.f1_term:
        terms["f1"] = params.f1_term * losses.soft_macro_f1(logits, targets)
    return terms


def _weighed(value: Tensor, weight: float) -> Tensor:
    return value if weight == 1 else weight * value


def _targets(params: HeadParams, batch: Batch, step: Step, classes: int) -> Tensor:
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
