"""``objective: ensemble_gain``: values by hand, and a search that goes on as if it had never been
killed.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from toy import SPACE, toy_run, toy_study

from raysere.base.errors import ConfigError
from raysere.base.progress import Progress
from raysere.search import gain
from raysere.search.board import Board
from raysere.search.gain import SIZE, Gains
from raysere.search.lane import NO_GAIN, STARTUP, Lane
from raysere.search.ledger import Ledger
from raysere.search.tuner import run_search
from raysere.training import metrics
from raysere.training.predictions import prediction_table
from raysere.training.task import Labels, Task

CLASSES = ("a", "b", "c")


def labels_of(label: np.ndarray, attributes: np.ndarray | None = None) -> Labels:
    n = len(label)
    nothing = np.zeros(n, dtype=np.int64)
    ids = [f"u{row:03d}" for row in range(n)]
    return Labels(ids, label, None, attributes, nothing, ["s"], nothing, ["toy"], nothing, np.ones(n))


def library(members: int = 6, items: int = 90, seed: int = 0) -> tuple[Gains, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, items)
    logits = np.eye(3)[label] + 1.5 * random.normal(size=(members, items, 3))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gains = Gains(labels_of(label), Task(classes=CLASSES))
    for number in random.permutation(members):  # the order must not matter
        gains.add(f"t{number}", table(gains, p[number], random.permutation(items)))
    return gains, p.astype(np.float32).astype(float), label


def table(gains: Gains, p: np.ndarray, rows: np.ndarray) -> pl.DataFrame:
    names = [gains.labels.utterances[row] for row in rows]
    kind = {"attributes": p[rows]} if gains.task.kind == "dimensional" else {"probabilities": p[rows]}
    return prediction_table(gains.task, names, "dev", [0] * len(rows), **kind)  # type: ignore[arg-type]


def test_values_by_hand() -> None:
    gains, p, label = library()

    def uar(parts: list[int]) -> float:
        return metrics.uar(label, p[parts].sum(0).argmax(1), 3)

    own = [uar([m]) for m in range(6)]
    slots: list[int] = []
    for _ in range(SIZE):
        slots.append(max(range(6), key=lambda m: uar([*slots, m]) + gain.TIE * own[m]))
    for number in (0, 3, SIZE + 3):
        rest = [m for place, m in enumerate(slots) if place != number % SIZE]
        expected = {f"t{m}": uar([*rest, m]) - uar(rest) + gain.TIE * own[m] for m in range(6)}
        assert gains.values(number) == pytest.approx(expected, abs=1e-12)
    assert gains.values(3) == gains.values(SIZE + 3)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = library()[0].values(2)
    monkeypatch.setattr(gain, "_BLOCK", 1)
    assert library()[0].values(2) == whole


def test_a_complement_is_worth_more_than_a_better_copy() -> None:
    """Two members know classes a and b, a third one only class c: by itself it is the worst, and it
    gains most.
    """
    label = np.repeat([0, 1, 2], 30)
    gains = Gains(labels_of(label), Task(classes=CLASSES))
    pair = np.eye(3)[label] * 0.5 + np.array([0.25, 0.25, 0.0])
    pair[label == 2] = [0.4, 0.33, 0.27]
    single = np.repeat([[0.33, 0.34, 0.33], [0.34, 0.33, 0.33], [0.0, 0.0, 1.0]], 30, axis=0)
    for name, p in (("pair", pair), ("copy", pair), ("single", single)):
        gains.add(name, table(gains, p, np.arange(90)))
    assert metrics.uar(label, single.argmax(1), 3) == pytest.approx(1 / 3)
    assert metrics.uar(label, pair.argmax(1), 3) == pytest.approx(2 / 3)
    # the greedy ensemble holds it once, in slot 1; seven of the others leave room for no more
    assert gains.values(1) == pytest.approx({"single": 1 / 3, "pair": 0, "copy": 0}, abs=1e-5)
    assert gains.values(0)["pair"] >= gains.values(0)["single"]


def test_items_that_a_trial_does_not_answer_are_left_to_the_others() -> None:
    gains, p, label = library(2)
    gains.add("t1", table(gains, p[1], np.arange(45)))
    sums = p[0].copy()
    sums[:45] += p[1, :45]
    both = metrics.uar(label, sums.argmax(1), 3)
    members, present = gains._stacked(["t0", "t1"], np.arange(90))
    assert gains._scores(members[0], present[0], members[1:], present[1:], np.arange(90))[0] == pytest.approx(both)


def test_attributes_are_averaged() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(1, 7, (40, 1)).astype(np.float32)
    task = Task(kind="dimensional", attributes=("arousal",), metric="ccc")
    gains = Gains(labels_of(np.full(40, -1), truth), task)
    values = np.clip(truth + random.normal(size=(3, 40, 1)), 1, 7).astype(np.float32)
    for number in range(3):
        gains.add(f"t{number}", table(gains, values[number], np.arange(40)))
    rows = np.arange(40)
    members, present = gains._stacked(["t0", "t1", "t2"], rows)
    for first, second in itertools.product(range(3), repeat=2):
        expected = metrics.score(task, attributes=truth, predicted_attributes=(values[first] + values[second]) / 2)
        found = gains._scores(members[first], present[first], members[second : second + 1], present[second : second + 1], rows)
        assert found[0] == pytest.approx(expected, abs=1e-6)
    assert set(gains.values(1)) == {"t0", "t1", "t2"}


class Told:
    """Gains of a made-up kind, which remember for whom they were asked."""

    def __init__(self, study: object) -> None:
        self.study, self.asked = study, []

    def values(self, number: int) -> dict[str, float]:
        self.asked.append(number)
        return {f"toy-{n:04d}": float((n * 7 + number) % 5) for n in range(number) if n % 4 != 3}


def test_the_sampler_sees_gains_failures_and_running_trials() -> None:
    study = toy_study(trials=40, objective="ensemble_gain")
    told = Told(study)
    lane = Lane(study, 0, [], gains=told)  # type: ignore[arg-type]
    proposals = []
    for number in range(STARTUP + 3):
        proposals.append(lane.propose())
        if number != 5:  # trial 5 goes on running
            lane.tell(proposals[-1], 0.5)
    last = lane.propose()
    states = [trial.state.name for trial in lane.optuna.trials]
    assert states.count("RUNNING") == 2  # trial 5, and the one just asked for
    complete = [trial for trial in lane.optuna.trials if trial.state.name == "COMPLETE"]
    numbers = [n for n in range(STARTUP + 3) if n != 5]
    expected = [told.values(last.number).get(f"toy-{n:04d}", NO_GAIN) for n in numbers]
    assert [trial.value for trial in complete] == expected
    assert [dict(trial.params) for trial in complete] == [
        {name: dimension.to_optuna(proposals[n].params[name]) for name, dimension in lane.space.searched(proposals[n].params).items()}
        for n in numbers
    ]
    assert NO_GAIN in expected


def test_two_tasks_share_no_ensemble(tmp_path: Path) -> None:
    run_dir = toy_run(tmp_path / "run")
    other = Task(classes=("anger", "neutral", "sadness"), metric="macro_f1")
    studies = [toy_study("one", objective="ensemble_gain"), toy_study("two", task=other)]
    with pytest.raises(ConfigError, match="no ensemble holds both"):
        Board(run_dir, studies, Progress(quiet=True), {"cpu": 1})


@pytest.mark.usefixtures("local_ray")
def test_a_search_by_gain_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    """Whole, and cut after trial 7: the same configurations, scores and predictions; records hold
    own scores.
    """
    space = {**SPACE, "defaults": {**SPACE["defaults"], "epochs": 2, "patience": 2}}
    trials = STARTUP + 3

    def study(count: int):
        return toy_study(space=space, trials=count, objective="ensemble_gain")

    whole, cut = toy_run(tmp_path / "whole"), toy_run(tmp_path / "cut")
    run_search(whole, [study(trials)], max_concurrent=1)
    for count in (STARTUP + 1, trials):
        run_search(cut, [study(count)], max_concurrent=1)
    ours, theirs = Ledger(whole).trials(), Ledger(cut).trials()
    assert [record.params for record in ours] == [record.params for record in theirs]
    assert [record.score for record in ours] == [record.score for record in theirs]
    # the gains that the last proposal saw follow from the records alone
    board = Board(whole, [study(trials)], SimpleNamespace(), {"cpu": 1})  # type: ignore[arg-type]
    assert set(board.gains[0].values(trials)) == {record.trial for record in ours}
    label = dict(zip(board.gains[0].labels.utterances, board.gains[0].labels.label, strict=True))
    for record in ours:
        dev = record.predictions().filter(pl.col("split") == "dev")
        truth = np.array([label[utterance] for utterance in dev["utterance"]])
        predicted = dev.select(pl.col("^p\\..*$")).to_numpy().argmax(1)
        assert metrics.uar(truth, predicted, 3) == pytest.approx(record.score)
    plain = toy_run(tmp_path / "plain")
    run_search(plain, [toy_study(space=space, trials=trials)], max_concurrent=1)
    single = [record.params for record in Ledger(plain).trials()]
    assert single[:STARTUP] == [record.params for record in ours][:STARTUP]
    assert single[STARTUP:] != [record.params for record in ours][STARTUP:]  # the sampler learnt from something else
