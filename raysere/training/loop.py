"""The training loop: all folds of a trial together, one epoch at a time, one best epoch for all.

Whole data on the device where it fits, index batches, no DataLoader. The same seed, machine and
number of threads give the same predictions: every random choice of a fold (initial weights, order,
dropout, mixup) follows from the trial's seed and the fold's number, whatever ran before in the
process.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from raysere.base.errors import ConfigError, DataError, InfeasibleTrial
from raysere.training import criteria, metrics
from raysere.training.folds import FoldTrainer, TrialContext, label_columns
from raysere.training.inputs import TrialStream, memory_budget
from raysere.training.lockstep import Lockstep
from raysere.training.method import Method, Prediction, Shapes
from raysere.training.predictions import prediction_table
from raysere.training.predictor import Predictor, load_predictor, mean_prediction
from raysere.training.samplers import BALANCED_FROM
from raysere.training.steps import infeasible_when_full, matmul_dtype
from raysere.training.task import TrialData

CRITERION_ROWS = 2000  # source items that a domain classifier of the criteria learns from
STACKED_PARAMETERS = 100_000  # of a fold, up to which stacking pays on a CPU (benchmarks/folds.py)

__all__ = ["Predictor", "Trainer", "load_predictor"]


class Trainer:
    """Trains one configuration on all folds of one outer split.

    Args:
        method, params: what to train; ``params`` may be a dict.
        data: from :func:`raysere.training.data.trial_data`. Rows without features in one of the
            streams (in all of them, where the method takes partial ones) are neither trained on nor
            predicted.
        seed: of the trial; it does not depend on the order of trials.
        device: torch device. threads: torch threads, or None to leave them.
        memory: bytes that the feature matrices may take; beyond it rows are read batch by batch.
        precision: of matrix products: ``auto`` is bfloat16 on a GPU and float32 elsewhere;
            ``float32``; ``bfloat16`` (faster on CPUs that multiply it). Weights, losses and the
            optimiser are float32 in all of them.
        stacked: train all folds in one pass; None does so where the method can and it pays. The
            results are the same up to rounding.

    Attributes:
        rows: one dict for each epoch, see :meth:`epoch`.
        best: ``epoch``, ``score``, ``dev_loss`` and ``metrics`` of the best epoch: the highest
            score over the development rows of all folds at once; among equal scores the lowest
            development loss.
        shapes: task and streams, as :func:`load_predictor` needs them.

    Raises:
        ConfigError: these params cannot work on these features, or cannot be stacked.
        DataError: a fold without training or development rows.
        InfeasibleTrial: out of memory, or the loss is no longer finite; recorded as such by the
            search.
    """

    def __init__(
        self,
        method: Method,
        params: Any,
        data: TrialData,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        memory: int | None = None,
        precision: str = "auto",
        stacked: bool | None = None,
    ) -> None:
        if threads is not None and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        self.method, self.data, self.task, self.device = method, data, data.task, torch.device(device)
        self.params = method.Params(**params) if isinstance(params, dict) else params
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self._stale = 0
        self._tests: Prediction | None = None
        _refuse(method, data)
        self.shapes = Shapes(self.task, {name: view.shape() for name, view in data.features.items()})
        method.check(self.params, self.shapes)
        with infeasible_when_full():
            self._prepare(seed, memory_budget(self.device) if memory is None else memory, matmul_dtype(self.device, precision))
            together = self._stacks() if stacked is None else stacked and len(self.folds) > 1
            if together and not self._stackable():
                raise ConfigError(f"The method {method.name!r} cannot stack folds with these params and features", where="stacked")
            self.groups = [Lockstep(self.folds)] if together else [Lockstep([fold]) for fold in self.folds]

    def _prepare(self, seed: int, budget: int, dtype: torch.dtype) -> None:
        data, labels = self.data, self.data.labels
        layers = self.method.layers(self.params, self.shapes)
        train = [data.with_copies(fold.train) if self.params.augment else fold.train for fold in data.folds]
        used = np.unique(np.concatenate([data.test, data.unlabelled, *train, *(fold.dev for fold in data.folds)]))
        share = budget // len(data.features)
        sources = {
            name: TrialStream(view, layers[name], labels, used, device=self.device, folds=len(data.folds), budget=share, dtype=dtype)
            for name, view in data.features.items()
        }
        present = self.method.needs.usable(source.present for source in sources.values())
        columns = label_columns(data, self.device)
        pools = self.method.pools(self.params, self.shapes)
        context = TrialContext(
            self.method, self.params, data, self.shapes, seed, self.device, dtype, sources, present, used, columns, pools
        )
        self.test = data.test[present[data.test]]
        self.folds = [FoldTrainer(context, fold) for fold in data.folds]
        for source in sources.values():
            source.release()

    def _stackable(self) -> bool:
        flat = all(stream.flat for fold in self.folds for stream in fold.streams.values())
        if not (flat and self.method.stacks(self.params, self.shapes)):
            return False
        if type(self.method).begin_epoch is not Method.begin_epoch:
            raise ConfigError(
                f"The method {self.method.name!r} stacks folds and has `begin_epoch`, which is never called for stacked folds",
                where="stacks",
                remedy="Let `stacks` return False, or do without `begin_epoch`.",
            )
        return True

    def _stacks(self) -> bool:
        """Whether to stack: on a GPU always, on a CPU where calls and not products take the time."""
        if len(self.folds) == 1 or not self._stackable():
            return False
        size = sum(parameter.numel() for parameter in self.folds[0].model.parameters())
        return self.device.type == "cuda" or size <= STACKED_PARAMETERS

    @property
    def finished(self) -> bool:
        """Whether the epochs are used up, or the score has not risen for ``patience`` epochs."""
        return len(self.rows) >= self.params.epochs or self._stale >= self.params.patience

    def epoch(self) -> dict[str, Any]:
        """One epoch of every fold, then the development score over all folds at once; the row that
        it appends to ``rows``.

        ``epoch`` counts from 0. ``train.TERM`` are mean loss terms, ``loss`` their sum,
        ``dev_loss`` the negative log likelihood and/or squared error on development rows, ``score``
        the task's metric, the others by their names; ``layer_weights.STREAM`` is a list in the
        order of the layers, mean over the folds, where such weights are learned.
        """
        number = len(self.rows)
        with infeasible_when_full():
            sums: dict[str, Tensor] = {}
            for group in self.groups:
                group.train(number, sums)
            items = sum(len(fold.rows) for fold in self.folds)
            means = {name: float(value) / items for name, value in sums.items()}
            if not all(math.isfinite(value) for value in means.values()):
                raise InfeasibleTrial(f"The loss is not finite in epoch {number}", remedy="Lower the learning rate.")
            predictions = [part for group in self.groups for part in group.predict([fold.dev for fold in group.folds])]
        loss, values = self._development(predictions)
        trained = {f"train.{name.lstrip('_')}": value for name, value in means.items()}
        total = sum(value for name, value in means.items() if not name.startswith("_"))
        row: dict[str, Any] = {"epoch": number, **trained, "loss": total, "dev_loss": loss, "score": values[self.task.metric], **values}
        if self._learns_layers:
            shares = _mean_shares([fold.model.layer_weights() for fold in self.folds])  # type: ignore[operator]
            row |= {f"layer_weights.{name}": list(weights.values()) for name, weights in shares.items()}
        self.rows.append(row)
        # with a target domain the source score cannot choose the epoch: the last one is
        # kept
        risen = not self.best or row["score"] > self.best["score"] or self.method.needs.target_domain
        self._stale = 0 if risen else self._stale + 1
        if risen or (row["score"] == self.best["score"] and loss < self.best["dev_loss"]):
            self.best = {"epoch": number, "score": row["score"], "dev_loss": loss, "metrics": values}
            self._tests = None
            for fold, prediction in zip(self.folds, predictions):
                fold.keep_best(prediction)
        if self.finished and len(self.data.unlabelled) and self.task.categorical:
            self.best["metrics"] = {**self.best["metrics"], **self._criteria()}
        return row

    def _criteria(self) -> dict[str, float]:
        """``criterion.NAME``, mean over the folds, of :mod:`raysere.training.criteria` at the kept
        weights; nothing without features.
        """
        found: dict[str, list[float]] = {}
        for group in self.groups:
            adapted = group.best_of(group.folds[0].unlabelled.cpu().numpy())
            for number, (fold, target) in enumerate(zip(group.folds, adapted, strict=True)):
                trained, dev = group.best_of(fold.rows[:: 1 + len(fold.rows) // CRITERION_ROWS])[number], fold.best_dev
                if dev is None or trained.hidden is None or dev.hidden is None or target.hidden is None:
                    return {}
                logits, own = _array(target.logits), _array(dev.logits)
                values = criteria.criteria_of(
                    source_prior=np.array(fold.prior),
                    train_features=_array(trained.hidden),
                    dev_features=_array(dev.hidden),
                    dev_loss=(own.argmax(1) != self.data.labels.label[fold.dev]).astype(np.float64),
                    target=torch.softmax(torch.from_numpy(logits), dim=-1).numpy(),
                    target_features=_array(target.hidden),
                )
                for name, value in values.items():
                    found.setdefault(f"criterion.{name}", []).append(value)
        return {name: float(np.mean(values)) for name, values in found.items() if len(values) == len(self.folds)}

    def _development(self, predictions: list[Any]) -> tuple[float, dict[str, float]]:
        """Loss and metrics over the development rows of all folds."""
        labels, task = self.data.labels, self.task
        rows = np.concatenate([fold.dev for fold in self.folds])
        low, high = task.scale
        named: dict[str, Any] = {}
        loss = 0.0
        if task.categorical:
            logits, label = torch.cat([part.logits for part in predictions]), torch.from_numpy(labels.label[rows])
            total = nn.functional.cross_entropy(logits, label, ignore_index=-1, reduction="sum")
            loss += float(total / (label >= 0).sum().clamp_min(1))
            named |= {"label": labels.label[rows], "scores_of_classes": logits.numpy()}
        if task.dimensional and labels.attributes is not None:
            predicted = torch.cat([part.attributes for part in predictions]).numpy()
            target = (labels.attributes[rows] - low) / (high - low)
            loss += float(np.nanmean((predicted - target) ** 2))
            named |= {"attributes": target, "predicted_attributes": predicted}
        values = metrics.scores(task, **named)
        if not all(math.isfinite(value) for value in (loss, values[task.metric])):
            raise InfeasibleTrial(f"The predictions of epoch {len(self.rows)} are not finite", remedy="Lower the learning rate.")
        return loss, values

    def predictions(self) -> pl.DataFrame:
        """Predictions of the best epoch: every development row by the fold that did not train on
        it, every test row by all folds.

        Columns ``utterance, fold, split, p.CLASS...`` and/or attributes on the task's scale. Test
        rows: softmax of the mean fold logits, mean attributes, fold null. Rows without features
        have none.
        """
        self._need_epoch()
        ids = self.data.labels.utterances
        tables = []
        for fold in self.folds:
            names = [ids[row] for row in fold.dev]
            tables.append(prediction_table(self.task, names, "dev", [fold.number] * len(names), **self._arrays(fold.best_dev)))
        if len(self.test):
            if self._tests is None:
                with infeasible_when_full():
                    self._tests = mean_prediction([part for group in self.groups for part in group.best_of(self.test)])
            names = [ids[row] for row in self.test]
            tables.append(prediction_table(self.task, names, "test", [None] * len(names), **self._arrays(self._tests)))
        return pl.concat(tables)

    def _arrays(self, prediction: Any) -> dict[str, np.ndarray | None]:
        low, high = self.task.scale
        result: dict[str, np.ndarray | None] = {}
        if self.task.categorical:
            result["probabilities"] = torch.softmax(prediction.logits, dim=-1).numpy()
        if self.task.dimensional:
            result["attributes"] = prediction.attributes.numpy() * (high - low) + low
            result["std"] = None if prediction.std is None else prediction.std.numpy() * (high - low)
        return result

    def state(self) -> dict[str, Tensor]:
        """Tensors of the best epoch for safetensors:

        ``fold{f}.model.NAME`` and ``fold{f}.norm.STREAM.NAME``.
        """
        self._need_epoch()
        return {name: value for fold in self.folds for name, value in fold.state().items()}

    def describe(self) -> dict[str, Any]:
        """What a report tells of this trial, as plain JSON.

        ``parameters`` (of one fold), ``epoch``, ``folds``, ``train_rows``, ``normalise`` by stream,
        ``transductive`` (a prediction depends on other unlabelled clips of its speaker, or on
        tested clips that were adapted to), ``effective_prior`` by class (mean of the folds), and
        ``layer_weights`` by stream and layer where they are learned.
        """
        self._need_epoch()
        streams = self.folds[0].streams
        result: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in self.folds[0].model.parameters()),
            "epoch": self.best["epoch"],
            "folds": len(self.folds),
            "train_rows": [len(fold.rows) for fold in self.folds],
            "normalise": {name: stream.normaliser.kind for name, stream in streams.items()},
            "transductive": any(stream.normaliser.transductive for stream in streams.values())
            or bool(np.isin(self.data.test, self.data.unlabelled).any()),
        }
        if self.task.categorical:
            params = self.params
            if params.sampler == "natural_then_balanced" and self.best["epoch"] < BALANCED_FROM:
                params = params.model_copy(update={"sampler": "natural"})  # the kept weights never saw a balanced epoch
            priors = np.array([self.method.effective_prior(params, fold.prior) for fold in self.folds])
            result["effective_prior"] = dict(zip(self.task.classes, priors.mean(0).tolist()))
        if self._learns_layers:
            result["layer_weights"] = _mean_shares([weights for group in self.groups for weights in group.best_layer_weights()])
        return result

    @property
    def _learns_layers(self) -> bool:
        return hasattr(self.folds[0].model, "layer_weights")

    def _need_epoch(self) -> None:
        if not self.best:
            raise DataError("Nothing is trained yet", remedy="Call epoch() first.")


def _mean_shares(shares: list[dict[str, dict[int, float]]]) -> dict[str, dict[str, float]]:
    """Mean over the folds of the share of each layer, by stream and layer."""
    return {
        name: {str(layer): float(np.mean([share[name][layer] for share in shares])) for layer in weights}
        for name, weights in shares[0].items()
    }


def _array(values: Tensor | None) -> np.ndarray:
    assert values is not None  # a categorical task has logits
    return values.numpy()


def _refuse(method: Method, data: TrialData) -> None:
    """ConfigError where the features are not what the method needs."""
    needs, views = method.needs, data.features
    if not views or len(views) < needs.streams:
        raise ConfigError(f"The method {method.name!r} needs {needs.streams} feature streams, it got {len(views)}", choices=list(views))
    if needs.target_domain and not len(data.unlabelled):
        raise ConfigError(f"The method {method.name!r} needs a target domain", remedy="Take the protocol `kind: transfer`.")
    for name, view in views.items():
        granularity, modality = view.spec.granularity, view.spec.modality
        if granularity not in needs.granularities:
            what = f"The method {method.name!r} cannot read the features {name!r} with granularity {granularity}"
            raise ConfigError(what, choices=sorted(needs.granularities))
        if modality not in needs.modalities:
            raise ConfigError(f"The method {method.name!r} cannot read {modality} features ({name!r})", choices=sorted(needs.modalities))
