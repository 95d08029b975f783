"""Diversity of the members of an ensemble (docs/methods.md 4.13).

Everywhere ``right`` is bool (M, N): whether each member answers each item rightly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raysere.ensemble.data.predictions import FitRows
from raysere.ensemble.fit.attributes import expected_ccc
from raysere.ensemble.fit.classes import ClassFit, class_metric, decide
from raysere.ensemble.fit.objective import Objective, confusion_counts
from raysere.ensemble.fit.part import AttributePart, OuterFit
from raysere.ensemble.fit.priors import shift_prior
from raysere.training.task import Task

_ROWS, _MEMBERS = 5000, 16  # of the report: more would only cost time


def joint_shares(right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shares of items (M, M) that two members answer: both rightly, first only, second only,
    neither.
    """
    r = right.astype(np.float64)
    count = max(right.shape[1], 1)
    both = r @ r.T / count
    alone = r.mean(1)
    return both, alone[:, None] - both, alone[None, :] - both, 1 - alone[:, None] - alone[None, :] + both


def pair_measures(right: np.ndarray) -> dict[str, np.ndarray]:
    """Pair matrices (M, M): ``disagreement`` (of being right), Yule's ``q``, ``double_fault``,
    ``kappa``.

    ``q = (ad - bc) / (ad + bc)`` with a both right, d both wrong, b and c one of them (0 where the
    denominator is); ``kappa = (observed - chance agreement) / (1 - chance agreement)`` of being
    right.
    """
    a, b, c, d = joint_shares(right)
    alone = right.mean(1)
    chance = np.outer(alone, alone) + np.outer(1 - alone, 1 - alone)
    return {
        "disagreement": b + c,
        "yule_q": _ratio(a * d - b * c, a * d + b * c),
        "double_fault": d,
        "kappa": _ratio(a + d - chance, 1 - chance),
    }


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.where(np.abs(bottom) > 1e-12, top / np.where(np.abs(bottom) > 1e-12, bottom, 1.0), 0.0)


def group_measures(right: np.ndarray) -> dict[str, float]:
    """Measures of the whole set: ``oracle`` (somebody is right), ``mean_accuracy``,
    ``kohavi_wolpert`` variance, ``kappa`` of all raters.

    ``kohavi_wolpert = mean_n l_n (M - l_n) / M^2`` with l members right; it is ``(M - 1) / (2 M)``
    times the mean disagreement.
    """
    members = len(right)
    number = right.sum(0)
    spread = float((number * (members - number)).mean())
    mean = float(right.mean())
    chance = members * (members - 1) * mean * (1 - mean)
    return {
        "oracle": float((number > 0).mean()),
        "mean_accuracy": mean,
        "kohavi_wolpert": spread / members**2,
        "kappa": 1 - spread / chance if chance > 1e-12 else 0.0,
    }


def off_diagonal_mean(matrix: np.ndarray) -> float:
    """Mean over pairs of different members; 0 for one member."""
    count = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1))) if count > 1 else 0.0


def predicted_gain(members: float, correlation: float, validity: float) -> dict[str, float]:
    """How averaging M unit-variance members changes the correlation with the truth (docs/methods.md
    4.11).

    Members have the pair correlation r and the validity q.

    ``corr = q / sqrt((1 + (M - 1) r) / M)``; also one member more of the same kind, and endlessly
    many.
    """

    def of(count: float) -> float:
        return min(validity / float(np.sqrt(max((1 + (count - 1) * correlation) / count, 1e-12))), 1.0)

    return {
        "members": float(members),
        "correlation": float(correlation),
        "validity": float(validity),
        "single": float(min(validity, 1.0)),
        "mean": of(members),
        "one_more": of(members + 1) - of(members),
        "endless": min(validity / float(np.sqrt(correlation)), 1.0) if correlation > 0 else 1.0,
    }


def diversity_of(part: OuterFit, selection: FitRows, task: Task, seed: int = 0) -> dict[str, Any]:
    """The diversity report of a fitted part on (at most 5,000 of) its selection rows; plain values."""
    rows = selection
    if len(selection.label) > _ROWS:
        rows = selection.take_rows(np.sort(np.random.default_rng(seed).choice(len(selection.label), _ROWS, replace=False)))
    found: dict[str, Any] = {}
    if part.classes is not None and (rows.label >= 0).any():
        found["classes"] = _class_report(part.classes, rows.take_rows(rows.label >= 0), task)
    if part.attributes:
        found["attributes"] = {task.attributes[one.index]: _attribute_report(one, rows) for one in part.attributes}
    return found


def _class_report(fit: ClassFit, rows: FitRows, task: Task) -> dict[str, Any]:
    order = np.argsort(-fit.weights, kind="stable")[:_MEMBERS]
    members = [fit.members[m] for m in order]
    found = rows.predictions.aligned(members)
    classes = len(found.classes)
    logp = np.stack([fit.calibrations[m].apply(one) for m, one in zip(order, found.logp)])
    logp = shift_prior(logp, fit.selection_prior, fit.prior)
    logp[~found.present] = np.log(fit.prior).astype(np.float32)
    objective = Objective(class_metric(task))
    answers = logp.argmax(2)
    right = answers == rows.label
    p = np.exp(logp.astype(np.float64))
    single = objective(confusion_counts(rows.label, answers, classes))
    pairs = pair_measures(right)
    counted = range(len(members))
    gains = np.zeros((len(members), len(members)))
    for i in counted:
        for j in range(i):
            both = confusion_counts(rows.label, (p[i] + p[j]).argmax(1), classes)
            gains[i, j] = gains[j, i] = float(objective(both)[0]) - max(single[i], single[j])
    whole = _score(fit, rows, objective)
    names = {member.id: n for n, member in enumerate(rows.predictions.members)}
    everybody = [names[member.id] for member in fit.members if member.id in names]

    def without(gone: set[str]) -> float:
        kept = rows.take_members([n for n in everybody if rows.predictions.members[n].id not in gone])
        return _score(fit, kept, objective)

    leave_one_out = {member.id: whole - without({member.id}) for member in members} if len(fit.members) > 1 else {}
    modalities: dict[str, dict[str, float]] = {}
    for kind in sorted({member.modality for member in fit.members}):
        mine = {member.id for member in fit.members if member.modality == kind}
        rest = {member.id for member in fit.members} - mine
        weight = float(sum(w for w, member in zip(fit.weights, fit.members) if member.id in mine))
        modalities[kind] = {"members": float(len(mine)), "weight": weight, "alone": without(rest) if rest else whole}
        if rest:
            modalities[kind]["lost_without"] = whole - without(mine)
    standard = _standard(p)
    truth = _standard(np.eye(classes)[rows.label][None])[0]
    count = standard.shape[1] * max(int((truth.std(0) > 0).sum()), 1)
    correlation = np.einsum("mnk,onk->mo", standard, standard) / count
    validity = float((standard * truth).sum((1, 2)).mean() / count)
    effective = 1 / float((fit.weights**2).sum())
    return {
        "rows": len(rows.label),
        "members": [member.id for member in members],
        "score": whole,
        "single": single.tolist(),
        **{f"mean_{name}": off_diagonal_mean(matrix) for name, matrix in pairs.items()},
        **group_measures(right),
        "pairs": {**{name: matrix.tolist() for name, matrix in pairs.items()}, "gain": gains.tolist()},
        "leave_one_out": leave_one_out,
        "modalities": modalities,
        "predicted": predicted_gain(effective, off_diagonal_mean(correlation), validity),
    }


def _standard(values: np.ndarray) -> np.ndarray:
    """Centred with unit spread over the items (axis 1) of (M, N, K); constant columns 0."""
    away = values - values.mean(1, keepdims=True)
    spread = away.std(1, keepdims=True)
    return np.where(spread > 1e-9, away / np.maximum(spread, 1e-9), 0.0)


def _score(fit: ClassFit, rows: FitRows, objective: Objective) -> float:
    answer = decide(fit.predict(rows.predictions), fit.fallback(rows.predictions.classes))
    return float(objective(confusion_counts(rows.label, answer, len(rows.predictions.classes)))[0])


def _attribute_report(one: AttributePart, rows: FitRows) -> dict[str, Any]:
    rated = np.isfinite(rows.target[:, one.index])
    found = rows.predictions.aligned(one.members)
    values, target = found.values[:, rated, one.index].astype(np.float64), rows.target[rated, one.index]
    present = found.present[:, rated]
    values = np.where(present, values, target.mean())
    standard = _standard(values[:, :, None])[:, :, 0]
    truth = _standard(target[None, :, None])[0, :, 0]
    residual = _standard((values - target)[:, :, None])[:, :, 0]
    count = max(len(target), 1)
    correlation, validity = off_diagonal_mean(standard @ standard.T / count), float((standard @ truth).mean() / count)
    effective = float(one.fit.weights.sum()) ** 2 / float((one.fit.weights**2).sum())
    unmatched, matched = expected_ccc(max(round(effective), 1), correlation, validity)
    return {
        "members": [member.id for member in one.members],
        "residual_correlation": off_diagonal_mean(residual @ residual.T / count),
        "predicted": {**predicted_gain(effective, correlation, validity), "ccc_unmatched": unmatched, "ccc_matched": min(matched, 1.0)},
    }
