"""Decode uploads in separate processes, so that a damaged file cannot harm the server.

A decoder process has a bound on its memory, its caller a bound on its time. It writes what it heard
as 32-bit float WAV of all channels at the file's own rate: the samples that the file itself would
give, so predictions are the same numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from raysere.base.errors import DataError, EnvironmentFault
from raysere.corpora.audiofile import AudioInfo, probe
from raysere.features.audio import SILENT_PEAK, read_channels
from raysere.serving.children import die_with_parent
from raysere.serving.faults import Fault, clip_fault
from raysere.serving.limits import Limits
from raysere.serving.spool import Kept, Spool, full_disk, spool_full


@dataclass(frozen=True)
class Clip:
    """A decoded upload: ``path`` of the WAV that the server reads, and what the upload was."""

    path: str
    seconds: float
    sampling_rate: int
    channels: int


class Decoder:
    """Turns bytes into :class:`Clip`; made once a replica. ``close`` ends its processes."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._pool: ProcessPoolExecutor | None = None
        self._alone = asyncio.Lock()  # a file that killed a decoder is tried once more, with nobody beside it

    async def warm(self, spool: Spool) -> None:
        """Start the processes now rather than at the first request; with a full disk they have to
        wait.
        """
        with contextlib.suppress(Fault), spool.request() as kept:
            await self.decode([b"none"] * self.limits.decoders, kept)

    async def decode(self, audio: Sequence[bytes | None], kept: Kept) -> list[Clip | Fault | None]:
        """The clips of one request, in files of its own; what can be told from the headers is known
        of all before the first is decoded.

        Args:
            audio: items of the request; None for one without audio.
            kept: files of the request.

        Returns:
            For each item its clip, None, or its Fault: 413 (too long, too many samples), 415 (no
            audio), 422 (what else is wrong with it).

        Raises:
            Fault: of the request as a whole: 413 (too much altogether), 503 (no room for it now).
        """
        given = {n: data for n, data in enumerate(audio) if data is not None}
        uploads = dict(zip(given, kept.files(map(len, given.values())), strict=True))
        heads = await self._each(kept, {n: (_look, data, uploads[n], self.limits) for n, data in given.items()})
        sound = {n: info for n, info in heads.items() if not isinstance(info, Fault)}
        targets = dict(zip(sound, kept.files(map(_decoded_bytes, sound.values())), strict=True))
        clips = await self._each(kept, {n: (_decode, uploads[n], targets[n], info, self.limits) for n, info in sound.items()})
        kept.drop(uploads.values())
        found = {**heads, **clips}
        return [found.get(n) for n in range(len(audio))]

    async def _each(self, kept: Kept, wanted: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """What the functions return with their arguments, or the Fault that they raise."""
        found = await asyncio.gather(*(self._run(kept, *one) for one in wanted.values()), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException) and not (isinstance(one, Fault) and one.status < 500):
                raise one
        return dict(zip(wanted, found, strict=True))

    async def _run(self, kept: Kept, work: Callable[..., Any], *arguments: Any) -> Any:
        if self._pool is None:
            self._pool = self._new(self.limits.decoders)
        pool = self._pool
        try:
            return await self._submit(pool, kept, work, *arguments)
        except BrokenProcessPool:  # by this file, or by one that was decoded beside it
            if self._pool is pool:
                self._pool = None
            self._end(pool)
        async with self._alone:
            pool = self._new(1)
            try:
                return await self._submit(pool, kept, work, *arguments)
            except BrokenProcessPool:
                raise Fault(422, "audio_unusable", "The audio cannot be used: its decoder died, or took too long") from None
            finally:
                self._end(pool)

    @staticmethod
    async def _submit(pool: ProcessPoolExecutor, kept: Kept, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            future = pool.submit(work, *arguments)
        except RuntimeError as error:  # the pool has just been ended
            raise BrokenProcessPool from error
        kept.until(future)
        return await asyncio.wrap_future(future)

    def _new(self, processes: int) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(processes, mp_context=spawn, initializer=_confine, initargs=(self.limits.decoder_mb,))

    @staticmethod
    def _end(pool: ProcessPoolExecutor) -> None:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        if self._pool is not None:
            self._end(self._pool)


def _confine(megabytes: int) -> None:
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def _bounded(limits: Limits) -> Iterator[None]:
    """In a decoder process:

    SIGALRM ends what takes too long (a decoder that hangs dies, and its pool tells), and errors
    become Faults.
    """
    signal.setitimer(signal.ITIMER_REAL, limits.decode_s)
    try:
        with full_disk():
            yield
    except DataError as error:
        raise clip_fault(error) from None
    except EnvironmentFault as error:  # of the server's machine, such as too many open files; and no path of it goes out
        raise Fault(503, "not_ready", f"The server cannot read audio now: {error.what}", retry_s=1.0) from None
    except (MemoryError, soundfile.LibsndfileError, ValueError, OverflowError) as error:
        raise Fault(422, "audio_unusable", f"The audio cannot be used: {type(error).__name__}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _look(data: bytes, upload: Path, limits: Limits) -> AudioInfo:
    """Write an upload into its file, which is there, and say what its header says."""
    with _bounded(limits):
        with upload.open("r+b") as file:
            file.write(data)
        info = probe(upload)
        _check(info.duration_s, info.sampling_rate, info.channels, info.frames, limits)
        return info


def _decode(upload: Path, target: Path, info: AudioInfo, limits: Limits) -> Clip:
    """Decode an upload into the file ``target``, which is there."""
    with _bounded(limits):
        samples = read_channels(upload, 0, info.frames)
        if not np.isfinite(samples).all():
            raise DataError(f"not finite: {int((~np.isfinite(samples)).sum())} samples are NaN or infinite")
        if np.abs(samples).max(initial=0.0) < SILENT_PEAK:
            raise DataError("silent")
        with target.open("r+b") as file:
            try:
                soundfile.write(file.fileno(), samples, info.sampling_rate, subtype="FLOAT", format="WAV", closefd=False)
            except soundfile.LibsndfileError as error:  # samples that were read can be written: it is the disk
                raise spool_full() from error
        return Clip(str(target), len(samples) / info.sampling_rate, info.sampling_rate, info.channels)


def _decoded_bytes(info: AudioInfo) -> int:
    """At most, of the WAV with 4 bytes a sample; its header tells something of each channel, too."""
    return 4 * info.frames * info.channels + 8 * info.channels + 1024


def _check(seconds: float, rate: int, channels: int, frames: int, limits: Limits) -> None:
    if seconds > limits.audio_s:
        raise Fault(413, "audio_too_long", f"The audio lasts {seconds:.1f} s, at most {limits.audio_s:g} s are taken", remedy="Cut it.")
    if not limits.rate_low <= rate <= limits.rate_high:
        raise Fault(422, "sampling_rate", f"The sampling rate is {rate} Hz, not from {limits.rate_low} to {limits.rate_high} Hz")
    if channels > limits.channels:
        raise Fault(422, "channels", f"The audio has {channels} channels, at most {limits.channels} are taken", remedy="Mix it down.")
    if frames * channels > limits.samples:
        raise Fault(413, "audio_too_long", f"The audio has {frames * channels} samples, at most {limits.samples} are taken")
