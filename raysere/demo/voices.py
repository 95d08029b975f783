"""Speakers of the demo corpus: variants of espeak-ng, changed by resampling, tilt, room and noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.signal import fftconvolve, resample_poly

from raysere.demo.espeak import Speech
from raysere.demo.prosody import CUES, Prosody, Style

SAMPLING_RATE = 16_000
LEVEL_DB = -27.0  # active speech level of a plain utterance, re full scale
FEMALE = ("f1", "f2", "f3", "f4")
MALE = ("m1", "m2", "m3", "m5", "m6", "m7")


@dataclass(frozen=True)
class Voice:
    """One speaker.

    ``down``: speech is resampled from 22,050 Hz by 320 / down; 441 leaves pitch and formants, more
    raises them.
    """

    name: str
    language: str
    sex: str
    split: str
    variant: str
    rate: float  # words a minute
    pitch: float  # espeak-ng's 0 to 100
    pitch_range: float  # espeak-ng's 0 to 100
    down: int
    tilt: float  # dB an octave
    gain: float  # dB
    room_s: float  # reverberation time
    room_db: float  # reverberation re direct sound
    noise_db: float  # background re plain speech
    strength: float
    cues: tuple[float, ...]

    @property
    def style(self) -> Style:
        return Style(self.strength, np.array(self.cues))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_voices(count: int, languages: tuple[str, ...], seed: int) -> list[Voice]:
    """``count`` speakers over the languages in turn, women and men in turn.

    Of n speakers of a language max(1, n // 4) each are development and test speakers: with 8 two
    each, a woman and a man.
    """
    voices = []
    for place, language in enumerate(languages):
        share = len(range(place, count, len(languages)))
        held = max(1, share // 4)
        pace = 1.2 if language == "cmn" else 1.0  # at one setting espeak-ng speaks Mandarin more slowly
        rng = np.random.default_rng([seed, 1, place])
        variants = {"female": list(rng.permutation(FEMALE)), "male": list(rng.permutation(MALE))}
        for index in range(share):
            sex = "female" if index % 2 == 0 else "male"
            split = "test" if index >= share - held else "dev" if index >= share - 2 * held else "train"
            voices.append(
                Voice(
                    name=f"{language}-{index + 1:02d}",
                    language=language,
                    sex=sex,
                    split=split,
                    variant=str(variants[sex][index // 2 % len(variants[sex])]),
                    rate=round(pace * rng.uniform(162, 180), 1),
                    pitch=round(rng.uniform(42, 54), 1),
                    pitch_range=round(rng.uniform(42, 58), 1),
                    down=int(rng.integers(425, 458)),
                    tilt=round(rng.uniform(-0.8, 0.8), 2),
                    gain=round(rng.uniform(-1.2, 1.2), 2),
                    room_s=round(rng.uniform(0.12, 0.35), 3),
                    room_db=round(rng.uniform(-20, -10), 1),
                    noise_db=round(rng.uniform(-45, -32), 1),
                    strength=round(rng.uniform(0.8, 1.2), 3),
                    cues=tuple(np.round(np.exp(0.2 * rng.standard_normal(len(CUES))), 3).tolist()),
                )
            )
    return voices


def espeak_settings(voice: Voice, prosody: Prosody) -> dict[str, int]:
    """Rate, pitch, range and word gap as espeak-ng wants them, within what it takes."""
    rate, pitch, spread, _, pause, _ = prosody.cues
    share = 0.5 if voice.language == "cmn" else 1.0  # its gaps come after every character
    wanted = {
        "rate": (voice.rate * np.exp(0.15 * rate), 110, 320),
        "pitch": (voice.pitch + 10 * pitch, 3, 97),
        "pitch_range": (voice.pitch_range + 20 * spread, 5, 100),
        "word_gap": ((2 + 3 * pause) * share, 0, 8),
    }
    return {name: round(float(np.clip(*value))) for name, value in wanted.items()}


def render(speech: Speech, voice: Voice, prosody: Prosody) -> np.ndarray:
    """The dry sound at 16 kHz, float64 (n,): resampled, tilted by voice and vocal effort, at the
    level that voice and loudness ask for.
    """
    samples = resample_poly(speech.samples.astype(np.float64) / 32768, 320, voice.down)
    spectrum = np.fft.rfft(samples)
    octaves = np.clip(np.log2(np.maximum(np.fft.rfftfreq(len(samples), 1 / SAMPLING_RATE), 1) / 1000), -2, 3)
    samples = np.fft.irfft(spectrum * 10 ** ((voice.tilt + 1.2 * prosody.cues[5]) * octaves / 20), len(samples))
    loud = np.abs(samples) > 0.02 * np.abs(samples).max()
    level = LEVEL_DB + voice.gain + 2.8 * float(np.clip(prosody.cues[3], -4, 4))
    return samples * 10 ** (level / 20) / max(float(np.sqrt(np.mean(samples[loud] ** 2))), 1e-9)


def seconds(voice: Voice, sample: int) -> float:
    """Time in the rendered sound of a sample number of espeak-ng's."""
    return sample * 320 / voice.down / SAMPLING_RATE


def finish(samples: np.ndarray, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """Room and background over a whole clip; int16 (n,), never clipped: a clip that would be is
    made quieter.
    """
    time = np.arange(int(voice.room_s * SAMPLING_RATE)) / SAMPLING_RATE
    room_rng = np.random.default_rng([sum(voice.name.encode()), voice.down])  # a speaker stays in one room
    tail = room_rng.standard_normal(len(time)) * 10 ** (-3 * time / voice.room_s) * (time > 0.004)
    tail *= 10 ** (voice.room_db / 20) / np.sqrt(np.sum(tail**2))
    wet = samples + fftconvolve(samples, tail)[: len(samples)]
    noise = rng.standard_normal(len(samples) + 1)
    noise = 0.5 * (noise[1:] + noise[:-1])  # falls towards high frequencies
    wet += 10 ** ((LEVEL_DB + voice.gain + voice.noise_db) / 20) * noise / np.sqrt(0.5)
    peak = np.abs(wet).max()
    if peak > 0.97:
        wet *= 0.97 / peak
    return np.round(wet * 32767).astype(np.int16)
