"""Uploads are decoded in processes of their own: whatever a file does to the decoder, the server lives on.

A decoder process has a bound on its memory, its caller a bound on its time. It writes what it heard as 32-bit float WAV of all
channels at the file's own rate: the samples that the file itself would give, so predictions are the same numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import resource
import signal
import uuid
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from raysere.corpora.audiofile import probe
from raysere.errors import DataError
from raysere.features.audio import SILENT_PEAK, read_channels
from raysere.serving.children import die_with_parent
from raysere.serving.faults import Fault, clip_fault
from raysere.serving.limits import Limits


@dataclass(frozen=True)
class Clip:
    """A decoded upload: ``path`` of the WAV that the server reads, and what the upload was."""

    path: str
    seconds: float
    sampling_rate: int
    channels: int


class Decoder:
    """Turns bytes into :class:`Clip`; made once a replica. ``close`` ends its processes."""

    def __init__(self, spool: Path, limits: Limits) -> None:
        self.spool, self.limits = spool, limits
        self._pool: ProcessPoolExecutor | None = None
        self._alone = asyncio.Lock()  # a file that killed a decoder is tried once more, with nobody beside it

    async def warm(self) -> None:
        """Start the processes now rather than at the first request."""
        with contextlib.suppress(Fault):
            await asyncio.gather(*(self.decode(b"none") for _ in range(self.limits.decoders)))

    async def decode(self, data: bytes) -> Clip:
        """Raises Fault: 413 (too long, too many samples), 415 (no audio), 422 (what else is wrong with it)."""
        if self._pool is None:
            self._pool = self._new(self.limits.decoders)
        pool = self._pool
        try:
            return await self._run(pool, data)
        except BrokenProcessPool:  # by this file, or by one that was decoded beside it
            if self._pool is pool:
                self._pool = None
            self._end(pool)
        async with self._alone:
            pool = self._new(1)
            try:
                return await self._run(pool, data)
            except BrokenProcessPool:
                raise Fault(422, "audio_unusable", "The audio cannot be used: its decoder died, or took too long") from None
            finally:
                self._end(pool)

    async def _run(self, pool: ProcessPoolExecutor, data: bytes) -> Clip:
        try:
            future = pool.submit(_decode, data, str(self.spool / f"{uuid.uuid4().hex}.wav"), self.limits)
        except RuntimeError as error:  # the pool has just been ended
            raise BrokenProcessPool from error
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


def _decode(data: bytes, target: str, limits: Limits) -> Clip:
    """Runs in the decoder process. SIGALRM ends what takes too long: a decoder that hangs dies, and its pool tells."""
    signal.setitimer(signal.ITIMER_REAL, limits.decode_s)
    upload = Path(target).with_suffix(".upload")
    try:
        upload.write_bytes(data)
        info = probe(upload)
        _check(info.duration_s, info.sampling_rate, info.channels, info.frames, limits)
        samples = read_channels(upload, 0, info.frames)
        if not np.isfinite(samples).all():
            raise DataError(f"not finite: {int((~np.isfinite(samples)).sum())} samples are NaN or infinite")
        if np.abs(samples).max(initial=0.0) < SILENT_PEAK:
            raise DataError("silent")
        soundfile.write(target, samples, info.sampling_rate, subtype="FLOAT", format="WAV")
        return Clip(target, len(samples) / info.sampling_rate, info.sampling_rate, info.channels)
    except DataError as error:
        raise clip_fault(error) from None
    except (MemoryError, soundfile.LibsndfileError, ValueError, OverflowError) as error:
        raise Fault(422, "audio_unusable", f"The audio cannot be used: {type(error).__name__}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(upload)


def _check(seconds: float, rate: int, channels: int, frames: int, limits: Limits) -> None:
    if seconds > limits.audio_s:
        raise Fault(413, "audio_too_long", f"The audio lasts {seconds:.1f} s, at most {limits.audio_s:g} s are taken", remedy="Cut it.")
    if not limits.rate_low <= rate <= limits.rate_high:
        raise Fault(422, "sampling_rate", f"The sampling rate is {rate} Hz, not from {limits.rate_low} to {limits.rate_high} Hz")
    if channels > limits.channels:
        raise Fault(422, "channels", f"The audio has {channels} channels, at most {limits.channels} are taken", remedy="Mix it down.")
    if frames * channels > limits.samples:
        raise Fault(413, "audio_too_long", f"The audio has {frames * channels} samples, at most {limits.samples} are taken")
