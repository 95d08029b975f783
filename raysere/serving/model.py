"""The ensemble that answers, in this process or in a child process."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raysere.ensemble.saved.ensemble import Ensemble
from raysere.ensemble.saved.read import Bundle
from raysere.serving.children import die_with_parent
from raysere.serving.decoding import Clip
from raysere.serving.faults import Fault

_TRIED_S, _TRIED = 2.0, (1, 1, 8, 1, 8)  # seconds of the noise that a model tries itself on; clips of each batch, the first is slow
_TRYING_S = 3.0  # when no further batch is tried


@dataclass(frozen=True)
class Given:
    """One item of a request, as it came: the bytes of an audio file, a transcript, or both."""

    audio: bytes | None = None
    text: str | None = None
    language: str | None = None
    corpus: str | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Asked:
    """One row for the ensemble: a clip, a segment of it, or a text."""

    clip: Clip | None
    given: Given
    speaker: str | None
    segment: tuple[float, float] | None
    votes: bool


class Answering(Protocol):
    """What an engine needs of a model.

    Attributes:
        bundle: the ensemble.
        tried: (clips, seconds of audio together, seconds it took) of batches that it answered when
            it was opened.
        alive: False where it will never answer again.
    """

    bundle: Bundle
    tried: list[tuple[int, float, float]]

    @property
    def alive(self) -> bool: ...

    def answer(self, asked: list[Asked]) -> list[dict[str, Any]]: ...

    def close(self) -> None: ...


class Model:
    """A saved ensemble with all its members and backbones, in this process.

    Args:
        folder: saved ensemble.
        device: of backbones and members.
        threads: of torch; None leaves them.

    Raises what ``Ensemble.load`` and ``Ensemble.open`` raise.
    """

    alive = True

    def __init__(self, folder: Path, device: str = "cpu", threads: int | None = None) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self.ensemble = Ensemble.load(folder, device=device).open()
        self.bundle = self.ensemble.bundle
        self.tried = self._try()

    def answer(self, asked: list[Asked]) -> list[dict[str, Any]]:
        """The parts of ``schema.Prediction`` that the model knows, for each row; ``error`` where it
        can say nothing.
        """
        ensemble = self.ensemble
        table = ensemble.predict(
            [None if row.clip is None else row.clip.path for row in asked],
            [row.given.text for row in asked],
            [row.speaker for row in asked],
            corpora=[row.given.corpus for row in asked],
            languages=[row.given.language for row in asked],
            segments=[row.segment for row in asked],
            contributions=any(row.votes for row in asked),
        )
        task = ensemble.task
        scale = list(task.scale)
        answers = []
        for row, one in zip(table.iter_rows(named=True), asked, strict=True):
            classed = row.get("predicted") is not None
            answers.append(
                {
                    "model": ensemble.bundle.fingerprint,
                    "answer": {
                        "predicted": row.get("predicted"),
                        "confidence": row.get("confidence"),
                        "probabilities": {name: row[f"p.{name}"] for name in task.classes} if classed else {},
                        "attributes": {
                            name: {"value": row[name], "scale": scale}
                            for name in (task.attributes if task.dimensional else ())
                            if row[name] is not None
                        },
                    },
                    "members": row["members"],
                    "note": row["note"],
                    "error": row["error"],
                    "votes": [_vote(vote, task.classes) for vote in row["contributions"]] if one.votes else None,
                }
            )
        return answers

    def close(self) -> None:
        """Nothing is left to end."""

    def _try(self) -> list[tuple[int, float, float]]:
        """Answer for noise: what is slow the first time is done then, and how long a batch takes is
        known before anybody waits.
        """
        import soundfile

        found: list[tuple[int, float, float]] = []
        with tempfile.TemporaryDirectory(prefix="raysere-try-") as folder:
            path, rate = Path(folder) / "noise.wav", 16000
            noise = 0.1 * np.random.default_rng(0).standard_normal(int(_TRIED_S * rate))
            soundfile.write(path, noise, rate, subtype="FLOAT")
            clip = Clip(str(path), _TRIED_S, rate, 1) if "audio" in self.ensemble.modalities else None
            row = Asked(clip, Given(text=None if clip else "how are you"), None, None, False)
            start = time.monotonic()
            for count in _TRIED:
                began = time.monotonic()
                if len(found) > 1 and began - start > _TRYING_S:
                    break  # of a large model on a processor, one clip must do
                self.answer([row] * count)
                found.append((count, count * clip.seconds if clip else 0.0, time.monotonic() - began))
        return found[1:]


class ModelApart:
    """A :class:`Model` in a process of its own: it and what reads requests do not wait for one
    another's interpreter.

    Same arguments and errors. Where the process dies, ``answer`` raises Fault 503, and ``alive`` is
    False.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int | None = None) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=die_with_parent)
        try:
            self.bundle, self.tried = self._pool.submit(_open, folder, device, threads).result()
        except BaseException:
            self._pool.shutdown(wait=False)
            raise

    @property
    def alive(self) -> bool:
        return not self._pool._broken

    def answer(self, asked: list[Asked]) -> list[dict[str, Any]]:
        """See :meth:`Model.answer`. Raises Fault 503 where the process has died."""
        try:
            return self._pool.submit(_answer, asked).result()
        except BrokenProcessPool as error:
            raise Fault(503, "not_ready", "The model's process has died; another one is started", retry_s=10.0) from error

    def close(self) -> None:
        """Let the process end, once it has answered what it works on."""
        self._pool.shutdown(wait=False)


_model: Model | None = None  # of a process of its own


def _open(folder: Path, device: str, threads: int | None) -> tuple[Bundle, list[tuple[int, float, float]]]:
    global _model
    _model = Model(folder, device, threads)
    return _model.bundle, _model.tried


def _answer(asked: list[Asked]) -> list[dict[str, Any]]:
    assert _model is not None
    return _model.answer(asked)


def _vote(vote: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "member": vote["member"],
        "modality": vote["modality"],
        "share": vote["share"],
        "probabilities": dict(zip(classes, vote["p"], strict=True)),
    }
