"""One fold of a trial: rows, inputs, model, random choices, and the best weights so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysere.base.errors import DataError
from raysere.training import normalise
from raysere.training.inputs import FoldStream, TrialStream
from raysere.training.method import Method, Pool, Prediction, Shapes
from raysere.training.samplers import Sampler, fold_generator, seed_of
from raysere.training.steps import keep, seeded
from raysere.training.task import Fold, TrialData

BUILD, START, EPOCH, TARGET = 1, 2, 3, 4  # purposes of a seed


@dataclass(frozen=True)
class TrialContext:
    """What the folds of a trial share.

    ``dtype`` is that of matrix products; ``columns`` targets and groups on the device by their
    names in a ``Batch``; ``pools`` what makes one vector for each utterance of a stream before
    training.
    """

    method: Method
    params: Any
    data: TrialData
    shapes: Shapes
    seed: int
    device: torch.device
    dtype: torch.dtype
    sources: dict[str, TrialStream]
    present: np.ndarray
    used: np.ndarray
    columns: dict[str, Any]
    pools: Mapping[str, Pool]


def label_columns(data: TrialData, device: torch.device) -> dict[str, Any]:
    """Targets, groups and domain of all rows on the device, attributes in [0, 1], in the order of
    the fields of ``Batch``.
    """
    labels, (low, high) = data.labels, data.task.scale
    attributes = (labels.attributes - low) / (high - low) if labels.attributes is not None and data.task.dimensional else None
    columns: dict[str, Any] = {
        "label": labels.label,
        "soft": labels.soft,
        "attributes": attributes,
        "sex": labels.sex,
        "speaker": labels.speaker,
    }
    columns["votes"] = labels.votes
    if len(data.unlabelled):
        columns["is_target_domain"] = np.isin(np.arange(len(labels)), np.union1d(data.unlabelled, data.test))
    kinds = {"soft": torch.float32, "attributes": torch.float32, "votes": torch.float32, "is_target_domain": torch.bool}
    return {
        name: None if values is None else torch.as_tensor(np.ascontiguousarray(values), dtype=kinds.get(name, torch.long), device=device)
        for name, values in columns.items()
    }


class FoldTrainer:
    """What one fold is made of. Every random choice follows from the trial's seed and the fold's
    number.

    Attributes:
        rows, dev: rows of the labels that train and that score, with features and targets.
            unlabelled: those of the target domain, with features, on the device.
        prior: class shares of the training rows (empty without classes).
        best: state of the model at the best epoch; best_dev: predictions of ``dev`` there.

    Raises DataError for a fold without training or development rows, or without any class in a
    categorical task.
    """

    def __init__(self, context: TrialContext, fold: Fold) -> None:
        self.context, self.number = context, fold.number
        data, labels, params, device = context.data, context.data.labels, context.params, context.device
        train = data.with_copies(fold.train) if params.augment else fold.train
        self.rows = context.method.train_rows(params, labels, train[context.present[train]], data.task)
        self.dev = fold.dev[context.present[fold.dev]]
        if not len(self.rows) or not len(self.dev):
            counts = f"{len(self.rows)} training and {len(self.dev)} development"
            raise DataError(f"Fold {fold.number} has {counts} utterances with features and targets")
        self.streams: dict[str, FoldStream] = {}
        groups: dict[str, Any] = {"corpus": labels.corpus, "corpora": labels.corpora, "speaker": labels.speaker}
        domain = params.normalise == "domain"  # as by corpus, the target's own clips included
        seen = np.union1d(self.rows, data.unlabelled) if domain else self.rows
        for name, source in context.sources.items():
            kind = normalise.FITTED.get(params.normalise, params.normalise)
            norm = normalise.fit(kind, source.view, source.columns, source.at, seen, context.used, **groups)
            self.streams[name] = source.fold(norm.to(device), context.pools.get(name))
        self.prior = self._prior()
        with seeded(self.seed(BUILD), device):
            shapes = Shapes(context.shapes.task, context.shapes.streams, self.prior)
            self.model = context.method.build(params, shapes).to(device)
        with seeded(self.seed(START), device):
            context.method.start(self.model, data, self.rows, self.seed(START))
        self.generator = fold_generator(context.seed, fold.number)
        self.sampler = Sampler(params.sampler, torch.from_numpy(labels.label[self.rows]), params.batch)
        self.cuts = self.sampler.cuts()
        self.index = torch.from_numpy(self.rows).to(device)
        self.unlabelled = torch.from_numpy(data.unlabelled[context.present[data.unlabelled]]).to(device)
        self.best: dict[str, Tensor] = {}
        self.best_dev: Prediction | None = None

    def seed(self, purpose: int, *parts: int) -> int:
        """Of the random choices for one purpose."""
        return seed_of(self.context.seed, purpose, self.number, *parts)

    def _prior(self) -> tuple[float, ...]:
        task, label = self.context.data.task, self.context.data.labels.label[self.rows]
        if not task.categorical:
            return ()
        counts = np.bincount(label[label >= 0], minlength=len(task.classes))
        if not counts.sum():
            raise DataError(f"No training utterance of fold {self.number} has a class")
        return tuple((counts / counts.sum()).tolist())

    def keep_best(self, development: Prediction) -> None:
        """The present weights are the best so far."""
        self.best_dev = development
        keep(self.best, self.model)

    def swap_in_best(self) -> dict[str, Tensor]:
        """Load the best weights; a copy of the present ones."""
        now: dict[str, Tensor] = {}
        keep(now, self.model)
        self.model.load_state_dict(self.best)
        return now

    def state(self) -> dict[str, Tensor]:
        """Tensors of the best epoch: ``fold{f}.model.NAME`` and ``fold{f}.norm.STREAM.NAME``."""
        head = f"fold{self.number}"
        result = {f"{head}.model.{name}": value.cpu().clone() for name, value in self.best.items()}
        for name, stream in self.streams.items():
            result |= {f"{head}.norm.{name}.{key}": value.clone() for key, value in stream.normaliser.state().items()}
        return result
