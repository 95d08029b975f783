"""From the rows of a backbone to the rows of the store: statistics per utterance, per chunk, or the
frames themselves.

Mean and population standard deviation as in statistics pooling (papers: x-vectors; challenge
baselines), in float64 inside.
"""

from __future__ import annotations

import math

import numpy as np

from raysere.base.errors import DataError
from raysere.features.spec import PERCENTILES, FeatureSpec


def chunk_bounds(frames: int, window: int, hop: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (frames) of chunks that cover ``frames``: every chunk is ``window`` long, the
    last ends with the last frame.

    An utterance shorter than the window is one chunk.

    Examples:
        >>> [bounds.tolist() for bounds in chunk_bounds(10, 4, 3)]
        [[0, 3, 6], [4, 7, 10]]
        >>> [bounds.tolist() for bounds in chunk_bounds(11, 4, 3)]
        [[0, 3, 6, 7], [4, 7, 10, 11]]
    """
    starts = np.arange(chunk_count(frames, window, hop), dtype=np.int64) * hop
    starts = np.minimum(starts, max(0, frames - window))
    return starts, np.minimum(starts + window, frames)


def chunk_count(frames: int, window: int, hop: int) -> int:
    """Number of chunks that :func:`chunk_bounds` gives."""
    return 1 if frames <= window else 1 + math.ceil((frames - window) / hop)


def pool_frames(rows: np.ndarray, number: int, spec: FeatureSpec, speech: np.ndarray | None = None) -> np.ndarray:
    """Stored rows of one layer of one item, in the store's dtype: (rows, ``spec.width(number)``).

    ``speech`` is bool (rows,): frames that count in the statistics of an utterance; None for all.
    Raises DataError for rows that are empty, not finite, of another dim than the spec says, or
    beyond float16.
    """
    layer = spec.layer(number)
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] != layer.dim or (layer.rows == "utterance" and len(rows) != 1):
        raise DataError(
            f"Layer {number} of {spec.backbone} gave an array of shape {rows.shape}; its description says ({layer.rows} rows, {layer.dim})"
        )
    if not len(rows):
        raise DataError("too short: the backbone gave no frame")
    if not np.isfinite(rows).all():
        raise DataError(f"layer {number} of the backbone gave values that are not finite")
    if len(spec.stats(number)) > 1:
        if spec.granularity == "utterance":
            rows = _statistics((rows if speech is None else rows[speech]).astype(np.float64), spec)[None]
        else:
            wide = rows.astype(np.float64)
            pieces = [wide[start:end] for start, end in zip(*chunk_bounds(len(wide), *spec.chunk_frames()), strict=True)]
            rows = np.stack([_statistics(piece, spec) for piece in pieces])
    if spec.dtype == "float16" and np.abs(rows).max(initial=0) > 65504:
        raise DataError(
            f"layer {number} reaches {np.abs(rows).max():.3g}, more than float16 can hold; set dtype: float32 for these features"
        )
    return np.ascontiguousarray(rows, dtype=spec.dtype)


def _statistics(wide: np.ndarray, spec: FeatureSpec) -> np.ndarray:
    """The statistics of the spec (its count * dim,) of float64 (rows, dim)."""
    if spec.statistics == "mean_std":
        return _mean_std(wide)
    return np.concatenate([_mean_std(wide), np.percentile(wide, PERCENTILES, axis=0).ravel()])


def _mean_std(wide: np.ndarray) -> np.ndarray:
    """[mean; population std] (2 * dim,) of float64 (rows, dim): what numpy's ``std`` computes, in a
    fifth of its time.
    """
    mean = wide.mean(0)
    centred = wide - mean
    return np.concatenate([mean, np.sqrt(np.square(centred, out=centred).mean(0))])
