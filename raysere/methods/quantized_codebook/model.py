"""The model of the quantized codebook: student, teacher and their codebooks."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raysere.methods.parts.domains import DomainModel, DomainParams, Trunk
from raysere.methods.parts.streams import StreamLayers
from raysere.nn import quantization as maths
from raysere.nn.codebook import TrainedCodebook
from raysere.nn.pooling import pool
from raysere.training.method import Batch, Shapes

SIZES = {"utterance": 64, "rows": 256}


class QuantizedParams(DomainParams):
    """Defaults of docs/methods.md 6.

    The ablations are values: a weight of 0, ``codebook``, ``alignment`` and ``classes`` of none.
    """

    balance: float = Field(0.5, ge=0, le=1)
    unit: Literal["rows", "utterance"] = Field(
        "rows", description="what is quantized: rows over time as stored, or one vector for each utterance"
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


class UnitEncoder(DomainModel):
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
        self.student = UnitEncoder(params, shapes, layers)
        self.classes = self.student.count
        size = params.codes or SIZES["rows" if self.student.rows else "utterance"]
        learned = params.codebook in ("parameter", "separate")
        books = {"none": 0, "separate": 2}.get(params.codebook, 1)
        groups = math.gcd(params.groups, params.width)
        self.books = nn.ModuleList(TrainedCodebook(size, params.width, self.classes, learned=learned, groups=groups) for _ in range(books))
        self.register_buffer("use_classes", torch.zeros(2, self.classes, size * groups), persistent=False)
        # no part of the state: what predicts is the student
        self._teacher = [copy.deepcopy(self.student).requires_grad_(False)]

    @property
    def teacher(self) -> UnitEncoder:
        self._teacher[0].to(next(self.parameters()).device)
        return self._teacher[0].eval()

    @property
    def coded(self) -> bool:
        """Whether codes are in use: not in warm-up."""
        return bool(len(self.books)) and bool(self.books[0].ready)

    def book(self, is_target_domain: bool) -> TrainedCodebook:
        return self.books[int(is_target_domain) % len(self.books)]  # type: ignore[return-value]

    def quantized(self, z: Tensor, is_target_domain: Tensor | None) -> tuple[Tensor, Tensor]:
        """(zq (n, d), squared distances (n, G, K)) of units (n, d); ``is_target_domain`` bool (n,)
        names the codebook.
        """
        found = []
        for number in range(len(self.books)):
            book = self.book(bool(number))
            squared = book.distances(z)
            found.append((book.values(book.nearest(squared)), squared))
        if len(found) == 1:
            return found[0]
        which = torch.ones(len(z), dtype=torch.bool, device=z.device) if is_target_domain is None else is_target_domain
        (own, squared), (other, there) = found
        return torch.where(which.unsqueeze(1), other, own), torch.where(which.view(-1, 1, 1), there, squared)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(f, logits) by hard codes (by z itself in warm-up)."""
        z, mask = self.student.units(batch.streams)
        return self.student.answer(self.coded_rows(z, mask, batch.is_target_domain) if self.coded else z, mask)

    def coded_rows(self, z: Tensor, mask: Tensor, is_target_domain: Tensor | None) -> Tensor:
        """zq (B, T, d) with the gradient of z."""
        which = None if is_target_domain is None else is_target_domain.unsqueeze(1).expand(mask.shape)[mask]
        codes, _ = self.quantized(z[mask].float(), which)
        result = z.clone()
        result[mask] = maths.straight_through(z[mask], codes.to(z.dtype))
        return result

    @torch.no_grad()
    def teach(self, batch: Batch) -> Tensor:
        """Posteriors (B, C) of the teacher."""
        z, mask = self.teacher.units(batch.streams)
        return torch.softmax(self.teacher.answer(self.coded_rows(z, mask, batch.is_target_domain), mask)[1].float(), dim=-1)

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the teacher towards the student."""
        for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            old.lerp_(new, 1 - self.params.teacher)

    def layer_weights(self) -> dict[str, dict[int, float]]:
        return self.student.layer_weights()
