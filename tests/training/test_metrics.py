import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysere.base.errors import DataError
from raysere.training import metrics
from raysere.training.task import Task

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, -1])
PREDICTED = np.array([0, 0, 1, 2, 1, 0, 2, 1])


def test_by_hand():
    assert metrics.confusion(LABELS, PREDICTED, 3).tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert metrics.uar(LABELS, PREDICTED) == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert metrics.accuracy(LABELS, PREDICTED) == pytest.approx(4 / 7)
    assert metrics.macro_f1(LABELS, PREDICTED) == pytest.approx((4 / 7 + 2 / 4 + 2 / 3) / 3)


def test_a_class_without_items_does_not_count_in_uar_but_false_alarms_do_in_f1():
    assert metrics.uar([0, 1], [0, 1], 5) == 1
    assert metrics.uar([0, 1], [0, 2], 3) == 0.5
    assert metrics.macro_f1([0, 1], [0, 2], 3) == pytest.approx(1 / 3)
    assert metrics.macro_f1([0, 1], [0, 1], 5) == 1


def test_uar_does_not_hear_how_frequent_a_class_is():
    kept = LABELS >= 0
    times = np.array([1, 7, 3])[LABELS[kept]]
    assert metrics.uar(np.repeat(LABELS[kept], times), np.repeat(PREDICTED[kept], times)) == pytest.approx(metrics.uar(LABELS, PREDICTED))
    for constant in range(3):
        assert metrics.uar(LABELS, np.full(len(LABELS), constant), 3) == pytest.approx(1 / 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_equals_scikit_learn(pairs):
    from sklearn.metrics import f1_score, recall_score

    y, p = np.array(pairs).T
    assert metrics.uar(y, p, 4) == pytest.approx(recall_score(y, p, labels=np.unique(y), average="macro"))
    assert metrics.macro_f1(y, p, 4) == pytest.approx(f1_score(y, p, average="macro"))
    weighted = metrics.statistic_of("weighted_f1")(metrics.confusion(y, p, 4))
    assert weighted == pytest.approx(f1_score(y, p, average="weighted", zero_division=0))


def test_ccc_closed_form():
    x, y = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 4, 6])
    cov, vx, vy = np.mean(x * y) - x.mean() * y.mean(), x.var(), y.var()
    assert metrics.ccc(x, y) == pytest.approx(2 * cov / (vx + vy + (x.mean() - y.mean()) ** 2), abs=1e-6)
    assert metrics.ccc(y, y) == pytest.approx(1, abs=1e-6)
    assert metrics.ccc(-y, y) < 0
    assert metrics.ccc(x + 100, y + 100) == pytest.approx(metrics.ccc(x, y))


def test_ccc_of_constants_is_zero():
    assert metrics.ccc([3.3, 3.3, 3.3], [3.3, 3.3, 3.3]) == 0
    assert metrics.ccc([3.3, 3.3], [1.0, 2.0]) == pytest.approx(0, abs=1e-9)


def test_best_affine_map_reaches_the_correlation():
    random = np.random.default_rng(0)
    y = random.normal(size=500)
    x = 3 * y + random.normal(size=500) * 4
    rho = np.corrcoef(x, y)[0, 1]
    matched = (x - x.mean()) / x.std() * y.std() + y.mean()
    assert metrics.ccc(matched, y) == pytest.approx(rho, abs=1e-6)
    least_squares = np.polyval(np.polyfit(x, y, 1), x)
    assert metrics.ccc(least_squares, y) == pytest.approx(2 * rho**2 / (1 + rho**2), abs=1e-6)


def test_ccc_leaves_missing_labels_out():
    x, y = np.array([[1.0, 5], [2, 1], [3, 2]]), np.array([[1.0, np.nan], [2, 1], [4, 3]])
    assert metrics.mean_ccc(x, y) == pytest.approx((metrics.ccc([1, 2, 3], [1, 2, 4]) + metrics.ccc([1, 2], [1, 3])) / 2)


def test_scores_by_task():
    task = Task(kind="both", classes=("a", "b"), attributes=("arousal",), metric="ccc")
    values = metrics.scores(task, label=[0, 1], scores_of_classes=[[2, 1], [0, 1]], attributes=[[1], [2]], predicted_attributes=[[1], [2]])
    assert set(values) == {"uar", "macro_f1", "accuracy", "ccc", "ccc.arousal"}
    assert metrics.score(
        task, label=[0, 1], scores_of_classes=[[2, 1], [0, 1]], attributes=[[1], [2]], predicted_attributes=[[1], [2]]
    ) == pytest.approx(1)
    with pytest.raises(DataError, match="'ccc' cannot be computed"):
        metrics.score(task, label=[0, 1], scores_of_classes=[[2, 1], [0, 1]])


def corpus(items=400, groups=12, hits=0.6, seed=0):
    random = np.random.default_rng(seed)
    y = random.integers(0, 4, items)
    return y, np.where(random.random(items) < hits, y, random.integers(0, 4, items)), random.integers(0, groups, items)


def test_bootstrap_equals_resampling_items():
    y, p, g = corpus(items=120, groups=5)
    sums = metrics.group_confusions(y, p, g, 4)
    weights, _ = metrics._draws(sums.astype(float), 50, 7)
    slow = []
    for draw in weights.astype(int):
        rows = np.concatenate([np.tile(np.flatnonzero(g == group), times) for group, times in enumerate(draw)])
        slow.append(metrics.uar(y[rows], p[rows], 4))
    interval = metrics.bootstrap_by_group(sums, metrics.uar_of, draws=50, seed=7)
    assert tuple(interval) == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])))
    assert interval.value == pytest.approx(metrics.uar(y, p))


def test_bootstrap_of_ccc_equals_resampling_items():
    random = np.random.default_rng(1)
    y = random.normal(4, 1, size=(90, 2))
    x, g = y + random.normal(size=y.shape), random.integers(0, 6, 90)
    y[random.random(y.shape) < 0.1] = np.nan
    sums = metrics.group_moments(x, y, g)
    weights, _ = metrics._draws(sums, 40, 3)
    slow = []
    for draw in weights.astype(int):
        rows = np.concatenate([np.tile(np.flatnonzero(g == group), times) for group, times in enumerate(draw)])
        slow.append(metrics.mean_ccc(x[rows], y[rows]))
    interval = metrics.bootstrap("ccc", y, x, g, draws=40, seed=3)
    assert tuple(interval) == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])), abs=1e-6)


def test_bootstrap_is_seeded_and_covers_the_value():
    y, p, g = corpus()
    one = metrics.bootstrap("macro_f1", y, p, g, classes=4)
    assert one == metrics.bootstrap("macro_f1", y, p, g, classes=4)
    assert one != metrics.bootstrap("macro_f1", y, p, g, classes=4, seed=1)
    assert one.low < one.value < one.high
    assert (one.draws, one.redrawn, one.groups) == (2000, 0, 12)


def test_draws_that_lack_a_class_are_drawn_again():
    y, g = np.array([0, 0, 0, 0, 1]), np.array([0, 1, 2, 3, 4])  # one speaker alone has class 1
    sums = metrics.group_confusions(y, y, g, 2)
    weights, redrawn = metrics._draws(sums.astype(float), 500, 0)
    assert (weights[:, 4] > 0).all()
    assert redrawn > 100
    assert metrics.bootstrap_by_group(sums, metrics.uar_of, draws=500).redrawn == redrawn


def test_one_group_has_no_interval():
    interval = metrics.bootstrap("uar", [0, 1], [0, 1], ["a", "a"], classes=2)
    assert interval.value == 1
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


def test_paired_difference_uses_the_same_draws():
    y, p, g = corpus()
    _, other, _ = corpus(hits=0.3, seed=5)
    first, second = metrics.group_confusions(y, p, g, 4), metrics.group_confusions(y, np.where(np.arange(len(y)) % 2, p, other % 4), g, 4)
    same = metrics.bootstrap_difference(first, first, metrics.uar_of)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    paired = metrics.bootstrap_difference(first, second, metrics.uar_of)
    assert paired.value == pytest.approx(float(metrics.uar_of(first.sum(0)) - metrics.uar_of(second.sum(0))))
    alone = [metrics.bootstrap_by_group(sums, metrics.uar_of) for sums in (first, second)]
    assert paired.high - paired.low < sum(i.high - i.low for i in alone)


def test_paired_difference_refuses_other_items():
    y, p, g = corpus()
    with pytest.raises(DataError, match="same items"):
        metrics.bootstrap_difference(metrics.group_confusions(y, p, g, 4), metrics.group_confusions((y + 1) % 4, p, g, 4), metrics.uar_of)
    with pytest.raises(DataError, match="same groups"):
        metrics.bootstrap_difference(
            metrics.group_confusions(y, p, g, 4), metrics.group_confusions(y[g > 0], p[g > 0], g[g > 0], 4), metrics.uar_of
        )


def test_the_standard_error_of_a_mean_over_groups_of_one():
    right = np.random.default_rng(0).random(400) < 0.7
    interval = metrics.bootstrap("accuracy", np.zeros(400, int), np.where(right, 0, 1), np.arange(400), classes=2, draws=4000)
    assert interval.error == pytest.approx(np.sqrt(right.mean() * (1 - right.mean()) / 400), rel=0.06)
