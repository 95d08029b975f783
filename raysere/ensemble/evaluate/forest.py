"""The random-forest stack of a challenge team (docs/methods.md 4.12): 200 trees of depth 8 with at
least 10 items a leaf, trained on a class-balanced draw of the members' logits, one forest for each
of five stratified folds, and the mean of the five.

It needs scikit-learn, which is an optional extra. Theirs learned from items that the members had
trained on; ours does not.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysere.base.errors import ConfigError
from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions
from raysere.ensemble.fit.greedy import thread_count

MEMBERS = 12  # as published: the best by themselves
_TREES, _DEPTH, _LEAF, _FOLDS = 200, 8, 10, 5
_EACH, _FEWEST = 1120, 30  # items of a class: as published at most; of a rarer class some are drawn again


def forest_available() -> bool:
    """Whether scikit-learn is installed."""
    return importlib.util.find_spec("sklearn") is not None


@dataclass(frozen=True)
class Forest:
    """Fitted forests, the members (in order) whose log-probabilities they read, and what stands for
    an absent one, (M, K).
    """

    members: tuple[MemberInfo, ...]
    forests: tuple[Any, ...]
    filling: np.ndarray

    def predict(self, predictions: StackedPredictions) -> np.ndarray:
        """Mean class probabilities (N, K) over the forests; NaN where no member is present."""
        found = predictions.aligned(self.members)
        features = _features(found, self.filling)
        p = np.zeros((len(features), self.filling.shape[1]))
        for forest in self.forests:
            p[:, forest.classes_.astype(np.int64)] += forest.predict_proba(features) if len(features) else 0.0
        p = p / len(self.forests)
        p[~found.present.any(0)] = np.nan
        return p


def fit_forest(selection: FitRows, seed: int) -> Forest:
    """Fit on the labelled rows of ``selection``, whose members are those to be read.

    Raises ConfigError without scikit-learn.
    """
    if not forest_available():
        raise ConfigError(
            "The forest recipe needs scikit-learn, which is not installed",
            where="ensemble.recipes",
            remedy="Run `pip install raysere[baselines]`, or leave the forest out of ensemble.recipes.",
        )
    from sklearn.ensemble import RandomForestClassifier

    rows = selection.take_rows(selection.label >= 0)
    found, label = rows.predictions, rows.label
    weight = found.present[:, :, None]
    filling = np.where(weight, found.logp, 0.0).sum(1) / np.maximum(weight.sum(1), 1)
    features = _features(found, filling)
    generator = np.random.default_rng(seed)
    there = np.unique(label)
    each = int(np.clip(min((label == k).sum() for k in there), _FEWEST, _EACH))
    drawn, fold = [], []
    for k in there:
        mine = np.flatnonzero(label == k)
        drawn.append(generator.choice(mine, each, replace=each > len(mine)))
        fold.append(np.arange(each) % _FOLDS)  # in the order of the draw, so that folds are stratified
    index, number = np.concatenate(drawn), np.concatenate(fold)
    forests = []
    for f in range(_FOLDS):
        chosen = index[number != f]
        forest = RandomForestClassifier(_TREES, max_depth=_DEPTH, min_samples_leaf=_LEAF, random_state=seed + f, n_jobs=thread_count())
        forests.append(forest.fit(features[chosen], label[chosen]))
    return Forest(found.members, tuple(forests), filling)


def _features(found: StackedPredictions, filling: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, M K), with ``filling`` (M, K) where a member is absent."""
    values = np.where(found.present[:, :, None], found.logp, filling[:, None, :].astype(np.float32))
    return values.transpose(1, 0, 2).reshape(len(found.utterances), -1)
