"""The time of a frame: centres of frames, and the labelled interval that holds each."""

from __future__ import annotations

import numpy as np

from raysere.base.errors import ConfigError
from raysere.features.backbone import BackboneInfo
from raysere.features.spec import FeatureSpec


def frame_clock(features: FeatureSpec | BackboneInfo) -> tuple[float, float]:
    """(centre of the first frame, seconds from one frame to the next) of a backbone or of features
    at frame granularity.

    The wav2vec2 family: (0.0125, 0.02), from the receptive field of 400 samples and the stride of
    320. Whisper: (0, 0.02).

    Raises:
        ConfigError: rows that are not steps of time.
    """
    if isinstance(features, FeatureSpec):
        if features.granularity != "frame":
            raise ConfigError(
                f"These features of {features.backbone} have {features.granularity}s, whose times are not those of frames",
                choices=["granularity: frame"],
            )
        from raysere.features.backbones import describe_backbone

        features = describe_backbone(features.backbone, **features.options)
    if features.frame_s is None:
        raise ConfigError(f"The rows of {features.name!r} are not steps of time", remedy="Take a backbone that gives frames of audio.")
    return features.frame_s / 2 if features.centre_s is None else features.centre_s, features.frame_s


def frame_centres(clock: tuple[float, float], count: int) -> np.ndarray:
    """Times in s of the centres of the first ``count`` frames: float64 (count,).

    ``clock`` as of :func:`frame_clock`.
    """
    first, step = clock
    return first + step * np.arange(count, dtype=np.float64)


def interval_of(centres: np.ndarray, starts: np.ndarray, ends: np.ndarray, margin_s: float = 0.0) -> np.ndarray:
    """Number of the interval that contains each centre, -1 where none does: int64 (frames,).

    An interval contains its start and not its end. Intervals are in order of their starts and may
    leave gaps; where two overlap, the later one counts. ``margin_s``: frames within this distance
    of a boundary belong to none.
    """
    if not len(starts):
        return np.full(len(centres), -1, dtype=np.int64)
    slack = 1e-9  # a label time and a frame centre that are the same decimal number differ in the last bit
    number = np.searchsorted(starts, centres + slack, side="right") - 1
    place = np.maximum(number, 0)
    inside = (number >= 0) & (centres < ends[place] - slack)
    if margin_s > 0:
        inside &= (centres - starts[place] >= margin_s - slack) & (ends[place] - centres >= margin_s - slack)
    return np.where(inside, number, -1).astype(np.int64)
