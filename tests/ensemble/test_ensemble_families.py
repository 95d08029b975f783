"""Convex weights, the stack, offsets, and that every choice answers alike when fitted and when
saved (docs/methods.md 4.3, 4.5 to 4.10).
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from raysere.base.errors import ConfigError, DataError
from raysere.base.files import read_yaml
from raysere.ensemble.config import FAMILIES, EnsembleConfig
from raysere.ensemble.data.predictions import load_predictions
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.evaluate.evaluation import evaluate
from raysere.ensemble.evaluate.protocols import fit_runs
from raysere.ensemble.fit.auto import _chosen, choose, name_of
from raysere.ensemble.fit.calibration import log_softmax, nll, only_votes
from raysere.ensemble.fit.classes import prepare, stack_fits, weigh
from raysere.ensemble.fit.convex import conditions, convex_weights, linear_problem, log_problem, simplex_quadratic
from raysere.ensemble.fit.objective import Objective, confusion_counts
from raysere.ensemble.fit.offsets import cross_fitted_answers, fit_scalar, fit_vector, sweep, value_of
from raysere.ensemble.fit.part import fit_classes
from raysere.ensemble.fit.pools import RankReference, normal_scores
from raysere.ensemble.fit.priors import Posterior
from raysere.ensemble.fit.stacking import Stack, fit_stacks, stack_inputs
from raysere.ensemble.saved.read import load_ensemble
from raysere.ensemble.saved.write import FORMATS
from raysere.training.task import Task

TASK = Task(classes=("anger", "happiness", "neutral", "sadness"))
OBJECTIVES = [Objective("uar"), Objective("accuracy"), Objective("macro_f1"), Objective("macro_f1", (0.5, 0.3, 0.2))]


def _config(**values):
    return EnsembleConfig(**{"bags": 3, "draws": 200, "recipes": (), "pool": "linear", "offsets": "none", **values})


def _problem_data(seed=0, members=12, items=200, classes=4, missing=0.0):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, classes, items)
    skill = generator.uniform(0, 1.5, members)
    logp = log_softmax(skill[:, None, None] * np.eye(classes)[label] + generator.normal(size=(members, items, classes))).astype(np.float32)
    return logp, generator.random((members, items)) >= missing, label, generator.uniform(0.5, 2, items)


# ---- convex weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["linear", "log"])
@pytest.mark.parametrize(("members", "missing"), [(12, 0.0), (40, 0.0), (40, 0.2)])
def test_convex_weights_meet_the_conditions_of_the_optimum(pool, members, missing):
    logp, present, label, weights = _problem_data(members=members, missing=missing)
    ratio = np.array([0.5, 1.0, 1.5, 2.0])
    problem = linear_problem(logp, present, label, weights) if pool == "linear" else log_problem(logp, present, label, weights, ratio)
    w = convex_weights(problem)
    assert w.sum() == pytest.approx(1)
    assert (w >= 0).all()
    assert 0 < (w > 0).sum() < members, "some are used, some are not"
    equal, below = conditions(problem, w)
    assert equal < 1e-6
    assert below < 1e-6
    generator = np.random.default_rng(1)
    best = min(problem.value(draw) for draw in generator.dirichlet(np.full(members, 0.3), 300))
    assert problem.value(w) <= min(best, min(problem.value(row) for row in np.eye(members))) + 1e-12
    step = 1e-3
    for m in (0, 5):
        there = np.full(members, 1 / members)
        slope = (problem.value(there + step * np.eye(members)[m]) - problem.value(there - step * np.eye(members)[m])) / (2 * step)
        assert problem.gradient(there)[m] == pytest.approx(slope, abs=1e-3)


def test_the_value_of_each_problem_is_the_likelihood_of_its_pool():
    logp, present, label, weights = _problem_data()
    w = np.random.default_rng(3).dirichlet(np.ones(12))
    linear = np.log(np.einsum("m,mnk->nk", w, np.exp(logp.astype(np.float64))))
    assert linear_problem(logp, present, label, weights).value(w) == pytest.approx(nll(linear, label, weights), abs=1e-6)
    ratio = np.array([0.5, 1.0, 1.5, 2.0])
    product = log_softmax(np.einsum("m,mnk->nk", w, logp.astype(np.float64)) + np.log(ratio))
    assert log_problem(logp, present, label, weights, ratio).value(w) == pytest.approx(nll(product, label, weights), abs=1e-5)


def test_a_quadratic_on_the_simplex_is_projection():
    aim = np.array([0.7, 0.6, -0.5, 0.1])  # the nearest point of the simplex: subtract .15 and cut at 0
    found = simplex_quadratic(-aim, np.eye(4), np.full(4, 0.25))
    assert np.allclose(found, [0.55, 0.45, 0.0, 0.0], atol=1e-6)


# ---- the stack -----------------------------------------------------------------------------------


def test_a_stack_goes_to_the_mean_as_c_goes_to_nought():
    logp, present, label, weights = _problem_data(missing=0.2)
    present[:, 3] = False
    ratio = np.array([0.5, 1.0, 1.5, 2.0])
    tight, loose = fit_stacks(logp, present, label, ratio, weights, [1e-9, 1.0])
    shares = present / np.maximum(present.sum(0), 1)
    centred = (logp - logp.mean(2, keepdims=True)).astype(np.float64)
    mean = log_softmax(np.einsum("mn,mnk->nk", shares, centred) + np.log(ratio))
    here = present.any(0)
    assert np.allclose(tight.logp(logp, present, ratio)[here], mean[here], atol=1e-4)
    assert np.isnan(tight.logp(logp, present, ratio)[3]).all()
    assert not np.allclose(loose.logp(logp, present, ratio)[here], mean[here], atol=0.1)
    losses = [nll(stack.logp(logp, present, ratio)[here], label[here], weights[here]) for stack in (tight, loose)]
    assert losses[1] < losses[0]


def test_a_stack_is_the_optimum_of_its_penalised_loss():
    logp, present, label, weights = _problem_data(members=3, items=120)
    ratio, penalty = np.ones(4), 0.1
    stack = fit_stacks(logp, present, label, ratio, weights, [penalty], tolerance=1e-9)[0]
    features, base = stack_inputs(logp, present, ratio)

    def loss(coefficients, intercept):
        logits = base + features @ coefficients.reshape(-1, 4) + intercept
        return penalty * weights.sum() * nll(log_softmax(logits), label, weights) + (0.5 * ((coefficients**2).sum() + (intercept**2).sum()))

    least = loss(stack.coefficients, stack.intercept)
    generator = np.random.default_rng(0)
    for _ in range(50):
        away = 1e-2 * generator.normal(size=stack.coefficients.shape)
        assert loss(stack.coefficients + away, stack.intercept + 1e-2 * generator.normal(size=4)) > least
    assert stack.shares.sum() == pytest.approx(1)
    assert Stack(np.zeros((3, 4, 4)), np.zeros(4), 1.0).shares == pytest.approx(np.full(3, 1 / 3))


# ---- offsets -------------------------------------------------------------------------------------


def _scores(seed, items=30, classes=3):
    generator = np.random.default_rng(seed)
    label = np.r_[np.arange(classes), generator.choice(classes, items - classes, p=[0.7, 0.2, 0.1][:classes])]
    return log_softmax(np.eye(classes)[label] + 1.2 * generator.normal(size=(items, classes)) + np.array([1.0, 0, 0])), label


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_sweep_tells_the_objective_of_every_offset(objective):
    scores, label = _scores(0)
    scores[4] = scores[5]  # items that turn together
    delta = np.array([0.3, -0.2, 0.0])
    for k in range(3):
        middle, values = sweep(scores, label, delta, k, objective)
        assert (np.diff(middle) > 0).all()
        for offset, value in zip(middle, values):
            moved = delta.copy()
            moved[k] = offset
            assert value == pytest.approx(value_of(scores, label, moved, objective), abs=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_the_vector_is_as_good_as_brute_force(objective, seed):
    scores, label = _scores(seed)
    found, path = fit_vector(scores, label, objective, ridge=0, starts=5)
    assert found[-1] == 0
    assert (np.diff(path) > 0).all(), "the objective never falls"
    grid = np.array([(a, b, 0.0) for a, b in itertools.product(np.linspace(-6, 6, 81), repeat=2)])
    brute = objective(confusion_counts(label, (scores + grid[:, None]).argmax(2), 3)).max()
    assert value_of(scores, label, found, objective) >= brute - 1e-12


def test_the_scalar_follows_the_prior_and_is_nought_where_nothing_is_gained():
    scores, label = _scores(1)
    prior = np.array([0.7, 0.2, 0.1])
    delta = fit_scalar(scores, label, prior, Objective("uar"))
    direction = -np.log(prior) + np.log(prior[-1])
    assert np.allclose(delta / direction[0] * direction[1], delta[0] / direction[0] * direction, atol=10) or delta[-1] == 0
    assert delta[0] * direction[1] == pytest.approx(delta[1] * direction[0])
    assert value_of(scores, label, delta, Objective("uar")) > value_of(scores, label, np.zeros(3), Objective("uar"))
    perfect = np.log(0.9 * np.eye(3)[label] + 0.1 / 3)
    assert not fit_scalar(perfect, label, prior, Objective("uar")).any()


def test_held_out_offsets_do_not_see_the_rows_they_answer():
    scores, label = _scores(2, items=90)
    fold, prior = np.arange(90) % 3, np.array([0.7, 0.2, 0.1])
    before = cross_fitted_answers("vector", scores, label, fold, prior, Objective("uar"))
    changed = label.copy()
    changed[fold == 1] = (changed[fold == 1] + 1) % 3
    after = cross_fitted_answers("vector", scores, changed, fold, prior, Objective("uar"))
    assert (before[fold == 1] == after[fold == 1]).all()
    assert not (before == after).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_margins_give_the_value_of_the_counts(objective):
    counts = np.random.default_rng(0).integers(0, 9, (3, 3)).astype(float)
    row = objective.row_weights(counts.sum(1))
    found = objective.of_margins(np.diag(counts) * row, row @ counts, counts.sum(1))
    assert found == pytest.approx(float(objective(counts)))


# ---- the choice ----------------------------------------------------------------------------------


def _skewed(toy, seed=0, items=900):
    """A selection whose members favour the first class by far, so that offsets pay."""
    selection = toy.selection([1.2] * 4, items=items, speakers=30, seed=seed)
    logp = selection.predictions.logp + np.array([2.5, 0, 0, 0], np.float32)
    return replace(selection, predictions=replace(selection.predictions, logp=log_softmax(logp)))


def test_the_ladder_is_climbed_only_for_a_gain(toy):
    config = _config(family="average", offsets="auto", calibrate=False)
    skewed = _skewed(toy)
    plan = choose(skewed, TASK, config)
    assert plan.ladder == "vector"
    scores = dict(plan.scores)
    assert scores["average+vector"] > scores["average"] + 0.1
    assert scores["average+scalar"] < scores["average+vector"] - 0.05, "classes are of nearly equal size"
    even = [choose(toy.selection([1.2] * 4, items=900, speakers=30, seed=seed), TASK, config).ladder for seed in range(5)]
    assert even.count("none") >= 4
    fit = fit_classes(skewed, TASK, config)
    assert np.allclose(np.exp(fit.predict(skewed.predictions)).sum(1), 1)
    fresh = _skewed(toy, seed=1)
    gains = [
        Objective("uar")(confusion_counts(fresh.label, one.predict(fresh.predictions).argmax(1), 4))[0]
        for one in (fit, replace(fit, offsets=None))
    ]
    assert gains[0] > gains[1] + 0.1


def test_a_stated_prior_is_not_taken_back_by_offsets(toy):
    config = _config(family="average", offsets="auto", calibrate=False, prior=(0.4, 0.2, 0.2, 0.2))
    assert choose(_skewed(toy), TASK, config).ladder == "none"
    assert choose(_skewed(toy), TASK, config.model_copy(update={"prior": "estimate", "offsets": "vector"})).ladder == "none"


def test_the_blend_is_the_mean_of_the_weights_of_others(toy):
    selection = toy.selection([1.2, 0.9, 0.6, 0.1], items=200)
    prepared = prepare(selection, TASK, _config())
    whole = {family: np.zeros(4) for family in ("greedy", "convex")}
    for pool in ("linear", "log"):
        for family, weights in whole.items():
            fit = weigh(prepare(selection, TASK, _config()), family, pool, TASK, _config())
            weights[:] = 0
            for member, weight in zip(fit.members, fit.weights, strict=True):
                weights[[one.id for one in selection.predictions.members].index(member.id)] = weight
        blend = weigh(prepared, "blend", pool, TASK, _config())
        expected = np.mean(list(whole.values()), axis=0)
        np.testing.assert_allclose(blend.weights, expected[expected > 0], atol=1e-6)
        assert any(not np.allclose(weights, expected) for weights in whole.values())
    with pytest.raises(ValueError, match="likelihood"):
        EnsembleConfig(family="blend", pool="rank")


def test_a_single_member_is_taken_only_where_nothing_else_comes_near():
    """Of 40 speakers with 10 items of each of two classes: right answers of each by both families."""

    def sums(right):
        table = np.zeros((40, 2, 2))
        table[:, 0, 0] = table[:, 1, 1] = right
        table[:, 0, 1] = table[:, 1, 0] = 10 - table[:, 0, 0]
        return table

    base = 5 + np.arange(40) % 3
    level, ahead = base + np.repeat([1, 0, -1], [11, 19, 10]), base + 2  # +.0025, and a standard error of about .011; +.2
    mean, one = ("average", "linear", "none"), ("best_single", "linear", "none")
    objective = Objective("uar")
    assert objective(sums(level).sum(0)) > objective(sums(base).sum(0)), "the single member is the better, but not by a standard error"
    assert _chosen({one: sums(level), mean: sums(base)}, objective, 1.0, 0)[0] == mean
    assert _chosen({one: sums(base), mean: sums(level)}, objective, 1.0, 0)[0] == mean
    assert _chosen({one: sums(ahead), mean: sums(base)}, objective, 1.0, 0)[0] == one


def test_all_families_pools_and_rungs_are_tried_from_simple_to_complex(toy):
    plan = choose(toy.selection([1.0] * 5, items=300), TASK, _config(pool="auto", offsets="auto", family="auto"))
    tried = [name.split("+")[0] for name, _ in plan.scores]
    assert set(tried) == {"best_single", "vote", "stack"} | {
        name_of(family, pool) for family in ("blend", "average", "greedy_once", "greedy", "convex") for pool in ("linear", "log")
    }
    assert {name.split("+")[1] for name, _ in plan.scores if "+" in name} == {"scalar", "vector"}
    order = [FAMILIES.index(name.split("/")[0]) for name in tried]
    assert order == sorted(order)


def test_convex_weights_have_no_rank_pool():
    with pytest.raises(ValueError, match="convex"):
        EnsembleConfig(family="convex", pool="rank")


def test_every_family_and_pool_answers_an_easy_task(toy):
    selection, fresh = (toy.selection([1.3] * 8, items=500, speakers=20, seed=seed) for seed in (0, 1))
    prepared = prepare(selection, TASK, _config())
    single = (weigh(prepared, "best_single", "linear", TASK, _config()).predict(fresh.predictions).argmax(1) == fresh.label).mean()
    for family in FAMILIES:
        for pool in ("linear",) if family in ("blend", "convex", "stack", "vote") else ("linear", "log", "rank", "vote"):
            fit = weigh(prepared, family, pool, TASK, _config())
            logp = fit.predict(fresh.predictions)
            assert np.allclose(np.exp(logp).sum(1), 1, atol=1e-5)
            assert fit.temperature > 0
            score = (logp.argmax(1) == fresh.label).mean()
            assert score > (0.4 if family == "best_single" else single + 0.1), (family, pool)
            some = fresh.predictions.take_members([1, 4])
            assert np.isfinite(fit.predict(some)).all() or family in ("best_single", "convex", "greedy_once", "greedy")
            assert np.isnan(fit.predict(fresh.predictions.take_members([]))).all()


def test_a_vote_is_the_plurality_whatever_comes_after(toy):
    selection = toy.selection([1.0, 0.8, 1.2], items=300)
    fit = fit_classes(selection, TASK, _config(family="vote"))
    logp = np.stack([one.apply(z) for one, z in zip(fit.calibrations, selection.predictions.logp)])
    votes = np.eye(4)[(logp + np.log(fit.prior / fit.selection_prior)).argmax(2)].sum(0)
    clear = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]
    assert (fit.predict(selection.predictions)[clear].argmax(1) == votes[clear].argmax(1)).all()


def test_hard_voters_are_told_by_their_confusion_matrix(toy):
    selection = toy.selection([1.0, 1.0], items=2000)
    logp = selection.predictions.logp.copy()
    votes = logp[0].argmax(1)
    logp[0] = np.where(np.eye(4, dtype=bool)[votes], 0.0, np.log(1e-30))
    assert only_votes(logp[0])
    assert not only_votes(logp[1])
    hard = replace(selection, predictions=replace(selection.predictions, logp=logp))
    prepared = prepare(hard, TASK, _config(ridge=0.0))
    p = np.exp(prepared.logp[0])
    assert np.allclose(p.sum(1), 1, atol=1e-5)
    for k in range(4):
        truth = np.bincount(selection.label[votes == k], minlength=4) / (votes == k).sum()
        assert np.allclose(p[votes == k].mean(0), truth, atol=0.02)
    assert np.allclose(p.mean(0), prepared.selection_prior, atol=1e-3)


# ---- priors: once and only once ------------------------------------------------------------------


def test_no_chain_of_priors_corrects_twice():
    generator = np.random.default_rng(0)
    source, first, last = generator.dirichlet(np.ones(4), 3)
    start = Posterior(log_softmax(generator.normal(size=(20, 4))), source)
    once = start.under(last)
    assert np.allclose(once.under(last).logp, once.logp)
    assert np.allclose(start.under(first).under(source).under(last).logp, once.logp)
    ratio = np.exp(start.logp) * last / source
    assert np.allclose(np.exp(once.logp), ratio / ratio.sum(1, keepdims=True))


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_member_that_was_trained_with_weights_ends_under_the_same_prior(toy, calibrate):
    """The same evidence with two training priors: corrected to the decision prior, both answer the
    same.
    """
    selection = toy.selection([1.5], items=1500)
    plain = selection.predictions
    weighted = np.array([0.55, 0.15, 0.15, 0.15])
    moved = log_softmax(plain.logp + np.log(weighted / 0.25).astype(np.float32))

    def answers(logp, prior):
        member = replace(plain.members[0], prior=tuple(prior))
        found = replace(selection, predictions=replace(plain, members=(member,), logp=logp))
        return fit_classes(found, TASK, _config(calibrate=calibrate, ridge=0.0, family="best_single")).predict(found.predictions)

    assert np.allclose(answers(plain.logp, np.full(4, 0.25)), answers(moved, weighted), atol=1e-3)


def test_the_prior_of_new_rows_can_be_estimated(toy):
    selection = toy.selection([2.0] * 3, items=2000)
    target = np.array([0.7, 0.1, 0.1, 0.1])
    generator = np.random.default_rng(5)
    rows = np.concatenate([generator.choice(np.flatnonzero(selection.label == k), int(1500 * target[k])) for k in range(4)])
    fresh, label = (
        replace(selection.predictions.take_rows(rows), utterances=tuple(f"n{n}" for n in range(len(rows)))),
        selection.label[rows],
    )
    fit = fit_classes(selection, Task(classes=TASK.classes, metric="accuracy"), _config(family="average", prior="estimate"))
    same = replace(fit, estimate=False)
    right = [(one.predict(fresh).argmax(1) == label).mean() for one in (fit, same)]
    assert np.abs(np.exp(fit.predict(fresh)).mean(0) - target).max() < 0.03
    assert right[0] > right[1] + 0.005


# ---- ranks ---------------------------------------------------------------------------------------


def test_a_rank_reference_gives_the_normal_scores_of_its_own_rows():
    generator = np.random.default_rng(0)
    logp = np.log(generator.dirichlet(np.ones(3), size=(2, 4000))).astype(np.float32)
    every = np.ones((2, 4000), bool)
    reference, exact = RankReference.of(logp, every).scores(logp), normal_scores(logp, every)
    assert np.abs(reference - exact).mean() < 0.01
    assert np.quantile(np.abs(reference - exact), 0.99) < 0.1
    alone = RankReference.of(logp, every).scores(logp[:, :1])
    assert np.array_equal(alone, reference[:, :1]), "an item's score does not depend on the others"


# ---- saved and loaded ----------------------------------------------------------------------------

SAVED = [
    {"family": "average", "pool": "linear", "offsets": "none"},
    {"family": "average", "pool": "log", "offsets": "vector"},
    {"family": "greedy_once", "pool": "rank", "offsets": "scalar"},
    {"family": "greedy", "pool": "vote", "offsets": "vector"},
    {"family": "vote", "offsets": "none"},
    {"family": "convex", "pool": "linear", "offsets": "none"},
    {"family": "stack", "offsets": "vector", "stack_members": 3},
    {"family": "best_single", "pool": "linear", "offsets": "none", "prior": "estimate"},
    {"family": "average", "pool": "linear", "offsets": "none", "dimensional": "rank"},
]


@pytest.mark.parametrize("settings", SAVED, ids=lambda one: "-".join(map(str, one.values())))
def test_a_saved_ensemble_answers_as_the_fitted_one(tmp_path, toy, settings):
    def hard(m, logits):
        return np.where(np.eye(4, dtype=bool)[logits.argmax(1)], 200.0, 0.0) if m == 3 and settings["family"] == "average" else logits

    skills = [("speech", 1.0), ("speech", 1.1), ("text", 1.0), ("text", 1.2)]
    run = toy.run(tmp_path / "run", skills=skills, kind="both", ensemble={"bags": 2, "recipes": [], **settings}, transform=hard)
    toy.features(run.folder, ["speech", "text"])
    evaluate(run.folder)
    opened = Run.open(run.folder)
    fitted, bundle = fit_runs([opened], opened.config), load_ensemble(run.folder / "ensemble")
    held = load_predictions([opened], 0, "test")
    for part, loaded in zip(fitted.parts, bundle.parts, strict=True):
        for some in (held, held.take_members([0, 2])):
            for wanted, found in zip(part.predict(some), loaded.predict(some)):
                assert np.allclose(wanted, found, atol=1e-6, equal_nan=True)
            assert np.allclose(part.classes.natural(some), loaded.classes.natural(some), atol=1e-6, equal_nan=True)
    record = read_yaml(run.folder / "ensemble" / "ensemble.yaml")
    plain = settings["family"] == "convex"
    if settings["family"] != "average":  # with a voter or ranks it is the second
        assert record["format"] == FORMATS[not plain and (settings.get("pool"), settings.get("prior")) != ("linear", None)]
    if settings["family"] == "average":
        assert record["format"] == FORMATS[1]


def test_a_stack_reads_the_best_members_only(toy):
    selection = toy.selection([0.1, 1.5, 0.2, 1.4], items=400)
    fit = stack_fits(prepare(selection, TASK, _config()), TASK, _config(stack_members=2), [0.1])[0]
    assert [member.trial for member in fit.members] == ["t001", "t003"]


def test_the_forest_recipe_says_what_it_needs(toy, monkeypatch):
    from raysere.ensemble.evaluate import forest, recipes

    monkeypatch.setattr(forest, "forest_available", lambda: False)
    with pytest.raises(ConfigError, match="scikit-learn") as error:
        recipes.fit_baselines(toy.selection([1.0, 1.0]), TASK, _config(recipes=("forest",)))
    assert "raysere[baselines]" in str(error.value)
    assert "forest" not in recipes.wanted_recipes(_config(recipes="auto"), TASK)


def test_an_unknown_metric_is_an_error_and_not_macro_f1():
    ones = np.ones((1, 2))
    with pytest.raises(DataError, match="weighted_f1"):
        Objective("weighted_f1").of_margins(ones, ones, np.ones(2))
