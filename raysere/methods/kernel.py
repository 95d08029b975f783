"""``kernel``: a sum of kernels over layers and streams, and ridge regression on it, solved in
closed form.

    rows (B, T, D) of each layer -> mean | mean and std over valid rows -> (dominant variation
    within classes shrunk) -> feature map of a linear or a Gaussian kernel -> all layers side by
    side -> linear scores -> logits, attributes

Least squares on class indicators with a Gaussian kernel is as good a classifier as a support vector
machine (Suykens and Vandewalle 1999; Rifkin 2002), and a sum of kernels lets every layer speak
without a weight to be learned, in one solution of a linear system. Gaussian kernels are random
Fourier features (:mod:`raysere.nn.random_features`), so that neither the cost nor the stored
weights grow with the training set squared.

Shrinking within classes is that of speaker recognition (Hatch et al. 2006, "WCCN"): what varies
most among utterances of one class (speakers, words) counts less. Here its leading directions only,
with the rest treated as equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.base.errors import ConfigError
from raysere.methods.parts.heads import tempered_prior
from raysere.methods.parts.streams import LayerVectors
from raysere.nn.losses import class_weights, hard_targets
from raysere.nn.random_features import frequencies, gaussian_map
from raysere.nn.ridge import fit_ridge, logit_scale
from raysere.training.method import Batch, ClosedMethod, LoopParams, Prediction, Shapes, Step

DIRECTIONS = 64  # leading directions of the variation within classes
NEAR = 2
_SUBSPACE_STEPS = 4


class KernelParams(LoopParams):
    """One epoch is the solution; learning rate, weight decay, batch, schedule and clipping do
    nothing here.
    """

    epochs: int = Field(1, ge=1, le=1)
    layers: Literal["near", "one", "all"] = Field("near", description=f"the layer at `depth` and {NEAR} on either side, it alone, or all")
    depth: float = Field(0.5, ge=0, le=1, description="place among the layers of a stream: 0 the first, 1 the last")
    pooling: Literal["mean", "mean_std"] = "mean_std"
    kernel: Literal["gaussian", "linear"] = "gaussian"
    gamma: float = Field(0.2, gt=0, le=10, description="exp(-gamma |x - y|^2 / D) of z-normed vectors")
    frequencies: int = Field(1024, ge=16, le=16384, description="of a layer's random Fourier features")
    strength: float = Field(0.3, gt=0, le=1000, description="of the ridge, relative to the variance of the features")
    shrink: float = Field(0.1, ge=0, le=0.95, description="share of the covariance within classes in the metric")
    class_weight: float = Field(1.0, ge=0, le=1, description="alpha of class weights (N / (C n_k))^alpha")


class KernelModel(nn.Module):
    """Vectors of all layers, their metric and feature maps, and linear scores."""

    prior: Tensor
    weights: Tensor
    scale: Tensor

    def __init__(self, params: KernelParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__()
        self.params, self.task, self.names = params, shapes.task, sorted(shapes.streams)
        vectors = [LayerVectors(shapes.streams[name], layers[name], params.pooling) for name in self.names]
        self.vectors = nn.ModuleList(vectors)
        self.splits = [part.widths for part in vectors]  # of the layers of each stream
        self.widths = [width for widths in self.splits for width in widths]
        self.share = [1 / (len(vectors) * len(widths)) for widths in self.splits for _ in widths]  # of a layer in the kernel
        for number, width in enumerate(self.widths if params.shrink else []):
            count = min(DIRECTIONS, width)
            self.register_buffer(f"directions{number}", torch.zeros(width, count))
            self.register_buffer(f"factors{number}", torch.ones(count))
        mapped = [2 * params.frequencies if params.kernel == "gaussian" else width for width in self.widths]
        self.classes = len(shapes.task.classes) if shapes.task.categorical else 0
        outputs = self.classes + (len(shapes.task.attributes) if shapes.task.dimensional else 0)
        self.coefficients = nn.Parameter(torch.zeros(sum(mapped), outputs))
        self.bias = nn.Parameter(torch.cat([torch.zeros(self.classes), torch.full((outputs - self.classes,), 0.5)]))
        self.register_buffer("scale", torch.ones(()))
        prior = torch.tensor(shapes.train_prior or (1.0,) * max(self.classes, 1))
        self.register_buffer("prior", prior / prior.sum(), persistent=False)
        self.register_buffer("weights", class_weights(self.prior, params.class_weight), persistent=False)

    def rows(self, streams: Mapping[str, Any]) -> list[Tensor]:
        """A vector (B, D) a layer."""
        wide = [vectors(streams[name]).float() for name, vectors in zip(self.names, self.vectors, strict=True)]
        return [part for x, widths in zip(wide, self.splits, strict=True) for part in x.split(widths, dim=-1)]

    def mapped(self, rows: list[Tensor]) -> Tensor:
        """Features (B, P) whose dot products are the mean of the layers' kernels."""
        maps = []
        for number, (x, share) in enumerate(zip(rows, self.share, strict=True)):
            if self.params.shrink:
                directions, factors = self.get_buffer(f"directions{number}"), self.get_buffer(f"factors{number}")
                x = x + ((x @ directions) * (factors - 1)) @ directions.T
            if self.params.kernel == "gaussian":
                x = gaussian_map(x, frequencies(x.shape[-1], self.params.frequencies, number).to(x.device), self.params.gamma)
            else:
                x = x / x.shape[-1] ** 0.5
            maps.append(x * share**0.5)
        return torch.cat(maps, dim=-1)

    def scores(self, streams: Mapping[str, Any]) -> Tensor:
        return self.mapped(self.rows(streams)) @ self.coefficients + self.bias

    def learn_metric(self, rows: list[Tensor], label: Tensor) -> None:
        """Leading directions of the covariance within classes of each layer, and how much they
        count.

        With W that covariance (of all rows where there are no classes) and t the mean of its
        eigenvalues, the metric is ``((1 - a) t I + a W)^-1`` with a = ``shrink``, for W of its
        leading directions and the mean of the other eigenvalues, and scaled so that those others
        count 1.
        """
        groups = hard_targets(label, self.classes) if self.classes else torch.ones(len(label), 1, device=label.device)
        share = groups / groups.sum(0).clamp_min(1)
        for number, x in enumerate(rows):
            count = min(DIRECTIONS, x.shape[-1], len(x))
            within = (x - groups @ (share.T @ x)) / max(len(x), 1) ** 0.5
            _, singular, v = torch.svd_lowrank(within, q=min(count + 8, *within.shape), niter=_SUBSPACE_STEPS)
            values, v = singular[:count].square(), v[:, :count]
            total = within.square().sum()
            rest = (total - values.sum()).clamp_min(0) / max(x.shape[-1] - len(values), 1)
            level, share_ = total / x.shape[-1], self.params.shrink
            factors = (((1 - share_) * level + share_ * rest) / ((1 - share_) * level + share_ * values).clamp_min(1e-12)).sqrt()
            self.get_buffer(f"directions{number}").zero_()[:, : len(values)] = v
            self.get_buffer(f"factors{number}").fill_(1.0)[: len(values)] = factors


class Kernel(ClosedMethod):
    """Kernel ridge regression in closed form; see the module."""

    name = "kernel"
    Params = KernelParams

    def check(self, params: KernelParams, shapes: Shapes) -> None:
        if params.sampler != "natural":
            raise ConfigError("A closed form reads all rows once: it has no sampler", where="sampler", choices=["natural"])

    def layers(self, params: KernelParams, shapes: Shapes) -> dict[str, list[int]]:
        return {name: _chosen(params, sorted(stream.layers)) for name, stream in shapes.streams.items()}

    def pools(self, params: KernelParams, shapes: Shapes) -> dict[str, LayerVectors]:
        chosen = self.layers(params, shapes)
        vectors = {name: LayerVectors(stream, chosen[name], params.pooling) for name, stream in shapes.streams.items()}
        return {name: one for name, one in vectors.items() if one.fixed}

    def build(self, params: KernelParams, shapes: Shapes) -> KernelModel:
        return KernelModel(params, shapes, self.layers(params, shapes))

    @staticmethod
    def targets(model: Any, batch: Batch) -> Tensor:
        """(B, outputs): class indicators less 1 / C, then attributes; NaN where an item has no such
        target.
        """
        parts = []
        if model.classes:
            indicators = hard_targets(batch.label, model.classes) - 1 / model.classes
            parts.append(torch.where((batch.label >= 0).unsqueeze(1), indicators, torch.nan))
        if model.task.dimensional:
            none = torch.full((len(batch.label), len(model.task.attributes)), torch.nan, device=batch.label.device)
            parts.append(none if batch.attributes is None else batch.attributes)
        return torch.cat(parts, dim=1)

    @staticmethod
    def item_weights(model: Any, batch: Batch) -> Tensor:
        """(B, outputs): the class weight of an item for its scores of classes, 1 for attributes."""
        ones = torch.ones(len(batch.label), model.bias.shape[0], device=batch.label.device)
        if model.classes:
            ones[:, : model.classes] = model.weights[batch.label.clamp_min(0)].unsqueeze(1)
        return ones

    def solve(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        rows = model.rows(batch.streams)
        if model.params.shrink:
            model.learn_metric(rows, batch.label)
        x, targets, weights = model.mapped(rows), self.targets(model, batch), self.item_weights(model, batch)
        known = ~targets.isnan()
        sizes = [model.classes] * (model.classes > 0) + [1] * (model.bias.shape[0] - model.classes)
        first = 0
        for size in sizes:
            here, columns = known[:, first], slice(first, first + size)
            if bool(here.any()):
                fitted = fit_ridge(x[here], targets[here, columns], weights[here, first], model.params.strength)
                model.coefficients[:, columns], model.bias[columns] = fitted.coefficients, fitted.bias
                if columns.start < model.classes:
                    model.scale.fill_(logit_scale(fitted.left_out, batch.label[here], weights[here, first]))
            first += size
        return self.terms(x @ model.coefficients + model.bias, targets, weights)

    @staticmethod
    def terms(scores: Tensor, targets: Tensor, weights: Tensor) -> dict[str, Tensor]:
        known = ~targets.isnan()
        error = torch.where(known, scores - targets.nan_to_num(), 0.0).square() * weights
        return {"squared": error.sum() / known.sum().clamp_min(1)}

    def losses(self, model: Any, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Mean squared error, weighted by class: what :meth:`solve` minimises besides the ridge."""
        return self.terms(model.scores(batch.streams), self.targets(model, batch), self.item_weights(model, batch))

    def predict(self, model: Any, batch: Batch) -> Prediction:
        scores = model.scores(batch.streams)
        logits = model.scale * scores[:, : model.classes] if model.classes else None
        return Prediction(logits, scores[:, model.classes :].clamp(0, 1) if model.task.dimensional else None)

    def effective_prior(self, params: KernelParams, train_prior: tuple[float, ...]) -> tuple[float, ...]:
        """Proportional to ``pi^(1 - alpha)``, as class weights take away alpha."""
        return tempered_prior(train_prior, 1 - params.class_weight)


def _chosen(params: KernelParams, numbers: list[int]) -> list[int]:
    """The layers of a stream that this configuration reads."""
    if params.layers == "all":
        return numbers
    middle, reach = round(params.depth * (len(numbers) - 1)), NEAR if params.layers == "near" else 0
    return numbers[max(0, middle - reach) : middle + reach + 1]
