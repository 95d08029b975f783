"""What is audio is told by content; every fault has its reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from raysere.base.errors import DataError
from raysere.corpora.audiofile import AudioInfo, probe

RATE = 16000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE)


def _write(path: Path, **kind: str) -> Path:
    soundfile.write(path, NOISE, RATE, **kind)
    return path


def _reason(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        probe(path)
    assert str(path) in str(caught.value)
    return caught.value.what


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".wav", {"format": "WAV", "subtype": "PCM_16"}),
        (".wav", {"format": "WAV", "subtype": "FLOAT"}),
        (".wav", {"format": "WAVEX"}),
        (".wav", {"format": "RF64"}),
        (".wav", {"format": "WAV", "endian": "BIG"}),
        (".flac", {"format": "FLAC"}),
        (".ogg", {"format": "OGG", "subtype": "VORBIS"}),
        (".opus", {"format": "OGG", "subtype": "OPUS"}),
        (".aiff", {"format": "AIFF"}),
        (".au", {"format": "AU"}),
    ],
)
def test_formats(tmp_path: Path, suffix: str, kind: dict[str, str]) -> None:
    info = probe(_write(tmp_path / f"a{suffix}", **kind))
    assert info == AudioInfo(3 * RATE, RATE, 1)
    assert info.duration_s == 3.0


def test_mp3_is_read_to_its_frame_padding(tmp_path: Path) -> None:
    info = probe(_write(tmp_path / "a.mp3", format="MP3"))
    assert info.sampling_rate == RATE
    assert 3.0 <= info.duration_s < 3.2


def test_stereo_48k(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((4800, 2)), 48000)
    assert probe(tmp_path / "a.wav") == AudioInfo(4800, 48000, 2)


@pytest.mark.parametrize("name", ["a.txt", "a.raw", "a.mp3", "a", "a.vox"])
def test_extension_says_nothing(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "a.flac", format="FLAC").rename(tmp_path / name)
    assert probe(tmp_path / name).frames == 3 * RATE


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.raw", "a.vox", "a.gsm"])
def test_text_named_as_audio(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is a text, whatever its name says\n" * 50)
    assert _reason(tmp_path / name).startswith("not audio")


def test_empty_and_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert _reason(tmp_path / "a.wav").startswith("empty file")
    assert _reason(tmp_path / "b.wav") == "missing file"
    assert _reason(tmp_path).startswith("not audio (a folder")


def test_header_without_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), RATE)
    assert _reason(tmp_path / "a.wav").startswith("no samples")


@pytest.mark.parametrize(
    "kind", [{"format": "WAV"}, {"format": "RF64"}, {"format": "AIFF"}, {"format": "WAV", "endian": "BIG"}, {"format": "FLAC"}]
)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated(tmp_path: Path, kind: dict[str, str], share: float) -> None:
    path = _write(tmp_path / "a.wav", **kind)
    os.truncate(path, int(path.stat().st_size * share))
    assert _reason(path).startswith("truncated")


def test_cut_inside_the_header(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", format="WAV")
    os.truncate(path, 30)
    assert _reason(path).startswith("truncated")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF800])
def test_wav_written_into_a_pipe_is_whole(tmp_path: Path, size: int) -> None:
    path = _write(tmp_path / "a.wav", format="WAV", subtype="PCM_16")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert probe(path).frames == 3 * RATE


def test_chunks_after_the_audio_do_not_count(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", format="WAV", subtype="PCM_16")
    with path.open("ab") as file:
        file.write(b"LIST\x04\x00\x00\x00INFO")
    assert probe(path).frames == 3 * RATE


def test_flac_that_does_not_tell_its_length(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.flac", format="FLAC")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # total samples: 36 bits from the middle of byte 21, 0 for unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert _reason(path).startswith("unknown length")
    with pytest.raises(ValueError):  # why it is turned away; when this fails, take such files
        soundfile.read(path)


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.wav", format="WAV")
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert _reason(path) == "unreadable (Permission denied)"
