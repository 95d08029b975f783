"""A backbone of another package, found through its entry point: small, deterministic, and able to
misbehave on request.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from raysere.base.errors import DataError
from raysere.features.backbone import Backbone, BackboneInfo, Layer

HOP = 160


class Toy(Backbone):
    """Two frame layers and one utterance layer over 10 ms frames of 16 kHz audio (or the letters of
    a text).

    Options: ``log`` a file that gets a line for every encoded item; ``kills`` and ``refuses`` parts
    of utterance names; ``kills_once`` a file that is removed by the one worker that then kills
    itself; ``gate`` a file without which encoding stops after ``before_gate`` items of all workers.
    """

    def __init__(self, info: BackboneInfo, options: dict) -> None:
        self.info, self.options = info, options

    @staticmethod
    def describe(argument: str | None = None, **options) -> BackboneInfo:
        text = options.get("modality") == "text"
        layers = (Layer("raw", 3), Layer("wide", 5), Layer("whole", 4, "utterance"))
        identity = f"toy-{options.get('version', 1)}"
        return BackboneInfo(
            "toy",
            "text" if text else "audio",
            layers,
            identity,
            sampling_rate=None if text else 16000,
            frame_s=None if text else HOP / 16000,
            batching=options.get("batching", "single"),
            min_s=0.1,
            max_s=30.0,
        )

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu", **options) -> Toy:
        return Toy(Toy.describe(argument, **options), options)

    def encode(self, items, layers):
        if self.info.batching == "single":
            assert len(items) == 1
        return [self._one(item, layers) for item in items]

    def _one(self, item, layers):
        self._misbehave(item.utterance)
        signal_ = item.wave if item.wave is not None else np.array([ord(letter) for letter in item.text], dtype=np.float32).repeat(HOP)
        frames = signal_[: len(signal_) // HOP * HOP].reshape(-1, HOP).astype(np.float64)
        raw = np.stack([frames.mean(1), np.abs(frames).mean(1), frames.std(1)], 1)
        wide = np.concatenate([raw, raw[:, :2] ** 2], 1)
        whole = np.array([[len(frames), signal_.min(), signal_.max(), np.abs(signal_).mean()]])
        rows = [raw, wide, whole]
        return [rows[number].astype(np.float32) for number in layers]

    def _misbehave(self, utterance: str) -> None:
        once, gate, log = (self.options.get(name) for name in ("kills_once", "gate", "log"))
        if gate and not Path(gate).exists() and len(Path(log).read_text().splitlines()) >= self.options["before_gate"]:
            while not Path(gate).exists():
                time.sleep(0.05)
        if log:
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {utterance}\n")
        if self.options.get("kills") and self.options["kills"] in utterance:
            os.kill(os.getpid(), signal.SIGKILL)
        if once and Path(once).exists():
            Path(once).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.options.get("refuses") and self.options["refuses"] in utterance:
            raise DataError("refused by the toy", where=utterance)
        if self.options.get("breaks") and self.options["breaks"] in utterance:
            raise RuntimeError("a fault that may pass")
