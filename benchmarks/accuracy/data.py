"""Corpora, classes and folds of the study: those that raysere's own ``nested`` protocol makes, so
that all systems share them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import kept_folder

SEED = 0
RAVDESS = [[f"ravdess/{actor:02d}" for actor in range(first, first + 4)] for first in range(1, 25, 4)]


@dataclass(frozen=True)
class Corpus:
    """A corpus: its title, class map, outer folds (by speaker) and how many inner ones."""

    title: str
    classes: str
    outer: Any
    inner: int


CORPORA = {
    "emodb": Corpus("EmoDB", "emodb4", "leave_one_speaker_out", 5),
    "emovo": Corpus("EMOVO", "emovo7", "leave_one_speaker_out", 5),
    "ravdess": Corpus("RAVDESS", "ravdess8", RAVDESS, 5),
    "nemo": Corpus("nEMO", "nemo6", "leave_one_speaker_out", 4),
}


@dataclass(frozen=True)
class Data:
    """N labelled utterances of a corpus.

    Attributes:
        manifest: raysere's manifest of them, in this order. classes: names.
        label: int64 (N,). speaker: str (N,). outer: int64 (N,), the outer fold in which a row is
            tested.
        inner: int64 (O, N), the inner fold of a row while outer fold o is tested; -1 for the test
            rows.
    """

    name: str
    manifest: Any
    classes: tuple[str, ...]
    label: np.ndarray
    speaker: np.ndarray
    outer: np.ndarray
    inner: np.ndarray

    @property
    def utterances(self) -> list[str]:
        return self.manifest.table["utterance"].to_list()


def folder(name: str) -> Path:
    """A folder for what the study keeps."""
    path = kept_folder() / "accuracy" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def encoder(window: str) -> dict[str, Any]:
    """The pretrained encoder as the features of an experiment; ``window`` is ``clip`` or ``full``
    (as published).
    """
    return {"backbone": f"hf:{Path(os.environ['RAYSERE_MODELS']) / 'whisper-base-encoder'}", "options": {"window": window}}


def settings(name: str) -> dict[str, Any]:
    """What every experiment of a corpus shares: data, task and protocol."""
    corpus = CORPORA[name]
    return {
        "corpora": [{"corpus": name, "path": str(Path(os.environ["RAYSERE_CORPORA"]) / name)}],
        "task": {"kind": "categorical", "classes": corpus.classes, "metric": "uar"},
        "protocol": {"kind": "nested", "by": "speaker", "outer": corpus.outer, "inner": corpus.inner},
        "seed": SEED,
        "store": str(folder("features")),
        "runs": str(folder("runs")),
    }


@lru_cache(maxsize=8)
def load(name: str) -> Data:
    """The corpus with the folds of an experiment of :func:`settings`."""
    import polars as pl

    from raysere.pipeline.experiment import Experiment
    from raysere.pipeline.prepare import prepare

    features = {"acoustic": {"backbone": "acoustic"}}
    search = [{"space": "pooled_quick", "features": "acoustic", "trials": 1}]
    prepared = prepare(Experiment.model_validate({"name": f"folds-{name}", "features": features, "search": search, **settings(name)}))
    manifest = prepared.manifest.used_by(prepared.splits)
    table = manifest.table.select("utterance", "speaker", "emotion", "corpus")
    names = prepared.class_map.apply(manifest.table)[0]
    place = {utterance: row for row, utterance in enumerate(table["utterance"])}
    number = prepared.splits["outer"].n_unique()
    outer, inner = np.full(len(place), -1), np.full((number, len(place)), -1)
    for fold, utterance, role, within in prepared.splits.iter_rows():
        if role == "test":
            outer[place[utterance]] = fold
        else:
            inner[fold, place[utterance]] = within
    assert (outer >= 0).all()
    assert ((inner >= 0).sum(0) == number - 1).all()
    label = np.array([prepared.task.classes.index(str(one)) for one in names])
    speaker = table["speaker"].cast(pl.String).to_numpy()
    return Data(name, manifest, tuple(prepared.task.classes), label, speaker, outer, inner)
