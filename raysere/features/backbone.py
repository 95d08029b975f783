"""The contract of a backbone: its input, its layers, and how items become rows.

A backbone is one file in ``features/backbones``; ``backbones/__init__.py`` opens it by name. It
never touches Ray or the disk layout: it turns items into arrays, and
:mod:`raysere.features.extract.run` does the rest.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Layer:
    """One layer. Layers are counted from the input: 0 is what enters the first block.

    ``rows`` says what a row is: ``frame`` (one row a time step or token) or ``utterance`` (always
    one row).
    """

    name: str
    dim: int
    rows: Literal["frame", "utterance"] = "frame"


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone without running it.

    Attributes:
        name: canonical name, such as ``acoustic`` or ``hf:openai/whisper-base@<revision>``.
        modality: ``audio`` or ``text``.
        layers: all layers, from the input.
        identity: hash of the weights and of the code that shapes the output; it is part of every
            feature key.
        sampling_rate: Hz that ``encode`` expects of ``wave``; None for text.
        frame_s: seconds from one frame row to the next; None where rows are no time steps.
        centre_s: seconds from the start of the audio to the middle of what the first frame hears;
            None: half of ``frame_s``. It moves no byte of a feature, so it is part of no key.
        kind: ``dense``, or ``counts`` for term counts whose idf a trial learns on its training
            rows.
        batching: ``single`` items only, or ``padded`` batches whose valid rows equal single ones to
            the dtype's tolerance.
        min_s, max_s: seconds of audio that it takes; shorter or longer goes to quarantine.
        licence: licence of the weights, as far as it is known.
    """

    name: str
    modality: Literal["audio", "text"]
    layers: tuple[Layer, ...]
    identity: str
    sampling_rate: int | None = 16000
    frame_s: float | None = None
    centre_s: float | None = None
    kind: Literal["dense", "counts"] = "dense"
    batching: Literal["single", "padded"] = "single"
    min_s: float = 0.1
    max_s: float = 600.0
    licence: str = "unknown"


@dataclass(frozen=True)
class Item:
    """One utterance as a backbone sees it:

    ``wave`` float32 mono (samples,) at the backbone's rate, and/or ``text``.
    """

    utterance: str
    wave: np.ndarray | None = None
    text: str | None = None
    language: str | None = None


class Backbone(abc.ABC):
    """Items in, rows out. Instances may hold a model; they are made once per actor."""

    info: BackboneInfo

    @abc.abstractmethod
    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        """Rows of the asked layers: ``result[item][position in layers]`` is float32
        ``(rows, dim)``, finite.

        With ``batching == "single"`` it is called with one item at a time. Raises DataError for an
        item it cannot take.
        """
