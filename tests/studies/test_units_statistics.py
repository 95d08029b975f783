"""Permutations, corrections and ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import false_discovery_control, spearmanr

from raysere.studies.units.distances import js
from raysere.studies.units.statistics import (
    benjamini_hochberg,
    kendall_tau,
    mantel,
    match_margin,
    match_ranks,
    matched_similarity,
    null_distribution,
    permutation_p,
    shuffled_emotions,
    shuffled_phones,
    similarity,
    speaker_weights,
    spearman,
)


def test_benjamini_hochberg() -> None:
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    p = np.random.default_rng(0).uniform(size=50)
    adjusted = benjamini_hochberg(p)
    assert adjusted == pytest.approx(false_discovery_control(p, method="bh"))
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    holed = benjamini_hochberg([0.01, np.nan, 0.02])  # a cell that was not tested is no test
    assert holed[[0, 2]] == pytest.approx([0.02, 0.02])
    assert np.isnan(holed[1])
    assert len(benjamini_hochberg([])) == 0


def test_false_discoveries_under_the_null() -> None:
    p = np.random.default_rng(1).uniform(size=(2000, 20))
    any_rejected = np.mean([(benjamini_hochberg(row) <= 0.1).any() for row in p])
    assert 0.07 < any_rejected < 0.13


def test_permutation_p_is_never_zero() -> None:
    null = np.zeros((99, 2))
    assert permutation_p(np.array([5.0, 0.0]), null) == pytest.approx([0.01, 1.0])
    assert np.isnan(permutation_p(np.array([np.nan]), np.zeros((9, 1)))).all()


def test_similarities() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 9, (3, 5)) + 0.1, rng.integers(0, 9, (4, 5)) + 0.1
    table = similarity(a, b)
    assert table.shape == (3, 4)
    for i, j in itertools.product(range(3), range(4)):
        assert table[i, j] == pytest.approx(1 - js(a[i], b[j]), abs=1e-12)
        assert matched_similarity(a[i], b[j]) == pytest.approx(table[i, j], abs=1e-12)


def test_margins_and_ranks() -> None:
    table = np.array([[0.9, 0.2, 0.4], [0.8, 0.5, 0.1], [0.3, 0.3, 0.3]])
    assert match_margin(table) == pytest.approx([0.6, 0.05, 0.0])
    assert match_ranks(table, [0, 1, 2]).tolist() == [1, 2, 3]  # equals count against it
    assert np.isnan(match_ranks(np.array([[0.5, np.nan]]), [0])[0])


def test_shuffles_stay_within_the_speaker() -> None:
    counts = np.random.default_rng(3).integers(0, 9, (4, 3, 5, 2)).astype(float)
    rng = np.random.default_rng(4)
    phones = counts.sum(2)
    shuffled = shuffled_phones(phones, rng)
    assert shuffled.shape == (3, 2)
    assert shuffled.sum(0) == pytest.approx(phones.sum((0, 1)))
    one = np.zeros((2, 3, 2))
    one[0, :, 0], one[1, :, 1] = [1, 2, 3], [10, 20, 30]  # the two speakers' cells cannot get into each other's unit
    for _ in range(20):
        drawn = shuffled_phones(one, rng)
        assert sorted(drawn[:, 0]) == [1, 2, 3]
        assert sorted(drawn[:, 1]) == [10, 20, 30]
    seen = {tuple(shuffled_phones(one, rng)[:, 0]) for _ in range(200)}
    assert len(seen) == 6


def test_emotions_go_round_among_those_of_the_speaker_and_take_all_phones_along() -> None:
    counts = np.zeros((2, 2, 3, 1))
    counts[0, 0, :, 0], counts[0, 1, :, 0] = [1, 2, 3], [100, 200, 300]
    counts[1, 0, :2, 0] = [10, 20]  # the second speaker is not heard in the third emotion
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(300):
        drawn = shuffled_emotions(counts, rng)[..., 0]
        first = drawn[0] % 10
        assert sorted(first) == [1, 2, 3]
        assert drawn[1].tolist() == (100 * first).tolist()
        assert drawn[0, 2] < 10
        seen.add(tuple(drawn[0]))
    assert len(seen) == 12


def test_a_permutation_test_holds_its_level() -> None:
    """Speakers with tastes of their own and no effect of emotion: p is uniform, since speakers are
    the blocks.
    """
    rng = np.random.default_rng(6)
    found = []
    for _ in range(120):
        tastes = rng.dirichlet(np.full(6, 0.5), 8)
        counts = np.stack([[rng.multinomial(80, taste) for _ in range(2)] for taste in tastes])[:, None].astype(float)

        def statistic(table: np.ndarray) -> np.ndarray:
            return 1 - matched_similarity(table[0, 1], table[0, 0])

        null = null_distribution(lambda draw, counts=counts: statistic(shuffled_emotions(counts, draw)), 99, int(rng.integers(1 << 30)))
        found.append(float(permutation_p(statistic(counts.sum(0)), null)))
    assert np.mean(np.array(found) <= 0.1) < 0.2
    assert 0.4 < np.mean(found) < 0.6


def test_bootstrap_weights() -> None:
    weights = speaker_weights(7, 500, np.random.default_rng(7))
    assert (weights.sum(1) == 7).all()
    assert weights.mean() == pytest.approx(1)
    assert weights.std() > 0.5


def test_rank_correlations() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=20), rng.normal(size=20)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman([*a, np.nan], [*b, 5]) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert np.isnan(spearman([1, 2], [1, 2]))
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert np.isnan(kendall_tau([1], [1]))


def test_mantel() -> None:
    rng = np.random.default_rng(9)
    places = rng.normal(size=(9, 2))
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    value, p = mantel(distances, distances**2, 199, 0)
    assert value == pytest.approx(1)
    assert p == pytest.approx(1 / 200)
    values = [mantel(distances, _random(rng, 9), 99, 0)[1] for _ in range(60)]
    assert np.mean(np.array(values) <= 0.1) < 0.25
    assert np.isnan(mantel(distances[:3, :3], distances[:3, :3], 9, 0)[1])


def _random(rng: np.random.Generator, size: int) -> np.ndarray:
    table = rng.uniform(size=(size, size))
    return table + table.T
