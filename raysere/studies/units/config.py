"""Settings of the study of units."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysere.base.errors import ConfigError

SIZES = (500, 200, 100, 50, 20, 10)  # tried in turn where the number of units is left open


class UnitsConfig(BaseModel):
    """Settings of a units study; see docs/methods.md 7.2.

    Attributes:
        units: K; None takes the largest of :data:`SIZES` that vowels with half of the vowel frames
            of every language bear.
        layer: None takes the layer whose units tell phones apart best (PNMI), or without phones the
            middle one.
        norm: of frames: none, corpus (z-score) or speaker (mean removal).
        sex: only speakers of it. same_sentences: only sentences that are spoken in every emotion,
            equally often in each.
        unlabelled: corpora whose emotions are not read at all, not even to balance what the
            codebook is learned from: the target of an adaptation that anchors are chosen for.
        seeds: codebooks learned; the one of the lowest inertia counts, the others say how stable a
            conclusion is.
        per_language, per_speaker: frames that a codebook is learned from.
        margin_s: frames so near to a boundary of a phone are left out.
        speaker_balanced: every speaker's histogram (of 20 frames or more) counts alike.
        frames_per_unit: a cell is compared only where it has so many frames for each of the K
            units.
        permutations, bootstraps, splits: random draws of the tests, of the bounds, and of the
            half-split correction.
        min_frames, min_speakers, kappa: what an anchor needs, in each cell and language.
        reference: the emotion that the others are compared with.
        formant_tokens: vowels measured a speaker and vowel for V4; 0 leaves V4 out.
        layers_compared: nearest other layers that V6 learns a codebook of, where there are two
            languages.
        oracle: whether V5, which reads the emotions of both languages, is added; nothing else
            depends on it.
        level: q of Benjamini and Hochberg.
        layer_units, layer_frames: K and frames of the codebooks that layers are compared by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    units: Annotated[int, Field(ge=2, le=20_000)] | None = None
    layer: Annotated[int, Field(ge=0)] | None = None
    norm: Literal["none", "corpus", "speaker"] = "corpus"
    sex: Literal["female", "male", "other"] | None = None
    same_sentences: bool = False
    unlabelled: tuple[str, ...] = ()
    seeds: int = Field(5, ge=1, le=50)
    per_language: int = Field(200_000, ge=100)
    per_speaker: int = Field(5_000, ge=20)
    margin_s: float = Field(0.0, ge=0, le=0.2)
    speaker_balanced: bool = False
    frames_per_unit: float = Field(50.0, gt=0)
    permutations: int = Field(2_000, ge=19)
    bootstraps: int = Field(1_000, ge=20)
    splits: int = Field(20, ge=2)
    min_frames: int = Field(500, ge=1)
    min_speakers: int = Field(10, ge=2)
    kappa: float = Field(1.0, ge=0)
    reference: str = "neutral"
    formant_tokens: int = Field(20, ge=0)
    layers_compared: int = Field(4, ge=0)
    oracle: bool = True
    level: float = Field(0.05, gt=0, lt=1)
    layer_units: int = Field(100, ge=2)
    layer_frames: int = Field(20_000, ge=100)
    seed: int = Field(0, ge=0)

    def needed(self, units: int) -> int:
        """Frames that a cell needs."""
        return math.ceil(units * self.frames_per_unit)


def units_config(values: dict[str, Any]) -> UnitsConfig:
    """Settings from plain values.

    Raises ConfigError that names the wrong one and the valid ones.
    """
    try:
        return UnitsConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{'.'.join(map(str, first['loc'])) or 'units'}: {first['msg']}", where="units study", choices=list(UnitsConfig.model_fields)
        ) from error
