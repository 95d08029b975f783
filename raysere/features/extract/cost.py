"""The cost of features before anything runs: bytes from durations, seconds from a short
measurement.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysere.base.cluster import available_cores
from raysere.base.errors import DataError, EnvironmentFault, MissingFileError
from raysere.features.extract.encoder import Encoder
from raysere.features.extract.pool_frames import chunk_count
from raysere.features.spec import FeatureSpec
from raysere.features.store.content import CHARACTERS_PER_S, FileHashes, Work, contents
from raysere.features.store.shards import read_index
from raysere.features.store.store import FeatureStore

if TYPE_CHECKING:
    from raysere.corpora.manifest import Manifest
    from raysere.features.backbone import Backbone

RESERVE = 0.05  # share of the disk that stays free
_ITEM_BYTES = 200  # index and headers, for each utterance
_TOKENS_PER_S = CHARACTERS_PER_S / 4  # word pieces have about four characters


@dataclass(frozen=True)
class ExtractionCost:
    """The price of one spec for one manifest.

    Attributes:
        items, cached: utterances, and how many of them the store is known to hold (files that were
            never hashed count as new).
        speech_s: seconds of speech that are still to be encoded; ``longest_s`` of the longest clip
            among them.
        read_bytes: of the audio files that are still to be read.
        bytes: what is still to be written.
        bytes_by: for the whole manifest, by granularity, with the dtype that is the default there
            (utterance float32, else float16); only the granularities that the backbone can give.
        seconds: expected wall time of what is left with ``workers`` processes; None without a
            measured speed.
        speed: seconds of speech a second of one worker; None when it was not measured.
            ``reading_speed``: the same of one thread that only reads and resamples; None as well
            where nothing is heard.
        free_bytes: what the store's disk has free; ``fits`` whether that is enough with 5 % of the
            disk in reserve.
    """

    key: str
    backbone: str
    granularity: str
    items: int
    cached: int
    speech_s: float
    longest_s: float
    read_bytes: int
    bytes: int
    bytes_by: dict[str, int]
    seconds: float | None
    speed: float | None
    reading_speed: float | None
    workers: int
    free_bytes: int
    fits: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def extraction_cost(
    manifest: Manifest,
    spec: FeatureSpec,
    store_root: str | os.PathLike[str],
    *,
    seconds: float = 10.0,
    speed: float | None = None,
    workers: int | None = None,
    device: str = "cpu",
) -> ExtractionCost:
    """Price ``spec`` for a manifest, from durations and a short measurement.

    Args:
        manifest: utterances; their files are not read except for the few that are measured.
        spec: what would be extracted.
        store_root: the store, which need not exist yet.
        seconds: how long to measure at most; 0 does not measure. Nothing is measured when nothing
            is left to do.
        speed: a speed that is known, in place of the measurement.
        workers: processes that would work; default: the cores of this machine.
        device: where to measure.
    """
    store = FeatureStore(store_root)
    held = set(read_index(store.folder(spec))["content"].to_list())
    works = works_of(manifest, spec)
    found = contents(manifest, spec, FileHashes(store.root), known_only=True)
    cached = [content is not None and content in held for content in found.content]
    left = [work for work, done in zip(works, cached, strict=True) if work is not None and not done]
    present = [work for work in works if work is not None]
    if speed is None and seconds > 0 and left:
        speed = measure(spec, spread(left), seconds=seconds, device=device)
        reading = measure_reading(spec, spread(left), seconds=min(1.0, seconds))
    else:
        reading = None
    speech, workers = sum(work.seconds for work in left), max(1, workers or available_cores())
    by = {}
    for granularity in ("utterance", "chunk", "frame"):
        other = _as(spec, granularity)
        if other is not None:
            by[granularity] = expected_bytes(other, present)
    size, usage = expected_bytes(spec, left), shutil.disk_usage(_standing(store.root))
    return ExtractionCost(
        key=spec.key,
        backbone=spec.backbone,
        granularity=spec.granularity,
        items=len(works),
        cached=sum(cached),
        speech_s=speech,
        longest_s=max((work.seconds for work in left), default=0.0),
        read_bytes=sum(os.path.getsize(path) for path in {work.path for work in left} if path is not None and os.path.exists(path)),
        bytes=size,
        bytes_by=by,
        seconds=0.0 if not left else speech / speed / workers if speed else None,
        speed=speed,
        reading_speed=reading,
        workers=workers,
        free_bytes=usage.free,
        fits=size <= usage.free - int(usage.total * RESERVE),
    )


def expected_rows(spec: FeatureSpec, seconds: float) -> int:
    """Rows that an item of that length is expected to have."""
    if spec.granularity == "utterance":
        return 1
    frames = max(1, round(seconds / spec.frame_s if spec.frame_s else seconds * _TOKENS_PER_S))
    return frames if spec.granularity == "frame" else chunk_count(frames, *spec.chunk_frames())


def expected_bytes(spec: FeatureSpec, works: Iterable[Work]) -> int:
    """Bytes in the store that these items are expected to take, all layers."""
    width, total = spec.row_bytes, 0
    for work in works:
        total += expected_rows(spec, work.seconds) * width + _ITEM_BYTES
    return total


def measure(
    spec: FeatureSpec,
    samples: Sequence[Work],
    *,
    seconds: float = 10.0,
    device: str = "cpu",
    threads: int | None = 1,
    batch_s: float | None = None,
    backbone: Backbone | None = None,
) -> float | None:
    """Speed of one worker in seconds of speech a second, from about ``seconds`` of encoding
    ``samples`` (see :func:`spread`).

    None when none of them can be encoded. Loading the backbone does not count, nor does the first
    item, which warms up, unless it took half of the time.
    """
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    try:
        encoder = Encoder(spec, None, device=device, threads=threads, batch_s=batch_s, backbone=backbone).open()
        started, speech, spent = time.monotonic(), 0.0, 0.0
        for number, work in enumerate(samples):
            outcome = encoder.run([work])
            encoder.kept.clear()
            if number or len(samples) == 1 or outcome.wall_s > seconds / 2:
                speech, spent = speech + outcome.speech_s, spent + outcome.wall_s
            if time.monotonic() - started >= seconds:
                break
        return speech / spent if speech and spent else None
    finally:
        if "torch" in sys.modules:
            import torch

            torch.set_num_threads(before or available_cores())


def measure_reading(spec: FeatureSpec, samples: Sequence[Work], *, seconds: float = 1.0) -> float | None:
    """Seconds of speech a second of one thread that reads and resamples ``samples``, and encodes
    nothing; None where none can be read.
    """
    if spec.reads != "wave":
        return None
    from raysere.features.audio import read_audio

    speech, spent, began = 0.0, 0.0, time.monotonic()
    for number, work in enumerate(samples):
        started = time.monotonic()
        with contextlib.suppress(DataError, MissingFileError):
            wave = read_audio(work.path or "", work.start_s, work.end_s, spec.sampling_rate, channel=spec.channel)
            if number or len(samples) == 1:  # the first one loads the resampler
                speech, spent = speech + len(wave) / (spec.sampling_rate or 1), spent + time.monotonic() - started
        if time.monotonic() - began >= seconds:
            break
    return speech / spent if speech and spent else None


def spread(works: Iterable[Work], count: int = 50) -> list[Work]:
    """Up to ``count`` items spread evenly over all lengths, long and short in turn, always the
    same.
    """
    ordered = sorted(works, key=lambda work: (work.seconds, work.utterance))
    if len(ordered) > count:
        ordered = [ordered[round(place * (len(ordered) - 1) / (count - 1))] for place in range(count)]
    middle = len(ordered) // 2
    low, high = ordered[:middle], ordered[middle:]
    mixed = [work for pair in zip(high, low[::-1], strict=False) for work in pair]
    return mixed + high[len(low) :]


def check_disk(needed: int, folder: str | os.PathLike[str]) -> None:
    """Raise EnvironmentFault unless ``needed`` bytes fit on the disk of ``folder`` with 5 % of the
    disk left free.
    """
    usage = shutil.disk_usage(_standing(folder))
    reserve = int(usage.total * RESERVE)
    if needed > usage.free - reserve:
        raise EnvironmentFault(
            f"The features need about {_size(needed)}; the disk has {_size(usage.free)} free, "
            f"of which {_size(reserve)} (5 % of the disk) stay in reserve",
            where=folder,
            remedy="Ask for fewer layers, for granularity utterance, for dtype float16, or name a store on another disk.",
        )


def _standing(folder: str | os.PathLike[str]) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = Path(folder).expanduser().resolve()
    while not place.exists():
        place = place.parent
    return place


def works_of(manifest: Manifest, spec: FeatureSpec) -> list[Work | None]:
    """What each row costs, told by the table alone; None where there is nothing to read.

    The contents are not hashed.
    """
    result: list[Work | None] = []
    columns = ["utterance", "corpus", "path", "start_s", "end_s", "duration_s", "transcript", "language"]
    for row in manifest.table.select(columns).iter_rows(named=True):
        result.append(_work(manifest, row, spec))
    return result


def _work(manifest: Manifest, row: dict[str, Any], spec: FeatureSpec) -> Work | None:
    name = row["utterance"]
    if spec.reads == "id":
        return Work(name, name, 1.0)
    if spec.reads == "text":
        text = row["transcript"]
        return (
            Work(name, name, max(0.1, len(text) / CHARACTERS_PER_S), text=text, language=row["language"]) if text and text.strip() else None
        )
    if row["path"] is None:
        return None
    return Work(name, name, max(0.01, row["duration_s"] or 1.0), str(manifest.path(row)), row["start_s"], row["end_s"])


def _as(spec: FeatureSpec, granularity: str) -> FeatureSpec | None:
    """The spec at another granularity, or None where its backbone has no such rows."""
    layers = spec.layers if granularity == "utterance" else tuple(layer for layer in spec.layers if layer.rows == "frame")
    if not layers or (granularity == "chunk" and spec.frame_s is None):
        return None
    dtype = spec.dtype if granularity == spec.granularity else "float32" if granularity == "utterance" else "float16"
    chunk = (
        {"chunk_s": spec.chunk_s or 1.0, "chunk_hop_s": spec.chunk_hop_s or 0.5}
        if granularity == "chunk"
        else {"chunk_s": None, "chunk_hop_s": None}
    )
    return spec.model_copy(update={"granularity": granularity, "layers": layers, "dtype": dtype, **chunk})


def _size(size: int) -> str:
    value, units = float(size), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
