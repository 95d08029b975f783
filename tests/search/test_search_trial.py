"""A trial in a worker, without Ray: rungs, staging, and what is a fault of whom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors import safe_open
from toy import CLASSES, SPEC, toy_run, toy_study

from raysere.base.errors import EnvironmentFault, InfeasibleTrial
from raysere.base.files import read_json, read_yaml
from raysere.methods.pooled import Pooled
from raysere.search.board import _rebuilt
from raysere.search.study import Asha, StudySpec, save_study
from raysere.search.trial import OUTCOME, TrialCache, TrialRun, plain
from raysere.training.loop import Trainer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("run"), outers=2)


def trial(run_dir: Path, study: StudySpec, *, attempt: str = "a", workshop: TrialCache | None = None, outer: int = 0, **params) -> TrialRun:
    save_study(run_dir, study)
    params = {**study.parsed_space().default_config(), **params}
    job = {
        "study": study.name,
        "outer": outer,
        "number": 0,
        "trial": study.trial_id(outer, 0),
        "params": params,
        "config": study.config_hash(params),
        "attempt": attempt,
        "stamp": "s",
        "cpu": 1.0,
        "gpu": 0.0,
    }
    return TrialRun(run_dir, job, workshop or TrialCache())


def folder_of(outcome: dict) -> Path:
    return Path(outcome["staged"])


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_are_computed_in_the_precision_of_the_study(run_dir: Path, precision: str, dtype: torch.dtype) -> None:
    run = trial(run_dir, toy_study(f"in-{precision}", outer=(0, 1), precision=precision))
    assert run.advance()["status"] == "done"
    assert run.trainer.folds[0].context.dtype == dtype


def test_it_stops_at_each_rung_and_stages_everything(run_dir: Path) -> None:
    run = trial(run_dir, toy_study("rungs", outer=(0, 1), asha=Asha(grace=1, reduction=2)), outer=1)
    epochs, statuses, folders = [], [], []
    while not statuses or statuses[-1] == "running":
        outcome = run.advance()
        epochs.append(outcome["epoch"])
        statuses.append(outcome["status"])
        folders.append(folder_of(outcome))
        done = read_json(folders[-1] / OUTCOME)
        rows = pl.read_parquet(folders[-1] / "metrics.parquet")
        assert rows["epoch"].to_list() == list(range(outcome["epoch"]))
        assert done["epochs"] == outcome["epoch"]
        assert done["score"] == outcome["score"] == rows["score"].max() == rows["score"][done["epoch"]]
    assert epochs == [1, 2, 4, 6]
    assert statuses == ["running"] * 3 + ["done"]
    assert [folder.exists() for folder in folders] == [False, False, False, True]  # one staged folder at a time
    last = folders[-1]
    head = read_yaml(last / "params.yaml")
    assert {key: head[key] for key in ("format", "trial", "study", "space", "method", "features", "modality", "outer", "number")} == {
        "format": "raysere.trial/1",
        "trial": "rungs-o01-0000",
        "study": "rungs",
        "space": "toy",
        "method": "pooled",
        "features": ["words"],
        "modality": "text",
        "outer": 1,
        "number": 0,
    }
    assert head["params"]["hidden"] == 16
    assert "layer" not in head["params"]
    assert Pooled.Params(**head["resolved"]) == Pooled.Params(**head["params"])
    predictions = pl.read_parquet(last / "predictions.parquet")
    assert set(predictions["split"]) == {"dev", "test"}
    assert predictions.columns[:3] == ["utterance", "fold", "split"]
    assert predictions["utterance"].is_unique().all()
    assert len(predictions) == 72
    assert predictions.select([f"p.{name}" for name in CLASSES]).sum_horizontal().to_numpy() == pytest.approx(1, abs=1e-5)
    assert not {"emotion", "label"} & set(predictions.columns)
    with safe_open(last / "model.safetensors", "pt") as tensors:
        assert any(name.startswith("fold0.") for name in tensors.keys())  # noqa: SIM118
        assert json.loads(tensors.metadata()["raysere"])["trial"] == "rungs-o01-0000"
    assert done["metrics"]["uar"] == done["score"]
    assert done["describe"]["folds"] == 2
    assert done["seconds"] > 0
    assert done["memory"]["resident"] > 50e6  # torch alone takes more
    rows = pl.read_parquet(last / "metrics.parquet")
    assert rows.schema["layer_weights.words"] == pl.List(pl.Float64)
    assert rows["layer_weights.words"].list.sum().to_list() == pytest.approx([1.0] * 6, abs=1e-5)


def test_the_same_trial_twice_is_the_same_to_the_last_bit(run_dir: Path) -> None:
    workshop = TrialCache()
    first = trial(run_dir, toy_study("twice"), workshop=workshop).advance()
    other = trial(run_dir, toy_study("twice"), workshop=workshop, attempt="between", hidden=8).advance()
    again = trial(run_dir, toy_study("twice"), workshop=workshop, attempt="b").advance()
    tables = [pl.read_parquet(folder_of(outcome) / "predictions.parquet") for outcome in (first, again, other)]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_max_epochs_is_the_upper_limit(run_dir: Path) -> None:
    outcome = trial(run_dir, toy_study("short", max_epochs=2)).advance()
    assert outcome["status"] == "done"
    assert outcome["epoch"] == 2
    assert read_yaml(folder_of(outcome) / "params.yaml")["resolved"]["epochs"] == 2


def test_threads_are_set_in_a_process_that_had_others(run_dir: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        trial(run_dir, toy_study("threads", threads=1)).advance()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"layers": "one", "layer": 9}, "have no layer 9"),
        ({"pooling": "attentive"}, "Attentive pooling needs"),
        ({"dropout": 3.0}, "exclude each other"),
    ],
)
def test_what_this_configuration_cannot_do_is_infeasible(run_dir: Path, params: dict, reason: str) -> None:
    outcome = trial(run_dir, toy_study("infeasible"), **params).advance()
    assert outcome["status"] == "infeasible"
    assert outcome["score"] == 0.0
    assert reason in outcome["error"]
    done = read_json(folder_of(outcome) / OUTCOME)
    assert done["score"] is None
    assert reason in done["error"]
    assert sorted(path.name for path in folder_of(outcome).iterdir()) == ["metrics.parquet", OUTCOME, "params.yaml"]


@pytest.mark.parametrize(
    ("fault", "status", "part"),
    [
        (InfeasibleTrial("Too large"), "infeasible", "Too large"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "infeasible", "Out of memory"),
        (MemoryError(), "infeasible", "emory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "infeasible", "memory"),
        (RuntimeError("shapes do not match"), "error", "RuntimeError: shapes do not match"),
        (ZeroDivisionError("x"), "error", "Traceback (most recent call last)"),
    ],
)
def test_faults_in_training(run_dir: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, status: str, part: str) -> None:
    epoch = Trainer.epoch

    def fails_later(self: Trainer) -> dict:
        if len(self.rows) == 2:
            raise fault
        return epoch(self)

    monkeypatch.setattr(Trainer, "epoch", fails_later)
    outcome = trial(run_dir, toy_study("faults")).advance()
    assert (outcome["status"], outcome["epoch"]) == (status, 2)
    assert part in outcome["error"]
    assert not (folder_of(outcome) / "predictions.parquet").exists()
    assert len(pl.read_parquet(folder_of(outcome) / "metrics.parquet")) in (
        0,
        2,
    )
    assert outcome["score"] == 0.0  # the sampler is told the penalty, never the half-trained score


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError(24, "Too many open files", "/data/x"), r"Too many files are open\. Where: /data/x"),
        (PermissionError(13, "Permission denied", "/data/x"), r"No permission to read or write\. Where: /data/x"),
        (OSError(12, "Cannot allocate memory"), "memory of this machine is used up"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk is full"),
    ],
)
def test_faults_of_the_machine_in_training_end_the_search(run_dir: Path, monkeypatch: pytest.MonkeyPatch, fault, words: str) -> None:
    monkeypatch.setattr(Trainer, "epoch", lambda self: (_ for _ in ()).throw(fault))
    outcome = trial(run_dir, toy_study("machine")).advance()
    assert (outcome["status"], outcome["staged"]) == ("fatal", "")
    with pytest.raises(EnvironmentFault, match=words):
        raise _rebuilt(json.loads(outcome["error"]))


def test_a_full_disk_ends_the_search(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise EnvironmentFault("The disk is full", where="/data", remedy="Free space.")

    monkeypatch.setattr("raysere.search.trial.atomic_folder", full)
    outcome = trial(run_dir, toy_study("full")).advance()
    assert outcome["status"] == "fatal"
    error = _rebuilt(json.loads(outcome["error"]))
    assert type(error) is EnvironmentFault
    assert str(error) == "The disk is full. Where: /data. Free space."


def test_missing_features_are_nobodys_configuration(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "features" / SPEC.key)
    outcome = trial(copy, toy_study("gone")).advance()
    assert outcome["status"] == "fatal"
    assert "MissingFileError" in outcome["error"]
    assert not list(copy.glob("trials/*gone*"))


def test_the_workshop_reads_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raysere.corpora.manifest import Manifest

    reads: list[object] = []
    read = Manifest.read
    monkeypatch.setattr(Manifest, "read", classmethod(lambda cls, path: reads.append(path) or read(path)))
    workshop, study = TrialCache(), toy_study("cache", outer=(0, 1))
    runs = [trial(run_dir, study, workshop=workshop, outer=outer, attempt=str(number)) for number, outer in enumerate((0, 1, 0))]
    for run in runs:
        run.advance()
    assert len(reads) == 1
    data = [workshop.data(run_dir, study, outer) for outer in (0, 1, 0)]
    assert data[0] is data[2]
    assert data[0] is not data[1]
    assert data[0].features["words"] is data[1].features["words"]
    other = workshop.data(run_dir, study.model_copy(update={"transductive": not study.transductive}), 0)
    assert other is not data[0], "another protocol, other rows"


def test_plain_values_are_json() -> None:
    import numpy as np

    value = plain({"a": np.float32(0.5), "b": [np.int64(3), float("nan")], 3: (torch.tensor([1.0, 2.0]),), "d": Path("x")})
    assert json.loads(json.dumps(value, allow_nan=False)) == {"a": 0.5, "b": [3, None], "3": [[1.0, 2.0]], "d": "x"}
