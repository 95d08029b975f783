"""Training steps of one fold, or of several folds as one stacked module.

Folds that are stacked share each forward and backward pass, and nothing else: the loss is a sum
over folds of functions of disjoint parameters, gradients are clipped fold by fold, and every random
choice comes from the generators that the fold would use alone. So a stack gives what its folds give
one after the other, up to the order of floating-point sums. Folds of unequal size are padded with
items without targets; a fold that has taken all steps of an epoch sits out the last ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysere.nn.dropout import drawn_by_fold
from raysere.nn.stacking import stack
from raysere.training.folds import EPOCH, TARGET, FoldTrainer
from raysere.training.inputs import stacked_batch
from raysere.training.method import Batch, ClosedMethod, Prediction, Step
from raysere.training.steps import AdamW, autocast, clip, clip_by_fold, schedule, seeded

_PREDICT_ROWS = 4096  # utterances a prediction batch at utterance granularity, of all folds together
_TARGET_ROWS = 256  # items of the target domain that are looked at together
_FIELDS = ("logits", "attributes", "std", "hidden")
_NO_TARGET = {"label": -1, "soft": 0.0, "attributes": math.nan, "sex": -1, "votes": 0.0}


class Lockstep:
    """Trains and predicts ``folds``: one as it is, several stacked.

    Their own modules always hold the present weights.
    """

    def __init__(self, folds: Sequence[FoldTrainer]) -> None:
        self.folds, self.context, self.stacked = list(folds), folds[0].context, len(folds) > 1
        models = [fold.model for fold in folds]
        self.model = stack(models) if self.stacked else models[0]
        self.parameters = _trained(self.model)
        # one learning rate for all where all take equally many steps, else one for each fold, on
        # the fold's part of the same memory
        self.parts = [self.parameters] if len({len(fold.cuts) for fold in folds}) == 1 else [_trained(model) for model in models]
        params = self.context.params
        self.optimiser = AdamW(self.parts, lr=params.lr, weight_decay=params.weight_decay)
        self.steps = [0] * len(self.folds)

    def train(self, epoch: int, sums: dict[str, Tensor]) -> None:
        """One epoch; each loss term, times the items of its batch, is added to ``sums`` on the
        device.
        """
        device = self.context.device
        seeds = [fold.seed(EPOCH, epoch) for fold in self.folds]
        method = self.context.method
        if isinstance(method, ClosedMethod):
            with seeded(seeds[0], device), torch.no_grad():
                self._solve(method, sums)
        elif not self.stacked:
            with seeded(seeds[0], device):
                self._train(epoch, sums, [])
        else:
            self._train(epoch, sums, [torch.Generator(device).manual_seed(seed) for seed in seeds])

    def _train(self, epoch: int, sums: dict[str, Tensor], generators: list[torch.Generator]) -> None:
        context, params, first = self.context, self.context.params, self.folds[0]
        model, losses, parameters = self.model.train(), context.method.losses, self.parameters
        if not self.stacked:
            with torch.no_grad():
                context.method.begin_epoch(model.eval(), _Feed(self), epoch, first.seed(EPOCH, epoch, 1))
            model.train()
        target_rows = self._target_rows(epoch) if context.method.needs.target_domain else None
        totals = [params.epochs * len(fold.cuts) for fold in self.folds]
        orders = [fold.index[fold.sampler.order(epoch, fold.generator).to(context.device)] for fold in self.folds]
        for batch, items in self._padded(orders) if self.stacked else self._batches(orders[0]):
            for number in range(len(self.parts)):
                self.optimiser.rates[number] = params.lr * schedule(self.steps[number], totals[number], params.warmup, params.schedule)
            if target_rows is not None:
                batch.unlabelled = self._of_target(target_rows(len(batch.rows)))
            step = Step(max(self.steps), max(totals), epoch, first.generator)
            with autocast(context.device, context.dtype):
                if self.stacked:
                    with drawn_by_fold(generators, items):
                        terms = losses(model, batch, step)
                else:
                    terms = losses(model, batch, step)
            values = [value for name, value in terms.items() if not name.startswith("_")]
            loss = values[0] if len(values) == 1 else torch.stack([value.float() for value in values]).sum(0)
            for parameter in parameters:
                parameter.grad = None
            (loss.sum() if self.stacked else loss).backward()
            (clip_by_fold if self.stacked else clip)(parameters, params.clip)
            if len(self.parts) > 1:
                self._hand_out(items)
            self.optimiser.step()
            weights = torch.tensor(items, dtype=torch.float32).to(context.device) if self.stacked else items[0]
            for name, value in terms.items():
                share = (value.detach() * weights).sum() if self.stacked else value.detach() * weights
                sums[name] = sums[name] + share if name in sums else share
            self.steps = [taken + (count > 0) for taken, count in zip(self.steps, items, strict=True)]

    def _target_rows(self, epoch: int) -> Callable[[int], Tensor]:
        """Gives the next n rows of the target domain: one fresh order of all of them after the
        other.
        """
        fold = self.folds[0]
        generator = torch.Generator().manual_seed(fold.seed(TARGET, epoch))
        waiting = fold.unlabelled[:0]

        def rows(count: int) -> Tensor:
            nonlocal waiting
            while len(waiting) < count:
                order = torch.randperm(len(fold.unlabelled), generator=generator).to(fold.unlabelled.device)
                waiting = torch.cat([waiting, fold.unlabelled[order]])
            here, waiting = waiting[:count], waiting[count:]
            return here

        return rows

    def _of_target(self, rows: Tensor) -> Batch:
        return self._unlabelled(rows, {name: stream.batch(rows) for name, stream in self.folds[0].streams.items()})

    def _solve(self, method: ClosedMethod, sums: dict[str, Tensor]) -> None:
        """The closed form of one fold, from all its training rows."""
        fold = self.folds[0]
        columns: dict[str, Any] = {name: None if x is None else x[fold.index] for name, x in self.context.columns.items()}
        batch = Batch(fold.index, {name: stream.batch(fold.index) for name, stream in fold.streams.items()}, **columns)
        for name, value in method.solve(self.model.train(), batch).items():
            sums[name] = sums.get(name, torch.zeros((), device=self.context.device)) + value * len(fold.index)

    def _hand_out(self, items: Sequence[int]) -> None:
        """Give each fold's parameters their part of the stacked gradients; a fold without items
        takes no step.
        """
        for parameter, *own in zip(self.parameters, *self.parts, strict=True):
            gradients = [None] * len(own) if parameter.grad is None else parameter.grad.unbind()
            for part, gradient, count in zip(own, gradients, items, strict=True):
                part.grad = gradient if count else None

    def _batches(self, order: Tensor) -> Iterator[tuple[Batch, list[int]]]:
        """Batches of one fold in this order."""
        fold = self.folds[0]
        rows = order.split(fold.cuts)
        # one gather for each epoch, then slices: a gather for each step and column costs more than
        # the head's own arithmetic
        nothing: list[Any] = [None] * len(rows)
        columns = [nothing if values is None else values[order].split(fold.cuts) for values in self.context.columns.values()]
        for number, here in enumerate(rows):
            streams = {name: stream.batch(here) for name, stream in fold.streams.items()}
            yield Batch(here, streams, *(column[number] for column in columns)), [len(here)]

    def _padded(self, orders: Sequence[Tensor]) -> Iterator[tuple[Batch, list[int]]]:
        """Batches of all folds, (F, B) with B the largest of the step, and the items of each fold,
        0 where it has no step left.
        """
        steps = max(len(fold.cuts) for fold in self.folds)
        items = np.zeros((steps, len(self.folds)), dtype=np.int64)
        for number, fold in enumerate(self.folds):
            items[: len(fold.cuts), number] = fold.cuts
        valid = torch.from_numpy(np.arange(items.max()) < items[..., None]).to(self.context.device)  # (S, F, B)
        rows = torch.stack([order[:1] for order in orders]).expand(valid.shape).clone()  # any row will do where there is none
        for number, order in enumerate(orders):
            rows[:, number][valid[:, number]] = order
        columns = {
            name: None if values is None else _blanked(values[rows], valid, _NO_TARGET.get(name))
            for name, values in self.context.columns.items()
        }
        for number, counts in enumerate(items.tolist()):
            width = max(counts)
            here = rows[number, :, :width]
            targets: list[Any] = [None if values is None else values[number, :, :width] for values in columns.values()]
            yield Batch(here, self._stacked(here), *targets), counts

    def _stacked(self, rows: Tensor) -> dict[str, Any]:
        return {name: stacked_batch([fold.streams[name] for fold in self.folds], rows) for name in self.folds[0].streams}

    def predict(self, rows: Sequence[np.ndarray]) -> list[Prediction]:
        """For each fold predictions (n, ...) on the CPU in the order of its ``rows``, by the
        present weights.
        """
        if not self.stacked:
            return [self._predict_one(rows[0])]
        longest = max(map(len, rows))
        padded = np.stack([np.concatenate([own, np.full(longest - len(own), own[0])]) for own in rows])
        with torch.inference_mode(), autocast(self.context.device, self.context.dtype):
            model = self.model.eval()
            parts = [
                self.context.method.predict(model, self._unlabelled(here, self._stacked(here)))
                for here in torch.from_numpy(padded).to(self.context.device).split(max(1, _PREDICT_ROWS // len(rows)), dim=1)
            ]
        whole = [_joined(parts, name, dim=1) for name in _FIELDS]
        return [Prediction(*(None if x is None else x[number, : len(own)] for x in whole)) for number, own in enumerate(rows)]

    def _predict_one(self, rows: np.ndarray) -> Prediction:
        context, fold = self.context, self.folds[0]
        order, size = np.arange(len(rows)), _PREDICT_ROWS
        if any(source.view.spec.granularity != "utterance" for source in context.sources.values()):
            # longest first, so that an utterance is padded to its neighbours' length only
            lengths = np.maximum.reduce([source.lengths_of(rows) for source in context.sources.values()])
            order, size = np.argsort(-lengths, kind="stable"), max(1, min(256, context.params.batch))
        with torch.inference_mode(), autocast(context.device, context.dtype):
            model = self.model.eval()
            parts = [
                context.method.predict(model, self._unlabelled(here, {name: stream.batch(here) for name, stream in fold.streams.items()}))
                for here in torch.from_numpy(rows[order]).to(context.device).split(size)
            ]
        back = torch.from_numpy(np.argsort(order))
        whole = [_joined(parts, name, dim=0) for name in _FIELDS]
        return Prediction(*(None if x is None else x[back] for x in whole))

    def _unlabelled(self, rows: Tensor, streams: dict[str, Any]) -> Batch:
        columns = self.context.columns
        is_target_domain = columns["is_target_domain"][rows] if "is_target_domain" in columns else None
        groups = columns["sex"][rows], columns["speaker"][rows]
        return Batch(rows, streams, torch.full_like(rows, -1), None, None, *groups, is_target_domain=is_target_domain)

    def best_of(self, rows: np.ndarray) -> list[Prediction]:
        """For each fold predictions of the same ``rows`` by its best weights."""
        return self._with_best(lambda: self.predict([rows] * len(self.folds)))

    def best_layer_weights(self) -> list[dict[str, dict[int, float]]]:
        """For each fold ``layer_weights()`` of its module at its best weights."""
        return self._with_best(lambda: [fold.model.layer_weights() for fold in self.folds])  # type: ignore[operator]

    def _with_best(self, function: Callable[[], Any]) -> Any:
        """``function()`` while the folds hold their best weights; the present ones come back."""
        present = [fold.swap_in_best() for fold in self.folds]
        try:
            return function()
        finally:
            for fold, weights in zip(self.folds, present, strict=True):
                fold.model.load_state_dict(weights)


class _Feed:
    """What ``begin_epoch`` may look at: all training items of one fold, and all of the target
    domain.
    """

    def __init__(self, lockstep: Lockstep) -> None:
        self.lockstep = lockstep

    def source(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.lockstep._batches(self.lockstep.folds[0].index))

    def target(self) -> Iterator[Batch]:
        return (self.lockstep._of_target(rows) for rows in self.lockstep.folds[0].unlabelled.split(_TARGET_ROWS))


def _trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _blanked(values: Tensor, valid: Tensor, blank: float | None) -> Tensor:
    """``values`` (S, F, B, ...) with ``blank`` where ``valid`` (S, F, B) is False."""
    if blank is None:
        return values
    return values.masked_fill(~valid.view(*valid.shape, *[1] * (values.dim() - valid.dim())), blank)


def _joined(parts: Sequence[Prediction], name: str, dim: int) -> Tensor | None:
    values = [getattr(part, name) for part in parts]
    return None if values[0] is None else torch.cat(values, dim).float().cpu()
