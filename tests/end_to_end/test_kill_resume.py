"""Kill the driver at any stage: run again, and nothing finished is redone, nothing is lost, and the result is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from raysere.errors import ConfigError
from raysere.experiment import load_experiment
from raysere.files import read_json
from raysere.pipeline import evaluate_run, only_driver, run_experiment
from raysere.search.ledger import Ledger
from tests.end_to_end.toy import experiment, make_corpus

LIMIT_S = 300.0


def start(path: Path, command: str = "run") -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "raysere", command, str(path), "--quiet"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def kill_when(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    """SIGKILL the driver as soon as ``ready``; fail if it ends before, or takes too long."""
    end = time.monotonic() + LIMIT_S
    while not ready():
        assert process.poll() is None, f"the run ended before it could be killed: {process.stdout.read().decode()[-2000:]}"
        assert time.monotonic() < end, "the run did not come this far"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)


def board(run: Path) -> pl.DataFrame:
    table = pl.read_parquet(run / "leaderboard.parquet").sort("trial")
    return table.drop([name for name in table.columns if name in ("seconds",) or "seconds" in name])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """One uninterrupted run, to which the killed ones are compared."""
    folder = tmp_path_factory.mktemp("whole")
    table = make_corpus(folder / "corpus")
    path = experiment(folder, table)
    outcome = run_experiment(load_experiment(path))
    return table, outcome.run


def same_result(run: Path, reference: Path) -> None:
    assert board(run).equals(board(reference))
    ours, theirs = read_json(run / "evaluation.json"), read_json(reference / "evaluation.json")
    for key in ("ensemble", "best_single", "average", "difference", "by_class", "n_utterances"):
        assert ours[key] == theirs[key], key


def finished(run: Path) -> dict[str, int]:
    """Inode of the DONE file of each finished trial: a trial that ran again would have another one."""
    return {trial: (run / "trials" / trial / "DONE").stat().st_ino for trial in Ledger(run).ids()}


@pytest.mark.parametrize("stage", ["extraction", "search", "ensemble"])
def test_a_killed_driver_loses_nothing_and_repeats_nothing(tmp_path, reference, stage):
    table, whole = reference
    path = experiment(tmp_path, table)
    run, store = tmp_path / "runs" / "toy", tmp_path / "features"
    ready = {
        "extraction": lambda: any(store.glob("*/shard-*/index.parquet")),
        "search": lambda: len(Ledger(run).ids()) >= 2,
        "ensemble": lambda: len(Ledger(run).ids()) == 5 and (run / "leaderboard.parquet").is_file(),
    }[stage]
    kill_when(start(path), ready)
    assert not (run / "evaluation.json").is_file()
    before = finished(run)
    shards = {shard: shard.stat().st_ino for shard in store.glob("*/shard-*")}
    run_experiment(load_experiment(path))
    after = finished(run)
    assert {trial: after[trial] for trial in before} == before
    assert sorted(after) == sorted(Ledger(whole).ids())
    assert {shard: shard.stat().st_ino for shard in store.glob("*/shard-*") if shard in shards} == shards
    assert not list(run.rglob("*.tmp")) + list((run / "trials").glob(".*"))
    same_result(run, whole)


@pytest.mark.parametrize("place", [".", "search/pooled", "search/pooled/pooled-0000", "ensemble"])
def test_what_a_killed_start_left_half_written_is_removed(tmp_path, place):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    left, kept, late = (tmp_path / place / name for name in (".table.1.tmp", "table.tmp", ".orphan.2.tmp"))
    left.touch()
    kept.touch()
    with only_driver(tmp_path):
        assert not left.exists()
        late.mkdir()  # by a worker that outlives its driver
        (late / "part").touch()
    assert not late.exists()
    assert kept.exists()


def test_a_finished_run_is_skipped_and_a_grown_one_only_adds(reference):
    _, whole = reference
    path = whole.parent.parent / "toy.yaml"
    before, evaluated = finished(whole), (whole / "evaluation.json").stat().st_ino
    run_experiment(load_experiment(path))
    assert finished(whole) == before
    assert (whole / "evaluation.json").stat().st_ino == evaluated


def test_two_extractions_at_once_on_one_store_share_the_work(tmp_path, reference):
    table, _ = reference
    one, two = experiment(tmp_path, table, name="one"), tmp_path / "two.yaml"
    two.write_text(one.read_text().replace("name: one", "name: two"))
    both = [start(one, "extract"), start(two, "extract")]
    for process in both:
        output = process.communicate(timeout=LIMIT_S)[0].decode()
        assert process.returncode == 0, output
    rows = pl.read_csv(table)
    found = set()
    for key in (folder for folder in (tmp_path / "features").iterdir() if folder.is_dir()):
        index = pl.concat([pl.read_parquet(shard / "index.parquet") for shard in sorted(key.glob("shard-*"))])
        assert index["content"].n_unique() == index.height  # nothing was computed twice
        found.add(index.height)
    assert found == {rows.height, rows["transcript"].n_unique()}


def test_a_second_driver_on_one_run_is_refused(reference):
    _, whole = reference
    with only_driver(whole), pytest.raises(ConfigError, match="works on this run already"):
        evaluate_run(whole)


def test_workers_can_read_a_copy_that_the_store_actor_of_their_node_keeps(tmp_path, reference, monkeypatch):
    table, whole = reference
    monkeypatch.setenv("RAYSERE_LOCAL_STORE", str(tmp_path / "local"))
    run = run_experiment(load_experiment(experiment(tmp_path, table)), until="tune").run
    assert len(list((tmp_path / "local").glob("*/shard-*"))) == len(list((tmp_path / "features").glob("*/shard-*"))) > 0
    assert board(run).equals(board(whole))
