"""The linear meta-classifier with a weight soup of a challenge team (docs/methods.md 4.12):
probabilities and attributes of all members to class logits, trained six times like a member (AdamW,
class weights ``(N / (K n_k)) ^ .5``, early stopping), weights averaged.

Averaging the weights of linear classifiers is averaging their logits, so the soup is an ensemble of
six.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions
from raysere.ensemble.fit.attributes import group_folds
from raysere.ensemble.fit.calibration import log_softmax

MEMBERS = 14  # as published: the best by themselves
RUNS = 6
_RATE, _DECAY, _EPOCHS, _PATIENCE = 0.02, 1e-3, 60, 6


@dataclass(frozen=True)
class Linear:
    """``features @ weights + bias``: (F, K) and (K,)."""

    weights: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weights + self.bias


def soup(heads: Sequence[Linear]) -> Linear:
    """The mean of weights and biases."""
    return Linear(np.mean([head.weights for head in heads], axis=0), np.mean([head.bias for head in heads], axis=0))


@dataclass(frozen=True)
class MetaSoup:
    """The averaged classifier, its members in order, and the column means (F,) that stand for an
    absent member.
    """

    members: tuple[MemberInfo, ...]
    head: Linear
    filling: np.ndarray

    def predict(self, predictions: StackedPredictions) -> np.ndarray:
        """Log-probabilities (N, K); NaN where no member is present."""
        found = predictions.aligned(self.members)
        logp = log_softmax(self.head.logits(_features(found, self.filling)))
        logp[~found.present.any(0)] = np.nan
        return logp


def fit_meta_soup(selection: FitRows, seed: int) -> MetaSoup:
    """Fit on the labelled rows; each run stops early on another sixth of the speakers, and its seed
    orders its batches.
    """
    rows = selection.take_rows(selection.label >= 0)
    raw = _features(rows.predictions, None)
    count = np.maximum(np.isfinite(raw).sum(0), 1)
    filling = np.where(np.isfinite(raw), raw, 0.0).sum(0) / count
    features = np.where(np.isfinite(raw), raw, filling)
    fold = group_folds(rows.group, RUNS, seed)
    classes = len(rows.predictions.classes)
    heads = [train_linear(features, rows.label, fold == run % (fold.max() + 1), classes, seed=[seed, run]) for run in range(RUNS)]
    return MetaSoup(rows.predictions.members, soup(heads), filling)


def _features(found: StackedPredictions, filling: np.ndarray | None) -> np.ndarray:
    """Probabilities and attributes (N, M (K + A)); NaN, or ``filling``, where a member is absent."""
    values = np.concatenate([np.exp(found.logp), found.values], axis=2).astype(np.float64)
    values[~found.present] = np.nan
    flat = values.transpose(1, 0, 2).reshape(len(found.utterances), -1)
    return flat if filling is None else np.where(np.isfinite(flat), flat, filling)


def train_linear(features: np.ndarray, label: np.ndarray, held: np.ndarray, classes: int, seed: Sequence[int]) -> Linear:
    """One classifier by AdamW on the rows that are not ``held`` (N,), at the epoch with the least
    loss on those that are.

    Where all rows are held (one speaker), it trains and stops on the same.
    """
    generator = np.random.default_rng(seed)
    counts = np.bincount(label, minlength=classes)
    importance = np.sqrt(len(label) / (classes * np.maximum(counts, 1)))[label]
    train = np.flatnonzero(~held) if (~held).any() else np.arange(len(label))
    theta = generator.normal(0, 0.01, (features.shape[1] + 1, classes))
    first, second, step = np.zeros_like(theta), np.zeros_like(theta), 0
    batch = int(np.clip(len(train) // 8, 16, 1024))
    best, kept, since = np.inf, theta, 0
    for _ in range(_EPOCHS):
        order = generator.permutation(train)
        for begin in range(0, len(order), batch):
            rows = order[begin : begin + batch]
            away = np.exp(log_softmax(features[rows] @ theta[:-1] + theta[-1]))
            away[np.arange(len(rows)), label[rows]] -= 1.0
            away *= (importance[rows] / importance[rows].sum())[:, None]
            gradient = np.vstack([features[rows].T @ away, away.sum(0)])
            step += 1
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            move = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            theta = theta * (1 - _RATE * _DECAY) - _RATE * move
        logp = log_softmax(features[held] @ theta[:-1] + theta[-1])
        loss = float(np.average(-logp[np.arange(held.sum()), label[held]], weights=importance[held]))
        best, kept, since = (loss, theta, 0) if loss < best - 1e-5 else (best, kept, since + 1)
        if since >= _PATIENCE:
            break
    return Linear(kept[:-1], kept[-1])
