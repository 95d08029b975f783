"""The adapters on small trees with exact published names: what is taken, what is turned away, what
is said.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.adapters import Loaded, load_corpus
from raysere.corpora.manifest import Manifest, concat
from raysere.testing.corpus import check_corpus

Clip = Callable[..., Path]


def rows(loaded: Loaded) -> dict[str, dict[str, Any]]:
    return {row["utterance"]: row for row in loaded.manifest.table.iter_rows(named=True)}


def reasons(loaded: Loaded) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in loaded.rejected.iter_rows(named=True)}


def notes(loaded: Loaded) -> str:
    return "\n".join(loaded.manifest.notes)


@pytest.mark.parametrize(
    ("letter", "emotion"),
    [("W", "anger"), ("F", "happiness"), ("N", "neutral"), ("T", "sadness"), ("A", "fear"), ("L", "boredom"), ("E", "disgust")],
)
def test_emodb_letters_are_german(clip: Clip, tmp_path: Path, letter: str, emotion: str) -> None:
    clip(f"wav/08b02{letter}d.wav")
    row = rows(load_corpus("emodb", tmp_path))[f"emodb/08b02{letter}d"]
    assert (row["emotion"], row["speaker"], row["sex"]) == (emotion, "emodb/08", "female")
    assert row["transcript"] == "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter."
    assert row["path"] == f"wav/08b02{letter}d.wav"
    assert row["duration_s"] == pytest.approx(0.2)


def test_emodb_turns_impossible_names_away(clip: Clip, tmp_path: Path) -> None:
    for name in ("wav/03a01Fa.wav", "wav/04a01Fa.wav", "wav/03a01Xa.wav", "wav/03a03Fa.wav", "wav/noise.wav"):
        clip(name)
    loaded = load_corpus("emodb", tmp_path)
    assert list(rows(loaded)) == ["emodb/03a01Fa"]
    found = reasons(loaded)
    assert "speaker 04" in found["wav/04a01Fa.wav"]
    assert "'X'" in found["wav/03a01Xa.wav"]
    assert "sentence a03" in found["wav/03a03Fa.wav"]
    assert "1 audio files were left out" in notes(loaded)
    assert "noise.wav" in notes(loaded)


def test_emodb_refuses_another_part(clip: Clip, tmp_path: Path) -> None:
    clip("wav/03a01Fa.wav")
    with pytest.raises(ConfigError, match="Valid choices: wav, all"):
        load_corpus("emodb", tmp_path, options={"parts": "resampled"})


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "WAV"])
def test_any_format_of_libsndfile(clip: Clip, tmp_path: Path, suffix: str) -> None:
    clip(f"f2/gio-f2-d1.{suffix}", rate=16000, seconds=0.5)
    row = rows(load_corpus("emovo", tmp_path))["emovo/gio-f2-d1"]
    assert (row["emotion"], row["sex"], row["transcript"]) == ("joy", "female", "Sabato sera cosa farà?")
    assert row["sampling_rate"] == 16000
    assert row["duration_s"] == pytest.approx(0.5, abs=0.1)


def test_one_clip_in_two_formats_is_taken_once(clip: Clip, tmp_path: Path) -> None:
    clip("f2/gio-f2-d1.flac")
    clip("f2/gio-f2-d1.wav")
    loaded = load_corpus("emovo", tmp_path)
    assert loaded.manifest.table["path"].to_list() == ["f2/gio-f2-d1.wav"]
    assert reasons(loaded) == {"f2/gio-f2-d1.flac": "a second file of the utterance that f2/gio-f2-d1.wav holds"}


def test_emovo_channels_follow_the_speakers_that_are_there(clip: Clip, tmp_path: Path) -> None:
    clip("f1/rab-f1-b1.wav")
    clip("m3/tri-m3-n5.wav", channels=2)
    loaded = load_corpus("emovo", tmp_path, options={"name": "emovo-2014"})
    assert loaded.manifest.channels == {"emovo-2014/f1": 0, "emovo-2014/m3": 1}
    assert "tri-f3-n1" not in notes(loaded)
    clip("f3/tri-f3-n1.wav")
    clip("f3/tri-f3-n2.wav")
    assert "tri-f3-n1 is bit for bit" in notes(load_corpus("emovo", tmp_path))


def nemo_table(folder: Path, *lines: tuple[str, str, str, str, str]) -> None:
    with (folder / "data.tsv").open("w", encoding="utf-8") as file:
        file.write("file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n")
        for name, emotion, text, speaker, gender in lines:
            file.write(f"{name}\t{emotion}\t{text}\t{text.lower()}\t{speaker}\t{gender}\t24\n")


def test_nemo_reads_texts_from_its_table(clip: Clip, tmp_path: Path) -> None:
    clip("samples/SM0_anger_64.wav")
    clip("samples/IC0_surprised_1.wav")
    clip("samples/MK0_fear_2.wav")
    nemo_table(
        tmp_path,
        ("SM0_anger_64.wav", "anger", '"Nie", powiedział.', "        SM0", "male"),
        ("IC0_surprised_1.wav", "surprised", "Lubię czytać przed snem.", "        IC0", "female"),
        ("MK0_fear_2.wav", "sadness", "Nie waśńmy się ze sobą.", "        MK0", "female"),
    )
    loaded = load_corpus("nemo", tmp_path)
    found = rows(loaded)
    assert found["nemo/SM0_anger_64"]["transcript"] == '"Nie", powiedział.'
    assert found["nemo/SM0_anger_64"]["speaker"] == "nemo/SM0"
    assert found["nemo/IC0_surprised_1"]["emotion"] == "surprised"
    assert found["nemo/IC0_surprised_1"]["sex"] == "female"
    assert "data.tsv disagree" in reasons(loaded)["samples/MK0_fear_2.wav"]


def test_nemo_without_its_table_knows_twelve_sentences(clip: Clip, tmp_path: Path) -> None:
    clip("samples/SM0_anger_14.wav")
    clip("samples/SM0_anger_64.wav")
    loaded = load_corpus("nemo", tmp_path)
    texts = {name: row["transcript"] for name, row in rows(loaded).items()}
    assert texts == {"nemo/SM0_anger_14": "Ten miesiąc minął bardzo szybko.", "nemo/SM0_anger_64": None}
    assert "no data.tsv" in notes(loaded)


def test_nemo_names_missing_columns(clip: Clip, tmp_path: Path) -> None:
    clip("samples/SM0_anger_14.wav")
    (tmp_path / "data.tsv").write_text("file_id\temotion\nSM0_anger_14.wav\tanger\n")
    with pytest.raises(DataError, match="raw_text, speaker_id, gender"):
        load_corpus("nemo", tmp_path)


def test_urdu_keeps_unevenly_padded_names_apart(clip: Clip, tmp_path: Path) -> None:
    for name in (
        "Angry/SM1_F1_A01.wav",
        "Angry/SM1_F10_A010.wav",
        "Happy/SF1_F4_H04.wav",
        "Sad/SF4_F3_S019.wav",
        "Neutral/SM5_F12_H045.wav",
    ):
        clip(name)
    loaded = load_corpus("urdu", tmp_path)
    found = rows(loaded)
    assert found["urdu/SM1_F1_A01"]["emotion"] == "angry"
    assert found["urdu/SF1_F4_H04"]["emotion"] == "happy"
    assert found["urdu/SF4_F3_S019"]["emotion"] == "sad"
    assert found["urdu/SF1_F4_H04"]["sex"] == "female"
    assert len(found) == 4
    assert loaded.manifest.linked_speakers == [["urdu/SF1", "urdu/SF4"]]
    assert reasons(loaded) == {"Neutral/SM5_F12_H045.wav": "its name says happy, its folder Neutral"}


def test_ravdess_takes_audio_only_speech(clip: Clip, tmp_path: Path) -> None:
    for name in (
        "Actor_07/03-01-03-01-02-01-07.wav",
        "Actor_07/03-01-03-01-02-02-07.wav",
        "Actor_12/03-01-06-02-01-01-12.wav",
        "Actor_12/03-02-06-02-01-01-12.wav",
        "Actor_12/01-01-06-02-01-01-12.wav",
        "Actor_12/03-01-09-02-01-01-12.wav",
    ):
        clip(name, channels=2)
    loaded = load_corpus("ravdess", tmp_path)
    found = rows(loaded)
    assert set(found) == {"ravdess/03-01-03-01-02-01-07", "ravdess/03-01-03-01-02-02-07", "ravdess/03-01-06-02-01-01-12"}
    twelve = found["ravdess/03-01-06-02-01-01-12"]
    assert (twelve["emotion"], twelve["speaker"], twelve["sex"], twelve["transcript"]) == (
        "fearful",
        "ravdess/12",
        "female",
        "Kids are talking by the door",
    )
    assert found["ravdess/03-01-03-01-02-01-07"]["sex"] == "male"
    assert found["ravdess/03-01-03-01-02-01-07"]["transcript"] == "Dogs are sitting by the door"
    assert "2 files of other modalities or of song" in notes(loaded)
    assert "the same recording" in notes(loaded)
    assert "emotion 09" in reasons(loaded)["Actor_12/03-01-09-02-01-01-12.wav"]


def test_ravdess_copy_inside_itself_is_read_once(clip: Clip, tmp_path: Path) -> None:
    """A widely used copy holds all actors a second time in a folder of its own."""
    clip("Actor_01/03-01-01-01-01-01-01.wav")
    clip("audio_speech_actors_01-24/Actor_01/03-01-01-01-01-01-01.wav")
    loaded = load_corpus("ravdess", tmp_path)
    assert len(loaded.manifest) == 1
    assert loaded.rejected.height == 1


CREMA_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:2759bb80ce3ac9a64f18aa386ed436fc38e8dbf0568ef3d8957a24ab66e9317c\nsize 82260\n"
)


def crema(folder: Path) -> None:
    (folder / "VideoDemographics.csv").write_text(
        '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not Hispanic"\n1076,25,"Female","Caucasian","Not Hispanic"\n'
    )
    header = (
        ",localid,pos,ans,ttr,queryType,numTries,clipNum,questNum,subType,clipName,sessionNums,respEmo,respLevel,dispEmo,dispVal,dispLevel"
    )
    lines = [("r1", 1, "A"), ("r2", 1, "A"), ("r3", 1, "N"), ("r4", 2, "D"), ("r5", 3, "F")]
    body = [
        f"{n},{rater},1,{letter}_80,1,{kind},0,7,1,4,1001_DFA_ANG_XX,s1,{letter},80,A,50,X" for n, (rater, kind, letter) in enumerate(lines)
    ]
    (folder / "finishedResponses.csv").write_text("\n".join([header, *body]) + "\n")
    (folder / "processedResults").mkdir()
    (folder / "processedResults" / "summaryTable.csv").write_text(
        '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"\n'
        '"1","1001_DFA_ANG_XX","N","69.1","A","92.22","A:D","64.78:20"\n"2","1001_IEO_HAP_LO","A:D","71.67","H","57","H","57.38"\n'
    )


def test_crema_d_labels_sexes_votes_and_faults(clip: Clip, tmp_path: Path) -> None:
    for name in ("1001_DFA_ANG_XX", "1001_IEO_HAP_LO", "1076_MTI_SAD_XX", "1076_MTI_NEU_XX"):
        clip(f"AudioWAV/{name}.wav")
        clip(f"AudioMP3/{name}.mp3", rate=16000)
    (tmp_path / "AudioWAV" / "1002_TIE_FEA_XX.wav").write_text(POINTER)
    (tmp_path / "VideoFlash").mkdir()
    (tmp_path / "VideoFlash" / "1001_DFA_ANG_XX.flv").write_bytes(b"FLV")
    crema(tmp_path)
    loaded = load_corpus("crema-d", tmp_path)
    found = rows(loaded)
    first = found["crema-d/1001_DFA_ANG_XX"]
    assert (first["emotion"], first["sex"], first["speaker"], first["path"]) == (
        "anger",
        "male",
        "crema-d/1001",
        "AudioWAV/1001_DFA_ANG_XX.wav",
    )
    assert [(vote["rater"], vote["emotion"]) for vote in first["votes"]] == [("r1", "anger"), ("r2", "anger"), ("r3", "neutral")]
    assert first["video"] == "VideoFlash/1001_DFA_ANG_XX.flv"
    assert found["crema-d/1001_IEO_HAP_LO"]["video"] is None
    assert found["crema-d/1076_MTI_NEU_XX"]["sex"] == "female"
    assert found["crema-d/1001_IEO_HAP_LO"]["votes"] is None
    assert reasons(loaded) == {
        "AudioWAV/1076_MTI_SAD_XX.wav": "this clip is known to be silent",
        "AudioWAV/1002_TIE_FEA_XX.wav": "a git-lfs pointer, not audio: run `git lfs pull` in the corpus",
    }


def test_crema_d_perceived_labels(clip: Clip, tmp_path: Path) -> None:
    clip("AudioWAV/1001_DFA_ANG_XX.wav")
    clip("AudioWAV/1001_IEO_HAP_LO.wav")
    crema(tmp_path)
    voice = load_corpus("crema-d", tmp_path, options={"label": "perceived"})
    assert {name: row["emotion"] for name, row in rows(voice).items()} == {
        "crema-d/1001_DFA_ANG_XX": "neutral",
        "crema-d/1001_IEO_HAP_LO": None,
    }
    assert "1 clips have no perceived label" in notes(voice)
    face = load_corpus("crema-d", tmp_path / "AudioWAV", options={"label": "perceived", "stimulus": "face"})
    assert {name: row["emotion"] for name, row in rows(face).items()} == {
        "crema-d/1001_DFA_ANG_XX": "anger",
        "crema-d/1001_IEO_HAP_LO": "happy",
    }
    assert [vote["rater"] for vote in rows(face)["crema-d/1001_DFA_ANG_XX"]["votes"]] == ["r4"]
    (tmp_path / "processedResults" / "summaryTable.csv").unlink()
    with pytest.raises(MissingFileError, match="label: intended"):
        load_corpus("crema-d", tmp_path, options={"label": "perceived"})


@pytest.mark.parametrize("options", [{"label": "acted"}, {"stimulus": "ears"}])
def test_crema_d_refuses_other_options(clip: Clip, tmp_path: Path, options: dict[str, str]) -> None:
    clip("AudioWAV/1001_DFA_ANG_XX.wav")
    with pytest.raises(ConfigError, match="Valid choices"):
        load_corpus("crema-d", tmp_path, options=options)


def test_crema_d_sentences_word_for_word(clip: Clip, tmp_path: Path) -> None:
    for code in CREMA_SENTENCES:
        clip(f"1040_{code}_SAD_X.wav")  # one file was published with the level X
    loaded = load_corpus("crema-d", tmp_path)
    assert {name.split("_")[1]: row["transcript"] for name, row in rows(loaded).items()} == CREMA_SENTENCES
    assert "crema-d/1040_ITH_SAD_XX" in rows(loaded)
    assert "no VideoDemographics.csv" in notes(loaded)


def meld_table(file: Path, *lines: tuple[str, str, str, int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(
            [
                "Sr No.",
                "Utterance",
                "Speaker",
                "Emotion",
                "Sentiment",
                "Dialogue_ID",
                "Utterance_ID",
                "Season",
                "Episode",
                "StartTime",
                "EndTime",
            ]
        )
        for number, (text, speaker, emotion, dialogue, turn) in enumerate(lines):
            writer.writerow([number, text, speaker, emotion, "neutral", dialogue, turn, 8, 21, "00:16:16,059", "00:16:21,731"])


def test_meld_published_tables_with_audio_and_video(clip: Clip, tmp_path: Path) -> None:
    meld_table(
        tmp_path / "train_sent_emo.csv", ("I\x92m fine, \x93really\x94.", "Ross", "joy", 0, 0), ("No, you aren't", "Rachel", "anger", 0, 1)
    )
    meld_table(tmp_path / "dev_sent_emo.csv", ("Hi", "Ross", "neutral", 0, 0))
    meld_table(tmp_path / "test_sent_emo.csv", ("Oh", "Joey", "surprise", 0, 0))
    clip("train_splits/dia0_utt0.wav", seconds=0.2)
    clip("dev_splits_complete/dia0_utt0.wav", seconds=0.3)
    clip("output_repeated_splits_test/dia0_utt0.wav", seconds=0.4)
    (tmp_path / "train_splits" / "dia0_utt1.mp4").write_bytes(b"video")
    (tmp_path / "output_repeated_splits_test" / "._dia0_utt0.mp4").write_bytes(b"")
    loaded = load_corpus("meld", tmp_path)
    found = rows(loaded)
    assert {name: (row["split"], row["speaker"], row["path"], row["video"]) for name, row in found.items()} == {
        "meld/train_dia0_utt0": ("train", "meld/Ross", "train_splits/dia0_utt0.wav", None),
        "meld/train_dia0_utt1": ("train", "meld/Rachel", None, "train_splits/dia0_utt1.mp4"),
        "meld/dev_dia0_utt0": ("dev", "meld/Ross", "dev_splits_complete/dia0_utt0.wav", None),
        "meld/test_dia0_utt0": ("test", "meld/Joey", "output_repeated_splits_test/dia0_utt0.wav", None),
    }
    first = found["meld/train_dia0_utt0"]
    assert first["transcript"] == "I\u2019m fine, \u201creally\u201d."
    assert (first["dialogue"], first["turn"], first["emotion"]) == ("meld/train_dia0", 0, "joy")
    assert found["meld/test_dia0_utt0"]["duration_s"] == pytest.approx(0.4)
    assert "dia125_utt3" in notes(loaded)


def test_meld_names_absent_splits_and_columns(tmp_path: Path) -> None:
    meld_table(tmp_path / "data" / "MELD" / "train_sent_emo.csv", ("Hi", "Ross", "neutral", 0, 0))
    loaded = load_corpus("meld", tmp_path)
    assert len(loaded.manifest) == 1
    assert "no dev_sent_emo.csv and no test_sent_emo.csv" in notes(loaded)
    (tmp_path / "data" / "MELD" / "train_sent_emo.csv").write_text("Utterance,Speaker\nHi,Ross\n")
    with pytest.raises(DataError, match="Emotion, Dialogue_ID, Utterance_ID"):
        load_corpus("meld", tmp_path)


@pytest.mark.parametrize("name", ["emodb", "emovo", "nemo", "urdu", "ravdess", "crema-d", "meld", "msp-podcast", "biic-podcast"])
def test_a_wrong_folder_is_told_the_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises((DataError, MissingFileError), match="Expected: a folder with"):
        load_corpus(name, tmp_path)
    with pytest.raises(MissingFileError, match="Expected: "):
        load_corpus(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("emodb", ["wav/03a01Fa.wav", "wav/08a01Wa.wav"]),
        ("emovo", ["f1/dis-f1-b1.wav", "m1/neu-m1-l1.wav"]),
        ("nemo", ["samples/SM0_anger_14.wav", "samples/KD0_fear_1.wav"]),
        ("urdu", ["Angry/SM1_F1_A01.wav", "Sad/SM24_F2_S014.wav"]),
        ("ravdess", ["Actor_01/03-01-01-01-01-01-01.wav", "Actor_02/03-01-05-02-01-01-02.wav"]),
        ("crema-d", ["AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_DFA_SAD_XX.wav"]),
    ],
)
def test_the_conformance_suite_passes(clip: Clip, tmp_path: Path, name: str, files: list[str]) -> None:
    for file in files:
        clip(file)
    report = check_corpus(name, tmp_path)
    assert "a move and a broken file are survived" in report.passed


def test_channels_belong_to_the_manifest(clip: Clip, tmp_path: Path) -> None:
    clip("f1/rab-f1-b1.wav")
    clip("m3/tri-m3-n5.wav", channels=2)
    manifest = load_corpus("emovo", tmp_path).manifest
    manifest.write(tmp_path / "manifest.parquet")
    again = Manifest.read(tmp_path / "manifest.parquet")
    assert again.channels == manifest.channels == {"emovo/f1": 0, "emovo/m3": 1}
    assert again.fingerprint == manifest.fingerprint != dataclasses.replace(manifest, channels={}).fingerprint
    assert manifest.with_rows(manifest.table.filter(speaker="emovo/m3")).channels == {"emovo/m3": 1}
    other = load_corpus("emovo", tmp_path, options={"name": "second"}).manifest
    assert concat([manifest, other]).channels == {"emovo/f1": 0, "emovo/m3": 1, "second/f1": 0, "second/m3": 1}
