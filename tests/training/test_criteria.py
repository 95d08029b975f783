"""Criteria without target labels: values that follow from their formulas."""

import numpy as np
import pytest

from raysere.training import criteria as C


def one_hot(n, classes):
    return np.eye(classes)[np.arange(n) % classes]


def test_information_of_answers():
    for classes in (3, 5):
        assert C.infomax(one_hot(60, classes)) == pytest.approx(np.log(classes))
        assert C.infomax(np.full((9, classes), 1 / classes)) == pytest.approx(0)
        assert C.infomax(np.eye(classes)[np.zeros(9, int)]) == pytest.approx(0)
        assert C.mean_entropy(np.full((9, classes), 1 / classes)) == pytest.approx(np.log(classes))


def test_nuclear_norm():
    assert C.bnm(one_hot(40, 4)) == pytest.approx(np.sqrt(4 / 40))
    assert C.bnm(np.eye(4)[np.zeros(40, int)]) == pytest.approx(1 / np.sqrt(40))


def test_density_at_its_two_traps_and_its_guard():
    n = 120
    same, flat = np.eye(4)[np.zeros(n, int)], np.full((n, 4), 0.25)
    assert C.snd(same) == pytest.approx(np.log(n - 1))
    assert C.snd(flat) == pytest.approx(np.log(n - 1))
    assert C.snd(one_hot(n, 4)) == pytest.approx(np.log(n / 4 - 1), abs=1e-5)
    prior = np.full(4, 0.25)
    assert C.density_is_meant(one_hot(n, 4), prior)
    assert not C.density_is_meant(same, prior)
    assert not C.density_is_meant(flat, prior)


def test_density_leaves_an_item_itself_out():
    p = np.array([[1, 0], [0.0, 1]])
    assert C.snd(p) == pytest.approx(0), "each has one neighbour only"
    assert C.snd(one_hot(1200, 3)) == pytest.approx(np.log(399), abs=1e-6), "the items of a second block, too"


def test_weighted_risks_of_a_constant_and_without_weights():
    generator = np.random.default_rng(0)
    w = generator.exponential(size=200)
    assert C.deep_embedded(np.full(200, 0.3), w) == pytest.approx(0.3)
    loss = generator.random(200)
    assert C.deep_embedded(loss, np.ones(200)) == pytest.approx(loss.mean())
    assert C.normalised(w).mean() == pytest.approx(1)
    assert np.ptp(C.normalised(w)) == pytest.approx(np.ptp(w / w.max()))


def test_weighted_risks_of_shifted_gaussians():
    """Source N(0, 1), target N(.5, 1), loss x, true weights exp(.5 x - .125): the risk is .5."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 500))
    w = np.exp(0.5 * x - 0.125)
    plain = np.array([C.weighted_risk(*pair) for pair in zip(x, w, strict=True)])
    controlled = np.array([C.deep_embedded(*pair) for pair in zip(x, w, strict=True)])
    assert plain.mean() == pytest.approx(0.5, abs=0.01)
    assert controlled.mean() == pytest.approx(0.5, abs=0.01)
    assert plain.std() == pytest.approx(0.069, abs=0.006)
    assert controlled.std() == pytest.approx(0.017, abs=0.003)
    effective = np.mean([C.Weights(one).effective for one in w])
    assert effective == pytest.approx(np.exp(-0.25), abs=0.02)


def test_density_ratios_point_at_the_target():
    generator = np.random.default_rng(0)
    source, target = generator.normal(size=(1500, 2)), generator.normal(size=(700, 2)) + [1.0, 0]
    grid = np.array([[-1.0, 0], [0, 0], [1, 0], [2, 0]])
    found = C.density_ratio(source, target, grid).values
    assert np.diff(np.log(found)) == pytest.approx([1, 1, 1], abs=0.4)  # the penalty shrinks the slope
    assert found[1] < 1 < found[2]
    assert not C.Weights(np.r_[np.zeros(99), 1.0]).reliable
    assert not C.Weights(np.r_[np.ones(99), 60.0]).reliable
    assert not C.Weights(np.full(10, 0.01)).reliable
    assert C.Weights(np.ones(10)).reliable


def test_mutual_information_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for sizes in ((4, 4), (3, 7), (1, 3)):
        one, other = (generator.integers(0, size, 60) for size in sizes)
        other[:30] = one[:30]
        assert C.adjusted_mutual_information(one, other) == pytest.approx(metrics.adjusted_mutual_info_score(one, other), abs=1e-9)
    assert C.adjusted_mutual_information([0, 0, 1, 2], [5, 5, 3, 1]) == pytest.approx(1)


def test_clusters_agree_with_classes_where_they_are_there():
    generator = np.random.default_rng(0)
    label = np.arange(160) % 4
    features = 8 * np.eye(4)[label] + generator.normal(size=(160, 4))
    assert C.class_ami(np.eye(4)[label], features) == pytest.approx(1)
    assert abs(C.class_ami(np.eye(4)[generator.permutation(label)], features)) < 0.1


def test_all_of_a_model_and_what_guards_leave_out():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 3))
    given = {
        "source_prior": np.full(4, 0.25),
        "train_features": features[:200],
        "dev_features": features[200:],
        "dev_loss": np.r_[np.ones(25), np.zeros(75)],
        "target_features": generator.normal(size=(200, 3)),
    }
    near = C.criteria_of(**given, target=one_hot(200, 4))
    assert set(near) == {"infomax", "bnm", "class_ami", "snd", "iwcv", "dev", "devn", "weights_effective"}
    assert near["dev"] == pytest.approx(0.25, abs=0.1)
    far = C.criteria_of(**{**given, "target_features": given["target_features"] + 30}, target=np.eye(4)[np.zeros(200, int)])
    assert not {"snd", "iwcv", "dev", "devn"} & set(far)


def test_mean_ranks():
    trials = {
        "a": {"infomax": 1.0, "dev": 0.2},
        "b": {"infomax": 0.5, "dev": 0.1},
        "c": {"infomax": 0.5},
    }
    assert C.ranked(trials, ("infomax",)) == {"a": 1.0, "b": 2.5, "c": 2.5}
    assert C.ranked(trials, ("infomax", "dev")) == {"a": 1.5, "b": 1.75, "c": 2.75}
