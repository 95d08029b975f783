"""The adapters on real corpora, against the independent index that lies beside them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import polars as pl
import pytest

from raysere.corpora.adapters import CORPORA, Loaded, load_corpus
from raysere.corpora.labels import class_map
from raysere.testing.corpus import check_corpus

PACKED = {"emodb": {"parts": "all"}, "emovo": {}, "nemo": {}, "ravdess": {}, "urdu": {}}
TO_INDEX = {"joy": "happiness", "happy": "happiness", "sad": "sadness", "angry": "anger", "fearful": "fear", "surprised": "surprise"}
WHOLE = {"emovo": 588, "nemo": 619, "ravdess": 720, "urdu": 400, "emodb": 386}


@pytest.fixture(scope="module")
def index(corpora_root: Path) -> pl.DataFrame:
    return pl.read_csv(corpora_root / "index.csv", schema_overrides={"speaker": pl.String, "sentence_id": pl.String})


@pytest.fixture(scope="module", params=sorted(PACKED))
def packed(request: pytest.FixtureRequest, corpora_root: Path) -> tuple[str, Loaded]:
    return request.param, load_corpus(request.param, corpora_root / request.param, options=PACKED[request.param])


def test_every_clip_agrees_with_the_index(packed: tuple[str, Loaded], index: pl.DataFrame) -> None:
    name, loaded = packed
    table = loaded.manifest.table
    assert loaded.rejected.height == 0
    assert table.height == WHOLE[name]
    ours = table.select(
        path=pl.concat_str(pl.lit(f"{name}/"), "path"),
        speaker=pl.col("speaker").str.strip_prefix(f"{name}/"),
        sex=pl.col("sex").replace({"female": "F", "male": "M"}),
        emotion=pl.col("emotion").replace(TO_INDEX),
        language="language",
        duration="duration_s",
        rate="sampling_rate",
    )
    theirs = index.filter(corpus=name)
    both = ours.join(theirs, on="path", how="full", suffix="_index")
    assert both.height == table.height
    for column in ("speaker", "sex", "emotion", "language"):
        assert both[column].to_list() == both[f"{column}_index"].to_list(), column
    assert (both["duration"] - both["duration_s"]).abs().max() < 1e-3
    assert set(both["rate"]) == {16000}


def test_one_text_a_sentence(packed: tuple[str, Loaded], index: pl.DataFrame) -> None:
    name, loaded = packed
    texts = (
        loaded.manifest.table.select("transcript", path=pl.concat_str(pl.lit(f"{name}/"), "path"))
        .join(index, on="path")
        .select("sentence_id", "transcript")
        .unique()
    )
    if name == "urdu":
        assert texts["transcript"].to_list() == [None]
    else:
        assert texts["transcript"].null_count() == 0
        assert texts["sentence_id"].n_unique() == texts["transcript"].n_unique() == texts.height


@pytest.mark.parametrize(("name", "count"), [("emodb", 10), ("emovo", 14), ("nemo", 12)])
def test_sentences_are_word_for_word_those_of_the_documentation(corpora_root: Path, name: str, count: int) -> None:
    section = (corpora_root / "README.md").read_text(encoding="utf-8").split(f"\n## {name}:")[1].split("\n## ")[0]
    table: dict[str, str] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        table.update(
            {key: text for key, text in zip(cells[::2], cells[1::2], strict=False) if re.fullmatch(r"[a-z]?\d+", key) and " " in text}
        )
    module = importlib.import_module(f"raysere.corpora.adapters.{name}")
    assert len(table) == count
    assert table == module.SENTENCES


def test_the_adapter_keeps_the_contract(packed: tuple[str, Loaded], corpora_root: Path) -> None:
    name, _ = packed
    assert len(check_corpus(name, corpora_root / name, options=PACKED[name]).passed) >= 10


def test_default_class_map_keeps_every_labelled_clip(packed: tuple[str, Loaded]) -> None:
    name, loaded = packed
    mapping = class_map(CORPORA.get(name).classes)
    labels, dropped = mapping.apply(loaded.manifest.table)
    assert dropped == {}
    assert None not in labels
    assert set(labels) == set(mapping.classes)


def test_emodb_leaves_the_resampled_part_out(corpora_root: Path) -> None:
    manifest = load_corpus("emodb", corpora_root / "emodb").manifest
    assert dict(manifest.table["emotion"].value_counts().iter_rows()) == {"anger": 127, "happiness": 71, "neutral": 79, "sadness": 62}
    assert not any("wav_resampled" in path for path in manifest.table["path"])
    assert any("47 clips of wav_resampled/" in note and "parts: all" in note for note in manifest.notes)
    assert any("1 of 339 utterances have no phonetic labels" in note for note in manifest.notes)
    assert manifest.table["phones"].null_count() == 1
    inner = load_corpus("emodb", corpora_root / "emodb" / "wav").manifest
    assert inner.table["utterance"].to_list() == manifest.table["utterance"].to_list()
    everything = load_corpus("emodb", corpora_root / "emodb", options={"parts": "all"}).manifest
    assert any("Do not publish" in note for note in everything.notes)


def test_emovo_names_the_louder_microphone_of_each_speaker(corpora_root: Path) -> None:
    manifest = load_corpus("emovo", corpora_root / "emovo").manifest
    assert manifest.channels == {"emovo/f1": 0, "emovo/f2": 0, "emovo/f3": 0, "emovo/m1": 0, "emovo/m2": 1, "emovo/m3": 1}
    assert any("tri-f3-n1" in note for note in manifest.notes)


def test_urdu_links_the_speakers_that_share_audio(corpora_root: Path) -> None:
    manifest = load_corpus("urdu", corpora_root / "urdu").manifest
    assert manifest.linked_speakers == [["urdu/SF1", "urdu/SF4"]]
    assert manifest.table["speaker"].n_unique() == 29
    assert "urdu/SM1_F1_A01" in manifest.table["utterance"]
    assert manifest.table["utterance"].n_unique() == 400


def test_nemo_strips_its_padded_table(corpora_root: Path) -> None:
    manifest = load_corpus("nemo", corpora_root / "nemo").manifest
    assert manifest.table.filter(speaker="nemo/MK0", emotion="surprised").height == 0
    assert (
        manifest.table.row(by_predicate=pl.col("utterance") == "nemo/SM0_anger_14", named=True)["transcript"]
        == "Ten miesiąc minął bardzo szybko."
    )
    assert any("619 of the 4481" in note for note in manifest.notes)


def test_nemo_built_in_texts_are_those_of_its_table(corpora_root: Path) -> None:
    from raysere.corpora.adapters.nemo import SENTENCES

    texts = {
        row["utterance"].rsplit("_", 1)[1]: row["transcript"]
        for row in load_corpus("nemo", corpora_root / "nemo").manifest.table.iter_rows(named=True)
    }
    assert texts == SENTENCES


def test_meld_keeps_the_published_splits(corpora_root: Path) -> None:
    manifest = load_corpus("meld", corpora_root / "meld").manifest
    table = manifest.table
    assert dict(table["split"].value_counts().iter_rows()) == {"train": 9989, "dev": 1109, "test": 2610}
    assert dict(table["emotion"].value_counts().iter_rows()) == {
        "anger": 1607,
        "disgust": 361,
        "fear": 358,
        "joy": 2308,
        "neutral": 6436,
        "sadness": 1002,
        "surprise": 1636,
    }
    assert table["path"].null_count() == table.height
    assert table["transcript"].null_count() == 0
    assert table["dialogue"].n_unique() == 1432
    assert any("recur across" in note for note in manifest.notes)
    assert any("no audio" in note for note in manifest.notes)
    assert not class_map("meld7").apply(table)[1]
    check_corpus("meld", corpora_root / "meld")
