"""Pitch, voicing and harmonics from the autocorrelation of each frame's low band.

The autocorrelation of a windowed frame over that of the window (Boersma 1993, "Accurate short-term
analysis of the fundamental frequency"), here by a table of cosines over the bins up to 3 kHz.
Octave errors are settled in a second pass that prefers candidates near the clip's median pitch, so
that no frame waits for the one before and a batch is one set of array operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST, HIGHEST = 60.0, 600.0  # Hz
RATE, WINDOW = 16000, 640
MIN_LAG, MAX_LAG = int(RATE / HIGHEST) - 1, int(RATE / LOWEST) + 2
OCTAVE_COST = 0.02  # a period's multiples correlate as well as the period: prefer the shorter one
RANGE_COST = 0.25  # per octave outside of the free range around the clip's median
FREE_RANGE = 0.6  # octaves
VOICED = 0.5  # autocorrelation at the pitch: as much harmonic as noise
QUIET_DB = -35.0  # nothing below is called voiced
HARMONICS = ("f0_semitones", "voicing", "hnr_db", "h1_h2_db", "h1_a3_db", "jitter", "shimmer_db")


@dataclass
class Pitch:
    """``voiced`` bool (B, T); ``tracks`` (B, T, len(HARMONICS)), f0 in semitones above 27.5 Hz,
    interpolated over voiceless stretches.
    """

    voiced: Tensor
    tracks: Tensor

    @property
    def f0(self) -> Tensor:
        return self.tracks[..., 0]


def lag_table(size: int, rate: int) -> Tensor:
    """float64 (bins up to 3 kHz, 1 + lags): cosines that turn a power spectrum into
    autocorrelations over those of the Hann window.
    """
    bins = torch.arange(3000 * size // rate, dtype=torch.float64)
    lags = torch.cat([torch.zeros(1, dtype=torch.float64), torch.arange(MIN_LAG, MAX_LAG + 1, dtype=torch.float64)])
    share = lags / WINDOW
    window = (1 - share) * (2 / 3 + torch.cos(2 * math.pi * share) / 3) + torch.sin(2 * math.pi * share) / (2 * math.pi)
    table = torch.cos(2 * math.pi * bins[:, None] * lags / size) / window
    table[:3] = 0  # below 47 Hz
    return table


def track(correlation: Tensor, low: Tensor, loudness_db: Tensor, mask: Tensor) -> Pitch:
    """Pitch of a batch.

    Args:
        correlation: (B, T, 1 + lags), the first is the power.
        low: (B, T, bins) natural logarithm of the power of the lowest bins.
        loudness_db: (B, T) relative to the clip's level. mask: bool (B, T).
    """
    lags = torch.arange(MIN_LAG, MAX_LAG + 1, device=mask.device, dtype=torch.float32)
    r = correlation[..., 1:] / correlation[..., :1].clamp(min=1e-20)
    inner = r[..., 1:-1]
    peak = (inner >= r[..., :-2]) & (inner > r[..., 2:])
    score = (inner - OCTAVE_COST * torch.log2(lags[1:-1] / lags[1])).masked_fill(~peak, -1.0)
    loud = mask & (loudness_db > QUIET_DB)

    strength, index = score.max(dim=-1)
    octaves = torch.log2(RATE / lags[1:-1])
    median = _weighted_median(octaves[index], torch.where(loud & (strength > VOICED), strength, 0.0))
    away = ((octaves - median[:, None, None]).abs() - FREE_RANGE).clamp(min=0)
    index = (score - RANGE_COST * away).argmax(dim=-1, keepdim=True)

    left, centre, right = (r.gather(-1, index + shift)[..., 0] for shift in (0, 1, 2))
    curve = left - 2 * centre + right
    found = score.gather(-1, index)[..., 0] > -1
    shift = torch.where(found & (curve < -1e-6), 0.5 * (left - right) / curve.clamp(max=-1e-6), 0.0).clamp(-0.5, 0.5)
    height = torch.where(found, centre - 0.25 * (left - right) * shift, 0.0).clamp(0.0, 0.9999)
    semitones = 12 * torch.log2(RATE / (lags[1:-1][index[..., 0]] + shift) / 27.5)

    voiced = _majority(loud & (height > VOICED)) & loud & (height > VOICED - 0.15)
    semitones = bridge(semitones, voiced)
    hnr = 10 * torch.log10((height + 0.01) / (1 - height + 0.001))
    voicing = torch.sigmoid((height - VOICED) * 12) * torch.sigmoid((loudness_db - QUIET_DB) / 3)
    h1, h2 = _harmonic(low, semitones, 1), _harmonic(low, semitones, 2)
    a3 = low[..., 128:].amax(dim=-1) * (10 / math.log(10))  # strongest partial of 2 to 3 kHz
    jitter = _irregularity(semitones, voiced)
    shimmer = _irregularity(loudness_db, voiced)
    tracks = torch.stack([semitones, voicing, hnr, h1 - h2, h1 - a3, jitter, shimmer], dim=-1)
    return Pitch(voiced, tracks * mask[..., None])


def bridge(track: Tensor, known: Tensor) -> Tensor:
    """``track`` (B, T) with the values where not ``known`` interpolated between known neighbours;
    30 (156 Hz) where nothing is known.
    """
    time = torch.arange(track.shape[1], device=track.device).expand_as(track)
    before = torch.where(known, time, -1).cummax(dim=1).values
    after = torch.where(known, time, track.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    none_before, none_after = before < 0, after >= track.shape[1]
    before_, after_ = torch.where(none_before, after, before), torch.where(none_after, before, after)
    nothing = none_before & none_after
    before_, after_ = before_.clamp(0, track.shape[1] - 1), after_.clamp(0, track.shape[1] - 1)
    part = (time - before_) / (after_ - before_).clamp(min=1)
    value = track.gather(1, before_) * (1 - part) + track.gather(1, after_) * part
    return torch.where(nothing, 30.0, torch.where(known, track, value))


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """(B,) weighted median over time of (B, T); log2 of 160 Hz where all weights are zero."""
    ordered, order = values.sort(dim=1)
    cumulative = weights.gather(1, order).cumsum(dim=1)
    half = cumulative[:, -1:] / 2
    position = (cumulative < half).sum(dim=1, keepdim=True).clamp(max=values.shape[1] - 1)
    return torch.where(half[:, 0] > 0, ordered.gather(1, position)[:, 0], math.log2(160.0))


def _majority(flags: Tensor) -> Tensor:
    """Two of three neighbours: single frames neither start nor end a voiced stretch."""
    padded = torch.nn.functional.pad(flags.float(), (1, 1))
    return padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:] >= 2


def _harmonic(low: Tensor, semitones: Tensor, number: int) -> Tensor:
    """(B, T) level in dB of the strongest of the three bins at a multiple of the pitch."""
    bins = (27.5 * 2 ** (semitones / 12) * number * 1024 / RATE).round().long().clamp(1, low.shape[-1] - 2)
    strongest = torch.stack([low.gather(-1, (bins + shift)[..., None])[..., 0] for shift in (-1, 0, 1)]).amax(dim=0)
    return strongest * (10 / math.log(10))


def _irregularity(track: Tensor, voiced: Tensor) -> Tensor:
    """(B, T) absolute second difference within voiced stretches: cycle-to-cycle perturbation as far
    as 10 ms frames show it.
    """
    out = torch.zeros_like(track)
    if track.shape[1] > 2:
        inside = voiced[:, :-2] & voiced[:, 1:-1] & voiced[:, 2:]
        out[:, 1:-1] = (track[:, :-2] - 2 * track[:, 1:-1] + track[:, 2:]).abs() * inside
    return out.clamp(max=12.0)
