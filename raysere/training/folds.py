"""One fold of a trial: its rows, inputs, model and optimiser; trained an epoch at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysere.errors import DataError
from raysere.training import normalise
from raysere.training.inputs import FoldStream, TrialStream
from raysere.training.method import Batch, Method, Prediction, Shapes, Step
from raysere.training.samplers import Sampler, fold_generator, seed_of
from raysere.training.steps import autocast, clip, keep, schedule, seeded
from raysere.training.task import Fold, TrialData

BUILD, START, EPOCH = 1, 2, 3  # purposes of a seed
_PREDICT_ROWS = 4096  # utterances a prediction batch at utterance granularity


@dataclass(frozen=True)
class TrialContext:
    """What the folds of a trial share. ``columns``: targets and groups on the device by their names in :class:`Batch`."""

    method: Method
    params: Any
    data: TrialData
    shapes: Shapes
    seed: int
    device: torch.device
    sources: dict[str, TrialStream]
    present: np.ndarray
    used: np.ndarray
    columns: dict[str, Any]


def label_columns(data: TrialData, device: torch.device) -> dict[str, Any]:
    """Targets and groups of all rows on the device, attributes in [0, 1], in the order of the fields of :class:`Batch`."""
    labels, (low, high) = data.labels, data.task.scale
    attributes = (labels.attributes - low) / (high - low) if labels.attributes is not None and data.task.dimensional else None
    columns = {"label": labels.label, "soft": labels.soft, "attributes": attributes, "sex": labels.sex, "speaker": labels.speaker}
    columns["votes"] = labels.votes
    floats = {"soft", "attributes", "votes"}
    return {
        name: None
        if values is None
        else torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float32 if name in floats else torch.long, device=device)
        for name, values in columns.items()
    }


class FoldTrainer:
    """Trains and predicts one fold. Every random choice follows from the trial's seed and the fold's number.

    Attributes:
        rows, dev: rows of the labels that train and that score, with features and targets.
        prior: class shares of the training rows (empty without classes).
        best: state of the model at the best epoch; best_dev: predictions of ``dev`` there.

    Raises DataError for a fold without training or development rows, or without any class in a categorical task.
    """

    def __init__(self, context: TrialContext, fold: Fold) -> None:
        self.context, self.number = context, fold.number
        data, labels, params, device = context.data, context.data.labels, context.params, context.device
        self.rows = context.method.train_rows(params, labels, fold.train[context.present[fold.train]], data.task)
        self.dev = fold.dev[context.present[fold.dev]]
        if not len(self.rows) or not len(self.dev):
            counts = f"{len(self.rows)} training and {len(self.dev)} development"
            raise DataError(f"Fold {fold.number} has {counts} utterances with features and targets")
        self.streams: dict[str, FoldStream] = {}
        groups: dict[str, Any] = {"corpus": labels.corpus, "corpora": labels.corpora, "speaker": labels.speaker}
        for name, source in context.sources.items():
            norm = normalise.fit(params.normalise, source.view, source.columns, source.at, self.rows, context.used, **groups)
            self.streams[name] = source.fold(norm.to(device))
        self.prior = self._prior()
        with seeded(self._seed(BUILD), device):
            shapes = Shapes(context.shapes.task, context.shapes.streams, self.prior)
            self.model = context.method.build(params, shapes).to(device)
        with seeded(self._seed(START), device):
            context.method.start(self.model, data, self.rows, self._seed(START))
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=params.lr, weight_decay=params.weight_decay, fused=True)
        self.generator = fold_generator(context.seed, fold.number)
        self.sampler = Sampler(params.sampler, torch.from_numpy(labels.label[self.rows]), params.batch)
        self.cuts = self.sampler.cuts()
        self.index = torch.from_numpy(self.rows).to(device)
        self.step = 0
        self.best: dict[str, Tensor] = {}
        self.best_dev: Prediction | None = None

    def _seed(self, purpose: int, *parts: int) -> int:
        return seed_of(self.context.seed, purpose, self.number, *parts)

    def _prior(self) -> tuple[float, ...]:
        task, label = self.context.data.task, self.context.data.labels.label[self.rows]
        if not task.categorical:
            return ()
        counts = np.bincount(label[label >= 0], minlength=len(task.classes))
        if not counts.sum():
            raise DataError(f"No training utterance of fold {self.number} has a class")
        return tuple((counts / counts.sum()).tolist())

    def train(self, epoch: int, sums: dict[str, Tensor]) -> None:
        """One epoch; each loss term, times the items of its batch, is added to ``sums`` on the device."""
        with seeded(self._seed(EPOCH, epoch), self.context.device):
            self._train(epoch, sums)

    def _train(self, epoch: int, sums: dict[str, Tensor]) -> None:
        context, params, parameters = self.context, self.context.params, self.parameters
        model, optimiser, losses = self.model.train(), self.optimiser, self.context.method.losses
        total = params.epochs * len(self.cuts)
        order = self.index[self.sampler.order(epoch, self.generator).to(context.device)]
        rows = order.split(self.cuts)
        # one gather an epoch, then slices: a gather a step and column costs more than the head's own arithmetic
        nothing: list[Any] = [None] * len(rows)
        columns: list[Any] = [nothing if values is None else values[order].split(self.cuts) for values in context.columns.values()]
        for number, here in enumerate(rows):
            optimiser.param_groups[0]["lr"] = params.lr * schedule(self.step, total, params.warmup, params.schedule)
            streams = {name: stream.batch(here) for name, stream in self.streams.items()}
            batch = Batch(here, streams, *(column[number] for column in columns))
            with autocast(context.device):
                terms = losses(model, batch, Step(self.step, total, epoch, self.generator))
            values = list(terms.values())
            loss = values[0] if len(values) == 1 else torch.stack([value.float() for value in values]).sum()
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
            clip(parameters, params.clip)
            optimiser.step()
            for name, value in terms.items():
                share = value.detach() * len(here)
                sums[name] = sums[name] + share if name in sums else share
            self.step += 1

    def predict(self, rows: np.ndarray) -> Prediction:
        """Predictions (n, ...) on the CPU in the order of ``rows``, by the present weights."""
        context, model = self.context, self.model.eval()
        order, size = np.arange(len(rows)), _PREDICT_ROWS
        if any(source.view.spec.granularity != "utterance" for source in context.sources.values()):
            # longest first, so that an utterance is padded to its neighbours' length only
            lengths = np.maximum.reduce([source.view.lengths(source.at[rows]) for source in context.sources.values()])
            order, size = np.argsort(-lengths, kind="stable"), max(1, min(256, context.params.batch))
        parts: list[Prediction] = []
        with torch.inference_mode(), autocast(context.device):
            for here in torch.from_numpy(rows[order]).to(context.device).split(size):
                none = torch.full_like(here, -1)  # a prediction reads no label
                streams = {name: stream.batch(here) for name, stream in self.streams.items()}
                sex, speaker = context.columns["sex"], context.columns["speaker"]
                parts.append(context.method.predict(model, Batch(here, streams, none, None, None, sex[here], speaker[here])))
        back = torch.from_numpy(np.argsort(order))

        def joined(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values).float().cpu()[back]

        return Prediction(joined("logits"), joined("attributes"), joined("std"))

    def keep_best(self, development: Prediction) -> None:
        """The present weights are the best so far."""
        self.best_dev = development
        keep(self.best, self.model)

    def with_best(self, function: Any) -> Any:
        """``function()`` while the model holds its best weights; the present ones come back."""
        now: dict[str, Tensor] = {}
        keep(now, self.model)
        self.model.load_state_dict(self.best)
        try:
            return function()
        finally:
            self.model.load_state_dict(now)

    def state(self) -> dict[str, Tensor]:
        """Tensors of the best epoch: ``fold{f}.model.NAME`` and ``fold{f}.norm.STREAM.NAME``."""
        head = f"fold{self.number}"
        result = {f"{head}.model.{name}": value.cpu().clone() for name, value in self.best.items()}
        for name, stream in self.streams.items():
            result |= {f"{head}.norm.{name}.{key}": value.clone() for key, value in stream.normaliser.state().items()}
        return result
