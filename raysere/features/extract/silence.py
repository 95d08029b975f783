"""Which frames of a clip are speech, by their level."""

from __future__ import annotations

import numpy as np


def speech_frames(wave: np.ndarray, frames: int, hop: float, depth_db: float) -> np.ndarray:
    """Bool (frames,): frames whose level lies within ``depth_db`` dB of the loudest frame. At least
    one is True.

    Args:
        wave: float32 (samples,). hop: samples a frame, not always whole; frame t covers
            ``[t * hop, (t + 1) * hop)``. Frames that begin behind the end of the wave are silent.
    """
    edges = np.minimum(np.round(np.arange(frames + 1) * hop).astype(np.int64), len(wave))
    power = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    size = np.diff(edges)
    mean = np.where(size > 0, np.diff(power[edges]) / np.maximum(size, 1), -1.0)
    speech = (size > 0) & (mean >= mean.max() * 10 ** (-depth_db / 10))
    return speech if speech.any() else np.ones(frames, dtype=bool)
