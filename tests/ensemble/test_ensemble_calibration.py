"""Steps 1 to 3: calibration, priors, objective. Every expected value is derived, not recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysere.base.errors import ConfigError, DataError
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.fit.calibration import Calibration, class_shares, design_effect, fit_calibration, log_softmax, nll, vote_table
from raysere.ensemble.fit.classes import prepare
from raysere.ensemble.fit.objective import Objective, confusion_counts, prior_macro_f1
from raysere.ensemble.fit.part import fit_classes
from raysere.ensemble.fit.priors import check_prior, decision_prior, estimate_prior, shift_prior
from raysere.ensemble.saved.contributions import contributions_of
from raysere.training.metrics import macro_f1
from raysere.training.task import Task


def _data(seed=0, items=500, classes=4):
    generator = np.random.default_rng(seed)
    label = generator.choice(classes, items, p=np.array([4, 3, 2, 1])[:classes] / np.array([4, 3, 2, 1])[:classes].sum())
    return 1.7 * np.eye(classes)[label] + generator.normal(size=(items, classes)) + generator.normal(size=classes), label


def test_without_ridge_the_mean_prediction_is_the_selection_prior():
    logits, label = _data()
    p = np.exp(log_softmax(logits / (fit := fit_calibration(logits, label, ridge=0)).temperature + fit.bias))
    assert np.abs(p.mean(0) - class_shares(label, 4)).max() < 1e-6


def test_the_fit_is_the_minimum_that_a_general_optimiser_finds():
    from scipy.optimize import minimize

    logits, label = _data(3)
    fit = fit_calibration(logits, label, ridge=0)

    def loss(theta):
        return nll(log_softmax(theta[0] * logits + np.r_[theta[1:], 0.0]), label)

    best = minimize(
        loss, np.r_[1.0, np.zeros(3)], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 20000, "maxfev": 20000}
    )
    assert loss(np.r_[1 / fit.temperature, fit.bias[:-1]]) <= best.fun + 1e-9
    assert np.abs(np.r_[1 / fit.temperature, fit.bias[:-1]] - best.x).max() < 1e-4


@pytest.mark.parametrize("ridge", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.01, 0.3, 40.0])
def test_scaled_logits_scale_the_temperature(scale, ridge):
    logits, label = _data(1)
    one, other = fit_calibration(logits, label, ridge=ridge), fit_calibration(scale * logits, label, ridge=ridge)
    assert other.temperature == pytest.approx(scale * one.temperature, rel=1e-6)
    assert np.abs(other.bias - one.bias).max() < 1e-6


def test_a_temperature_alone_never_changes_an_argmax():
    logits, label = _data(2)
    fit = fit_calibration(logits, label, biases=False)
    assert (fit.bias == 0).all()
    assert fit.temperature != pytest.approx(1.0, abs=0.05)
    assert (fit.apply(logits).argmax(1) == logits.argmax(1)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 20))
def test_the_likelihood_never_falls(seed, scale):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, 60)
    logits = scale * (generator.normal(size=(60, 3)) + generator.normal() * np.eye(3)[label])
    fit = fit_calibration(logits, label, ridge=0)
    assert nll(log_softmax(logits / fit.temperature + fit.bias), label) <= nll(log_softmax(logits), label) + 1e-9


def test_calibration_and_prior_shift_recover_the_bayes_posterior():
    """Three Gaussians; a model with a wrong prior and temperature 2.5 (docs/methods.md 4.3)."""
    generator = np.random.default_rng(0)
    prior, wrong = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    means = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5]])
    label = generator.choice(3, 60_000, p=prior)
    x = means[label] + generator.normal(size=(len(label), 2))
    likelihood = -0.5 * ((x[:, None] - means) ** 2).sum(-1)
    fit = fit_calibration(2.5 * log_softmax(likelihood + np.log(wrong)), label, ridge=0)
    expected = np.log(prior / wrong)
    assert fit.temperature == pytest.approx(2.5, abs=0.06)
    assert np.abs(fit.bias - (expected - expected[-1])).max() < 0.04
    posterior = np.exp(shift_prior(fit.apply(2.5 * log_softmax(likelihood + np.log(wrong))), class_shares(label, 3), np.full(3, 1 / 3)))
    assert np.abs(posterior - np.exp(log_softmax(likelihood))).max() < 0.01


def test_the_ridge_draws_biases_to_the_ratio_of_priors_and_survives_separable_rows():
    label = np.array([0, 1, 2] * 4)
    logits = 30.0 * np.eye(3)[label]
    carried = np.array([0.6, 0.3, 0.1])
    strong = fit_calibration(logits, label, member_prior=carried, ridge=1e6)
    expected = np.log(1 / 3) - np.log(carried) / strong.temperature
    assert np.abs(strong.bias - (expected - expected[-1])).max() < 1e-3
    mild = fit_calibration(logits, label, ridge=1.0)
    assert np.isfinite(mild.apply(logits)).all()
    assert np.exp(mild.apply(logits)).max() < 0.999  # twelve rows are no proof of certainty


def test_class_biases_have_a_ridge_of_their_own():
    logits, label = _data(3)
    free, held = (fit_calibration(logits, label, ridge=0, bias_ridge=pull) for pull in (0.0, 1e6))
    assert np.abs(free.bias).max() > 0.5
    assert np.abs(held.bias).max() < 1e-3
    assert held.temperature != pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("copies", [1, 3, 8])
def test_the_design_effect_of_rows_that_are_said_several_times_is_their_number(copies):
    """G groups of the same row m times: sum_g |m r_g|^2 over m sum_g |r_g|^2 is m; and G / (G - 1)."""
    logits, label = _data(4)
    logp = log_softmax(logits)
    group = np.repeat(np.arange(len(label)), copies)
    expected = copies * len(label) / (len(label) - 1)
    assert design_effect(np.repeat(logp, copies, axis=0), np.repeat(label, copies), group) == pytest.approx(expected)


def test_the_design_effect_of_independent_rows_is_about_one_and_of_one_group_is_one():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 4000)
    logp = np.full((4000, 4), np.log(0.25))
    assert design_effect(logp, label, np.arange(4000) % 200) == pytest.approx(1.0, abs=0.15)
    assert design_effect(logp, label, np.sort(label)[generator.permutation(4000)]) < 1.3
    assert design_effect(logp, label, label) > 500, "groups that are the classes"
    assert design_effect(logp, label, np.zeros(4000)) == 1.0


def test_few_speakers_that_err_in_their_own_ways_move_no_bias_far(toy):
    """Each of six speakers is taken for a class of its own too often; their mean is no bias of the
    member.
    """
    selection = toy.selection([1.5] * 2, items=600, speakers=6)
    names = np.unique(selection.group)
    shift = np.zeros((6, 4))
    shift[np.arange(6), [0, 1, 2, 3, 0, 0]] = 2.0
    odd = log_softmax((selection.predictions.logp + shift[np.searchsorted(names, selection.group)]).astype(np.float32))
    odd = replace(selection, predictions=replace(selection.predictions, logp=odd))

    def bias(one, **named):
        fitted = prepare(one, TASK, EnsembleConfig(**named)).calibrations[0].bias
        return float(np.abs(fitted - fitted.mean()).max())

    assert bias(odd) < 0.5 * bias(odd, bias_ridge=1.0)
    independent = replace(odd, group=np.arange(600).astype(str))
    assert bias(independent) > 1.3 * bias(odd), "rows of no speaker in particular are more evidence"


def test_a_constant_member_becomes_the_selection_prior():
    label = np.array([0] * 30 + [1] * 10)
    fit = fit_calibration(np.zeros((40, 2)), label, ridge=0)
    assert np.abs(np.exp(fit.apply(np.zeros((1, 2)))) - [[0.75, 0.25]]).max() < 1e-6


@pytest.mark.parametrize(
    ("logits", "label"),
    [(np.zeros((0, 3)), np.zeros(0, int)), (np.full((2, 3), np.nan), np.array([0, 1])), (np.zeros((2, 3)), np.array([0, 3]))],
)
def test_what_cannot_be_calibrated_is_refused(logits, label):
    with pytest.raises(DataError):
        fit_calibration(logits, label)


def test_votes_become_rows_of_their_confusion_matrix():
    logp = vote_table(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), 2)[[1]]
    assert np.allclose(np.exp(logp), [[(1 + 1) / (3 + 2), (2 + 1) / (3 + 2)]])


def test_prior_shift_is_bayes_and_undoes_itself():
    p = np.log(np.array([[0.5, 0.3, 0.2]]))
    source, target = np.array([0.5, 0.25, 0.25]), np.array([0.2, 0.2, 0.6])
    raw = np.exp(p) * target / source
    assert np.allclose(np.exp(shift_prior(p, source, target)), raw / raw.sum())
    assert np.allclose(shift_prior(shift_prior(p, source, target), target, source), p)


def test_expectation_maximisation_finds_an_unknown_prior():
    generator = np.random.default_rng(1)
    source, target = np.array([0.5, 0.5]), np.array([0.15, 0.85])
    label = generator.choice(2, 40_000, p=target)
    x = 2.0 * label + generator.normal(size=len(label))
    logp = log_softmax(np.stack([-0.5 * x**2, -0.5 * (x - 2) ** 2], axis=1) + np.log(source))
    assert np.abs(estimate_prior(logp, source) - target).max() < 0.01


def test_decision_priors():
    pi, classes = np.array([0.64, 0.36]), ("a", "b")
    assert np.allclose(decision_prior("auto", "uar", pi, classes), [0.5, 0.5])
    assert np.allclose(decision_prior("auto", "accuracy", pi, classes), pi)
    assert np.allclose(decision_prior("auto", "macro_f1", pi, classes), [0.8 / 1.4, 0.6 / 1.4])
    assert np.allclose(decision_prior("uniform", "accuracy", pi, classes), [0.5, 0.5])
    assert np.allclose(decision_prior((0.1, 0.9), "uar", pi, classes), [0.1, 0.9])
    with pytest.raises(ConfigError, match="3 numbers"):
        decision_prior((0.1, 0.2, 0.7), "uar", pi, classes)


def test_balanced_macro_f1_is_macro_f1_of_replicated_classes():
    generator = np.random.default_rng(5)
    counts = np.array([2, 3, 6])
    label = np.repeat([0, 1, 2], counts)
    predicted = np.where(generator.random(len(label)) < 0.5, label, generator.integers(0, 3, len(label)))
    times = np.array([3, 2, 1])[label]  # six of each class
    expected = macro_f1(np.repeat(label, times), np.repeat(predicted, times))
    assert prior_macro_f1(confusion_counts(label, predicted, 3))[0] == pytest.approx(expected)
    natural = counts / counts.sum()
    assert Objective("macro_f1", tuple(natural))(confusion_counts(label, predicted, 3))[0] == pytest.approx(macro_f1(label, predicted))
    assert Objective("macro_f1")(confusion_counts(label, predicted, 3))[0] == pytest.approx(macro_f1(label, predicted))
    assert macro_f1(label, predicted) != pytest.approx(expected)


def test_weighted_counts_are_counts_of_repeated_rows():
    label, predicted, repeats = np.array([0, 1, 1]), np.array([[0, 0, 1], [1, 1, 1]]), np.array([2, 0, 3])
    assert (
        confusion_counts(label, predicted, 2, repeats.astype(float))
        == confusion_counts(np.repeat(label, repeats), np.repeat(predicted, repeats, axis=1), 2)
    ).all()


def test_identity_changes_nothing():
    logits, _ = _data(4)
    assert np.allclose(Calibration.identity(4).apply(logits), log_softmax(logits), atol=1e-5)


def test_a_stated_prior_of_another_length_is_refused_early():
    with pytest.raises(ConfigError, match="3 numbers, but there are 2 classes"):
        check_prior(EnsembleConfig(prior=(0.2, 0.3, 0.5)), ("a", "b"))
    check_prior(EnsembleConfig(prior=(0.3, 0.7)), ("a", "b"))
    check_prior(EnsembleConfig(prior="uniform"), ("a", "b"))


# ---- calibration of the pool ---------------------------------------------------------------------

TASK = Task(classes=("anger", "happiness", "neutral", "sadness"))


def _gap(logp, label):
    """Accuracy less mean confidence: positive where the answers are less sure than they are right."""
    return float((logp.argmax(1) == label).mean() - np.exp(logp).max(1).mean())


@pytest.mark.parametrize("pool", ["linear", "log"])
def test_the_pool_of_calibrated_members_is_calibrated_too(toy, pool):
    selection, fresh = (toy.selection([1.0] * 12, items=1500, speakers=30, seed=seed) for seed in (0, 1))
    fit = fit_classes(selection, TASK, EnsembleConfig(family="average", pool=pool, ridge=0))
    before = _gap(fit.pooled(fresh.predictions), fresh.label)
    assert before > 0.15, "twelve members that err independently"
    assert abs(_gap(fit.natural(fresh.predictions), fresh.label)) < 0.03
    assert fit.temperature < 0.8
    assert (fit.natural(fresh.predictions).argmax(1) == fit.pooled(fresh.predictions).argmax(1)).all()
    assert np.allclose(np.exp(fit.natural(fresh.predictions)).sum(1), 1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 30.0]), st.floats(0, 4), st.sampled_from(["linear", "log"]))
def test_the_temperature_of_the_pool_never_raises_the_likelihood_loss(toy, seed, ridge, skill, pool):
    selection = toy.selection([skill, 1.0, 0.0], items=40, speakers=6, seed=seed)
    fit = fit_classes(selection, TASK, EnsembleConfig(family="average", ridge=ridge, pool=pool, offsets="none"))
    found, label = selection.predictions, selection.label
    assert nll(fit.natural(found), label) <= nll(fit.pooled(found), label) + 1e-12
    assert (fit.natural(found).argmax(1) == fit.pooled(found).argmax(1)).all()
    decided = shift_prior(fit.pooled(found), fit.selection_prior, fit.prior).argmax(1)
    assert (fit.predict(found).argmax(1) == decided).all(), "members were chosen by these answers"


def test_a_penalty_that_would_make_the_pool_worse_is_not_followed(toy):
    selection = toy.selection([0.0] * 4, items=60)  # members that know nothing; the penalty holds the pool to unit spread
    fit = fit_classes(selection, TASK, EnsembleConfig(family="average", pool="linear", ridge=1e6))
    forced = fit_calibration(fit.pooled(selection.predictions), selection.label, ridge=1e6, biases=False)
    assert nll(forced.apply(fit.pooled(selection.predictions)), selection.label) > nll(fit.pooled(selection.predictions), selection.label)
    assert fit.temperature == 1.0


def test_without_calibration_the_pool_has_no_temperature(toy):
    selection = toy.selection([1.0] * 6)
    fit = fit_classes(selection, TASK, EnsembleConfig(family="average", pool="linear", calibrate=False))
    assert fit.temperature == 1.0
    expected = np.log(np.exp(selection.predictions.logp.astype(np.float64)).mean(0))
    assert np.allclose(fit.natural(selection.predictions), expected, atol=1e-5)
    assert fit_classes(selection, TASK, EnsembleConfig(family="average")).temperature < 0.9


def test_contributions_are_those_of_the_pool_before_its_temperature(toy):
    from raysere.ensemble.fit.part import OuterFit

    selection = toy.selection([1.0, 1.2, 0.8])
    fit = fit_classes(selection, TASK, EnsembleConfig(family="average", pool="linear"))
    assert fit.temperature != 1.0
    _, shares, p = contributions_of([OuterFit(fit, ())], selection.predictions)
    mixed = (shares[:, :, None] * p).sum(0)
    assert np.allclose(log_softmax(np.log(mixed) / fit.temperature), fit.natural(selection.predictions), atol=1e-5)
