"""A small separable trial in memory, for the conformance suites and for trying a method by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from raysere.features.spec import FeatureSpec, LayerSpec
from raysere.features.views import FeatureView
from raysere.training.method import Batch
from raysere.training.task import ATTRIBUTES, Fold, Labels, Task, TrialData

Kind = Literal["categorical", "dimensional", "both"]
Granularity = Literal["utterance", "chunk", "frame"]


def toy_task(kind: Kind = "categorical") -> Task:
    """Three classes and/or three attributes."""
    return Task(
        kind=kind,
        classes=() if kind == "dimensional" else ("anger", "neutral", "sadness"),
        attributes=() if kind == "categorical" else ATTRIBUTES,
        metric="ccc" if kind == "dimensional" else "uar",
    )


def toy_data(
    kind: Kind = "categorical",
    *,
    granularity: str = "utterance",
    modalities: Sequence[str] = ("audio",),
    layers: int = 2,
    dim: int = 8,
    utterances: int = 120,
    speakers: int = 12,
    folds: int = 3,
    noise: float = 0.4,
    seed: int = 0,
) -> TrialData:
    """A separable trial: class and attributes shift the rows of every layer; speakers are disjoint
    between folds and the test part.

    The last quarter of the speakers is the test part. A fifth of the attributes is missing, half of
    the utterances has votes.
    """
    random = np.random.default_rng(seed)
    task = toy_task(kind)
    speaker = np.arange(utterances) % speakers
    label = random.integers(0, 3, utterances)
    attributes = random.uniform(*task.scale, (utterances, 3)).astype(np.float32)
    hidden = np.concatenate([np.eye(3)[label] * 2 - 1, (attributes - 4) / 1.5], axis=1)
    ids = [f"toy/{number:04d}" for number in range(utterances)]
    lengths = np.ones(utterances, dtype=int) if granularity == "utterance" else random.integers(3, 9, utterances)
    parts = 1 if granularity == "frame" else 2
    views = {}
    for modality in modalities:
        arrays = {}
        for layer in range(layers):
            mixing = random.normal(size=(6, dim * parts))
            arrays[layer] = [
                (hidden[row] @ mixing + noise * random.normal(size=(lengths[row], dim * parts)) + layer).astype(np.float32)
                for row in range(utterances)
            ]
        spec = FeatureSpec(
            backbone=f"toy-{modality}",
            identity="toy",
            modality=modality,
            granularity=granularity,  # type: ignore[arg-type]
            dtype="float32",
            sampling_rate=16000,
            frame_s=0.02,
            layers=tuple(LayerSpec(number=layer, name=f"layer {layer}", dim=dim, rows="frame") for layer in range(layers)),
        )
        views[modality] = FeatureView.from_arrays(spec, ids, arrays)
    attributes[random.random(attributes.shape) < 0.2] = np.nan
    votes = np.where(random.random(utterances) < 0.5, 5, 0).astype(np.float32)
    soft = np.where(votes[:, None] > 0, 0.8 * np.eye(3)[label] + 0.2 * np.eye(3)[(label + 1) % 3], 0).astype(np.float32)
    labels = Labels(
        ids,
        label.astype(np.int64),
        soft if task.categorical else None,
        attributes if task.dimensional else None,
        speaker.astype(np.int64),
        [f"toy/{number}" for number in range(speakers)],
        np.zeros(utterances, dtype=np.int64),
        ["toy"],
        (speaker % 2).astype(np.int64),
        np.full(utterances, 2.0),
        votes if task.categorical else None,
    )
    rows, held = np.arange(utterances), speaker >= speakers - speakers // 4
    return TrialData(
        task,
        labels,
        tuple(Fold(fold, rows[~held & (speaker % folds != fold)], rows[~held & (speaker % folds == fold)]) for fold in range(folds)),
        rows[held],
        views,
    )


def with_target(data: TrialData) -> TrialData:
    """The same trial with half of its test speakers as unlabelled target items that a method may
    learn from.
    """
    speaker = data.labels.speaker[data.test]
    adapted = speaker <= np.median(np.unique(speaker))
    return replace(data, test=data.test[~adapted], unlabelled=data.test[adapted])


class ToyFeed:
    """What ``begin_epoch`` is given, of a trial's first fold in one batch."""

    def __init__(self, data: TrialData, layers: Mapping[str, list[int]]) -> None:
        self.data, self.layers = data, layers

    def source(self) -> Iterator[Batch]:
        yield toy_batch(self.data, self.data.folds[0].train, self.layers)

    def target(self) -> Iterator[Batch]:
        yield unlabelled(toy_batch(self.data, self.data.unlabelled, self.layers))


def unlabelled(batch: Batch) -> Batch:
    """The batch as the loop gives items of a target domain."""
    hidden = torch.full_like(batch.label, -1)
    return replace(batch, label=hidden, soft=None, attributes=None, votes=None, is_target_domain=torch.ones_like(hidden, dtype=torch.bool))


def toy_batch(data: TrialData, rows: Sequence[int] | np.ndarray, layers: Mapping[str, list[int]]) -> Batch:
    """A batch of label rows as the loop makes it, without normalisation."""
    labels, index = data.labels, torch.as_tensor(np.asarray(rows), dtype=torch.long)
    low, high = data.task.scale

    def take(values: np.ndarray | None) -> Any:
        return None if values is None else torch.from_numpy(values)[index]

    attributes = take(labels.attributes)
    return Batch(
        index,
        {name: view.batch(index, layers[name]) for name, view in data.features.items()},
        take(labels.label),
        take(labels.soft),
        None if attributes is None else (attributes - low) / (high - low),
        take(labels.sex),
        take(labels.speaker),
        take(labels.votes),
    )
