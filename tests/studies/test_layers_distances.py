"""Label-free distances: the published formulas, no bias under equality, intervals and nulls over
speakers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from raysere.base.errors import DataError
from raysere.studies.layers.discrepancy import (
    DISCREPANCIES,
    discrepancy,
    gaussian_kernel,
    kernel_sums,
    moved_by,
    plain,
    shared_scale,
    zscored,
)
from raysere.studies.layers.probes import out_of_fold, proxy_a_distance, relevance, speaker_folds


def corpora(shift: float = 0.0, scale: float = 1.0, *, speakers: int = 8, each: int = 12, dim: int = 20, own: float = 0.0, seed: int = 0):
    """Two corpora of Gaussian rows; ``own`` is the standard deviation of what a speaker adds to all
    of his rows.
    """
    random = np.random.default_rng(seed)
    rows, names = [], []
    for side in range(2):
        voice = own * random.normal(size=(speakers, dim))
        rows.append(random.normal(size=(speakers * each, dim)) + np.repeat(voice, each, axis=0))
        names.append([f"{side}/{number}" for number in np.repeat(np.arange(speakers), each)])
    rows[1] = rows[1] * scale + shift
    return rows[0], rows[1], (names[0], names[1])


def test_plain_forms_equal_the_published_formulas():
    x, y, speakers = corpora(0.5, seed=3)
    y = y @ np.diag(np.linspace(0.5, 2, 20)) + 0.3 * y[:, ::-1]
    a, b = np.cov(zscored(x).T, bias=True), np.cov(zscored(y).T, bias=True)
    wanted = np.square(a - b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
    assert plain("covariance_gap", kernel_sums("covariance_gap", x, y, speakers)) == pytest.approx(wanted, abs=1e-10)
    s, t = shared_scale(x, y)
    assert plain("mean_gap", kernel_sums("mean_gap", x, y, speakers)) == pytest.approx(np.square(s.mean(0) - t.mean(0)).mean(), abs=1e-10)
    k, n = gaussian_kernel(np.concatenate([s, t])), len(x)
    wanted = k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()
    assert plain("mmd", kernel_sums("mmd", x, y, speakers)) == pytest.approx(wanted, abs=1e-12)


def test_the_median_pair_has_a_kernel_of_one_over_e():
    x = np.random.default_rng(0).normal(size=(41, 3))
    kernel = gaussian_kernel(x)
    assert np.diagonal(kernel) == pytest.approx(np.ones(41), abs=1e-9)
    assert np.median(kernel[np.triu_indices(41, 1)]) == pytest.approx(np.exp(-1), abs=1e-4)
    assert kernel[1, 2] ** (1 / np.square(x[1] - x[2]).sum()) == pytest.approx(kernel[3, 4] ** (1 / np.square(x[3] - x[4]).sum()))


def test_covariances_of_scaled_identities_have_the_closed_form():
    """C_S = I and C_T = s^2 I on the same scale: (1 - s^2)^2 / s^2 whatever the width (papers T.12,
    normalised).
    """
    d, s = 6, 2.0
    x = np.concatenate([np.eye(d), -np.eye(d)]) * math.sqrt(d)  # population covariance I, mean 0
    k = np.square(np.concatenate([x, s * x]) @ np.concatenate([x, s * x]).T)
    from raysere.studies.layers.discrepancy import speaker_sums

    side = np.arange(4 * d) >= 2 * d
    sums = speaker_sums(k, [f"{int(t)}/{n % 3}" for n, t in enumerate(side)], side)
    assert plain("covariance_gap", sums) == pytest.approx((1 - s**2) ** 2 / s**2, abs=1e-9)


def test_only_pairs_of_different_speakers_count_within_a_corpus():
    x, y, speakers = corpora(0.4, speakers=3, each=4, seed=5)
    rows, n = np.concatenate(shared_scale(x, y)), len(x)
    names = np.array([*speakers[0], *speakers[1]])
    k, other = gaussian_kernel(rows), names[:, None] != names
    wanted = k[:n, :n][other[:n, :n]].mean() + k[n:, n:][other[n:, n:]].mean() - 2 * k[:n, n:].mean()
    assert discrepancy("mmd", kernel_sums("mmd", x, y, speakers), draws=60, permutations=20).value == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", sorted(DISCREPANCIES))
def test_equal_populations_with_strong_speakers_have_no_gap_on_average(name):
    """The plain forms see a gap where there are only different speakers; the debiased ones do not."""
    found = []
    for seed in range(25):
        x, y, speakers = corpora(own=1.0, seed=seed)
        sums = kernel_sums(name, x, y, speakers)
        found.append((discrepancy(name, sums, draws=50, permutations=1).value, plain(name, sums)))
    debiased, noisy = np.array(found).T
    error = debiased.std() / math.sqrt(len(found))
    assert abs(debiased.mean()) < max(4 * error, 0.2 * noisy.mean())
    assert noisy.mean() > 6 * error


@pytest.mark.parametrize("name", sorted(DISCREPANCIES))
def test_distances_are_symmetric_and_do_not_see_translation_of_both_or_scale(name):
    x, y, speakers = corpora(0.3, own=0.4, seed=7)
    there = discrepancy(name, kernel_sums(name, x, y, speakers), draws=100, permutations=20)
    back = discrepancy(name, kernel_sums(name, y, x, speakers[::-1]), draws=100, permutations=20)
    moved = discrepancy(name, kernel_sums(name, 30 * x + 4, 30 * y + 4, speakers), draws=100, permutations=20)
    assert back.value == pytest.approx(there.value, abs=1e-10)
    assert moved.value == pytest.approx(there.value, abs=1e-7)


def test_intervals_are_those_of_new_speakers():
    """Means a standard deviation apart, speakers that differ as much as their utterances: an
    interval over rows would be far too narrow.
    """
    covered, widths = [], []
    for seed in range(60):
        x, y, speakers = corpora(1.0, own=1.0, dim=4, seed=seed)
        found = discrepancy("mean_gap", kernel_sums("mean_gap", x, y, speakers), draws=200, permutations=1)
        covered.append(found.low <= 0.5 <= found.high)  # 1 / (1 + 1): the variance of a row is that of its speaker and its own
        widths.append(found.high - found.low)
    assert np.mean(covered) > 0.8
    assert 0.3 < np.mean(widths) < 2


def test_a_gap_is_found_with_its_interval_above_the_null_and_p_is_never_nought():
    x, y, speakers = corpora(0.8, own=0.3, seed=1)
    found = discrepancy("mean_gap", kernel_sums("mean_gap", x, y, speakers), draws=400, permutations=199)
    assert 0 < found.null_edge < found.low < found.value < found.high
    assert found.p == pytest.approx(1 / 200)
    mixed = y.copy()
    mixed[:, ::2] = mixed[:, 1::2]  # pairs of equal columns: other correlations, the same variances
    found = discrepancy("covariance_gap", kernel_sums("covariance_gap", x, mixed, speakers), draws=400, permutations=199)
    assert found.null_edge < found.low < found.value
    assert found.p < 0.02


def test_what_cannot_be_told_says_so():
    x, y, speakers = corpora()
    found = discrepancy("mmd", kernel_sums("mmd", x, y, (["one"] * len(x), speakers[1])))
    assert math.isnan(found.value)
    assert "one speaker" in found.reason
    assert math.isnan(proxy_a_distance(x, y, (["one"] * len(x), speakers[1])).value)
    with pytest.raises(DataError, match="in both corpora"):
        kernel_sums("mmd", x, y, (speakers[0], speakers[0]))
    constant = kernel_sums("covariance_gap", np.ones_like(x), np.ones_like(y), speakers)
    assert "variance" in discrepancy("covariance_gap", constant).reason


def test_zscores_are_finite_for_constant_columns():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    assert zscored(x) == pytest.approx(np.array([[-1, 0], [1, 0]]))
    assert moved_by(x, [[5.0, 9.0]]) == pytest.approx(np.array([[3, 0]]))


def test_proxy_a_distance_of_equal_and_of_separated_corpora():
    x, y, speakers = corpora(seed=2)
    assert abs(proxy_a_distance(x, y, speakers, draws=100).value) < 0.5
    x, y, speakers = corpora(4.0, seed=2)
    found = proxy_a_distance(x, y, speakers, draws=100)
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((2, 2))


def test_domains_are_told_on_speakers_that_the_classifier_did_not_hear():
    """Speakers that are told by heart but share no trace of their corpus: a split by rows would
    find the corpora apart.
    """
    x, y, speakers = corpora(own=3.0, speakers=6, each=20, dim=60, seed=4)
    rows, domain = np.concatenate([x, y]), np.repeat([0, 1], len(x))
    by_row = out_of_fold(rows, domain, np.arange(len(rows)) % 5, 2)
    assert (by_row == domain).mean() > 0.95
    assert proxy_a_distance(x, y, speakers, draws=50).value < 1.2


def test_folds_keep_speakers_and_linked_speakers_together():
    speakers = [f"s{row % 8}" for row in range(80)]
    label = np.arange(80) // 8 % 3
    label[:5] = -1
    fold = speaker_folds(speakers, label, linked=[["s0", "s1"], ["s9", "elsewhere"]])
    assert sorted(set(fold.tolist())) == [-1, 0, 1, 2, 3, 4]
    assert (fold[:5] == -1).all()
    assert all(len({fold[row] for row in range(5, 80) if speakers[row] == name}) == 1 for name in set(speakers))
    assert fold[8] == fold[9]


def test_relevance_is_high_where_the_class_shows_and_at_chance_where_only_the_speaker_does():
    random = np.random.default_rng(0)
    label, speakers = np.tile([0, 1, 2], 40), np.repeat([f"s{k}" for k in range(8)], 15)
    told = random.normal(size=(120, 30))
    told[:, :3] += 3 * np.eye(3)[label]
    voice = np.repeat(random.normal(size=(8, 30)), 15, axis=0) + 0.1 * random.normal(size=(120, 30))
    fold = speaker_folds(speakers.tolist(), label)
    good, none = (relevance(x, label, fold, speakers, 3, draws=200) for x in (told, voice))
    assert good.value > 0.85
    assert good.low <= good.value <= good.high
    assert abs(none.value - 1 / 3) < 0.15
    assert none.null == pytest.approx(1 / 3)
