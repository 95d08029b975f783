"""Reading audio: channels, segments, rates, and a reason for everything that cannot be used."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from raysere.base.errors import DataError, EnvironmentFault
from raysere.features import audio
from raysere.features.audio import content_hash, pick_channel, read_audio, resample


def tone(hertz: float, seconds: float = 1.0, rate: int = 16000, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def write(tmp_path: Path):
    def write(samples: np.ndarray, rate: int = 16000, name: str = "clip.wav", **options: str) -> Path:
        path = tmp_path / name
        sf.write(path, samples, rate, **options)
        return path

    return write


@pytest.mark.parametrize(("name", "error"), [("a.wav", 1e-4), ("a.flac", 1e-4), ("a.ogg", 0.05), ("a.mp3", 0.05)])
def test_every_format_gives_the_samples(write, name: str, error: float) -> None:
    path = write(tone(440), name=name)
    wave = read_audio(path)
    assert wave.dtype == np.float32
    assert wave.flags.c_contiguous
    assert len(wave) == 16000
    assert np.abs(wave[2000:14000] - tone(440)[2000:14000]).max() < error


def test_the_content_counts_and_not_the_extension(write, tmp_path: Path) -> None:
    flac = write(tone(440), name="a.flac")
    (tmp_path / "a.wav").write_bytes(flac.read_bytes())
    assert np.array_equal(read_audio(tmp_path / "a.wav"), read_audio(flac))


def test_a_segment_is_what_lies_between_its_ends(write) -> None:
    path = write(tone(440, 2.0), subtype="FLOAT")
    assert np.array_equal(read_audio(path, 0.5, 1.25), tone(440, 2.0)[8000:20000])
    assert len(read_audio(path, 1.5, None)) == 8000
    assert len(read_audio(path, None, 2.01)) == 32000  # rounded tables may end a little after the file


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [(2.5, 3.0, "outside"), (0.0, 3.0, "outside"), (-1.0, 1.0, "outside"), (1.0, 1.0, "without samples"), (1.5, 1.0, "without samples")],
)
def test_impossible_segments(write, start: float, end: float, reason: str) -> None:
    with pytest.raises(DataError, match=f"segment {reason}"):
        read_audio(write(tone(440, 2.0)), start, end)


def test_channel_policy() -> None:
    left, right = tone(440), tone(330)
    same, other = np.stack([left, left], axis=1), np.stack([left, right], axis=1)
    assert np.array_equal(pick_channel(same), left)
    assert np.allclose(pick_channel(other), (left + right) / 2)
    assert np.allclose(pick_channel(other, "mix"), (left + right) / 2)
    assert np.array_equal(pick_channel(other, 0), left)
    assert np.array_equal(pick_channel(other, 1), right)
    assert np.array_equal(pick_channel(left[:, None], 1), left)  # a mono file among stereo ones has only the one
    with pytest.raises(DataError, match="no channel 2"):
        pick_channel(other, 2)
    with pytest.raises(DataError, match="no channel 'left'"):
        pick_channel(other, "left")  # type: ignore[arg-type]


def test_two_microphones_are_not_averaged_when_one_is_named(write) -> None:
    voice = tone(1000)
    path = write(np.stack([voice, np.roll(voice, 8)], axis=1), subtype="FLOAT")  # half a period late: the mean cancels
    assert np.abs(read_audio(path, channel=0)).max() == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(DataError, match="silent"):
        read_audio(path, channel="mix")


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000, 16001, 44056])
def test_a_tone_survives_resampling(rate: int) -> None:
    wave = resample(tone(1000, 1.0, rate), rate, 16000)
    assert len(wave) == 16000
    assert np.abs(wave[1600:-1600] - tone(1000)[1600:-1600]).max() < 2e-3


@pytest.mark.parametrize("rate", [48000, 44100, 31999])
def test_what_the_new_rate_cannot_hold_is_removed(rate: int) -> None:
    wave = resample(tone(12000, 1.0, rate), rate, 16000)
    assert np.abs(wave[1600:-1600]).max() < 1e-3


def test_reading_resamples(write) -> None:
    wave = read_audio(write(tone(1000, rate=44100), 44100), sampling_rate=16000)
    assert np.abs(wave[1600:-1600] - tone(1000)[1600:-1600]).max() < 2e-3
    assert len(read_audio(write(tone(1000, rate=44100), 44100), sampling_rate=None)) == 44100


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 3000), source=st.sampled_from([8000, 22050, 44100, 48000]))
def test_lengths_after_resampling(length: int, source: int) -> None:
    assert len(resample(np.ones(length, np.float32), source, 16000)) == -(-length * 16000 // source)


def _reason(path: Path, **options: float) -> str:
    with pytest.raises(DataError) as caught:
        read_audio(path, **options)
    assert caught.value.where == str(path)
    return caught.value.what


def test_reasons_for_quarantine(write, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is a note, not a sound\n" * 50)
    broken = tone(440)
    broken[100:103] = np.nan
    assert "missing" in _reason(tmp_path / "nowhere.wav")
    assert "empty" in _reason(tmp_path / "empty.wav")
    assert "not audio" in _reason(tmp_path / "text.wav")
    assert "not finite: 3 samples" in _reason(write(broken, name="nan.wav", subtype="FLOAT"))
    assert "silent" in _reason(write(np.zeros(16000), name="silent.wav"))
    assert "too short" in _reason(write(tone(440, 0.05), name="short.wav"), min_s=0.1)
    assert "too long" in _reason(write(tone(440, 2.0), name="long.wav"), max_s=1.0)
    assert "no samples" in _reason(write(np.zeros(0), name="header.wav"))


def test_a_not_finite_channel_that_is_not_read_does_no_harm(write) -> None:
    stereo = np.stack([tone(440), np.full(16000, np.nan, np.float32)], axis=1)
    path = write(stereo, subtype="FLOAT")
    assert np.isfinite(read_audio(path, channel=0)).all()
    assert "not finite" in _reason(path)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(write, tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).standard_normal(160000).astype(np.float32) * 0.1
    whole = write(noise, name=name)
    assert len(read_audio(whole)) == 160000
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(DataError):
        read_audio(cut)


def test_a_flac_damaged_in_the_middle_is_refused(write) -> None:
    path = write(np.random.default_rng(0).standard_normal(160000).astype(np.float32) * 0.1, name="a.flac")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_audio(path)


def test_a_wav_from_a_pipe_has_no_length_and_is_read(write, tmp_path: Path) -> None:
    content = bytearray(write(tone(440)).read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    content[4:8] = struct.pack("<I", 0xFFFFFFFF)
    path = tmp_path / "pipe.wav"
    path.write_bytes(content)
    assert len(read_audio(path)) == 16000


def test_content_hash_follows_what_is_heard(write, tmp_path: Path) -> None:
    path = write(tone(440))
    copy = tmp_path / "copy.wav"
    copy.write_bytes(path.read_bytes())
    hashes = [
        content_hash(path),
        content_hash(path, 0.0, 0.5),
        content_hash(path, 0.0, 0.6),
        content_hash(path, None, 0.5),
        content_hash(path, channel=1),
    ]
    assert content_hash(copy) == hashes[0]
    assert len(set(hashes)) == len(hashes)
    assert content_hash(write(tone(441), name="other.wav")) != hashes[0]
    with pytest.raises(DataError, match="missing"):
        content_hash(tmp_path / "nowhere.wav")


def test_a_torchaudio_that_cannot_be_loaded_names_its_cure(write, monkeypatch: pytest.MonkeyPatch) -> None:
    from raysere.features import torchaudio_cpu

    monkeypatch.setattr(torchaudio_cpu, "torchaudio_fault", lambda: "libcudart.so.13: cannot open shared object file")
    audio._resampler.cache_clear()
    try:
        with pytest.raises(EnvironmentFault, match="raysere doctor --fix"):
            read_audio(write(tone(440, rate=8000), 8000))
        assert len(read_audio(write(tone(440)))) == 16000  # at the right rate torchaudio is not needed
    finally:
        audio._resampler.cache_clear()


def test_real_speech_in_every_language(corpora_root: Path) -> None:
    for folder in ("emodb", "emovo", "nemo", "ravdess", "urdu"):
        path = min((corpora_root / folder).rglob("*.flac"))
        wave = read_audio(path)
        assert len(wave) == sf.info(path).frames
        assert 0.001 < np.abs(wave).max() <= 1.0
