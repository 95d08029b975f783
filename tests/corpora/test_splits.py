"""Speakers never cross; every pool row is in one fold; the seed decides and the row order does not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raysere.base.errors import DataError
from raysere.corpora.splits import SPLIT_SCHEMA, Protocol, describe_splits, make_splits, verify_splits
from raysere.training.data import trial_data
from raysere.training.task import Labels, Task


def table(rows: list[tuple[str, str | None]], split: list[str | None] | None = None) -> pl.DataFrame:
    """Rows of (speaker, label)."""
    return pl.DataFrame(
        {
            "utterance": [f"c/{number:04d}" for number in range(len(rows))],
            "speaker": [f"c/{speaker}" for speaker, _ in rows],
            "label": [label for _, label in rows],
            "split": split or [None] * len(rows),
        },
        schema={"utterance": pl.String, "speaker": pl.String, "label": pl.String, "split": pl.String},
    )


def even(speakers: int, classes: str = "abc", each: int = 2) -> pl.DataFrame:
    return table([(f"s{speaker}", label) for speaker in range(speakers) for label in classes for _ in range(each)])


def parts(splits: pl.DataFrame, data: pl.DataFrame) -> dict[tuple[int, str, int | None], set[str]]:
    joined = splits.join(data.select("utterance", "speaker"), on="utterance")
    return {
        (outer, role, fold): set(speakers)
        for outer, role, fold, speakers in joined.group_by("outer", "role", "fold").agg("speaker").iter_rows()
    }


@st.composite
def corpora(draw: st.DrawFn) -> tuple[pl.DataFrame, list[list[str]]]:
    speakers = draw(st.integers(6, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes = draw(st.integers(2, 5))
    rows = [
        (f"s{speaker}", label)
        for speaker in range(speakers)
        for label in rng.choice(list("abcde")[:classes], rng.integers(1, 20), p=rng.dirichlet(np.ones(classes)))
    ]
    data = table([(speaker, str(label)) for speaker, label in rows])
    links = [["c/s0", "c/s1"], ["c/s1", "c/s2"]] if draw(st.booleans()) else []
    return data, links


def heads(data: pl.DataFrame, links: list[list[str]]) -> list[str]:
    linked = {one for group in links for one in group}
    return ["c/s0" if speaker in linked else speaker for speaker in data["speaker"]]


def carriers(data: pl.DataFrame, links: list[list[str]]) -> int:
    """The fewest groups that any class is spoken by."""
    return min(
        len({head for head, label in zip(heads(data, links), data["label"], strict=True) if label == one}) for one in set(data["label"])
    )


def check_folds(splits: pl.DataFrame, data: pl.DataFrame, links: list[list[str]], folds: int) -> None:
    verify_splits(splits, data, links)
    label = dict(data.select("utterance", "label").iter_rows())
    group = dict(zip(data["utterance"], heads(data, links), strict=True))
    for _, one in splits.group_by("outer"):
        assert sorted(one["utterance"]) == sorted(data["utterance"])
        pool = one.filter(pl.col("role") == "pool")
        assert pool["fold"].null_count() == 0
        assert set(pool["fold"]) == set(range(folds))
        assert one.filter(pl.col("role") == "test")["fold"].null_count() == one.height - pool.height
        for fold in range(folds):
            dev = pool.filter(pl.col("fold") == fold)["utterance"].to_list()
            train = pool.filter(pl.col("fold") != fold)["utterance"].to_list()
            assert not {group[one] for one in dev} & {group[one] for one in train}
            assert {label[one] for one in train} == {label[one] for one in pool["utterance"]}


@given(corpora(), st.integers(2, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_out_of_fold(drawn: tuple[pl.DataFrame, list[list[str]]], folds: int, seed: int) -> None:
    data, links = drawn
    assume(data["label"].n_unique() > 1 and carriers(data, links) > 1)
    splits = make_splits(data, Protocol(folds=folds), seed, links)
    assert splits.schema == pl.Schema(SPLIT_SCHEMA)
    check_folds(splits, data, links, folds)
    shuffled = data.sample(fraction=1, shuffle=True, seed=seed)
    assert make_splits(shuffled, Protocol(folds=folds), seed, links).equals(splits)


@given(corpora(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_nested(drawn: tuple[pl.DataFrame, list[list[str]]], seed: int) -> None:
    data, links = drawn
    assume(data["label"].n_unique() > 1 and carriers(data, links) > 3 and len(set(heads(data, links))) >= 6)
    protocol = Protocol(kind="nested", outer=3, inner=2)
    splits = make_splits(data, protocol, seed, links)
    check_folds(splits, data, links, 2)
    tested = splits.filter(pl.col("role") == "test")
    assert sorted(tested["utterance"]) == sorted(data["utterance"])
    assert set(tested["outer"]) == {0, 1, 2}
    assert make_splits(data.reverse(), protocol, seed, links).equals(splits)


@given(corpora(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_holdout_that_is_made(drawn: tuple[pl.DataFrame, list[list[str]]], seed: int) -> None:
    data, links = drawn
    assume(data["label"].n_unique() > 1)
    splits = make_splits(data, Protocol(kind="holdout"), seed, links)
    verify_splits(splits, data, links)
    train = splits.filter((pl.col("role") == "pool") & pl.col("fold").is_null())
    assert set(data.join(train, on="utterance", how="semi")["label"]) == set(data["label"])
    assert set(splits.filter(pl.col("fold") == 0)["role"]) == {"pool"}
    assert splits.filter(pl.col("role") == "test").height > 0
    assert make_splits(data.reverse(), Protocol(kind="holdout"), seed, links).equals(splits)


def test_seeds_differ_and_repeat() -> None:
    data = even(20)
    made = [make_splits(data, Protocol(), seed) for seed in (0, 0, 1)]
    assert made[0].equals(made[1])
    assert not made[0].equals(made[2])


def test_perfect_balance_is_found() -> None:
    rng = np.random.default_rng(0)
    pairs = [(int(a), 12 - int(a)) for a in rng.integers(1, 12, 10)]  # twenty speakers who pair up to 12 + 12
    data = table(
        [
            (f"{side}{number}", label)
            for number, (a, b) in enumerate(pairs)
            for side, counts in (("x", (a, b)), ("y", (b, a)))
            for label, count in zip("pq", counts, strict=True)
            for _ in range(count)
        ]
    )
    joined = make_splits(data, Protocol(folds=5), 0).join(data, on="utterance")
    counts = joined.group_by("fold", "label").len()["len"].to_list()
    assert max(counts) - min(counts) <= 2  # the mean is 24


@pytest.mark.parametrize(("corpus", "folds", "worst"), [("ravdess", 6, 0.001), ("emodb", 5, 0.4), ("nemo", 3, 0.22), ("emovo", 3, 0.001)])
def test_balance_on_real_corpora(corpora_root: Path, corpus: str, folds: int, worst: float) -> None:
    index = pl.read_csv(corpora_root / "index.csv", infer_schema=False).filter(
        (pl.col("corpus") == corpus) & ~pl.col("path").str.contains("resampled")
    )
    data = index.select(utterance="path", speaker="speaker", label="emotion")
    for seed in range(5):
        counts = make_splits(data, Protocol(folds=folds), seed).join(data, on="utterance").group_by("fold", "label").len()
        assert counts.height == folds * data["label"].n_unique()
        spread = counts.with_columns((pl.col("len") / pl.col("len").mean().over("label") - 1).abs().alias("off"))["off"].max()
        assert spread <= worst


def test_leave_one_speaker_out_keeps_links() -> None:
    data, links = even(5), [["c/s1", "c/s3"]]
    splits = make_splits(data, Protocol(folds="leave_one_speaker_out"), 0, links)
    assert sorted(map(sorted, parts(splits, data).values())) == [["c/s0"], ["c/s1", "c/s3"], ["c/s2"], ["c/s4"]]
    nested = make_splits(data, Protocol(kind="nested", outer="leave_one_speaker_out", inner="leave_one_speaker_out"), 0, links)
    assert nested["outer"].n_unique() == 4
    assert nested.filter(pl.col("outer") == 0)["fold"].drop_nulls().n_unique() == 3


def test_given_folds() -> None:
    data = even(4)
    folds = [["s0", "c/s1"], ["s2", "s3"]]
    assert parts(make_splits(data, Protocol(folds=folds), 0), data) == {(0, "pool", 0): {"c/s0", "c/s1"}, (0, "pool", 1): {"c/s2", "c/s3"}}
    nested = parts(make_splits(data, Protocol(kind="nested", outer=folds, inner=2), 0), data)
    assert nested[0, "test", None] == {"c/s0", "c/s1"}
    assert nested[1, "test", None] == {"c/s2", "c/s3"}
    numbers = data.with_columns(speaker=pl.col("speaker").str.replace("s", ""))
    assert Protocol(folds=[[0, 1], [2, 3]]).folds == [["0", "1"], ["2", "3"]]  # YAML reads 0 as a number
    assert make_splits(numbers, Protocol(folds=[[0, 1], [2, 3]]), 0)["fold"].n_unique() == 2


@pytest.mark.parametrize(
    ("folds", "links", "message"),
    [
        ([["s0"], ["s1", "s2"]], [], r"1 of 4 speakers are in no fold: c/s3"),
        ([["s0", "s9"], ["s1", "s2", "s3"]], [], r"'s9', which has no utterances here.*c/s0"),
        ([["s0", "s1"], ["s1", "s2", "s3"]], [], r"'c/s1' is in the folds 0 and 1"),
        ([["s0", "s1"], ["s2", "s3"]], [["c/s1", "c/s2"]], r"linked speakers c/s1, c/s2"),
    ],
)
def test_given_folds_that_cannot_be(folds: list[list[str]], links: list[list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_splits(even(4), Protocol(folds=folds), 0, links)


def test_a_short_name_of_two_corpora_is_refused() -> None:
    data = pl.concat([even(2), even(2).with_columns(pl.col("utterance", "speaker").str.replace("c/", "d/"))])
    with pytest.raises(DataError, match="could be c/s0 or d/s0"):
        make_splits(data, Protocol(folds=[["s0"], ["c/s1", "d/s1"]]), 0)


def own(splits: str, speakers: str | None = None) -> pl.DataFrame:
    """One speaker a letter, three classes each; t d e u - stand for train, dev, test, unlabelled
    and none.
    """
    names = {"t": "train", "d": "dev", "e": "test", "u": "unlabelled", "-": None}
    return table(
        [((speakers or "abcdefghijkl")[place], label) for place in range(len(splits)) for label in "xyz"],
        [names[one] for one in splits for _ in range(3)],
    )


def test_own_split_is_used() -> None:
    data = own("ttdeu")
    assert parts(make_splits(data, Protocol(kind="holdout"), 0), data) == {
        (0, "pool", None): {"c/a", "c/b"},
        (0, "pool", 0): {"c/c"},
        (0, "test", None): {"c/d"},
    }
    folds = parts(make_splits(data, Protocol(folds=3), 0), data)
    assert folds[0, "test", None] == {"c/d"}
    assert {key[1] for key in folds} == {"pool", "test"}
    assert len(folds) == 4
    nested = make_splits(data, Protocol(kind="nested", outer=4, inner=2), 0)
    assert nested.filter(pl.col("role") == "test").height == 12  # all but the unlabelled


def test_own_split_without_dev_or_for_some_corpora_only() -> None:
    data = own("tttttee")
    made = parts(make_splits(data, Protocol(kind="holdout"), 0), data)
    assert made[0, "test", None] == {"c/f", "c/g"}
    assert len(made[0, "pool", 0]) == 1
    mixed = own("ttde-----")
    made = parts(make_splits(mixed, Protocol(kind="holdout"), 0), mixed)
    assert {"c/a", "c/b"} < made[0, "pool", None]
    assert "c/c" in made[0, "pool", 0]
    assert "c/d" in made[0, "test", None]
    assert sum(map(len, made.values())) == 9


def test_speaker_in_two_parts_of_the_own_split() -> None:
    with pytest.raises(DataError, match=r"1 of 3 speakers are in two parts.*c/a \(3 in train, 3 in test\).*by: dialogue"):
        make_splits(own("tdte", "abca".replace("c", "b")[:2] + "ca"), Protocol(kind="holdout"), 0)
    with pytest.raises(DataError, match=r"c/a \(3 in test, 3 in the pool"):
        make_splits(own("tdte", "abca"), Protocol(folds=2), 0)
    with pytest.raises(DataError, match="in two parts"):
        make_splits(own("tde"), Protocol(kind="holdout"), 0, [["c/a", "c/b"]])
    with pytest.raises(DataError, match=r"3 in train, 3 in no part"):
        make_splits(own("tde-", "abca"), Protocol(kind="holdout"), 0)


@pytest.mark.parametrize(
    ("data", "protocol", "message"),
    [
        (even(1), {}, r"only 1 speaker, 'c/s0'"),
        (even(1), {"kind": "nested"}, r"only 1 speaker"),
        (even(1), {"kind": "holdout"}, r"needs 3 speakers, and there is 1"),
        (even(4), {}, r"5 folds need 5 speakers, and there are 4.*4 folds or fewer"),
        (
            even(4),
            {"folds": "leave_one_speaker_out", "kind": "nested", "outer": 4, "inner": 4},
            r"of outer fold 0 need 4 speakers, and there are 3",
        ),
        (even(6, "a"), {}, r"All 12 utterances have the class 'a'"),
        (own("tte"), {"kind": "holdout", "dev_share": 0.5, "test_share": 0.2}, None),
        (own("de"), {"kind": "holdout"}, "no training utterance"),
        (own("uu"), {}, "no utterances to split"),
        (
            table([("s0", "a"), ("s0", "b"), ("s1", "a"), ("s2", "a")]),
            {"folds": 3},
            r"without fold \d, the training part has no 'b' \(its 1 utterances are of 1 speaker: c/s0\)",
        ),
        (table([("s0", "a"), ("s0", "b"), ("s1", "a"), ("s2", "a")]), {"folds": "leave_one_speaker_out"}, "without fold 0"),
        (
            table([("s0", "a"), ("s0", "b"), ("s1", "a"), ("s1", "b"), ("s2", "a"), ("s2", "a"), ("s3", "a")]),
            {"kind": "nested", "outer": 2, "inner": 2},
            "of outer fold 0 has no 'b'",
        ),
        (
            table([("a", "x"), ("b", "y"), ("c", "x"), ("c", "y")], ["train", "dev", "test", "test"]),
            {"kind": "holdout"},
            "the training part has no 'y'",
        ),
    ],
)
def test_clear_errors(data: pl.DataFrame, protocol: dict[str, Any], message: str | None) -> None:
    if message is None:
        make_splits(data, Protocol(**protocol), 0)
        return
    with pytest.raises(DataError, match=message) as caught:
        make_splits(data, Protocol(**protocol), 0)
    assert caught.value.remedy or "no utterances to split" in str(caught.value)


def test_a_class_may_be_missing_from_a_dev_fold_and_is_told() -> None:
    data = even(9, "abc").filter((pl.col("speaker") != "c/s4") | (pl.col("label") != "c"))
    splits = make_splits(data, Protocol(folds="leave_one_speaker_out"), 0)
    assert describe_splits(splits, data, Protocol()) == ["dev fold 4 has no c."]
    nested = Protocol(kind="nested", outer="leave_one_speaker_out", inner=3)
    assert "Outer fold 4: the test rows have no c." in describe_splits(make_splits(data, nested, 0), data, nested)


def test_by_dialogue_and_sentence() -> None:
    data = even(4, "abcd", 3).with_columns(
        dialogue=pl.int_range(48) // 4 % 6, transcript=pl.concat_str(pl.lit(" Text "), (pl.int_range(48) % 12).cast(pl.String))
    )
    for by, column in (("dialogue", "dialogue"), ("sentence", "transcript")):
        protocol = Protocol(by=by, folds=3)
        splits = make_splits(data, protocol, 0)
        verify_splits(splits, data.select("utterance", speaker=pl.col(column).cast(pl.String)))
        with pytest.raises(DataError, match="in two parts of the splits"):
            verify_splits(splits, data)
        assert describe_splits(splits, data, protocol)[0].startswith(f"Split by {by}: 4 of 4 speakers are in more than one part")
    spelt = data.with_columns(
        transcript=pl.when(pl.int_range(48) < 24).then(pl.col("transcript").str.to_uppercase()).otherwise("transcript")
    )
    assert make_splits(spelt, protocol, 0).equals(splits)
    with pytest.raises(DataError, match="3 of 48 utterances have no dialogue"):
        make_splits(data.with_columns(dialogue=pl.when(pl.int_range(48) < 3).then(None).otherwise("dialogue")), Protocol(by="dialogue"), 0)
    with pytest.raises(DataError, match="lacks transcript"):
        make_splits(data.drop("transcript"), Protocol(by="sentence"), 0)


def test_meld_like_own_split_works_by_dialogue() -> None:
    data = table(
        [("Joey", "x"), ("Joey", "y"), ("Joey", "x"), ("Joey", "y"), ("Joey", "x")], ["train", "train", "dev", "dev", "test"]
    ).with_columns(dialogue=pl.Series(["1", "1", "2", "2", "3"]))
    with pytest.raises(DataError, match="by: dialogue"):
        make_splits(data, Protocol(kind="holdout"), 0)
    splits = make_splits(data, Protocol(kind="holdout", by="dialogue"), 0)
    assert Counter(splits["role"]) == {"pool": 4, "test": 1}


def talks(seed: int = 0) -> pl.DataFrame:
    """30 training, 24 development and 5 test dialogues of five lines; two speakers, and a class
    that is in the first part alone.
    """
    rng = np.random.default_rng(seed)
    split = np.repeat(["train"] * 30 + ["dev"] * 24 + ["test"] * 5, 5)
    label = np.where((split == "train") & (rng.random(len(split)) < 0.1), "rare", rng.choice(["x", "y", "z"], len(split)))
    return table([(f"s{row % 2}", str(name)) for row, name in enumerate(label)], split.tolist()).with_columns(
        dialogue=pl.Series([f"d{row // 5}" for row in range(len(split))])
    )


@pytest.mark.parametrize("kind", ["nested", "out_of_fold"])
def test_what_is_always_trained_on_is_never_scored(kind: Any) -> None:
    data = talks()
    protocol = Protocol(kind=kind, by="dialogue", outer=3, inner=2, folds=4, always_train=["train"], leave_out=["test"])
    splits = make_splits(data, protocol, 0)
    joined = splits.join(data, on="utterance")
    verify_splits(splits, dict(zip(data["utterance"], data["dialogue"], strict=True)))
    assert set(joined["split"]) == {"train", "dev"}
    train = joined.filter(pl.col("split") == "train")
    assert set(train.select("role", "fold").unique().rows()) == {("pool", None)}
    assert train.group_by("outer").len()["len"].to_list() == [150] * splits["outer"].n_unique()
    scored = joined.filter(pl.col("split") == "dev")
    assert scored.filter((pl.col("role") == "pool") & pl.col("fold").is_null()).height == 0
    if kind == "nested":
        tested = scored.filter(pl.col("role") == "test")
        assert sorted(tested["utterance"]) == sorted(data.filter(pl.col("split") == "dev")["utterance"])
    else:
        assert set(scored["fold"]) == {0, 1, 2, 3}
    kept = make_splits(data, protocol.model_copy(update={"kind": "out_of_fold", "leave_out": ()}), 0)
    assert kept.filter(pl.col("role") == "test").height == 25


def test_what_is_always_trained_on_shares_no_group_with_the_folds() -> None:
    protocol = Protocol(kind="nested", outer=2, inner=2, always_train=["train"], leave_out=["test"])
    with pytest.raises(DataError, match="in two parts"):
        make_splits(talks(), protocol, 0)
    by = {"kind": "nested", "by": "dialogue", "outer": 2, "inner": 2}
    with pytest.raises(DataError, match="No utterance is in the part dev"):
        make_splits(talks().filter(pl.col("split") != "dev"), Protocol(**by, always_train=["dev"]), 0)
    with pytest.raises(DataError, match="none is left to score"):
        make_splits(talks().filter(pl.col("split") == "train"), Protocol(**by, always_train=["train"]), 0)


def test_rows_without_label_stay_out_and_no_labels_at_all_balance_size() -> None:
    some = even(6).with_columns(label=pl.when(pl.int_range(36) % 6 == 0).then(None).otherwise("label"))
    assert make_splits(some, Protocol(folds=3), 0).height == 30
    none = even(6).with_columns(label=pl.lit(None, dtype=pl.String))
    assert set(make_splits(none, Protocol(folds=3), 0).group_by("fold").len()["len"]) == {12}


def test_one_speaker_with_nearly_all_of_a_class_is_no_obstacle() -> None:
    data = table([("s0", "a")] * 50 + [("s1", "a")] + [(f"s{number}", "b") for number in range(12) for _ in range(3)])
    for seed in range(10):
        check_folds(make_splits(data, Protocol(folds=4), seed), data, [], 4)


def test_many_speakers_are_quickly_divided() -> None:
    rng = np.random.default_rng(0)
    speakers = np.minimum(rng.pareto(1.0, 20000) * 50, 1500).astype(int)
    data = table(
        [(str(speaker), label) for speaker, label in zip(speakers, rng.choice(list("abcd"), 20000, p=[0.7, 0.2, 0.09, 0.01]), strict=True)]
    )
    counts = make_splits(data, Protocol(folds=5), 0).join(data, on="utterance").group_by("fold", "label").len()
    assert counts.with_columns((pl.col("len") / pl.col("len").mean().over("label") - 1).abs().alias("off"))["off"].max() < 0.05


def test_verify_finds_what_is_wrong() -> None:
    data = even(4)
    good = make_splits(data, Protocol(folds=2), 0)
    verify_splits(good, dict(data.select("utterance", "speaker").iter_rows()))
    flipped = good.with_columns(fold=pl.when(pl.int_range(24) == 0).then(1 - pl.col("fold")).otherwise("fold"))
    with pytest.raises(DataError, match=r"1 speakers are in two parts.*c/s0 \(outer 0\)"):
        verify_splits(flipped, data)
    first, second = (next(iter(speakers)) for speakers in parts(good, data).values())
    with pytest.raises(DataError, match="in two parts"):
        verify_splits(good, data, [[first, second]])
    with pytest.raises(DataError, match="has a fold"):
        verify_splits(good.with_columns(role=pl.lit("test")), data)
    with pytest.raises(DataError, match="list an utterance twice"):
        verify_splits(pl.concat([good, good]), data)
    with pytest.raises(DataError, match="have no speaker"):
        verify_splits(good, data.head(3))


def test_utterance_twice() -> None:
    with pytest.raises(DataError, match="twice"):
        make_splits(pl.concat([even(6), even(6)]), Protocol(), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "random"},
        {"folds": 1},
        {"folds": [["a"]]},
        {"folds": [["a"], []]},
        {"by": "dialogue", "folds": "leave_one_speaker_out"},
        {"by": "sentence", "kind": "nested", "outer": [["a"], ["b"]]},
        {"dev_share": 0.6, "test_share": 0.5},
        {"fold": 5},
        {"inner": [["a"], ["b"]]},
        {"kind": "holdout", "always_train": ["train"]},
        {"always_train": ["train"], "leave_out": ["train"]},
        {"always_train": ["test"]},
    ],
)
def test_protocols_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Protocol(**wrong)


def test_a_class_of_one_speaker_is_trained_on_even_where_the_balance_is_against_it() -> None:
    data = pl.concat([even(8), table([("s0", "only")] * 6).with_columns(utterance=pl.concat_str(pl.lit("c/only"), pl.int_range(6)))])
    protocol = Protocol(kind="holdout", dev_share=0.45, test_share=0.45)
    for seed in range(5):
        train = make_splits(data, protocol, seed).filter((pl.col("role") == "pool") & pl.col("fold").is_null())
        assert "only" in set(data.join(train, on="utterance", how="semi")["label"])


def test_outer_folds_leave_enough_speakers_of_a_class_for_inner_ones() -> None:
    # the best balance of 'rare' is s0 against s1, s2 and s3; then the pool of one outer fold has it
    # from s0 alone
    rare = [("s0", "rare")] * 3 + [(f"s{speaker}", "rare") for speaker in (1, 2, 3)]
    data = table([(f"s{speaker}", label) for speaker in range(8) for label in "aabb"] + rare)
    for seed in range(5):
        check_folds(make_splits(data, Protocol(kind="nested", outer=2, inner=2), seed), data, [], 2)


def test_verify_follows_chains_of_links() -> None:
    data = even(4)
    splits = make_splits(data, Protocol(folds="leave_one_speaker_out"), 0, [["c/s0", "c/s1"]])
    verify_splits(splits, data, [["c/s0", "c/s1"]])
    with pytest.raises(DataError, match=r"1 speakers are in two parts of the splits: c/s0 \(outer 0\)"):
        verify_splits(splits, data, [["c/s1", "c/s2"], ["c/s0", "c/s1"]])


def labels_of(data: pl.DataFrame) -> tuple[Labels, Task]:
    """The labels that a trial joins the splits of ``data`` to."""
    speakers, classes = sorted(set(data["speaker"])), sorted(set(data["label"].drop_nulls()))
    codes = [-1 if one is None else classes.index(one) for one in data["label"]]
    zeros = np.zeros(data.height, np.int64)
    speaker = np.array([speakers.index(one) for one in data["speaker"]])
    labels = Labels(data["utterance"].to_list(), np.array(codes), None, None, speaker, speakers, zeros, ["c"], zeros, zeros * 1.0)
    return labels, Task(classes=tuple(classes))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("out_of_fold", {"fold": 1 - pl.col("fold")}, "on both sides of a split: c/s.*Where: fold 0 of outer split 0"),
        ("nested", {"role": pl.lit("test"), "fold": None}, "on both sides of a split: c/s.*Where: the test part of outer split 0"),
    ],
)
def test_a_trial_refuses_splits_that_tear_a_speaker_apart(kind: Any, change: dict[str, Any], message: str) -> None:
    data = even(6, each=4)
    labels, task = labels_of(data)
    splits = make_splits(data, Protocol(kind=kind, folds=2, outer=2, inner=2), 0).filter(pl.col("outer") == 0)
    assert trial_data(labels, splits, 0, {}, task).folds
    one = splits.filter(role="pool", fold=0)["utterance"][0]
    torn = splits.with_columns(
        **{
            name: pl.when(pl.col("utterance") == one).then(value).otherwise(pl.col(name)).cast(splits[name].dtype)
            for name, value in change.items()
        }
    )
    with pytest.raises(DataError, match=message):
        trial_data(labels, torn, 0, {}, task)
    assert trial_data(labels, torn, 0, {}, task, by_speaker=False).folds
    # a row without a target teaches nothing and is not scored
    if kind == "out_of_fold":
        labels.label[labels.utterances.index(one)] = -1
        assert trial_data(labels, torn, 0, {}, task).folds


def test_a_trial_takes_linked_speakers_for_one_and_dialogues_as_they_are() -> None:
    data = even(4, each=4)
    labels, task = labels_of(data)
    splits = make_splits(data, Protocol(folds="leave_one_speaker_out"), 0)
    with pytest.raises(DataError, match="1 speaker is on both sides of a split: c/s0, c/s1, c/s2"):
        trial_data(labels, splits, 0, {}, task, linked_speakers=[["c/s0", "c/s1"], ["c/s1", "c/s2"]])
    dialogues = data.with_columns(dialogue=pl.Series([f"d{row % 4}" for row in range(data.height)]))
    splits = make_splits(dialogues, Protocol(folds=2, by="dialogue"), 0)
    with pytest.raises(DataError, match="4 speakers are on both sides"):
        trial_data(labels, splits, 0, {}, task)
    assert len(trial_data(labels, splits, 0, {}, task, by_speaker=False).folds) == 2


# ---- transfer ------------------------------------------------------------------------------------


def two_corpora(labels=("a", "b")):
    rows = [
        {"utterance": f"{corpus}/{speaker}{n}", "speaker": f"{corpus}/{speaker}", "label": labels[n % 2], "corpus": corpus}
        for corpus, speakers in (("here", 6), ("there", 5), ("elsewhere", 3))
        for speaker in range(speakers)
        for n in range(6)
    ]
    return pl.DataFrame(rows)


def test_each_target_speaker_is_tested_once_and_adapted_to_otherwise():
    protocol = Protocol(kind="transfer", source=["here"], target=["there"], folds=3, outer=2)
    splits = make_splits(two_corpora(), protocol, 0).join(two_corpora(), on="utterance")
    assert set(splits["corpus"]) == {"here", "there"}
    for outer in (0, 1):
        part = splits.filter(pl.col("outer") == outer)
        assert set(part.filter(pl.col("role") == "pool")["corpus"]) == {"here"}
        assert part.filter(pl.col("corpus") == "here")["fold"].n_unique() == 3
        tested, adapted = (set(part.filter(pl.col("role") == role)["speaker"]) for role in ("test", "adapt"))
        assert not tested & adapted
        assert len(tested | adapted) == 5
    assert splits.filter(pl.col("role") == "test").height == 30
    verify_splits(make_splits(two_corpora(), protocol, 0), two_corpora())


def test_labels_of_the_target_divide_nothing():
    protocol = Protocol(kind="transfer", source=["here"], target=["there"], folds=3, outer=2)
    table = two_corpora()
    turned = table.with_columns(
        label=pl.when(pl.col("corpus") == "there").then(pl.lit("a")).otherwise(pl.col("label"))  # every clip of one class
    )
    assert make_splits(table, protocol, 0).equals(make_splits(turned, protocol, 0))


def test_a_transductive_target_is_tested_whole():
    protocol = Protocol(kind="transfer", source=["here"], target=["there", "elsewhere"], folds=3, transductive=True)
    splits = make_splits(two_corpora(), protocol, 0)
    assert splits["outer"].n_unique() == 1
    assert splits["role"].value_counts().sort("role").rows() == [("pool", 36), ("test", 48)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "transfer", "source": ["here"]}, "needs source and target"),
        ({"kind": "nested", "source": ["here"], "target": ["there"]}, "needs source and target"),
        ({"kind": "transfer", "source": ["here"], "target": ["here"]}, "in source and in target"),
        ({"kind": "nested", "transductive": True}, "transductive"),
        ({"kind": "transfer", "source": ["here"], "target": ["there"], "by": "sentence"}, "by speaker"),
        ({"kind": "transfer", "source": ["here"], "target": ["there"], "always_train": ["train"]}, "always_train"),
    ],
)
def test_transfers_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        Protocol(**settings)


def test_people_on_both_sides_of_a_transfer():
    table = two_corpora().with_columns(speaker=pl.when(pl.col("speaker") == "there/0").then(pl.lit("here/0")).otherwise("speaker"))
    with pytest.raises(DataError, match="in the source and in the target"):
        make_splits(table, Protocol(kind="transfer", source=["here"], target=["there"], folds=3, outer=2), 0)


def test_a_trial_holds_no_label_of_the_target():
    from raysere.training.data import trial_data
    from raysere.training.task import Labels, Task

    table = two_corpora()
    splits = make_splits(table, Protocol(kind="transfer", source=["here"], target=["there"], folds=3, outer=2), 0)
    count = table.height
    speakers = sorted(set(table["speaker"]))
    codes = np.array([speakers.index(name) for name in table["speaker"]])
    label = np.array([{"a": 0, "b": 1}[name] for name in table["label"]])
    labels = Labels(
        table["utterance"].to_list(), label, np.eye(2, dtype=np.float32)[label], None, codes, speakers, np.zeros(count, int), ["x"],
        np.zeros(count, int), np.ones(count), np.ones(count, np.float32),
    )  # fmt: skip
    data = trial_data(labels, splits, 0, {}, Task(classes=("a", "b")))
    pool = np.unique(np.concatenate([part for fold in data.folds for part in (fold.train, fold.dev)]))
    outside = np.setdiff1d(np.arange(count), pool)
    assert set(data.test) | set(data.unlabelled) <= set(outside)
    assert len(data.unlabelled)
    assert (data.labels.label[outside] == -1).all()
    assert (data.labels.soft[outside] == 0).all()
    assert (data.labels.votes[outside] == 0).all()
    assert np.array_equal(data.labels.label[pool], label[pool])
    assert (labels.label >= 0).all(), "what was given stays as it was"
    both = trial_data(labels, splits, 0, {}, Task(classes=("a", "b")), transductive=True)
    assert set(both.unlabelled) == set(data.unlabelled) | set(data.test)
    one = labels.utterances[data.test[0]]  # one clip of a tested speaker among those that are adapted to
    torn = splits.with_columns(role=pl.when(pl.col("utterance") == one).then(pl.lit("adapt")).otherwise("role"))
    with pytest.raises(DataError, match="on both sides"):
        trial_data(labels, torn, 0, {}, Task(classes=("a", "b")))
    assert len(trial_data(labels, torn, 0, {}, Task(classes=("a", "b")), transductive=True).test) == len(data.test) - 1
