"""What keeps workers busy: processes that are ready before the search, proposals asked ahead,
records off the critical path.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy import toy_study

from raysere.base.cluster import PRELOADED
from raysere.base.errors import MEMORY_IS_LOW, EnvironmentFault
from raysere.search.actor import LedgerCallback
from raysere.search.lane import Lane
from raysere.search.searcher import LaneSearcher
from raysere.search.tuner import _idle_workers_taken


class FakeBoard(SimpleNamespace):
    def job(self, proposal) -> dict:
        return {"number": proposal.number}

    def record(self, proposal, result) -> None:
        self.records.append((proposal, result))

    def fail(self, fault) -> None:
        self.failure = fault


def board(trials: int = 6) -> FakeBoard:
    return FakeBoard(lanes=[Lane(toy_study(trials=trials), 0, [])], failure=None, records=[], given_up={})


def test_the_next_configuration_is_asked_for_while_all_workers_are_busy() -> None:
    there = board()
    searcher = LaneSearcher(there, slots=2)
    first = searcher.suggest("a")
    searcher.ask_ahead()
    assert len(there.lanes[0].running) == 1  # a worker is free: whoever is next may still learn from what ends
    second = searcher.suggest("b")
    searcher.ask_ahead()
    searcher.ask_ahead()
    assert len(there.lanes[0].running) == 3  # once
    assert [first, second, searcher.suggest("c")] == [{"job": f'{{"number": {number}}}'} for number in range(3)]


def test_a_search_of_one_trial_at_a_time_asks_nothing_ahead() -> None:
    there = board()
    searcher = LaneSearcher(there, slots=1)
    searcher.suggest("a")
    searcher.ask_ahead()
    assert len(there.lanes[0].running) == 1


def test_a_record_is_written_one_step_after_the_end_and_none_is_lost() -> None:
    there = board()
    searcher = SimpleNamespace(live={"a": "first", "b": "second"}, ask_ahead=lambda: None)
    callback = LedgerCallback(there, searcher)
    for name in ("a", "b"):
        callback.on_trial_start(0, [], SimpleNamespace(trial_id=name))
    callback.on_trial_complete(1, [], SimpleNamespace(trial_id="a", last_result={"score": 1}))
    callback.on_step_end(1, [])
    assert there.records == []
    callback.on_step_end(2, [])
    assert there.records == [("first", {"score": 1})]
    callback.on_trial_complete(3, [], SimpleNamespace(trial_id="b", last_result={"score": 2}))
    callback.flush()
    callback.flush()
    assert there.records == [("first", {"score": 1}), ("second", {"score": 2})]


def test_a_record_that_cannot_be_written_ends_the_search_and_is_the_last() -> None:
    there = board()
    there.record = lambda proposal, result: (_ for _ in ()).throw(OSError("disk full"))
    callback = LedgerCallback(there, SimpleNamespace(live={"a": "first"}, ask_ahead=lambda: None))
    callback.on_trial_start(0, [], SimpleNamespace(trial_id="a"))
    callback.on_trial_complete(1, [], SimpleNamespace(trial_id="a", last_result={}))
    callback.flush()
    assert isinstance(there.failure, OSError)


@pytest.mark.parametrize(
    ("text", "failures", "slots", "ends"),
    [
        ("ray.exceptions.RayTaskError: OSError: [Errno 28] No space left on device: '/full/x'", 1, 1, r"disk is full\. Where: /full/x"),
        ("OSError: [Errno 24] Too many open files", 3, 1, "Too many files are open"),
        (f"Task was killed due to the {MEMORY_IS_LOW}.", 1, 2, None),  # it is tried again
        (f"Task was killed due to the {MEMORY_IS_LOW}.", 3, 2, "memory of this machine is used up.*fewer trials at once"),
        (f"Task was killed due to the {MEMORY_IS_LOW}.", 3, 1, None),  # nothing ran beside it: this trial is too large
        ("Worker unexpectedly exits: it may have been killed by SIGKILL by OOM killer due to high memory usage", 3, 2, None),
    ],
)
def test_a_worker_that_the_machine_ended_is_no_record(tmp_path: Path, text: str, failures: int, slots: int, ends: str | None) -> None:
    (tmp_path / "error.txt").write_text(text)
    there, recorded = board(), []
    there.run_dir = tmp_path
    there.give_up = lambda proposal, reason: recorded.append(reason)
    if failures == 3:
        there.given_up["a"] = SimpleNamespace(failures=3)
    callback = LedgerCallback(there, SimpleNamespace(live={}, slots=slots))
    callback.on_trial_error(0, [], SimpleNamespace(trial_id="a", error_file=str(tmp_path / "error.txt")))
    if ends is None:
        assert there.failure is None
        assert len(recorded) == (failures == 3)
    else:
        assert recorded == []
        with pytest.raises(EnvironmentFault, match=ends):
            raise there.failure


@pytest.mark.usefixtures("local_ray")
def test_actors_of_a_search_start_in_prepared_processes() -> None:
    import ray

    if os.environ.get("RAY_ADDRESS"):
        pytest.skip("a cluster prepares its workers by itself")

    class Asked:
        def modules(self) -> bool:
            import sys

            return "raysere.search.preload" in sys.modules and "torch" in sys.modules

    actor = ray.remote(Asked).options(num_cpus=0).remote()
    try:
        assert ray.get(actor.modules.remote(), timeout=60)
    finally:
        ray.kill(actor)


def test_tune_adds_no_environment_to_actors_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.execution import class_cache

    before = {name: getattr(class_cache, name) for name in ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE") if hasattr(class_cache, name)}
    assert before  # else this Ray has other names for them, and workers start cold
    monkeypatch.setenv(PRELOADED, "raysere.search.preload")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with _idle_workers_taken():
        assert not any(getattr(class_cache, name) for name in before)
    assert {name: getattr(class_cache, name) for name in before} == before
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with _idle_workers_taken():
        assert {name: getattr(class_cache, name) for name in before} == before
