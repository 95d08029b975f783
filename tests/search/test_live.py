"""Curves of trials under way: as TensorBoard's readers and a running TensorBoard see them, and what
is left when the trial has ended.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_search_ledger import put
from test_search_trial import trial
from toy import toy_run, toy_study
from watching import ask, tensorboard

from raysere.base.files import write_yaml
from raysere.pipeline.prepare import RUN_FORMAT
from raysere.search.ledger import Ledger
from raysere.search.study import save_study
from raysere.search.watch.live import LiveCurves
from raysere.search.watch.tensorboard import TrialEvents

ROWS = [{"epoch": epoch, "score": 0.25 * epoch, "loss.ce": 1.0 - 0.25 * epoch} for epoch in range(3)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("live"))


def points(reader: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)] if tag in reader.Tags()["scalars"] else []


def test_epochs_are_shown_as_they_come_and_once_when_the_trial_has_ended(run_dir: Path) -> None:
    study = toy_study("live")
    record = put(Ledger(run_dir), study, 0, {"lr": 0.1})
    events = TrialEvents(run_dir)
    curves = LiveCurves(events.folder(record), after_s=0, every_s=0)
    reader = EventAccumulator(str(events.folder(record)))
    curves.show(ROWS[:1])
    assert points(reader, "dev/score") == [(0, 0.0)]
    curves.show(ROWS[:2])
    assert points(reader, "dev/score") == [(0, 0.0), (1, 0.25)]
    assert points(reader, "loss/ce") == [(0, 1.0), (1, 0.75)]
    curves.close()
    assert not events.has(record), "it has not ended"
    events.write(record, study, ROWS, None)
    assert points(reader, "dev/score") == [(0, 0.0), (1, 0.25), (2, 0.5)], "what was shown is shown once"
    assert points(EventAccumulator(str(events.folder(record))), "dev/score") == [(0, 0.0), (1, 0.25), (2, 0.5)], "opened later"


def test_short_trials_have_no_file_and_long_ones_one_write_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    curves = LiveCurves(tmp_path / "t", after_s=20, every_s=5)
    seen = []
    for moment in (119.9, 120.0, 124.9, 125.0):
        clock[0] = moment
        curves.show([{"epoch": epoch, "score": 0.0} for epoch in range(len(seen) + 1)])
        reader = EventAccumulator(str(tmp_path / "t")) if (tmp_path / "t").exists() else None
        seen.append(0 if reader is None else len(points(reader, "dev/score")))
    assert seen == [0, 2, 2, 4]


def test_what_a_killed_attempt_showed_is_replaced(tmp_path: Path) -> None:
    reader = EventAccumulator(str(tmp_path))
    LiveCurves(tmp_path, after_s=0, every_s=0).show(ROWS)
    assert [step for step, _ in points(reader, "dev/score")] == [0, 1, 2]
    LiveCurves(tmp_path, after_s=0, every_s=0).show(ROWS[:1])
    assert points(reader, "dev/score") == [(0, 0.0)]


def test_a_folder_that_cannot_be_written_costs_no_trial(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    curves = LiveCurves(tmp_path / "file" / "t", after_s=0, every_s=0)
    curves.show(ROWS)
    curves.close()


def test_a_worker_shows_the_trial_that_it_trains(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysere.search.trial.LiveCurves", partial(LiveCurves, after_s=0, every_s=0))
    run = trial(run_dir, toy_study("worker"))
    assert run.advance()["status"] == "done"
    shown = points(EventAccumulator(str(run_dir / "search" / "worker" / run.job["trial"])), "dev/score")
    assert [step for step, _ in shown] == list(range(run.epochs))
    assert [value for _, value in shown] == pytest.approx([row["score"] for row in run.trainer.rows])


def test_a_running_tensorboard_shows_each_epoch_once(run_dir: Path) -> None:
    """Its data server reads files its own way."""
    study = toy_study("served")
    write_yaml(run_dir / "experiment.yaml", {"format": RUN_FORMAT, "name": "toy"})
    save_study(run_dir, study)
    record = put(Ledger(run_dir), study, 0, {"lr": 0.1})
    events = TrialEvents(run_dir)
    curves = LiveCurves(events.folder(record), after_s=0, every_s=0)
    curves.show(ROWS[:2])
    query = urlencode({"run": f"served/{record.trial}", "tag": "dev/score"})
    with tensorboard(run_dir) as url:

        def until(expected: list[tuple[int, float]]) -> None:
            deadline, seen = time.monotonic() + 90, None
            while seen != expected and time.monotonic() < deadline:
                time.sleep(0.2)
                try:
                    seen = [(step, value) for _, step, value in ask(f"{url}data/plugin/scalars/scalars?{query}")]
                except HTTPError:  # not loaded yet
                    continue
            assert seen == expected

        until([(0, 0.0), (1, 0.25)])
        events.write(record, study, ROWS, None)
        until([(0, 0.0), (1, 0.25), (2, 0.5)])
