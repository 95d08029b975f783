"""``quantized_codebook``: one codebook for both languages, held to the class by InfoLoss (papers_crosslingual 1).

    rows (B, T, D) -> z (B, T, d) -> nearest of K shared codes zq -> pooled mean (and std) -> trunk -> logits
    L = CE + lam_c CE_z + lam_vq L_vq + lam_i L_info + lam_u L_use + r(p) [lam_g L_global + lam_l L_local + lam_m L_mimc]

[ABS] A quantized codebook shared by both languages captures common features and aligns class distributions; InfoLoss mitigates the loss of
critical information in quantization within the simplex of class posteriors; inspired by TransVQA. Everything below that is [OURS]: the
abstract gives no formula, backbone, size or figure (U.1).

Target posteriors come from a teacher, the exponential average of the weights, of its surest answers per class. Distances, softmax over
codes and divergences are float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.errors import ConfigError
from raysere.methods.codebook_terms import CodebookTerms
from raysere.methods.domains import DomainMethod, DomainModel, DomainParams, Trunk, progress
from raysere.methods.streams import StreamLayers, StreamPool
from raysere.training import alignment
from raysere.training import quantization as maths
from raysere.training.coding import Codebook
from raysere.training.method import Batch, Feed, Shapes, Step
from raysere.training.pooling import pool

SIZES = {"utterance": 64, "rows": 256}
UNITS = 20_000  # of each domain that k-means starts from, at most


class QuantizedParams(DomainParams):
    """Defaults of 1.6. The ablations of 1.7 are values: a weight of 0, ``codebook``, ``alignment`` and ``classes`` of none."""

    balance: float = Field(0.5, ge=0, le=1)
    unit: Literal["rows", "utterance"] = Field(
        "rows", description="what is quantized: rows over time as stored, or one vector an utterance"
    )
    codes: int | None = Field(None, ge=2, le=8192, description="K; default 256 for rows over time, 64 for utterances")
    width: int = Field(64, ge=4, le=1024, description="d, of a unit")
    groups: int = Field(
        1, ge=1, le=256, description="G: parts of d / G values, each with codes of its own; at most the divisor that it shares with d"
    )
    projector: Literal["mlp", "linear"] = Field("mlp", description="from a row to a unit")
    codebook: Literal["parameter", "ema", "frozen", "random", "separate", "none"] = "parameter"
    tau: float = Field(0.5, gt=0, le=10, description="temperature of soft codes, in mean squared distances to the nearest code")
    commitment: float = Field(0.25, ge=0, le=4)
    memory: float = Field(0.99, ge=0, lt=1, description="of class posteriors of codes, of their usage, and of `codebook: ema`")
    warmup_epochs: int = Field(3, ge=0, le=100, description="without codebook and adaptation")
    info: float = Field(0.5, ge=0, le=10, description="lam_i")
    alignment: Literal["code_js", "mmd", "coral", "none"] = "code_js"
    alignment_weight: float = Field(0.5, ge=0, le=100, description="lam_g")
    classes: Literal["code_js", "centroid", "none"] = "code_js"
    classes_weight: float = Field(0.3, ge=0, le=100, description="lam_l")
    confusion: float = Field(0.2, ge=0, le=10, description="lam_m")
    confusion_information: float = Field(0.5, ge=0, le=10, description="mu")
    quantization: float = Field(1.0, ge=0, le=10, description="lam_vq")
    usage: float = Field(0.0, ge=0, le=10, description="lam_u")
    continuous: float = Field(0.5, ge=0, le=10, description="lam_c, of the class loss on z")
    quota: float = Field(0.8, gt=0, le=1, description="share of target items of each predicted class that is believed at the end")
    sharpen: float = Field(0.5, gt=0, le=1, description="temperature of believed target posteriors")
    teacher: float = Field(0.999, ge=0, lt=1, description="memory of the teacher's weights")
    restart: int = Field(50, ge=1, description="steps between replacements of dead codes")


class Encoder(DomainModel):
    """What teacher and student have each: projector, trunk; the codes are given."""

    def __init__(self, params: QuantizedParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__(params, shapes, layers)
        self.rows = params.unit == "rows" and any(shapes.streams[name].granularity != "utterance" for name in self.names)
        self.read = None
        if self.rows:
            name = self.names[0]
            self.read = StreamLayers(shapes.streams[name], layers[name], params.layers, params.hidden)
            self.pools = nn.ModuleList()
        width = self.read.dim if self.read is not None else self.width
        hidden = [nn.Linear(width, params.width), nn.GELU()] if params.projector == "mlp" else []
        last = nn.Linear(params.width if hidden else width, params.width)
        self.projector = nn.Sequential(*hidden, last, nn.LayerNorm(params.width, elementwise_affine=False))
        self.trunk = Trunk(params.width * (2 if self.rows else 1), self.count, params)

    def units(self, streams: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """z (B, T, d) and which are there, bool (B, T); T is 1 for utterances."""
        if self.read is not None:
            stream = streams[self.names[0]]
            return self.projector(self.read.rows(stream)), stream.mask
        z = self.projector(self.vector(streams)).unsqueeze(1)
        return z, torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)

    def answer(self, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(f, logits) of units (B, T, d)."""
        return self.trunk(pool("mean_std", z, mask, None) if self.rows else z[:, 0])

    def layer_weights(self) -> dict[str, dict[int, float]]:
        if self.read is None:
            return super().layer_weights()
        shares = self.read.shares()
        return {} if shares is None else {self.names[0]: shares}


class QuantizedModel(nn.Module):
    """Student, teacher and codebooks (one, or one a domain)."""

    def __init__(self, params: QuantizedParams, shapes: Shapes, layers: Mapping[str, list[int]]) -> None:
        super().__init__()
        self.params = params
        self.student = Encoder(params, shapes, layers)
        self.classes = self.student.count
        size = params.codes or SIZES["rows" if self.student.rows else "utterance"]
        learned = params.codebook in ("parameter", "separate")
        books = {"none": 0, "separate": 2}.get(params.codebook, 1)
        groups = math.gcd(params.groups, params.width)
        self.books = nn.ModuleList(Codebook(size, params.width, self.classes, learned=learned, groups=groups) for _ in range(books))
        self.register_buffer("use_classes", torch.zeros(2, self.classes, size * groups), persistent=False)
        # no part of the state: what predicts is the student
        self._teacher = [copy.deepcopy(self.student).requires_grad_(False)]

    @property
    def teacher(self) -> Encoder:
        self._teacher[0].to(next(self.parameters()).device)
        return self._teacher[0].eval()

    @property
    def coded(self) -> bool:
        """Whether codes are in use: not in warm-up."""
        return bool(len(self.books)) and bool(self.books[0].ready)

    def book(self, foreign: bool) -> Codebook:
        return self.books[int(foreign) % len(self.books)]  # type: ignore[return-value]

    def quantized(self, z: Tensor, foreign: Tensor | None) -> tuple[Tensor, Tensor]:
        """(zq (n, d), squared distances (n, G, K)) of units (n, d); ``foreign`` bool (n,) tells which codebook, where there are two."""
        found = []
        for number in range(len(self.books)):
            book = self.book(bool(number))
            squared = book.distances(z)
            found.append((book.values(book.nearest(squared)), squared))
        if len(found) == 1:
            return found[0]
        which = torch.ones(len(z), dtype=torch.bool, device=z.device) if foreign is None else foreign
        (own, squared), (other, there) = found
        return torch.where(which.unsqueeze(1), other, own), torch.where(which.view(-1, 1, 1), there, squared)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(f, logits) by hard codes (by z itself in warm-up)."""
        z, mask = self.student.units(batch.streams)
        return self.student.answer(self.coded_rows(z, mask, batch.foreign) if self.coded else z, mask)

    def coded_rows(self, z: Tensor, mask: Tensor, foreign: Tensor | None) -> Tensor:
        """zq (B, T, d) with the gradient of z."""
        which = None if foreign is None else foreign.unsqueeze(1).expand(mask.shape)[mask]
        codes, _ = self.quantized(z[mask].float(), which)
        result = z.clone()
        result[mask] = maths.straight_through(z[mask], codes.to(z.dtype))
        return result

    @torch.no_grad()
    def teach(self, batch: Batch) -> Tensor:
        """Posteriors (B, C) of the teacher."""
        z, mask = self.teacher.units(batch.streams)
        return torch.softmax(self.teacher.answer(self.coded_rows(z, mask, batch.foreign), mask)[1].float(), dim=-1)

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the teacher towards the student."""
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.lerp_(new, 1 - self.params.teacher)

    def layer_weights(self) -> dict[str, dict[int, float]]:
        return self.student.layer_weights()


class QuantizedCodebook(DomainMethod):
    """Shared codebook with InfoLoss; see the module."""

    name = "quantized_codebook"
    Params = QuantizedParams

    def check(self, params: QuantizedParams, shapes: Shapes) -> None:
        super().check(params, shapes)
        rows = [name for name, stream in shapes.streams.items() if stream.granularity != "utterance"]
        if params.unit == "rows" and rows and len(shapes.streams) > 1:
            raise ConfigError(
                "Rows over time of one feature are quantized, and this search names several", where="unit", choices=["utterance"]
            )
        if params.codebook in ("none", "separate") and "code_js" in (params.alignment, params.classes):
            what = f"With codebook: {params.codebook} there are no common codes whose use could be compared"
            raise ConfigError(what, where="alignment, classes", choices=["mmd", "coral", "centroid", "none"])

    def pools(self, params: QuantizedParams, shapes: Shapes) -> dict[str, StreamPool]:
        pooled = super().pools(params, shapes)
        if params.unit == "rows":  # streams that are read row by row
            return {name: one for name, one in pooled.items() if shapes.streams[name].granularity == "utterance"}
        return pooled

    def source_model(self, model: Any) -> Encoder:
        return model.student

    def build(self, params: QuantizedParams, shapes: Shapes) -> QuantizedModel:
        return QuantizedModel(params, shapes, self.layers(params, shapes))

    def begin_epoch(self, model: Any, feed: Feed, epoch: int, seed: int) -> None:
        """After the warm-up: k-means of as many units of either domain, and the teacher's start."""
        super().begin_epoch(model, feed, epoch, seed)
        if epoch != model.params.warmup_epochs:
            return
        model.teacher.load_state_dict(model.student.state_dict())
        if not len(model.books):
            return
        generator = torch.Generator().manual_seed(seed)
        source, label = _units(model.student, feed.source(), generator)
        target, _ = _units(model.student, feed.target(), generator)
        count = min(len(source), len(target), UNITS)
        drawn = [part[torch.randperm(len(part), generator=generator)[:count].to(part.device)] for part in (source, target)]
        random = model.params.codebook == "random"
        for number, book in enumerate(model.books):
            start = torch.cat(drawn) if len(model.books) == 1 else drawn[number]
            book.fill(start, source[label >= 0], label[label >= 0], generator, random=random)

    def losses(self, model: Any, batch: Batch, step: Step) -> dict[str, Tensor]:
        params, student = model.params, model.student
        z, mask = student.units(batch.streams)
        _, plain = student.answer(z, mask)
        if batch.target is None or step.epoch < params.warmup_epochs:
            return {"class": student.class_loss(plain, batch.label)}
        model.follow()
        z_target, mask_target = student.units(batch.target.streams)
        domains = CodebookTerms(model, (z, z_target), (mask, mask_target), (batch, batch.target), step)
        terms: dict[str, Tensor] = {}
        logits = domains.logits()
        terms["class"] = student.class_loss(logits[0], batch.label)
        if domains.coded:
            terms["continuous"] = params.continuous * student.class_loss(plain, batch.label)
            terms |= domains.code_terms(step)
        strength = progress(step)
        terms |= {name: strength * value for name, value in domains.alignment_terms().items()}
        if params.confusion:
            sure = alignment.class_confusion(logits[1]) - params.confusion_information * alignment.infomax(logits[1])
            terms["confusion"] = strength * params.confusion * sure
        return terms | domains.watched()


@torch.no_grad()
def _units(student: Encoder, batches: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Units (n, d) of all batches, and the class (n,) of each, -1 for none; at most UNITS of them, drawn evenly."""
    found, labels = [], []
    for batch in batches:
        z, mask = student.units(batch.streams)
        found.append(z[mask].float())
        labels.append(batch.label.unsqueeze(1).expand(mask.shape)[mask])
    units, label = torch.cat(found), torch.cat(labels)
    if len(units) > UNITS:
        rows = torch.randperm(len(units), generator=generator)[:UNITS].to(units.device)
        units, label = units[rows], label[rows]
    return units, label
