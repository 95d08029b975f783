"""Choosing among trials without a target label."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from raysere.base.errors import DataError
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.fit.part import fit_part
from raysere.ensemble.fit.unlabelled_target import MIXED_RULE, RULE, choose_member, criteria_of_members, near_members
from raysere.training.task import Task

TASK = Task(classes=("anger", "happiness", "neutral", "sadness"))


def told(selection, metrics, epochs=(30, 30, 30)):
    members = tuple(
        replace(member, record=SimpleNamespace(metrics={f"criterion.{k}": v for k, v in own.items()} | {"uar": 0.9}, epochs=count))
        for member, own, count in zip(selection.predictions.members, metrics, epochs, strict=True)
    )
    return replace(selection, predictions=replace(selection.predictions, members=members))


def test_the_best_ranks_among_those_near_the_best_on_the_source(toy):
    even = toy.selection([1.5, 1.5, 0.1], items=600, speakers=12)
    good, better = {"infomax": 0.5, "dev": 0.4, "snd": 1.0, "class_ami": 0.2}, {"infomax": 0.9, "dev": 0.2, "snd": 2.0, "class_ami": 0.4}
    best = {"infomax": 1.3, "dev": 0.0, "snd": 5.0, "class_ami": 0.9}
    for first, second in ((good, better), (better, good)):
        selection = told(even, [first, second, best])
        assert choose_member(selection, TASK, MIXED_RULE) == int(second is better), "the third is far behind on the source"
    assert choose_member(told(even, [good, better, best]), TASK) in (0, 1)
    assert RULE == ("source_dev",)
    assert choose_member(told(even, [{**good, "infomax": 2.0}, better, best]), TASK, ("infomax",)) == 0


def test_lower_is_better_where_it_is_and_what_is_missing_ranks_last(toy):
    even = toy.selection([1.5, 1.5, 0.1], items=600, speakers=12)
    assert choose_member(told(even, [{"dev": 0.1}, {"dev": 0.3}, {}]), TASK, ("dev",)) == 0
    assert choose_member(told(even, [{}, {"dev": 0.9}, {}]), TASK, ("dev",)) == 1


def test_of_equals_the_one_of_fewer_epochs(toy):
    even = toy.selection([1.5, 1.5, 0.1], items=600, speakers=12)
    same = dict.fromkeys(MIXED_RULE, 0.5)
    for epochs, expected in (((30, 10, 5), 1), ((10, 30, 5), 0)):
        assert choose_member(told(even, [same, same, same], epochs), TASK, MIXED_RULE) == expected


def test_what_is_told_of_a_trial(toy):
    selection = told(toy.selection([1.5, 1.5, 0.1], items=300), [{"infomax": 0.5, "weights_effective": 0.3}, {}, {}])
    found = list(criteria_of_members(selection, TASK).values())
    assert set(found[0]) == {"source_dev", "infomax"}
    assert 0.3 < found[0]["source_dev"] <= 1
    with pytest.raises(DataError, match="oracle"):
        choose_member(selection, TASK, ("oracle",))


def test_an_ensemble_of_those_near_the_best(toy):
    selection = toy.selection([1.5, 1.5, 0.1], items=600, speakers=12)
    assert near_members(selection, TASK) == [0, 1]
    assert near_members(selection, TASK, 1e9) == [0, 1, 2]
    plain = EnsembleConfig(family="average", calibrate=False, offsets="none", recipes=())
    ids = [member.id for member in selection.predictions.members]
    for near, expected in ((1.0, ids[:2]), (None, ids)):
        part = fit_part(selection, TASK, plain.model_copy(update={"near": near}))
        assert [member.id for member in part.classes.members] == expected
