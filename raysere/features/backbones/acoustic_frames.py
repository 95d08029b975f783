"""Frame descriptors of the acoustic backbone: spectra, mel bands, cepstra and spectral shape, 100
rows a second.

All clips of a batch lie in one buffer with silence between them; frames are cut from it by index
and computed in blocks that fit a processor's cache. So nothing is padded, and a clip gives the same
rows in every company. Everything but ``level_db`` is relative to the clip's own active level, hence
independent of gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from raysere.features.backbones import acoustic_pitch

RATE = 16000
HOP = 160
WINDOW = 640  # 40 ms Hann: as sharp in time as a 20 ms rectangle, and two periods of the lowest pitch
FFT = 1024
BINS = FFT // 2
MELS, CEPSTRA = 40, 20
LINEAR = 64  # bands of 125 Hz on which the spectral shape is measured
FLOOR = 1e-6  # -60 dB below the active level, spread over the band: gated and digital silence looks like a quiet room
BLOCK = 1024  # frames computed at once
_GAP = 4  # hops of silence between clips in the buffer: more than half a window

SHAPE = (
    "energy_db",
    "centroid",
    "spread",
    "skewness",
    "entropy",
    "flatness",
    "flux",
    "rolloff25",
    "rolloff50",
    "rolloff75",
    "rolloff90",
    "slope_0_500",
    "slope_500_1500",
    "alpha_ratio",
    "hammarberg",
    "band_0_500",
    "band_500_1000",
    "band_1000_2000",
    "band_2000_4000",
    "band_4000_8000",
)


@dataclass
class Frames:
    """Descriptors of a batch, padded with zeros to (clips, frames, ...).

    Attributes:
        mask: bool (B, T), frames that belong to the clip.
        level_db: (B,), active level of each clip in dB of full scale.
        loudness_db: (B, T), energy of each 10 ms relative to that level.
        mel: (B, T, 40) log-mel energies, natural logarithm, relative to the level. cepstra: (B, T,
            20), c1 to c20.
        shape: (B, T, len(SHAPE)).
        pitch: voicing, f0 and harmonics.
    """

    mask: Tensor
    level_db: Tensor
    loudness_db: Tensor
    mel: Tensor
    cepstra: Tensor
    shape: Tensor
    pitch: acoustic_pitch.Pitch


def analyse(waves: Sequence[Tensor]) -> Frames:
    """Frames of clips, each float32 (samples,) at 16 kHz on one device; a clip of n samples has
    ceil(n / 160) frames, at least one.
    """
    device = waves[0].device
    counts = [max(1, -(-len(wave) // HOP)) for wave in waves]
    starts, total = [], _GAP
    for count in counts:
        starts.append(total)
        total += count + _GAP
    buffer = torch.zeros(total * HOP, device=device)
    for wave, start in zip(waves, starts, strict=True):
        if len(wave):
            buffer[start * HOP : start * HOP + len(wave)] = wave - wave.mean()
    longest = max(counts)
    time = torch.arange(longest, device=device)
    mask = time < torch.tensor(counts, device=device)[:, None]
    hops = torch.tensor(starts, device=device)[:, None] + time

    power = buffer.view(-1, HOP).square().mean(dim=1)[hops.clamp(max=total - 1)] * mask
    level = active_level(power, mask)
    rows = hops[mask]
    clip = torch.arange(len(waves), device=device)[:, None].expand_as(mask)[mask]
    # a frame starts 240 samples before its 10 ms, so it is centred on them
    windows = buffer[HOP // 2 :].unfold(0, WINDOW, HOP)
    constants = _constants(device)
    parts = [
        _block(windows[index], level[owner], constants) for index, owner in zip((rows - 2).split(BLOCK), clip.split(BLOCK), strict=True)
    ]
    mel, shape, magnitudes, score, low = (torch.cat(part) for part in zip(*parts, strict=True))

    loudness = 10 * torch.log10(power / level[:, None] + FLOOR)
    mel, shape, magnitudes = _pad(mel, mask), _pad(shape, mask), _pad(magnitudes, mask)
    shape[..., SHAPE.index("flux")] = _flux(magnitudes, mask)
    pitch = acoustic_pitch.track(_pad(score, mask), _pad(low, mask), loudness, mask)
    return Frames(mask, 10 * torch.log10(level.clamp(min=1e-20)), loudness * mask, mel, mel @ constants.cosine, shape, pitch)


def active_level(power: Tensor, mask: Tensor) -> Tensor:
    """(B,) mean power of the frames within 20 dB of the clip's 95th percentile: the level of the
    speech, whatever silence surrounds it.
    """
    ordered = power.masked_fill(~mask, -1.0).sort(dim=1, descending=True).values
    position = (mask.sum(dim=1, keepdim=True) - 1) * 0.05
    loud = ordered.gather(1, position.round().long())
    active = mask & (power >= 0.01 * loud)
    return ((power * active).sum(dim=1) / active.sum(dim=1).clamp(min=1)).clamp(min=1e-20)


@dataclass(frozen=True)
class _Constants:
    window: Tensor
    bands: Tensor  # (BINS, MELS + LINEAR)
    lags: Tensor  # (bins of the pitch, lags)
    centres: Tensor  # (LINEAR, 3): kHz, kHz^2, kHz^3
    regions: Tensor  # (LINEAR, 5)
    cosine: Tensor  # (MELS, CEPSTRA)
    slopes: Tensor  # (bins up to 1500 Hz, 2)


@lru_cache(maxsize=4)
def _constants(device: torch.device) -> _Constants:
    hertz = torch.arange(BINS, dtype=torch.float64) * RATE / FFT
    edges = _from_mel(torch.linspace(_to_mel(50.0), _to_mel(7800.0), MELS + 2, dtype=torch.float64))
    rising = (hertz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz[:, None]) / (edges[2:] - edges[1:-1])
    mel = torch.minimum(rising, falling).clamp(min=0)
    linear = torch.block_diag(*[torch.ones(BINS // LINEAR, 1, dtype=torch.float64)] * LINEAR)
    linear[:2] = 0  # below 30 Hz: drift and hum
    window = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
    window = window * math.sqrt(2.0 / float(window.square().sum()) / FFT)  # so that the bins of a frame add up to its mean square
    khz = (torch.arange(LINEAR, dtype=torch.float64) + 0.5) * 8 / LINEAR
    regions = torch.stack([(khz >= low) & (khz < high) for low, high in ((0, 0.5), (0.5, 1), (1, 2), (2, 4), (4, 8))], dim=1).double()
    quefrency = torch.arange(1, CEPSTRA + 1, dtype=torch.float64)
    cosine = torch.cos(math.pi / MELS * (torch.arange(MELS, dtype=torch.float64)[:, None] + 0.5) * quefrency) * math.sqrt(2 / MELS)
    slopes = torch.zeros(96, 2, dtype=torch.float64)
    for column, (low, high) in enumerate(((2, 32), (32, 96))):  # least squares of dB on kHz
        x = hertz[low:high] / 1000
        x = x - x.mean()
        slopes[low:high, column] = x / x.square().sum()
    return _Constants(
        *(
            table.float().to(device)
            for table in (
                window,
                torch.cat([mel, linear], dim=1),
                acoustic_pitch.lag_table(FFT, RATE),
                torch.stack([khz, khz**2, khz**3], dim=1),
                regions,
                cosine,
                slopes,
            )
        )
    )


def _block(frames: Tensor, level: Tensor, constants: _Constants) -> tuple[Tensor, ...]:
    """Frames (F, WINDOW) of clips with active power ``level`` (F,) to descriptors; what a later
    step needs of the spectrum comes along.
    """
    spectrum = torch.fft.rfft(frames * constants.window, n=FFT)[:, :BINS]
    power = (spectrum.real.square() + spectrum.imag.square()) / level[:, None]  # a sum over an axis of two is five times slower
    bands = power @ constants.bands
    mel = torch.log(bands[:, :MELS] + FLOOR / 10)
    linear = bands[:, MELS:] + FLOOR / LINEAR
    low = power[:, :192] + FLOOR / BINS
    correlation = low[:, : constants.lags.shape[0]] @ constants.lags
    return mel, _shape(linear, low, constants), linear.sqrt(), correlation, low.log()


def _shape(linear: Tensor, low: Tensor, constants: _Constants) -> Tensor:
    """(F, len(SHAPE)): dB, kHz, and dB per kHz.

    ``linear`` (F, 64) power of bands, ``low`` (F, 192) power of bins up to 3 kHz.
    """
    total = linear.sum(dim=1, keepdim=True)
    share = linear / total
    moments = share @ constants.centres
    centroid = moments[:, 0]
    variance = (moments[:, 1] - centroid**2).clamp(min=1e-6)
    skewness = (moments[:, 2] - 3 * centroid * variance - centroid**3) / variance**1.5
    logs = linear.log()
    entropy = -(share * share.log()).sum(dim=1) / math.log(LINEAR)
    flatness = logs.mean(dim=1) - total[:, 0].log() + math.log(LINEAR)
    cumulative = share.cumsum(dim=1)
    rolloffs = [_rolloff(cumulative, share, part) for part in (0.25, 0.5, 0.75, 0.9)]
    decibel = 10 / math.log(10)
    slopes = (low[:, :96].log() * decibel) @ constants.slopes
    regions = linear @ constants.regions
    alpha = decibel * (linear[:, :8].sum(dim=1).log() - linear[:, 8:40].sum(dim=1).log())
    hammarberg = decibel * (logs[:, :16].amax(dim=1) - logs[:, 16:40].amax(dim=1))
    columns = [
        decibel * total[:, 0].log(),
        centroid,
        variance.sqrt(),
        skewness,
        entropy,
        flatness,
        torch.zeros_like(centroid),
        *rolloffs,
        slopes[:, 0],
        slopes[:, 1],
        alpha,
        hammarberg,
    ]
    return torch.cat([torch.stack(columns, dim=1), decibel * (regions / total).log()], dim=1)


def _rolloff(cumulative: Tensor, share: Tensor, part: float) -> Tensor:
    """kHz below which ``part`` of the power lies, interpolated within its band."""
    band = (cumulative < part).sum(dim=1, keepdim=True).clamp(max=LINEAR - 1)
    inside = 1 - (cumulative.gather(1, band) - part) / share.gather(1, band)
    return (band + inside.clamp(0, 1))[:, 0] * (8 / LINEAR)


def _flux(magnitudes: Tensor, mask: Tensor) -> Tensor:
    """(B, T) distance between the unit-length magnitude spectra of neighbouring frames: change of
    timbre, not of level.
    """
    unit = magnitudes / magnitudes.square().sum(dim=-1, keepdim=True).clamp(min=1e-12).sqrt()
    flux = torch.zeros_like(mask, dtype=torch.float32)
    flux[:, 1:] = (unit[:, 1:] - unit[:, :-1]).square().sum(dim=-1).clamp(min=0).sqrt()
    flux[:, :1] = flux[:, 1:2] if flux.shape[1] > 1 else 0.0
    return flux * mask * (mask.sum(dim=1, keepdim=True) > 1)


def _pad(flat: Tensor, mask: Tensor) -> Tensor:
    padded = flat.new_zeros(*mask.shape, flat.shape[1])
    padded[mask] = flat
    return padded


def _to_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _from_mel(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)
