"""The demo corpus: what it promises about sound, times, labels, splits, seeds and interruptions."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile

from raysere.base.errors import ConfigError, DataError, EnvironmentFault
from raysere.corpora.manifest import Manifest
from raysere.demo import prosody as prosody
from raysere.demo.adapter import Demo
from raysere.demo.corpus import make_demo
from raysere.demo.texts import LANGUAGES, SHARED, TEXTS
from raysere.demo.voices import SAMPLING_RATE, finish, make_voices

SMALL = {"seed": 3, "voices": 9, "utterances": 4, "passages": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "corpus", **SMALL)


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    loaded = Demo().load(folder)
    assert loaded.rejected.height == 0
    return loaded.manifest


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.flac"))}


def test_manifest(manifest: Manifest) -> None:
    table = manifest.table
    short, long = table.filter(pl.col("emotion").is_not_null()), table.filter(pl.col("emotion").is_null())
    assert (short.height, long.height) == (36, 9)
    assert manifest.synthetic
    assert manifest.scales == {"demo": (1.0, 7.0)}
    assert any("synthetic" in note for note in manifest.notes)
    assert set(table["language"]) == {"en", "cmn", "ru"}
    assert set(short["emotion"]) == set(prosody.EMOTIONS)
    assert short.group_by("speaker").agg(pl.col("emotion").n_unique())["emotion"].to_list() == [4] * 9
    assert short["duration_s"].is_between(0.9, 5.5).all()
    assert long["duration_s"].is_between(15, 22).all()
    assert short["dialogue"].is_null().all()
    assert short["traces"].is_null().all()
    assert long["dialogue"].null_count() == 0
    assert long["arousal"].is_null().all()
    assert short["votes"].list.len().is_between(3, 5).all()
    for attribute in prosody.ATTRIBUTES:  # the label is the mean vote
        means = short["votes"].list.eval(pl.element().struct.field(attribute)).list.mean().cast(pl.Float64)
        assert np.allclose(short[attribute].cast(pl.Float64), means, atol=1e-3)


def test_splits_are_disjoint_in_speakers_and_even_over_languages_and_sexes() -> None:
    voices = make_voices(24, LANGUAGES, 0)
    assert len({voice.name for voice in voices}) == 24
    for language in LANGUAGES:
        mine = [voice for voice in voices if voice.language == language]
        assert [sum(voice.split == split for voice in mine) for split in ("train", "dev", "test")] == [4, 2, 2]
        assert len({voice.variant for voice in mine}) == 8
        for split in ("train", "dev", "test"):
            sexes = [voice.sex for voice in mine if voice.split == split]
            assert sexes.count("female") == sexes.count("male")
    assert make_voices(24, LANGUAGES, 0) == voices
    assert make_voices(24, LANGUAGES, 1) != voices


def test_one_split_a_speaker(manifest: Manifest) -> None:
    assert manifest.table.group_by("speaker").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(manifest.table["split"]) == {"train", "dev", "test"}


def test_words_and_phones_lie_in_the_clip_in_order(manifest: Manifest) -> None:
    for row in manifest.table.iter_rows(named=True):
        for column in ("words", "phones"):
            times = [(span["start_s"], span["end_s"]) for span in row[column]]
            assert times
            assert all(start < end for start, end in times)
            assert all(later[0] >= earlier[1] - 1e-9 for earlier, later in pairwise(times))
            assert times[0][0] >= 0.08
            assert times[-1][1] <= row["duration_s"]
        assert "".join(span["label"] for span in row["words"]) == "".join(one for one in row["transcript"] if one.isalnum())
        starts = {span["start_s"] for span in row["phones"]}
        assert all(word["start_s"] in starts for word in row["words"])


def test_times_fit_the_sound(manifest: Manifest) -> None:
    """Samples inside words are far louder than those between sentences: a shift of 0.15 s would
    show.
    """
    inside, between = [], []
    for row in manifest.table.filter(pl.col("emotion").is_null()).iter_rows(named=True):
        samples, rate = soundfile.read(manifest.path(row))
        words = row["words"]
        for earlier, later in pairwise(words):
            if later["start_s"] - earlier["end_s"] > 0.3:
                middle = (later["start_s"] + earlier["end_s"]) / 2
                between.append(np.mean(samples[int((middle - 0.02) * rate) : int((middle + 0.1) * rate)] ** 2))
        inside += [np.mean(samples[int(word["start_s"] * rate) : int(word["end_s"] * rate)] ** 2) for word in words]
    assert len(between) > 20
    assert np.median(inside) > 100 * np.median(between)


def test_sound_is_16_bit_mono_and_never_clipped(manifest: Manifest) -> None:
    levels: dict[str, list[float]] = {}
    for row in manifest.table.iter_rows(named=True):
        info = soundfile.info(manifest.path(row))
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLING_RATE, 1, "PCM_16")
        samples, _ = soundfile.read(manifest.path(row))
        assert np.abs(samples).max() < 0.98
        assert len(samples) / SAMPLING_RATE == pytest.approx(row["duration_s"])
        levels.setdefault(row["emotion"], []).append(float(20 * np.log10(np.sqrt(np.mean(samples**2)))))
    assert all(-50 < level < -12 for group in levels.values() for level in group)
    order = ("sadness", "neutral", "happiness", "anger")  # from soft to loud: neighbours overlap, so that loudness alone does not tell
    assert all(max(levels[softer]) > min(levels[louder]) + 1 for softer, louder in pairwise(order))
    assert np.mean(levels["sadness"]) + 3 < np.mean(levels["anger"])


def test_what_would_clip_is_made_quieter() -> None:
    voice = make_voices(9, LANGUAGES, 0)[0]
    tone = 3 * np.sin(np.arange(8000) * 0.1)
    samples = finish(tone, voice, np.random.default_rng(0)).astype(int)
    assert 0.9 * 32_767 < np.abs(samples).max() < 0.98 * 32_767
    assert np.mean(np.abs(samples) == np.abs(samples).max()) < 0.01


def test_traces(manifest: Manifest) -> None:
    for row in manifest.table.filter(pl.col("traces").is_not_null()).iter_rows(named=True):
        traces = pl.DataFrame(row["traces"])
        series = traces.group_by("rater", "attribute").agg(pl.col("time_s"), pl.col("value"))
        assert series.height == 9
        assert traces["value"].is_between(1, 7).all()
        for times in series["time_s"].to_list():
            assert np.allclose(times, np.arange(len(times)) * 0.25)
            assert 0 <= row["duration_s"] - times[-1] <= 0.25
        assert all(np.std(values) > 0 for values in series["value"].to_list())


def test_raters_follow_what_there_is_to_hear_late_and_with_a_bias() -> None:
    times = np.arange(0, 20, 0.25)
    affect = np.where(times[:, None] < 8, 2.0, 6.0) * np.ones(3)
    traces = pl.DataFrame(prosody.draw_traces(times, affect, np.random.default_rng(0), raters=5))
    mean = traces.group_by("time_s").agg(pl.col("value").mean()).sort("time_s")["value"].to_numpy()
    assert mean[times < 8].max() < 3.2
    assert mean[(times >= 8) & (times < 8.4)].max() < 3.2
    assert mean[times > 13].min() > 4.8


def test_words_carry_emotion_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    drawn = [prosody.draw_words("anger", rng) for _ in range(5000)]
    carried = [one for one in drawn if one is not None]
    assert len(carried) / len(drawn) == pytest.approx(prosody.WORDS_CARRY, abs=0.03)
    assert carried.count("anger") / len(carried) == pytest.approx(prosody.WORDS_AGREE, abs=0.03)
    assert set(carried) == set(prosody.EMOTIONS)


def test_affect_follows_class_and_cues() -> None:
    rng = np.random.default_rng(0)
    style = prosody.Style()
    drawn = {one: [prosody.draw_prosody(one, style, None, rng) for _ in range(400)] for one in prosody.EMOTIONS}
    for one, group in drawn.items():
        affect = np.array([each.affect for each in group])
        assert np.allclose(affect.mean(axis=0), prosody.AFFECT[one], atol=0.15)
        loudness = np.array([each.cues[3] for each in group])
        assert np.corrcoef(loudness, affect[:, 0])[0, 1] > 0.3  # louder than its class: more aroused than its class
    nearest = [
        min(prosody.EMOTIONS, key=lambda other: float(np.sum((each.cues - prosody.MEANS[other]) ** 2))) == one
        for one, group in drawn.items()
        for each in group
    ]
    assert 0.6 < np.mean(nearest) < 0.95  # even who knows speaker and cues exactly is often wrong


def test_votes_disagree_now_and_then() -> None:
    rng = np.random.default_rng(0)
    style = prosody.Style()
    votes = [
        prosody.draw_votes(one, prosody.draw_prosody(one, style, None, rng), None, rng) for one in prosody.EMOTIONS for _ in range(100)
    ]
    agree = [vote["emotion"] == prosody.EMOTIONS[index // 100] for index, group in enumerate(votes) for vote in group]
    assert 0.55 < np.mean(agree) < 0.92
    assert all(len({vote["rater"] for vote in group}) == len(group) for group in votes)


def test_texts() -> None:
    for language in LANGUAGES:
        assert set(TEXTS[language]) == {SHARED, *prosody.EMOTIONS}
        sentences = [text for group in TEXTS[language].values() for text in group]
        assert len(set(sentences)) == len(sentences)


def test_another_seed_gives_another_corpus(folder: Path, tmp_path: Path) -> None:
    other = make_demo(tmp_path / "other", **{**SMALL, "seed": 4, "passages": 0})
    assert not set(_bytes(other).values()) & set(_bytes(folder).values())


def test_a_killed_synthesis_continues_to_the_corpus_of_an_uninterrupted_one(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    target = tmp_path / "killed"
    script = f"""
import os, signal, soundfile
from raysere.demo.corpus import make_demo
write, count = soundfile.write, [0]
def dying(*args, **kwargs):
    write(*args, **kwargs)
    count[0] += 1
    if count[0] == 18:
        os.kill(os.getpid(), signal.SIGKILL)
soundfile.write = dying
make_demo({str(target)!r}, **{SMALL!r})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not (target / "manifest.parquet").exists()
    with pytest.raises(DataError, match="not a finished demo"):
        Demo().load(target)
    finished = {file.parent: file.stat().st_mtime_ns for file in target.glob("audio/*/rows.parquet")}
    assert len(finished) == 3  # 5 files a voice: the fourth was cut off
    make_demo(target, **SMALL)
    assert _bytes(target) == _bytes(folder)
    assert Demo().load(target).manifest.fingerprint == manifest.fingerprint
    assert not list(target.rglob("*.tmp"))
    assert {place: (place / "rows.parquet").stat().st_mtime_ns for place in finished} == finished  # not made twice


def test_a_finished_folder_is_recognised_and_a_damaged_one_repaired(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    made = []
    import raysere.demo.corpus as module

    inner = module._make_part
    monkeypatch.setattr(module, "_make_part", lambda *args: made.append(args[1].name) or inner(*args))
    assert make_demo(copy, **SMALL) == copy
    assert made == []
    next((copy / "audio" / "ru-02").glob("u*.flac")).unlink()
    make_demo(copy, **SMALL)
    assert made == ["ru-02"]
    assert _bytes(copy) == _bytes(folder)


def test_labelled_as_synthetic_on_disk(folder: Path) -> None:
    assert "SYNTHETIC" in (folder / "README.txt").read_text(encoding="utf-8")
    assert Manifest.read(folder / "manifest.parquet").synthetic


def test_adapter_leaves_out_passages_and_a_moved_folder_loads(folder: Path, manifest: Manifest, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    loaded = Demo().load(moved).manifest
    assert loaded.fingerprint == manifest.fingerprint
    assert loaded.path(loaded.table.row(0, named=True)).is_relative_to(moved)
    short = Demo().load(moved, passages=False).manifest.table
    assert short.height == 36
    assert short["emotion"].null_count() == 0
    with pytest.raises(ConfigError, match="passages"):
        Demo().load(moved, passagges=False)


def test_wrong_use_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed 3 instead of 5"):
        make_demo(folder, **{**SMALL, "seed": 5})
    (tmp_path / "mine" / "audio").mkdir(parents=True)
    with pytest.raises(ConfigError, match="another corpus"):
        make_demo(tmp_path / "mine", **SMALL)
    with pytest.raises(ConfigError, match="voices"):
        make_demo(tmp_path / "few", voices=8)
    assert not (tmp_path / "few").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file"):
        make_demo(tmp_path / "file", **SMALL)


def test_missing_espeak_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(EnvironmentFault, match=r"pip install raysere\[demo\]"):
        make_demo(tmp_path / "none", **SMALL)
    assert not (tmp_path / "none" / "demo.json").exists()


def test_does_not_import_torch_or_ray() -> None:
    script = "import sys, raysere.demo.corpus, raysere.demo.adapter; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False).returncode == 0
