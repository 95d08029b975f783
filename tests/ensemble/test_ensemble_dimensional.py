"""Pools of attributes and variance matching (docs/methods.md 4.11)."""

from __future__ import annotations

import numpy as np
import pytest

from raysere.base.errors import DataError
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.fit.attributes import (
    ambiguity,
    ccc_weights,
    expected_ccc,
    fit_attribute,
    greedy_ccc_weights,
    group_folds,
    ledoit_wolf,
    match_variance,
    natural_pool,
    nnls_weights,
    rank_pool,
    shrunk_weights,
    standardise,
)
from raysere.ensemble.fit.greedy import GreedyParams
from raysere.training.metrics import ccc

WIDE = (-1e9, 1e9)
CONFIG = EnsembleConfig(bags=4)


def _members(seed=0, items=400, noise=(0.5, 1.0, 2.0, 1.0)):
    generator = np.random.default_rng(seed)
    target = generator.normal(4, 1, items)
    values = np.stack([0.5 * target + 1 + sd * generator.normal(size=items) for sd in noise])
    return values, target, generator.integers(0, 12, items)


def _fit(values, target, group, family, kappa=1.0, scale=WIDE, config=CONFIG):
    return fit_attribute(
        values, np.ones(values.shape, bool), target, group, [f"m{m}" for m in range(len(values))], family, scale, config, kappa=kappa
    )


def test_the_formula_of_averaged_members():
    unmatched, matched = expected_ccc(5, 0.6, 0.7)
    assert (round(unmatched, 3), round(matched, 3)) == (0.833, 0.849)
    generator = np.random.default_rng(0)
    covariance = np.full((6, 6), 0.6)
    covariance[0, 1:] = covariance[1:, 0] = 0.7
    np.fill_diagonal(covariance, 1.0)
    draws = generator.multivariate_normal(np.zeros(6), covariance, 200_000).T
    target, members = draws[0], draws[1:]
    mean = members.mean(0)
    assert ccc(mean, target) == pytest.approx(unmatched, abs=0.004)
    slope, intercept = match_variance(mean, target, 1.0, WIDE)
    assert ccc(slope * mean + intercept, target) == pytest.approx(matched, abs=0.004)


def test_matching_reaches_the_correlation_and_never_loses_on_the_fitting_rows():
    values, target, group = _members()
    fit = _fit(values, target, group, "average")
    every = np.ones(values.shape, bool)
    answer, raw = fit.predict(values, every), natural_pool(values, every, fit.weights, fit.mean, fit.sd)
    assert ccc(answer, target) == pytest.approx(abs(np.corrcoef(raw, target)[0, 1]), abs=1e-6)
    assert ccc(answer, target) > ccc(raw, target) + 0.05


def test_kappa_shrinks_the_slope_towards_one():
    pooled, target = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 4.0, 6.0])
    assert match_variance(pooled, target, 0.0, WIDE) == (1.0, pytest.approx(0.5))
    assert match_variance(pooled, target, 0.5, WIDE)[0] == pytest.approx(1.5)
    assert match_variance(pooled, target, 1.0, WIDE)[0] == pytest.approx(2.0)


def test_clipping_is_made_good():
    generator = np.random.default_rng(1)
    target = np.clip(generator.normal(5.5, 1.5, 5000), 1, 7)
    pooled = 0.4 * target + generator.normal(0, 0.3, 5000)
    once = np.clip(*[(s := match_variance(pooled, target, 1.0, (1, 7), rounds=0))[0] * pooled + s[1]], 1, 7)
    slope, intercept = match_variance(pooled, target, 1.0, (1, 7))
    thrice = np.clip(slope * pooled + intercept, 1, 7)
    assert abs(thrice.std() - target.std()) < 0.3 * abs(once.std() - target.std())
    assert abs(thrice.mean() - target.mean()) < 0.01
    assert thrice.min() >= 1
    assert thrice.max() <= 7


def test_nnls_has_the_highest_correlation_of_all_non_negative_combinations():
    values, target, _ = _members(3)
    standard, _, _ = standardise(values, np.ones(values.shape, bool))
    best = np.corrcoef(nnls_weights(standard, target) @ standard, target)[0, 1]
    draws = np.random.default_rng(0).dirichlet(np.ones(4), 20_000)
    pooled = draws @ standard
    y = (target - target.mean()) / target.std()
    correlations = (pooled - pooled.mean(1, keepdims=True)) @ y / len(y) / pooled.std(1)
    assert best >= correlations.max() - 1e-9
    assert best - correlations.max() < 1e-3


def test_weights_of_the_other_families():
    assert ccc_weights(np.array([0.5, 0.25, -0.3]), 1).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert ccc_weights(np.array([-0.5, -0.1])).tolist() == [0.5, 0.5]
    values, target, group = _members()
    standard, _, _ = standardise(values, np.ones(values.shape, bool))
    assert np.argmax(shrunk_weights(standard, target)) == 0
    assert _fit(values, target, group, "best_single").weights.tolist() == [1, 0, 0, 0]
    assert _fit(values, target, group, "average").weights.tolist() == [0.25] * 4


def test_ledoit_wolf_agrees_with_the_reference():
    sklearn = pytest.importorskip("sklearn.covariance")
    x = np.random.default_rng(0).normal(size=(6, 30)) + np.linspace(0, 2, 30)
    centred = x - x.mean(1, keepdims=True)
    assert np.allclose(ledoit_wolf(centred), sklearn.ledoit_wolf(centred.T, assume_centered=True)[0])


@pytest.mark.parametrize("bags", [0, 5])
def test_greedy_is_independent_of_order_and_copies_and_finds_the_perfect_member(bags):
    values, target, group = _members(5, noise=(1.0, 1.5, 2.0, 1.2, 0.9))
    standard, _, _ = standardise(values, np.ones(values.shape, bool))
    ids, params = [f"m{m}" for m in range(5)], GreedyParams(bags=bags)
    weights = greedy_ccc_weights(standard, target, group, ids, params)
    order = np.array([3, 1, 4, 0, 2])
    assert np.array_equal(greedy_ccc_weights(standard[order], target, group, [ids[m] for m in order], params), weights[order])
    doubled = greedy_ccc_weights(np.vstack([standard, standard[:2]]), target, group, [*ids, "m0x", "m1x"], params)
    assert np.allclose(doubled @ np.vstack([standard, standard[:2]]), weights @ standard)
    standard[2] = (target - target.mean()) / target.std()
    assert greedy_ccc_weights(standard, target, group, ids, GreedyParams(bags=0))[2] == 1.0


def test_the_fast_greedy_step_is_the_correlation_of_the_mean():
    values, target, _ = _members(6)
    standard, _, _ = standardise(values, np.ones(values.shape, bool))
    weights = greedy_ccc_weights(
        standard, target, np.zeros(len(target)), list("abcd"), GreedyParams(bags=0, steps=3, start=1, patience=3, gain=0)
    )
    best, chosen = None, [int(np.argmax([np.corrcoef(m, target)[0, 1] for m in standard]))]
    for _ in range(2):
        chosen.append(int(np.argmax([np.corrcoef(standard[chosen].sum(0) + m, target)[0, 1] for m in standard])))
    best = max(range(1, 4), key=lambda n: (round(np.corrcoef(standard[chosen[:n]].sum(0), target)[0, 1], 12), -n))
    assert weights.tolist() == pytest.approx((np.bincount(chosen[:best], minlength=4) / best).tolist())


def test_the_rank_pool_is_blind_to_monotone_maps():
    values, target, _ = _members(7)
    bent = values.copy()
    bent[1] = np.exp(values[1])
    weights = np.array([0.4, 0.3, 0.2, 0.1])
    assert np.allclose(rank_pool(values, weights, target), rank_pool(bent, weights, target))
    assert rank_pool(values, weights, target).min() >= target.min()


def test_the_ambiguity_identity():
    values, target, _ = _members(8)
    left, right = ambiguity(values, np.array([0.1, 0.2, 0.3, 0.4]), target)
    assert left == pytest.approx(right, abs=1e-10)
    assert right > 0.1


def test_missing_members_are_renormalised():
    values, target, group = _members()
    present = np.ones(values.shape, bool)
    present[1:, 0] = False
    present[:, 1] = False
    fit = fit_attribute(values, present, target, group, list("abcd"), "average", WIDE, CONFIG, kappa=1.0)
    answer = fit.predict(values, present)
    expected = fit.slope * (fit.mean.mean() + fit.sd.mean() * (values[0, 0] - fit.mean[0]) / fit.sd[0]) + fit.intercept
    assert answer[0] == pytest.approx(expected)
    assert np.isnan(answer[1])
    assert np.isfinite(answer[2:]).all()


def test_folds_keep_speakers_whole_and_are_balanced():
    group = np.random.default_rng(0).integers(0, 17, 500)
    fold = group_folds(group, 5, 0)
    assert all(len(np.unique(fold[group == name])) == 1 for name in range(17))
    assert len(np.bincount(fold)) == 5
    assert np.ptp(np.bincount(fold)) < 60
    assert len(np.unique(group_folds(np.zeros(5), 5, 0))) == 1


def test_nothing_to_fit_is_refused():
    with pytest.raises(DataError):
        fit_attribute(np.zeros((0, 5)), np.zeros((0, 5), bool), np.zeros(5), np.zeros(5), [], "average", WIDE, CONFIG)
