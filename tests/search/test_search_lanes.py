"""Proposals of a lane: trial 0, numbers, and that a resumed search proposes what the uninterrupted
one would.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from toy import toy_study

from raysere.search.lane import STARTUP, Lane
from raysere.search.ledger import Record
from raysere.search.searcher import LaneHalving
from raysere.search.study import Asha, StudySpec


@dataclass(frozen=True)
class Remembered(Record):
    """A record whose epoch rows are at hand."""

    scores: tuple[float, ...] = field(default=())

    def rows(self) -> pl.DataFrame:
        return pl.DataFrame(
            {"epoch": list(range(len(self.scores))), "score": list(self.scores)}, schema={"epoch": pl.Int64, "score": pl.Float64}
        )


def remembered(
    study: StudySpec, number: int, params: dict, score: float | None, *, status: str = "done", scores: tuple[float, ...] = ()
) -> Remembered:
    return Remembered(
        folder=Path(),
        trial=study.trial_id(0, number),
        study=study.name,
        space="toy",
        method="pooled",
        features=("words",),
        modality="text",
        outer=0,
        number=number,
        seed=0,
        config=study.config_hash(params),
        params=params,
        status=status,
        score=score,
        epochs=len(scores),
        scores=scores,
    )


def value(params: dict) -> float:
    """Something to climb: best near lr 0.01, dropout 0.3, one layer."""
    return round(0.5 - abs(params["lr"] - 0.01) - (params["dropout"] - 0.3) ** 2 + (0.1 if params.get("layer") == 1 else 0), 12)


def search(study: StudySpec, finished: list[Remembered], until: int) -> list[Remembered]:
    lane = Lane(study, 0, finished)
    records = list(finished)
    while lane.free and len(records) < until:
        proposal = lane.propose()
        failed = proposal.number % 7 == 5  # some trials have no score; the sampler is told the penalty
        lane.tell(proposal, study.penalty if failed else value(proposal.params))
        records.append(
            remembered(
                study,
                proposal.number,
                proposal.params,
                None if failed else value(proposal.params),
                status="infeasible" if failed else "done",
            )
        )
    return records


@pytest.fixture(scope="module")
def uninterrupted() -> list[Remembered]:
    return search(toy_study(trials=32), [], 32)


def test_trial_zero_is_the_default_and_numbers_count_up(uninterrupted: list[Remembered]) -> None:
    assert uninterrupted[0].params == toy_study().parsed_space().default_config()
    assert [record.number for record in uninterrupted] == list(range(32))


@pytest.mark.parametrize("killed_after", [0, 1, 5, STARTUP - 1, STARTUP, STARTUP + 1, 20, 27, 31])
def test_a_resumed_search_proposes_the_same(uninterrupted: list[Remembered], killed_after: int) -> None:
    study = toy_study(trials=32)
    first = search(study, [], killed_after)
    assert [record.params for record in search(study, first, 32)] == [record.params for record in uninterrupted]


def test_the_order_in_which_the_ledger_is_read_does_not_matter(uninterrupted: list[Remembered]) -> None:
    study = toy_study(trials=32)
    assert search(study, uninterrupted[:15][::-1], 16)[-1].params == uninterrupted[15].params


def test_tpe_climbs_after_the_start(uninterrupted: list[Remembered]) -> None:
    """A sampler that forgot its past would draw the late half from the same distribution as the
    early one.
    """
    scores = [record.score for record in uninterrupted if record.score is not None]
    early, late = scores[1:STARTUP], scores[-STARTUP:]
    assert sum(late) / len(late) > sum(early) / len(early) + 0.01


def test_seeds_and_studies_differ() -> None:
    base = [record.params for record in search(toy_study(trials=5), [], 5)]
    assert base != [record.params for record in search(toy_study(trials=5, seed=1), [], 5)]
    assert base[0] == search(toy_study("second", trials=5), [], 1)[0].params
    assert base[1:] != [record.params for record in search(toy_study("second", trials=5), [], 5)][1:]


def test_holes_are_filled_first(uninterrupted: list[Remembered]) -> None:
    study = toy_study(trials=12)
    lane = Lane(study, 0, [record for record in uninterrupted[:8] if record.number not in (2, 5)])
    assert [lane.propose().number for _ in range(3)] == [2, 5, 8]
    assert lane.propose().params != lane.propose().params  # the liar keeps parallel proposals apart


def test_lowering_the_number_of_trials_keeps_what_is_there(uninterrupted: list[Remembered]) -> None:
    assert not Lane(toy_study(trials=3), 0, uninterrupted[:8]).free


def controller() -> SimpleNamespace:
    return SimpleNamespace()


def reported(halving: LaneHalving, trial: SimpleNamespace, epoch: int, score: float, status: str = "running") -> str:
    return halving.on_trial_result(controller(), trial, {"epoch": epoch, "score": score, "status": status})


def test_halving_survives_a_restart() -> None:
    study = toy_study(trials=9, asha=Asha(grace=1, reduction=2), max_epochs=8)
    assert study.rungs(8) == [1, 2, 4]
    curves = [(0.5, 0.6, 0.6, 0.7), (0.3,), (0.9, 0.2, 0.95, 0.95), (0.8, 0.8)]

    def decisions(lane: Lane, live: list[tuple[float, ...]], start: int) -> list[str]:
        searcher = SimpleNamespace(live={})
        halving, result = LaneHalving(searcher), []
        for number, curve in enumerate(live, start):
            trial = SimpleNamespace(trial_id=f"tune{number}")
            searcher.live[trial.trial_id] = SimpleNamespace(lane=lane, trial=study.trial_id(0, number))
            halving.on_trial_add(controller(), trial)
            for rung in study.rungs(8):
                if len(curve) >= rung:
                    result.append(reported(halving, trial, rung, max(curve[:rung])))
            halving.on_trial_complete(controller(), trial, {"epoch": len(curve), "score": max(curve), "status": "running"})
        return result

    probe = [(0.7, 0.7, 0.7, 0.7), (0.85, 0.85, 0.85, 0.85)]
    whole = Lane(study, 0, [])
    first = decisions(whole, curves, 0)
    assert "STOP" in first
    assert "CONTINUE" in first
    expected = decisions(whole, probe, len(curves))
    refilled = Lane(
        study,
        0,
        [
            remembered(
                study,
                number,
                {**study.parsed_space().default_config(), "lr": 0.01 + number / 100},
                max(curve),
                status="stopped",
                scores=curve,
            )
            for number, curve in enumerate(curves)
        ],
    )
    assert decisions(refilled, probe, len(curves)) == expected
    assert decisions(Lane(study, 0, []), probe, len(curves)) != expected  # without the rungs it would decide otherwise


def test_a_retried_trial_stands_in_a_rung_once() -> None:
    study = toy_study(trials=4, asha=Asha(grace=1, reduction=2), max_epochs=4)
    lane = Lane(study, 0, [])
    searcher = SimpleNamespace(live={})
    halving = LaneHalving(searcher)
    for attempt in range(3):
        trial = SimpleNamespace(trial_id=f"attempt{attempt}")
        searcher.live[trial.trial_id] = SimpleNamespace(lane=lane, trial="toy-0000")
        halving.on_trial_add(controller(), trial)
        assert reported(halving, trial, 1, 0.9 - attempt / 10) == "CONTINUE"  # nobody is compared with an earlier attempt of its own
        halving.on_trial_error(controller(), trial)


def test_a_trial_that_has_ended_stops_whatever_its_score() -> None:
    halving = LaneHalving(SimpleNamespace(live={}))
    assert reported(halving, SimpleNamespace(trial_id="x"), 3, 1.0, status="done") == "STOP"
