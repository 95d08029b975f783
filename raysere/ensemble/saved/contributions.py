"""The contribution of each member to an answer."""

from __future__ import annotations

import numpy as np

from raysere.ensemble.data.predictions import StackedPredictions
from raysere.ensemble.fit.part import OuterFit
from raysere.ensemble.fit.pools import row_weights


def contributions_of(parts: list[OuterFit], predictions: StackedPredictions) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Members, their shares of each answer, and their own calibrated probabilities.

    Returns:
        (ids (m,), shares float64 (m, N), probabilities float64 (m, N, K)). For each item the shares
        of the members that could answer sum to 1 (all 0 where none could); members of several parts
        share equally. Probabilities of absent members are NaN.
    """
    ids: list[str] = []
    shares: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    for part in parts:
        if part.classes is None:
            continue
        found = predictions.aligned(part.classes.members)
        weight = np.nan_to_num(row_weights(part.classes.weights, found.present))
        for m, member in enumerate(part.classes.members):
            ids.append(member.id)
            shares.append(weight[m])
            p = np.exp(part.classes.calibrations[m].apply(found.logp[m]).astype(np.float64))
            probabilities.append(np.where(found.present[m][:, None], p, np.nan))
    count, classes = len(predictions.utterances), len(predictions.classes)
    if not ids:
        return [], np.zeros((0, count)), np.zeros((0, count, classes))
    stacked = np.stack(shares)
    total = stacked.sum(0)
    return ids, np.where(total > 0, stacked / np.maximum(total, 1e-300), 0.0), np.stack(probabilities)
