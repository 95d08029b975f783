"""Which layer's units tell phones apart best:

PNMI and purities by layer, with codebooks of one small size (docs/methods.md 7.5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from raysere.features.views import FeatureView
from raysere.nn.frame_units import FrameUnits, frame_norm, frame_pool, frames_in_batches
from raysere.nn.kmeans import kmeans
from raysere.studies.units.config import UnitsConfig
from raysere.studies.units.counts import PhoneFrames
from raysere.studies.units.quality import unit_quality

_FRAMES_A_UNIT = 20


def layer_quality(view: FeatureView, table: pl.DataFrame, phones: PhoneFrames, config: UnitsConfig) -> list[dict[str, Any]]:
    """Rows of layer, language (None: all together) and the measures of :func:`unit_quality`, for
    every layer of the view.

    No emotion is read, so a layer may be chosen by it before anything is trained. PNMI grows with
    K: compare layers, not studies.
    """
    columns = {name: table[name].to_list() for name in ("corpus", "language", "speaker")}
    languages = sorted(set(columns["language"]))
    rows = _rows_with_phones(view, phones, 2 * config.layer_frames, config.seed)
    found: list[dict[str, Any]] = []
    for layer in view.spec.numbers:
        norm = frame_norm(view, layer, config.norm, columns["corpus"], columns["speaker"])
        pool = frame_pool(
            view,
            layer,
            norm,
            language=columns["language"],
            speaker=columns["speaker"],
            per_language=max(1, config.layer_frames // len(languages)),
            per_speaker=config.per_speaker,
            seed=config.seed,
        )
        size = max(2, min(config.layer_units, len(pool) // _FRAMES_A_UNIT))
        codebook = FrameUnits.of(kmeans(pool, size, seeds=[config.seed], passes=2, lloyd=3)[0], pool)
        joint = np.zeros((len(languages), len(phones.names), size), dtype=np.int64)
        for some, lengths, frames in frames_in_batches(view, layer, norm, rows):
            phone = np.concatenate([phones.of_utterance(view.utterances[row], int(n)) for row, n in zip(some, lengths, strict=True)])
            spoken = np.repeat([languages.index(columns["language"][row]) for row in some], lengths)
            inside = phone >= 0
            np.add.at(joint, (spoken[inside], phone[inside], codebook.units(frames)[inside]), 1)
        for name, part in [(None, joint.sum(0)), *zip(languages, joint, strict=True)]:
            if part.any() and (name is None or len(languages) > 1):
                found.append({"layer": layer, "language": name, "units": size, **unit_quality(part)})
    return found


def _rows_with_phones(view: FeatureView, phones: PhoneFrames, frames: int, seed: int) -> np.ndarray:
    """Utterances that have phones, in random order, until they hold so many frames."""
    there = np.array([row for row, name in enumerate(view.utterances) if view.present[row] and name in phones.codes], dtype=np.int64)
    there = np.random.default_rng(seed).permutation(there)
    return there[: int(np.searchsorted(np.cumsum(view.lengths(there)), frames)) + 1]


def best_layer(rows: list[dict[str, Any]]) -> int:
    """The layer of the highest PNMI over all languages together; the lower one of equals."""
    together = [row for row in rows if row["language"] is None]
    return int(max(together, key=lambda row: (row["pnmi"], -row["layer"]))["layer"])
