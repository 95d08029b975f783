"""The start-up of a search: every choice and every stratum of a range occurs, whatever the seed."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from raysere.search.startup import SpreadSampler


def draw(seed: int, number: int, name: str, distribution: Any, count: int = 10) -> Any:
    return SpreadSampler(seed, number, count).sample_independent(None, None, name, distribution)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), choices=st.integers(1, 6))
def test_each_block_of_numbers_holds_every_choice_once(seed, choices):
    values = list("abcdef"[:choices])
    for block in range(3):
        drawn = [draw(seed, block * choices + place, "x", CategoricalDistribution(values)) for place in range(choices)]
        assert sorted(drawn) == values


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), log=st.booleans())
def test_numbers_fall_into_different_strata_of_a_range(seed, log):
    distribution = FloatDistribution(1e-4, 1e-2, log=log)
    drawn = [draw(seed, number, "lr", distribution) for number in range(10)]
    assert all(1e-4 <= value <= 1e-2 for value in drawn)
    import math

    share = [(math.log(v / 1e-4) / math.log(100)) if log else (v - 1e-4) / (1e-2 - 1e-4) for v in drawn]
    assert sorted(int(min(s, 1 - 1e-12) * 10) for s in share) == list(range(10))


@pytest.mark.parametrize("log", [False, True])
def test_whole_numbers_stay_whole_and_inside_and_reach_both_ends(log):
    drawn = {draw(seed, number, "layer", IntDistribution(1, 6, log=log)) for seed in range(5) for number in range(10)}
    assert drawn == set(range(1, 7))
    assert all(isinstance(value, int) for value in drawn)


def test_parameters_are_not_spread_in_step_with_each_other():
    pairs = {(draw(0, n, "a", CategoricalDistribution("xyz")), draw(0, n, "b", CategoricalDistribution("xyz"))) for n in range(30)}
    assert len(pairs) > 6


def test_a_study_takes_it():
    study = optuna.create_study(sampler=SpreadSampler(0, 3, 10))
    assert study.ask().suggest_float("lr", 0.1, 1.0) == draw(0, 3, "lr", FloatDistribution(0.1, 1.0))
