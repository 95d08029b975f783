"""The work of one extraction process: read, encode in batches of similar length, pool, write
shards.

No Ray in here: :mod:`raysere.features.extract.run` runs it in actors or in the calling process.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from raysere.base.errors import ConfigError, DataError, EnvironmentFault, MissingFileError, machine_fault, out_of_memory
from raysere.features.backbone import Backbone, Item
from raysere.features.clock import frame_centres, frame_clock, interval_of
from raysere.features.extract.pool_frames import pool_frames
from raysere.features.extract.silence import speech_frames
from raysere.features.spec import LEVEL_RMS, FeatureSpec
from raysere.features.store.content import NO_PHONES, Failure, Work
from raysere.features.store.shards import write_shard

MAX_PADDING = 0.03
SHARD_ITEMS, SHARD_BYTES, SHARD_S = 256, 64 << 20, 20.0  # what a kill can cost


@dataclass
class Encoded:
    """What became of a task: contents that stand in finished shards, failures, wall seconds, and
    the seconds of speech they held.
    """

    done: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    wall_s: float = 0.0
    speech_s: float = 0.0


def buckets(works: Sequence[Work], budget_s: float, max_padding: float = MAX_PADDING) -> list[list[Work]]:
    """Batches of neighbours in length, longest first.

    The padded batch (longest times count) stays under ``budget_s`` seconds unless it is a single
    item, and at most ``max_padding`` of it is padding.
    """
    batches: list[list[Work]] = []
    total = 0.0
    for work in sorted(works, key=lambda work: (-work.seconds, work.content)):
        if batches:
            longest, count = batches[-1][0].seconds, len(batches[-1]) + 1
            if longest * count <= budget_s and 1 - (total + work.seconds) / (longest * count) <= max_padding:
                batches[-1].append(work)
                total += work.seconds
                continue
        batches.append([work])
        total = work.seconds
    return batches


class Encoder:
    """One backbone on one device.

    Args:
        spec: what to extract.
        folder: folder of the key in the store; None keeps the rows in :attr:`kept` instead of
            writing shards.
        device: ``cpu`` or ``cuda``.
        threads: torch threads; None leaves them alone.
        batch_s: seconds of audio a padded batch may hold; 0 is one item at a time, which is fastest
            on a CPU.
        backbone: an open backbone; default: open it by name.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        folder: Path | None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        batch_s: float | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        self.spec, self.folder, self.device, self.threads = spec, folder, device, threads
        self.batch_s = (0.0 if device == "cpu" else 60.0) if batch_s is None else batch_s
        self.backbone = backbone
        self.kept: dict[str, list[np.ndarray]] = {}

    def open(self) -> Encoder:
        """Load the backbone.

        Raises ConfigError where it is not the one of the spec (its weights or code changed since).
        """
        if self.backbone is None:
            from raysere.features.backbones import open_backbone

            self.backbone = open_backbone(self.spec.backbone, device=self.device, **self.spec.options)
        if self.threads is not None and "torch" in sys.modules:  # a backbone without torch need not pay for its import
            sys.modules["torch"].set_num_threads(self.threads)
        if self.backbone.info.identity != self.spec.identity:
            raise ConfigError(
                f"The backbone {self.spec.backbone!r} is not the one that these features were described with",
                where=f"identity {self.backbone.info.identity}",
                remedy="Its weights or its code changed, here or on another node: use one version everywhere and resolve anew.",
            )
        return self

    def run(self, works: Sequence[Work]) -> Encoded:
        """Extract, and write shards as they fill.

        Raises EnvironmentFault (disk, device); what is wrong with an item becomes a failure.
        """
        assert self.backbone is not None
        outcome, started = Encoded(), time.monotonic()
        held: list[tuple[Work, list[np.ndarray]]] = []
        size, since = 0, started
        budget = self.batch_s if self.backbone.info.batching == "padded" else 0.0
        for read in self._read_ahead(buckets(works, budget)):
            outcome.failures += [entry for entry in read if isinstance(entry, Failure)]
            for work, result in self._encode([entry for entry in read if not isinstance(entry, Failure)]):
                if isinstance(result, Failure):
                    outcome.failures.append(result)
                    continue
                held.append((work, result))
                size += sum(rows.nbytes for rows in result)
            if held and (len(held) >= SHARD_ITEMS or size >= SHARD_BYTES or time.monotonic() - since >= SHARD_S):
                self._write(held, outcome)
                held, size, since = [], 0, time.monotonic()
        if held:
            self._write(held, outcome)
        outcome.wall_s = time.monotonic() - started
        return outcome

    def _write(self, held: list[tuple[Work, list[np.ndarray]]], outcome: Encoded) -> None:
        contents = [work.content for work, _ in held]
        if self.folder is None:
            self.kept.update((work.content, rows) for work, rows in held)
        else:
            write_shard(
                self.folder,
                self.spec,
                contents,
                {number: [rows[place] for _, rows in held] for place, number in enumerate(self.spec.numbers)},
            )
        outcome.done += contents
        outcome.speech_s += sum(work.seconds for work, _ in held)

    def _read_ahead(self, batches: list[list[Work]]) -> Iterator[list[tuple[Work, Item] | Failure]]:
        """Items of each batch; on an accelerator the next batches are read while this one is
        encoded.
        """
        if self.device == "cpu" or self.spec.reads != "wave":
            for batch in batches:
                yield [self._read(work) for work in batch]
            return
        with ThreadPoolExecutor(4) as pool:
            waiting = iter(batches)
            queue = [[pool.submit(self._read, work) for work in batch] for batch in itertools.islice(waiting, 3)]
            while queue:
                ready = queue.pop(0)
                queue += [[pool.submit(self._read, work) for work in batch] for batch in itertools.islice(waiting, 1)]
                yield [future.result() for future in ready]

    def _read(self, work: Work) -> tuple[Work, Item] | Failure:
        if self.spec.reads != "wave":
            return work, Item(work.utterance, text=work.text, language=work.language)
        from raysere.features.audio import in_noise, read_audio, resample

        assert self.backbone is not None
        assert work.path is not None
        info = self.backbone.info
        channel = self.spec.channel if work.channel is None else work.channel
        try:
            wave = read_audio(
                work.path, work.start_s, work.end_s, self.spec.sampling_rate, channel=channel, min_s=info.min_s, max_s=info.max_s
            )
        except (DataError, MissingFileError) as error:
            return _failure(work, error.what, lasting=not error.what.startswith(("missing file", "unreadable")))
        if self.spec.speed != 1:
            rate = self.spec.sampling_rate or 0
            wave = resample(wave, round(rate * self.spec.speed), rate)
        if self.spec.noise_db is not None:
            wave = in_noise(wave, self.spec.noise_db, work.content)
        if self.spec.level == "rms":
            wave = wave * np.float32(LEVEL_RMS / np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
        return work, Item(work.utterance, wave=wave, language=work.language)

    def _encode(self, pairs: list[tuple[Work, Item]]) -> Iterator[tuple[Work, list[np.ndarray] | Failure]]:
        """Stored rows or the failure of each item; a batch that fails is tried again in halves, so
        that one bad item costs only itself.
        """
        assert self.backbone is not None
        if not pairs:
            return
        numbers = self.spec.numbers
        try:
            encoded = self.backbone.encode([item for _, item in pairs], numbers)
            if len(encoded) != len(pairs):
                raise DataError(f"the backbone answered {len(encoded)} of {len(pairs)} items")
        except EnvironmentFault:
            raise
        except Exception as error:
            if not out_of_memory(error) and (fault := machine_fault(error, self.folder)):  # memory may be lacking for this clip alone
                raise fault from error
            if len(pairs) > 1:
                middle = len(pairs) // 2
                yield from self._encode(pairs[:middle])
                yield from self._encode(pairs[middle:])
                return
            yield pairs[0][0], _fault(pairs[0][0], error)
            return
        for (work, item), rows in zip(pairs, encoded, strict=True):
            try:
                speech = {frames: self._counted(work, item, frames) for frames in {len(layer) for layer in rows}}
                layers = zip(rows, numbers, strict=True)
                yield work, [pool_frames(layer, number, self.spec, speech[len(layer)]) for layer, number in layers]
            except DataError as error:
                yield work, _failure(work, error.what)

    def _counted(self, work: Work, item: Item, frames: int) -> np.ndarray | None:
        """Which frames count, where the spec leaves silence or all but some phones out.

        Raises DataError where none does.
        """
        spec = self.spec
        if item.wave is None or spec.frame_s is None or spec.sampling_rate is None:
            return None
        speech = None
        if spec.silence_db is not None and frames >= 2:
            speech = speech_frames(item.wave, frames, spec.frame_s * spec.sampling_rate, spec.silence_db)
        if not spec.phones:
            return speech
        if work.spans is None:
            raise DataError("these features are of phones, and nothing tells when this clip has which")
        assert self.backbone is not None
        spans = np.array(work.spans) / spec.speed
        spoken = interval_of(frame_centres(frame_clock(self.backbone.info), frames), spans[:, 0], spans[:, 1]) >= 0
        if not spoken.any():
            raise DataError(NO_PHONES)
        both = spoken if speech is None else spoken & speech
        return both if both.any() else spoken


def _failure(work: Work, reason: str, *, lasting: bool = True) -> Failure:
    return Failure(work.utterance, work.content, work.path, reason, lasting)


def _fault(work: Work, error: Exception) -> Failure:
    """A DataError is the item's fault and remembered; anything else (memory, a bug, a driver) may
    go well another time.
    """
    if isinstance(error, DataError):
        return _failure(work, error.what)
    return _failure(work, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", lasting=False)
