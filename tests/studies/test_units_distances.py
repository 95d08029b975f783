"""Distances of distributions over units and the measures without units, against closed forms and
brute force.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from raysere.studies.units.distances import (
    corrected,
    cosine,
    emd,
    entropy,
    frechet,
    gaussian_frechet,
    ground_cost,
    hellinger,
    js,
    mmd,
    normalised,
    subsample,
    symmetric_kl,
    total_variation,
    weighted_js,
)
from raysere.studies.units.quality import unit_quality

HISTOGRAM = st.lists(st.integers(0, 50), min_size=6, max_size=6).filter(lambda counts: sum(counts) > 0)


def test_entropies_are_float64_and_zero_counts_cost_nothing() -> None:
    assert entropy(np.array([0.5, 0.5, 0.0])) == pytest.approx(np.log(2), abs=1e-12)
    assert entropy(np.array([1.0, 0.0])) == 0
    assert entropy(np.array([0.5, 0.5], dtype=np.float32)).dtype == np.float64
    assert np.isnan(js([0, 0], [1, 0]))  # no mass is not the same as equal
    assert np.isnan(hellinger([0, 0], [1, 0]))
    assert np.isnan(symmetric_kl([0, 0], [1, 0]))
    assert np.isnan(weighted_js([0, 0], [1, 0]))


def test_js_bounds() -> None:
    assert js([1, 1, 0, 0], [0, 0, 3, 1]) == pytest.approx(1.0, abs=1e-12)
    assert js([2, 4, 6], [1, 2, 3]) == 0
    assert weighted_js([5, 0], [0, 5]) == pytest.approx(np.log(2), abs=1e-12)


@given(HISTOGRAM, HISTOGRAM, HISTOGRAM)
@settings(max_examples=150, deadline=None)
def test_js_is_symmetric_and_its_root_a_metric(p: list[int], q: list[int], r: list[int]) -> None:
    assert js(p, q) == pytest.approx(js(q, p), abs=1e-12)
    assert 0 <= js(p, q) <= 1
    assert np.sqrt(js(p, q)) <= np.sqrt(js(p, r)) + np.sqrt(js(r, q)) + 1e-7
    assert (js(p, q) < 1e-12) == np.allclose(normalised(p), normalised(q))


@given(HISTOGRAM, HISTOGRAM)
@settings(max_examples=150, deadline=None)
def test_hellinger_and_total_variation_bound_each_other(p: list[int], q: list[int]) -> None:
    assert hellinger(p, q) ** 2 <= total_variation(p, q) + 1e-12
    assert total_variation(p, q) <= np.sqrt(2) * hellinger(p, q) + 1e-7


def test_js_is_the_information_of_a_fair_indicator() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(9))
    joint = np.stack([p, q]) / 2
    information = (joint * np.log2(joint / (joint.sum(0) * 0.5))).sum()
    assert js(p, q) == pytest.approx(information, abs=1e-12)


def test_the_weighted_form_is_the_g_statistic() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(1, 60, 8), rng.integers(1, 90, 8)
    statistic = chi2_contingency(np.stack([a, b]), correction=False, lambda_="log-likelihood").statistic
    assert 2 * (a.sum() + b.sum()) * weighted_js(a, b) == pytest.approx(statistic, abs=1e-9)


def test_the_bias_under_equality() -> None:
    rng = np.random.default_rng(2)
    p = np.full(50, 1 / 50)
    drawn = js(rng.multinomial(3000, p, 2000), rng.multinomial(1000, p, 2000)).mean() * np.log(2)
    expected = 49 / 8 * (1 / 3000 + 1 / 1000)
    assert expected == pytest.approx(0.0082, abs=5e-5)
    assert drawn == pytest.approx(expected, rel=0.05)


def test_other_distances_by_hand() -> None:
    assert hellinger([1, 0], [0, 1]) == 1
    assert total_variation([3, 1], [1, 3]) == 0.5
    assert cosine([1, 0], [1, 1]) == pytest.approx(1 - 1 / np.sqrt(2))
    p, q = np.array([3.5, 1.5]) / 5, np.array([1.5, 4.5]) / 6
    brute = (p * np.log2(p / q)).sum() + (q * np.log2(q / p)).sum()
    assert symmetric_kl([3, 1], [1, 4]) == pytest.approx(brute, abs=1e-12)


def test_earth_movers_distance() -> None:
    rng = np.random.default_rng(3)
    cost = ground_cost(rng.normal(size=(7, 3)))
    assert cost.max() == 1
    assert np.diagonal(cost).tolist() == [0] * 7
    one_hot = np.eye(7)
    assert emd(one_hot[2], one_hot[5], cost) == pytest.approx(cost[2, 5], abs=1e-9)
    p, q = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(7))
    assert emd(p, q, 1 - np.eye(7)) == pytest.approx(float(total_variation(p, q)), abs=1e-9)
    assert emd(p, p, cost) == 0
    line = np.abs(np.arange(7)[:, None] - np.arange(7)) / 6  # on a line it is the area between the distribution functions
    assert emd(p, q, line) == pytest.approx(np.abs(np.cumsum(p - q)).sum() / 6, abs=1e-9)
    assert np.isnan(emd(np.zeros(7), q, cost))
    moved = [emd(p, (1 - share) * p + share * q, cost) for share in (0.25, 0.5, 1.0)]  # in proportion to the mass that moves
    assert moved == pytest.approx([share * moved[2] for share in (0.25, 0.5, 1.0)], abs=1e-9)


def test_subsamples_keep_to_their_cell() -> None:
    rng = np.random.default_rng(4)
    counts = np.array([5, 0, 100, 45])
    drawn = np.stack([subsample(counts, 60, rng) for _ in range(400)])
    assert (drawn.sum(1) == 60).all()
    assert (drawn <= counts).all()
    assert drawn.mean(0) == pytest.approx(60 * counts / 150, abs=1)
    assert subsample(counts, 500, rng).tolist() == counts.tolist()


def _speakers(rng: np.random.Generator, p: np.ndarray, frames: int, spread: float = 40.0) -> np.ndarray:
    """Counts (speakers, K): every speaker has a distribution of his own around p."""
    return np.stack([rng.multinomial(frames, rng.dirichlet(spread * p + 1e-3)) for _ in range(12)])


def test_the_correction_is_zero_where_nothing_differs_but_the_speakers() -> None:
    rng = np.random.default_rng(5)
    p = np.full(20, 0.05)
    plain, right = zip(*(corrected(_speakers(rng, p, 60), _speakers(rng, p, 300), rng=rng) for _ in range(40)), strict=True)
    assert np.mean(plain) > 0.02
    assert abs(np.mean(right)) < 3 * np.std(right) / np.sqrt(40) + 0.002


def test_the_correction_keeps_a_difference() -> None:
    rng = np.random.default_rng(6)
    p, q = np.full(20, 0.05), np.repeat([0.08, 0.02], 10)
    values = [corrected(_speakers(rng, p, 200, 400), _speakers(rng, q, 200, 400), rng=rng)[1] for _ in range(10)]
    assert np.mean(values) == pytest.approx(float(js(p, q)), abs=0.02)


def test_nobody_is_compared_with_himself() -> None:
    """Speakers who differ much and do not move: paired with themselves they would look more alike
    than halves of other speakers do.
    """
    rng = np.random.default_rng(7)
    tastes = rng.dirichlet(np.full(20, 0.3), 12)
    one, other = (np.stack([rng.multinomial(300, taste) for taste in tastes]) for _ in range(2))
    value = corrected(one, other, rng=rng, splits=200, shared=True)[1]
    assert abs(value) < 0.01


def test_one_speaker_has_no_halves() -> None:
    rng = np.random.default_rng(8)
    plain, right = corrected(np.array([[5, 5]]), np.array([[5, 5], [4, 6]]), rng=rng)
    assert np.isfinite(plain)
    assert np.isnan(right)


def test_frechet() -> None:
    eye = np.eye(4)
    assert gaussian_frechet(np.zeros(4), 4 * eye, np.zeros(4), 9 * eye) == pytest.approx(4 * (2 - 3) ** 2)
    assert gaussian_frechet(np.ones(4), eye, np.zeros(4), eye) == pytest.approx(4)
    rng = np.random.default_rng(9)
    data = rng.normal(size=(300, 4))
    assert frechet(data, data) == pytest.approx(0, abs=1e-9)
    assert frechet(data, data + 2) == pytest.approx(16, abs=1e-9)
    from scipy.linalg import sqrtm

    a, b = np.cov(data, rowvar=False), np.cov(rng.normal(size=(99, 4)) * [1, 2, 3, 4], rowvar=False)
    brute = np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert gaussian_frechet(np.zeros(4), a, np.zeros(4), b) == pytest.approx(brute, abs=1e-8)


def test_mmd_is_the_unbiased_estimate() -> None:
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(7, 2)), rng.normal(1, 1, size=(5, 2))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * 1.5**2)))

    brute = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    brute += np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    brute -= 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert mmd(x, y, 1.5) == pytest.approx(brute, abs=1e-12)
    null = [mmd(rng.normal(size=(40, 2)), rng.normal(size=(40, 2))) for _ in range(60)]
    assert abs(np.mean(null)) < 0.01
    assert mmd(x, x + 100) > 0.5


def test_quality_of_units() -> None:
    bijection = unit_quality(np.diag([5, 9, 2]))
    assert bijection["pnmi"] == pytest.approx(1, abs=1e-12)
    assert (bijection["phone_purity"], bijection["cluster_purity"]) == (1, 1)
    independent = unit_quality(np.outer([3, 5, 2], [4, 4, 1]))
    assert independent["pnmi"] == pytest.approx(0, abs=1e-12)
    assert unit_quality(np.array([[3, 1], [1, 5]])) == pytest.approx(
        {
            "phone_purity": 0.8,
            "cluster_purity": 0.8,
            "pnmi": 1 - (0.4 * entropy([0.75, 0.25]) + 0.6 * entropy([1 / 6, 5 / 6])) / entropy([0.4, 0.6]),
            "perplexity": float(np.exp(entropy([0.4, 0.6]))),
            "frames": 10,
        }
    )
    finer = unit_quality(np.array([[2, 1, 1], [1, 3, 2]]))  # merging the last two units cannot tell more
    assert (finer["phone_purity"], finer["cluster_purity"]) == pytest.approx((0.7, 0.5))
    assert finer["pnmi"] >= unit_quality(np.array([[2, 2], [1, 5]]))["pnmi"]
    assert np.isnan(unit_quality(np.zeros((2, 3)))["pnmi"])
    assert np.isnan(unit_quality(np.array([[3, 1]]))["pnmi"])
