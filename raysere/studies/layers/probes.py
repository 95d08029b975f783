"""Linear probes on one layer: relevance for emotion within a corpus, the proxy A-distance between
corpora, and (ORACLE) transfer.

A probe is ridge regression on class indicators with class weights (:mod:`raysere.nn.ridge`), in
closed form: no step size, no early stopping, so that two layers differ by nothing but their
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike, NDArray

from raysere.base.errors import DataError
from raysere.corpora.splits import Protocol, make_splits
from raysere.nn.losses import class_weights
from raysere.nn.ridge import fit_ridge
from raysere.studies.estimate import Estimate
from raysere.studies.layers.discrepancy import moved_by, zscored
from raysere.training.metrics import bootstrap

STRENGTH = 0.3  # of the ridge, relative to the variance of the features
FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """Linear scores of classes: float64 ``coefficients`` (D, C), ``bias`` (C,)."""

    coefficients: NDArray[np.float64]
    bias: NDArray[np.float64]

    def predict(self, x: NDArray) -> NDArray[np.int64]:
        """The class of each row (n,)."""
        return np.argmax(x @ self.coefficients + self.bias, axis=1)


def fit_probe(x: ArrayLike, label: ArrayLike, classes: int, *, strength: float = STRENGTH) -> Probe:
    """Fit a probe on rows (n, D) with classes (n,), each class weighing the same.

    Raises DataError where a class has no row.
    """
    label = torch.as_tensor(np.asarray(label), dtype=torch.long)
    counts = torch.bincount(label, minlength=classes)
    if (counts == 0).any():
        raise DataError(f"A probe of {classes} classes was given rows of {int((counts > 0).sum())}")
    weights = class_weights((counts / counts.sum()).float(), 1.0)[label]
    targets = torch.nn.functional.one_hot(label, classes).float() - 1 / classes
    found = fit_ridge(torch.as_tensor(np.asarray(x), dtype=torch.float32), targets, weights, strength)
    return Probe(found.coefficients.double().numpy(), found.bias.double().numpy())


def speaker_folds(
    speakers: Sequence[str], label: ArrayLike, *, folds: int = FOLDS, seed: int = 0, linked: Sequence[Sequence[str]] = ()
) -> NDArray[np.int64]:
    """A fold (n,) for each row such that no speaker is in two, as balanced by class as it goes; -1
    for rows without a class (-1).

    There are as many folds as speakers where those are fewer. Raises DataError where the folds
    cannot all be trained on.
    """
    label = np.asarray(label)
    names = [str(name) for name in speakers]
    table = pl.DataFrame(
        {
            "utterance": [f"{row:09d}" for row in range(len(names))],
            "speaker": names,
            "label": pl.Series([None if code < 0 else str(code) for code in label.tolist()], dtype=pl.String),
        }
    )
    present = len(set(table.filter(pl.col("label").is_not_null())["speaker"]))
    protocol = Protocol(kind="out_of_fold", folds=max(2, min(folds, present)))
    splits = make_splits(table, protocol, seed, [group for group in linked if len(set(group) & set(names)) > 1])
    fold = np.full(len(names), -1, dtype=np.int64)
    fold[splits["utterance"].cast(pl.Int64).to_numpy()] = splits["fold"].fill_null(-1).to_numpy()
    return fold


def out_of_fold(x: ArrayLike, label: ArrayLike, fold: ArrayLike, classes: int, *, strength: float = STRENGTH) -> NDArray[np.int64]:
    """The class (n,) that a probe trained on the other folds gives each row; -1 for rows without a
    fold. Z-scored by training rows.
    """
    x, label, fold = np.asarray(x, dtype=np.float64), np.asarray(label), np.asarray(fold)
    predicted = np.full(len(x), -1, dtype=np.int64)
    for number in np.unique(fold[fold >= 0]):
        train, held = (fold != number) & (fold >= 0), fold == number
        probe = fit_probe(zscored(x[train]), label[train], classes, strength=strength)
        predicted[held] = probe.predict(moved_by(x[train], x[held]))
    return predicted


def relevance(
    x: ArrayLike, label: ArrayLike, fold: ArrayLike, speakers: ArrayLike, classes: int, *, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Relevance of a layer (docs/methods.md 8.5):

    UAR of a probe on held-out speakers, with an interval. ``null`` is chance.
    """
    predicted, label = out_of_fold(x, label, fold, classes), np.asarray(label)
    return _uar(label, predicted, speakers, predicted >= 0, classes, draws, seed)


def _uar(label: NDArray, predicted: NDArray, speakers: ArrayLike, rows: NDArray, classes: int, draws: int, seed: int) -> Estimate:
    found = bootstrap("uar", label[rows], predicted[rows], np.asarray(speakers)[rows], classes=classes, draws=draws, seed=seed)
    return Estimate(found.value, found.low, found.high, null=1 / classes)


def proxy_a_distance(
    source: ArrayLike,
    target: ArrayLike,
    speakers: tuple[Sequence[str], Sequence[str]],
    *,
    linked: Sequence[Sequence[str]] = (),
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """``2 (1 - 2 err)`` with err the error of a linear domain classifier on held-out speakers
    (Ben-David et al. 2007), in [-2, 2].

    err is the mean of the two corpora's errors, so that their sizes do not count. Features are
    z-scored by the training rows of both corpora together: after a z-score of each on its own all
    means are equal, and a linear classifier is at chance by construction. 0: the corpora cannot be
    told apart; 2: always. The interval is over speakers, with the classifiers as they are.
    """
    rows = np.concatenate([np.asarray(side, dtype=np.float64) for side in (source, target)])
    domain = (np.arange(len(rows)) >= len(np.asarray(source))).astype(np.int64)
    names = [*map(str, speakers[0]), *map(str, speakers[1])]
    most = min(len(set(map(str, side))) for side in speakers)
    if most < 2:
        return Estimate(float("nan"), reason="a corpus has one speaker only: none can be held out")
    fold = speaker_folds(names, domain, folds=min(FOLDS, most), seed=seed, linked=linked)
    predicted = out_of_fold(rows, domain, fold, 2)
    found = bootstrap("uar", domain, predicted, names, classes=2, draws=draws, seed=seed)
    return Estimate(4 * found.value - 2, 4 * found.low - 2, 4 * found.high - 2, null=0.0)


def oracle_transfer(
    source: ArrayLike,
    label: ArrayLike,
    target: ArrayLike,
    target_label: ArrayLike,
    target_speakers: ArrayLike,
    classes: int,
    *,
    norm: str = "corpus",
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """ORACLE (reads the target's labels): UAR on the target of the probe that was fitted on all of
    the source.

    ``norm``: ``corpus``, each corpus z-scored by its own (unlabelled) statistics; ``source``, both
    by those of the source.
    """
    label, target_label = np.asarray(label), np.asarray(target_label)
    probe = fit_probe(zscored(np.asarray(source)[label >= 0]), label[label >= 0], classes)
    rows = zscored(target) if norm == "corpus" else moved_by(np.asarray(source)[label >= 0], target)
    return _uar(target_label, probe.predict(rows), target_speakers, target_label >= 0, classes, draws, seed)
