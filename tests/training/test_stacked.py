"""A stack of folds gives what the folds give one after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raysere.base.errors import ConfigError
from raysere.methods.pooled import Pooled, PooledParams
from raysere.nn import losses, stacking
from raysere.nn.dropout import drawn_by_fold, dropout
from raysere.testing.toy import toy_data
from raysere.training import steps
from raysere.training.lockstep import Lockstep
from raysere.training.loop import Trainer
from raysere.training.method import Method

SMALL = {"hidden": 24, "batch": 16, "epochs": 5, "lr": 3e-3, "patience": 9, "dropout": 0.3}


def unequal(kind="categorical"):
    """Folds of 60, 36 and 49 training rows: four and three steps of 16."""
    data = toy_data(kind, noise=2.0)
    parts = [(fold.train[:keep], fold.dev[:dev]) for fold, keep, dev in zip(data.folds, (60, 36, 49), (30, 11, 20), strict=True)]
    folds = tuple(replace(fold, train=train, dev=dev) for fold, (train, dev) in zip(data.folds, parts, strict=True))
    return replace(data, folds=folds)


def both(data, **options):
    trainers = [Trainer(Pooled(), PooledParams(**{**SMALL, **options}), data, seed=1, stacked=stacked) for stacked in (False, True)]
    for trainer in trainers:
        while not trainer.finished:
            trainer.epoch()
    return trainers


def assert_same(separate, together):
    assert together.best["epoch"] == separate.best["epoch"]
    for row, other in zip(separate.rows, together.rows, strict=True):
        assert list(row) == list(other)
        assert all(row[name] == pytest.approx(other[name], abs=1e-4) for name in row)  # layer weights are lists
    one, other = separate.predictions(), together.predictions()
    assert one.columns == other.columns
    assert one.select("utterance", "fold", "split").equals(other.select("utterance", "fold", "split"))
    values = [table.drop("utterance", "fold", "split").to_numpy() for table in (one, other)]
    assert np.allclose(*values, atol=1e-4)
    assert separate.describe()["parameters"] == together.describe()["parameters"]
    first, second = separate.state(), together.state()
    assert list(first) == list(second)
    for name, value in first.items():
        assert value.shape == second[name].shape
        assert torch.allclose(value.float(), second[name].float(), atol=1e-4), name


OPTIONS = [
    {"depth": 2},
    {"layers": "concat", "normalise": "speaker"},
    {"layers": "top", "pooling": "mean", "depth": 0},
    {"loss": "kl", "other": "soft", "label_smoothing": 0.1, "normalise": "none"},
    {"loss": "vs", "focal": 2.0},
    {"loss": "logit_adjusted", "tau": 1.5, "sampler": "natural_then_balanced", "epochs": 6},
    {"f1_term": 0.3, "gender_term": 0.1, "sampler": "balanced"},
    {"clip": 0.01},
    {"batch": 13, "class_weight": 0},
]


@pytest.mark.parametrize("kind", ["categorical", "both"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_stacked_equals_one_after_the_other(kind, options):
    assert_same(*both(unequal(kind), **options))


def test_attributes_and_two_streams():
    assert_same(*both(unequal("dimensional")))
    assert_same(*both(toy_data("both", modalities=("audio", "text"), noise=2.0)))


def test_a_fold_with_fewer_steps_sits_out():
    separate, together = both(unequal())
    group = together.groups[0]
    assert sorted({len(fold.cuts) for fold in together.folds}) == [3, 4]
    assert group.steps == [len(fold.cuts) * 5 for fold in together.folds]
    assert len(group.parts) == 3  # a learning rate each
    assert len(both(toy_data())[1].groups[0].parts) == 1
    assert [group.steps[0] for group in separate.groups] == group.steps


def test_little_memory_changes_nothing_but_the_way():
    data = toy_data(noise=2.0)
    size = 4 * 2 * 16 * 120
    trainers = [Trainer(Pooled(), PooledParams(**SMALL), data, seed=1, stacked=True, memory=memory) for memory in (1 << 30, 2 * size)]
    assert [trainer.folds[0].streams["audio"].ready for trainer in trainers] == [True, False]
    for trainer in trainers:
        trainer.epoch()
    assert np.allclose(*(trainer.predictions()["p.anger"].to_numpy() for trainer in trainers), atol=1e-4)


def test_when_folds_are_stacked():
    data = toy_data()
    assert len(Trainer(Pooled(), PooledParams(**SMALL), data, seed=0).groups) == 1
    assert len(Trainer(Pooled(), PooledParams(**{**SMALL, "hidden": 8192, "depth": 2}), data, seed=0).groups) == 3  # products, not calls
    assert len(Trainer(Pooled(), PooledParams(**SMALL), data, seed=0, stacked=False).groups) == 3
    for options, trial in (({"mixup": 1.0}, data), ({}, toy_data(granularity="chunk"))):
        assert len(Trainer(Pooled(), PooledParams(**{**SMALL, **options}), trial, seed=0).groups) == 3
        with pytest.raises(ConfigError, match="cannot stack"):
            Trainer(Pooled(), PooledParams(**{**SMALL, **options}), trial, seed=0, stacked=True)
    assert Method.stacks(Pooled(), PooledParams(), None) is False  # a method opts in


def test_a_method_that_stacks_folds_and_has_work_before_an_epoch_is_refused():
    looks = type("Looks", (Pooled,), {"begin_epoch": lambda *args: None})
    with pytest.raises(ConfigError, match="begin_epoch"):
        Trainer(looks(), PooledParams(**SMALL), toy_data(), seed=0)
    alone = type("Alone", (looks,), {"stacks": lambda *args: False})
    assert len(Trainer(alone(), PooledParams(**SMALL), toy_data(), seed=0).groups) == 3


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@pytest.mark.parametrize("normaliser", ["corpus", "speaker"])
def test_rows_that_are_pooled_once_give_what_rows_pooled_in_every_step_give(pooling, normaliser):
    data = toy_data(granularity="chunk", noise=2.0)
    params = PooledParams(**{**SMALL, "layers": "top", "layer": 0, "pooling": pooling, "normalise": normaliser})
    every_step = type("EveryStep", (Pooled,), {"pools": lambda *args: {}})()
    trainers = [Trainer(method, params, data, seed=2, stacked=False) for method in (Pooled(), every_step)]
    assert [trainer.folds[0].streams["audio"].flat for trainer in trainers] == [True, False]
    for _ in range(3):
        once, each = (trainer.epoch() for trainer in trainers)
        assert once["loss"] == pytest.approx(each["loss"], rel=1e-4)
    assert np.allclose(*(trainer.predictions()["p.anger"].to_numpy() for trainer in trainers), atol=1e-4)
    together = Trainer(Pooled(), params, data, seed=2, stacked=True)
    for _ in range(3):
        together.epoch()
    assert np.allclose(together.predictions()["p.anger"].to_numpy(), trainers[0].predictions()["p.anger"].to_numpy(), atol=1e-4)


def test_weights_before_the_pooling_keep_the_rows():
    data = toy_data(granularity="chunk")
    for options in ({}, {"layers": "one", "pooling": "attentive"}):  # learned shares of two layers; learned attention
        trainer = Trainer(Pooled(), PooledParams(**{**SMALL, **options}), data, seed=0)
        assert not trainer.folds[0].streams["audio"].flat
    small = Trainer(Pooled(), PooledParams(**{**SMALL, "layers": "one"}), data, seed=0, memory=100)
    assert not small.folds[0].streams["audio"].flat  # no room


def test_stacked_modules_share_memory_with_their_own():
    torch.manual_seed(0)
    models = [torch.nn.Sequential(stacking.Linear(5, 3), stacking.LayerNorm(3), stacking.Linear(3, 40)) for _ in range(2)]
    x = torch.randn(2, 4, 5)
    expected = torch.stack([model(own) for model, own in zip(models, x, strict=True)])
    whole = stacking.stack(models)
    assert torch.allclose(whole(x), expected, atol=1e-6)
    with torch.no_grad():
        whole[0].weight.add_(1)
    assert torch.equal(models[1][0].weight, whole[0].weight[1])
    assert torch.allclose(whole(x), torch.stack([model(own) for model, own in zip(models, x, strict=True)]), atol=1e-5)


def test_dropout_by_fold_is_that_of_the_fold_alone():
    x = torch.ones(2, 5, 7)
    with drawn_by_fold([torch.Generator().manual_seed(seed) for seed in (1, 2)], [5, 3]):
        y = dropout(x, 0.4, True)
    for seed, items in ((1, 5), (2, 3)):
        with steps.seeded(seed, torch.device("cpu")):
            assert torch.equal(y[seed - 1, :items], dropout(x[0, :items], 0.4, True))
    assert not y[1, 3:].any()


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_clipping_by_fold(limit):
    torch.manual_seed(0)
    stacked = [torch.nn.Parameter(torch.zeros(3, *shape)) for shape in ((4, 2), (5,))]
    for number, parameter in enumerate(stacked):
        parameter.grad = torch.randn_like(parameter) * torch.tensor([0.01, 1.0, 3.0]).view(3, *[1] * (2 - number))
    alone = [[torch.nn.Parameter(torch.zeros_like(p[f])) for p in stacked] for f in range(3)]
    for fold, parameters in enumerate(alone):
        for parameter, whole in zip(parameters, stacked, strict=True):
            parameter.grad = whole.grad[fold].clone()
        steps.clip(parameters, limit)
    steps.clip_by_fold(stacked, limit)
    for fold, parameters in enumerate(alone):
        for parameter, whole in zip(parameters, stacked, strict=True):
            assert torch.allclose(parameter.grad, whole.grad[fold])


def test_losses_of_a_stack_are_those_of_each_fold():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 6, 3), torch.softmax(torch.randn(2, 6, 3), -1)
    targets[1, 4:] = 0
    weights, prior = torch.rand(2, 3) + 0.1, torch.softmax(torch.randn(2, 3), -1)
    scores, wanted = torch.rand(2, 6, 2), torch.rand(2, 6, 2)
    wanted[0, 2, 1] = float("nan")
    wanted[1, 1:] = float("nan")
    for function in (
        lambda f: losses.cross_entropy(logits[f], targets[f], weights=weights[f], gamma=2.0, divergence=True),
        lambda f: losses.soft_macro_f1(logits[f], losses.smooth(targets[f], 0.1)),
        lambda f: losses.adjusted_logits(logits[f], prior[f], tau=1.0, gamma=0.3),
        lambda f: losses.ccc_loss(scores[f], wanted[f]),
    ):
        whole = function(slice(None))
        for fold in range(2):
            assert torch.allclose(whole[fold], function(fold), atol=1e-6)


def test_rows_without_targets_leave_no_trace():
    data = unequal("both")
    trainer = Trainer(Pooled(), PooledParams(**SMALL), data, seed=1, stacked=True)
    group: Lockstep = trainer.groups[0]
    orders = [fold.index for fold in trainer.folds]
    batches = list(group._padded(orders))
    for number, order in enumerate(orders):
        taken = torch.cat([batch.rows[number, : items[number]] for batch, items in batches])
        assert torch.equal(taken, order)
        for batch, items in batches:
            rest = slice(items[number], None)
            assert (batch.label[number, rest] == -1).all()
            assert batch.attributes[number, rest].isnan().all()
            assert not batch.soft[number, rest].any()
