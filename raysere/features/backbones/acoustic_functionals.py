"""Utterance rows of the acoustic backbone: functionals of the frame descriptors, and the modulation
spectrum.

The functionals follow the idea of eGeMAPS (Eyben et al. 2016, "The Geneva Minimalistic Acoustic
Parameter Set") and ComParE: statistics over active frames, over voiced and over unvoiced ones, and
the timing of voice, syllables and pauses. Frames count only inside the active region, so that
silence before and after the speech, and how much of it a corpus left, changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from raysere.features.backbones.acoustic_frames import CEPSTRA, MELS, SHAPE, Frames
from raysere.features.backbones.acoustic_pitch import HARMONICS

ACTIVE_DB = -25.0  # below the active level: pauses, and silence at the edges
PERCENTILES = (0.2, 0.5, 0.8)
FRAMES_S = 100.0
_BANDS_HZ = ((0.5, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.5), (4.5, 6.5), (6.5, 10.0), (10.0, 16.0), (16.0, 25.0))
_GROUPS = 10  # neighbouring mel bands share an envelope
_POINTS = 4  # frequencies a modulation band

TIMING = (
    "voiced_rate",
    "voiced_length",
    "voiced_length_std",
    "unvoiced_length",
    "unvoiced_length_std",
    "voiced_share",
    "syllable_rate",
    "syllable_height",
    "syllable_gap_std",
    "pause_rate",
    "pause_length",
    "pause_share",
    "f0_trend",
    "loudness_trend",
    "onset_slope",
    "decay_slope",
    "f0_rise",
    "f0_fall",
    "f0_rise_std",
    "f0_fall_std",
    "loudness_rise",
    "loudness_fall",
    "loudness_rise_std",
    "loudness_fall_std",
)
_PERCENTILE_OF = (
    "f0_semitones",
    "loudness_db",
    "hnr_db",
    "flux",
    "centroid",
    "alpha_ratio",
    "hammarberg",
    "slope_0_500",
    "slope_500_1500",
    "entropy",
    "h1_h2_db",
    "h1_a3_db",
    "rolloff50",
    *(f"mfcc{i}" for i in range(1, 9)),
)
_VOICED_OF = (
    *SHAPE[1:],
    *(name for name in HARMONICS if name not in ("f0_semitones", "voicing")),
    *(f"mfcc{i}" for i in range(1, CEPSTRA + 1)),
)
_UNVOICED_OF = (
    "centroid",
    "alpha_ratio",
    "hammarberg",
    "slope_0_500",
    "slope_500_1500",
    "flux",
    "loudness_db",
    "mfcc1",
    "mfcc2",
    "mfcc3",
    "mfcc4",
)


@dataclass(frozen=True)
class Region:
    """bool (B, T):

    ``active`` frames, and ``inside``, all from the first active frame to the last.
    """

    active: Tensor
    inside: Tensor


def descriptor_names() -> tuple[str, ...]:
    """Columns that the functionals are taken of."""
    return (
        "loudness_db",
        *(f"mel{i:02d}" for i in range(1, MELS + 1)),
        *(f"mfcc{i}" for i in range(1, CEPSTRA + 1)),
        *SHAPE[1:],
        *HARMONICS,
    )


def functional_names() -> tuple[str, ...]:
    """Names of the columns of :func:`functionals`; ``level_db`` alone depends on the gain."""
    names = descriptor_names()
    return (
        "level_db",
        *(f"{name}.mean" for name in names),
        *(f"{name}.std" for name in names),
        *(f"{name}.change" for name in names),
        *(f"{name}.{part}" for part in ("p20", "p50", "p80", "range") for name in _PERCENTILE_OF),
        *(f"voiced.{name}.{part}" for part in ("mean", "std") for name in _VOICED_OF),
        *(f"unvoiced.{name}.mean" for name in _UNVOICED_OF),
        *TIMING,
    )


def modulation_names() -> tuple[str, ...]:
    """Names of the columns of :func:`modulation`."""
    envelopes = (*(f"band{i}" for i in range(1, _GROUPS + 1)), "loudness", "f0")
    bands = [f"{low:g}-{high:g}Hz" for low, high in _BANDS_HZ]
    return (*(f"{envelope}.{band}" for envelope in envelopes for band in bands), *(f"{envelope}.depth" for envelope in envelopes))


def find_region(frames: Frames) -> Region:
    """Active frames: within 25 dB of the active level, gaps of up to 50 ms closed."""
    loud = frames.mask & (frames.loudness_db > ACTIVE_DB)
    # silence on either side of the clip, whether it stands in a batch or alone
    spread = torch.nn.functional.max_pool1d(torch.nn.functional.pad(loud.float(), (4, 4))[:, None], 5, 1)
    active = (-torch.nn.functional.max_pool1d(-spread, 5, 1))[:, 0].bool() & frames.mask
    inside = active.int().cummax(dim=1).values.bool() & active.flip(1).int().cummax(dim=1).values.bool().flip(1)
    return Region(active, inside)


def functionals(frames: Frames) -> Tensor:
    """float32 (B, len(functional_names())), finite."""
    region = find_region(frames)
    table = torch.cat([frames.loudness_db[..., None], frames.mel, frames.cepstra, frames.shape[..., 1:], frames.pitch.tracks], dim=-1)
    names = descriptor_names()
    active, voiced = region.active, frames.pitch.voiced & region.inside
    unvoiced = region.active & ~voiced
    # pitch and what hangs on it are measured where there is a voice
    weights = active[..., None].expand_as(table).clone()
    first = len(names) - len(HARMONICS)
    weights[..., first] = voiced
    weights[..., first + 2 :] = voiced[..., None]
    mean, std = _moments(table, weights)
    pairs = weights[:, 1:] & weights[:, :-1]
    change = ((table[:, 1:] - table[:, :-1]).abs() * pairs).sum(dim=1) / pairs.sum(dim=1).clamp(min=1)
    chosen = [names.index(name) for name in _PERCENTILE_OF]
    low, middle, high = _percentiles(table[..., chosen], weights[..., chosen])
    columns = [names.index(name) for name in _VOICED_OF]
    voiced_mean, voiced_std = _moments(table[..., columns], voiced[..., None])
    unvoiced_mean, _ = _moments(table[..., [names.index(name) for name in _UNVOICED_OF]], unvoiced[..., None])
    row = [
        frames.level_db[:, None],
        mean,
        std,
        change,
        low,
        middle,
        high,
        high - low,
        voiced_mean,
        voiced_std,
        unvoiced_mean,
        _timing(frames, region, voiced),
    ]
    return torch.nan_to_num(torch.cat(row, dim=1), nan=0.0, posinf=0.0, neginf=0.0)


def modulation(frames: Frames) -> Tensor:
    """float32 (B, len(modulation_names())): how fast and how deep the envelopes of bands, loudness
    and pitch move.

    Per envelope the natural logarithm of the share of its modulation power in each of eight bands
    from 0.5 to 25 Hz, and of its depth. The Fourier transform is taken over the active region under
    a Hann window, at four frequencies a band, so a row does not depend on how long the clip is, and
    no clip is padded.
    """
    region = find_region(frames)
    inside = (
        region.inside if bool(region.inside.any(dim=1).all()) else region.inside | (frames.mask & ~region.inside.any(dim=1, keepdim=True))
    )
    groups = frames.mel.unflatten(-1, (_GROUPS, MELS // _GROUPS)).mean(dim=-1)
    envelopes = torch.cat(
        [groups, frames.loudness_db[..., None] * (math.log(10) / 10), frames.pitch.f0[..., None] * (math.log(2) / 12)], dim=-1
    )
    weight = inside.float()
    count = weight.sum(dim=1, keepdim=True).clamp(min=1)
    position = (weight.cumsum(dim=1) - 0.5) / count
    window = weight * torch.sin(math.pi * position).square()
    total = window.sum(dim=1, keepdim=True).clamp(min=1e-6)
    centre = torch.einsum("bt,bte->be", window / total, envelopes)
    moving = (envelopes - centre[:, None]) * (window / total.sqrt())[..., None]
    table = _fourier(frames.mask.shape[1], frames.mask.device)
    power = torch.einsum("bte,tf->bef", moving, table).square()
    bands = power.unflatten(-1, (len(_BANDS_HZ), 2 * _POINTS)).sum(dim=-1) + 1e-4
    depth = bands.sum(dim=-1, keepdim=True)
    return torch.cat([(bands / depth).log().flatten(1), depth[..., 0].log()], dim=1)


@lru_cache(maxsize=32)
def _fourier(length: int, device: torch.device) -> Tensor:
    """(length, bands * points * 2) cosines and sines at the frequencies of the modulation bands."""
    points = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS
    hertz = torch.stack([low * (high / low) ** points for low, high in _BANDS_HZ])
    phase = 2 * math.pi / FRAMES_S * torch.arange(length, dtype=torch.float64)[:, None, None] * hertz
    return torch.stack([phase.cos(), phase.sin()], dim=-1).flatten(1).float().to(device)


def _moments(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation over time of (B, T, D) where ``weights`` (B, T, D or
    1); zeros where nothing counts.
    """
    count = weights.sum(dim=1).clamp(min=1)
    mean = (values * weights).sum(dim=1) / count
    variance = ((values - mean[:, None]).square() * weights).sum(dim=1) / count
    return mean, variance.sqrt()


def _percentiles(values: Tensor, weights: Tensor) -> list[Tensor]:
    """Percentiles over time of (B, T, D) where ``weights``, interpolated; zeros where nothing
    counts.
    """
    ordered = values.transpose(1, 2).masked_fill(~weights.transpose(1, 2), float("inf")).sort(dim=-1).values
    count = weights.sum(dim=1)
    result = []
    for part in PERCENTILES:
        position = (count - 1).clamp(min=0) * part
        below = position.floor().long()
        above = torch.minimum(below + 1, (count - 1).clamp(min=0))
        lower, upper = ordered.gather(2, below[..., None])[..., 0], ordered.gather(2, above[..., None])[..., 0]
        result.append(torch.where(count > 0, lower + (upper - lower) * (position - below), 0.0))
    return result


def _timing(frames: Frames, region: Region, voiced: Tensor) -> Tensor:
    """(B, len(TIMING)): rates a second, lengths in seconds, slopes in units a second."""
    inside = region.inside
    seconds = (inside.sum(dim=1) / FRAMES_S).clamp(min=0.1)
    voiced_count, voiced_length, voiced_std = _runs(voiced)
    _, unvoiced_length, unvoiced_std = _runs(inside & ~voiced)
    pauses, pause_length, _ = _runs(inside & ~region.active)
    rate, height, gap = _syllables(frames, inside)
    onset, decay = _edges(frames.loudness_db, inside)
    f0, loudness = frames.pitch.f0, frames.loudness_db
    columns = [
        voiced_count / seconds,
        voiced_length,
        voiced_std,
        unvoiced_length,
        unvoiced_std,
        voiced.sum(dim=1) / inside.sum(dim=1).clamp(min=1),
        rate / seconds,
        height,
        gap,
        pauses / seconds,
        pause_length,
        (inside & ~region.active).sum(dim=1) / inside.sum(dim=1).clamp(min=1),
        _trend(f0, voiced),
        _trend(loudness, region.active),
        onset,
        decay,
        *_slopes(f0, voiced),
        *_slopes(loudness, region.active),
    ]
    return torch.stack([column.float() for column in columns], dim=1)


def _runs(flags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and standard deviation of the lengths (seconds) of stretches of True in (B, T)."""
    padded = torch.nn.functional.pad(flags, (1, 1))
    time = torch.arange(padded.shape[1], device=flags.device)
    starts, ends = padded[:, 1:] & ~padded[:, :-1], padded[:, :-1] & ~padded[:, 1:]
    last_start = torch.where(starts, time[:-1], -1).cummax(dim=1).values
    lengths = (time[:-1] - last_start) / FRAMES_S
    mean, std = _moments(lengths[..., None], ends[..., None])
    return ends.sum(dim=1), mean[:, 0], std[:, 0]


def _syllables(frames: Frames, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Peaks of the smoothed loudness that stand 3 dB above their valleys: count, mean height,
    spread of the gaps (seconds).
    """
    kernel = torch.hann_window(13, periodic=False, device=inside.device)[1:-1]
    # before and after the clip there is silence, in whatever batch it is
    loudness = torch.where(frames.mask, frames.loudness_db, -40.0).clamp(min=-40)
    padded = torch.nn.functional.pad(loudness[:, None], (20, 20), value=-40.0)
    smooth = torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])
    top = torch.nn.functional.max_pool1d(smooth, 11, 1)[..., 10:-10]
    valley = -torch.nn.functional.max_pool1d(-smooth, 31, 1)
    smooth = smooth[..., 15:-15]
    rise = (smooth - valley)[:, 0]
    peaks = inside & (smooth == top)[:, 0] & (rise > 3.0)
    time = torch.arange(inside.shape[1], device=inside.device)
    last = torch.where(peaks, time, -1).cummax(dim=1).values
    previous = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
    gaps, follows = (time - previous) / FRAMES_S, peaks & (previous >= 0)
    _, spread = _moments(gaps[..., None], follows[..., None])
    height, _ = _moments(rise[..., None], peaks[..., None])
    return peaks.sum(dim=1), height[:, 0], spread[:, 0]


def _trend(track: Tensor, weights: Tensor) -> Tensor:
    """(B,) least-squares slope a second of a track over the frames that count."""
    time = torch.arange(track.shape[1], device=track.device, dtype=torch.float32) / FRAMES_S
    flags = weights.float()
    count = flags.sum(dim=1, keepdim=True).clamp(min=1)
    t = (time - (time * flags).sum(dim=1, keepdim=True) / count) * flags
    spread = t.square().sum(dim=1)
    return torch.where(spread > 1e-3, (t * track).sum(dim=1) / spread.clamp(min=1e-3), 0.0)


def _slopes(track: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean and standard deviation (units a second) of the rising and of the falling parts, over
    steps of 30 ms that count throughout.
    """
    if track.shape[1] <= 3:
        zero = torch.zeros(len(track), device=track.device)
        return zero, zero, zero, zero
    step = (track[:, 3:] - track[:, :-3]) * (FRAMES_S / 3)
    whole = weights[:, 3:] & weights[:, 2:-1] & weights[:, 1:-2] & weights[:, :-3]
    rise, rise_std = _moments(step[..., None], (whole & (step > 0))[..., None])
    fall, fall_std = _moments(step[..., None], (whole & (step < 0))[..., None])
    return rise[:, 0], fall[:, 0], rise_std[:, 0], fall_std[:, 0]


def _edges(loudness_db: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loudness (dB relative to the level) of the first and of the last 200 ms of the active
    region: how it starts and ends.
    """
    order = inside.cumsum(dim=1)
    head = inside & (order <= 20)
    tail = inside & (order > order[:, -1:] - 20)
    return _moments(loudness_db[..., None], head[..., None])[0][:, 0], _moments(loudness_db[..., None], tail[..., None])[0][:, 0]
