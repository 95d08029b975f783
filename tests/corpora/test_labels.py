"""Class maps are data; nothing is dropped without being counted."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from raysere.base.errors import ConfigError, DataError, UnknownNameError
from raysere.corpora.labels import CLASS_MAPS, ClassMap, class_map


def table(*labels: str | None, corpus: str = "toy") -> pl.DataFrame:
    return pl.DataFrame({"corpus": [corpus] * len(labels), "emotion": list(labels)}, schema={"corpus": pl.String, "emotion": pl.String})


def test_emodb_letters_are_german() -> None:
    letters = table(*"WFNTALE", corpus="emodb")
    assert class_map("emodb7").apply(letters) == (["anger", "happiness", "neutral", "sadness", "fear", "boredom", "disgust"], {})
    assert class_map("emodb4").apply(letters) == (["anger", "happiness", "neutral", "sadness", None, None, None], {"A": 1, "E": 1, "L": 1})


def test_one_letter_means_another_thing_in_another_corpus() -> None:
    both = pl.concat([table("F", "A", corpus="emodb"), table("F", "A", "H", corpus="msp-podcast")])
    assert class_map("common4").apply(both) == (["happiness", None, None, "anger", "happiness"], {"A": 1, "F": 1})


def test_challenge_order_and_what_it_drops() -> None:
    assert class_map("challenge8").classes == ("anger", "sadness", "happiness", "surprise", "fear", "disgust", "contempt", "neutral")
    assert class_map("challenge8").apply(table(*"ASHUFDCNOXO"))[1] == {"O": 2, "X": 1}


def test_calm_is_kept_apart_or_merged() -> None:
    assert class_map("ravdess8").apply(table("02", "calm"))[0] == ["calm", "calm"]
    assert class_map("ravdess7").apply(table("02", "calm", "Neutral"))[0] == ["neutral"] * 3
    assert class_map("common4").apply(table("calm")) == ([None], {"calm": 1})


@pytest.mark.parametrize(
    ("corpus", "name"),
    [("emodb", "emodb4"), ("emodb", "emodb7"), ("emovo", "emovo7"), ("ravdess", "ravdess8"), ("urdu", "urdu4"), ("nemo", "nemo6")],
)
def test_maps_agree_with_a_published_index(corpora_root: Path, corpus: str, name: str) -> None:
    index = pl.read_csv(corpora_root / "index.csv", infer_schema=False).filter(pl.col("corpus") == corpus)
    labels, dropped = class_map(name).apply(index)
    assert sum(dropped.values()) == labels.count(None)
    assert all(label in (None, emotion) for label, emotion in zip(labels, index["emotion"], strict=True))
    assert class_map(name).missing(labels) == []


def test_every_map_round_trips_and_is_coherent() -> None:
    assert set(CLASS_MAPS) == {
        "emodb4",
        "emodb7",
        "emovo7",
        "ravdess8",
        "ravdess7",
        "nemo6",
        "urdu4",
        "crema6",
        "meld7",
        "challenge8",
        "common4",
        "demo4",
    }
    for name, one in CLASS_MAPS.items():
        assert class_map(one.to_dict()) == one
        assert len(one.classes) == int(name[-1])
        assert one.note
        assert one.apply(table(*one.classes))[0] == list(one.classes)


def test_no_emotion_is_not_a_dropped_one() -> None:
    assert class_map("demo4").apply(table(None, "anger")) == ([None, "anger"], {})
    assert class_map("demo4").missing(["anger", None]) == ["happiness", "neutral", "sadness"]


def test_unknown_labels_are_listed_with_counts() -> None:
    with pytest.raises(DataError, match=r"disgust \(1 of toy\), fury \(2 of toy\).*Valid choices: .*angry") as caught:
        class_map("urdu4").apply(table("anger", "fury", "disgust", "fury"))
    assert "null" in str(caught.value)


def test_own_maps() -> None:
    mapping = class_map({"wut": "hot", "trauer": "cold", "ekel": None, "*": None})
    assert mapping.classes == ("hot", "cold")
    assert mapping.apply(table("trauer", "wut", "ekel", "angst")) == (["cold", "hot", None, None], {"angst": 1, "ekel": 1})
    ordered = class_map({"name": "mine", "classes": ["b", "a"], "rules": {"x": "a", "y": "b"}})
    assert (ordered.name, ordered.classes) == ("mine", ("b", "a"))
    listed = class_map(["sad", "Angry"])
    assert listed.apply(table("angry", "sad"))[0] == ["Angry", "sad"]
    with pytest.raises(DataError, match="fear"):
        listed.apply(table("fear"))


def test_exact_comes_before_case() -> None:
    assert class_map({"A": "upper", "a": "lower"}).apply(table("a", "A"))[0] == ["lower", "upper"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (["anger"], "two or more"),
        ({"x": "a", "y": None}, "two or more"),
        ({"classes": ["a", "b"], "rules": {"x": "a"}}, "No label leads to the class b"),
        ({"classes": ["a", "b"], "rules": {"x": "a", "y": "b", "z": "c"}}, "z -> c"),
        ({"classes": ["a", "b"], "rules": {"x": "a", "y": "b"}, "order": 1}, "'order'"),
        (7, "not 7"),
    ],
)
def test_maps_that_cannot_be(spec: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        class_map(spec)  # type: ignore[arg-type]


def test_unknown_map() -> None:
    with pytest.raises(UnknownNameError, match=r"emodb4.*Did you mean 'urdu4'"):
        class_map("urdu5")
    assert isinstance(class_map(CLASS_MAPS["urdu4"]), ClassMap)
