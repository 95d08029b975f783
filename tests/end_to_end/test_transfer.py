"""From two corpora to figures on the second one, of which no label is read: as a user runs it."""

import json

import polars as pl
import pytest
import yaml

from raysere.base.cluster import start_ray, stop_ray
from raysere.base.errors import ConfigError, DataError
from raysere.pipeline.experiment import load_experiment
from raysere.pipeline.prepare import prepare
from raysere.pipeline.stages import run_experiment
from tests.end_to_end.toy import CLASSES, make_corpus

SMALL = {"hidden": 16, "epochs": 4, "batch": 16}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return {name: make_corpus(folder / name, speakers=count, text=False) for name, count in (("here", 3), ("there", 4))}


def experiment(folder, tables, name="transfer", **changes):
    quantized = {**SMALL, "width": 8, "codes": 8, "warmup_epochs": 1}
    value = {
        "name": name,
        "corpora": [{"corpus": "table", "path": str(path), "options": {"name": name}} for name, path in tables.items()],
        "task": {"classes": list(CLASSES)},
        "protocol": {"kind": "transfer", "source": ["here"], "target": ["there"], "folds": 3, "outer": 2},
        "features": {"acoustic": {"backbone": "acoustic"}},
        "search": [
            {"space": "adaptation", "features": "acoustic", "trials": 2, "fixed": SMALL},
            {"space": "quantized_codebook", "features": "acoustic", "trials": 1, "fixed": quantized},
        ],
        "trial": {"concurrent": 1},
        "ensemble": {"draws": 200, "bags": 2},
        "runs": str(folder / "runs"),
        "store": str(folder / "features"),
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(value))
    return load_experiment(path)


def with_other_labels(table):
    """The same clips, whose labels are moved on by one class."""
    other = table.with_name("turned.csv")
    frame = pl.read_csv(table)
    turned = frame["emotion"].replace_strict({name: CLASSES[(k + 1) % 3] for k, name in enumerate(CLASSES)})
    frame.with_columns(emotion=turned).write_csv(other)
    return other


def test_labels_of_the_target_change_no_byte_of_a_trial(tables, tmp_path):
    start_ray()
    try:
        first = run_experiment(experiment(tmp_path, tables), until="evaluate").run
        turned = {"here": tables["here"], "there": with_other_labels(tables["there"])}
        (tmp_path / "other").mkdir()
        second = run_experiment(experiment(tmp_path / "other", turned), until="evaluate").run
    finally:
        stop_ray()
    trials = sorted(path.name for path in (first / "trials").iterdir() if (path / "DONE").is_file())
    assert len(trials) == 6
    for trial in trials:
        for name in ("model.safetensors", "predictions.parquet"):
            assert (first / "trials" / trial / name).read_bytes() == (second / "trials" / trial / name).read_bytes(), (trial, name)
    told = [json.loads((run / "evaluation.json").read_text()) for run in (first, second)]
    assert [part["classes"]["chosen"] for part in told[0]["families"]] == [part["classes"]["chosen"] for part in told[1]["families"]]
    assert told[0]["members"] == told[1]["members"]
    assert told[0]["ensemble"]["value"] != told[1]["ensemble"]["value"], "only the figures know the labels"
    assert told[0]["n_utterances"] == 4 * 3 * 4, "each clip of the target is answered once"
    assert any("Transfer from here to there" in note for note in told[0]["notes"])
    splits = pl.read_parquet(first / "splits.parquet")
    assert set(splits["role"]) == {"pool", "adapt", "test"}
    board = pl.read_parquet(first / "leaderboard.parquet")
    assert set(board["status"]) == {"done"}


def test_what_cannot_be_transferred(tables, tmp_path):
    with pytest.raises(DataError, match="no corpus 'nowhere'"):
        prepare(experiment(tmp_path, tables, "a", protocol={"kind": "transfer", "source": ["here"], "target": ["nowhere"]}))
    with pytest.raises(ConfigError, match="unlabelled clips of a target"):
        prepare(experiment(tmp_path, tables, "b", protocol={"kind": "out_of_fold", "folds": 3}))


def test_transductive_runs_adapt_to_what_they_test(tables, tmp_path):
    protocol = {"kind": "transfer", "source": ["here"], "target": ["there"], "folds": 3, "transductive": True}
    prepared = prepare(experiment(tmp_path, tables, "c", protocol=protocol))
    assert set(prepared.splits["role"]) == {"pool", "test"}
    assert prepared.splits["outer"].n_unique() == 1
    assert all(study.transductive for study in prepared.studies)
