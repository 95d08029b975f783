"""A run, a feature store and an ensemble that version 0.1 wrote still open (``tests/assets/0.1``,
made from tones).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

import raysere

OLD = Path(__file__).resolve().parents[1] / "assets" / "0.1"


@pytest.fixture
def old(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def test_an_old_run_goes_on_without_any_work(old):
    store, trials = _files(old / "features"), _files(old / "runs" / "toy" / "trials")
    assert len(trials) >= 9
    done = raysere.run("toy.yaml", quiet=True)
    kept = _files(old / "features")
    assert {path: kept.get(path) for path in store if path.suffix == ".npy"} == {
        path: at for path, at in store.items() if path.suffix == ".npy"
    }
    assert {path.parent for path in kept if path.suffix == ".npy"} == {path.parent for path in store if path.suffix == ".npy"}
    assert _files(old / "runs" / "toy" / "trials") == trials
    assert done.evaluation == json.loads((OLD / "runs/toy/evaluation.json").read_text())


def test_an_old_run_has_a_leaderboard_and_is_evaluated_anew(old):
    table = raysere.leaderboard("runs/toy")
    assert table.height == 3
    assert table["score"].is_not_null().all()
    before = json.loads((OLD / "runs/toy/evaluation.json").read_text())
    again = raysere.evaluate("runs/toy")
    assert again.keys() == before.keys()
    for name in ("ensemble", "best_single", "average", "majority_vote"):
        assert again[name]["value"] == pytest.approx(before[name]["value"], abs=0.12), name  # a clip or so, on another processor
    assert Path(raysere.write_report("runs/toy")).is_file()


def test_an_old_ensemble_answers_as_it_did(old):
    before = json.loads((OLD / "answers.json").read_text())
    ensemble = raysere.Ensemble.load("runs/toy/ensemble")
    found = ensemble.predict(["corpus/s0_anger_0.flac", "corpus/s1_sadness_1.flac"], texts=["stop it now 0", "i miss you so 1"])
    assert isinstance(found, pl.DataFrame)
    for row, told in zip(found.to_dicts(), before, strict=True):
        assert row["predicted"] == told["predicted"]
        for name in ("anger", "neutral", "sadness"):
            assert row[f"p.{name}"] == pytest.approx(told[f"p.{name}"], abs=1e-3)
