"""Discrete units of frames: which frames a codebook is learned from, the codebook as a file, and
the units of any utterance.

The steps are those of docs/methods.md 7.2: frames are normalised, pooled in equal parts of every
language and emotion with a bound for each speaker, and clustered (:mod:`raysere.nn.kmeans`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from raysere.base.bounds import check_tensors, parse_json
from raysere.base.errors import ConfigError, DataError, MissingFileError, RaysereError
from raysere.base.files import atomic_write
from raysere.features.views import FeatureView
from raysere.nn.kmeans import Clustering, nearest

FORMAT = "raysere.codebook/1"
Norm = Literal["none", "corpus", "speaker"]
NORMS: tuple[Norm, ...] = ("none", "corpus", "speaker")
_READ = 32  # utterances read at once
_EPS = 1e-5


@dataclass(frozen=True)
class FrameNorm:
    """Normalisation of frames by the group of their utterance:
    ``(x - shift[group]) / scale[group]``.

    ``shift`` and ``scale`` float32 (groups, D); ``group`` int64 (N,) in the order of the view.
    """

    kind: Norm
    shift: np.ndarray
    scale: np.ndarray
    group: np.ndarray

    def apply(self, frames: np.ndarray, rows: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Normalised frames, float32 (n, D), of utterances ``rows`` that lie one after the other
        with these lengths.
        """
        group = np.repeat(self.group[rows], lengths)
        return torch.from_numpy((frames.astype(np.float32) - self.shift[group]) / self.scale[group])


def frame_norm(view: FeatureView, layer: int, kind: Norm, corpus: Sequence[str], speaker: Sequence[str]) -> FrameNorm:
    """Statistics for :class:`FrameNorm` from all frames of the view, without labels.

    Args:
        kind: ``none``; ``corpus``: zero mean and unit variance within each corpus; ``speaker``:
            each speaker's mean is taken off.
        corpus, speaker: of the view's utterances.
    """
    if kind not in NORMS:
        raise ConfigError(f"{kind!r} is not a way to normalise frames", choices=NORMS)
    width = view.spec.width(layer)
    if kind == "none":
        return FrameNorm(kind, np.zeros((1, width), np.float32), np.ones((1, width), np.float32), np.zeros(len(view), dtype=np.int64))
    names, group = np.unique(np.asarray(corpus if kind == "corpus" else speaker, dtype=str), return_inverse=True)
    shift, scale = np.zeros((len(names), width), np.float32), np.ones((len(names), width), np.float32)
    for number in range(len(names)):
        rows = np.flatnonzero((group == number) & view.present)
        if len(rows):
            mean, std = view.moments(layer, rows)
            shift[number] = mean
            if kind == "corpus":
                scale[number] = np.maximum(std, _EPS)
    return FrameNorm(kind, shift, scale, group.astype(np.int64))


def frames_in_batches(
    view: FeatureView, layer: int, norm: FrameNorm, rows: np.ndarray, read: int = _READ
) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
    """(rows, lengths, normalised frames float32 (sum of lengths, D)) of a few utterances at a time;
    absent ones are left out.
    """
    rows = rows[view.present[rows]]
    for at in range(0, len(rows), read):
        some = rows[at : at + read]
        lengths = view.lengths(some)
        yield some, lengths, norm.apply(view.packed(layer, some), some, lengths)


@dataclass(frozen=True)
class FramePool:
    """The frames that a codebook is learned from. ``chosen[i]`` are frame numbers of utterance
    ``rows[i]``, ascending.

    Call it with a number for one pass over all of them in float32 batches; the order of the
    utterances depends on the number.
    """

    view: FeatureView
    layer: int
    norm: FrameNorm
    rows: np.ndarray
    chosen: list[np.ndarray]
    batch: int = 8192
    cells: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.chosen))

    def __call__(self, number: int) -> Iterator[Tensor]:
        order = np.random.default_rng(number).permutation(len(self.rows))
        held: list[Tensor] = []
        size = 0
        for at in range(0, len(order), _READ):
            places = order[at : at + _READ]
            rows = self.rows[places]
            lengths = self.view.lengths(rows)
            first = np.cumsum(lengths) - lengths
            index = np.concatenate([first[i] + self.chosen[place] for i, place in enumerate(places)])
            frames = self.norm.apply(self.view.packed(self.layer, rows), rows, lengths)[torch.from_numpy(index)]
            held.append(frames)
            size += len(frames)
            if size >= self.batch:
                yield torch.cat(held)
                held, size = [], 0
        if size:
            yield torch.cat(held)


def frame_pool(
    view: FeatureView,
    layer: int,
    norm: FrameNorm,
    *,
    language: Sequence[str],
    speaker: Sequence[str],
    emotion: Sequence[str | None] | None = None,
    per_language: int = 200_000,
    per_speaker: int = 5_000,
    seed: int = 0,
) -> FramePool:
    """Draw equal numbers of frames from every language and emotion, evenly over the speakers, at
    most ``per_speaker`` of each.

    Languages get equal numbers, and within a language its emotions; utterances without an emotion
    are left out. A language none of whose utterances has one (a target without labels), or every
    language where ``emotion`` is None, is balanced over speakers only.

    Raises:
        DataError: nothing to draw from.
    """
    rng = np.random.default_rng(seed)
    labelled = set() if emotion is None else {spoken for spoken, name in zip(language, emotion, strict=True) if name is not None}
    labels = [emotion[row] if emotion is not None and language[row] in labelled else "" for row in range(len(view))]
    lengths = view.lengths(np.arange(len(view)))
    members: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row in np.flatnonzero(view.present & (lengths > 0)).tolist():
        name = labels[row]
        if name is not None:
            members.setdefault((language[row], name), {}).setdefault(speaker[row], []).append(row)
    if not members:
        raise DataError(
            "There are no frames to learn units from", remedy="The utterances have no features, or no emotion of the class map."
        )
    emotions = {spoken: sum(one == spoken for one, _ in members) for spoken, _ in members}
    rooms = {
        cell: {name: min(int(lengths[rows].sum()), per_speaker // emotions[cell[0]]) for name, rows in speakers.items()}
        for cell, speakers in members.items()
    }
    total = min(emotions[cell[0]] * min(sum(room.values()), per_language // emotions[cell[0]]) for cell, room in rooms.items())
    target = {cell: total // emotions[cell[0]] for cell in rooms}
    chosen: dict[int, np.ndarray] = {}
    for cell, room in rooms.items():
        names = sorted(room)
        for name, share in zip(names, even_shares([room[name] for name in names], target[cell]), strict=True):
            rows = np.array(members[cell][name])
            picked = np.sort(rng.choice(int(lengths[rows].sum()), share, replace=False))
            ends = np.cumsum(lengths[rows])
            owner = np.searchsorted(ends, picked, side="right")
            for place in np.unique(owner).tolist():
                chosen[int(rows[place])] = picked[owner == place] - (ends[place] - lengths[rows[place]])
    rows = np.array(sorted(chosen), dtype=np.int64)
    cells = {" ".join(cell).strip(): count for cell, count in target.items()}
    return FramePool(view, layer, norm, rows, [chosen[row] for row in rows.tolist()], cells=cells)


def even_shares(room: Sequence[int], total: int) -> list[int]:
    """``total`` dealt out as evenly as the room of each allows (less where there is not enough
    room).

    Examples:
        >>> even_shares([10, 2, 10], 12)
        [5, 2, 5]
    """
    shares = [0] * len(room)
    left = min(total, sum(room))
    order = sorted(range(len(room)), key=lambda place: room[place])
    for number, place in enumerate(order):
        shares[place] = min(room[place], left // (len(order) - number))
        left -= shares[place]
    for place in reversed(order):  # what did not divide
        extra = min(left, room[place] - shares[place])
        shares[place] += extra
        left -= extra
    return shares


@dataclass(frozen=True)
class FrameUnits:
    """K units:

    ``centres`` float32 (K, D) in the space of normalised frames of one layer; ``meta`` says how
    they were made.
    """

    centres: np.ndarray
    layer: int
    norm: Norm
    spec_key: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.centres)

    def units(self, frames: Tensor) -> np.ndarray:
        """Unit of each normalised frame: int64 (n,)."""
        return nearest(frames.float(), torch.from_numpy(self.centres))[0].numpy()

    @classmethod
    def of(cls, clustering: Clustering, pool: FramePool, **meta: Any) -> FrameUnits:
        """The codebook of a clustering of that pool."""
        known = {"seed": clustering.seed, "inertia": clustering.inertia, "frames": len(pool), "cells": pool.cells, **meta}
        return cls(clustering.centres.numpy(), pool.layer, pool.norm.kind, pool.view.spec.key, known)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write safetensors; what is no tensor is JSON in the file's metadata."""
        meta = {"format": FORMAT, **{key: value for key, value in asdict(self).items() if key != "centres"}}
        with atomic_write(path) as temporary:  # one entry: safetensors writes several in an order of chance
            save_file({"centres": np.ascontiguousarray(self.centres)}, temporary, {"raysere": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FrameUnits:
        """Read what :meth:`save` wrote.

        Raises MissingFileError; ConfigError for another kind of file.
        """
        from safetensors import safe_open

        if not os.path.isfile(path):
            raise MissingFileError("This path has no codebook", where=path)
        check_tensors(path)
        try:
            with safe_open(path, "numpy") as file:
                meta = parse_json((file.metadata() or {}).get("raysere", "{}"), where=path)
                if not isinstance(meta, dict) or meta.pop("format", None) != FORMAT:
                    raise ConfigError("This file does not have the format of a codebook", where=path, choices=[FORMAT])
                centres = file.get_tensor("centres")
            if centres.ndim != 2 or not centres.size or centres.dtype != np.float32 or not np.isfinite(centres).all():
                raise ValueError(f"its centres are {centres.dtype} {list(centres.shape)}, not finite float32 (units, width)")
            return cls(centres, **meta)
        except (SafetensorError, ValueError, TypeError) as error:
            if isinstance(error, RaysereError):
                raise
            raise ConfigError(f"This is not a codebook: {error}", where=path) from error


def unit_histograms(view: FeatureView, codebook: FrameUnits, corpus: Sequence[str], speaker: Sequence[str]) -> np.ndarray:
    """How many frames of each utterance are in each unit: int64 (N, K), rows of zeros where
    features are absent. No label is read.

    Raises:
        DataError: a view of other features than those that the units were learned from.
    """
    if view.spec.key != codebook.spec_key:
        raise DataError(
            "The units were learned from other features than these",
            where=f"{view.spec.backbone}: {view.spec.key}, not {codebook.spec_key}",
            remedy="Resolve the features with the same backbone and options.",
        )
    norm = frame_norm(view, codebook.layer, codebook.norm, corpus, speaker)
    result = np.zeros((len(view), codebook.size), dtype=np.int64)
    for rows, lengths, frames in frames_in_batches(view, codebook.layer, norm, np.arange(len(view))):
        np.add.at(result, (np.repeat(rows, lengths), codebook.units(frames)), 1)
    return result
