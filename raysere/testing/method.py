"""Check that a method keeps its contract.

from raysere.testing.method import check_method
check_method(MyMethod())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from raysere.features.views import Stream
from raysere.testing.toy import Kind, ToyFeed, toy_batch, toy_data, unlabelled, with_target
from raysere.training import metrics
from raysere.training.loop import Trainer
from raysere.training.method import LoopParams, Method, Shapes, Step
from raysere.training.predictions import read_predictions
from raysere.training.predictor import load_predictor
from raysere.training.task import TrialData


def check_method(
    method: Method,
    params: Mapping[str, Any] | None = None,
    *,
    kinds: Sequence[Kind] = ("categorical", "dimensional", "both"),
    granularities: Sequence[str] | None = None,
    learns: float = 0.7,
    idle: Sequence[str] = (),
) -> list[str]:
    """Run every check on small data; AssertionError says which contract is broken.

    Args:
        params: changes to the defaults that make the method small and quick here. It must learn
            within its epochs.
        kinds: tasks that the method is for. granularities: default: those that it needs.
        learns: UAR (and CCC) that it must reach on held-out speakers of a separable problem.
        idle: parameters that rightly get no gradient, by name.

    Returns:
        What was checked, one line each.

    Example:
        >>> check_method(MyMethod())  # doctest: +SKIP
    """
    changes = {"epochs": 20, "patience": 20, "batch": 16, "lr": 3e-3, **(params or {})}
    chosen = method.Params(**changes)
    done = [check_params(method)]
    for granularity in granularities or sorted(method.needs.granularities):
        for kind in kinds:
            modalities = sorted(method.needs.modalities)[: max(1, method.needs.streams)]
            data = toy_data(kind, granularity=granularity, modalities=modalities)
            data = with_target(data) if method.needs.target_domain else data
            done += [
                check(method, chosen, data, where=f"{granularity}, {kind}", **more)
                for check, more in (
                    (check_losses, {"idle": idle}),
                    (check_predictions, {}),
                    (check_padding, {}),
                    (check_training, {"learns": learns}),
                )
            ]
    return done


def check_params(method: Method) -> str:
    """Params: typed and bounded, with valid defaults; unknown names and values out of bounds are
    refused.
    """
    kind = method.Params
    assert isinstance(getattr(method, "name", None), str), "a method has a name"
    assert issubclass(kind, LoopParams), "Params extend LoopParams"
    defaults = kind()
    assert kind(**defaults.model_dump()) == defaults, "the defaults can be written out and read again"
    _refused(kind, "no_such_parameter", 1)
    for name, info in kind.model_fields.items():
        for bound in info.metadata:
            for side, beyond in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
                limit = getattr(bound, side, None)
                if limit is not None:
                    _refused(kind, name, limit + beyond)
    return f"{method.name}: parameters"


def _refused(kind: type[LoopParams], name: str, value: Any) -> None:
    try:
        kind(**{name: value})
    except ValidationError:
        return
    raise AssertionError(f"Params accept {name} = {value!r}")


def _built(method: Method, params: Any, data: TrialData) -> tuple[torch.nn.Module, dict[str, list[int]], Shapes]:
    shapes = Shapes(
        data.task, {name: view.shape() for name, view in data.features.items()}, (0.5, 0.3, 0.2) if data.task.categorical else ()
    )
    method.check(params, shapes)
    layers = method.layers(params, shapes)
    for name, numbers in layers.items():
        known = set(shapes.streams[name].layers)
        assert set(numbers) <= known, f"layers() names layers that the features {name!r} do not have: {sorted(set(numbers) - known)}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = method.build(params, shapes)
    method.start(model, data, data.folds[0].train, 0)
    if data.task.categorical:
        prior = method.effective_prior(params, shapes.train_prior)
        sane = len(prior) == 3 and min(prior) >= 0 and abs(sum(prior) - 1) < 1e-6
        assert sane, f"effective_prior() is no distribution over the classes: {prior}"
    return model, layers, shapes


def check_losses(method: Method, params: Any, data: TrialData, *, where: str = "", idle: Sequence[str] = ()) -> str:
    """Loss terms are named finite scalars, also with missing targets, and gradients reach every
    parameter.
    """
    model, layers, _ = _built(method, params, data)
    model.train()
    reached: set[str] = set()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    method.begin_epoch(model, ToyFeed(data, layers), 0, 0)
    for step in range(4):
        batch = toy_batch(data, data.folds[0].train[step * 8 : step * 8 + 16], layers)
        if len(data.unlabelled):
            batch.is_target_domain = torch.zeros_like(batch.label, dtype=torch.bool)
            batch.unlabelled = unlabelled(toy_batch(data, data.unlabelled[: len(batch.rows)], layers))
        terms = method.losses(model, batch, Step(step, 4, 0, generator))
        assert terms, f"{where}: losses() returned no term"
        for name, value in terms.items():
            assert torch.is_tensor(value), f"{where}: the loss term {name!r} is no tensor"
            assert value.shape == (), f"{where}: the loss term {name!r} is no scalar tensor"
            assert bool(torch.isfinite(value)), f"{where}: the loss term {name!r} is {float(value)}"
        optimiser.zero_grad()
        torch.stack([value for name, value in terms.items() if not name.startswith("_")]).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert bool(torch.isfinite(parameter.grad).all()), f"{where}: the gradient of {name!r} is not finite"
                if bool((parameter.grad != 0).any()):
                    reached.add(name)
        optimiser.step()
    unreached = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in reached and name not in idle
    ]
    assert not unreached, f"{where}: no gradient reaches {', '.join(unreached)}"
    bare = toy_batch(data, data.folds[0].train[:4], layers)
    bare.label, bare.soft, bare.votes = torch.full_like(bare.label, -1), None, None
    bare.attributes = None if bare.attributes is None else torch.full_like(bare.attributes, float("nan"))
    if data.task.dimensional:  # in a categorical task every training row has a target
        for name, value in method.losses(model, bare, Step(0, 1, 0, generator)).items():
            assert bool(torch.isfinite(value)), f"{where}: without any target the loss term {name!r} is {float(value)}"
    return f"{method.name}: losses ({where})"


def check_predictions(method: Method, params: Any, data: TrialData, *, where: str = "") -> str:
    """Shapes and ranges of predictions, any batch size, no label needed."""
    model, layers, _ = _built(method, params, data)
    model.eval()
    for size in (1, 7):
        batch = toy_batch(data, np.arange(size), layers)
        batch.label, batch.soft, batch.attributes, batch.votes = torch.full_like(batch.label, -1), None, None, None
        with torch.inference_mode():
            prediction: Any = method.predict(model, batch)
        expected = {"logits": 3 if data.task.categorical else None, "attributes": 3 if data.task.dimensional else None}
        for name, width in expected.items():
            value = getattr(prediction, name)
            if width is None:
                assert value is None, f"{where}: predict() returned {name}, which the task does not ask for"
                continue
            shape = None if value is None else tuple(value.shape)
            assert shape == (size, width), f"{where}: predict() must return {name} of shape ({size}, {width}), not {shape}"
            assert bool(torch.isfinite(value).all()), f"{where}: predicted {name} are not finite"
        if data.task.dimensional:
            assert bool(((prediction.attributes >= 0) & (prediction.attributes <= 1)).all()), f"{where}: attributes must be in [0, 1]"
    return f"{method.name}: predictions ({where})"


def check_padding(method: Method, params: Any, data: TrialData, *, where: str = "") -> str:
    """What stands in the padding, and who else is in the batch, does not change a prediction."""
    model, layers, _ = _built(method, params, data)
    model.eval()
    rows = np.arange(12)
    batch = toy_batch(data, rows, layers)
    with torch.inference_mode():
        together = method.predict(model, batch)
        for junk in (1e3, float("nan")):
            soiled = {name: _soiled(stream, junk) for name, stream in batch.streams.items()}
            other = method.predict(model, replace(batch, streams=soiled))
            _same(together, other, slice(None), f"{where}: padding of {junk} changes predictions")
        for row in rows[:4]:
            alone = method.predict(model, toy_batch(data, [row], layers))
            _same(together, alone, slice(row, row + 1), f"{where}: an utterance alone and in a padded batch are predicted differently")
    return f"{method.name}: padding ({where})"


def _soiled(stream: Stream, junk: float) -> Stream:
    """The same stream with three more padded rows, and junk in all padding."""
    mask = torch.cat([stream.mask, torch.zeros(len(stream.mask), 3, dtype=torch.bool)], dim=1)
    layers = {
        number: torch.cat([x, torch.zeros(len(x), 3, x.shape[2])], dim=1).masked_fill(~mask.unsqueeze(-1), junk)
        for number, x in stream.layers.items()
    }
    return replace(stream, layers=layers, mask=mask)


def _same(one: Any, other: Any, part: slice, what: str) -> None:
    for name in ("logits", "attributes"):
        first, second = getattr(one, name), getattr(other, name)
        if first is not None:
            assert torch.allclose(first[part], second, rtol=1e-3, atol=1e-4), f"{what} ({name})"


def check_training(method: Method, params: Any, data: TrialData, *, where: str = "", learns: float = 0.7) -> str:
    """The method learns a separable problem; one seed gives one result whatever else draws numbers;
    test labels are not read; the saved tensors predict what the trial predicted.
    """

    def train(trial: TrialData) -> Trainer:
        trainer = Trainer(method, params, trial, seed=3)
        while not trainer.finished:
            torch.rand(1)  # somebody else draws numbers between epochs
            trainer.epoch()
        return trainer

    first = train(data)
    for metric, value in first.best["metrics"].items():
        if metric in ("uar", "ccc"):
            assert value >= learns, f"{where}: {metric} {value:.2f} on development speakers of a separable problem, {learns} expected"
    table = first.predictions()
    predicted: Any = read_predictions(table, data.task, "test")
    assert predicted.utterances == [data.labels.utterances[row] for row in data.test], f"{where}: every test row is predicted once"
    if data.task.categorical:
        value = metrics.uar(data.labels.label[data.test], predicted.probabilities.argmax(1), 3)
        assert value >= learns, f"{where}: UAR {value:.2f} on test speakers of a separable problem, {learns} expected"
    assert train(_other_test_labels(data)).predictions().equals(table), (
        f"{where}: the same seed gives other predictions, or test labels are read in training"
    )
    shapes = Shapes(data.task, {name: view.shape() for name, view in data.features.items()})
    again = load_predictor(method, params, shapes, first.state()).predict(data.features, data.test)
    if again.logits is not None:
        assert np.allclose(torch.softmax(again.logits, -1).numpy(), predicted.probabilities, atol=1e-4), (
            f"{where}: the saved tensors predict other classes"
        )
    if again.attributes is not None:
        low, high = data.task.scale
        assert np.allclose(again.attributes.numpy() * (high - low) + low, predicted.attributes, atol=1e-3), (
            f"{where}: the saved tensors predict other attributes"
        )
    return f"{method.name}: training ({where})"


def _other_test_labels(data: TrialData) -> TrialData:
    labels = data.labels
    label, test = labels.label.copy(), data.test
    label[test] = (label[test] + 1) % 3
    soft = None if labels.soft is None else labels.soft.copy()
    attributes = None if labels.attributes is None else labels.attributes.copy()
    if soft is not None:
        soft[test] = soft[test][:, [1, 2, 0]]
    if attributes is not None:
        attributes[test] = 8 - attributes[test]
    return replace(data, labels=replace(labels, label=label, soft=soft, attributes=attributes))
