"""A small real run, from audio files to a saved ensemble that answers files and texts without Ray."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import polars as pl
import pytest
import soundfile
from real_run import CLASSES

from raysere.base.errors import ConfigError, DataError
from raysere.ensemble.data.predictions import load_predictions
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.evaluate.evaluation import evaluate
from raysere.ensemble.saved.ensemble import Ensemble


@pytest.fixture(scope="module")
def run(real_run):
    return real_run


def _test_items(run):
    opened = Run.open(run["folder"])
    held = load_predictions([opened], 0, "test")
    number = {name: n for n, name in enumerate(opened.manifest.table["utterance"])}
    rows = opened.manifest.table[[number[name] for name in held.utterances]]
    return held, [str(run["audio"] / path) for path in rows["path"]], rows["transcript"].to_list()


def test_predicting_files_and_texts_equals_the_predictions_of_the_search(run):
    held, files, texts = _test_items(run)
    ensemble = Ensemble.load(run["folder"] / "ensemble")
    found = ensemble.predict(files, texts=texts)
    logp, _ = ensemble.bundle.parts[0].predict(held)
    assert np.abs(found.select("p.high", "p.low").to_numpy() - np.exp(logp)).max() < 1e-4
    assert found["members"].to_list() == [3] * len(files)
    assert found["error"].null_count() == found["note"].null_count() == len(files)
    assert found["predicted"].to_list() == [CLASSES[k] for k in logp.argmax(1)]
    assert np.allclose(found["confidence"], np.exp(logp).max(1), atol=1e-4)


def test_tensors_that_change_before_they_are_opened_do_not_answer(run, tmp_path):
    folder = shutil.copytree(run["folder"] / "ensemble", tmp_path / "ensemble")
    ensemble = Ensemble.load(folder)
    weights = next(iter(ensemble.bundle.weights.values()))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="were changed since the ensemble was opened"):
        ensemble.open()


def test_the_toy_task_is_learned(run):
    assert run["result"]["ensemble"]["value"] > 0.8
    assert run["result"]["split"] == "test"


def test_audio_alone_text_alone_and_neither(run):
    _, files, texts = _test_items(run)
    ensemble = Ensemble.load(run["folder"] / "ensemble")
    both = ensemble.predict(files[:2], texts=[texts[0], ""])
    assert both["members"].to_list() == [3, 2]
    assert both["note"][0] is None
    assert "1 of 3 members (text) left out: no text" in both["note"][1]
    assert "renormalised" in both["note"][1]
    swapped = ensemble.predict(files[1::-1], texts=["", texts[0]])
    assert swapped["members"].to_list() == [2, 3]
    assert np.allclose(swapped["p.high"].to_numpy()[::-1], both["p.high"].to_numpy(), atol=1e-5)
    words = ensemble.predict(texts=[texts[0], "  "])
    assert words["members"].to_list() == [1, 0]
    assert words["file"].to_list() == [None, None]
    assert words["error"][0] is None
    assert "no audio; no text" in words["error"][1]
    alone = ensemble.predict(files[:1])
    assert alone["members"][0] == 2
    assert alone["p.high"][0] != both["p.high"][0]
    assert alone["p.high"][0] + alone["p.low"][0] == pytest.approx(1)


def test_bad_files_are_told_and_good_ones_answered(run, tmp_path):
    _, files, _ = _test_items(run)
    (tmp_path / "text.wav").write_text("no audio at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    given = [str(tmp_path / "text.wav"), files[0], str(tmp_path / "missing.wav"), str(tmp_path / "silent.wav"), str(tmp_path / "empty.wav")]
    found = Ensemble.load(run["folder"] / "ensemble").predict(given)
    assert [error is None for error in found["error"]] == [False, True, False, False, False]
    assert found["p.high"].is_null().to_list() == [True, False, True, True, True]
    assert [error.split(":")[0] for error in found["error"] if error] == [
        "not audio (Format not recognised)",
        "missing file",
        "silent",
        "empty file (0 bytes)",
    ]  # one reason each: that no text came with it is none
    with_text = Ensemble.load(run["folder"] / "ensemble").predict(given[:1], texts=["a bright morning"])
    assert with_text["error"][0] is None
    assert "left out" in with_text["note"][0]


def test_the_answer_to_one_file_does_not_depend_on_the_others(run):
    _, files, texts = _test_items(run)
    ensemble = Ensemble.load(run["folder"] / "ensemble")
    together = ensemble.predict(files[:4], texts=texts[:4])
    single = pl.concat([ensemble.predict([file], texts=[text]) for file, text in zip(files[:4], texts[:4])])
    assert np.allclose(together["p.high"], single["p.high"], atol=1e-5)


def test_speakers_reach_the_members_and_unknown_ones_are_apart(run):
    _, files, _ = _test_items(run)
    ensemble = Ensemble.load(run["folder"] / "ensemble")
    seen, named = [], []

    class Listening:
        def __init__(self, inner):
            self.inner = inner

        def predict(self, views, rows, *, speakers, corpora):
            seen.append(list(speakers))
            named.append(corpora)
            return self.inner.predict(views, rows, speakers=speakers, corpora=corpora)

    for name in ensemble.bundle.members:
        ensemble._predictors[name] = Listening(ensemble._predictor(name))
    ensemble.predict(files[:3], speakers=["anna", "anna", "bo"])
    assert seen[0] == ["anna", "anna", "bo"]
    seen.clear()
    ensemble.predict(files[:3], speakers=["anna", None, None])
    assert len(set(seen[0])) == 3
    assert set(named) == {None}
    named.clear()
    ensemble.predict(files[:3], corpora=["toy", None, "other"])
    assert named == [["toy", "", "other"]] * 2
    with pytest.raises(ConfigError, match="1 corpora for 2 inputs"):
        ensemble.predict(files[:2], corpora=["toy"])


def test_the_corpus_chooses_the_statistics(run):
    import torch

    _, files, _ = _test_items(run)
    ensemble = Ensemble.load(run["folder"] / "ensemble")
    for name in ensemble.bundle.members:
        for _, norms in ensemble._predictor(name).folds:
            for norm in norms.values():
                if norm.kind == "corpus":  # two corpora, of which the second is the pooled one, and the first far from it
                    norm.names = ["far", "toy"]
                    norm.mean = torch.cat([norm.mean + 3 * norm.scale, norm.mean, norm.mean])
                    norm.scale = torch.cat([norm.scale] * 3)
    found = ensemble.predict([files[0]] * 4, corpora=["far", "toy", None, "unheard"])["p.high"].to_list()
    assert found[1] == pytest.approx(found[2]) == pytest.approx(found[3])
    assert abs(found[0] - found[1]) > 0.01


def test_members_that_normalise_by_speaker_tell_when_none_is_named(run):
    _, files, texts = _test_items(run)
    ensemble = Ensemble.load(run["folder"] / "ensemble")
    text = "no speaker named: members that normalise by speaker use training statistics"
    assert ensemble.predict(files[:1], texts=texts[:1])["note"].to_list() == [None]
    for entry in ensemble.bundle.members.values():
        entry["resolved"]["normalise"] = "speaker"
    ensemble._predictors.clear()
    assert ensemble.predict(files[:2], texts=texts[:2], speakers=[None, "anna"])["note"].to_list() == [text, None]
    alone = ensemble.predict([files[0], "missing.wav"])
    assert alone["note"][0].endswith("; " + text)
    assert alone["note"][0].startswith("1 of 3 members (text) left out")
    assert alone["note"][1] is None
    words = ensemble.predict(texts=texts[:1])["note"][0]
    assert "no speaker named" not in words, "counts are not normalised by speaker"


def test_contributions(run):
    _, files, texts = _test_items(run)
    row = Ensemble.load(run["folder"] / "ensemble").predict(files[:1], texts=texts[:1], contributions=True)["contributions"][0].to_list()
    assert len(row) == 3
    assert sum(entry["share"] for entry in row) == pytest.approx(1)
    assert {entry["modality"] for entry in row} == {"audio", "text"}


def test_wrong_calls(run):
    ensemble = Ensemble.load(run["folder"] / "ensemble")
    with pytest.raises(ConfigError, match="Nothing to predict"):
        ensemble.predict([])
    with pytest.raises(ConfigError, match="1 texts for 2 inputs"):
        ensemble.predict(["a.wav", "b.wav"], texts=["x"])


def test_prediction_needs_no_ray(run):
    import subprocess

    _, files, texts = _test_items(run)
    code = (
        "import sys; from raysere.ensemble.saved.ensemble import Ensemble; "
        f"found = Ensemble.load({str(run['folder'] / 'ensemble')!r}).predict([{files[0]!r}], texts=[{texts[0]!r}]); "
        "assert found['predicted'][0]; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_only_what_nobody_could_answer_is_null(tmp_path, toy, monkeypatch):
    from dataclasses import replace

    from raysere.ensemble.fit.part import OuterFit

    made = toy.run(
        tmp_path / "run",
        skills=[("speech", 1.0), ("text", 1.1)],
        kind="both",
        ensemble={"family": "average", "dimensional": "average"},
    )
    toy.features(made.folder, ["speech", "text"])
    evaluate(made.folder)
    ensemble = Ensemble.load(made.folder / "ensemble")
    (part,) = ensemble.bundle.parts

    def only(one, modality):
        kept = [m for m, member in enumerate(one.members) if member.modality == modality]
        fit = replace(one.fit, weights=one.fit.weights[kept], mean=one.fit.mean[kept], sd=one.fit.sd[kept])
        return replace(one, members=tuple(one.members[m] for m in kept), fit=fit)

    arousal, valence, dominance = part.attributes
    words = [m for m, member in enumerate(part.classes.members) if member.modality == "text"]
    by_text = replace(
        part.classes,
        members=tuple(part.classes.members[m] for m in words),
        weights=np.ones(1),
        calibrations=tuple(part.classes.calibrations[m] for m in words),
    )
    held = load_predictions([Run.open(made.folder)], 0, "test").take_rows(np.arange(3))
    present = held.present.copy()
    text = np.array([member.modality == "text" for member in held.members])
    present[text, 1] = False
    present[:, 2] = False
    reasons = [{}, {"t": "no text"}, {"t": "no text", "a": "no audio"}]
    monkeypatch.setattr(ensemble, "_features", lambda paths, words, *more: ({}, reasons))
    monkeypatch.setattr(ensemble, "member_predictions", lambda *_: replace(held, present=present))

    ensemble.bundle.parts[:] = [OuterFit(part.classes, (arousal, only(valence, "text"), dominance))]
    found = ensemble.predict(["0.wav", "1.wav", "2.wav"])
    assert found["valence"].is_null().to_list() == [False, True, True]
    for column in ("predicted", "confidence", "p.anger", "arousal", "dominance"):
        assert found[column].is_null().to_list() == [False, False, True]
    assert found["error"].to_list() == [None, None, "no audio; no text"]
    assert found["note"][0] is None
    assert found["note"][1].endswith("; no member could answer valence")
    assert "(text) left out: no text" in found["note"][1]
    assert found["note"][2] is None

    ensemble.bundle.parts[:] = [OuterFit(by_text, (arousal, valence, dominance))]
    found = ensemble.predict(["0.wav", "1.wav", "2.wav"])
    for column in ("predicted", "confidence", "p.anger"):
        assert found[column].is_null().to_list() == [False, True, True]
    assert found["arousal"].is_null().to_list() == [False, False, True]
    assert found["note"][1].endswith("; no member could answer the classes")
    assert found["error"].to_list() == [None, None, "no audio; no text"]


def test_a_segment_is_answered_as_a_file_of_its_own(run, tmp_path):
    _, files, _ = _test_items(run)
    waves = [soundfile.read(file, dtype="int16")[0] for file in files[:2]]
    soundfile.write(tmp_path / "both.wav", np.concatenate(waves), 16000, subtype="PCM_16")
    ensemble = Ensemble.load(run["folder"] / "ensemble")
    parts = ensemble.predict([tmp_path / "both.wav"] * 2, segments=[(0.0, 0.6), (0.6, 1.2)], languages=["en", None])
    whole = ensemble.predict(files[:2])
    assert np.abs(parts.select("p.high", "p.low").to_numpy() - whole.select("p.high", "p.low").to_numpy()).max() < 1e-6
    mixed = ensemble.predict([files[0], None], texts=[None, "lost again"])
    assert mixed["members"].to_list() == [2, 1]
    with pytest.raises(ConfigError, match="1 segments for 2 inputs"):
        ensemble.predict(files[:2], segments=[(0.0, 0.1)])


def _count_items(backbone, monkeypatch):
    heard, encode = [], backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda items, layers: heard.extend(items) or encode(items, layers))
    return heard


def test_a_backbone_runs_once_for_all_features_that_hear_the_same(run, monkeypatch):
    _, files, _ = _test_items(run)
    ensemble = Ensemble.load(run["folder"] / "ensemble").open()
    plain = ensemble.predict(files[:3])
    entry = next(entry for entry in ensemble.bundle.members.values() if entry["modality"] == "audio")
    spec = ensemble.bundle.specs[entry["features"]["acoustic"]]
    for change, runs in (({"dtype": "float16"}, 1), ({"channel": 0}, 2)):  # the second hears something else, for all one can tell
        other = spec.model_copy(update=change)
        ensemble.bundle.specs[other.key] = other
        monkeypatch.setitem(entry, "features", {"acoustic": other.key})
        (backbone,) = [one for key, one in ensemble._backbones.items() if "acoustic" in key]
        heard = _count_items(backbone, monkeypatch)
        found = ensemble.predict(files[:3])
        assert len(heard) == runs * 3
        assert np.abs(found["p.high"].to_numpy() - plain["p.high"].to_numpy()).max() < 0.01
        monkeypatch.undo()
        assert len(ensemble._backbones) == 2
