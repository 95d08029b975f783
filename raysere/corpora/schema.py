"""The columns of a manifest."""

from __future__ import annotations

import polars as pl

SPLIT_NAMES = ("train", "dev", "test", "unlabelled")
SEXES = ("female", "male", "other")
ATTRIBUTES = ("arousal", "valence", "dominance")

_ALIGNMENT = pl.List(pl.Struct({"label": pl.String, "start_s": pl.Float64, "end_s": pl.Float64}))

SCHEMA: dict[str, pl.DataType] = {
    "utterance": pl.String(),
    "corpus": pl.String(),
    "language": pl.String(),
    "path": pl.String(),
    "start_s": pl.Float64(),
    "end_s": pl.Float64(),
    "duration_s": pl.Float64(),
    "sampling_rate": pl.Int32(),
    "speaker": pl.String(),
    "sex": pl.String(),
    "split": pl.Enum(SPLIT_NAMES),
    "emotion": pl.String(),
    "votes": pl.List(
        pl.Struct({"rater": pl.String, "emotion": pl.String, "arousal": pl.Float32, "valence": pl.Float32, "dominance": pl.Float32})
    ),
    "arousal": pl.Float32(),
    "valence": pl.Float32(),
    "dominance": pl.Float32(),
    "transcript": pl.String(),
    "words": _ALIGNMENT,
    "phones": _ALIGNMENT,
    "dialogue": pl.String(),
    "turn": pl.Int32(),
    "traces": pl.List(pl.Struct({"rater": pl.String, "attribute": pl.String, "time_s": pl.Float64, "value": pl.Float32})),
    "video": pl.String(),
}
"""Column to polars type, in canonical order. Times are in seconds; attributes are on the corpus's own scale."""

REQUIRED = ("utterance", "corpus", "language", "speaker")
