import numpy as np
import pytest
import torch

from raysere.base.errors import ConfigError
from raysere.methods.layer_anchoring import (
    AnchoringParams,
    LayerAnchoring,
    covariance_gap,
    covariances,
    layer_gap,
    relevance_of,
    sparsemax,
)
from raysere.nn.alignment import coral, covariance
from raysere.testing.method import check_method
from raysere.testing.toy import ToyFeed, toy_batch, toy_data, unlabelled, with_target
from raysere.training.method import Shapes, Step

METHOD = LayerAnchoring()
SMALL = {"pooling": "mean_std", "hidden": 16, "width": 8, "dropout": 0.0, "epochs": 20, "batch": 16, "lr": 3e-3, "span": 2, "weight": 1.0}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"anchors": "single", "start": 1, "align": "mmd"},
        {"anchors": "final", "fuse": "mean"},
        {"anchors": "topk", "span": 1, "align": "mean"},
        {"anchors": "all", "fuse": "concat", "align": "coral_mean"},
        {"anchors": "learned"},
        {"anchors": "cross", "span": 1, "fuse": "final"},
        {"anchors": "random_group", "span": 1},
        {"anchors": "least_similar", "span": 1},
        {"weight": 0.0},
        {"anchors": "group", "start": 0, "span": 1, "fuse": "final"},
    ],
    ids=str,
)
def test_conforms(params):
    idle = ["mix"] if params.get("span") == 1 or params.get("anchors") == "single" else []  # the softmax of one share has no slope
    check_method(METHOD, {**SMALL, **params}, kinds=["categorical"], granularities=["utterance"], idle=idle)


def test_conforms_on_rows_over_time():
    check_method(METHOD, SMALL, kinds=["categorical"], granularities=["frame"])


def built(layers=6, **params):
    data = with_target(toy_data(granularity="utterance", layers=layers))
    shapes = Shapes(data.task, {name: view.shape() for name, view in data.features.items()}, (0.5, 0.3, 0.2))
    params = AnchoringParams(**{**SMALL, **params})
    METHOD.check(params, shapes)
    torch.manual_seed(0)
    model = METHOD.build(params, shapes)
    read = METHOD.layers(params, shapes)
    batch = toy_batch(data, data.folds[0].train[:32], read)
    batch.is_target_domain = torch.zeros_like(batch.label, dtype=torch.bool)
    batch.unlabelled = unlabelled(toy_batch(data, data.unlabelled, read))
    return model, batch, ToyFeed(data, read), shapes


@pytest.mark.parametrize(
    ("params", "read", "anchors"),
    [
        ({"anchors": "group", "start": 2, "span": 3}, [2, 3, 4], [2, 3, 4]),
        ({"anchors": "group", "start": 5, "span": 3}, [3, 4, 5], [3, 4, 5]),
        ({"anchors": "single", "start": 4}, [4], [4]),
        ({"anchors": "group", "start": 1, "span": 2, "fuse": "final"}, [1, 2, 5], [1, 2]),
        ({"anchors": "final"}, [5], [5]),
        ({"anchors": "all"}, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
    ],
    ids=str,
)
def test_named_anchors_are_read_and_no_other_layer(params, read, anchors):
    model, _, feed, shapes = built(**params)
    METHOD.begin_epoch(model, feed, 0, 0)
    assert METHOD.layers(model.params, shapes)["audio"] == read
    assert [model.numbers[place] for place in model.chosen.tolist()] == anchors


def test_measured_anchors_are_alike_and_tell_the_class():
    """Layers 2 and 3 tell the class and are the same in both domains; 0 and 1 are noise, 4 and 5
    are of another shape in the target.
    """
    model, batch, feed, _ = built(anchors="group", span=2)
    draw = torch.Generator().manual_seed(0)

    class Planted:
        def items(self, is_target_domain):
            x = batch.unlabelled if is_target_domain else batch
            label = torch.arange(len(x.rows)) % 3
            rows = torch.randn(len(x.rows), 6, 16, generator=draw)
            rows[:, 2:4, :3] += 6 * torch.nn.functional.one_hot(label, 3).unsqueeze(1)
            if is_target_domain:
                rows[:, 4:] *= torch.linspace(0.1, 4, 16)
                rows[:, :2] *= torch.linspace(4, 0.1, 16)
            for layer in range(6):
                x.streams["audio"].layers[layer] = rows[:, layer].unsqueeze(1)
            x.label = label
            return x

        def source(self):
            yield self.items(False)

        def target(self):
            yield self.items(True)

    METHOD.begin_epoch(model, Planted(), 0, 0)
    assert model.chosen.tolist() == [2, 3]
    first = model.chosen.clone()
    METHOD.begin_epoch(model, feed, 1, 0)
    assert torch.equal(model.chosen, first), "anchors are chosen once"


def test_crossed_anchors_read_another_layer_of_the_target():
    model, batch, _, _ = built(anchors="cross", start=1, span=2, shift=2)
    x = model.stacked(batch)
    is_target_domain = torch.zeros(len(x), dtype=torch.bool)
    is_target_domain[::2] = True
    a = model.anchored(x, is_target_domain)
    for number in range(2):
        assert torch.allclose(a[1::2, number], model.adaptors[number](x[1::2, 1 + number]))
        assert torch.allclose(a[::2, number], model.adaptors[number](x[::2, 3 + number]))


def test_gap_is_that_of_coral_and_its_gradient_is_not_weakened_by_memory():
    a, b = torch.randn(40, 2, 8), 1.5 * torch.randn(50, 2, 8)
    assert torch.allclose(covariances(a)[1], covariance(a[:, 1]), atol=1e-6)
    gradients = []
    for memory in (0.0, 0.9):
        model = built(memory=memory, align="coral")[0]
        x = a.clone().requires_grad_()
        value = layer_gap(model, x, b)
        assert value.tolist() == pytest.approx([float(coral(a[:, k], b[:, k])) for k in range(2)], rel=1e-5)
        gap = layer_gap(model, x, b)  # with the first step as memory: the same value
        assert gap.tolist() == pytest.approx(value.tolist(), rel=1e-5)
        gradients.append(torch.autograd.grad(gap.sum(), x)[0])
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-8)


def test_running_covariances_lose_the_noise_of_batches():
    draw = torch.Generator().manual_seed(0)
    values = {}
    for memory in (0.0, 0.95):
        model = built(memory=memory)[0]
        values[memory] = [
            float(layer_gap(model, torch.randn(16, 2, 8, generator=draw), torch.randn(16, 2, 8, generator=draw)).mean()) for _ in range(120)
        ][-20:]
    assert np.mean(values[0.95]) < 0.15 * np.mean(values[0.0])


def test_sparsemax_projects_onto_the_simplex():
    assert sparsemax(torch.zeros(4)).tolist() == pytest.approx([0.25] * 4)
    assert sparsemax(torch.tensor([2.0, 0.0, 0.0])).tolist() == [1, 0, 0]
    assert sparsemax(torch.tensor([0.6, 0.4, -1.0])).tolist() == pytest.approx([0.6, 0.4, 0.0])
    x = torch.randn(6, generator=torch.Generator().manual_seed(0))
    p = sparsemax(x)
    assert float(p.sum()) == pytest.approx(1)
    inside = p > 0
    assert float((x - p)[inside].std()) < 1e-6, "what is taken away is the same wherever something is left"
    assert bool(((x - p)[~inside] <= (x - p)[inside].mean() + 1e-6).all())


def test_relevance_and_gap_of_a_layer():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(120) % 3
    speaker = torch.arange(120) // 12
    good = 4 * torch.nn.functional.one_hot(label, 3).float() + torch.randn(120, 3, generator=generator)
    assert relevance_of(good, label, speaker, 3) > 0.9
    assert relevance_of(torch.randn(120, 3, generator=generator), label, speaker, 3) < 0.6
    by_speaker = torch.nn.functional.one_hot(speaker, 10).float() + 0.01 * torch.randn(120, 10, generator=generator)
    assert relevance_of(by_speaker, (speaker % 3), speaker, 3) < 0.6, "speakers that are held out are not known by heart"
    x = torch.randn(60, 4, generator=generator)
    assert covariance_gap(x, x + 5) == pytest.approx(0, abs=1e-5)
    assert covariance_gap(x, 2 * x) == pytest.approx((1 - 4) ** 2 / 4, rel=1e-4)


def test_strength_rises_and_zero_weight_aligns_nothing():
    model, batch, _, _ = built(start=1)
    terms = [METHOD.losses(model, batch, Step(step, 11, 0, torch.Generator())) for step in (0, 10)]
    assert terms[0]["alignment"].item() == 0
    assert terms[1]["alignment"].item() > 0
    model, batch, _, _ = built(start=1, weight=0.0)
    assert set(METHOD.losses(model, batch, Step(5, 11, 0, torch.Generator()))) == {"class"}


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="no layer 9"):
        built(start=9)
    with pytest.raises(ConfigError, match="classes"):
        METHOD.check(AnchoringParams(), Shapes(toy_data("dimensional").task, {}, ()))
