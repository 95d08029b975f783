"""What is read of run folders, and what may be fitted on."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

import raysere.ensemble as package
from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions, load_fit_rows, load_predictions
from raysere.ensemble.data.run_labels import Run, dev_truth, test_truth
from raysere.ensemble.evaluate.recipes import fit_baselines
from raysere.ensemble.fit.alone import member_scores, top_members
from raysere.ensemble.fit.classes import decide, prepare
from raysere.ensemble.fit.part import fit_classes, fit_one_attribute
from raysere.ensemble.fit.priors import likeliest_class
from raysere.training.metrics import ccc, uar
from raysere.training.task import Task

STUDIES = [("speech", 1.0), ("speech", 1.5), ("text", 0.8)]


def test_predictions_are_joined_by_utterance_and_class_name(tmp_path, toy):
    run = toy.run(tmp_path / "a", skills=[("speech", 60.0)], file_classes=("sadness", "anger", "neutral", "happiness"))
    selection = load_fit_rows([Run.open(run.folder)])
    number = {name: n for n, name in enumerate(run.utterances)}
    truth = run.label[[number[name] for name in selection.predictions.utterances]]
    assert (selection.label == truth).all()
    assert (selection.predictions.logp[0].argmax(1) == truth).all(), (
        "a perfect member must stay perfect whatever the order of rows and classes in its file"
    )
    assert len(truth) == 180


def test_rows_without_a_prediction_are_absent(tmp_path, toy):
    run = toy.run(tmp_path / "a", skills=STUDIES, text_missing=0.3)
    found = load_fit_rows([Run.open(run.folder)]).predictions
    assert found.present[:2].all()
    assert 0.5 < found.present[2].mean() < 0.85
    assert np.isfinite(found.logp).all()


@pytest.mark.parametrize("status", ["error", "infeasible"])
def test_unfinished_trials_and_twins_are_no_members(tmp_path, toy, status):
    run = toy.run(tmp_path / "a", skills=STUDIES)
    done = run.folder / "trials" / "speech-0000" / "DONE"
    done.write_text(json.dumps({**json.loads(done.read_text()), "status": status, "score": None}))
    twin = run.folder / "trials" / "speech-0001" / "DONE"
    twin.write_text(json.dumps({**json.loads(twin.read_text()), "twin_of": "speech-0000"}))
    assert [member.trial for member in load_fit_rows([Run.open(run.folder)]).predictions.members] == ["text-0002"]
    (run.folder / "trials" / "text-0002" / "DONE").unlink()
    with pytest.raises(DataError, match="no finished trial"):
        load_fit_rows([Run.open(run.folder)])


@pytest.mark.parametrize("name", ["model.safetensors", "predictions.parquet", "params.yaml", "DONE"])
def test_a_trial_whose_files_changed_is_no_member(tmp_path, toy, capfd, name):
    run = toy.run(tmp_path / "a", skills=STUDIES)
    assert len(load_fit_rows([Run.open(run.folder)]).predictions.members) == 3
    assert capfd.readouterr().err.count("Not checked: 3 of 3 trials") == 1
    toy.hashes(run.folder)
    opened = Run.open(run.folder)
    assert len(load_fit_rows([opened]).predictions.members) == 3
    assert not capfd.readouterr().err
    file = run.folder / "trials" / "speech-0001" / name
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    opened = Run.open(run.folder)
    for part in ("dev", "test"):
        assert [member.trial for member in load_predictions([opened], 0, part).members] == ["speech-0000", "text-0002"]
    assert capfd.readouterr().err.count(f"Left out: the trial speech-0001. The file {file} ") == 1


def test_stopped_trials_are_members_with_their_prior(tmp_path, toy):
    run = toy.run(tmp_path / "a", skills=STUDIES[:1])
    done = run.folder / "trials" / "speech-0000" / "DONE"
    prior = {"sadness": 0.4, "anger": 0.3, "happiness": 0.2, "neutral": 0.1}
    done.write_text(json.dumps({**json.loads(done.read_text()), "status": "stopped", "describe": {"effective_prior": prior}}))
    (member,) = load_fit_rows([Run.open(run.folder)]).predictions.members
    assert member.prior == (0.3, 0.2, 0.1, 0.4)


def test_two_runs_make_one_library(tmp_path, toy):
    first = toy.run(tmp_path / "a", skills=STUDIES[:2])
    second = toy.run(tmp_path / "b", skills=STUDIES[2:], noise_seed=5)
    selection = load_fit_rows([Run.open(first.folder), Run.open(second.folder)])
    assert [member.id for member in selection.predictions.members] == ["a/speech-0000", "a/speech-0001", "b/text-0000"]
    assert selection.predictions.present.all()


def test_runs_that_do_not_belong_together_are_refused(tmp_path, toy):
    first = toy.run(tmp_path / "a", skills=STUDIES[:1])
    other = toy.run(tmp_path / "b", skills=STUDIES[:1], classes=("anger", "fear", "neutral", "sadness"))
    with pytest.raises(DataError, match="classes"):
        load_fit_rows([Run.open(first.folder), Run.open(other.folder)])
    leaky = toy.run(tmp_path / "c", skills=STUDIES[:1], test_share=0)
    with pytest.raises(DataError, match="split .* differently"):
        load_fit_rows([Run.open(first.folder), Run.open(leaky.folder)])
    relabelled = toy.run(tmp_path / "d", skills=STUDIES[:1], seed=9)
    with pytest.raises(DataError, match="disagree about"):
        load_fit_rows([Run.open(first.folder), Run.open(relabelled.folder)])
    same = toy.run(tmp_path / "e", skills=STUDIES[:1], name="a")
    with pytest.raises(DataError, match="same name"):
        load_fit_rows([Run.open(first.folder), Run.open(same.folder)])


def test_predictions_that_do_not_fit_the_splits_are_refused(tmp_path, toy):
    run = toy.run(tmp_path / "a", skills=STUDIES[:1])
    path = run.folder / "trials" / "speech-0000" / "predictions.parquet"
    table = pl.read_parquet(path)
    one = table.filter(pl.col("split") == "dev")["utterance"][0]
    table.with_columns(fold=pl.when(pl.col("utterance") == one).then((pl.col("fold") + 1) % 5).otherwise("fold")).write_parquet(path)
    with pytest.raises(DataError, match="other folds"):
        load_fit_rows([Run.open(run.folder)])
    table.with_columns(split=pl.lit("dev")).write_parquet(path)
    with pytest.raises(DataError, match="splits do not have"):
        load_fit_rows([Run.open(run.folder)])
    table.rename({"p.anger": "p.rage"}).write_parquet(path)
    with pytest.raises(DataError, match="other classes"):
        load_fit_rows([Run.open(run.folder)])
    pl.concat([table, table.head(1)]).write_parquet(path)
    with pytest.raises(DataError, match="twice"):
        load_fit_rows([Run.open(run.folder)])


def test_nothing_can_be_fitted_on_test_rows(tmp_path, toy):
    run = Run.open(toy.run(tmp_path / "a", skills=STUDIES).folder)
    held = load_predictions([run], 0, "test")
    assert held.stage == "test"
    assert not hasattr(held, "label")
    count = len(held.utterances)
    with pytest.raises(DataError, match="not test rows"):
        FitRows(held, np.zeros(count, int), np.zeros((count, 0)), np.full(count, "s"), np.zeros(count, int))
    with pytest.raises(DataError, match="test row"):
        dev_truth([run], 0, held.utterances)
    with pytest.raises(DataError, match="not a test row"):
        test_truth([run], 0, load_fit_rows([run]).predictions.utterances)


def test_only_the_evaluation_reads_test_labels():
    readers = set()
    for path in Path(package.__file__).parent.rglob("*.py"):
        if any(
            isinstance(node, ast.Name | ast.alias) and (getattr(node, "id", None) or getattr(node, "name", None)) == "test_truth"
            for node in ast.walk(ast.parse(path.read_text()))
        ):
            readers.add(path.name)
    assert readers == {"evaluation.py", "run_labels.py"}


def test_a_speaker_in_two_folds_is_refused(toy):
    selection = toy.selection([1.0, 1.0])
    fold = selection.fold.copy()
    fold[0] = (fold[0] + 1) % 5
    with pytest.raises(DataError, match="is in several folds"):
        FitRows(selection.predictions, selection.label, selection.target, selection.group, fold)


def test_splits_by_dialogue_group_dialogues_and_speakers_may_recur(tmp_path, toy):
    import polars as pl
    import yaml

    from raysere.corpora.manifest import Manifest

    run = toy.run(tmp_path / "a", skills=STUDIES[:1])
    path = run.folder / "manifest.parquet"
    manifest = Manifest.read(path)
    talk = pl.Series([f"toy/d{fold}-{row % 3}" for row, fold in enumerate((run.speaker % 5).tolist())])
    table = manifest.table.with_columns(dialogue=talk, speaker=pl.lit("toy/joey"))
    Manifest.checked(table, roots=manifest.roots, scales=manifest.scales).write(path)
    with pytest.raises(DataError, match="is in several folds"):
        load_fit_rows([Run.open(run.folder)])
    settings = yaml.safe_load((run.folder / "experiment.yaml").read_text())
    settings["protocol"]["by"] = "dialogue"
    (run.folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    selection = load_fit_rows([Run.open(run.folder)])
    of = dict(zip(table["utterance"], table["dialogue"], strict=True))
    assert selection.group.tolist() == [of[utterance] for utterance in selection.predictions.utterances]


def test_linked_speakers_are_one_person(tmp_path, toy):
    from raysere.corpora.manifest import Manifest

    run = toy.run(tmp_path / "a", skills=STUDIES[:1])
    path = run.folder / "manifest.parquet"
    manifest = Manifest.read(path)
    Manifest.checked(manifest.table, roots=manifest.roots, scales=manifest.scales, linked_speakers=[["toy/s00", "toy/s05"]]).write(path)
    assert len(set(load_fit_rows([Run.open(run.folder)]).group.tolist())) == 8


def test_the_cap_keeps_the_best_of_each_study_on_these_rows_alone(toy):
    selection = toy.selection([0.1, 0.2, 1.0, 1.5, 2.0, 2.5])
    kept = top_members(selection, 2, "uar").predictions.members
    assert [member.trial for member in kept] == ["t002", "t003", "t004", "t005"]
    scores = member_scores(selection, "uar")
    assert scores[5] == max(scores)
    worse = selection.label.copy()
    worse[:] = (selection.label + 1) % 4
    flipped = FitRows(selection.predictions, worse, selection.target, selection.group, selection.fold)
    assert [member.trial for member in top_members(flipped, 1, "uar").predictions.members] != [
        member.trial for member in top_members(selection, 1, "uar").predictions.members
    ]


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(MissingFileError):
        Run.open(tmp_path)
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump({"name": "x"}))
    with pytest.raises(ValueError, match="does not come from a run"):
        Run.open(tmp_path)


# ---- members that do not answer every row --------------------------------------------------------

SPARSE = 32


def _partial(order=("a", "b", "c")):
    """48 rows, half of them ``b``:

    ``text`` is right on the 32 that it answers, ``whole`` on 44 of 48; classes in ``order``.
    """
    label = np.array([0, 1, 1, 2] * 12)
    answers = {"text": label.copy(), "whole": label.copy()}
    answers["whole"][[0, 4, 8, 12]] = 2
    place = np.array([order.index(name) for name in ("a", "b", "c")])
    p = np.stack([np.where(np.eye(3, dtype=bool)[place[answers[name]]], 0.8, 0.1) for name in ("text", "whole")])
    rating = np.linspace(1, 7, 48)[np.random.default_rng(0).permutation(48)]
    values = np.stack([rating, rating + np.random.default_rng(1).normal(size=48)])[:, :, None]
    present = np.ones((2, 48), bool)
    present[0, SPARSE:] = False
    values[0, SPARSE:], p[0, SPARSE:] = 0.0, 1.0
    found = StackedPredictions(
        tuple(MemberInfo(name, "run", name, "pooled", "s") for name in ("text", "whole")),
        tuple(f"u{n:02d}" for n in range(48)),
        tuple(order),
        ("arousal",),
        np.log(p).astype(np.float32),
        values.astype(np.float32),
        present,
        "dev",
    )
    speaker = np.char.add("s", (np.arange(48) % 6).astype(str))
    return FitRows(found, place[label], rating[:, None], speaker, np.arange(48) % 3)


def test_members_are_scored_on_all_rows_with_the_prior_where_they_are_absent():
    selection = _partial()
    found, label = selection.predictions, selection.label
    filled = np.where(found.present[0], found.logp[0].argmax(1), 1)
    assert member_scores(selection, "uar").tolist() == pytest.approx([uar(label, filled, 3), uar(label, found.logp[1].argmax(1), 3)])
    assert uar(label[:SPARSE], filled[:SPARSE], 3) == 1.0, "on its own rows it is the better one"
    target = selection.target[:, 0]
    values = np.where(found.present[0], found.values[0, :, 0], target.mean())
    assert member_scores(selection, "ccc")[0] == pytest.approx(ccc(values, target))
    nobody = np.vstack([np.zeros((1, 48), bool), found.present[1:]])
    absent = FitRows(
        StackedPredictions(found.members, found.utterances, found.classes, found.attributes, found.logp, found.values, nobody, "dev"),
        label,
        selection.target,
        selection.group,
        selection.fold,
    )
    assert member_scores(absent, "uar")[0] == member_scores(absent, "ccc")[0] == -np.inf


def test_a_member_that_answers_some_rows_is_not_the_best_single_one():
    selection = _partial()
    task = Task(kind="both", classes=("a", "b", "c"), attributes=("arousal",))
    assert fit_baselines(selection, task, EnsembleConfig()).best.trial == "whole"
    assert [member.trial for member in top_members(selection, 1, "uar").predictions.members] == ["whole"]
    config = EnsembleConfig(family="best_single", dimensional="best_single")
    assert [member.trial for member in fit_classes(selection, task, config).members] == ["whole"]
    assert [member.trial for member in fit_one_attribute(selection, 0, task, config).members] == ["whole"]


@pytest.mark.parametrize("prior", ["uniform", "auto", "same"])
def test_neither_scores_nor_the_fallback_depend_on_the_order_of_the_classes(prior):
    found = []
    for order in (("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")):
        selection = _partial(order)
        fit = fit_classes(selection, Task(classes=order), EnsembleConfig(family="greedy", bags=0, prior=prior))
        candidates = prepare(selection, Task(classes=order), EnsembleConfig(prior=prior)).candidates("linear")
        assert order[candidates.fallback] == "b", "the search for members answers as the ensemble does"
        assert np.allclose(candidates.prior, fit.prior)
        nobody = fit.predict(selection.predictions.take_members([]))
        answers = {order[k] for k in decide(nobody, fit.fallback(order)).tolist()}
        weights = {member.trial: float(weight) for member, weight in zip(fit.members, fit.weights)}
        found.append((answers, weights, member_scores(selection, "uar").round(9).tolist()))
    assert found[0][0] == {"b"}, "the class that the selection rows have most of"
    assert found[0] == found[1] == found[2]


def test_the_likeliest_class():
    even = np.full(3, 1 / 3)
    assert likeliest_class(np.array([0.2, 0.5, 0.3]), even, ("a", "b", "c")) == 1
    assert likeliest_class(even, np.array([0.2, 0.3, 0.5]), ("a", "b", "c")) == 2
    assert likeliest_class(even, even, ("z", "b", "c")) == 1


# ---- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["text", "cut", "column", "type"])
def test_a_damaged_file_is_named(tmp_path, toy, damage):
    run = toy.run(tmp_path / "a", skills=STUDIES[:1])
    columns = {"splits.parquet": "role", "trials/speech-0000/predictions.parquet": "split"}
    numbers = {"splits.parquet": "fold", "trials/speech-0000/predictions.parquet": "p.anger"}
    for name in columns:
        path = run.folder / name
        kept = path.read_bytes()
        if damage == "text":
            path.write_text("no parquet at all")
        elif damage == "cut":
            path.write_bytes(kept[: len(kept) // 2])
        elif damage == "column":
            pl.read_parquet(path).drop(columns[name]).write_parquet(path)
        else:
            pl.read_parquet(path).with_columns(pl.lit("x").alias(numbers[name])).write_parquet(path)
        with pytest.raises(DataError, match="cannot be read") as caught:
            load_fit_rows([Run.open(run.folder)])
        assert caught.value.where == str(path)
        assert name == "splits.parquet" or "`raysere run` or `raysere tune` then trains it anew" in str(caught.value)  # `evaluate` does not
        path.write_bytes(kept)
    assert load_fit_rows([Run.open(run.folder)]).predictions.present.all()


@pytest.mark.parametrize("change", [lambda s: [s], lambda s: s | {"ensemble": [1]}, lambda s: s | {"protocol": ["holdout"]}])
def test_settings_of_another_shape_are_refused(tmp_path, toy, change):
    run = toy.run(tmp_path / "a", skills=STUDIES[:1])
    path = run.folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))
    with pytest.raises(ConfigError, match="does not come from a run|is a mapping"):
        Run.open(run.folder)
