"""Databases as the audformat package writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.adapters import Loaded, load_corpus

audformat = pytest.importorskip("audformat", reason="audformat writes the databases of these tests")
Clip = Callable[..., Path]


def load(path: Path, columns: dict[str, str] | None = None, **options: Any) -> Loaded:
    return load_corpus("audformat", path, columns=columns, options=options)


def column(table: Any, name: str, scheme: str | None, values: list[Any], rater: str | None = None) -> None:
    table[name] = audformat.Column(scheme_id=scheme, rater_id=rater)
    table[name].set(values)


@pytest.fixture
def database(clip: Clip, tmp_path: Path) -> Any:
    import pandas as pd

    for name in "abc":
        clip(f"wav/{name}.wav", seconds=2.0)
    db = audformat.Database("my db", source="nowhere", usage="research", languages=["deu"], license="CC0-1.0")
    db.schemes["emotion"] = audformat.Scheme(labels=["anger", "neutral", "fear"])
    db.schemes["gender"] = audformat.Scheme(labels=["female", "male"])
    db.schemes["transcription"] = audformat.Scheme("str")
    db.schemes["arousal"] = audformat.Scheme("float", minimum=0, maximum=1)
    db.schemes["confidence"] = audformat.Scheme("float", minimum=0, maximum=1)
    db["speaker"] = audformat.MiscTable(pd.Index(["s1", "s2"], name="speaker", dtype="string"))
    column(db["speaker"], "gender", "gender", ["female", "male"])
    db.schemes["speaker"] = audformat.Scheme("str", labels="speaker")
    db.splits["train"], db.splits["test"] = audformat.Split("train"), audformat.Split("test")
    for rater, kind in (("gold", "human"), ("r1", "human"), ("r2", "human"), ("model", "machine")):
        db.raters[rater] = audformat.Rater(kind)
    files = audformat.filewise_index([f"wav/{name}.wav" for name in "abc"])
    db["files"] = audformat.Table(files)
    column(db["files"], "speaker", "speaker", ["s1", "s2", "s1"])
    column(db["files"], "transcription", "transcription", ["eins", "zwei", None])
    db["emotion.train"] = audformat.Table(files[:2], split_id="train")
    column(db["emotion.train"], "emotion", "emotion", ["anger", "neutral"], "gold")
    column(db["emotion.train"], "emotion.confidence", "confidence", [0.9, 0.5], "gold")
    column(db["emotion.train"], "arousal", "arousal", [0.75, None])
    db["emotion.test"] = audformat.Table(files[2:], split_id="test")
    column(db["emotion.test"], "emotion", "emotion", ["fear"], "gold")
    db["raters"] = audformat.Table(files)
    column(db["raters"], "r1", "emotion", ["anger", "anger", "fear"], "r1")
    column(db["raters"], "r2", "emotion", ["anger", None, "neutral"], "r2")
    column(db["raters"], "model", "emotion", ["fear", "fear", "fear"], "model")
    return db


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_filewise(database: Any, tmp_path: Path, form: str) -> None:
    database.save(tmp_path, storage_format=form)
    loaded = load(tmp_path)
    assert loaded.manifest.table.select(
        "utterance", "path", "language", "speaker", "sex", "split", "emotion", "arousal", "transcript", "duration_s"
    ).rows() == [
        ("my-db/wav/a", "wav/a.wav", "de", "my-db/s1", "female", "train", "anger", 0.75, "eins", 2.0),
        ("my-db/wav/b", "wav/b.wav", "de", "my-db/s2", "male", "train", "neutral", None, "zwei", 2.0),
        ("my-db/wav/c", "wav/c.wav", "de", "my-db/s1", "female", "test", "fear", None, None, 2.0),
    ]
    votes = [{vote["rater"]: vote["emotion"] for vote in row} for row in loaded.manifest.table["votes"].to_list()]
    assert votes == [{"r1": "anger", "r2": "anger"}, {"r1": "anger"}, {"r1": "fear", "r2": "neutral"}]
    assert loaded.manifest.scales == {"my-db": (0.0, 1.0)}
    assert loaded.manifest.notes == ["my db: licence CC0-1.0."]
    assert load(tmp_path, tables=["emotion.test"], name="x").manifest.table["utterance"].to_list() == ["x/wav/c"]


def test_reading_leaves_the_folder_as_it_was(database: Any, tmp_path: Path) -> None:
    database.save(tmp_path, storage_format="csv")
    before = sorted(file.name for file in tmp_path.iterdir())
    load(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_segmented(database: Any, tmp_path: Path, form: str) -> None:
    for name in ("emotion.train", "emotion.test", "raters"):
        database.drop_tables(name)
    index = audformat.segmented_index(
        ["wav/a.wav", "wav/a.wav", "wav/b.wav", "wav/c.wav"], ["0s", "0.5s", None, "1.5s"], ["0.5s", "1.25s", None, "3s"]
    )
    database["segments"] = audformat.Table(index)
    column(database["segments"], "emotion", "emotion", ["anger", "neutral", "fear", "fear"])
    database.save(tmp_path, storage_format=form)
    loaded = load(tmp_path)
    assert loaded.manifest.table.select("utterance", "start_s", "end_s", "speaker", "sex").rows() == [
        ("my-db/wav/a@0.000-0.500", 0.0, 0.5, "my-db/s1", "female"),
        ("my-db/wav/a@0.500-1.250", 0.5, 1.25, "my-db/s1", "female"),
        ("my-db/wav/b", None, None, "my-db/s2", "male"),
    ]
    assert loaded.rejected["reason"].to_list() == ["the segment 1.5 to 3 s ends after the file (2.000 s)"]


def test_columns_by_name(database: Any, tmp_path: Path) -> None:
    database.save(tmp_path, storage_format="csv")
    loaded = load(tmp_path, {"emotion": "raters:model"})
    assert set(loaded.manifest.table["emotion"]) == {"fear"}
    with pytest.raises(ConfigError, match=r"no column 'files:mood'.*files:speaker, files:transcription"):
        load(tmp_path, {"emotion": "files:mood"})
    with pytest.raises(ConfigError, match="no manifest column 'mood'"):
        load(tmp_path, {"mood": "emotion"})
    with pytest.raises(ConfigError, match=r"no table 'emotion.dev'.*emotion.train"):
        load(tmp_path, tables=["emotion.dev"])
    with pytest.raises(ConfigError, match=r"None of the chosen tables.*emotion.test, emotion.train"):
        load(tmp_path, tables=["files"])


def test_tables_that_contradict_each_other(database: Any, tmp_path: Path) -> None:
    database["other"] = audformat.Table(audformat.filewise_index(["wav/a.wav"]))
    column(database["other"], "emotion", "emotion", ["fear"])
    database.save(tmp_path, storage_format="csv")
    with pytest.raises(DataError, match=r"disagree about 'wav/a.wav': emotion is 'anger' and 'fear' \(table 'other'\)"):
        load(tmp_path)
    assert load(tmp_path, tables=["other"]).manifest.table.height == 1
    database["segments"] = audformat.Table(audformat.segmented_index(["wav/b.wav"], ["0s"], ["1s"]))
    column(database["segments"], "emotion", "emotion", ["fear"])
    database.save(tmp_path, storage_format="csv")
    with pytest.raises(DataError, match=r"tables of files and in tables of segments.*segments"):
        load(tmp_path)


def test_pickles_are_not_read(database: Any, tmp_path: Path) -> None:
    database.save(tmp_path, storage_format="pkl")
    with pytest.raises(DataError, match=r"only as pickle.*storage_format='parquet'"):
        load(tmp_path)


def test_folders_that_are_no_database(database: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no db.yaml.*audformat database"):
        load(tmp_path)
    (tmp_path / "db.yaml").write_text("name: x\n")
    with pytest.raises(DataError, match="lists no tables"):
        load(tmp_path)
    for name in ("emotion.train", "emotion.test", "raters"):
        database.drop_tables(name)
    database.save(tmp_path, storage_format="csv")
    with pytest.raises(DataError, match=r"No table of the database has an emotion.*files:speaker"):
        load(tmp_path)
    (tmp_path / "db.files.csv").unlink()
    with pytest.raises(MissingFileError, match=r"'files' has no file.*db.files.parquet or db.files.csv"):
        load(tmp_path)
