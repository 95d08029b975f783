"""Kill the driver at any stage: run again, and nothing finished is redone, nothing is lost, and the
result is the same.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from raysere.base.errors import ConfigError, DataError, RaysereError
from raysere.base.files import read_json, read_yaml, write_json
from raysere.cli.main import cli
from raysere.ensemble.saved.ensemble import Ensemble
from raysere.pipeline.experiment import load_experiment
from raysere.pipeline.lock import only_driver
from raysere.pipeline.stages import run_experiment
from raysere.pipeline.verbs import evaluate_run
from raysere.report.page import write_report
from raysere.search.ledger import Ledger
from tests.end_to_end.toy import experiment, make_corpus
from tests.small_disk import fails_until_there_is_room, small_disk

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


def test_a_disk_that_fills_in_the_middle_ruins_nothing(tmp_path, reference):
    """Full while the tensors of the second trial are written, then while the ensemble is: each time
    the same command goes on.
    """
    table, whole = reference
    with small_disk(tmp_path / "disk", "size=1m") as disk:  # a trial on words has tensors of more than that
        path = experiment(tmp_path, table, runs=str(disk.folder / "runs"))
        run = disk.folder / "runs" / "toy"

        def stopped() -> dict[str, int]:
            process = start(path)
            output = process.communicate(timeout=LIMIT_S)[0].decode()
            assert process.returncode == 3, output
            assert "Error: The disk is full. Where: " in output
            assert "Free space there or name another folder, then run the same command again" in output
            assert "Traceback" not in output
            assert {record.status for record in Ledger(run).trials()} == {"done"}
            assert not list(run.rglob("*.tmp")) + list((run / "trials").glob(".*")) + list(run.glob("*ensemble*"))
            return finished(run)

        first = stopped()
        assert len(first) == 1
        disk.remount("size=3300k")  # room for the other trials (3.0 MB in all), and not for their tensors once more
        second = stopped()
        assert len(second) == 5
        disk.remount("size=20m")
        run_experiment(load_experiment(path))
        assert {trial: finished(run)[trial] for trial in first} == first
        assert finished(run) == second
        same_result(run, whole)
        for trial in second:
            ours, theirs = (Ledger(folder).read(trial).predictions() for folder in (run, whole))
            assert ours.equals(theirs), trial
        assert {shown.parent.name for shown in run.glob("search/*/*/*.trial")} == set(second)
        page = (run / "report.html").read_bytes()
        (run / "report.html").unlink()
        assert fails_until_there_is_room(disk, lambda: write_report(run)) >= 3
        assert (run / "report.html").read_bytes() == page


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


KINDS = ("model.safetensors", "predictions.parquet", "metrics.parquet", "params.yaml", "DONE")


def flip(path: Path) -> None:
    """Turn one bit of the byte in the middle over."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def copied(tmp_path, reference):
    """A copy of the whole run and its store, with the experiment that made it."""
    table, whole = reference
    shutil.copytree(whole, tmp_path / "runs" / "toy")
    shutil.copytree(whole.parent.parent / "features", tmp_path / "features")
    return experiment(tmp_path, table), tmp_path / "runs" / "toy"


@pytest.mark.parametrize(("verb", "kinds"), [("evaluate", KINDS[:4]), ("ensemble", KINDS[1:]), ("report", KINDS[1:])])
def test_changed_trials_are_told_and_left_out_by_every_verb(copied, tmp_path, verb, kinds):
    _, run = copied
    *changed, whole = Ledger(run).ids()
    for trial, name in zip(changed, kinds):
        flip(run / "trials" / trial / name)
    arguments = ["--out", str(tmp_path / "out")] if verb == "ensemble" else []
    done = CliRunner().invoke(cli, [verb, str(run), *arguments])
    assert done.exit_code == 0, done.output
    for trial, name in zip(changed, kinds):
        assert done.stderr.count(f"Left out: the trial {trial}. The file {run}/trials/{trial}/{name} ") == 1
    assert done.stderr.count("run the experiment again") == 1
    if verb == "report":
        assert pl.read_parquet(run / "leaderboard.parquet")["trial"].to_list() == [whole]
        assert "1 trials in 1 study" in (run / "report.html").read_text()
    else:
        saved = tmp_path / "out" if verb == "ensemble" else run / "ensemble"
        assert {member["trial"] for member in read_yaml(saved / "ensemble.yaml")["members"]} == {whole}


def test_a_run_sets_changed_trials_aside_and_trains_them_anew(copied, reference, capfd):
    path, run = copied
    trials = dict(zip(KINDS[1:], Ledger(run).ids()))  # the fifth trial stays
    for name, trial in trials.items():
        flip(run / "trials" / trial / name)
    flip(run / "ensemble" / "card.md")
    kept = set(finished(run).values())
    run_experiment(load_experiment(path))
    told = capfd.readouterr().err
    for name, trial in trials.items():
        assert told.count(f"Set aside: the trial {trial}, now in {run}/trials/.{trial}.changed-") == 1
        assert f"The file {run}/trials/{trial}/{name} " in told
    assert told.count("trained anew") == 1
    assert len(kept & set(finished(run).values())) == 1
    assert len(list((run / "trials").glob(".*.changed-*"))) == 4
    same_result(run, reference[1])
    run_experiment(load_experiment(path))
    assert not capfd.readouterr().err


def test_a_changed_ensemble_is_refused_left_out_and_made_anew(copied, reference, capfd):
    path, run = copied
    (member, *_) = (run / "ensemble" / "members").iterdir()
    for file in (member, *((run / "ensemble" / name) for name in ("card.md", "evaluation.json", "ensemble.yaml"))):
        before = file.read_bytes()
        flip(file)
        with pytest.raises(RaysereError, match=re.escape(file.name)):  # what `predict` and `serve` open
            Ensemble.load(run / "ensemble")
        told = CliRunner().invoke(cli, ["report", str(run)]).stderr
        assert "Left out of the report: the ensemble and its figures" in told
        assert file.name in told
        file.write_bytes(before)
    flip(run / "evaluation.json")
    assert f"{run}/evaluation.json" in CliRunner().invoke(cli, ["report", str(run)]).stderr
    flip(run / "evaluation.json")
    assert not CliRunner().invoke(cli, ["report", str(run)]).stderr
    flip(member)
    run_experiment(load_experiment(path))
    assert "The ensemble is made anew" in capfd.readouterr().err
    Ensemble.load(run / "ensemble")
    same_result(run, reference[1])


def test_the_tables_of_a_run_are_checked(copied):
    _, run = copied
    for name in ("splits.parquet", "manifest.parquet"):
        before = (run / name).read_bytes()
        flip(run / name)
        for verb in ("evaluate", "report"):
            fault = CliRunner().invoke(cli, [verb, str(run)]).exception
            assert isinstance(fault, DataError)
            assert str(fault).startswith(f"{name} was changed since the run began")
        (run / name).write_bytes(before)


def test_trials_without_hashes_are_counted_once_a_command(copied, capfd):
    path, run = copied
    for folder in (run / "trials").iterdir():
        write_json(folder / "DONE", {key: value for key, value in read_json(folder / "DONE").items() if key not in ("files", "sha256")})
    before = {file: file.read_bytes() for file in run.glob("trials/*/DONE")}
    for verb in ("evaluate", "report"):
        told = CliRunner().invoke(cli, [verb, str(run)]).stderr
        assert (
            told
            == f"Not checked: 5 of 5 trials in {run}/trials were recorded by a version of raysere that kept no hashes of their files.\n"
        )
    run_experiment(load_experiment(path))
    assert capfd.readouterr().err.count("Not checked: 5 of 5 trials") == 1
    assert {file: file.read_bytes() for file in run.glob("trials/*/DONE")} == before


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
