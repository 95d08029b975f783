"""``layer_anchoring``: chosen layers of a backbone are brought together across languages, each
through an adaptor (docs/methods.md 8).

    X (B, L, D) -> anchors A -> g_l: Linear, LN, GELU -> A_l (B, n, d_a) -> fused -> trunk -> logits
    L = CE_S + r(p) lam (1 / n) sum_{l in A} L_align(A_l^S, A_l^T)

After Upadhyay, Busso and Lee (2024). The similarity of layers, the rule of choice, lam and the head
are ours. The backbone is frozen, so CORAL on its layers would be constant: the adaptors learn.

CORAL of a batch is mostly noise (docs/methods.md 8.4), so covariances are running means, with the
gradient of the batch's part at full strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.base.errors import ConfigError
from raysere.methods.parts.domains import DomainMethod, DomainParams, SourceModel, Trunk, progress
from raysere.methods.parts.streams import LayerVectors
from raysere.nn import alignment, losses
from raysere.nn.anchors import AnchorKind, choose_anchors
from raysere.nn.ridge import fit_ridge
from raysere.training import metrics
from raysere.training.method import Batch, Feed, Shapes, Step

MEASURED = ("topk", "least_similar")  # kinds that always look at the training rows; group and single do without `start`
_FOLDS, _STRENGTH = 5, 0.3


class AnchoringParams(DomainParams):
    """See docs/methods.md 8.3.

    ``weight: 0`` at the same anchors is the control that tells the choice of layers from their
    alignment.
    """

    balance: float = Field(0.5, ge=0, le=1)
    layers: Literal["one"] = Field("one", description="chosen by `anchors`")
    layer: None = None
    anchors: Literal["group", "single", "final", "topk", "all", "learned", "cross", "random_group", "least_similar"] = "group"
    start: int | None = Field(None, ge=0, description="first layer of group, single and cross; None measures the best")
    span: int = Field(3, ge=1, le=64, description="layers of a group, of topk and of the controls")
    shift: int = Field(1, ge=-64, le=64, description="cross: by how many layers the target's anchors lie higher")
    gamma: float = Field(1.0, ge=0, le=10, description="weight of the similarity beside the relevance where anchors are measured")
    width: int = Field(128, ge=8, le=1024, description="d_a, of an adaptor")
    weight: float = Field(100.0, ge=0, le=1e5, description="lam; CORAL's values are small (4.4)")
    align: Literal["coral", "coral_mean", "mean", "mmd"] = "coral"
    memory: float = Field(0.95, ge=0, lt=1, description="of covariances and means")
    fuse: Literal["softmax", "mean", "concat", "final"] = Field("softmax", description="final: the mean beside the last layer")


def sparsemax(scores: Tensor) -> Tensor:
    """Euclidean projection of scores (L,) onto the simplex: a softmax that gives zeros (Martins and
    Astudillo 2016).
    """
    ordered, _ = scores.sort(descending=True)
    count = torch.arange(1, len(scores) + 1, device=scores.device, dtype=scores.dtype)
    inside = 1 + count * ordered > ordered.cumsum(0)
    size = int(inside.sum())
    return (scores - (ordered[:size].sum() - 1) / size).clamp_min(0)


class AnchoringModel(SourceModel):
    """Adaptors of the anchors, their fusion, and a trunk."""

    chosen: Tensor

    def __init__(self, params: AnchoringParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__(params, shapes)
        self.name = next(iter(shapes.streams))
        self.numbers = layers[self.name]
        self.vectors = LayerVectors(shapes.streams[self.name], self.numbers, params.pooling)
        size = {"single": 1, "final": 1, "all": len(self.numbers), "learned": len(self.numbers)}.get(params.anchors, params.span)
        self.size = min(size, len(self.numbers))
        first = self.numbers.index(params.start) if params.start is not None else 0
        start = len(self.numbers) - 1 if params.anchors == "final" else first
        self.register_buffer("chosen", torch.arange(self.size) + min(start, len(self.numbers) - self.size))
        self.adaptors = nn.ModuleList(self._adaptor() for _ in range(self.size))
        self.last = self._adaptor() if params.fuse == "final" else None
        self.mix = nn.Parameter(torch.zeros(self.size)) if params.fuse == "softmax" or params.anchors == "learned" else None
        self.trunk = Trunk(params.width * {"concat": self.size, "final": 2}.get(params.fuse, 1), self.count, params)
        self.running: dict[str, Tensor] = {}

    def _adaptor(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.vectors.widths[0], self.params.width), nn.LayerNorm(self.params.width), nn.GELU())

    def stacked(self, batch: Batch) -> Tensor:
        """X (B, L, D) of the layers that are read."""
        x = self.vectors(batch.streams[self.name])
        return x.view(len(x), len(self.numbers), -1)

    def shares(self) -> Tensor:
        """Weight of each anchor (n,)."""
        if self.mix is None:
            return torch.full((self.size,), 1 / self.size, device=self.chosen.device)
        return sparsemax(self.mix + 1 / self.size) if self.params.anchors == "learned" else torch.softmax(self.mix, dim=0)

    def anchored(self, x: Tensor, is_target_domain: Tensor | None) -> Tensor:
        """A (B, n, d_a) of X (B, L, D)."""
        own = x[:, self.chosen]
        if self.params.anchors == "cross":
            there = x[:, (self.chosen + self.params.shift).clamp(0, len(self.numbers) - 1)]
            own = there if is_target_domain is None else torch.where(is_target_domain.view(-1, 1, 1), there, own)
        return torch.stack([adaptor(own[:, number]) for number, adaptor in enumerate(self.adaptors)], dim=1)

    def answer(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """(f, logits) of X and its anchors."""
        if self.params.fuse == "concat":
            return self.trunk(a.flatten(1))
        mixed = (a * self.shares().unsqueeze(1)).sum(1)
        if self.last is not None:
            mixed = torch.cat([mixed, self.last(x[:, -1])], dim=1)
        return self.trunk(mixed)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x = self.stacked(batch)
        return self.answer(x, self.anchored(x, batch.is_target_domain))

    def kept(self, name: str, fresh: Tensor) -> Tensor:
        """Running mean of a statistic, with the gradient of the fresh one."""
        memory = self.params.memory
        before = self.running.get(name)
        value = fresh if before is None else (1 - memory) * fresh + memory * before
        self.running[name] = value.detach()
        return value

    def layer_weights(self) -> dict[str, dict[int, float]]:
        """Share of each anchor by layer number."""
        shares = self.shares().tolist()
        found = dict.fromkeys(self.numbers, 0.0)
        for place, share in zip(self.chosen.tolist(), shares, strict=True):
            found[self.numbers[place]] += share
        return {self.name: found}


class LayerAnchoring(DomainMethod):
    """Aligned anchor layers; see the module."""

    name = "layer_anchoring"
    Params = AnchoringParams

    def check(self, params: AnchoringParams, shapes: Shapes) -> None:
        super().check(params, shapes)
        if len(shapes.streams) != 1:
            raise ConfigError(
                f"Anchors are layers of one feature, and this search names {len(shapes.streams)}", choices=list(shapes.streams)
            )
        stream = next(iter(shapes.streams.values()))
        if len(set(stream.layers.values())) > 1:
            raise ConfigError("Anchors are layers of one width", where="features", choices=sorted(set(stream.layers.values())))
        if params.start is not None and params.start not in stream.layers:
            raise ConfigError(f"The features have no layer {params.start}", where="start", choices=sorted(stream.layers))

    def layers(self, params: AnchoringParams, shapes: Shapes) -> dict[str, list[int]]:
        return {name: self._read(params, sorted(stream.layers)) for name, stream in shapes.streams.items()}

    @staticmethod
    def _read(params: AnchoringParams, numbers: list[int]) -> list[int]:
        """All layers, unless the configuration names its anchors: then these, and the last where it
        is used.
        """
        if params.anchors == "final":
            return numbers[-1:]
        if params.anchors in ("group", "single") and params.start is not None:
            first = numbers.index(params.start)
            span = 1 if params.anchors == "single" else params.span
            own = numbers[max(0, min(first, len(numbers) - span)) : first + span]
            return own if params.fuse != "final" or numbers[-1] in own else [*own, numbers[-1]]
        return numbers

    def pools(self, params: AnchoringParams, shapes: Shapes) -> dict[str, LayerVectors]:  # type: ignore[override]
        chosen = self.layers(params, shapes)
        vectors = {name: LayerVectors(stream, chosen[name], params.pooling) for name, stream in shapes.streams.items()}
        return {name: one for name, one in vectors.items() if one.fixed}

    def build(self, params: AnchoringParams, shapes: Shapes) -> AnchoringModel:
        return AnchoringModel(params, shapes, self.layers(params, shapes))

    def begin_epoch(self, model: Any, feed: Feed, epoch: int, seed: int) -> None:
        """Before the first step: which layers are anchors, where the configuration leaves it open."""
        super().begin_epoch(model, feed, epoch, seed)
        params = model.params
        measured = params.anchors in MEASURED or (params.anchors in ("group", "single", "cross") and params.start is None)
        if epoch or not (measured or params.anchors == "random_group"):
            return
        source = list(feed.source())
        x = torch.cat([model.stacked(batch) for batch in source]).float()
        label, speaker = (torch.cat([getattr(batch, name) for batch in source]) for name in ("label", "speaker"))
        target = torch.cat([model.stacked(batch) for batch in feed.target()]).float()
        relevance = [relevance_of(x[:, layer], label, speaker, model.count) for layer in range(len(model.numbers))]
        similarity = [-covariance_gap(x[:, layer], target[:, layer]) for layer in range(len(model.numbers))]
        kind: AnchorKind = "group" if params.anchors == "cross" else params.anchors
        model.chosen.copy_(torch.tensor(choose_anchors(relevance, similarity, kind, params.span, params.gamma, seed=seed % 2**32)))

    def losses(self, model: Any, batch: Batch, step: Step) -> dict[str, Tensor]:
        params = model.params
        x = model.stacked(batch)
        a = model.anchored(x, batch.is_target_domain)
        _, logits = model.answer(x, a)
        terms = {"class": model.class_loss(logits, batch.label)}
        if params.weight and batch.unlabelled is not None:
            b = model.anchored(model.stacked(batch.unlabelled), batch.unlabelled.is_target_domain)
            gap = layer_gap(model, a, b)
            shares = model.shares().detach() if params.anchors == "learned" else torch.full_like(gap, 1 / len(gap))
            terms["alignment"] = progress(step) * params.weight * (gap * shares).sum()
        return terms


def layer_gap(model: AnchoringModel, a: Tensor, b: Tensor) -> Tensor:
    """L_align (n,) of each anchor between A (B, n, d) of the source and of the target."""
    params = model.params
    if params.align == "mmd":
        return torch.stack([alignment.mmd(a[:, number], b[:, number]) for number in range(a.shape[1])])
    value = torch.zeros(a.shape[1], device=a.device)
    if params.align != "mean":
        gap = model.kept("source", covariances(a)) - model.kept("target", covariances(b))
        value = value + gap.square().sum((1, 2)) / (4 * a.shape[2] ** 2)
    if params.align != "coral":
        value = value + (model.kept("source mean", a.mean(0)) - model.kept("target mean", b.mean(0))).square().mean(1)
    return value.detach() + (value - value.detach()) / (1 - params.memory)


def covariances(a: Tensor) -> Tensor:
    """Unbiased (n, d, d) of A (B, n, d)."""
    centred = a - a.mean(0)
    return torch.einsum("bnd,bne->nde", centred, centred) / max(len(a) - 1, 1)


def covariance_gap(x: Tensor, y: Tensor) -> float:
    """``|C_S - C_T|_F^2 / (|C_S|_F |C_T|_F)`` of rows that are z-normed already (4.5 a)."""
    one, other = alignment.covariance(x), alignment.covariance(y)
    return float((one - other).square().sum() / (one.norm() * other.norm()).clamp_min(1e-12))


def relevance_of(x: Tensor, label: Tensor, speaker: Tensor, classes: int) -> float:
    """UAR of a ridge probe of rows (n, D) on held-out speakers of the source (4.5, R_l)."""
    people, code = torch.unique(speaker, return_inverse=True)
    fold = code % min(_FOLDS, max(len(people), 2))
    said = torch.zeros_like(label)
    for number in fold.unique().tolist():
        held = fold == number
        if held.all() or not held.any():
            return float("nan")
        targets = losses.hard_targets(label[~held], classes)
        share = targets.mean(0).clamp_min(1e-6)
        fitted = fit_ridge(x[~held], targets, (1 / share)[label[~held]], _STRENGTH)
        said[held] = (x[held] @ fitted.coefficients + fitted.bias).argmax(1)
    return metrics.uar(label.cpu().numpy(), said.cpu().numpy(), classes)
