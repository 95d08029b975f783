"""Audio and text that tell the class only together, and a mask contract on two streams of different
length.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from raysere.features.spec import FeatureSpec, LayerSpec
from raysere.features.views import FeatureView, Stream
from raysere.training.method import Batch
from raysere.training.task import Fold, Labels, Task, TrialData

NAMES = ("speech", "words")


def view(modality: str, ids: list[str], rows: list[np.ndarray | None], granularity: str = "frame") -> FeatureView:
    """One stream of two layers; the second is noise around the first."""
    random = np.random.default_rng(7)
    spec = FeatureSpec(
        backbone=f"toy-{modality}",
        identity="toy",
        modality=modality,  # type: ignore[arg-type]
        granularity=granularity,  # type: ignore[arg-type]
        dtype="float32",
        sampling_rate=16000,
        frame_s=0.02,
        layers=tuple(
            LayerSpec(
                number=n,
                name=str(n),
                dim=next(len(row[0]) for row in rows if row is not None),
                rows="utterance" if granularity == "utterance" else "frame",
            )
            for n in range(2)
        ),
    )
    noisy = [None if row is None else (row + random.normal(size=row.shape)).astype(np.float32) for row in rows]
    return FeatureView.from_arrays(spec, ids, {0: rows, 1: noisy})


def interaction(
    utterances: int = 240, *, granularities: tuple[str, str] = ("frame", "frame"), missing: float = 0.0, seed: int = 0
) -> TrialData:
    """Class = audio bit xor text bit. Each bit shifts the rows of its stream, so either stream by
    itself says nothing.

    The last quarter of the 12 speakers is the test part; ``missing`` is the share of utterances
    that lack each stream (never both).
    """
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2, (2, utterances))
    label = bits[0] ^ bits[1]
    speaker = np.arange(utterances) % 12
    ids = [f"xor/{n:04d}" for n in range(utterances)]
    lot = random.random(utterances)
    views = {}
    for number, (name, modality, granularity) in enumerate(zip(NAMES, ("audio", "text"), granularities, strict=True)):
        direction = random.normal(size=6)
        direction *= 2.0 / np.linalg.norm(direction)
        rows: list[np.ndarray | None] = []
        for n in range(utterances):
            length = 1 if granularity == "utterance" else int(random.integers(2, 7))
            values = (2 * bits[number, n] - 1) * direction + 0.5 * random.normal(size=(length, 6))
            gone = lot[n] < missing if number else lot[n] > 1 - missing
            rows.append(None if gone else values.astype(np.float32))
        views[name] = view(modality, ids, rows, granularity)
    labels = Labels(
        ids,
        label.astype(np.int64),
        None,
        None,
        speaker.astype(np.int64),
        [f"xor/{n}" for n in range(12)],
        np.zeros(utterances, dtype=np.int64),
        ["xor"],
        (speaker % 2).astype(np.int64),
        np.full(utterances, 2.0),
    )
    rows_of, held = np.arange(utterances), speaker >= 9
    folds = (Fold(0, rows_of[~held & (speaker % 3 != 0)], rows_of[~held & (speaker % 3 == 0)]),)
    return TrialData(Task(classes=("even", "odd")), labels, folds, rows_of[held], views)


def padded(stream: Stream, more: int, junk: float) -> Stream:
    """The same rows with ``more`` padding, and junk in all of it."""
    mask = torch.nn.functional.pad(stream.mask, (0, more))
    layers = {
        number: torch.nn.functional.pad(x, (0, 0, 0, more)).masked_fill(~mask.unsqueeze(-1), junk) for number, x in stream.layers.items()
    }
    return Stream(layers, mask, stream.stats, stream.granularity, stream.kind)


def without(stream: Stream, items: list[int]) -> Stream:
    """The same batch in which these items have no row of the stream."""
    mask = stream.mask.clone()
    mask[items] = False
    return Stream(stream.layers, mask, stream.stats, stream.granularity, stream.kind)


def unlabelled(streams: Mapping[str, Stream]) -> Batch:
    """A batch to predict."""
    nothing = torch.full((len(next(iter(streams.values())).mask),), -1)
    return Batch(nothing, dict(streams), nothing, None, None, nothing, nothing)
