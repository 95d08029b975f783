"""``adaptation``: published ways to bring a labelled source and an unlabelled target together, in
one frame (docs/methods.md 5.2).

    L = CE_S + r(p) lam L_kind(f_S, f_T, logits_T),  r(p) = 2 / (1 + exp(-10 p)) - 1

``source_only`` has no second term; with ``normalise: domain`` it is the baseline of per-domain
normalisation, with ``speaker`` that of per-speaker normalisation. All kinds have the trunk, the
loop and the budget of the methods that they are compared with.

| kind | L_kind |
| --- | --- |
| coral_closed | none: source vectors are recoloured to the target's covariance and mean before the first step |
| coral_deep | ``|C_S - C_T|_F^2 / (4 d^2)`` of f (Sun and Saenko 2016) |
| dann | a critic tells domains from f, through a reversed gradient (Ganin et al. 2016) |
| cdan, cdan_e | the critic reads f and the class posterior together; _e weighs sure items more (Long et al. 2018) |
| mcc | minimum class confusion of the target's answers (Jin et al. 2020) |
| entropy | mean entropy of the target's answers |
| infomax | minus the mutual information of target items and answers |
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.base.errors import ConfigError
from raysere.methods.parts.domains import DomainMethod, DomainModel, DomainParams, Trunk, progress
from raysere.nn import alignment
from raysere.training.method import Batch, Feed, Shapes, Step

Kind = Literal["source_only", "coral_closed", "coral_deep", "dann", "cdan", "cdan_e", "mcc", "entropy", "infomax"]
#: Default lam of each kind that has one; the covariances of ``coral_deep`` differ by small numbers
#: (docs/methods.md 8.4).
WEIGHTS = {"coral_deep": 100.0, "dann": 1.0, "cdan": 1.0, "cdan_e": 1.0, "mcc": 1.0, "entropy": 0.1, "infomax": 0.1}
CRITICS = ("dann", "cdan", "cdan_e")
_OUTER, _MAPPED = 4096, 1024


class AdaptationParams(DomainParams):
    """``weight`` is lam in units of the kind's default, so that one range serves all; ``ridge`` is
    of ``coral_closed``, ``temperature`` of ``mcc``.
    """

    kind: Kind = "source_only"
    weight: float = Field(1.0, ge=0, le=1e3)
    ridge: float = Field(1.0, ge=0, le=1e3)
    temperature: float = Field(2.5, gt=0, le=20)
    critic: int = Field(1024, ge=8, le=4096, description="width of the two hidden layers of a critic")


class AdaptationModel(DomainModel):
    """Trunk, and what the kind needs beside it."""

    turn: Tensor
    shift: Tensor

    def __init__(self, params: AdaptationParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__(params, shapes, layers)
        self.trunk = Trunk(self.width, self.count, params)
        if params.kind == "coral_closed":
            self.register_buffer("turn", torch.eye(self.width))
            self.register_buffer("shift", torch.zeros(self.width))
        if params.kind in CRITICS:
            seen = params.hidden * (1 if params.kind == "dann" else self.count)
            self.mapped = params.kind != "dann" and seen > _OUTER
            if self.mapped:
                seen = _MAPPED
                self.register_buffer("turn_features", torch.randn(params.hidden, seen), persistent=False)
                self.register_buffer("turn_classes", torch.randn(self.count, seen), persistent=False)
            sizes = (seen, params.critic, params.critic)
            layers_ = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
            self.critic = nn.Sequential(*layers_, nn.Linear(params.critic, 1))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(f, logits); source items are recoloured where the kind says so."""
        h = self.vector(batch.streams)
        if self.params.kind == "coral_closed" and batch.is_target_domain is not None:
            h = torch.where(batch.is_target_domain.unsqueeze(1), h, h @ self.turn + self.shift)
        return self.trunk(h)

    def domain_logits(self, f: Tensor, logits: Tensor, strength: float) -> Tensor:
        """(B,) of the critic, whose gradient comes back to f reversed."""
        x = alignment.reverse_gradient(f, strength)
        if self.params.kind != "dann":
            posterior = torch.softmax(logits, dim=-1).detach()
            fixed = (self.get_buffer("turn_features"), self.get_buffer("turn_classes")) if self.mapped else None
            x = alignment.random_map(x, posterior, *fixed) if fixed else alignment.outer_map(x, posterior)
        return self.critic(x).squeeze(1)


class Adaptation(DomainMethod):
    """The baselines of cross-domain learning; see the module."""

    name = "adaptation"
    Params = AdaptationParams

    def check(self, params: AdaptationParams, shapes: Shapes) -> None:
        super().check(params, shapes)
        if params.kind == "coral_closed" and params.layers == "mix":
            what = "coral_closed recolours vectors before the first step, and a learned mix of layers changes them"
            raise ConfigError(what, where="layers", choices=["one", "top", "concat"])

    def build(self, params: AdaptationParams, shapes: Shapes) -> AdaptationModel:
        return AdaptationModel(params, shapes, self.layers(params, shapes))

    def begin_epoch(self, model: Any, feed: Feed, epoch: int, seed: int) -> None:
        if epoch == 0 and model.params.kind == "coral_closed":
            source = torch.cat([model.vector(batch.streams) for batch in feed.source()])
            target = torch.cat([model.vector(batch.streams) for batch in feed.target()])
            turn, shift = alignment.recolour(source, target, model.params.ridge)
            model.turn.copy_(turn)
            model.shift.copy_(shift)
        super().begin_epoch(model, feed, epoch, seed)

    def losses(self, model: Any, batch: Batch, step: Step) -> dict[str, Tensor]:
        params = model.params
        f, logits = model(batch)
        terms = {"class": model.class_loss(logits, batch.label)}
        weight = WEIGHTS.get(params.kind, 0.0) * params.weight
        if params.kind in WEIGHTS and weight and batch.unlabelled is not None:
            f_target, logits_target = model(batch.unlabelled)
            strength = progress(step)
            if params.kind in CRITICS:
                # the reversed gradient carries lam, so that the critic itself learns at full
                # strength
                critics = [model.domain_logits(x, z, strength * weight) for x, z in ((f, logits), (f_target, logits_target))]
                sure = tuple(alignment.entropy_weights(torch.softmax(z, dim=-1)) for z in (logits, logits_target))
                terms[params.kind] = alignment.domain_loss(critics[0], critics[1], sure if params.kind == "cdan_e" else None)  # type: ignore[arg-type]
            else:
                terms[params.kind] = strength * weight * self.alignment_loss(params, f, f_target, logits_target)
        return terms

    @staticmethod
    def alignment_loss(params: AdaptationParams, f: Tensor, f_target: Tensor, logits: Tensor) -> Tensor:
        """L_kind of the kinds without a critic."""
        if params.kind == "coral_deep":
            return alignment.coral(f, f_target)
        if params.kind == "mcc":
            return alignment.class_confusion(logits, params.temperature)
        return alignment.entropy(logits) if params.kind == "entropy" else -alignment.infomax(logits)
