"""The saved ensemble: what is written is what is read, and nothing else is trusted."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import yaml

from raysere.base.errors import DataError, MissingFileError
from raysere.ensemble.data.predictions import load_predictions
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.evaluate.evaluation import evaluate, score_answers
from raysere.ensemble.evaluate.protocols import fit_runs
from raysere.ensemble.fit.part import mixture
from raysere.ensemble.saved.contributions import contributions_of
from raysere.ensemble.saved.read import load_ensemble, save_ensemble
from raysere.ensemble.saved.write import FORMATS

SKILLS = [("speech", 0.9), ("speech", 1.1), ("text", 1.0)]


@pytest.fixture(params=["out_of_fold", "nested"])
def saved(request, tmp_path, toy):
    run = toy.run(
        tmp_path / "run", skills=SKILLS, protocol=request.param, kind="both", ensemble={"family": "average", "dimensional": "nnls"}
    )
    toy.features(run.folder, ["speech", "text"])
    evaluate(run.folder)
    return run.folder


def test_a_loaded_ensemble_answers_as_the_fitted_one(saved):
    run = Run.open(saved)
    fitted = fit_runs([run], run.config)
    bundle = load_ensemble(saved / "ensemble")
    held = load_predictions([run], 0, "test")
    for wanted, found in zip(
        mixture([part.predict(held) for part in fitted.parts]), mixture([part.predict(held) for part in bundle.parts])
    ):
        assert np.allclose(wanted, found, atol=1e-6, equal_nan=True)
    assert len(bundle.parts) == (4 if run.kind == "nested" else 1)
    assert sum(entry["weight"] for entry in bundle.members.values()) == pytest.approx(1)
    assert bundle.task == run.task
    assert all(path.read_bytes().startswith(b"tensors of") for path in bundle.weights.values())


def test_tensors_that_change_while_the_ensemble_is_saved_are_not_saved(tmp_path, toy):
    run = toy.run(tmp_path / "run", skills=SKILLS, ensemble={"family": "average"})
    toy.features(run.folder, ["speech", "text"])
    toy.hashes(run.folder)
    opened = Run.open(run.folder)
    fitted = fit_runs([opened], opened.config)
    (run.folder / "trials" / "speech-0001" / "model.safetensors").write_text("others")
    with pytest.raises(DataError, match=r"tensors of run/speech-0001 were changed .*Run the same command again"):
        save_ensemble([opened], fitted, opened.config, tmp_path / "out", score_answers([opened], fitted, opened.config))
    assert not (tmp_path / "out").exists()


def test_the_description_is_whole(saved):
    record = yaml.safe_load((saved / "ensemble" / "ensemble.yaml").read_text())
    assert record["format"] in FORMATS
    assert record["classes"] == ["anger", "happiness", "neutral", "sadness"]
    assert set(record) >= {"task", "pool", "family", "parts", "members", "features", "metrics", "synthetic", "licences", "config"}
    for member in record["members"]:
        assert set(member) >= {
            "id",
            "trial",
            "run",
            "method",
            "modality",
            "weight",
            "params",
            "features",
            "shapes",
            "classes",
            "weights",
            "sha256",
            "part",
        }
    assert record["metrics"]["uar"]["low"] <= record["metrics"]["uar"]["value"]
    assert str(saved) not in (saved / "ensemble" / "ensemble.yaml").read_text()


def test_the_class_order_of_the_file_does_not_matter(saved):
    path = saved / "ensemble" / "ensemble.yaml"
    record = yaml.safe_load(path.read_text())
    for member in record["members"]:
        member["classes"]["bias"] = dict(reversed(member["classes"]["bias"].items()))
    before = load_ensemble(saved / "ensemble").parts[0].classes
    path.write_text(yaml.safe_dump(record, sort_keys=False))
    after = load_ensemble(saved / "ensemble").parts[0].classes
    assert all(np.array_equal(a.bias, b.bias) for a, b in zip(before.calibrations, after.calibrations))


def test_a_changed_or_missing_member_is_refused(saved):
    victim = sorted((saved / "ensemble" / "members").iterdir())[0]
    kept = victim.read_bytes()
    victim.write_bytes(kept + b"x")
    with pytest.raises(DataError, match="was changed"):
        load_ensemble(saved / "ensemble")
    victim.unlink()
    with pytest.raises(MissingFileError, match="is missing"):
        load_ensemble(saved / "ensemble")


@pytest.mark.parametrize("name", ["../outside.safetensors", "members/link.safetensors", "/etc/hostname"])
def test_a_path_that_leaves_the_folder_is_refused(saved, tmp_path, name):
    from raysere.ensemble.saved.read import file_hash

    folder, outside = saved / "ensemble", saved / "outside.safetensors"
    shutil.copyfile(sorted((folder / "members").iterdir())[0], outside)
    os.symlink(outside, folder / "members" / "link.safetensors")
    record = yaml.safe_load((folder / "ensemble.yaml").read_text())
    record["members"][0] |= {"weights": name, "sha256": file_hash(outside)}
    (folder / "ensemble.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(DataError, match="outside its folder"):
        load_ensemble(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"format": "raysere.ensemble/9"}, "format"),
        (lambda r: {k: v for k, v in r.items() if k != "parts"}, "damaged"),
        (lambda r: r | {"parts": [r["parts"][0] | {"prior": dict.fromkeys(r["classes"], -1.0)}]}, "damaged"),
        (lambda r: r | {"classes": r["classes"][::-1]}, "class order"),
        (lambda r: r | {"parts": [r["parts"][0] | {"choice": []}]}, "damaged"),
        (lambda r: r | {"parts": [r["parts"][0] | {"temperature": -1.0}]}, "damaged"),
        (lambda r: r | {"parts": [r["parts"][0] | {"pool": "mean"}]}, "damaged"),
        (lambda r: r | {"parts": 3}, "damaged"),
        (lambda r: r | {"features": []}, "damaged"),
        (lambda r: r | {"features": {}}, "damaged"),
        (lambda r: r | {"members": [[]]}, "damaged"),
        (lambda r: r | {"members": [r["members"][0] | {"features": ["x"]}]}, "damaged"),
        (lambda r: r | {"members": [r["members"][0] | {"weights": "x" * 5000}]}, "damaged|outside"),
        (lambda r: r | {"members": [r["members"][0] | {"classes": []}]}, "damaged"),
        (lambda r: r | {"task": []}, "damaged"),
        (lambda r: [r], "format"),
    ],
)
def test_a_damaged_description_is_refused(saved, change, message):
    path = saved / "ensemble" / "ensemble.yaml"
    path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))
    with pytest.raises(DataError, match=message):
        load_ensemble(saved / "ensemble")


def test_the_temperature_of_the_pool_is_saved_and_an_old_file_has_none(saved):
    run = Run.open(saved)
    fitted = [part.classes.temperature for part in fit_runs([run], run.config).parts]
    assert all(value != 1.0 for value in fitted)
    assert [part.classes.temperature for part in load_ensemble(saved / "ensemble").parts] == pytest.approx(fitted)
    path = saved / "ensemble" / "ensemble.yaml"
    record = yaml.safe_load(path.read_text())
    for part in record["parts"]:
        del part["temperature"]
    path.write_text(yaml.safe_dump(record))
    assert [part.classes.temperature for part in load_ensemble(saved / "ensemble").parts] == [1.0] * len(fitted)


def test_saving_again_replaces_the_whole_folder(saved):
    (saved / "ensemble" / "stray").write_text("x")
    evaluate(saved)
    assert not (saved / "ensemble" / "stray").exists()
    assert sorted(path.name for path in saved.iterdir() if path.name.startswith(".ensemble")) == []


def test_nothing_half_written_stays_when_tensors_are_gone(saved):
    before = (saved / "ensemble" / "ensemble.yaml").read_text()
    victim = next((saved / "trials").glob("speech-*")) / "model.safetensors"
    victim.unlink()
    with pytest.raises(MissingFileError, match="are missing"):
        evaluate(saved)
    assert (saved / "ensemble" / "ensemble.yaml").read_text() == before
    assert sorted(path.name for path in saved.iterdir() if path.name.startswith(".")) == []


def test_no_ensemble_there(tmp_path):
    with pytest.raises(MissingFileError, match="no saved ensemble"):
        load_ensemble(tmp_path)


def test_contributions_sum_to_one(saved):
    bundle = load_ensemble(saved / "ensemble")
    held = load_predictions([Run.open(saved)], 0, "test")
    ids, shares, p = contributions_of(bundle.parts, held)
    assert np.allclose(shares.sum(0), 1)
    assert p.shape == (len(ids), len(held.utterances), 4)
    twice = contributions_of([bundle.parts[0], bundle.parts[0]], held)[1]
    assert np.allclose(twice.sum(0), 1), "two parts answer: each has half"
    nobody = contributions_of(bundle.parts, held.take_members([]))[1]
    assert (nobody == 0).all()
