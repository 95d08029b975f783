"""MSP-Podcast and BIIC-Podcast on small trees in the published layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysere.base.errors import ConfigError, DataError
from raysere.corpora.adapters import Loaded, load_corpus
from raysere.corpora.labels import class_map
from raysere.testing.corpus import check_corpus

Clip = Callable[..., Path]
HEADER = "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"
CONSENSUS = [
    "MSP-PODCAST_0001_0008.wav,N,2.2,4.0,2.6,30,Male,Test1",
    "MSP-PODCAST_0002_0033.wav,H,5.5,6.0,5.0,7,Female,Train",
    "MSP-PODCAST_0002_0039.wav,X,4.0,3.0,4.0,Unknown,Unknown,Train",
    "MSP-PODCAST_0003_0001.wav,O,3.0,3.0,3.0,8,Female,Development",
    "MSP-PODCAST_0004_0001.wav,A,6.0,2.0,6.0,9,Male,Test2",
    "MSP-PODCAST_0005_0001_0002.wav,,,,,10,Male,Train",
    "MSP-PODCAST_0006_0001.wav,S,2.0,2.0,2.0,11,Female,Train",
]
TEXTGRID = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.2
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.2
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.05
            text = ""
        intervals [2]:
            xmin = 0.05
            xmax = 0.1
            text = "say"
        intervals [3]:
            xmin = 0.1
            xmax = 0.2
            text = "42 ""quoted"""
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.2
        intervals: size = 1
        intervals [1]:
            xmin = 0.05
            xmax = 0.1
            text = "EY1"
'''


@pytest.fixture
def podcast(clip: Clip, tmp_path: Path) -> Path:
    (tmp_path / "Labels").mkdir()
    (tmp_path / "Labels" / "labels_consensus.csv").write_text("\n".join([HEADER, *CONSENSUS]) + "\n")
    for line in CONSENSUS[:-1]:
        clip(f"Audios/{line.split(',')[0]}")
    (tmp_path / "Transcripts").mkdir()
    (tmp_path / "Transcripts" / "MSP-PODCAST_0002_0033.txt").write_text("That is great.\n")
    return tmp_path


def rows(loaded: Loaded) -> dict[str, dict[str, Any]]:
    return {row["utterance"].split("_", 1)[1]: row for row in loaded.manifest.table.iter_rows(named=True)}


def notes(loaded: Loaded) -> str:
    return "\n".join(loaded.manifest.notes)


def test_consensus_labels_splits_and_speakers(podcast: Path) -> None:
    loaded = load_corpus("msp-podcast", podcast)
    found = rows(loaded)
    assert {name: (row["split"], row["emotion"]) for name, row in found.items()} == {
        "0001_0008": ("test", "neutral"),
        "0002_0033": ("train", "happiness"),
        "0002_0039": ("train", "no_agreement"),
        "0003_0001": ("dev", "other"),
        "0005_0001_0002": ("unlabelled", None),
    }
    happy = found["0002_0033"]
    assert (happy["arousal"], happy["valence"], happy["dominance"]) == (5.5, 6.0, 5.0)
    assert loaded.manifest.scales == {"msp-podcast": (1.0, 7.0)}
    assert (happy["speaker"], happy["sex"], happy["transcript"]) == ("msp-podcast/7", "female", "That is great.")
    assert (happy["dialogue"], happy["turn"]) == ("msp-podcast/MSP-PODCAST_0002", 33)
    assert found["0005_0001_0002"]["turn"] is None
    assert found["0002_0039"]["speaker"] == "msp-podcast/unknown-MSP-PODCAST_0002"
    assert found["0002_0039"]["sex"] is None
    assert loaded.rejected.select("utterance", "reason").rows() == [
        ("msp-podcast/MSP-PODCAST_0006_0001", "it is listed in the labels, but there is no audio file")
    ]
    assert "Test2 (1 utterances) left out" in notes(loaded)
    assert "1 utterances have no known speaker" in notes(loaded)


def test_the_challenge_map_drops_other_and_no_agreement(podcast: Path) -> None:
    labels, dropped = class_map("challenge8").apply(load_corpus("msp-podcast", podcast).manifest.table)
    assert dropped == {"no_agreement": 1, "other": 1}
    assert labels.count("happiness") == 1
    assert class_map("common4").apply(load_corpus("msp-podcast", podcast).manifest.table)[1] == {"no_agreement": 1, "other": 1}


def test_another_test_part(podcast: Path) -> None:
    second = load_corpus("msp-podcast", podcast, options={"test": "Test2"})
    assert [row["utterance"] for row in rows(second).values() if row["split"] == "test"] == ["msp-podcast/MSP-PODCAST_0004_0001"]
    assert len([row for row in rows(load_corpus("msp-podcast", podcast, options={"test": "all"})).values() if row["split"] == "test"]) == 2
    with pytest.raises(ConfigError, match="Valid choices: Test1, Test2, all"):
        load_corpus("msp-podcast", podcast, options={"test": "Test9"})


DETAILED = {
    "one column": (
        "FileName,EmoDetail",
        [
            'MSP-PODCAST_0002_0033.wav,"WORKER00000325; Happy; Happy,Amused,Excited; A:5.000000; V:6.000000; D:4.000000;"',
            'MSP-PODCAST_0002_0033.wav,"WORKER00000007; Other-Hopeful; Neutral; A:3.000000; V:4.000000; D:4.000000;"',
        ],
    ),
    "a column each": (
        "FileName,Workers,EmoClass_Major,EmoClass_Second,EmoAct,EmoVal,EmoDom",
        [
            'MSP-PODCAST_0002_0033.wav,WORKER00000325,Happy,"Happy,Amused,Excited",5,6,4',
            "MSP-PODCAST_0002_0033.wav,WORKER00000007,Other-Hopeful,Neutral,3.0,4.0,4.0",
        ],
    ),
}


@pytest.mark.parametrize("form", sorted(DETAILED))
def test_votes_in_both_published_forms(podcast: Path, form: str) -> None:
    header, lines = DETAILED[form]
    (podcast / "Labels" / "labels_detailed.csv").write_text("\n".join([header, *lines]) + "\n")
    found = rows(load_corpus("msp-podcast", podcast))
    assert found["0002_0033"]["votes"] == [
        {"rater": "WORKER00000325", "emotion": "happiness", "arousal": 5.0, "valence": 6.0, "dominance": 4.0},
        {"rater": "WORKER00000007", "emotion": "other", "arousal": 3.0, "valence": 4.0, "dominance": 4.0},
    ]
    assert found["0001_0008"]["votes"] is None
    assert rows(load_corpus("msp-podcast", podcast, options={"votes": False}))["0002_0033"]["votes"] is None


def test_votes_of_an_unknown_form_are_refused(podcast: Path) -> None:
    (podcast / "Labels" / "labels_detailed.csv").write_text("FileName,Answer\nMSP-PODCAST_0002_0033.wav,Happy\n")
    with pytest.raises(DataError, match="votes: false"):
        load_corpus("msp-podcast", podcast)


def test_alignments_on_request(podcast: Path) -> None:
    folder = podcast / "ForceAligned"
    folder.mkdir()
    (folder / "MSP-PODCAST_0002_0033.TextGrid").write_text(TEXTGRID)
    (folder / "MSP-PODCAST_0001_0008.TextGrid").write_text(TEXTGRID[:400])
    assert rows(load_corpus("msp-podcast", podcast))["0002_0033"]["words"] is None
    loaded = load_corpus("msp-podcast", podcast, options={"alignments": True})
    found = rows(loaded)["0002_0033"]
    assert found["words"] == [{"label": "say", "start_s": 0.05, "end_s": 0.1}, {"label": '42 "quoted"', "start_s": 0.1, "end_s": 0.2}]
    assert found["phones"] == [{"label": "EY1", "start_s": 0.05, "end_s": 0.1}]
    assert rows(loaded)["0001_0008"]["words"] is None
    assert "the first is MSP-PODCAST_0001_0008.TextGrid" in notes(loaded)


def test_faults_of_the_label_table(podcast: Path) -> None:
    table = podcast / "Labels" / "labels_consensus.csv"
    table.write_text(
        "\n".join(
            [
                HEADER,
                "MSP-PODCAST_0001_0008.wav,Q,2,4,2,30,Male,Train",
                "MSP-PODCAST_0002_0033.wav,N,2,4,2,30,Male,Extra",
                "MSP-PODCAST_0003_0001.wav,N,2,4,2,30,Male,Train",
            ]
        )
        + "\n"
    )
    reasons = dict(load_corpus("msp-podcast", podcast).rejected.select("utterance", "reason").rows())
    assert "'Q'" in reasons["msp-podcast/MSP-PODCAST_0001_0008"]
    assert "'Extra'" in reasons["msp-podcast/MSP-PODCAST_0002_0033"]
    table.write_text("\n".join([HEADER, "MSP-PODCAST_0003_0001.wav,N,2,9.5,2,30,Male,Train"]) + "\n")
    with pytest.raises(DataError, match="outside the scale of msp-podcast, 1 to 7"):
        load_corpus("msp-podcast", podcast)
    table.write_text("FileName,EmoClass\nMSP-PODCAST_0003_0001.wav,N\n")
    with pytest.raises(DataError, match="EmoAct, EmoVal, EmoDom, SpkrID, Gender, Split_Set"):
        load_corpus("msp-podcast", podcast)


def test_old_spelling_and_the_table_itself_as_path(podcast: Path) -> None:
    whole = load_corpus("msp-podcast", podcast).manifest
    (podcast / "Labels" / "labels_consensus.csv").rename(podcast / "Labels" / "labels_concensus.csv")
    assert load_corpus("msp-podcast", podcast).manifest.fingerprint == whole.fingerprint
    assert load_corpus("msp-podcast", podcast / "Labels" / "labels_concensus.csv").manifest.fingerprint == whole.fingerprint


def test_flac_stands_for_the_listed_wav(podcast: Path, clip: Clip) -> None:
    (podcast / "Audios" / "MSP-PODCAST_0001_0008.wav").unlink()
    clip("Audios/MSP-PODCAST_0001_0008.flac")
    assert rows(load_corpus("msp-podcast", podcast))["0001_0008"]["path"] == "Audios/MSP-PODCAST_0001_0008.flac"


def test_the_conformance_suite_passes(podcast: Path) -> None:
    report = check_corpus("msp-podcast", podcast)
    assert {"attributes have a scale", "a move and a broken file are survived"} <= set(report.passed)


def test_biic_podcast(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "Labels").mkdir()
    lines = [
        "BIIC-PODCAST_1000_0321_0003.wav,H,5,6,5,12,Female,Train",
        "BIIC-PODCAST_1001_0001_0001.wav,N,4,4,4,Unknown,Male,Development",
        "BIIC-PODCAST_1002_0001_0001.wav,S,2,2,3,13,Male,Test",
    ]
    (tmp_path / "Labels" / "labels_consensus.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    for line in lines:
        clip(f"Audios/{line.split(',')[0]}")
    loaded = load_corpus("biic-podcast", tmp_path)
    found = rows(loaded)
    assert {name: (row["split"], row["emotion"], row["speaker"], row["language"]) for name, row in found.items()} == {
        "1000_0321_0003": ("train", "happiness", "biic-podcast/12", "cmn"),
        "1001_0001_0001": ("dev", "neutral", "biic-podcast/unknown-BIIC-PODCAST_1001", "cmn"),
        "1002_0001_0001": ("test", "sadness", "biic-podcast/13", "cmn"),
    }
    assert loaded.manifest.scales == {"biic-podcast": (1.0, 7.0)}
    check_corpus("biic-podcast", tmp_path)
