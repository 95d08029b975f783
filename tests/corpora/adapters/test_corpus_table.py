"""A table of the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.adapters import Loaded, load_corpus

Clip = Callable[..., Path]
TEXT = "path,speaker,emotion\nwav/a.wav,1,anger\nwav/b.wav,2,neutral\n"


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    clip("wav/a.wav", seconds=1.0)
    clip("wav/b.wav", seconds=2.0)
    return tmp_path


def load(path: Path, columns: dict[str, str] | None = None, **options: Any) -> Loaded:
    return load_corpus("table", path, columns=columns, options=options)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "semi.csv", "t.parquet", "bom.csv", "crlf.csv"])
def test_forms(folder: Path, name: str) -> None:
    file = folder / name
    if name.endswith(".parquet"):
        pl.DataFrame({"path": ["wav/a.wav", "wav/b.wav"], "speaker": [1, 2], "emotion": ["anger", "neutral"]}).write_parquet(file)
    else:
        text = TEXT.replace(",", {"t.tsv": "\t", "semi.csv": ";"}.get(name, ",")).replace("\n", "\r\n" if name == "crlf.csv" else "\n")
        file.write_bytes(text.encode("utf-8-sig" if name == "bom.csv" else "utf-8"))
    for given in (file, folder):
        table = load(given).manifest.table
        assert table.select("utterance", "path", "speaker", "emotion", "duration_s", "language").rows() == [
            ("table/wav/a", "wav/a.wav", "table/1", "anger", 1.0, "und"),
            ("table/wav/b", "wav/b.wav", "table/2", "neutral", 2.0, "und"),
        ]


def test_every_column_that_a_manifest_has(folder: Path) -> None:
    words = json.dumps([{"label": "so", "start_s": 0.0, "end_s": 0.3}])
    pl.DataFrame(
        {
            "file": ["wav/a.wav", "wav/b.wav"],
            "spk": ["x", "y"],
            "label": ["anger", None],
            "gender": ["F", "male"],
            "part": ["Training", "val"],
            "start_s": ["0.25", ""],
            "end_s": ["0.75", "NA"],
            "arousal": ["1.5", "nan"],
            "turn": ["3", ""],
            "transcript": ["so, so", None],
            "words": [words, None],
            "duration_s": ["99", "99"],
            "comment": ["", ""],
        }
    ).write_csv(folder / "t.csv")
    loaded = load(
        folder / "t.csv",
        {"path": "file", "speaker": "spk", "emotion": "label", "sex": "gender", "split": "part"},
        scale=[1, 5],
        linked=[["x", "y"]],
    )
    first, second = loaded.manifest.table.iter_rows(named=True)
    assert (first["utterance"], first["duration_s"], first["arousal"], first["turn"], first["transcript"], first["split"]) == (
        "table/wav/a@0.250-0.750",
        0.5,
        1.5,
        3,
        "so, so",
        "train",
    )
    assert first["words"] == [{"label": "so", "start_s": 0.0, "end_s": 0.3}]
    assert (second["emotion"], second["sex"], second["split"], second["start_s"], second["arousal"], second["words"]) == (
        None,
        "male",
        "dev",
        None,
        None,
        None,
    )
    assert loaded.manifest.scales == {"table": (1.0, 5.0)}
    assert loaded.manifest.linked_speakers == [["table/x", "table/y"]]
    assert loaded.manifest.notes == ["The table t.csv has columns that were not used: duration_s, comment."]


def test_missing_columns_are_told_together_with_those_found(folder: Path) -> None:
    (folder / "t.csv").write_text("file,who,emotion\nwav/a.wav,1,anger\n")
    with pytest.raises(
        DataError, match=r"lacks the columns 'path', 'speaker'; it has 'file', 'who', 'emotion'.*`columns: \{path: your_column"
    ):
        load(folder / "t.csv")
    with pytest.raises(DataError, match=r"lacks the column 'whom' \(for speaker\); it has 'file'"):
        load(folder / "t.csv", {"path": "file", "speaker": "whom"})
    with pytest.raises(ConfigError, match=r"no manifest column 'mood'.*Valid choices: utterance, corpus"):
        load(folder / "t.csv", {"mood": "emotion"})
    (folder / "t.csv").write_text("path,speaker\nwav/a.wav,1\n")
    with pytest.raises(DataError, match="lacks the column 'emotion'"):
        load(folder / "t.csv")


def test_values_that_are_wrong_are_told_with_their_lines(folder: Path) -> None:
    (folder / "t.csv").write_text("path,speaker,arousal,turn,split\nwav/a.wav,1,high,1.5,train\nwav/b.wav,2,3,2,later\n")
    with pytest.raises(DataError, match="1 values of the column 'arousal' are not numbers: line 2: 'high'"):
        load(folder / "t.csv")
    with pytest.raises(DataError, match="'turn' are not whole numbers: line 2: '1.5'"):
        load(folder / "t.csv", {"arousal": "turn"})
    with pytest.raises(DataError, match=r"'split' are not names of a split: line 3: 'later'.*train, dev, test"):
        load(folder / "t.csv", {"arousal": "speaker", "turn": "speaker"})
    (folder / "t.csv").write_text("path,speaker,emotion,words\nwav/a.wav,1,x,so so\n")
    with pytest.raises(DataError, match="'words', line 2.*no JSON list"):
        load(folder / "t.csv")


def test_rejects(folder: Path) -> None:
    (folder / "t.csv").write_text(TEXT + "wav/gone.wav,3,anger\n,3,anger\n")
    with pytest.raises(DataError, match="neither id nor path"):
        load(folder / "t.csv")
    (folder / "t.csv").write_text(TEXT + "wav/gone.wav,3,anger\n")
    assert load(folder / "t.csv").rejected.select("path", "utterance", "reason").rows() == [
        ("wav/gone.wav", "table/wav/gone", "missing file")
    ]


def test_paths_above_the_table_and_absolute_ones(folder: Path) -> None:
    (folder / "labels").mkdir()
    (folder / "labels/t.csv").write_text(f"path,speaker,emotion\n../wav/a.wav,1,anger\n{folder}/wav/b.wav,2,neutral\n")
    loaded = load(folder / "labels/t.csv")
    assert loaded.manifest.table["path"].to_list() == ["wav/a.wav", "wav/b.wav"]
    assert loaded.manifest.roots == {"table": str(folder.resolve())}
    (folder / "labels/t.csv").write_text("path,speaker,emotion\na.wav,1,anger\nb.wav,2,neutral\n")
    assert load(folder / "labels/t.csv", root="../wav").manifest.table["utterance"].to_list() == ["table/a", "table/b"]
    with pytest.raises(MissingFileError, match="no audio folder"):
        load(folder / "labels/t.csv", root="nowhere")


def test_text_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("utterance,speaker,emotion,transcript\n1,a,joy,Hello there\n2,b,anger,Go away\n")
    table = load(tmp_path / "t.csv").manifest.table
    assert table.select("utterance", "path", "transcript").rows() == [("table/1", None, "Hello there"), ("table/2", None, "Go away")]


def test_several_corpora_in_one_table(folder: Path) -> None:
    (folder / "t.csv").write_text("path,speaker,emotion,corpus\nwav/a.wav,1,anger,north\nwav/b.wav,1,neutral,south\n")
    manifest = load(folder / "t.csv").manifest
    assert manifest.table["speaker"].to_list() == ["north/1", "south/1"]
    assert set(manifest.roots) == {"north", "south"}


def test_files_that_are_no_tables(folder: Path) -> None:
    with pytest.raises(DataError, match="holds no tables"):
        load(folder / "wav")
    for name in ("t.csv", "u.csv"):
        (folder / name).write_text(TEXT)
    with pytest.raises(DataError, match=r"holds 2 tables.*t.csv, u.csv"):
        load(folder)
    (folder / "t.csv").write_bytes("path,speaker,emotion\nwav/a.wav,Jürgen,Ärger\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8.*Save it as UTF-8"):
        load(folder / "t.csv")
    (folder / "t.csv").write_text("")
    with pytest.raises(DataError, match="table is empty"):
        load(folder / "t.csv")
    (folder / "t.csv").write_text(TEXT + "wav/a.wav,1,anger,more,and more\n")
    with pytest.raises(DataError, match="cannot be read"):
        load(folder / "t.csv")
    (folder / "t.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(DataError, match="not a parquet file, or it cannot be read"):
        load(folder / "t.parquet")
    with pytest.raises(ConfigError, match=r"\[low, high\]"):
        load(folder / "u.csv", scale=[7, 1])


@pytest.mark.parametrize("linked", [["1", "2"], "12", 5, True, [["1"]], [["1", "1"]], [[]], [["1", ["2"]]], [["1", None]], {"1": "2"}])
def test_linked_speakers_are_lists_of_ids(folder: Path, linked: Any) -> None:
    (folder / "t.csv").write_text(TEXT)
    with pytest.raises(ConfigError, match=r"groups of two or more speaker ids, not .*linked: \[\[s0, s1\]\]"):
        load(folder / "t.csv", linked=linked)


def test_linked_speakers_are_speakers_of_the_table(folder: Path) -> None:
    (folder / "t.csv").write_text(TEXT)
    for right in ([["1", "2"]], [[1, 2]], [["table/1", " 2"]], (("2", "1"), ("1", "2"))):
        assert load(folder / "t.csv", linked=right).manifest.linked_speakers == [["table/1", "table/2"]]
    assert load(folder / "t.csv", linked=[["own/1", 2]], name="own").manifest.linked_speakers == [["own/1", "own/2"]]
    assert load(folder / "t.csv", linked=None).manifest.linked_speakers == []
    with pytest.raises(ConfigError, match=r"linked speaker 'typo' is not a speaker of the table.*Valid choices: table/1, table/2\."):
        load(folder / "t.csv", linked=[["1", "typo"]])
    with pytest.raises(ConfigError, match="1, table/1 are one speaker of the table"):
        load(folder / "t.csv", linked=[["1", "table/1"]])
    (folder / "t.csv").write_text(TEXT + "wav/gone.wav,3,anger\n")
    manifest = load(folder / "t.csv", linked=[["1", "3"], ["3", "2"]]).manifest
    assert manifest.linked_speakers == [["table/1", "table/2"]]
    assert manifest.notes == ["All utterances of the linked speaker table/3 were rejected."]


def test_linked_speakers_of_several_corpora(clip: Clip, folder: Path) -> None:
    clip("wav/c.wav")
    (folder / "t.csv").write_text(
        "path,speaker,emotion,corpus\nwav/a.wav,1,anger,north\nwav/b.wav,1,neutral,south\nwav/c.wav,2,anger,south\n"
    )
    assert load(folder / "t.csv", linked=[["north/1", "2"]]).manifest.linked_speakers == [["north/1", "south/2"]]
    with pytest.raises(ConfigError, match="'1' could be north/1 or south/1"):
        load(folder / "t.csv", linked=[["1", "2"]])


@pytest.mark.parametrize(
    ("option", "values", "right"),
    [
        ("scale", [5, "1-7", [1], ["1", "7"], [1, None], [True, 7], [1, float("inf")], [3, 3], {"low": 1, "high": 7}], r"\[low, high\]"),
        ("root", [5, ["wav"], "", True], "folder of its audio"),
        ("separator", [5, ";;", "", "\n", "§", [","]], "one character"),
        ("language", [False, 5, ["de"]], "BCP-47"),
    ],
)
def test_options_of_the_wrong_kind(folder: Path, option: str, values: list[Any], right: str) -> None:
    (folder / "t.csv").write_text(TEXT)
    for value in values:
        with pytest.raises(ConfigError, match=f"{right}.*Where: {option}"):
            load(folder / "t.csv", **{option: value})


@pytest.mark.parametrize(
    "header", ["path,speaker,emotion,emotion", "path, emotion ,emotion,speaker", '"path","emotion","speaker","emotion"']
)
def test_a_column_name_twice(folder: Path, header: str) -> None:
    (folder / "t.csv").write_text(f"{header}\nwav/a.wav,1,anger,joy\n")
    with pytest.raises(DataError, match=r"has the column 'emotion' more than once.*Rename or remove"):
        load(folder / "t.csv")


def test_columns_without_a_name_may_be_several(folder: Path) -> None:
    (folder / "t.csv").write_text("path,speaker,emotion,,\nwav/a.wav,1,anger,,\n")  # as spreadsheets write empty columns
    assert load(folder / "t.csv").manifest.table.height == 1
