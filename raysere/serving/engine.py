"""An ensemble in memory that answers requests in batches, and changes over to a newer one while it does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysere.ensemble.bundle import Bundle
from raysere.ensemble.card import short_name
from raysere.ensemble.description import file_hash
from raysere.ensemble.predict import Ensemble
from raysere.serving.batching import Batcher, Place
from raysere.serving.decoding import Clip, Decoder
from raysere.serving.faults import Fault
from raysere.serving.limits import Limits

_LOG = logging.getLogger(__name__)
_LOOK_S = 2.0  # how often the folder is looked at for a newer ensemble
_AGAIN_S = 30.0  # when a refused one is tried again: its files may still have been on their way
_STUCK = 4.0  # times the time limit of a request that a batch may take before the replica is given up


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


class Engine:
    """Make it with :meth:`open`; ``close`` it. One replica has one.

    Args:
        folder: saved ensemble. When another one stands there, the engine changes over to it; a broken one is refused, the old stays.
        limits: bounds.
        device: of the backbones and members.
        threads: of torch; None leaves them.
    """

    def __init__(self, folder: Path, limits: Limits, *, device: str = "cpu", threads: int | None = None) -> None:
        self.folder, self.limits, self.device, self.threads = folder, limits, device, threads
        self.ensemble: Ensemble | None = None
        self.refused: str | None = None  # fingerprint of an ensemble that could not be opened
        self.swaps = 0
        self.heard: Callable[[Clip], None] = lambda clip: None
        self._spool: Path | None = None
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> Engine:
        """Open the ensemble with all its members and backbones. Raises what ``Ensemble.load`` and ``Ensemble.open`` raise."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        self.ensemble = await asyncio.to_thread(self._load)
        self._spool = Path(tempfile.mkdtemp(prefix="raysere-serve-"))
        self.decoder = Decoder(self._spool, self.limits)
        self.batcher = Batcher(self._work, self.limits)
        await self.decoder.warm()
        self._watch = asyncio.create_task(self._look())
        return self

    async def close(self) -> None:
        """Answer what was accepted, then end."""
        if self._watch is not None:
            self._watch.cancel()
        if self._spool is not None:
            await self.batcher.close()
            self.decoder.close()
            shutil.rmtree(self._spool, ignore_errors=True)

    @property
    def bundle(self) -> Bundle:
        assert self.ensemble is not None
        return self.ensemble.bundle

    def check(self) -> None:
        """Raises RuntimeError where the model has hung for long: the replica is to be replaced."""
        since = self.batcher.running_since
        if since is not None and time.monotonic() - since > _STUCK * self.limits.request_s:
            raise RuntimeError("the model does not come back from a batch")

    # ---- requests --------------------------------------------------------------------------------------------------------------------

    async def predict(
        self, given: list[Given], place: Place, *, votes: bool, trace: bool = False
    ) -> tuple[str, list[dict[str, Any] | Fault]]:
        """(fingerprint of the ensemble, an answer as ``schema.Prediction`` or the Fault of each item). Raises Fault for the whole.

        ``place`` is the one of the request in the queue (see :meth:`Batcher.place`).
        """
        self.batcher.enlarge(place, len(given))
        clips = await asyncio.gather(*(self._decode(one) for one in given), return_exceptions=True)
        try:
            for clip in clips:
                if isinstance(clip, BaseException) and not isinstance(clip, Fault):
                    raise clip
            return await self._answer(given, clips, place, votes, trace)  # type: ignore[arg-type]
        finally:
            for clip in clips:
                if isinstance(clip, Clip):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(clip.path)

    async def _decode(self, given: Given) -> Clip | None:
        if given.audio is None:
            return None
        clip = await self.decoder.decode(given.audio)
        self.heard(clip)
        return clip

    async def _answer(
        self, given: list[Given], clips: list[Clip | Fault | None], place: Place, votes: bool, trace: bool
    ) -> tuple[str, list[dict[str, Any] | Fault]]:
        request = object()
        asked: list[Asked] = []
        places: list[int] = []
        for n, (one, clip) in enumerate(zip(given, clips, strict=True)):
            if isinstance(clip, Fault):
                continue
            speaker = None if one.speaker is None else f"{id(request)}.{one.speaker}"  # nobody else's requests are of this speaker
            wanted: list[tuple[float, float] | None] = [None]
            if trace and clip is not None:
                wanted += segments(clip.seconds, self.limits)
            places += [n] * len(wanted)
            asked += [Asked(clip, one, speaker, segment, votes and segment is None) for segment in wanted]
        if not asked:
            return self.bundle.fingerprint, [clip for clip in clips if isinstance(clip, Fault)]
        seconds = sum(0.0 if row.clip is None else _length(row) for row in asked)
        rows = await self.batcher.submit(asked, seconds, place)
        results: list[dict[str, Any] | Fault] = [clip if isinstance(clip, Fault) else {} for clip in clips]
        fingerprint = rows[0]["model"]
        for n, row, asking in zip(places, rows, asked, strict=True):
            if asking.segment is None:
                unanswered = Fault(422, "unanswerable", f"No member can answer: {row['error']}")
                results[n] = unanswered if row["error"] else self._whole(row, asking, trace)
            elif isinstance(found := results[n], dict) and not row["error"]:
                found["segments"].append({"start_s": asking.segment[0], "end_s": asking.segment[1], **row["answer"]})
        return fingerprint, results

    @staticmethod
    def _whole(row: dict[str, Any], asked: Asked, trace: bool) -> dict[str, Any]:
        clip = asked.clip
        return {
            **row["answer"],
            "members": row["members"],
            "note": row["note"],
            "audio": None if clip is None else {"seconds": clip.seconds, "sampling_rate": clip.sampling_rate, "channels": clip.channels},
            "votes": row["votes"],
            "segments": [] if trace and clip is not None else None,
        }

    # ---- the model's thread ------------------------------------------------------------------------------------------------------------

    def _work(self, asked: list[Asked]) -> list[dict[str, Any]]:
        ensemble = self.ensemble
        assert ensemble is not None
        votes = any(row.votes for row in asked)
        table = ensemble.predict(
            [None if row.clip is None else row.clip.path for row in asked],
            [row.given.text for row in asked],
            [row.speaker for row in asked],
            corpora=[row.given.corpus for row in asked],
            languages=[row.given.language for row in asked],
            segments=[row.segment for row in asked],
            contributions=votes,
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

    # ---- changing over -----------------------------------------------------------------------------------------------------------------

    def _load(self) -> Ensemble:
        return Ensemble.load(self.folder, device=self.device).open()

    async def _look(self) -> None:
        """Change over when another ensemble stands in the folder. The old one answers until the new one is open."""
        again = 0.0
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                found = (await asyncio.to_thread(file_hash, self.folder / "ensemble.yaml"))[:16]
            except OSError:
                continue  # between two renames, or the share is away: the old one goes on
            if found == self.bundle.fingerprint or (found == self.refused and time.monotonic() < again):
                continue
            try:
                self.ensemble = await asyncio.to_thread(self._load)
                self.swaps, self.refused = self.swaps + 1, None
                _LOG.warning("changed over to the ensemble %s", self.bundle.fingerprint)
            except Exception as error:  # also what torch raises, such as no memory on the GPU for two: the next one is looked for still
                if found != self.refused:
                    _LOG.error("the new ensemble %s is refused, the old one stays: %s", found, error)
                self.refused, again = found, time.monotonic() + _AGAIN_S

    # ---- what it is ----------------------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """``GET /v1/model``: members, classes, calibration, training data, figures with their intervals, licences and limits."""
        record, task = self.bundle.record, self.bundle.task
        return {
            "format": "raysere.model/1",
            "model": self.bundle.fingerprint,
            "runs": record["runs"],
            "classes": list(task.classes),
            "attributes": {name: {"scale": list(task.scale)} for name in (task.attributes if task.dimensional else ())},
            "family": record["family"],
            "pool": record["pool"],
            "synthetic": record["synthetic"],
            "languages": record["languages"],
            "members": [
                {
                    "member": entry["id"],
                    "method": entry["method"],
                    "modality": entry["modality"],
                    "weight": entry["weight"],
                    "backbones": [short_name(self.bundle.specs[key].backbone) for key in entry["features"].values()],
                }
                for entry in record["members"]
            ],
            "backbones": [
                {"name": short_name(spec.backbone), "identity": spec.identity, "layers": spec.numbers, "granularity": spec.granularity}
                for spec in self.bundle.specs.values()
            ],
            "calibration": [
                {"part": part["number"], "temperature": part["temperature"], "prior": part["prior"], "choice": part["choice"]}
                for part in record["parts"]
            ],
            "training_data": record["manifests"],
            "metrics": record["metrics"],
            "evaluation": record["evaluation"],
            "licences": {
                kind: {short_name(name): licence for name, licence in entries.items()} for kind, entries in record["licences"].items()
            },
            "limits": self.limits.model_dump(),
        }


def segments(seconds: float, limits: Limits) -> list[tuple[float, float] | None]:
    """Segments of a trace: ``segment_s`` long, half overlapping, or with longer steps where there would be too many."""
    length = min(limits.segment_s, seconds)
    step = max(limits.segment_s / 2, (seconds - length) / max(1, limits.segments - 1))
    count = 1 + max(0, round(-(-(seconds - length) // step)))
    starts = [min(n * step, seconds - length) for n in range(count)]
    return [(start, start + length) for start in starts]


def _length(row: Asked) -> float:
    assert row.clip is not None
    return row.clip.seconds if row.segment is None else row.segment[1] - row.segment[0]


def _vote(vote: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "member": vote["member"],
        "modality": vote["modality"],
        "share": vote["share"],
        "probabilities": dict(zip(classes, vote["p"], strict=True)),
    }
