"""Choose anchor layers by relevance for emotion in the source and similarity across languages
(docs/methods.md 8.6).

Neither input needs an emotion label of the target; :mod:`raysere.studies.layers` measures both.
Pure numpy.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from raysere.base.errors import ConfigError, DataError

AnchorKind = Literal["final", "single", "group", "topk", "all", "random_group", "least_similar"]
ANCHOR_KINDS: tuple[AnchorKind, ...] = get_args(AnchorKind)


def layer_scores(relevance: ArrayLike, similarity: ArrayLike, gamma: float = 1.0) -> NDArray[np.float64]:
    """``Score_l = rank(R_l) + gamma rank(similarity_l)``, float64 (L + 1,): ranks from 1 (worst),
    ties share their mean rank.

    A layer whose measure is NaN ranks below all others. Raises DataError for rows of different
    lengths, or without any number.

    Example:
        >>> layer_scores([0.4, 0.6, 0.5], [0.9, 0.8, 0.1]).tolist()
        [4.0, 5.0, 3.0]
    """
    r, s = (np.asarray(values, dtype=np.float64) for values in (relevance, similarity))
    if r.shape != s.shape or r.ndim != 1 or not len(r):
        raise DataError(f"Relevance and similarity have one number for each layer, not {r.shape} and {s.shape}")
    for name, values in (("relevance", r), ("similarity", s)):
        if not np.isfinite(values).any():
            raise DataError(f"No layer has a {name}")
    return _ranks(r) + gamma * _ranks(s)


def _ranks(values: NDArray) -> NDArray[np.float64]:
    return rankdata(np.where(np.isfinite(values), values, -np.inf))


def choose_anchors(
    relevance: ArrayLike, similarity: ArrayLike, kind: AnchorKind = "group", width: int = 3, gamma: float = 1.0, *, seed: int = 0
) -> list[int]:
    """The anchor layers, as ascending positions among the L + 1 layers.

    Args:
        relevance: R_l (L + 1,), larger is better.
        similarity: (L + 1,), larger is more alike across languages (a gap with its sign turned).
        kind: ``final`` the last layer; ``single`` the best score; ``group`` the ``width``
            contiguous layers of the best mean score (the published kind); ``topk`` the ``width``
            best scores; ``all``; and the controls ``random_group`` (a window by ``seed``) and
            ``least_similar`` (the window of the lowest mean rank of similarity). Of equals the one
            nearer to the input is taken.
        width: layers of a window, cut to the number of layers.
        gamma: weight of the similarity.

    Raises:
        ConfigError: an unknown kind, a width below 1, a negative gamma. DataError: see
            :func:`layer_scores`.
    """
    if kind not in ANCHOR_KINDS:
        raise ConfigError(f"Unknown kind of anchors {kind!r}", choices=ANCHOR_KINDS)
    if width < 1 or not gamma >= 0:
        raise ConfigError(f"Anchors need a width of 1 or more and a gamma of 0 or more, not {width} and {gamma}")
    scores = layer_scores(relevance, similarity, gamma)
    count = len(scores)
    width = min(width, count)
    if kind == "final":
        return [count - 1]
    if kind == "all":
        return list(range(count))
    if kind == "single":
        return [int(np.argmax(scores))]
    if kind == "topk":
        return sorted(int(layer) for layer in np.argsort(-scores, kind="stable")[:width])
    if kind == "random_group":
        start = int(np.random.default_rng(seed).integers(count - width + 1))
    else:
        worth = scores if kind == "group" else -_ranks(np.asarray(similarity, dtype=np.float64))
        start = int(np.argmax(np.round(np.convolve(worth, np.full(width, 1 / width), mode="valid"), 9)))
    return list(range(start, start + width))
