"""The one training loop: all folds of a trial in lockstep, one epoch at a time, one choice of epoch for all of them.

Whole data on the device where it fits, index batches, no DataLoader. The same seed, machine and number of threads give the
same predictions: every random choice of a fold (initial weights, order, dropout, mixup) follows from the trial's seed and
the fold's number, whatever ran before in the process.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from raysere.errors import ConfigError, DataError, InfeasibleTrial
from raysere.training import metrics, normalise
from raysere.training.inputs import FoldStream, TrialStream, memory_budget, shape_of
from raysere.training.method import Batch, Method, Prediction, Shapes, Step
from raysere.training.predictions import prediction_table
from raysere.training.predictor import Predictor, load_predictor, mean_prediction
from raysere.training.samplers import BALANCED_FROM, Sampler, fold_generator, seed_of
from raysere.training.task import Fold, TrialData

__all__ = ["Predictor", "Trainer", "load_predictor"]

_BUILD, _START, _EPOCH = 1, 2, 3  # purposes of a seed
_PREDICT_ROWS = 4096  # utterances a prediction batch at utterance granularity


class _FoldState:
    """Everything of one fold: rows, model, optimiser, inputs, generator, and the best weights so far."""

    def __init__(self, fold: Fold, rows: np.ndarray, dev: np.ndarray) -> None:
        self.fold, self.rows, self.dev = fold, rows, dev
        self.streams: dict[str, FoldStream] = {}
        self.prior: tuple[float, ...] = ()
        self.best: dict[str, Tensor] = {}
        self.best_dev: Prediction | None = None


class Trainer:
    """Trains one configuration on all folds of one outer split.

    Args:
        method, params: what to train; ``params`` may be a dict.
        data: from :func:`raysere.training.data.trial_data`. Rows without features in one of the streams are neither
            trained on nor predicted.
        seed: of the trial; it does not depend on the order of trials.
        device: torch device. threads: torch threads, or None to leave them.
        memory: bytes that the feature matrices may take; beyond it rows are read batch by batch.

    Raises:
        ConfigError: these params cannot work on these features. DataError: a fold without training or development rows.
        InfeasibleTrial: out of memory, or the loss is no longer finite; recorded as such by the search.
    """

    def __init__(self, method: Method, params: Any, data: TrialData, *, seed: int, device: str | torch.device = "cpu", threads: int | None = None,
                 memory: int | None = None) -> None:
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        self.method, self.data, self.seed, self.device = method, data, seed, torch.device(device)
        self.params = method.Params(**params) if isinstance(params, dict) else params
        self.task = data.task
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self._stale = 0
        self._tests: Prediction | None = None
        with _infeasible_when_full():
            self._prepare(memory_budget(self.device) if memory is None else memory)

    # ---- preparation

    def _prepare(self, budget: int) -> None:
        data, labels = self.data, self.data.labels
        self._refuse()
        shapes = Shapes(self.task, {name: shape_of(view) for name, view in data.features.items()})
        self.method.check(self.params, shapes)
        layers = self.method.layers(self.params, shapes)
        used = np.unique(np.concatenate([data.test, *[fold.train for fold in data.folds], *[fold.dev for fold in data.folds]]))
        self.sources = {name: TrialStream(view, layers[name], labels, used, device=self.device, folds=len(data.folds), budget=budget // len(data.features))
                        for name, view in data.features.items()}
        present = np.logical_and.reduce([source.present for source in self.sources.values()])
        self.test = data.test[present[data.test]]
        self._labels_to_device()
        self.folds = [self._fold(fold, present, shapes, used) for fold in data.folds]
        for source in self.sources.values():
            source.release()
        self.total = self.params.epochs * max(len(state.cuts) for state in self.folds)
        self.shapes = shapes

    def _refuse(self) -> None:
        needs, views = self.method.needs, self.data.features
        if len(views) < needs.streams:
            raise ConfigError(f"The method {self.method.name!r} needs {needs.streams} feature streams, it got {len(views)}", choices=list(views))
        for name, view in views.items():
            if view.spec.granularity not in needs.granularities:
                raise ConfigError(f"The method {self.method.name!r} cannot read the features {name!r} with granularity {view.spec.granularity}", choices=sorted(needs.granularities))
            if view.spec.modality not in needs.modalities:
                raise ConfigError(f"The method {self.method.name!r} cannot read {view.spec.modality} features ({name!r})", choices=sorted(needs.modalities))

    def _labels_to_device(self) -> None:
        labels, task = self.data.labels, self.task
        low, high = task.scale
        attributes = None if labels.attributes is None or not task.dimensional else (labels.attributes - low) / (high - low)
        columns = {"label": labels.label, "soft": labels.soft, "attributes": attributes, "sex": labels.sex, "speaker": labels.speaker, "votes": labels.votes}
        # development labels score and training labels teach; a method has no way to the labels of test rows through a batch of them
        self.columns = {name: None if values is None else torch.from_numpy(np.ascontiguousarray(values)).to(self.device) for name, values in columns.items()}
        for name in ("attributes", "soft", "votes"):
            if self.columns[name] is not None:
                self.columns[name] = self.columns[name].float()

    def _fold(self, fold: Fold, present: np.ndarray, shapes: Shapes, used: np.ndarray) -> _FoldState:
        labels, params = self.data.labels, self.params
        train = self.method.train_rows(params, labels, fold.train[present[fold.train]], self.task)
        dev = fold.dev[present[fold.dev]]
        if not len(train) or not len(dev):
            raise DataError(f"Fold {fold.number} has {len(train)} training and {len(dev)} development utterances with features and targets")
        state = _FoldState(fold, train, dev)
        for name, source in self.sources.items():
            norm = normalise.fit(params.normalise, source.view, source.columns, source.at, train, used, corpus=labels.corpus, corpora=labels.corpora, speaker=labels.speaker)
            state.streams[name] = source.fold(norm.to(self.device))
        if self.task.categorical:
            counts = np.bincount(labels.label[train][labels.label[train] >= 0], minlength=len(self.task.classes))
            if not counts.sum():
                raise DataError(f"No training utterance of fold {fold.number} has a class")
            state.prior = tuple((counts / counts.sum()).tolist())
        own = Shapes(shapes.task, shapes.streams, state.prior)
        with self._seeded(_BUILD, fold.number):
            state.model = self.method.build(params, own).to(self.device)
        with self._seeded(_START, fold.number):
            self.method.start(state.model, self.data, train, seed_of(self.seed, fold.number, _START))
        state.parameters = [p for p in state.model.parameters() if p.requires_grad]
        state.optimiser = torch.optim.AdamW(state.parameters, lr=params.lr, weight_decay=params.weight_decay, fused=True)
        state.generator = fold_generator(self.seed, fold.number)
        state.sampler = Sampler(params.sampler, torch.from_numpy(labels.label[train]), params.batch)
        state.cuts = state.sampler.cuts()
        state.index = torch.from_numpy(train).to(self.device)
        state.step = 0
        return state

    @contextlib.contextmanager
    def _seeded(self, purpose: int, *parts: int) -> Iterator[None]:
        """Torch's global generators follow from the trial's seed inside, and are as before outside."""
        seed, cuda = seed_of(self.seed, purpose, *parts), self.device.type == "cuda"
        before = torch.default_generator.get_state(), torch.cuda.get_rng_state(self.device) if cuda else None
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it asks every kind of device, at a millisecond each
        if cuda:
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.default_generator.set_state(before[0])
            if cuda:
                torch.cuda.set_rng_state(before[1], self.device)

    # ---- training

    @property
    def finished(self) -> bool:
        """Whether the epochs are used up, or the score has not risen for ``patience`` epochs."""
        return len(self.rows) >= self.params.epochs or self._stale >= self.params.patience

    def epoch(self) -> dict[str, float]:
        """One epoch of every fold, then the development score over all folds at once; the row that it appends to ``rows``.

        ``epoch`` counts from 0. ``train.TERM`` are mean loss terms, ``loss`` their sum, ``dev_loss`` the negative log
        likelihood and/or squared error on development rows, ``score`` the task's metric, the others by their names.
        """
        number = len(self.rows)
        with _infeasible_when_full():
            sums: dict[str, Tensor] = {}
            for state in self.folds:
                with self._seeded(_EPOCH, state.fold.number, number):
                    self._train(state, number, sums)
            items = sum(len(state.rows) for state in self.folds)
            means = {name: float(value) / items for name, value in sums.items()}
            if not all(math.isfinite(value) for value in means.values()):
                raise InfeasibleTrial(f"The loss is not finite in epoch {number}", remedy="Lower the learning rate.")
            predictions = [self._predict(state, state.dev) for state in self.folds]
        row = {"epoch": number, **{f"train.{name}": value for name, value in means.items()}, "loss": sum(means.values()), **self._development(predictions)}
        self.rows.append(row)
        better = not self.best or row["score"] > self.best["score"] or (row["score"] == self.best["score"] and row["dev_loss"] < self.best["dev_loss"])
        risen = not self.best or row["score"] > self.best["score"]
        self._stale = 0 if risen else self._stale + 1
        if better:
            self.best = {"epoch": number, "score": row["score"], "dev_loss": row["dev_loss"], "metrics": {k: v for k, v in row.items() if k in self._names}}
            self._tests = None
            for state, prediction in zip(self.folds, predictions, strict=True):
                state.best_dev = prediction
                _keep(state.best, state.model)
        return row

    def _train(self, state: _FoldState, number: int, sums: dict[str, Tensor]) -> None:
        model, optimiser, method, params = state.model.train(), state.optimiser, self.method, self.params
        rows = state.index[state.sampler.order(number, state.generator).to(self.device)]
        columns = {name: None if values is None else values[rows] for name, values in self.columns.items()}
        begin = 0
        cast = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()
        for size in state.cuts:
            end = begin + size
            lr = params.lr * _schedule(state.step, self.total, params.warmup, params.schedule)
            optimiser.param_groups[0]["lr"] = lr
            here = rows[begin:end]
            batch = Batch(here, {name: stream.batch(here) for name, stream in state.streams.items()}, *_slice(columns, begin, end))
            with cast:
                terms = method.losses(model, batch, Step(state.step, self.total, number, state.generator))
            values = list(terms.values())
            loss = values[0] if len(values) == 1 else torch.stack([value.float() for value in values]).sum()
            for parameter in state.parameters:
                parameter.grad = None
            loss.backward()
            _clip(state.parameters, params.clip)
            optimiser.step()
            for name, value in terms.items():
                share = value.detach() * size
                sums[name] = sums[name] + share if name in sums else share
            state.step += 1
            begin = end

    # ---- prediction

    def _predict(self, state: _FoldState, rows: np.ndarray) -> Prediction:
        """Predictions (n, ...) on the CPU in the order of ``rows``; longest first where lengths differ, so that padding is short."""
        model = state.model.eval()
        flat = all(source.view.spec.granularity == "utterance" for source in self.sources.values())
        size = _PREDICT_ROWS if flat else max(1, min(256, self.params.batch))
        order = np.arange(len(rows))
        if not flat:
            lengths = np.maximum.reduce([source.view.lengths(source.at[rows]) for source in self.sources.values()])
            order = np.argsort(-lengths, kind="stable")
        index = torch.from_numpy(rows[order]).to(self.device)
        parts: list[Prediction] = []
        cast = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()
        with torch.inference_mode(), cast:
            for here in index.split(size):
                none = torch.full_like(here, -1)  # a prediction reads no label
                streams = {name: stream.batch(here) for name, stream in state.streams.items()}
                batch = Batch(here, streams, none, None, None, self.columns["sex"][here], self.columns["speaker"][here])
                parts.append(self.method.predict(model, batch))
        back = torch.from_numpy(np.argsort(order))

        def joined(values: list[Tensor | None]) -> Tensor | None:
            return None if values[0] is None else torch.cat(values).float().cpu()[back]

        return Prediction(joined([p.logits for p in parts]), joined([p.attributes for p in parts]), joined([p.std for p in parts]))

    def _development(self, predictions: list[Prediction]) -> dict[str, float]:
        labels, task = self.data.labels, self.task
        rows = np.concatenate([state.dev for state in self.folds])
        low, high = task.scale
        result: dict[str, float] = {}
        named: dict[str, Any] = {}
        loss = 0.0
        if task.categorical:
            logits = torch.cat([p.logits for p in predictions])
            label = torch.from_numpy(labels.label[rows])
            loss += float(nn.functional.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / (label >= 0).sum().clamp_min(1))
            named |= {"label": labels.label[rows], "scores_of_classes": logits.numpy()}
        if task.dimensional:
            predicted = torch.cat([p.attributes for p in predictions]).numpy()
            target = (labels.attributes[rows] - low) / (high - low)
            loss += float(np.nanmean((predicted - target) ** 2))
            named |= {"attributes": target, "predicted_attributes": predicted}
        values = metrics.scores(task, **named)
        self._names = list(values)
        result["dev_loss"] = loss
        return result | {"score": values[task.metric]} | values

    def predictions(self) -> pl.DataFrame:
        """Predictions of the best epoch: every development row by the fold that did not train on it, every test row by all folds.

        Columns ``utterance, fold, split, p.CLASS...`` and/or attributes on the task's scale. Test rows: softmax of the mean
        fold logits, mean attributes, fold null. Rows without features have none.
        """
        self._need_epoch()
        ids, task = self.data.labels.utterances, self.task
        tables = []
        for state in self.folds:
            tables.append(prediction_table(task, [ids[row] for row in state.dev], "dev", [state.fold.number] * len(state.dev), **self._arrays(state.best_dev)))
        if len(self.test):
            if self._tests is None:
                self._tests = mean_prediction([self._predict_best(state) for state in self.folds])
            tables.append(prediction_table(task, [ids[row] for row in self.test], "test", [None] * len(self.test), **self._arrays(self._tests)))
        return pl.concat(tables)

    def _predict_best(self, state: _FoldState) -> Prediction:
        now: dict[str, Tensor] = {}
        _keep(now, state.model)
        state.model.load_state_dict(state.best)
        with _infeasible_when_full():
            result = self._predict(state, self.test)
        state.model.load_state_dict(now)
        return result

    def _arrays(self, prediction: Prediction) -> dict[str, np.ndarray | None]:
        low, high = self.task.scale
        result: dict[str, np.ndarray | None] = {}
        if self.task.categorical:
            result["probabilities"] = torch.softmax(prediction.logits, dim=-1).numpy()
        if self.task.dimensional:
            result["attributes"] = prediction.attributes.numpy() * (high - low) + low
            result["std"] = None if prediction.std is None else prediction.std.numpy() * (high - low)
        return result

    # ---- what is kept

    def state(self) -> dict[str, Tensor]:
        """Tensors of the best epoch for safetensors: ``fold{f}.model.NAME`` and ``fold{f}.norm.STREAM.NAME``."""
        self._need_epoch()
        result: dict[str, Tensor] = {}
        for state in self.folds:
            head = f"fold{state.fold.number}"
            result |= {f"{head}.model.{name}": value.cpu().clone() for name, value in state.best.items()}
            for name, stream in state.streams.items():
                result |= {f"{head}.norm.{name}.{key}": value.clone() for key, value in stream.normaliser.state().items()}
        return result

    def describe(self) -> dict[str, Any]:
        """What a report tells of this trial, as plain JSON: size, epoch, priors, normalisation, layer weights where they are learned."""
        self._need_epoch()
        result: dict[str, Any] = {
            "parameters": sum(p.numel() for p in self.folds[0].model.parameters()),
            "epoch": self.best["epoch"],
            "folds": len(self.folds),
            "train_rows": [len(state.rows) for state in self.folds],
            "normalise": {name: stream.normaliser.kind for name, stream in self.folds[0].streams.items()},
            "transductive": any(stream.normaliser.transductive for stream in self.folds[0].streams.values()),
        }
        if self.task.categorical:
            params = self.params
            if params.sampler == "natural_then_balanced" and self.best["epoch"] < BALANCED_FROM:
                params = params.model_copy(update={"sampler": "natural"})  # the kept weights never saw a balanced epoch
            priors = np.array([self.method.effective_prior(params, state.prior) for state in self.folds])
            result["effective_prior"] = dict(zip(self.task.classes, priors.mean(0).tolist(), strict=True))
        if hasattr(self.folds[0].model, "layer_weights"):
            result["layer_weights"] = self._layer_weights()
        return result

    def _layer_weights(self) -> dict[str, dict[str, float]]:
        shares = []
        for state in self.folds:
            now: dict[str, Tensor] = {}
            _keep(now, state.model)
            state.model.load_state_dict(state.best)
            shares.append(state.model.layer_weights())
            state.model.load_state_dict(now)
        return {name: {str(layer): float(np.mean([fold[name][layer] for fold in shares])) for layer in weights} for name, weights in shares[0].items()}

    def _need_epoch(self) -> None:
        if not self.best:
            raise DataError("Nothing is trained yet", remedy="Call epoch() first.")


# ---- small parts ------------------------------------------------------------------------------------------------------------------


def _slice(columns: dict[str, Tensor | None], begin: int, end: int) -> tuple[Tensor | None, ...]:
    return tuple(None if values is None else values[begin:end] for values in columns.values())


def _schedule(step: int, total: int, warmup: float, kind: str) -> float:
    """Factor of the learning rate: linear warm-up, then constant, or half a cosine down to 0 at the last step."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 1.0 if kind == "constant" else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _clip(parameters: list[Tensor], limit: float) -> None:
    """Scale all gradients so that their norm is at most ``limit``, without waiting for a GPU."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if norm.device.type == "cpu" and float(norm) <= limit:
        return
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp_max(1.0))


def _keep(kept: dict[str, Tensor], model: nn.Module) -> None:
    """Copy the model's state into ``kept``, reusing its tensors."""
    for name, value in model.state_dict().items():
        if name in kept:
            kept[name].copy_(value)
        else:
            kept[name] = value.detach().clone()


@contextlib.contextmanager
def _infeasible_when_full() -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise InfeasibleTrial("The GPU has not enough memory for this configuration", remedy="A smaller batch, fewer layers or utterance granularity need less.") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise InfeasibleTrial("The machine has not enough memory for this configuration", remedy="A smaller batch, fewer layers or utterance granularity need less.") from error
        raise
