import numpy as np
import pytest
import torch

from raysere.base.errors import ConfigError
from raysere.features.views import Stream
from raysere.methods.discrete_units import DiscreteUnits, UnitsParams
from raysere.testing.method import check_method
from raysere.testing.toy import ToyFeed, toy_batch, toy_data
from raysere.training.method import Shapes, Step

METHOD = DiscreteUnits()
SMALL = {"units": 12, "epochs": 20, "batch": 16, "lr": 0.02}


@pytest.mark.parametrize("params", [{}, {"weighting": "tfidf"}, {"dedup": True}, {"depth": 1, "hidden": 16, "layer": 0}], ids=str)
@pytest.mark.parametrize("granularity", ["chunk", "frame"])
def test_conforms(granularity, params):
    check_method(METHOD, {**SMALL, **params}, granularities=[granularity], kinds=["categorical"])


def test_conforms_for_attributes():
    check_method(METHOD, SMALL, granularities=["frame"], kinds=["both"], learns=0.3)


def built(**params):
    data = toy_data(granularity="frame")
    shapes = Shapes(data.task, {name: view.shape() for name, view in data.features.items()}, (0.5, 0.3, 0.2))
    params = UnitsParams(**{**SMALL, **params})
    METHOD.check(params, shapes)
    model = METHOD.build(params, shapes)
    layers = METHOD.layers(params, shapes)
    return model, data, layers, shapes


def stream_of(codes, model):
    """Rows that lie on these units; -1 is padding."""
    codes = torch.tensor(codes)
    x = model.centres[codes.clamp_min(0)]
    return Stream({model.number: x}, codes >= 0, 1, "frame")


def test_units_are_counted_without_padding_and_repeats():
    model = built(units=4)[0]
    model.centres.copy_(10 * torch.eye(4, model.centres.shape[1]))
    codes = [[0, 0, 1, 0, -1], [3, 3, 3, 2, 2]]
    assert model.counts(stream_of(codes, model)).tolist() == [[3, 1, 0, 0], [0, 0, 2, 3]]
    model.params = model.params.model_copy(update={"dedup": True})
    assert model.counts(stream_of(codes, model)).tolist() == [[2, 1, 0, 0], [0, 0, 1, 1]]


def test_vectors_compare_distributions():
    model = built(units=4)[0]
    model.centres.copy_(10 * torch.eye(4, model.centres.shape[1]))
    v = model.vector(stream_of([[0, 0, 1, 1], [0, 1, -1, -1], [2, 2, 3, -1]], model)) / 2
    assert torch.allclose(v.square().sum(1), torch.ones(3))
    assert torch.allclose(v[0], v[1]), "length does not matter"
    assert float(v[0] @ v[2]) == 0
    model.params = model.params.model_copy(update={"weighting": "tfidf"})
    model.idf.copy_(torch.tensor([1.0, 2, 1, 1]))
    w = model.vector(stream_of([[0, 0, 1, 1]], model)) / 2
    assert w[0].tolist() == pytest.approx([1 / 5**0.5, 2 / 5**0.5, 0, 0])


def test_units_come_from_training_rows_and_their_vectors_are_kept():
    model, data, layers, _ = built()
    feed = ToyFeed(data, layers)
    METHOD.begin_epoch(model, feed, 0, 3)
    train = toy_batch(data, data.folds[0].train, layers)
    x = train.streams["audio"].layers[model.number][train.streams["audio"].mask]
    used = model.centres[(model.centres < 1e5).all(1)]
    assert len(used) == 12
    assert float(torch.cdist(x, used).min(1).values.mean()) < float(torch.cdist(x, x[:12]).min(1).values.mean())
    batch = toy_batch(data, data.folds[0].train[5:9], layers)
    kept = model.remembered(batch)
    assert kept.streams["audio"].granularity == "pooled"
    assert torch.allclose(kept.streams["audio"].layers[0][:, 0], model.vector(batch.streams["audio"]))
    unknown = toy_batch(data, data.folds[0].dev[:4], layers)
    assert model.remembered(unknown) is unknown
    terms = [METHOD.losses(model, one, Step(0, 10, 0, torch.Generator()))["class"].item() for one in (batch, batch)]
    assert np.isfinite(terms).all()


def test_too_many_units_for_the_rows_are_left_out():
    model, data, layers, _ = built(units=2000)
    METHOD.begin_epoch(model, ToyFeed(data, layers), 0, 0)
    rows = int(toy_batch(data, data.folds[0].train, layers).streams["audio"].mask.sum())
    assert int((model.centres < 1e5).all(1).sum()) == rows // 8


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="no layer 7"):
        built(layer=7)
    assert built()[2] == {"audio": [1]}
