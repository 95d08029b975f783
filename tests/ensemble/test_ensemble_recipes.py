"""Published recipes, diversity, controls and claims (docs/methods.md 4.12, 4.13, 4.14)."""

from __future__ import annotations

import numpy as np
import pytest

from raysere.base.errors import DataError
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.data.predictions import load_fit_rows
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.evaluate import ablation, forest
from raysere.ensemble.evaluate.ablation import ablate, libraries_of, shuffled_control
from raysere.ensemble.evaluate.claims import claim
from raysere.ensemble.evaluate.diversity import diversity_of, group_measures, off_diagonal_mean, pair_measures, predicted_gain
from raysere.ensemble.evaluate.evaluation import evaluate
from raysere.ensemble.evaluate.meta import Linear, fit_meta_soup, soup
from raysere.ensemble.evaluate.protocols import fit_runs
from raysere.ensemble.evaluate.recipes import fit_baselines, two_systems
from raysere.ensemble.fit.part import fit_part
from raysere.training.metrics import uar
from raysere.training.task import Task

TASK = Task(classes=("anger", "happiness", "neutral", "sadness"))


def _config(**values):
    return EnsembleConfig(**{"bags": 3, "draws": 200, "recipes": (), "pool": "linear", "offsets": "none", "family": "average", **values})


def test_averaging_linear_classifiers_is_averaging_their_logits():
    generator = np.random.default_rng(0)
    heads = [Linear(generator.normal(size=(10, 4)), generator.normal(size=4)) for _ in range(6)]
    features = generator.normal(size=(50, 10))
    assert np.allclose(soup(heads).logits(features), np.mean([head.logits(features) for head in heads], axis=0))

    def hidden(head):
        return np.maximum(head.logits(features), 0)

    assert not np.allclose(hidden(soup(heads)), np.mean([hidden(head) for head in heads], axis=0), atol=0.1), (
        "a layer more, and they differ"
    )


def test_the_meta_classifier_learns_whom_to_trust(toy):
    skills = [2.0] + [0.0] * 6
    selection, fresh = (toy.selection(skills, items=600, speakers=20, seed=seed) for seed in (0, 1))
    found = fit_meta_soup(selection, 0).predict(fresh.predictions)
    assert np.allclose(np.exp(found).sum(1), 1)
    average = np.exp(fresh.predictions.logp).mean(0).argmax(1)
    assert (found.argmax(1) == fresh.label).mean() > (average == fresh.label).mean() + 0.1
    some = fresh.predictions.take_members([0, 1])
    assert np.isfinite(fit_meta_soup(selection, 0).predict(some)).all()
    assert np.isnan(fit_meta_soup(selection, 0).predict(fresh.predictions.take_members([]))).all()


def test_the_forest_is_the_published_one(toy, monkeypatch):
    pytest.importorskip("sklearn")
    assert (forest._TREES, forest._DEPTH, forest._LEAF, forest._FOLDS) == (200, 8, 10, 5)
    monkeypatch.setattr(forest, "_TREES", 20)
    skills = [2.0] + [0.0] * 3
    selection, fresh = (toy.selection(skills, items=600, seed=seed) for seed in (0, 1))
    fitted = forest.fit_forest(selection, 0)
    p = fitted.predict(fresh.predictions)
    assert np.allclose(p.sum(1), 1)
    assert len(fitted.forests) == 5
    assert all(tree.get_depth() <= 8 for one in fitted.forests for tree in one.estimators_)
    assert (p.argmax(1) == fresh.label).mean() > 0.6
    assert np.array_equal(p, forest.fit_forest(selection, 0).predict(fresh.predictions)), "same seed, same forest"


def test_two_systems_hear_different_things(toy):
    members = toy.selection([1.0] * 4).predictions.members  # audio, text, audio, text
    assert [one.trial for one in two_systems(members, [2, 0, 3, 1])] == ["t002", "t003"]
    assert [one.trial for one in two_systems(members[::2], [1, 0])] == ["t002", "t000"]
    assert [one.trial for one in two_systems(members[:1], [0])] == ["t000"]
    selection = toy.selection([1.0, 0.5, 0.6, 1.2])
    recipes = fit_baselines(selection, TASK, _config(recipes=("two_system_mean",)))
    expected = np.exp(selection.predictions.logp[[0, 3]]).mean(0).argmax(1)
    assert (recipes.answers(selection.predictions)["two_system_mean"][0] == expected).all()


# ---- diversity -----------------------------------------------------------------------------------


def test_pair_measures_are_their_definitions():
    right = np.array([[1, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 1]], bool)  # both 3, first only 1, second only 1, neither 1
    found = pair_measures(right)
    assert found["disagreement"][0, 1] == pytest.approx(2 / 6)
    assert found["yule_q"][0, 1] == pytest.approx((3 * 1 - 1 * 1) / (3 * 1 + 1 * 1))
    assert found["double_fault"][0, 1] == pytest.approx(1 / 6)
    chance = (4 / 6) ** 2 + (2 / 6) ** 2
    assert found["kappa"][0, 1] == pytest.approx((4 / 6 - chance) / (1 - chance))
    assert found["kappa"][0, 0] == pytest.approx(1)


def test_group_measures_agree_with_the_pairs():
    right = np.random.default_rng(0).random((5, 400)) < 0.6
    found, pairs = group_measures(right), pair_measures(right)
    assert found["kohavi_wolpert"] == pytest.approx(4 / 10 * off_diagonal_mean(pairs["disagreement"]))
    p = right.mean()
    assert found["kappa"] == pytest.approx(1 - off_diagonal_mean(pairs["disagreement"]) / (2 * p * (1 - p)))
    assert found["oracle"] == right.any(0).mean()


def test_the_predicted_gain_is_that_of_gaussians():
    generator = np.random.default_rng(0)
    covariance = np.full((6, 6), 0.6)
    covariance[0, 1:] = covariance[1:, 0] = 0.7
    np.fill_diagonal(covariance, 1.0)
    draws = generator.multivariate_normal(np.zeros(6), covariance, 100_000).T
    found = predicted_gain(5, 0.6, 0.7)
    assert np.corrcoef(draws[1:].mean(0), draws[0])[0, 1] == pytest.approx(found["mean"], abs=0.005)
    assert found["mean"] + found["one_more"] == pytest.approx(predicted_gain(6, 0.6, 0.7)["mean"])
    assert found["endless"] == pytest.approx(predicted_gain(1e9, 0.6, 0.7)["mean"])


def test_the_diversity_report_says_who_is_missed(toy):
    selection = toy.selection([2.0, 0.0, 1.0, 0.0], items=800)
    report = diversity_of(fit_part(selection, TASK, _config()), selection, TASK)["classes"]
    lost = report["leave_one_out"]
    assert lost["run/t000"] == max(lost.values()) > 0.02
    assert report["oracle"] >= max(report["single"])
    gain = np.array(report["pairs"]["gain"])
    assert np.array_equal(gain, gain.T)
    assert set(report["modalities"]) == {"audio", "text"}
    assert report["modalities"]["audio"]["lost_without"] > report["modalities"]["text"]["lost_without"]
    assert sum(one["weight"] for one in report["modalities"].values()) == pytest.approx(1)


def test_attributes_have_a_report_of_their_own(toy):
    generator = np.random.default_rng(0)
    target = generator.normal(4, 1, 300)
    shared = generator.normal(size=300)
    values = np.stack([target + 0.8 * shared + 0.2 * generator.normal(size=300) for _ in range(3)])
    selection = toy.selection([1.0] * 3, items=300, values=values, target=target)
    task = Task(kind="dimensional", classes=(), attributes=("arousal",), metric="ccc")
    report = diversity_of(fit_part(selection, task, _config(dimensional="average")), selection, task)["attributes"]["arousal"]
    assert report["residual_correlation"] > 0.9
    assert report["predicted"]["ccc_matched"] >= report["predicted"]["ccc_unmatched"]


# ---- controls and claims -------------------------------------------------------------------------


def test_shuffled_labels_are_answered_by_chance_and_flatter_in_sample(toy):
    found = [
        shuffled_control(toy.selection([1.0] * 12, items=400, seed=seed), TASK, _config(family="greedy_once"), seed=seed)
        for seed in range(4)
    ]
    error = np.sqrt(0.25 * 0.75 / 400 / 4)
    assert abs(np.mean([one["held_out"] for one in found]) - 0.25) < 3 * error
    assert np.mean([one["in_sample"] for one in found]) > 0.25 + 3 * error
    assert all(one["low"] < one["held_out"] < one["high"] for one in found)


def test_an_ablation_compares_each_variant_with_the_whole(tmp_path, toy):
    run = toy.run(tmp_path / "run", skills=[("speech", 1.0), ("speech", 0.3), ("text", 1.1)], ensemble={"bags": 2})
    rows = ablate(run.folder, {"the same": {}, "best": {"family": "best_single"}}, _config(family="average"), {})
    assert [row["variant"] for row in rows] == ["the full procedure", "the same", "best"]
    assert rows[1]["worth"]["value"] == 0
    assert rows[2]["worth"]["value"] == pytest.approx(rows[0]["value"] - rows[2]["value"])
    assert all(row["seconds"] > 0 for row in rows)
    assert not (run.folder / "evaluation.json").exists()


@pytest.mark.parametrize("protocol", ["nested", "out_of_fold"])
def test_a_part_of_the_library_is_fitted_and_scored_by_itself(tmp_path, toy, protocol):
    skills = [("speech", 1.0), ("speech", 0.8), ("text", 1.1), ("text", 0.2)]
    whole = toy.run(tmp_path / "whole", skills=skills, protocol=protocol, noise_seed=2, items=120)
    parts = libraries_of(Run.open(whole.folder))
    assert set(parts) == {"only speech", "only text"}, "four members are fewer than any size that is tried"
    rows = ablate(whole.folder, {}, _config(family="average"), parts)
    kept = {"only speech": {"speech"}, "only text": {"text"}}
    for row in rows[1:]:
        fitted = fit_runs([Run.open(whole.folder)], _config(family="average"), parts[row["variant"]])
        assert {member.study for part in fitted.parts for member in part.members} == kept[row["variant"]]
        assert all({member.study for member in one.best} == kept[row["variant"]] for one in fitted.answers)
        assert row["worth"]["value"] == pytest.approx(rows[0]["value"] - row["value"])
    assert rows[1]["value"] != rows[2]["value"]
    with pytest.raises(DataError, match="leaves no trial"):
        fit_runs([Run.open(whole.folder)], _config(), lambda member: False)


def test_the_first_trials_of_a_library_are_taken_from_its_studies_in_turns(tmp_path, toy, monkeypatch):
    monkeypatch.setattr(ablation, "SIZES", (1, 3, 8))
    run = toy.run(tmp_path / "run", skills=[("b", 1.0), ("a", 0.8), ("a", 1.1), ("b", 0.2), ("a", 0.5)], protocol="nested", items=120)
    opened = Run.open(run.folder)
    taken = {
        name: sorted(member.trial for member in load_fit_rows([opened], 2).predictions.members if keep(member))
        for name, keep in libraries_of(opened).items()
        if "members" in name
    }
    assert taken == {"1 members": ["b-o02-0000"], "3 members": ["a-o02-0001", "a-o02-0002", "b-o02-0000"]}


def test_all_recipes_are_compared(tmp_path, toy, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(forest, "_TREES", 5)
    run = toy.run(tmp_path / "run", skills=[("speech", 1.0), ("text", 1.1)], ensemble={"recipes": "auto"})
    toy.features(run.folder, ["speech", "text"])
    result = evaluate(run.folder)
    names = {"best_single", "average", "majority_vote", "two_system_mean", "forest", "meta_soup"}
    assert set(result["difference"]) == {f"ensemble - {name}" for name in names}
    for name in names:
        difference = result["difference"][f"ensemble - {name}"]
        assert difference["value"] == pytest.approx(result["ensemble"]["value"] - result[name]["value"])


def test_a_claim_needs_a_lower_bound_above_nought():
    def said(low, high, **more):
        difference = {"ensemble - average": {"value": 0.02, "low": low, "high": high}}
        return claim({"difference": difference, "split": "nested", "metric": "uar", "runs": ["lib"], **more})

    assert "beats the plain average (+0.020 [+0.010, +0.030])" in said(0.01, 0.03)
    assert "nested" in said(0.01, 0.03)
    assert "lib" in said(0.01, 0.03)
    assert "cannot be told apart" in said(-0.01, 0.03)
    assert "is behind" in said(-0.03, -0.01)
    assert "no interval" in said(None, None)
    assert "synthetic" in said(0.01, 0.03, synthetic=True)


def test_uar_of_recipes_on_an_easy_library(toy):
    selection, fresh = (toy.selection([1.2] * 6, items=500, seed=seed) for seed in (0, 1))
    answers = fit_baselines(selection, TASK, _config(recipes=("two_system_mean", "meta_soup"))).answers(fresh.predictions)
    scores = {name: uar(fresh.label, found[0], 4) for name, found in answers.items()}
    assert scores["average"] > scores["two_system_mean"] > scores["best_single"]
    assert scores["meta_soup"] > scores["best_single"]
