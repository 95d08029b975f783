"""An ensemble in memory that answers requests in batches and switches to a newer one."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysere.base.files import file_hash
from raysere.ensemble.saved.card import short_name
from raysere.ensemble.saved.read import Bundle
from raysere.serving.batching import Batcher, Place, units
from raysere.serving.decoding import Clip, Decoder
from raysere.serving.faults import Fault
from raysere.serving.latency import Latency
from raysere.serving.limits import Limits
from raysere.serving.model import Answering, Asked, Given, Model, ModelApart
from raysere.serving.spool import Spool

_LOG = logging.getLogger(__name__)
_LOOK_S = 2.0  # how often the folder is looked at for a newer ensemble
_AGAIN_S = 30.0  # when a refused one is tried again: its files may still have been on their way
_STUCK = 4.0  # times the time limit of a request that a batch may take before the replica is given up


class Engine:
    """Make it with :meth:`open`; ``close`` it. One replica has one.

    Args:
        folder: saved ensemble. When another one stands there, the engine changes over to it; a
            broken one is refused, the old stays.
        limits: bounds.
        device: of the backbones and members.
        threads: of torch; None leaves them.
        apart: whether the model gets a process of its own.
    """

    def __init__(self, folder: Path, limits: Limits, *, device: str = "cpu", threads: int | None = None, apart: bool = False) -> None:
        self.folder, self.limits, self.device, self.threads, self.apart = folder, limits, device, threads, apart
        self.model: Answering | None = None
        self._answering = threading.Lock()  # of the model's thread: no model is changed, and closed, while it answers
        self.refused: str | None = None  # fingerprint of an ensemble that could not be opened
        self.swaps = 0
        self.heard: Callable[[Clip], None] = lambda clip: None
        self.spool: Spool | None = None
        self._watch: asyncio.Task[None] | None = None

    async def open(self) -> Engine:
        """Open the ensemble with all its members and backbones.

        Raises what ``Ensemble.load`` and ``Ensemble.open`` raise.
        """
        self.model = await asyncio.to_thread(self._load)
        self.spool = await asyncio.to_thread(Spool, self.limits.spool_bytes)
        self.decoder = Decoder(self.limits)
        self.batcher = Batcher(self._work, self.limits)
        self.batcher.latency = _latency(self.model)
        await self.decoder.warm(self.spool)
        self._watch = asyncio.create_task(self._look())
        return self

    async def close(self) -> None:
        """Answer what was accepted, then end."""
        if self._watch is not None:
            self._watch.cancel()
        if self.spool is not None:
            await self.batcher.close()
            self.decoder.close()
            self.spool.close()
        if self.model is not None:
            self.model.close()

    @property
    def bundle(self) -> Bundle:
        assert self.model is not None
        return self.model.bundle

    def check(self) -> None:
        """Raises RuntimeError where the model has died, or hung for long: the replica is to be
        replaced.
        """
        if self.model is not None and not self.model.alive:
            raise RuntimeError("the process of the model has died")
        since = self.batcher.running_since
        if since is not None and time.monotonic() - since > _STUCK * self.limits.request_s:
            raise RuntimeError("the model does not come back from a batch")

    # ---- requests --------------------------------------------------------------------------------

    async def predict(
        self, given: list[Given], place: Place, *, votes: bool, trace: bool = False
    ) -> tuple[str, list[dict[str, Any] | Fault]]:
        """(fingerprint of the ensemble, an answer as ``schema.Prediction`` or the Fault of each
        item). Raises Fault for the whole.

        ``place`` is the one of the request in the queue (see :meth:`Batcher.place`).
        """
        self.batcher.enlarge(place, len(given))
        assert self.spool is not None
        with self.spool.request() as kept:
            clips = await self.decoder.decode([one.audio for one in given], kept)
            for clip in clips:
                if isinstance(clip, Clip):
                    self.heard(clip)
            return await self._answer(given, clips, place, votes, trace)

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
            told = replace(one, audio=None)  # it is in the clip's file
            asked += [Asked(clip, told, speaker, segment, votes and segment is None) for segment in wanted]
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

    # ---- the model -------------------------------------------------------------------------------

    def _work(self, asked: list[Asked]) -> list[dict[str, Any]]:
        with self._answering:
            assert self.model is not None
            return self.model.answer(asked)

    # ---- changing over ---------------------------------------------------------------------------

    def _load(self) -> Answering:
        return (ModelApart if self.apart else Model)(self.folder, self.device, self.threads)

    def _change(self, new: Answering) -> None:
        with self._answering:
            old, self.model = self.model, new
        if old is not None:
            old.close()

    async def _look(self) -> None:
        """Switch when the folder holds another ensemble.

        The old one answers until the new one is open.
        """
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
                new = await asyncio.to_thread(self._load)
                await asyncio.to_thread(self._change, new)
                self.batcher.latency = _latency(new)
                self.swaps, self.refused = self.swaps + 1, None
                _LOG.warning("changed over to the ensemble %s", self.bundle.fingerprint)
            except Exception as error:  # also what torch raises, such as no memory on the GPU for two: the next one is looked for still
                if found != self.refused:
                    _LOG.error("the new ensemble %s is refused, the old one stays: %s", found, error)
                self.refused, again = found, time.monotonic() + _AGAIN_S

    # ---- what it is ------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """``GET /v1/model``: members, classes, calibration, training data, figures with their
        intervals, licences and limits.
        """
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
    """Segments of a trace:

    ``segment_s`` long, half overlapping, or with longer steps where there would be too many.
    """
    length = min(limits.segment_s, seconds)
    step = max(limits.segment_s / 2, (seconds - length) / max(1, limits.segments - 1))
    count = 1 + max(0, round(-(-(seconds - length) // step)))
    starts = [min(n * step, seconds - length) for n in range(count)]
    return [(start, start + length) for start in starts]


def _latency(model: Answering) -> Latency:
    return Latency([(units(count, audio_s), took) for count, audio_s, took in model.tried])


def _length(row: Asked) -> float:
    assert row.clip is not None
    return row.clip.seconds if row.segment is None else row.segment[1] - row.segment[0]
