"""The table, its fingerprint, its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysere.base.errors import DataError, MissingFileError
from raysere.corpora.manifest import SCHEMA, Manifest, concat, rows_to_table, validate


def row(number: int, corpus: str = "toy", **more: Any) -> dict[str, Any]:
    return {
        "utterance": f"{corpus}/u{number:03d}",
        "corpus": corpus,
        "language": "de",
        "path": f"wav/u{number:03d}.wav",
        "duration_s": 1.5,
        "sampling_rate": 16000,
        "speaker": f"{corpus}/s{number % 3}",
        "sex": "female",
        "emotion": "anger",
        **more,
    }


FULL = row(
    7,
    start_s=1.0,
    end_s=2.5,
    split="dev",
    arousal=2.0,
    valence=6.5,
    dominance=4.0,
    transcript="Grüß Gott, 世界",
    dialogue="toy/d1",
    turn=3,
    video="v/u007.mp4",
    votes=[{"rater": "r1", "emotion": "anger", "arousal": 2.0, "valence": None, "dominance": None}, {"rater": "r2", "emotion": "neutral"}],
    words=[{"label": "Grüß", "start_s": 0.0, "end_s": 0.4}, {"label": "Gott", "start_s": 0.4, "end_s": 0.9}],
    phones=[{"label": "g", "start_s": 0.0, "end_s": 0.1}],
    traces=[
        {"rater": "r1", "attribute": "arousal", "time_s": 0.0, "value": 0.5},
        {"rater": "r1", "attribute": "arousal", "time_s": 0.5, "value": 0.6},
    ],
)


def manifest(rows: list[dict[str, Any]], **more: Any) -> Manifest:
    return Manifest.checked(rows_to_table(rows), **{"roots": {"toy": "/data/toy"}, "scales": {"toy": (1, 7)}, **more})


def test_columns_order_and_rows_are_canonical() -> None:
    table = rows_to_table([row(2), row(1)]).select(*reversed(SCHEMA))
    checked = Manifest.checked(table)
    assert checked.table.schema == pl.Schema(SCHEMA)
    assert checked.table["utterance"].to_list() == ["toy/u001", "toy/u002"]


def test_nullable_columns_may_be_missing_and_numbers_are_cast() -> None:
    table = pl.DataFrame(
        [{key: row(1)[key] for key in ("utterance", "corpus", "language", "speaker", "path")} | {"duration_s": 2, "sampling_rate": 8000}]
    )
    checked = Manifest.checked(table)
    assert checked.table.row(0, named=True)["duration_s"] == 2.0
    assert checked.table["votes"].null_count() == 1


def test_fingerprint_is_the_same_on_every_machine() -> None:
    # a change here makes every existing run directory look like another corpus: bump the format
    # instead
    assert manifest([row(1), FULL], linked_speakers=[["toy/s1", "toy/s0"]]).fingerprint == GOLDEN


GOLDEN = "0ff165ff67f9d818"


@given(st.permutations(range(6)))
@settings(deadline=None, max_examples=20)
def test_fingerprint_knows_no_row_order(order: list[int]) -> None:
    assert manifest([row(number) for number in order]).fingerprint == manifest([row(number) for number in range(6)]).fingerprint


def test_fingerprint_ignores_roots_and_notes_and_follows_content() -> None:
    base = manifest([row(1), row(2)])
    assert manifest([row(1), row(2)], roots={"toy": "/elsewhere"}, notes=["something"]) == base
    others = [
        manifest([row(1), row(2, emotion="sadness")]),
        manifest([row(1), row(2)], scales={"toy": (1, 5)}),
        manifest([row(1)]),
        manifest([row(1), row(2)], linked_speakers=[["toy/s1", "toy/s2"]]),
        manifest([row(1), row(2, words=FULL["words"])]),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == len(others) + 1
    assert len(base.fingerprint) == 16


def test_written_and_read_again(tmp_path: Path) -> None:
    before = manifest([FULL, row(1)], linked_speakers=[["toy/s1", "toy/s0"], ["toy/s0"]], notes=["a trap", "a trap"], synthetic=True)
    before.write(tmp_path / "manifest.parquet")
    after = Manifest.read(tmp_path / "manifest.parquet")
    assert after.table.equals(before.table)
    assert (after.roots, after.scales, after.linked_speakers, after.notes, after.synthetic) == (
        {"toy": "/data/toy"},
        {"toy": (1.0, 7.0)},
        [["toy/s0", "toy/s1"]],
        ["a trap"],
        True,
    )
    assert json.loads(pl.read_parquet_metadata(tmp_path / "manifest.parquet")["raysere"])["format"] == "raysere.manifest/1"
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.parquet"]


def test_relative_root_counts_from_the_manifest(tmp_path: Path) -> None:
    manifest([row(1)], roots={"toy": "audio"}).write(tmp_path / "m.parquet")
    read = Manifest.read(tmp_path / "m.parquet")
    assert read.path(read.table.row(0, named=True)) == tmp_path.resolve() / "audio/wav/u001.wav"


def test_no_audio(tmp_path: Path) -> None:
    text = manifest(
        [row(1, path=None, duration_s=None, sampling_rate=None, transcript="hello"), row(2, path=None, duration_s=0.0, sampling_rate=None)]
    )
    with pytest.raises(DataError, match="has no audio"):
        text.path(text.table.row(0, named=True))
    with pytest.raises(DataError, match="where the corpus 'other' lies"):
        text.root("other")


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        Manifest.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="not a parquet file"):
        Manifest.read(tmp_path / "text.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="corpus 'table'"):
        Manifest.read(tmp_path / "other.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "new.parquet", metadata={"raysere": json.dumps({"format": "raysere.manifest/2"})})
    with pytest.raises(DataError, match=r"raysere.manifest/2.*Update raysere"):
        Manifest.read(tmp_path / "new.parquet")


def test_concat() -> None:
    one, two = (
        manifest([row(1)], notes=["n1"]),
        manifest([row(2, corpus="other")], roots={"other": "/o"}, scales={"other": (0, 1)}, synthetic=True),
    )
    both = concat([two, one])
    assert both.table["utterance"].to_list() == ["other/u002", "toy/u001"]
    assert both.roots == {"toy": "/data/toy", "other": "/o"}
    assert both.synthetic
    assert concat([one, two]) == both
    with pytest.raises(DataError, match="another row has the same id"):
        concat([one, one])
    with pytest.raises(DataError, match="two roots"):
        concat([one, manifest([row(5)], roots={"toy": "/b"})])
    with pytest.raises(DataError, match="No manifest"):
        concat([])


def test_chains_of_linked_speakers_are_one_group(tmp_path: Path) -> None:
    rows = [row(number, speaker=f"toy/s{number}") for number in range(6)]
    chain = [["toy/s2", "toy/s1"], ["toy/s5", "toy/s4"], ["toy/s0", "toy/s1"], ["toy/s3"], ["toy/s3", "toy/s3"]]
    joined = [["toy/s0", "toy/s1", "toy/s2"], ["toy/s4", "toy/s5"]]
    full = manifest(rows, linked_speakers=chain)
    assert full.linked_speakers == joined
    assert full == manifest(rows, linked_speakers=joined)
    assert full.with_rows(full.table.filter(pl.col("speaker") != "toy/s1")).linked_speakers == [["toy/s0", "toy/s2"], ["toy/s4", "toy/s5"]]
    full.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").linked_speakers == joined
    other = manifest([row(1, corpus="other")], roots={}, scales={"other": (1, 7)}, linked_speakers=[["toy/s5", "toy/s0"]])
    assert concat([full, other]).linked_speakers == [[f"toy/s{number}" for number in (0, 1, 2, 4, 5)]]


def test_with_rows_drops_links_of_speakers_that_are_gone() -> None:
    full = manifest([row(0), row(1), row(2)], linked_speakers=[["toy/s0", "toy/s1"]])
    assert full.with_rows(full.table.head(2)).linked_speakers == [["toy/s0", "toy/s1"]]
    assert full.with_rows(full.table.tail(2)).linked_speakers == []


BAD = [
    ({"utterance": ""}, "utterance", "empty"),
    ({"utterance": "x/u001"}, "utterance", "start with"),
    ({"corpus": "to y"}, "corpus", "slash nor blank"),
    ({"language": "German"}, "language", "BCP-47"),
    ({"language": None}, "language", "empty"),
    ({"path": "/abs/a.wav"}, "path", "absolute"),
    ({"path": "a/../../b.wav"}, "path", "leaves"),
    ({"path": ""}, "path", "empty"),
    ({"start_s": 1.0}, "start_s", "only one"),
    ({"start_s": -1.0, "end_s": 0.5}, "start_s", "no time"),
    ({"start_s": 1.0, "end_s": 1.0}, "end_s", "empty or negative"),
    ({"start_s": 1.0, "end_s": 4.0}, "duration_s", "not end_s - start_s"),
    ({"duration_s": 0.0}, "duration_s", "above 0 s"),
    ({"duration_s": None}, "duration_s", "above 0 s"),
    ({"duration_s": float("inf")}, "duration_s", "no duration"),
    ({"sampling_rate": 0}, "sampling_rate", "above 0 Hz"),
    ({"speaker": "03"}, "speaker", "start with"),
    ({"speaker": None}, "speaker", "empty"),
    ({"sex": "F"}, "sex", "none of"),
    ({"emotion": " anger"}, "emotion", "blanks"),
    ({"emotion": ""}, "emotion", "empty"),
    ({"arousal": float("nan")}, "arousal", "not finite"),
    ({"valence": 7.5}, "valence", "outside the scale"),
    ({"turn": -1}, "turn", "negative"),
    ({"words": [{"label": "a", "start_s": 0.5, "end_s": 0.2}]}, "words", "no valid times"),
    ({"words": [{"label": "a", "start_s": None, "end_s": 0.2}]}, "words", "no valid times"),
    ({"phones": [{"label": "a", "start_s": 0.5, "end_s": 0.6}, {"label": "b", "start_s": 0.1, "end_s": 0.2}]}, "phones", "order of time"),
    ({"words": [{"label": "a", "start_s": 0.5, "end_s": 9.0}]}, "words", "after the utterance"),
    ({"votes": [{"rater": "r", "arousal": float("inf")}]}, "votes", "not finite"),
    ({"traces": [{"rater": "r", "attribute": "joy", "time_s": 0.0, "value": 0.0}]}, "traces", "no known attribute"),
    ({"traces": [{"rater": "r", "attribute": "arousal", "time_s": -1.0, "value": 0.0}]}, "traces", "finite time"),
]


@pytest.mark.parametrize(("change", "column", "reason"), BAD)
def test_every_fault_is_told_with_its_row(change: dict[str, Any], column: str, reason: str) -> None:
    table = rows_to_table([row(1), {**row(2), **change}, row(3)])
    hits = [problem for problem in validate(table, {"toy": (1.0, 7.0)}) if problem.column == column and reason in problem.reason]
    assert [problem.row for problem in hits] == [1]
    assert hits[0].remedy
    with pytest.raises(DataError, match=r"row 1"):
        Manifest.checked(table, scales={"toy": (1, 7)})


def test_validation_does_not_stop_at_the_first() -> None:
    table = rows_to_table([{**row(number), "sex": "x", "emotion": " "} for number in range(30)])
    assert len(validate(table)) == 60
    with pytest.raises(DataError) as caught:
        Manifest.checked(table, where="toy.csv")
    assert "60 problems" in str(caught.value)
    assert "and 40 more" in str(caught.value)
    assert str(caught.value).count("column '") == 20
    assert "toy.csv" in str(caught.value)
    assert "toy/u000" in str(caught.value)


def test_sound_tables_have_no_problem() -> None:
    assert validate(rows_to_table([row(1), FULL]), {"toy": (1.0, 7.0)}) == []
    assert validate(rows_to_table([row(1)]).clear())[0].reason == "the table has no rows"


def test_schema_problems() -> None:
    table = rows_to_table([row(1)])
    assert [problem.column for problem in validate(table.drop("emotion", "turn"))] == ["emotion", "turn"]
    assert "must be number" in validate(table.with_columns(arousal=pl.lit("x")))[0].reason
    with pytest.raises(DataError, match=r"'mood'.*no manifest column"):
        Manifest.checked(table.with_columns(mood=pl.lit("x")))
    with pytest.raises(DataError, match=r"'speaker'.*missing"):
        Manifest.checked(table.drop("speaker"))
    with pytest.raises(DataError, match=r"row 0, column 'split', value 'val'.*train, dev, test"):
        Manifest.checked(table.with_columns(split=pl.lit("val")))


def test_values_of_the_wrong_kind_are_listed() -> None:
    with pytest.raises(DataError, match=r"(?s)2 values do not fit.*row 1, column 'arousal', value 'high'.*row 2, column 'turn', value 1.5"):
        rows_to_table([row(0, arousal="2.5"), row(1, arousal="high"), row(2, turn=1.5)])
    assert rows_to_table([row(0, arousal="2.5", turn="4")]).select("arousal", "turn").row(0) == (2.5, 4)
