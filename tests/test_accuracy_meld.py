"""The study on MELD: folds by dialogue, voices that are shuffled or missing, what a baseline of
words is trained on, the page.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("sklearn")

from benchmarks.accuracy import meld, meld_baselines, meld_data
from benchmarks.accuracy.baselines import Scored
from benchmarks.accuracy.meld_page import draw


def test_folds_are_disjoint_by_dialogue_and_train_is_in_all_of_them() -> None:
    from raysere.corpora.splits import Protocol, make_splits

    rng = np.random.default_rng(0)
    split = np.repeat(["train"] * 60 + ["dev"] * 40 + ["test"] * 10, 5)
    table = pl.DataFrame(
        {
            "utterance": [f"meld/{part}_{row}" for row, part in enumerate(split)],
            "speaker": "meld/joey",
            "label": rng.choice(list("abc"), len(split)),
            "split": split,
            "dialogue": [f"d{row // 5}" for row in range(len(split))],
        }
    )
    splits = make_splits(table, Protocol.model_validate(meld_data.protocol()), meld.SEED).join(table, on="utterance")
    for (_,), outer in splits.partition_by("outer", as_dict=True).items():
        places = outer.group_by("dialogue").agg(pl.struct("role", "fold").n_unique().alias("places"), pl.col("split").first())
        assert set(places["places"]) == {1}
        assert outer.filter(pl.col("split") == "train")["role"].to_list() == ["pool"] * 300
        assert outer.filter(pl.col("split") == "train")["fold"].null_count() == 300
        assert outer.filter((pl.col("split") == "dev") & (pl.col("role") == "pool"))["fold"].drop_nulls().n_unique() == meld_data.INNER
    tested = splits.filter(pl.col("role") == "test")
    assert sorted(tested["utterance"]) == sorted(table.filter(pl.col("split") == "dev")["utterance"])


def test_shuffling_moves_every_voice_and_loses_none() -> None:
    table = np.arange(40.0).reshape(20, 2)
    mixed = meld_data.shuffled(table)
    assert (mixed != table).any(axis=1).all()
    assert sorted(mixed[:, 0]) == table[:, 0].tolist()
    assert (mixed[:, 1] - mixed[:, 0] == 1).all()
    np.testing.assert_array_equal(mixed, meld_data.shuffled(table))


def test_a_table_of_voices_is_read_as_it_was_written(tmp_path: Path) -> None:
    from raysere.features.backbone import Item
    from raysere.features.backbones import open_backbone

    ids, table = np.array(["dev_dia1_utt0", "dev_dia0_utt3"]), np.arange(6, dtype=np.float32).reshape(2, 3)
    backbone = open_backbone(f"table:{meld_data.write_table(tmp_path / 'voice.npz', ids, table)}")
    rows = backbone.encode([Item("meld/dev_dia0_utt3"), Item("meld/dev_dia1_utt0")], [0])
    np.testing.assert_array_equal(np.concatenate([one[0] for one in rows]), table[::-1])
    meld_data.write_table(tmp_path / "voice.npz", ids, table + 1)  # it stands: features are named by its bytes
    with np.load(tmp_path / "voice.npz") as kept:
        np.testing.assert_array_equal(kept["vectors"], table)


def test_voices_stand_beside_their_utterances() -> None:
    found = meld_baselines.voices(["meld/b", "meld/c", "meld/a"], np.array(["a", "b"]), np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(found, [[3, 4], [np.nan, np.nan], [1, 2]])


def test_words_are_trained_on_the_training_split_too_and_voice_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.linear_model

    seen: list[int] = []

    class Spy(sklearn.linear_model.LogisticRegression):
        def fit(self, x: Any, y: Any) -> Any:
            seen.append(len(y))
            return super().fit(x, y)

    monkeypatch.setattr(sklearn.linear_model, "LogisticRegression", Spy)
    label = np.tile([0, 1], 15)
    texts = ["so sad" if one else "what joy" for one in label]
    x = label[:, None] + np.zeros((30, 2))
    x[3] = np.nan
    train, test = np.arange(10), np.array([12, 13, 14])
    words = meld_baselines.Logistic(label, 2, (1.0,), texts=texts, always=np.arange(20, 30))
    assert next(words.scores(train, test))[1].argmax(axis=1).tolist() == label[test].tolist()
    voice = meld_baselines.Logistic(label, 2, (1.0,), x=x)
    found = next(voice.scores(train, np.array([3, 12, 13])))[1]
    assert seen == [20, 9]
    np.testing.assert_allclose(found[0], np.log([5 / 9, 4 / 9]))
    assert found[1:].argmax(axis=1).tolist() == [0, 1]


def test_an_utterance_without_voice_is_answered_by_its_words() -> None:
    words, voice = np.log([[0.9, 0.1], [0.6, 0.4]]), np.log([[0.2, 0.8], [0.2, 0.8]])
    both = meld_baselines.fuse(Scored(words, words[None], []), Scored(voice, voice[None], []), np.array([True, False]))
    np.testing.assert_allclose(np.exp(both.test), [[0.55, 0.45], [0.6, 0.4]])


def test_rows_of_the_corpus_and_of_the_runs_are_joined_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raysere.corpora.manifest import Manifest, rows_to_table
    from raysere.ensemble.data.run_labels import Run

    lines = [("train_1", "train", "a"), ("dev_2", "dev", "b"), ("dev_1", "dev", "a"), ("train_2", "train", "b"), ("test_1", "test", "a")]
    rows = [
        {"utterance": f"meld/{name}", "corpus": "meld", "language": "en", "speaker": "meld/joey", "split": split, "emotion": emotion}
        | {"dialogue": f"meld/d_{name}", "transcript": f"words of {name}"}
        for name, split, emotion in lines
    ]
    manifest = Manifest.checked(rows_to_table(rows), roots={"meld": "meld"})
    schema = {"outer": pl.Int32, "utterance": pl.String, "role": pl.String, "fold": pl.Int32}
    cells = [("meld/dev_1", "test", None), ("meld/dev_2", "pool", 0), ("meld/train_1", "pool", None), ("meld/train_2", "pool", None)]
    swap = {"meld/dev_1": ("pool", 1), "meld/dev_2": ("test", None)}
    table = [(0, *cell) for cell in cells] + [(1, name, *swap.get(name, (role, fold))) for name, role, fold in cells]
    opened = SimpleNamespace(
        manifest=manifest,
        splits=pl.DataFrame(table, schema=schema, orient="row"),
        outers=[0, 1],
        task=SimpleNamespace(classes=("a", "b")),
        settings={"class_map": {"name": "toy", "classes": ["a", "b"], "rules": {"a": "a", "b": "b"}}},
    )
    monkeypatch.setattr(Run, "open", lambda folder: opened)
    data, label, texts = meld.data_of(tmp_path)
    assert data.utterances == ["meld/dev_1", "meld/dev_2"]
    assert data.label.tolist() == [0, 1]
    assert label.tolist() == [0, 1, 0, 1]
    assert texts == ["words of dev_1", "words of dev_2", "words of train_1", "words of train_2"]
    assert data.outer.tolist() == [0, 1]
    assert data.inner.tolist() == [[-1, 0], [1, -1]]
    assert data.speaker.tolist() == ["meld/d_dev_1", "meld/d_dev_2"]


def test_the_page_says_what_is_ahead_and_whether_the_check_holds() -> None:
    value = {"value": 0.4, "low": 0.35, "high": 0.45}
    row = {"maker": "raysere", "macro_f1": value, "uar": value, "weighted_f1": value}
    result = {
        "rows": [
            {**row, "system": "both:ensemble"},
            {**row, "system": "both:average"},
            {**row, "system": "tfidf", "maker": "scikit-learn"},
        ],
        "differences": {"both:average": {"value": 0.02, "low": 0.01, "high": 0.03, "error": 0.005}},
        "shuffled": {
            "text:ensemble": {"value": -0.02, "low": -0.03, "high": 0.0, "error": 0.01},
            "text:best_single": {"value": -0.005, "low": -0.03, "high": 0.02, "error": 0.01},
        },
        "claim": "It is so.",
        "classes": {"anger": 3, "joy": 4},
        "by_class": {"anger": {"recall": 0.5, "precision": None, "f1": 0.4}, "joy": {"recall": 0.5, "precision": 0.5, "f1": 0.5}},
        "chosen": {"both": ["greedy", "average"], "text": ["average", "average"]},
        "modalities": [{"audio": 1, "text": 2}],
        "optimism": {"in_sample": 0.5, "value": 0.1},
        "ece": 0.05,
        "utterances": 7,
        "dialogues": 3,
        "speakers": 2,
        "trials": meld_data.TRIALS,
        "folds": [5, 4],
    }
    page = draw(result)
    assert "| plain average | .400 [.350, .450] | .400 | .400 | +.020 [+.010, +.030] |" in page
    assert "| the text ensemble | -.020 [-.030, .000] | .010 | **no**: 2.0 s.e. below |" in page.replace("+.000", ".000")
    assert "| the best text member | -.005 [-.030, +.020] | .010 | yes |" in page
    assert "It is so." in page


def test_baselines_are_kept_apart_from_tables_of_features(monkeypatch, tmp_path):
    """Both are called ``voice``."""
    monkeypatch.setenv("RAYSERE_BENCH_CACHE", str(tmp_path))
    from benchmarks.accuracy.data import folder
    from benchmarks.accuracy.meld_baselines import SYSTEMS, path_of

    assert all(path_of(system).parent != folder("meld") for system in SYSTEMS)
