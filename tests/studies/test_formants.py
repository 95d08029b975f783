"""Formants of synthesised resonators, the Bark scale at published points, and a vowel space that is
free of its speakers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from scipy.signal import lfilter

from raysere.corpora.ipa import ipa_phones
from raysere.corpora.manifest import Manifest, rows_to_table
from raysere.studies.units.formants import RATE, bark, burg, formants, resonances, vowel_places, vowel_tokens


def _resonator(hz: float, width: float, rate: float) -> np.ndarray:
    """The two-pole filter of a resonance: poles of the radius exp(-pi width / rate) at the angle 2
    pi hz / rate.
    """
    radius = np.exp(-np.pi * width / rate)
    return np.array([1, -2 * radius * np.cos(2 * np.pi * hz / rate), radius**2])


def _sounding(excitation: np.ndarray, resonators: list[tuple[float, float]], rate: float) -> np.ndarray:
    for hz, width in resonators:
        excitation = lfilter([1.0], _resonator(hz, width, rate), excitation)
    return excitation


def voiced(f1: float, f2: float, seconds: float, pitch: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A vowel: pulses that fall by 12 dB an octave through five resonances, with a little noise."""
    count = round(seconds * rate)
    pulses = np.zeros(count)
    pulses[np.unique(np.round(np.arange(0, count - 1, rate / pitch)).astype(int))] = 1
    source = lfilter([1.0], [1, -0.97], lfilter([1.0], [1, -0.97], pulses))
    wave = _sounding(lfilter([1, -1], [1], source), [(f1, 60), (f2, 90), (2700, 130), (3500, 150), (4400, 180)], rate)
    return 0.2 * wave / np.abs(wave).max() + np.random.default_rng(seed).normal(0, 1e-4, count)


def test_bark_at_published_points() -> None:
    """Edges of Zwicker's critical bands 2 to 20, which the formula meets within .05 Bark
    (Traunmüller 1990); its corrections by hand.
    """
    edges = [200, 300, 400, 510, 630, 770, 920, 1080, 1270, 1480, 1720, 2000, 2320, 2700, 3150, 3700, 4400, 5300, 6400]
    assert np.abs(bark(edges) - np.arange(2, 21)).max() < 0.07
    assert bark(1000) == pytest.approx(26.81 * 1000 / 2960 - 0.53)
    assert bark(100) == pytest.approx(0.7715 + 0.15 * (2 - 0.7715), abs=1e-3)
    assert bark(12000) == pytest.approx(22.5161 + 0.22 * (22.5161 - 20.1), abs=1e-3)


@pytest.mark.parametrize(("f1", "f2"), [(300, 2200), (700, 1200), (400, 800)])
def test_resonances_of_two_pole_filters_are_found(f1: float, f2: float) -> None:
    """Between silences an impulse response is predicted without error by its own filter; noise
    through it, nearly so.
    """
    for rate in (10_000, 16_000):
        impulse = np.zeros(4000)
        impulse[8] = 1
        wave = _sounding(impulse, [(f1, 50), (f2, 80)], rate)
        predictor = burg(wave[None], 4)
        assert np.abs(predictor - np.convolve(_resonator(f1, 50, rate), _resonator(f2, 80, rate))).max() < 1e-6
        assert resonances(predictor, rate)[0] == pytest.approx([f1, f2], abs=1e-3)
    noise = _sounding(np.random.default_rng(0).normal(size=60_000), [(f1, 50), (f2, 80)], 10_000)
    assert resonances(burg(noise[None], 4), 10_000)[0] == pytest.approx([f1, f2], abs=5)


def test_predictors_are_of_least_error_by_brute_force() -> None:
    """Order 1: the coefficient minimises the sum of the squared forward and backward errors. All
    orders: Levinson's recursion is kept, so each predictor is stable.
    """
    x = np.random.default_rng(1).normal(size=(3, 50)).cumsum(1)
    grid = np.linspace(-1, 1, 20_001)
    for row in x:
        errors = ((row[1:, None] + grid * row[:-1, None]) ** 2 + (row[:-1, None] + grid * row[1:, None]) ** 2).sum(0)
        assert burg(row[None], 1)[0, 1] == pytest.approx(grid[errors.argmin()], abs=1e-4)
    for predictor in burg(x, 8):
        assert np.abs(np.roots(predictor)).max() < 1
    assert burg(np.zeros((1, 30)), 3).tolist() == [[1, 0, 0, 0]]


def test_what_is_no_resonance_is_left_out() -> None:
    wide, low = _resonator(900, 500, 10_000), _resonator(60, 40, 10_000)
    sharp = _resonator(1500, 60, 10_000)
    found = resonances(np.convolve(np.convolve(wide, low), sharp)[None], 10_000)[0]
    assert found[0] == pytest.approx(1500, abs=1e-6)
    assert np.isnan(found[1])


@pytest.mark.parametrize("pitch", [100, 140])
def test_a_vowel_among_others_is_measured_in_its_middle(pitch: float) -> None:
    wave = np.concatenate([voiced(f1, f2, 0.2, pitch) for f1, f2 in ((310, 2100), (720, 1250), (400, 850))])
    for number, wanted in enumerate([(310, 2100), (720, 1250), (400, 850)]):
        assert formants(wave, 0.2 * number, 0.2 * (number + 1)) == pytest.approx(wanted, rel=0.08)
    assert np.isnan(formants(wave, 0.59, 0.63)).all()  # its windows end after the clip
    assert np.isnan(formants(np.zeros(5000), 0.1, 0.3)).all()


def _tokens(places: dict[str, tuple[float, float]], shifts: dict[str, float], heard: dict[str, str], each: int = 3) -> pl.DataFrame:
    """Tokens whose Bark is exactly the vowel's place and the speaker's shift."""
    grid = np.linspace(50, 4990, 400_000)
    rows = []
    for speaker, vowels in heard.items():
        for vowel in vowels:
            f1, f2 = np.interp(np.array(places[vowel]) + shifts[speaker], bark(grid), grid)
            rows += [("u", "xx", speaker, vowel, f1, f2)] * each
    return pl.DataFrame(rows, schema=["utterance", "language", "speaker", "vowel", "f1", "f2"], orient="row")


def test_places_are_free_of_speakers_whatever_each_was_heard_in() -> None:
    places = {"a": (6.5, 10.5), "e": (4.0, 13.5), "i": (3.0, 14.0), "o": (4.5, 7.5), "u": (3.2, 7.0)}
    shifts = {"s": -0.6, "t": 0.2, "w": 0.4}
    found = vowel_places(_tokens(places, shifts, {"s": "aei", "t": "iou", "w": "aeou"}))
    assert found["vowel"].to_list() == sorted(places)
    assert found.select("f1_bark", "f2_bark").to_numpy() == pytest.approx(np.array([places[v] for v in sorted(places)]), abs=1e-4)
    assert found["speakers"].to_list() == [2, 2, 2, 2, 2]
    assert vowel_places(_tokens(places, shifts, {"s": "ae", "t": "ae", "w": "o"}))["vowel"].to_list() == ["a", "e"]  # o: one speaker
    assert vowel_places(_tokens(places, shifts, {"s": "ae", "t": "ae"}, each=2)).height == 0
    shifts["x"] = 0.0
    apart = vowel_places(_tokens(places, shifts, {"s": "ae", "t": "ae", "w": "ou", "x": "ou"}))
    assert apart.height == 4
    assert apart["f1_bark"].is_nan().all()


def test_tokens_of_a_manifest(tmp_path: Path) -> None:
    """Audio of another rate, a limit of tokens, a broken clip, a segment of a file, and vowels too
    short to be measured.
    """
    clips = []
    for number in range(3):
        wave = np.concatenate([np.zeros(1600), voiced(300, 2100, 0.2, 110, 16_000, number), voiced(700, 1250, 0.2, 110, 16_000, number)])
        soundfile.write(tmp_path / f"{number}.wav", wave, 16_000)
        labels = [("i", 0.0, 0.2), ("a", 0.2, 0.38), ("a", 0.38, 0.4)]
        phones = [{"label": label, "start_s": start, "end_s": end} for label, start, end in labels]
        clips.append({"number": number, "phones": phones})
    (tmp_path / "2.wav").write_bytes(b"no audio")
    table = rows_to_table(
        [
            {"utterance": f"c/{clip['number']}", "corpus": "c", "path": f"{clip['number']}.wav", "start_s": 0.1, "end_s": 0.5}
            | {"speaker": "c/s", "language": "xx", "phones": clip["phones"], "sampling_rate": 16_000, "duration_s": 0.4}
            for clip in clips
        ]
    )
    manifest = Manifest.checked(table, roots={"c": str(tmp_path)})
    found = vowel_tokens(manifest, ipa_phones(manifest.table), 5)
    assert found.select("utterance", "vowel").rows() == [("c/0", "i"), ("c/0", "a"), ("c/1", "i"), ("c/1", "a")]
    for vowel, wanted in (("i", (300, 2100)), ("a", (700, 1250))):
        for row in found.filter(pl.col("vowel") == vowel).select("f1", "f2").rows():
            assert row == pytest.approx(wanted, rel=0.08)
    assert vowel_tokens(manifest, ipa_phones(manifest.table), 1).height <= 2
