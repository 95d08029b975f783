"""Read audio for a backbone: one channel, one sampling rate, and a reason if a clip cannot be used.

Everything that is wrong with a clip is a :class:`~raysere.base.errors.DataError` whose ``what`` is
the reason for quarantine.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import soundfile

from raysere.base.errors import DataError
from raysere.corpora.audiofile import probe, unreadable

if TYPE_CHECKING:
    import torch

SILENT_PEAK = 1e-4  # -80 dBFS: below the noise of any microphone, so nobody spoke
_SLACK_S = 0.02  # alignments and tables are rounded; a segment may end this much after the file
_MP3_SLACK = 2 * 1152  # encoder delay and padding that a decoder may or may not strip
_KERNEL_LIMIT = 50_000_000  # products of rates without a common factor would need kernels of gigabytes

Channel = Literal["mix"] | int | None


def read_audio(
    path: str | os.PathLike[str],
    start_s: float | None = None,
    end_s: float | None = None,
    sampling_rate: int | None = 16000,
    *,
    channel: Channel = None,
    min_s: float = 0.0,
    max_s: float = float("inf"),
) -> np.ndarray:
    """Read a clip or a segment of it.

    Args:
        path: any file that libsndfile reads (wav, flac, ogg, mp3, ...); content counts, not the
            extension.
        start_s, end_s: segment in seconds; None is the start and the end of the file.
        sampling_rate: rate to resample to in Hz; None keeps the file's own.
        channel: a channel number (from 0; a mono file has only its one, whatever the number),
            ``"mix"`` for the mean, or None: the first channel where all are the same, else the
            mean. Name a number where the channels are different microphones: their mean
            comb-filters the voice.
        min_s, max_s: bounds of the segment's length in seconds.

    Returns:
        float32 (samples,), C-contiguous, finite.

    Raises:
        DataError: missing file, empty file, not audio, truncated, segment outside the file, too
            short, too long, samples that are not finite numbers, silent, or no such channel.
        EnvironmentFault: torchaudio does not work here and the rate has to be changed.
    """
    path = Path(path)
    info = probe(path)
    first, last = _segment(info.frames, info.sampling_rate, start_s, end_s, path)
    seconds = (last - first) / info.sampling_rate
    if seconds < min_s:
        raise DataError(f"too short: {seconds:.3g} s, needs at least {min_s:g} s", where=path)
    if seconds > max_s:
        raise DataError(f"too long: {seconds:.1f} s, at most {max_s:g} s", where=path)
    samples = read_channels(path, first, last - first)
    wave = pick_channel(samples, channel, where=path)
    if not np.isfinite(wave).all():
        raise DataError(f"not finite: {int((~np.isfinite(wave)).sum())} samples are NaN or infinite", where=path)
    peak = float(np.abs(wave).max(initial=0.0))
    if peak < SILENT_PEAK:
        raise DataError(f"silent: peak {peak:.1e} of full scale", where=path)
    if sampling_rate is not None and sampling_rate != info.sampling_rate:
        wave = resample(wave, info.sampling_rate, sampling_rate)
    return np.ascontiguousarray(wave, dtype=np.float32)


def pick_channel(samples: np.ndarray, channel: Channel = None, *, where: object = None) -> np.ndarray:
    """One channel (frames,) of ``samples`` (frames, channels), by the policy of :func:`read_audio`.

    Raises DataError: no such channel.
    """
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    if channel is None:
        # a NaN is unequal to itself; such a clip is refused later whichever channel is taken
        return samples[:, 0] if (samples == samples[:, :1]).all() else samples.mean(axis=1)
    if channel == "mix":
        return samples.mean(axis=1)
    if isinstance(channel, bool) or not isinstance(channel, int) or not 0 <= channel < channels:
        raise DataError(f"no channel {channel!r} in a file of {channels}", where=where, choices=["mix", *range(channels)])
    return samples[:, channel]


def resample(wave: np.ndarray, source: int, target: int) -> np.ndarray:
    """Resample float32 (n,) from ``source`` to ``target`` Hz to ceil(n * target / source) samples.

    Windowed sinc (torchaudio, Kaiser window, 64 zero crossings). Rates with next to no common
    factor, whose kernels would fill the memory, are resampled in the frequency domain.
    """
    if source == target or len(wave) == 0:
        return wave
    import torch

    length = -(-len(wave) * target // source)
    step, factor = source // gcd(source, target), target // gcd(source, target)
    signal = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
    if step * factor * 16 > _KERNEL_LIMIT:
        blocks = -(-len(wave) // step) + 1  # whole periods, and silence after the clip so that its end does not wrap into its start
        spectrum = torch.fft.rfft(signal.double(), n=blocks * step)
        resampled = torch.fft.irfft(spectrum[: blocks * factor // 2 + 1], n=blocks * factor) * (factor / step)
        return resampled[:length].float().numpy()
    with torch.inference_mode():
        return _resampler(source, target)(signal[None])[0, :length].numpy()


@lru_cache(maxsize=16)
def _resampler(source: int, target: int) -> torch.nn.Module:
    """Kernels are made once a pair of rates: making them costs more than most clips."""
    from raysere.features.torchaudio_cpu import require_torchaudio

    require_torchaudio()
    from torchaudio.transforms import Resample

    return Resample(
        source, target, resampling_method="sinc_interp_kaiser", lowpass_filter_width=64, rolloff=0.9475937167399596, beta=14.769656459379492
    )


def in_noise(wave: np.ndarray, ratio_db: float, name: str) -> np.ndarray:
    """A clip in pink noise: float32 (n,) whose energy is ``ratio_db`` dB above that of the noise.

    The noise follows from ``name``.
    """
    draw = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    size = max(2, len(wave))
    spectrum = np.fft.rfft(draw.standard_normal(size)) / np.sqrt(np.maximum(np.arange(size // 2 + 1), 1))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, size)[: len(wave)]
    energy, own = np.mean(np.square(wave, dtype=np.float64)), np.mean(noise**2)
    return (wave + noise * np.sqrt(energy / max(own, 1e-12) * 10 ** (-ratio_db / 10))).astype(np.float32)


def content_hash(path: str | os.PathLike[str], start_s: float | None = None, end_s: float | None = None, channel: Channel = None) -> str:
    """Hex SHA-256 of what will be heard: the file's bytes, the segment, and the channel where one
    is named.

    Two names of the same clip have one hash. Raises DataError: missing or unreadable file.
    EnvironmentFault: the disk fails.
    """
    value = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                value.update(block)
    except FileNotFoundError as error:
        raise DataError("missing file", where=path) from error
    except OSError as error:
        raise unreadable(Path(path), error) from error
    if start_s is not None or end_s is not None:
        value.update(f"|segment {start_s!r} {end_s!r}".encode())
    if channel is not None:
        value.update(f"|channel {channel!r}".encode())
    return value.hexdigest()


def _segment(frames: int, rate: int, start_s: float | None, end_s: float | None, path: Path) -> tuple[int, int]:
    first = 0 if start_s is None else round(start_s * rate)
    last = frames if end_s is None else round(end_s * rate)
    if first < 0 or first >= frames or last > frames + _SLACK_S * rate:
        raise DataError(f"segment outside the file: {first / rate:.3f} to {last / rate:.3f} s of {frames / rate:.3f} s", where=path)
    if last <= first:
        raise DataError(f"segment without samples: from {first / rate:.3f} to {last / rate:.3f} s", where=path)
    return first, min(last, frames)


def read_channels(path: Path, first: int, count: int) -> np.ndarray:
    """Samples of all channels, float32 (count, channels), from frame ``first`` on, at the file's
    own rate.

    Raises DataError: truncated or damaged. By descriptor: given a name, soundfile and libsndfile
    would believe its extension.
    """
    try:
        with path.open("rb") as file, soundfile.SoundFile(os.dup(file.fileno()), closefd=True) as sound:
            slack = _MP3_SLACK if sound.format == "MP3" else 0
            if first:
                sound.seek(first)
            samples = sound.read(count, dtype="float32", always_2d=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise DataError(f"truncated or damaged: {str(error).split(': ')[-1].rstrip('.')}", where=path) from error
    if len(samples) < count - slack:
        raise DataError(f"truncated: {count} frames are declared, {len(samples)} can be decoded", where=path)
    if len(samples) == 0:
        raise DataError("no samples (a header and nothing after it)", where=path)
    _check_end(path)
    return samples


def _check_end(path: Path) -> None:
    """An Ogg file tells no length: its last page is marked as the last.

    Without that mark the rest is missing.
    """
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 17)))  # a page has at most 65,307 bytes
        tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or page + 5 >= len(tail) or not tail[page + 5] & 4:
        raise DataError("truncated: the last page of the Ogg stream is missing", where=path)
