"""``quantized_codebook``: one codebook for both languages, held to the class by InfoLoss
(docs/methods.md 6).

    rows (B, T, D) -> z (B, T, d) -> nearest of K shared codes zq -> pooled mean (and std) -> trunk
    -> logits L = CE + lam_c CE_z + lam_vq L_vq + lam_i L_info + lam_u L_use + r(p) [lam_g L_global
    + lam_l L_local + lam_m L_mimc]

The idea, a codebook shared by both languages and a loss on what quantization loses of the class, is
published; the published abstract gives no formula, backbone, size or figure, so everything below it
is our reconstruction.

Target posteriors come from a teacher, the exponential average of the weights, of its surest answers
per class. Distances, softmax over codes and divergences are float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raysere.base.errors import ConfigError
from raysere.methods.parts.domains import DomainMethod, progress
from raysere.methods.parts.streams import StreamPool
from raysere.methods.quantized_codebook.model import QuantizedModel, QuantizedParams, UnitEncoder
from raysere.methods.quantized_codebook.terms import CodebookTerms
from raysere.nn import alignment
from raysere.training.method import Batch, Feed, Shapes, Step

UNITS = 20_000  # of each domain that k-means starts from, at most


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

    def source_model(self, model: Any) -> UnitEncoder:
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
        if batch.unlabelled is None or step.epoch < params.warmup_epochs:
            return {"class": student.class_loss(plain, batch.label)}
        model.follow()
        z_target, mask_target = student.units(batch.unlabelled.streams)
        domains = CodebookTerms(model, (z, z_target), (mask, mask_target), (batch, batch.unlabelled), step)
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
def _units(student: UnitEncoder, batches: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Units (n, d) of all batches, and the class (n,) of each, -1 for none; at most UNITS of them,
    drawn evenly.
    """
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
