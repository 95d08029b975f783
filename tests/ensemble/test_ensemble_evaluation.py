"""Fitting, choosing and honest scoring, from predictions to evaluation.json."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import yaml

from raysere.base.errors import ConfigError, DataError
from raysere.corpora.manifest import Manifest
from raysere.ensemble.config import FAMILIES, EnsembleConfig, with_family
from raysere.ensemble.data.predictions import FitRows
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.evaluate.evaluation import evaluate, evaluate_runs, evaluation_is_current
from raysere.ensemble.evaluate.protocols import cross_fit, in_sample
from raysere.ensemble.evaluate.recipes import fit_baselines
from raysere.ensemble.fit.auto import first_near_best
from raysere.ensemble.fit.part import fit_classes, fit_part, mixture
from raysere.training.metrics import uar, uar_of
from raysere.training.task import Task

TASK = Task(classes=("anger", "happiness", "neutral", "sadness"))
SKILLS = [("speech", 0.9), ("speech", 1.0), ("speech", 1.1), ("text", 0.9), ("text", 1.0)]


def _config(**values):
    return EnsembleConfig(**{"bags": 4, "draws": 200, "recipes": (), **values})


def _uar(answers, selection):
    return uar(selection.label, answers.answer["ensemble"], 4)


# ---- fitting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "auto"])
def test_every_family_gives_a_distribution_and_weights_that_sum_to_one(toy, family):
    selection = toy.selection([0.5, 1.0, 1.2, 0.9])
    fit = fit_classes(selection, TASK, _config(family=family))
    assert fit.weights.sum() == pytest.approx(1)
    p = np.exp(fit.predict(selection.predictions))
    assert np.allclose(p.sum(1), 1)
    assert fit.family in FAMILIES
    assert len(fit.members) == {"best_single": 1, "average": 4}.get(fit.family, len(fit.members))


def test_an_ensemble_of_equals_beats_its_members_and_auto_sees_it(toy):
    selection = toy.selection([1.0] * 10, items=1500, speakers=40)
    fit = fit_classes(selection, TASK, _config(family="auto"))
    assert fit.family in ("average", "greedy")
    scores = dict(fit.choice)
    assert scores[fit.family] > scores["best_single"] + 0.1


def test_auto_answers_as_one_outstanding_member_does(toy):
    selection = toy.selection([40.0, 0.0, 0.0, 0.0], items=600)
    fit = fit_classes(selection, TASK, _config(family="auto"))
    assert (fit.predict(selection.predictions).argmax(1) == selection.predictions.logp[0].argmax(1)).all()


def test_the_first_near_the_best_is_taken():
    generator = np.random.default_rng(0)
    base = generator.integers(3, 8, (20, 2, 2)).astype(float)
    better = base.copy()
    better[:, 0, 0] += np.where(np.arange(20) % 2, 1.1, -1)  # hardly better, and not for every speaker
    much = base + 40 * np.eye(2)
    some = base + 1.0 * np.eye(2)
    some[::3] = base[::3]  # ahead by some standard errors

    def taken(first, second, margin):
        return first_near_best({"simple": first, "complex": second}, uar_of, margin, 0)[0]

    assert taken(base, better, 1.0) == "simple"
    assert taken(base, better, 0.0) == "complex"
    assert [taken(base, some, margin) for margin in (1.0, 2.0, 20.0)] == ["complex", "complex", "simple"]
    assert taken(base, much, 2.0) == "complex"
    assert taken(much, base, 2.0) == "simple"


def test_a_missing_modality_is_answered_by_the_others(toy):
    selection = toy.selection([1.0] * 6)
    fit = fit_classes(selection, TASK, _config(family="average"))
    audio = selection.predictions.take_members([0, 2, 4])
    found = fit.predict(audio)
    assert np.isfinite(found).all()
    nobody = selection.predictions.take_members([])
    assert np.isnan(fit.predict(nobody)).all()


def test_the_prior_moves_the_decision_but_not_the_calibrated_pool(toy):
    selection = toy.selection([1.0, 1.2])
    skewed = fit_classes(selection, TASK, _config(family="average", pool="linear", prior=(0.7, 0.1, 0.1, 0.1)))
    even = fit_classes(selection, TASK, _config(family="average", pool="linear", prior="uniform"))
    assert np.allclose(skewed.natural(selection.predictions), even.natural(selection.predictions))
    assert np.exp(skewed.predict(selection.predictions))[:, 0].mean() > np.exp(even.predict(selection.predictions))[:, 0].mean() + 0.2


def test_a_mixture_leaves_out_parts_that_cannot_answer():
    a, b = np.log(np.array([[0.8, 0.2], [0.6, 0.4]])), np.log(np.array([[0.4, 0.6], [np.nan, np.nan]]))
    none = np.zeros((2, 0))
    logp, _ = mixture([(a, none), (b, none)])
    assert np.allclose(np.exp(logp), [[0.6, 0.4], [0.6, 0.4]])
    only_one = np.array([[1.0, np.nan], [3.0, 4.0]])
    _, values = mixture([(a, only_one), (a, np.array([[2.0, 6.0], [np.nan, 2.0]]))])
    assert values.tolist() == [[1.5, 6.0], [3.0, 3.0]], "one attribute that is missing takes no other with it"


def test_all_randomness_follows_from_the_seed(toy):
    selection = toy.selection([0.8] * 12)
    one, two, other = (fit_classes(selection, TASK, _config(family="greedy", seed=seed)) for seed in (0, 0, 1))
    assert one.members == two.members
    assert np.array_equal(one.weights, two.weights)
    assert one.members != other.members or not np.array_equal(one.weights, other.weights)


def test_the_recipes_are_the_published_ones(toy):
    selection = toy.selection([0.5, 1.5, 0.8, 1.0, 0.6])
    found = selection.predictions
    recipes = fit_baselines(selection, TASK, _config())
    assert recipes.best.trial == "t001"
    assert (recipes.best_single(found)[0] == found.logp[1].argmax(1)).all()
    assert (recipes.average(found)[0] == np.exp(found.logp).mean(0).argmax(1)).all()
    votes = np.eye(4)[found.logp.argmax(-1)].sum(0)
    clear = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]
    assert (recipes.majority_vote(found)[clear] == votes.argmax(1)[clear]).all()
    assert not (recipes.majority_vote(found) == recipes.average(found)[0]).all()
    capped = fit_baselines(selection, TASK, _config(top=1))
    assert [member.trial for member in capped.members] == ["t001", "t002"]  # the best of each study


# ---- honesty -------------------------------------------------------------------------------------


def test_with_shuffled_labels_the_cross_fitted_score_is_chance_and_the_in_sample_one_is_not(toy):
    config, honest, flattering = _config(family="greedy", bags=0), [], []
    for seed in range(6):
        selection = toy.selection([0.2] * 20, items=500, speakers=25, shuffled=True, seed=seed)
        honest.append(_uar(cross_fit(selection, TASK, config, 0), selection))
        flattering.append(uar(selection.label, in_sample(fit_part(selection, TASK, config), selection, TASK)[1], 4))
    error = np.sqrt(0.25 * 0.75 / 500 / 6)
    assert abs(np.mean(honest) - 0.25) < 3 * error
    assert np.mean(flattering) > 0.25 + 5 * error


def test_the_inner_scores_by_which_auto_chooses_are_honest(toy):
    scores = []
    for seed in range(6):
        selection = toy.selection([0.2] * 20, items=500, speakers=25, shuffled=True, seed=seed)
        scores.append(dict(fit_classes(selection, TASK, _config(family="auto", bags=0)).choice)["greedy"])
    assert abs(np.mean(scores) - 0.25) < 3 * np.sqrt(0.25 * 0.75 / 500 / 6)


def test_what_is_held_out_changes_nothing_that_answers_it(toy):
    selection = toy.selection([0.8, 0.9, 1.0, 1.1])
    config = _config(family="auto")
    before = cross_fit(selection, TASK, config, 0)
    held = selection.fold == 2
    label = selection.label.copy()
    label[held] = (label[held] + 1) % 4
    after = cross_fit(FitRows(selection.predictions, label, selection.target, selection.group, selection.fold), TASK, config, 0)
    for name in before.answer:
        assert (before.answer[name][held] == after.answer[name][held]).all()
    assert np.allclose(before.logp[held], after.logp[held])
    assert not np.allclose(before.logp[~held], after.logp[~held])


@pytest.mark.parametrize(
    ("protocol", "test_share", "split"),
    [("holdout", 0.25, "test"), ("out_of_fold", 0.25, "test"), ("out_of_fold", 0, "out_of_fold"), ("nested", 0, "nested")],
)
def test_evaluation_json_holds_what_the_format_promises(tmp_path, toy, protocol, test_share, split):
    run = toy.run(tmp_path / "run", skills=SKILLS, protocol=protocol, test_share=test_share, items=360)
    toy.features(run.folder, ["speech", "text"])
    result = evaluate(run.folder)
    assert result == json.loads((run.folder / "evaluation.json").read_text())
    held = pl.read_parquet(run.folder / "held_out.parquet")
    assert held.height >= result["n_utterances"]
    opened = Run.open(run.folder)
    truth = {
        name: opened.task.classes[code] for name, code in zip(opened._labels.utterances, opened._labels.label, strict=True) if code >= 0
    }
    scored = held.filter(pl.col("utterance").is_in(list(truth)))
    right = {name: [] for name in opened.task.classes}
    for name, answer in scored.select("utterance", "ensemble").iter_rows():
        right[truth[name]].append(answer == truth[name])
    assert np.mean([np.mean(one) for one in right.values()]) == pytest.approx(result["ensemble"]["value"])
    assert result["format"] == "raysere.evaluation/1"
    assert (result["metric"], result["split"]) == ("uar", split)
    assert result["n_utterances"] == (360 if split != "test" else 90)
    assert result["n_speakers"] == (12 if split != "test" else 3)
    for system in ("ensemble", "best_single", "average", "majority_vote"):
        assert result[system]["low"] <= result[system]["value"] <= result[system]["high"]
    assert result["best_single"]["member"].startswith(("speech", "text"))
    for name in ("best_single", "average", "majority_vote"):
        entry = result["difference"][f"ensemble - {name}"]
        assert entry["value"] == pytest.approx(result["ensemble"]["value"] - result[name]["value"])
    assert result["ensemble"]["value"] > result["best_single"]["value"]
    assert set(result["by_class"]) == set(toy.classes)
    assert np.mean([entry["recall"] for entry in result["by_class"].values()]) == pytest.approx(result["ensemble"]["value"])
    assert sum(entry["n"] for entry in result["by_speaker"].values()) == result["n_utterances"]
    assert sum(map(sum, result["confusion"]["counts"])) == result["n_utterances"]
    assert sum(entry["count"] for entry in result["calibration"]["bins"]) == result["n_utterances"]
    bins = [entry for entry in result["calibration"]["bins"] if entry["count"]]
    assert len(bins) > 3
    assert all(entry["low"] <= entry["confidence"] <= entry["high"] for entry in bins)
    right = sum(entry["count"] * entry["accuracy"] for entry in bins) / result["n_utterances"]
    assert right == pytest.approx(result["other_metrics"]["accuracy"]["value"], abs=0.08)  # decided under another prior
    assert result["chance"]["value"] == pytest.approx(0.25)
    assert {"macro_f1", "accuracy", "balanced_macro_f1", "nll"} <= set(result["other_metrics"])
    assert set(result["by_group"]) == ({"sex"} if split == "test" else {"sex", "speaker_decile"})
    assert all(sum(entry["n"] for entry in groups.values()) == result["n_utterances"] for groups in result["by_group"].values())
    assert result["claim"].count("[") == len(result["difference"]) == 4
    assert len(result["best_single"].get("members", [0])) == {"test": 1, "out_of_fold": 5, "nested": 4}[split], "one of every fold"
    assert set(result["best_single"].get("members", [])) <= set(result["best_single"]["member"].split(", "))
    assert len(result["diversity"]) == len(result["families"]) == (4 if split == "nested" else 1)
    assert evaluation_is_current(run.folder)
    assert (run.folder / "ensemble" / "ensemble.yaml").is_file()
    assert result["optimism"]["value"] == pytest.approx(result["optimism"]["in_sample"] - result["ensemble"]["value"])


def test_test_labels_change_the_score_and_nothing_else(tmp_path, toy):
    run = toy.run(tmp_path / "run", skills=SKILLS)
    toy.features(run.folder, ["speech", "text"])
    before = evaluate(run.folder)
    bundle = yaml.safe_load((run.folder / "ensemble" / "ensemble.yaml").read_text())
    path = run.folder / "manifest.parquet"
    manifest = Manifest.read(path)
    test = set(run.splits.filter(run.splits["role"] == "test")["utterance"].to_list())
    turn = dict(zip(toy.classes, toy.classes[1:] + toy.classes[:1]))
    emotion = [turn[label] if name in test else label for name, label in zip(manifest.table["utterance"], manifest.table["emotion"])]
    Manifest.checked(
        manifest.table.with_columns(emotion=__import__("polars").Series(emotion)), roots=manifest.roots, scales=manifest.scales
    ).write(path)
    assert not evaluation_is_current(run.folder)
    after = evaluate(run.folder)
    other = yaml.safe_load((run.folder / "ensemble" / "ensemble.yaml").read_text())
    assert [(m["id"], m["weight"], m["classes"]) for m in bundle["members"]] == [
        (m["id"], m["weight"], m["classes"]) for m in other["members"]
    ]
    assert bundle["parts"] == other["parts"]
    assert after["ensemble"]["value"] < before["ensemble"]["value"] - 0.3


def test_an_evaluation_is_stale_once_a_trial_is_added_or_a_setting_changes(tmp_path, toy):
    run = toy.run(tmp_path / "run", skills=SKILLS)
    toy.features(run.folder, ["speech", "text"])
    assert not evaluation_is_current(run.folder)
    first = evaluate(run.folder)
    assert evaluation_is_current(run.folder)
    assert evaluate(run.folder) == first
    done = run.folder / "trials" / "text-0004" / "DONE"
    kept = done.read_text()
    done.write_text(json.dumps({**json.loads(kept), "status": "error"}))
    assert not evaluation_is_current(run.folder)
    done.write_text(kept)
    assert evaluation_is_current(run.folder)
    done.write_text(json.dumps({**json.loads(kept), "score": 0.75}))
    assert not evaluation_is_current(run.folder), "a trial of that name was trained anew"
    done.write_text(kept)
    run.splits.sort("utterance", descending=True).write_parquet(run.folder / "splits.parquet")
    assert not evaluation_is_current(run.folder)
    run.splits.write_parquet(run.folder / "splits.parquet")
    settings = yaml.safe_load((run.folder / "experiment.yaml").read_text())
    settings["ensemble"]["family"] = "average"
    (run.folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    assert not evaluation_is_current(run.folder)


def test_attributes_are_scored_by_ccc(tmp_path, toy):
    run = toy.run(tmp_path / "run", skills=[("speech", 2.0), ("speech", 2.2), ("text", 2.1)], kind="dimensional", items=360, test_share=0)
    toy.features(run.folder, ["speech", "text"])
    result = evaluate(run.folder)
    assert result["metric"] == "ccc"
    assert result["majority_vote"] is None
    assert set(result["difference"]) == {"ensemble - best_single", "ensemble - average", "ensemble - two_system_mean"}
    assert result["difference"]["ensemble - best_single"]["low"] > 0
    assert result["difference"]["ensemble - average"]["value"] > 0, "the mean of shrunken members lacks spread; matching gives it back"
    assert set(result["by_class"]) == {"arousal", "valence", "dominance"}
    assert result["confusion"] is None
    assert evaluation_is_current(run.folder)


def test_classes_and_attributes_together(tmp_path, toy):
    run = toy.run(tmp_path / "run", skills=[("speech", 1.0), ("text", 1.1)], kind="both", items=240)
    toy.features(run.folder, ["speech", "text"])
    result = evaluate(run.folder)
    assert result["metric"] == "uar"
    assert 0 < result["other_metrics"]["ccc"]["value"] < 1


def test_several_runs_make_one_ensemble(tmp_path, toy):
    first = toy.run(tmp_path / "a", skills=SKILLS[:2])
    second = toy.run(tmp_path / "b", skills=SKILLS[3:], noise_seed=11)
    toy.features(first.folder, ["speech"])
    toy.features(second.folder, ["text"])
    result = evaluate_runs([first.folder, second.folder], tmp_path / "both", family="average")
    assert {member["member"].split("/")[0] for member in result["members"]} == {"a", "b"}
    assert result["best_single"]["member"][:2] in ("a/", "b/")
    assert (tmp_path / "both" / "evaluation.json").is_file()
    with pytest.raises(DataError, match="No run"):
        evaluate_runs([], tmp_path / "none")


def test_only_an_explicit_family_overrides_that_of_the_run(tmp_path, toy):
    run = toy.run(
        tmp_path / "a", skills=[("speech", 1.0), ("text", 1.1)], kind="both", ensemble={"family": "best_single", "dimensional": "nnls"}
    )
    toy.features(run.folder, ["speech", "text"])

    def families(out, family):
        evaluate_runs([run.folder], out, family=family)
        config = yaml.safe_load((out / "ensemble.yaml").read_text())["config"]
        return config["family"], config["dimensional"]

    assert families(tmp_path / "kept", None) == ("best_single", "nnls")
    assert families(tmp_path / "average", "average") == ("average", "average")
    assert families(tmp_path / "shrunk", "shrunk") == ("best_single", "shrunk"), "classes have no such family"
    with pytest.raises(ConfigError, match="no family 'forest'"):
        evaluate_runs([run.folder], tmp_path / "none", family="forest")
    with pytest.raises(ConfigError, match="no family 'nnls'"):
        with_family(EnsembleConfig(), "nnls", TASK)


def test_synthetic_speech_missing_rows_and_few_speakers_are_told(tmp_path, toy):
    run = toy.run(tmp_path / "run", skills=[("text", 1.0), ("text", 1.0)], synthetic=True, text_missing=0.3)
    toy.features(run.folder, ["text"])
    result = evaluate(run.folder)
    assert result["synthetic"] is True
    text = " ".join(result["notes"])
    assert "synthetic" in text
    assert "Only 3 speakers" in text
    assert "no prediction of any member" in text


def test_a_class_that_no_held_out_clip_has_is_told_and_not_counted(tmp_path, toy):
    run = toy.run(tmp_path / "run", skills=[("text", 1.0), ("text", 1.1)])
    toy.features(run.folder, ["text"])
    path, test = run.folder / "manifest.parquet", run.splits.filter(pl.col("role") == "test")["utterance"].to_list()
    manifest = Manifest.read(path)
    lost = pl.col("utterance").is_in(test) & (pl.col("emotion") == "sadness")
    table = manifest.table.with_columns(emotion=pl.when(lost).then(pl.lit("anger")).otherwise("emotion"))
    Manifest.checked(table, roots=manifest.roots, scales=manifest.scales).write(path)
    result = evaluate(run.folder)
    recalls = [entry["recall"] for name, entry in result["by_class"].items() if name != "sadness"]
    assert (result["by_class"]["sadness"]["n"], result["by_class"]["sadness"]["recall"]) == (0, None)
    assert result["ensemble"]["value"] == pytest.approx(np.mean(recalls))
    assert "No held-out utterance is of the class sadness." in result["notes"]


def test_one_speaker_only_is_refused(toy):
    selection = toy.selection([1.0, 1.0], speakers=1)
    with pytest.raises(DataError, match="One speaker"):
        cross_fit(selection, TASK, _config(), 0)
