"""Altered copies of training clips: heard at another speed, and trained on where their originals
are, nowhere else.
"""

from dataclasses import replace

import numpy as np
import pytest

from raysere.base.errors import ConfigError
from raysere.features.spec import copies, resolve
from raysere.methods.kernel import Kernel
from raysere.testing.toy import toy_data
from raysere.training.data import add_copies
from raysere.training.folds import FoldTrainer
from raysere.training.loop import Trainer


@pytest.fixture
def data():
    plain = toy_data()
    views = {name: view.joined({"0.9": view, "1.1": view}) for name, view in plain.features.items()}
    return add_copies(replace(plain, features=views), ["0.9", "1.1"])


def test_labels_of_copies_are_those_of_their_clips_by_other_speakers(data):
    plain, labels = toy_data().labels, data.labels
    pool = sorted({int(row) for fold in data.folds for row in (*fold.train, *fold.dev)})
    assert len(labels) == len(plain) + 2 * len(pool)
    assert len(labels.speaker) == len(labels.label) == len(labels.utterances)
    for row in range(len(plain), len(labels)):
        original = data.original[row]
        name = labels.utterances[row].removeprefix(f"{plain.utterances[original]}@")
        assert name in ("0.9", "1.1")
        assert labels.label[row] == plain.label[original]
        assert labels.speakers[labels.speaker[row]] == f"{plain.speakers[plain.speaker[original]]}@{name}"
    assert (data.original[: len(plain)] == -1).all()
    assert labels.utterances[: len(plain)] == plain.utterances


def test_copies_are_trained_on_where_their_clips_are(data):
    trainer = Trainer(Kernel(), {"frequencies": 16, "normalise": "speaker"}, data, seed=0)
    for fold, trained in zip(data.folds, trainer.folds, strict=True):
        assert isinstance(trained, FoldTrainer)
        own = trained.rows[data.original[trained.rows] < 0]
        of = data.original[trained.rows[data.original[trained.rows] >= 0]]
        assert sorted(own) == sorted(fold.train)
        assert sorted(of) == sorted([*fold.train, *fold.train])
        assert (data.original[trained.dev] < 0).all()
    assert (data.original[trainer.test] < 0).all()
    trainer.epoch()
    predicted = trainer.predictions()
    assert not predicted["utterance"].str.contains("@").any()


def test_copies_can_be_left_out(data):
    plain = Trainer(Kernel(), {"frequencies": 16}, toy_data(), seed=0)
    without = Trainer(Kernel(), {"frequencies": 16, "augment": False}, data, seed=0)
    for one, other in zip(plain.folds, without.folds, strict=True):
        assert sorted(one.rows) == sorted(other.rows)
    plain.epoch()
    without.epoch()
    assert plain.best["score"] == pytest.approx(without.best["score"])


def test_joined_views_keep_every_row_in_its_place():
    one, other = toy_data(seed=0).features["audio"], toy_data(seed=1).features["audio"]
    both = one.joined({"x": other})
    count = len(one.utterances)
    assert both.utterances == [*one.utterances, *(f"{name}@x" for name in other.utterances)]
    for layer in (0, 1):
        assert np.array_equal(both.matrix(layer, np.arange(count)), one.matrix(layer, np.arange(count)))
        assert np.array_equal(both.matrix(layer, np.arange(count, 2 * count)), other.matrix(layer, np.arange(count)))


def test_speeds_name_features_of_their_own():
    from raysere.features.spec import FeatureConfig

    config = FeatureConfig.model_validate({"backbone": "acoustic", "speeds": [1.1, 0.9]})
    spec = resolve(config)
    altered = copies(spec, config)
    assert list(altered) == ["0.9", "1.1"]
    assert len({spec.key, *(one.key for one in altered.values())}) == 3
    assert spec.key == resolve({"backbone": "acoustic"}).key


@pytest.mark.parametrize("speeds", [[1.0], [0.9, 0.9], [1.234], [3.0]], ids=str)
def test_speeds_that_make_no_sense_are_refused(speeds):
    with pytest.raises(ConfigError, match="speeds"):
        resolve({"backbone": "acoustic", "speeds": speeds})
