"""A fusion member in an ensemble answers where one of its features is missing, and the answer says
so.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import save_file

from raysere.base.files import file_hash
from raysere.ensemble.saved.ensemble import Ensemble
from raysere.features.views import FeatureView
from raysere.methods import METHODS
from raysere.testing.toy import toy_data
from raysere.training.loop import Trainer

OPTIONS = {"hidden": 8, "epochs": 2, "lr": 3e-3, "batch": 16}


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """Two members on audio and text:

    ``concat``, which takes what there is, and ``pooled``, which needs both.
    """
    data = toy_data(modalities=("audio", "text"), utterances=60)
    members, weights = {}, {}
    for name in ("concat", "pooled"):
        trainer = Trainer(METHODS.get(name)(), METHODS.get(name).Params(**OPTIONS), data, seed=0)
        trainer.epoch()
        weights[name] = tmp_path_factory.mktemp("tensors") / f"{name}.safetensors"
        save_file(trainer.state(), str(weights[name]))
        members[name] = {
            "trial": name,
            "sha256": file_hash(weights[name]),
            "run": "toy",
            "modality": "audio+text",
            "method": name,
            "study": name,
            "params": OPTIONS,
            "resolved": trainer.params.model_dump(mode="json"),
            "features": {stream: f"key-{stream}" for stream in data.features},
        }
    specs = {f"key-{stream}": view.spec for stream, view in data.features.items()}
    bundle = SimpleNamespace(task=data.task, members=members, specs=specs, weights=weights, parts=[])
    return Ensemble(bundle), data  # type: ignore[arg-type]


def some(view: FeatureView, rows: list[int], gone: list[int]) -> FeatureView:
    layers = {number: [None if n in gone else view.matrix(number, [row]) for n, row in enumerate(rows)] for number in view.spec.numbers}
    return FeatureView.from_arrays(view.spec, [str(n) for n in range(len(rows))], layers)


def test_members_answer_with_what_there_is(ensemble):
    answers, data = ensemble
    rows = [3, 4, 5]
    whole = {f"key-{name}": some(view, rows, []) for name, view in data.features.items()}
    everything = answers.member_predictions(whole, 3, ["a", "b", "c"])
    assert everything.present.all()
    partial = answers.member_predictions({**whole, "key-text": some(data.features["text"], rows, [1])}, 3, ["a", "b", "c"])
    assert partial.present.tolist() == [[True, True, True], [True, False, True]]
    assert np.allclose(partial.logp[:, [0, 2]], everything.logp[:, [0, 2]], atol=1e-5)
    assert not np.allclose(partial.logp[0, 1], everything.logp[0, 1], atol=1e-4)
    untold = answers.member_predictions({"key-audio": whole["key-audio"]}, 3, ["a", "b", "c"])  # no text at all
    assert untold.present.tolist() == [[True] * 3, [False] * 3]
    assert np.allclose(untold.logp[0, 1], partial.logp[0, 1], atol=1e-5)
    assert not answers.member_predictions({}, 3, ["a", "b", "c"]).present.any()


def test_the_note_says_who_answered_without_what(ensemble):
    answers, data = ensemble
    views = {f"key-{name}": some(view, [3, 4], [1] if name == "text" else []) for name, view in data.features.items()}
    found = answers.member_predictions(views, 2, ["a", "b"])
    note = answers._note(found, 1, {"key-text": "no text"})
    assert note == (
        "1 of 2 members (audio+text) left out: no text; the weights of the others were renormalised; "
        "1 of 2 members answered without one of their features: no text"
    )
    assert answers._note(found, 0, {}) is None
    both = replace(found, present=np.ones((2, 2), bool))
    assert answers._note(both, 0, {}) is None
