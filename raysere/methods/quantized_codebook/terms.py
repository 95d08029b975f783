"""Loss terms of one step of ``quantized_codebook``, for both domains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raysere.nn import alignment
from raysere.nn import quantization as maths
from raysere.nn.losses import hard_targets, smooth
from raysere.nn.pooling import pool
from raysere.training.method import Step

if TYPE_CHECKING:
    from raysere.methods.quantized_codebook.model import QuantizedModel

_QUOTA_START, _LEAST = 0.2, 2


class CodebookTerms:
    """Source (0) and target (1) of one step: units, codes, posteriors and how much of them is
    believed.
    """

    def __init__(self, model: QuantizedModel, z: Any, mask: Any, batches: Any, step: Step) -> None:
        self.model, self.params, self.z, self.mask, self.batches = model, model.params, z, mask, batches
        self.coded = model.coded
        teacher = (
            model.teach(batches[1]) if self.coded else torch.softmax(model.teacher.answer(*model.teacher.units(batches[1].streams))[1], -1)
        )
        own = smooth(hard_targets(batches[0].label, model.classes), self.params.label_smoothing)
        sharp = teacher.pow(1 / self.params.sharpen)
        self.posterior = (own, sharp / sharp.sum(1, keepdim=True))
        done = step.step / max(step.total, 1)
        self.believed = believed(teacher, _QUOTA_START + (self.params.quota - _QUOTA_START) * done)
        weights = model.student.weights[batches[0].label.clamp_min(0)] * (batches[0].label >= 0)
        self.weight = (weights, self.believed)
        self.flat = tuple(rows[there] for rows, there in zip(z, mask, strict=True))
        if self.coded:
            is_target_domain = [torch.full((len(rows),), bool(domain), device=rows.device) for domain, rows in enumerate(self.flat)]
            found = [model.quantized(rows.float(), which) for rows, which in zip(self.flat, is_target_domain, strict=True)]
            self.codes, self.squared = tuple(one[0] for one in found), tuple(one[1] for one in found)
            self.q = tuple(model.book(bool(k)).soft(d, self.params.tau) for k, d in enumerate(self.squared))
            # utterances count alike, however long
            self.item = tuple(there.nonzero()[:, 0] for there in mask)

    def logits(self) -> tuple[Tensor, Tensor]:
        found = []
        for z, mask, batch in zip(self.z, self.mask, self.batches, strict=True):
            rows = self.model.coded_rows(z, mask, batch.is_target_domain) if self.coded else z
            found.append(self.model.student.answer(rows, mask)[1])
        return found[0], found[1]

    def per_item(self, domain: int) -> Tensor:
        """Soft codes (B, K) of utterances: means over their units."""
        counts = self.mask[domain].sum(1).clamp_min(1)
        total = torch.zeros(len(counts), self.q[domain].shape[1], device=counts.device).index_add(0, self.item[domain], self.q[domain])
        return total / counts.unsqueeze(1)

    def code_terms(self, step: Step) -> dict[str, Tensor]:
        """Quantization, InfoLoss and usage; the running tables take their step."""
        model, params = self.model, self.params
        losses = [maths.quantization_loss(z.float(), e, params.commitment) for z, e in zip(self.flat, self.codes, strict=True)]
        terms = {"quantization": params.quantization * (losses[0] + losses[1]) / 2}
        items = [self.per_item(domain) for domain in (0, 1)]
        if params.info:
            if len(model.books) == 1:
                parts = [(model.book(False), torch.cat(items), torch.cat(self.posterior), torch.cat(self.weight))]
            else:
                parts = [(model.book(bool(k)), items[k], self.posterior[k], self.weight[k]) for k in (0, 1)]
            value = torch.stack([maths.info_loss(q, p, book.posteriors().detach(), w) for book, q, p, w in parts])
            terms["info"] = params.info * value.mean()
            for book, q, p, w in parts:
                book.learn_posteriors(q.detach(), p, w, params.memory)
        if params.usage:
            mean = torch.cat(self.q).mean(0).clamp_min(1e-12)  # codes that are not active have a slope of minus infinity
            terms["usage"] = params.usage * (1 + torch.special.xlogy(mean, mean).sum() / math.log(len(mean)))
        self._follow(step)
        return terms

    def _follow(self, step: Step) -> None:
        model, params = self.model, self.params
        q = (self.q[0].detach(), self.q[1].detach())
        move = params.memory if params.codebook == "ema" else None
        if len(model.books) == 1:
            book = model.book(False)
            book.follow(torch.cat(self.flat).detach().float(), torch.cat(self.squared).detach(), q, params.memory, move)
            if params.codebook in ("parameter", "ema") and step.step % params.restart == 0 and step.step < 0.8 * step.total:
                units = (self.flat[0].detach(), self.flat[1].detach())
                book.restart(units, (self.posterior[0][self.item[0]], self.posterior[1][self.item[1]]), step.generator)
        else:
            for domain in (0, 1):
                model.book(bool(domain)).follow(
                    self.flat[domain].detach().float(), self.squared[domain].detach(), (q[domain], q[domain]), params.memory
                )

    def alignment_terms(self) -> dict[str, Tensor]:
        """Both domains as wholes, and class by class."""
        params, terms = self.params, {}
        rows = self.model.student.rows
        means = [pool("mean_std", z, there, None) if rows else z[:, 0] for z, there in zip(self.z, self.mask, strict=True)]
        if params.alignment == "code_js":
            terms["alignment"] = params.alignment_weight * self._usage_gap()
        elif params.alignment != "none":
            terms["alignment"] = params.alignment_weight * (alignment.mmd if params.alignment == "mmd" else alignment.coral)(*means)
        if params.classes == "code_js":
            terms["classes"] = params.classes_weight * self._class_gap()
        elif params.classes == "centroid":
            terms["classes"] = params.classes_weight * centroid_gap(means, self.posterior, self.weight)
        return terms

    def _usage_gap(self) -> Tensor:
        """Divergence of running code usage, whose gradient is that of the step's own part at full
        strength.
        """
        memory, book = self.params.memory, self.model.book(False)
        shares = [(1 - memory) * self.q[k].mean(0) + memory * book.usage[k] for k in (0, 1)]
        value = alignment.jensen_shannon(shares[0], shares[1])
        return value.detach() + (value - value.detach()) / (1 - memory)

    def _class_gap(self) -> Tensor:
        """The same for each class that both domains have, by running usage of its items."""
        memory, table = self.params.memory, self.model.get_buffer("use_classes")
        shares = []
        for domain in (0, 1):
            mass = self.posterior[domain] * self.weight[domain].unsqueeze(1)
            own = mass.T @ self.per_item(domain) / mass.sum(0).clamp_min(1e-6).unsqueeze(1)
            fresh = table[domain].sum(1) == 0
            kept = torch.where(fresh.unsqueeze(1), own.detach(), table[domain])
            enough = (mass.sum(0) >= _LEAST).unsqueeze(1)
            shares.append(torch.where(enough, (1 - memory) * own + memory * kept, kept))
            with torch.no_grad():
                table[domain] = torch.where(enough, shares[domain], table[domain])
        known = (table.sum(2) > 0).all(0)
        if not bool(known.any()):
            return self.q[0].sum() * 0
        value = alignment.jensen_shannon(shares[0], shares[1])[known].mean()
        return value.detach() + (value - value.detach()) / (1 - memory)

    @torch.no_grad()
    def watched(self) -> dict[str, Tensor]:
        """What tells collapse, a split codebook and quantization that loses everything (1.8);
        logged, never learned from.
        """
        found = {"_believed": (self.believed > 0).float().mean()}
        if not self.coded:
            return found
        for domain, name in enumerate(("source", "target")):
            book = self.model.book(bool(domain))
            found[f"_perplexity_{name}"] = maths.perplexity(book.usage[domain]) / book.groups
        z, codes = torch.cat(self.flat), torch.cat(self.codes)
        found["_error"] = (z - codes).square().sum() / z.square().sum().clamp_min(1e-12)
        if len(self.model.books) == 1:
            usage = self.model.book(False).usage
            found["_overlap"] = 1 - alignment.jensen_shannon(usage[0], usage[1]) / math.log(2)
            found["_information"] = maths.information(self.per_item(0), self.posterior[0], self.weight[0])
        return found


def believed(posterior: Tensor, share: float) -> Tensor:
    """1 for the surest ``share`` of the items (B, C) of each predicted class, at least one of each;
    0 for the others.
    """
    sure, said = posterior.max(1)
    weights = torch.zeros_like(sure)
    for k in said.unique().tolist():
        rows = torch.nonzero(said == k).flatten()
        weights[rows[sure[rows].topk(max(1, math.ceil(share * len(rows)))).indices]] = 1.0
    return weights


def centroid_gap(h: Any, posterior: Any, weight: Any) -> Tensor:
    """Mean over classes of ``|mu_S^c - mu_T^c|^2 / d`` of vectors (B, d), for classes that both
    domains have items of.
    """
    centres, masses = [], []
    for x, p, w in zip(h, posterior, weight, strict=True):
        mass = p * w.unsqueeze(1)
        masses.append(mass.sum(0))
        centres.append(mass.T @ x / masses[-1].clamp_min(1e-6).unsqueeze(1))
    known = (masses[0] >= _LEAST) & (masses[1] >= _LEAST)
    if not bool(known.any()):
        return h[0].sum() * 0
    return (centres[0] - centres[1]).square().mean(1)[known].mean()
