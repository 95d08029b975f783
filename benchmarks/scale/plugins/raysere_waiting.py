"""Work whose processor is elsewhere: a backbone and a method that wait as for a GPU, so that three
nodes on one machine are three nodes.
"""

from __future__ import annotations

import time

import numpy as np

from raysere.features.backbone import Backbone, BackboneInfo, Layer
from raysere.methods.pooled import Pooled

SPEED = 40.0  # seconds of speech a second
TRIAL_S, FOLDS = 2.0, 3


class Waiting(Backbone):
    """Mean, deviation, least and largest sample of a clip, at :data:`SPEED`."""

    info = BackboneInfo("waiting", "audio", (Layer("samples", 4, "utterance"),), "waiting-1")

    @staticmethod
    def describe(argument: str | None = None) -> BackboneInfo:
        return Waiting.info

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu") -> Waiting:
        return Waiting()

    def encode(self, items, layers):
        began, result = time.monotonic(), []
        for item in items:
            row = np.array([[item.wave.mean(), item.wave.std(), item.wave.min(), item.wave.max()]], np.float32)
            result.append([row for _ in layers])
        time.sleep(max(0.0, sum(len(item.wave) for item in items) / 16000 / SPEED - (time.monotonic() - began)))
        return result


class WaitingMethod(Pooled):
    """``pooled``, and a wait in each fold."""

    name = "waiting"

    def start(self, model, data, rows, seed) -> None:
        super().start(model, data, rows, seed)
        time.sleep(TRIAL_S / FOLDS)
