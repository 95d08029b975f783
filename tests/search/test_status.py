"""Progress in a file and in plain lines, the estimate of the time left, and the status of a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_search_ledger import put
from toy import toy_run, toy_study

from raysere.base import progress as progress_module
from raysere.base.errors import ConfigError
from raysere.base.files import write_yaml
from raysere.base.progress import Progress, Stage, duration, read_stage
from raysere.cli.main import cli
from raysere.pipeline.lock import only_driver
from raysere.pipeline.prepare import RUN_FORMAT
from raysere.pipeline.status import run_status, search_left_s
from raysere.pipeline.verbs import evaluate_run
from raysere.search.ledger import Ledger
from raysere.search.study import save_study


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass only when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "time", lambda: now[0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_the_estimate_leaves_out_what_the_first_item_waited_for(clock: list[float], tmp_path: Path) -> None:
    progress = Progress(quiet=True)
    progress.keep_in(tmp_path)
    progress.start("extract", total=20, done=5)
    clock[0] += 100  # models are loaded
    progress.advance("extract")
    assert read_stage(tmp_path).left_s is None
    clock[0] += 8
    progress.advance("extract", 4)
    stage = read_stage(tmp_path)
    assert (stage.name, stage.done, stage.total, stage.elapsed) == ("extract", 10, 20, 108)
    assert stage.left_s == pytest.approx(20)  # 10 items of 2 s
    clock[0] += 1
    progress.advance("extract", 10)
    assert read_stage(tmp_path).left_s is None


def test_plain_lines_come_further_apart(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.start("search", total=4000)
        for _ in range(3999):
            clock[0] += 10
            progress.advance("search")
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "search: 1 of 4000 (0 %), 10 s"
    assert lines[2] == "search: 2 of 4000 (0 %), 20 s, about 11.1 h left"
    assert 60 < len(lines) < 150


def test_durations() -> None:
    assert [duration(value) for value in (4, 600, 9000, 260_000)] == ["4 s", "10 min", "2.5 h", "3.0 days"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other/1"}', '{"format": "raysere.base.progress/1"}'])
def test_a_file_of_progress_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / progress_module.FILE).write_text(text)
    assert read_stage(tmp_path) is None


def test_time_left_of_a_search() -> None:
    stage = Stage("search", total=20, done=5, first=0, at_once=2, started=0.0, since=10.0, elapsed=30.0)
    seconds = {"slow": [10.0, 20.0], "fast": [1.0, 2.0, 3.0]}
    planned = {"slow": 4, "fast": 10, "unseen": 6}
    work = 2 * 15 + 7 * 2 + 6 * 36 / 5
    assert search_left_s(seconds, planned, stage, [10.0, 1.0, 2.0]) == pytest.approx(work / 2)  # too few to measure
    assert search_left_s(seconds, planned, stage, [10.0, 1.0, 2.0, 15.0]) == pytest.approx(work / 1.4)  # 28 s of trials in 20 s
    assert search_left_s(seconds, planned, stage, [50.0] * 4) == pytest.approx(work / 2)  # never more than there are places
    assert search_left_s({"slow": [1.0] * 4}, {"slow": 4}, stage, []) is None
    assert search_left_s({}, planned, stage, []) is None


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two finished trials of twelve."""
    folder, study = toy_run(tmp_path / "run"), toy_study(trials=12)
    write_yaml(folder / "experiment.yaml", {"format": RUN_FORMAT, "name": "toy"})
    save_study(folder, study)
    for number in range(2):
        put(Ledger(folder), study, number, {"lr": 0.1 * (1 + number)})
    return folder


def test_status_of_a_run_that_goes_on(run: Path) -> None:
    progress = Progress(quiet=True)
    progress.keep_in(run)
    with only_driver(run):
        progress.start("search", total=12, done=2, at_once=2)
        status = run_status(run)
        assert status["running"]
        assert status["stage"]["name"] == "search"
        assert (status["stage"]["done"], status["stage"]["total"], status["stage"]["at_once"]) == (2, 12, 2)
        assert status["stage"]["left_s"] == pytest.approx(10 * 2.0 / 2)
        shown = CliRunner().invoke(cli, ["status", str(run)], catch_exceptions=False).output
        assert "running, search 2 of 12 (2 at once), for 0 s, about 10 s left" in shown
        assert json.loads(CliRunner().invoke(cli, ["status", str(run), "--json"]).output)["planned"] == status["planned"]


def test_the_status_counts_by_study_and_by_end(run: Path) -> None:
    other = toy_study("other", trials=3, outer=(0, 1))
    save_study(run, other)
    put(Ledger(run), other, 0, {"lr": 0.1}, status="infeasible", score=None)
    put(Ledger(run), toy_study("gone"), 0, {"lr": 0.1}, score=0.25)  # of a study that the experiment names no more
    put(Ledger(run), toy_study(trials=12), 2, {"lr": 0.3}, score=0.75)
    status = run_status(run)
    assert (status["finished"], status["planned"]) == (5, 12 + 2 * 3)  # trials of each outer fold
    assert status["studies"]["toy"] == {"planned": 12, "status": {"done": 3}, "best": 0.75, "mean_seconds": 2.0}
    assert status["studies"]["other"] == {"planned": 6, "status": {"infeasible": 1}, "best": None, "mean_seconds": 2.0}
    assert (status["studies"]["gone"]["planned"], status["studies"]["gone"]["best"]) == (0, 0.25)
    assert (status["evaluated"], status["report"]) == (False, None)
    (run / "evaluation.json").write_text("{}")
    (run / "report.html").write_text("")
    status = run_status(run)
    assert (status["evaluated"], status["report"]) == (True, str(run / "report.html"))


def test_trials_of_an_earlier_start_tell_nothing_of_this_one_s_speed(run: Path, clock: list[float]) -> None:
    for record in Ledger(run).trials():
        os.utime(record.folder / "DONE", (500.0, 500.0))
    progress = Progress(quiet=True)
    progress.keep_in(run)
    with only_driver(run):
        progress.start("search", total=12, done=2, at_once=1)
        clock[0] += 100
        progress.advance("search")
        clock[0] += 100
        assert run_status(run)["stage"]["left_s"] == pytest.approx(10 * 2.0)


def test_a_run_whose_driver_was_killed_does_not_run(run: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from raysere.base.progress import Progress; from raysere.pipeline.lock import only_driver\n"
        "folder = Path(sys.argv[1]); progress = Progress(quiet=True); progress.keep_in(folder)\n"
        "with only_driver(folder):\n    progress.start('search', total=12); print('held', flush=True); time.sleep(600)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "held\n"
        assert run_status(run)["running"]
    finally:
        driver.kill()
        driver.wait()
    status = run_status(run)
    assert (status["running"], status["stage"]) == (False, None)
    assert status["finished"] < status["planned"]
    shown = CliRunner().invoke(cli, ["status", str(run)], catch_exceptions=False).output
    assert f"stopped, {status['finished']} of {status['planned']} trials are finished" in shown


def test_the_status_of_a_run_that_was_stopped_in_extraction(run: Path) -> None:
    def line() -> str:
        return CliRunner().invoke(cli, ["status", str(run)], catch_exceptions=False).output.splitlines()[0]

    progress = Progress(quiet=True)
    progress.keep_in(run)
    progress.start("extract acoustic", total=720, done=30)
    assert "stopped in extract acoustic at 30 of 720, 2 of 12 trials are finished; the command that started it goes on" in line()
    for part in ("search", "trials"):
        shutil.rmtree(run / part)  # a new run has no study yet
    assert line().endswith("stopped in extract acoustic at 30 of 720, no trial has begun; the command that started it goes on where it was")
    assert run_status(run)["stopped_in"] == {"name": "extract acoustic", "done": 30, "total": 720}
    progress.advance("extract acoustic", 690)
    assert line().endswith("stopped after extract acoustic, no trial has begun; `raysere tune` or `raysere run` goes on from there")
    (run / progress_module.FILE).unlink()
    assert line().endswith("stopped, no trial has begun; the command that started it goes on where it was")


def test_a_command_that_finds_the_run_held_names_what_says_how_far_it_is(run: Path) -> None:
    with only_driver(run), pytest.raises(ConfigError) as caught:
        evaluate_run(run)
    assert str(caught.value).endswith(f"Wait for it; `raysere status {run}` says how far it is.")  # no other name: it evaluates this run


def test_a_look_at_the_status_does_not_turn_a_driver_away(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    with only_driver(run):
        pass  # the lock file is there
    handle = (run / ".driver.lock").open("r")
    fcntl.flock(handle, fcntl.LOCK_SH)
    monkeypatch.setattr("raysere.pipeline.lock.time.sleep", lambda seconds: handle.close())
    with only_driver(run):
        assert run_status(run)["running"]
