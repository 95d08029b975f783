"""Debiased CKA (papers T.18), its permutation p, maps of layers and their second-order similarity."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from raysere.base.errors import DataError
from raysere.studies.estimate import jackknife_interval, permutation_p, speaker_groups, spearman, spearman_test
from raysere.studies.layers.cka import cka_map, linear_cka, permutation_test, row_orders, second_order


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def by_u_statistic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al.

    2012, equation 5, on Gram matrices of rows that are not centred, with zero diagonals.
    """
    n = len(x)

    def hsic(a, b):
        k, m = a @ a.T, b @ b.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        one = np.ones(n)
        return np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


@pytest.mark.parametrize(("n", "first", "second"), [(12, 5, 7), (30, 4, 3), (6, 40, 9)])
def test_equals_the_u_statistic_on_gram_matrices(random, n, first, second):
    x, y = random.normal(size=(n, first)) + 3, random.normal(size=(n, second))
    y[:, 0] += x[:, 0]
    assert linear_cka(x, y).value == pytest.approx(by_u_statistic(x, y), abs=1e-12)


@pytest.mark.parametrize("debiased", [True, False])
def test_self_is_one_and_rotation_scale_and_shift_change_nothing(random, debiased):
    x, y = random.normal(size=(25, 6)), random.normal(size=(25, 9))
    y[:, :3] += x[:, :3]
    rotation, _ = np.linalg.qr(random.normal(size=(9, 9)))
    value = linear_cka(x, y, debiased=debiased).value
    assert linear_cka(x, x, debiased=debiased).value == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, 0.01 * y @ rotation - 70, debiased=debiased).value == pytest.approx(value, abs=1e-9)
    assert linear_cka(y, x, debiased=debiased).value == pytest.approx(value, abs=1e-12)
    assert abs(linear_cka(x, y @ np.diag([1, 1, 1, 9, 9, 9, 1, 1, 1]), debiased=debiased).value - value) > 0.02


def test_unrelated_wide_rows_are_near_nought_where_the_biased_form_is_near_one():
    random = np.random.default_rng(1)
    pairs = [(random.normal(size=(20, 768)), random.normal(size=(20, 768))) for _ in range(30)]
    debiased = [linear_cka(x, y).value for x, y in pairs]
    assert abs(np.mean(debiased)) < 0.05
    assert np.std(debiased) < 0.15
    assert min(linear_cka(x, y, debiased=False).value for x, y in pairs) > 0.95


def test_what_has_no_variance_is_nan_with_a_reason_and_three_rows_are_too_few(random):
    found = linear_cka(np.ones((8, 3)), random.normal(size=(8, 3)))
    assert math.isnan(found.value)
    assert "first side" in found.reason
    one_row = np.zeros((6, 2))
    one_row[0] = 5  # variance, but none that two different pairs of rows agree on
    assert math.isnan(linear_cka(one_row, random.normal(size=(6, 2))).value)
    with pytest.raises(DataError, match="more than 3"):
        linear_cka(np.eye(3), np.eye(3))
    with pytest.raises(DataError, match="same rows"):
        linear_cka(np.zeros((8, 2)), np.zeros((9, 2)))


def test_the_permutation_test_is_that_of_permuted_rows_and_never_says_nought(random):
    x = random.normal(size=(5, 4))
    y = np.concatenate([x, random.normal(size=(5, 2))], axis=1)
    orders = row_orders(5, 999)
    assert sorted(map(tuple, orders.tolist())) == sorted(set(itertools.permutations(range(5))) - {tuple(range(5))})

    def cka(a, b):
        return linear_cka(a, b).value

    found = permutation_test(cka, x, y, orders)
    assert found.value == cka(x, y)
    null = [linear_cka(x, y[order]).value for order in orders]
    assert found.null == pytest.approx(np.mean(null), abs=1e-12)
    assert found.p == pytest.approx((1 + sum(value >= found.value for value in null)) / 120)
    assert permutation_test(cka, x, x, row_orders(5, 50)).p == pytest.approx(1 / 51)
    assert permutation_p(1.0, [0.0] * 9) == 0.1
    assert permutation_p(0.3, [0.1 + 0.2] * 9) == 1.0  # equal but for rounding
    assert math.isnan(permutation_p(float("nan"), [1.0]))


@pytest.mark.parametrize("n", [12, 200])  # by Gram matrices, and by products of features
def test_a_map_holds_the_cka_of_every_two_layers(random, n):
    layers = [random.normal(size=(n, width)) for width in (6, 4, 5)]
    layers[1][:, :2] += layers[0][:, :2]
    table = cka_map([*layers, np.ones((n, 4))])
    assert table[:3, :3] == pytest.approx(np.array([[linear_cka(a, b).value for b in layers] for a in layers]), abs=1e-10)
    assert np.isnan(table[3]).all()


def test_two_networks_with_the_same_order_of_layers_have_similar_maps_and_shuffled_layers_have_not():
    random = np.random.default_rng(2)

    def deep(n: int, order) -> np.ndarray:
        x, layers = random.normal(size=(n, 30)), []
        for _ in range(7):
            x = x + 0.7 * random.normal(size=x.shape)
            layers.append(x)
        return cka_map([layers[at] for at in order])

    first = deep(200, range(7))
    found = second_order(first, deep(150, range(7)))
    assert found.value > 0.9
    assert 0 < found.p <= 0.01
    assert second_order(first, deep(150, [3, 0, 5, 1, 6, 2, 4])).value < 0.3
    assert second_order(first, first**3).value == pytest.approx(1)  # ranks only
    assert second_order(first[:2, :2], first[:2, :2]).reason


def test_spearman_is_that_of_scipy_and_skips_what_is_missing(random):
    from scipy.stats import spearmanr

    x, y = random.integers(0, 5, 30).astype(float), random.normal(size=30)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert spearman([1, 2, 3, float("nan")], [1, 2, 3, 0]) == pytest.approx(1)
    assert math.isnan(spearman([1, 1, 1, 1], [1, 2, 3, 4]))
    found = spearman_test(np.arange(9.0), np.arange(9.0) ** 3)
    assert found.value == pytest.approx(1)
    assert found.p == pytest.approx(1 / 1000)


def test_the_jackknife_of_a_mean_is_its_standard_error_and_variances_of_two_corpora_add(random):
    x, y = random.normal(size=40), random.normal(size=25)
    left_out = [np.array([np.delete(one, at).mean() for at in range(len(one))]) for one in (x, -y)]
    low, high = jackknife_interval(0.1, left_out)
    error = math.sqrt(x.var(ddof=1) / 40 + y.var(ddof=1) / 25)
    assert (low, high) == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=1e-12)
    assert jackknife_interval(0.1, left_out, (0.0, 0.2)) == (0.0, 0.2)
    assert all(map(math.isnan, jackknife_interval(0.1, [[0.1], left_out[1]])))
    groups = speaker_groups([f"s{k % 7}" for k in range(50)], 3)
    assert sorted(np.concatenate(groups).tolist()) == [f"s{k}" for k in range(7)]
    assert [len(group) for group in groups] == [3, 2, 2]
