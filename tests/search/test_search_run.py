"""The search end to end: real Ray, Tune, Optuna, the real loop; kills, resumption, faults."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from drive import studies
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import SPACE, SPEC, toy_run, toy_study

from raysere.base.errors import ConfigError, EnvironmentFault, RaysereError
from raysere.search.leaderboard import leaderboard
from raysere.search.ledger import Ledger
from raysere.search.tuner import capacity, run_search
from tests.small_disk import small_disk

pytestmark = pytest.mark.usefixtures("local_ray")
TRIALS, EPOCHS = 4, 12


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """One trial at a time, never killed."""
    run_dir = toy_run(tmp_path_factory.mktemp("whole") / "run", outers=2)
    run_search(run_dir, studies(TRIALS, EPOCHS), max_concurrent=1)
    return run_dir


def stamps(run_dir: Path) -> dict[str, tuple[int, int]]:
    """What changes when a trial is written again."""
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in run_dir.glob("trials/*/DONE")}


def comparable(board: pl.DataFrame) -> pl.DataFrame:
    return board.drop("seconds").sort("trial")


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    """Poll a fact; the limit only keeps a broken test from hanging."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the awaited fact never came true"
        time.sleep(0.02)


def test_a_whole_search(uninterrupted: Path) -> None:
    board = pl.read_parquet(uninterrupted / "leaderboard.parquet")
    assert sorted(board["trial"].to_list()) == sorted(
        [f"flat-{n:04d}" for n in range(TRIALS)] + [f"nested-o{o:02d}-{n:04d}" for o in (0, 1) for n in range(TRIALS)]
    )
    assert set(board["status"]) == {"done", "stopped"}  # successive halving did its work
    assert board["score"].to_list() == sorted(board["score"].to_list(), reverse=True)
    assert board["score"].max() > 0.5
    stopped = board.filter(pl.col("status") == "stopped")
    assert stopped["epochs"].is_in([2, 4, 8]).all()
    assert set(board.filter(pl.col("status") == "done")["epochs"]) == {EPOCHS}
    first = {record.trial: record.params for record in Ledger(uninterrupted).trials() if record.number == 0}
    assert set(map(str, first.values())) == {str(studies(TRIALS, EPOCHS)[0].parsed_space().default_config())}
    for trial, study in zip(board["trial"], board["study"], strict=True):
        events = EventAccumulator(str(uninterrupted / "search" / study / trial))
        events.Reload()
        assert len(events.Scalars("dev/score")) == board.filter(pl.col("trial") == trial)["epochs"][0]
    assert not [path for path in (uninterrupted / "trials").iterdir() if path.name.startswith(".")]


def test_again_does_nothing(uninterrupted: Path) -> None:
    before = stamps(uninterrupted)
    summary = run_search(uninterrupted, studies(TRIALS, EPOCHS), max_concurrent=1)
    assert (summary.ran, summary.copied, summary.resumed, summary.trials) == (0, 0, 12, 12)
    assert stamps(uninterrupted) == before
    assert set(summary.best) == {"flat", "nested"}
    assert summary.statuses.keys() == {"done", "stopped"}


def test_a_killed_driver_goes_on_as_if_nothing_had_happened(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = toy_run(tmp_path / "run", outers=2)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "drive.py"), str(run_dir), "1", str(TRIALS), str(EPOCHS)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(stamps(run_dir)) >= 4 or driver.poll() is not None)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = stamps(run_dir)
    assert 4 <= len(before) < 12, "the kill came too late to test anything"
    (run_dir / "trials" / ".flat-0003.orphan.00002.partial").mkdir()  # what an orphaned worker leaves
    run_search(run_dir, studies(TRIALS, EPOCHS), max_concurrent=1)
    after = stamps(run_dir)
    assert {trial: after[trial] for trial in before} == before  # no finished trial ran again
    assert len(after) == 12
    assert not list(run_dir.glob("trials/.*"))
    assert comparable(leaderboard(run_dir)).equals(comparable(leaderboard(uninterrupted)))
    for trial in after:
        ours, theirs = (Ledger(folder).read(trial).predictions() for folder in (run_dir, uninterrupted))
        assert ours.equals(theirs), trial
    assert all((run_dir / "search" / record.study / record.trial).is_dir() for record in Ledger(run_dir).trials())


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    run_dir = toy_run(tmp_path / "run")
    study = toy_study(trials=12)
    handler = signal.getsignal(signal.SIGINT)

    def press() -> None:
        wait_for(lambda: len(stamps(run_dir)) >= 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_search(run_dir, [study], max_concurrent=2)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler  # a later Ctrl-C works too
    before = stamps(run_dir)
    assert 2 <= len(before) < 12
    assert (run_dir / "leaderboard.parquet").is_file()
    summary = run_search(run_dir, [study], max_concurrent=2)
    assert signal.getsignal(signal.SIGINT) is handler
    after = stamps(run_dir)
    assert len(after) == 12
    assert {trial: after[trial] for trial in before} == before
    assert summary.resumed == len(before)


def trainers() -> list[int]:
    """Processes of this Ray that are in a training step now."""
    import psutil

    return [process.pid for process in psutil.Process().children(recursive=True) if _trains(process)]


def _trains(process: object) -> bool:
    import psutil

    try:
        title = " ".join(process.cmdline())  # of a zombie it is empty
    except psutil.Error:  # it ended between the list and the look
        return False
    return "TrialActor.train" in title or "ResourceTrainable.train" in title


def long_study(**more: object):
    space = {**SPACE, "defaults": {**SPACE["defaults"], "epochs": 400, "patience": 400}}
    return toy_study(space=space, **more)


def killing(times: int, done: threading.Event) -> threading.Thread:
    """Kill workers in a step, each of them once, ``times`` in all."""
    killed: set[int] = set()

    def loop() -> None:
        while not done.is_set() and len(killed) < times:
            for pid in trainers():
                if pid not in killed and len(killed) < times:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
            time.sleep(0.02)

    thread = threading.Thread(target=loop, daemon=True)
    thread.killed = killed
    thread.start()
    return thread


def test_a_killed_worker_costs_no_trial(tmp_path: Path) -> None:
    run_dir, done = toy_run(tmp_path / "run"), threading.Event()
    thread = killing(1, done)
    summary = run_search(run_dir, [long_study(trials=3)], max_concurrent=2)
    done.set()
    thread.join()
    assert len(thread.killed) == 1
    assert summary.statuses == {"done": 3}
    assert summary.ran == 3
    assert len(stamps(run_dir)) == 3


def test_a_worker_that_always_dies_becomes_an_error(tmp_path: Path) -> None:
    run_dir, done = toy_run(tmp_path / "run"), threading.Event()
    thread = killing(3, done)
    with pytest.raises(
        RaysereError, match=r"All 1 trials of the study 'toy' failed, 1 of them with: The worker process died at each of 3 attempts"
    ):
        run_search(run_dir, [long_study(trials=1)], max_concurrent=1)
    done.set()
    thread.join()
    record = Ledger(run_dir).read("toy-0000")
    assert record.status == "error"
    assert record.score is None
    assert leaderboard(run_dir)["status"].to_list() == ["error"]
    assert run_search(run_dir, [long_study(trials=1)], max_concurrent=1, retry_errors=True).statuses == {"done": 1}


def test_a_disk_that_is_full_for_tune_s_own_files_ends_the_search_and_records_nothing(tmp_path: Path) -> None:
    run_dir, study = toy_run(tmp_path / "run"), toy_study(trials=2)
    with small_disk(run_dir / "search" / "_tune", "nr_inodes=1"):  # room for not one file
        with pytest.raises(EnvironmentFault, match=r"The disk is full\. Where: .* Free space there"):
            run_search(run_dir, [study], max_concurrent=1)
        assert Ledger(run_dir).ids() == []
    assert run_search(run_dir, [study], max_concurrent=1).statuses == {"done": 2}


def test_infeasible_trials_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    run_dir = toy_run(tmp_path / "run")
    space = {
        "name": "odd",
        "method": "pooled",
        "defaults": {"layer": 1, "layers": "one", "hidden": 8, "epochs": 2},
        "space": {"layer": {"choice": [0, 1, 7, 8, 9]}},
    }
    study = toy_study("odd", trials=10).model_copy(update={"space": space})
    summary = run_search(run_dir, [study], max_concurrent=2)
    board = leaderboard(run_dir)
    assert summary.trials == 10
    assert summary.copied >= 1
    assert set(board["status"]) == {"done", "infeasible"}
    assert board.filter(pl.col("status") == "infeasible")["score"].null_count() == board.filter(pl.col("status") == "infeasible").height
    assert all("have no layer" in text for text in board.filter(pl.col("status") == "infeasible")["error"])
    for record in Ledger(run_dir).trials():
        if record.twin_of:
            twin = Ledger(run_dir).read(record.twin_of)
            assert (twin.config, twin.status, twin.score, twin.seed) == (
                record.config,
                record.status,
                record.score,
                record.seed,
            )
            assert twin.twin_of is None
    assert len(set(board.filter(pl.col("twin_of").is_null())["params.layer"])) >= 2


def test_a_study_that_only_fails_says_why(tmp_path: Path) -> None:
    run_dir = toy_run(tmp_path / "run")
    study = toy_study("bad", trials=2).model_copy(
        update={
            "space": {
                "name": "bad",
                "method": "pooled",
                "defaults": {"layers": "one", "layer": 9, "lr": 0.01},
                "space": {"lr": {"float": [0.001, 0.01]}},
            }
        }
    )
    with pytest.raises(RaysereError, match=r"All 2 trials of the study 'bad' failed, 2 of them with: The features 'words' have no layer 9"):
        run_search(run_dir, [study], max_concurrent=1)


def test_missing_features_end_the_search_with_their_own_message(tmp_path: Path) -> None:
    run_dir = toy_run(tmp_path / "run")
    (run_dir / "features" / SPEC.key / "spec.json").unlink()
    with pytest.raises(RaysereError, match="The store has no features"):
        run_search(run_dir, [toy_study(trials=2)], max_concurrent=1)
    assert not list(run_dir.glob("trials/*"))


def test_wrong_use_is_said_before_anything_runs(tmp_path: Path) -> None:
    run_dir = toy_run(tmp_path / "run")
    with pytest.raises(EnvironmentFault, match=r"can hold one trial \(64 CPU, 0 GPU\).*2 CPU"):
        run_search(run_dir, [toy_study()], resources={"cpu": 64})
    with pytest.raises(EnvironmentFault, match="1 CPU, 0.5 GPU"):
        run_search(run_dir, [toy_study()], resources={"cpu": 1, "gpu": 0.5})
    with pytest.raises(ConfigError, match="Two studies are called 'toy'"):
        run_search(run_dir, [toy_study(), toy_study()])
    with pytest.raises(ConfigError, match="no search"):
        run_search(run_dir, [])
    assert not (run_dir / "trials").exists()


def test_capacity_counts_whole_trials() -> None:
    assert [capacity({"cpu": cpu, "gpu": 0.0}) for cpu in (0.5, 1.0, 2.0, 3.0)] == [4, 2, 1, 0]
