"""Scores of each member by itself."""

from __future__ import annotations

import numpy as np

from raysere.ensemble.data.predictions import FitRows
from raysere.ensemble.fit.calibration import class_shares
from raysere.ensemble.fit.objective import Objective, confusion_counts
from raysere.ensemble.fit.priors import likeliest_class
from raysere.training.metrics import ccc


def member_scores(selection: FitRows, metric: str) -> np.ndarray:
    """Score (M,) of each member by itself, uncalibrated, on **all** rows with a label; -inf where
    it answers none.

    A row that it does not answer counts as the class that the rows have most of, or as the mean of
    the attribute: scored on its own rows alone, a member that answers only the easy ones would be
    the best.
    """
    found = selection.predictions
    scores = np.full(len(found.members), -np.inf)
    if metric == "ccc":
        middle = mean_target(selection.target)
        for m, here in enumerate(found.present):
            if (here & np.isfinite(selection.target).any(1)).any():
                filled = np.where(here[:, None], found.values[m], middle)
                scores[m] = np.mean([ccc(filled[:, a], selection.target[:, a]) for a in range(len(found.attributes))])
        return scores
    objective, classes = Objective(metric), len(found.classes)
    labelled = selection.label >= 0
    label = selection.label[labelled]
    if not len(label):
        return scores
    shares = class_shares(label, classes)
    fallback = likeliest_class(shares, shares, found.classes)
    for m, present in enumerate(found.present[:, labelled]):
        if present.any():
            answer = np.where(present, found.logp[m, labelled].argmax(-1), fallback)
            scores[m] = objective(confusion_counts(label, answer, classes))[0]
    return scores


def mean_target(target: np.ndarray) -> np.ndarray:
    """Mean of each attribute (A,) over the rows that have it; 0 where none has."""
    rated = np.isfinite(target)
    return np.where(rated, target, 0.0).sum(0) / np.maximum(rated.sum(0), 1)


def top_members(selection: FitRows, count: int, metric: str) -> FitRows:
    """The best ``count`` members of each study, by their raw score on the rows of ``selection``
    alone.
    """
    members = selection.predictions.members
    scores = member_scores(selection, metric)
    kept: list[int] = []
    for study in sorted({(member.run, member.study) for member in members}):
        mine = [m for m, member in enumerate(members) if (member.run, member.study) == study]
        kept += sorted(mine, key=lambda m: (-scores[m], members[m].id))[:count]
    return selection.take_members(sorted(kept, key=lambda m: members[m].id))
