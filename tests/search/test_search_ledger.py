"""Studies, the ledger and the leaderboard on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from toy import toy_study

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.base.files import atomic_folder, read_json, write_json
from raysere.search.leaderboard import leaderboard
from raysere.search.ledger import Ledger, Record, write_head
from raysere.search.study import Asha, StudySpec, read_study, save_study
from raysere.search.trial import head


def put(
    ledger: Ledger,
    study: StudySpec,
    number: int,
    params: dict,
    *,
    status: str = "done",
    score: float | None = 0.5,
    attempt: str = "a",
    error: str | None = None,
    tensors: bytes | None = None,
) -> Record:
    job = {"trial": study.trial_id(0, number), "outer": 0, "number": number, "params": params, "config": study.config_hash(params)}
    staged = ledger.staged_path(job["trial"], attempt, 3)
    with atomic_folder(staged) as folder:
        write_head(folder, head(study, job))
        pl.DataFrame({"epoch": [0, 1, 2], "score": [0.1, 0.5, 0.4]}).write_parquet(folder / "metrics.parquet")
        if status in ("done", "stopped"):
            pl.DataFrame({"utterance": ["u"], "fold": [0], "split": ["dev"]}).write_parquet(folder / "predictions.parquet")
        if tensors is not None:
            (folder / "model.safetensors").write_bytes(tensors)
    ledger.finalise(
        job["trial"],
        staged,
        {
            "status": status,
            "score": score,
            "epoch": 1,
            "epochs": 3,
            "seconds": 2.0,
            "error": error,
            "metrics": {"uar": score or 0.0},
            "describe": {},
            "twin_of": None,
        },
    )
    return ledger.read(job["trial"])


def test_ids_and_seeds() -> None:
    flat, nested = toy_study("a"), toy_study("a", outer=(0, 3))
    assert flat.trial_id(0, 7) == "a-0007"
    assert nested.trial_id(3, 7) == "a-o03-0007"
    assert flat.lanes == (0,)
    assert nested.lanes == (0, 3)
    params = {"lr": 0.1}
    assert flat.config_hash(params) == nested.config_hash(dict(params)) != flat.config_hash({"lr": 0.2})
    assert flat.trial_seed(0, "x") != flat.trial_seed(1, "x")
    assert flat.trial_seed(0, "x") == flat.trial_seed(0, "x")
    assert toy_study("a", seed=1).trial_seed(0, "x") != flat.trial_seed(0, "x")


@pytest.mark.parametrize(
    ("asha", "epochs", "rungs"),
    [
        (None, 30, []),
        (Asha(grace=1, reduction=3), 30, [1, 3, 9, 27]),
        (Asha(grace=5, reduction=3), 30, [5, 15]),
        (Asha(grace=5, reduction=3), 5, []),
        (Asha(grace=3, reduction=3), 27, [3, 9]),
        (Asha(grace=3, reduction=2), 1, []),
    ],
)
def test_rungs(asha: Asha | None, epochs: int, rungs: list[int]) -> None:
    assert toy_study(asha=asha).rungs(epochs) == rungs


def test_a_study_may_only_grow(tmp_path: Path) -> None:
    save_study(tmp_path, toy_study(trials=5))
    save_study(tmp_path, toy_study(trials=9, threads=2))
    assert read_study(tmp_path, "toy").trials == 9
    with pytest.raises(ConfigError, match="was started with another asha, seed"):
        save_study(tmp_path, toy_study(trials=9, seed=3, asha=Asha()))
    assert read_study(tmp_path, "toy").seed == 0


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    params = {"lr": 1e-5, "hidden": 8, "layers": "one", "flag": True, "nothing": None, "list": [1, 2], "tiny": 1.2345678901234567e-7}
    record = put(ledger, study, 3, params)
    again = Ledger(tmp_path).read("toy-0003")
    assert again == record
    assert again.params == params
    assert [type(value) for value in again.params.values()] == [type(value) for value in params.values()]
    assert again.scored
    assert again.predictions()["utterance"].to_list() == ["u"]
    assert again.rows()["score"].to_list() == [0.1, 0.5, 0.4]
    assert not list(tmp_path.glob("trials/.*"))


def test_a_record_needs_only_done_and_older_ones_only_params_yaml(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    record = put(ledger, study, 0, {"lr": 1e-5, "layers": "one", "list": [1, "x"]})
    held = (record.folder / "params.yaml").read_text()
    (record.folder / "params.yaml").unlink()
    assert ledger.read(record.trial) == record
    (record.folder / "params.yaml").write_text(held)
    done = read_json(record.folder / "DONE")
    del done["head"]
    write_json(record.folder / "DONE", done)  # as an earlier version wrote it
    assert ledger.trials() == [record]
    (record.folder / "params.yaml").unlink()
    with pytest.raises(MissingFileError, match=r"params\.yaml"):
        ledger.trials()


def test_a_head_that_json_cannot_hold_stays_in_params_yaml(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    staged = ledger.staged_path("toy-0000", "a", 0)
    job = {"trial": "toy-0000", "outer": 0, "number": 0, "params": {"lr": 0.1}, "config": "c"}
    with atomic_folder(staged) as folder:
        write_head(folder, {**head(study, job), "resolved": {"clip": float("inf")}})
    ledger.finalise("toy-0000", staged, {"status": "done", "score": 0.5})
    record = ledger.read("toy-0000")
    assert record.resolved == {"clip": float("inf")}
    assert "head" not in read_json(record.folder / "DONE")


def test_what_is_not_whole_is_not_there(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    put(ledger, study, 0, {"lr": 0.1})
    (tmp_path / "trials" / "toy-0001").mkdir()  # a torn copy
    (tmp_path / "trials" / ".toy-0002.a.00001.partial").mkdir()
    assert [record.trial for record in ledger.trials()] == ["toy-0000"]
    ledger.sweep()
    assert not list(tmp_path.glob("trials/.toy-0002*"))
    assert put(ledger, study, 1, {"lr": 0.2}).trial == "toy-0001"  # the torn one gives way


def test_a_finished_trial_is_never_replaced(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    put(ledger, study, 0, {"lr": 0.1}, score=0.5)
    before = (tmp_path / "trials/toy-0000/DONE").stat()
    assert put(ledger, study, 0, {"lr": 0.1}, score=0.9, attempt="b").score == 0.5
    after = (tmp_path / "trials/toy-0000/DONE").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert not list(tmp_path.glob("trials/.*"))


def test_a_twin_is_a_copy_under_its_own_name(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    first = put(ledger, study, 0, {"lr": 0.1})
    job = {"trial": "toy-0004", "outer": 0, "number": 4, "params": {"lr": 0.1}, "config": first.config}
    twin = ledger.copy(first, head(study, job), "b")
    assert (twin.twin_of, twin.number, twin.score, twin.seconds) == ("toy-0000", 4, 0.5, 0.0)
    assert twin.predictions().equals(first.predictions())
    assert Ledger(tmp_path).read("toy-0004") == twin  # not the head of its twin
    assert ledger.copy(twin, head(study, {**job, "trial": "toy-0005", "number": 5}), "c").twin_of == "toy-0000"


def test_foreign_folders_say_what_they_lack(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    record = put(ledger, study, 0, {"lr": 0.1})
    write_json(record.folder / "DONE", {**read_json(record.folder / "DONE"), "status": "fine"})
    with pytest.raises(DataError, match="unknown status 'fine'.*done, stopped, infeasible, error"):
        ledger.trials()
    write_json(record.folder / "DONE", {"status": "done"})
    with pytest.raises(DataError, match="lacks 'score'"):
        ledger.trials()
    with pytest.raises(MissingFileError, match="has no predictions"):
        put(ledger, study, 1, {"lr": 0.2}, status="infeasible", score=None).predictions()


def test_errors_can_be_forgotten(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    put(ledger, study, 0, {"lr": 0.1})
    put(ledger, study, 1, {"lr": 0.2}, status="error", score=None)
    put(ledger, study, 2, {"lr": 0.3}, status="infeasible", score=None)
    assert ledger.forget_errors({"other"}) == 0
    assert ledger.forget_errors({"toy"}) == 1
    assert ledger.ids() == ["toy-0000", "toy-0002"]
    assert not list(tmp_path.glob("trials/.*"))


def test_leaderboard_order_and_columns(tmp_path: Path) -> None:
    study, ledger = toy_study(), Ledger(tmp_path)
    save_study(tmp_path, study)
    put(ledger, study, 0, {"lr": 0.1, "layers": "one", "layer": 1, "mixed": "all"}, score=0.5)
    put(ledger, study, 1, {"lr": 0.2, "layers": "mix", "mixed": [1, 2]}, score=0.7, status="stopped")
    put(ledger, study, 2, {"lr": 0.3, "layers": "mix", "mixed": 3}, score=None, status="error", error="Traceback\n  line\nValueError: no")
    put(ledger, study, 3, {"lr": 1, "layers": "mix"}, score=None, status="infeasible", error="Too wide.\nmore")
    put(ledger, study, 4, {"lr": 0.4, "layers": "mix"}, score=0.7)
    board = leaderboard(tmp_path)
    assert board["trial"].to_list() == ["toy-0004", "toy-0001", "toy-0000", "toy-0003", "toy-0002"]
    assert board["score"].to_list() == [0.7, 0.7, 0.5, None, None]
    assert board["params.layer"].to_list() == [None, None, 1, None, None]
    assert board["params.lr"].dtype == pl.Float64
    assert board["params.mixed"].to_list() == [None, "[1,2]", "all", None, "3"]
    assert board["error"].to_list() == [None, None, None, "Too wide.", "ValueError: no"]
    assert set(board["metric"]) == {"uar"}
    assert pl.read_parquet(tmp_path / "leaderboard.parquet").equals(board)


def test_reading_a_run_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    study = toy_study()
    save_study(tmp_path, study)
    put(Ledger(tmp_path), study, 0, {"lr": 0.1})
    code = (
        "import sys, raysere.cli.main, raysere.cli.text, raysere.pipeline.stages; from raysere.search.leaderboard import leaderboard;"
        f"assert leaderboard({str(tmp_path)!r}).height == 1;"
        "sys.exit(' '.join({'torch', 'ray', 'pandas', 'optuna', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not found.stderr.strip(), found.stderr


def test_an_empty_run_has_an_empty_leaderboard(tmp_path: Path) -> None:
    board = leaderboard(tmp_path, write=False)
    assert board.height == 0
    assert {"trial", "space", "method", "modality", "status", "score", "metric", "epochs", "seconds"} <= set(board.columns)


def test_study_json_names_its_format(tmp_path: Path) -> None:
    save_study(tmp_path, toy_study())
    raw = json.loads((tmp_path / "search/toy/study.json").read_text())
    assert raw["format"] == "raysere.study/1"
    write_json(tmp_path / "search/toy/study.json", {**raw, "format": "raysere.study/9"})
    with pytest.raises(ConfigError, match="not a study"):
        read_study(tmp_path, "toy")
