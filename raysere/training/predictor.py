"""Predict new utterances with the saved tensors of trained folds, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from raysere.base.errors import ConfigError, DataError
from raysere.training import normalise
from raysere.training.inputs import normalised
from raysere.training.method import Batch, Method, Prediction, Shapes

if TYPE_CHECKING:
    from raysere.features.views import FeatureView


def split_state(state: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """``fold{f}.{name}`` to tensors by fold. Raises DataError for a name of another form."""
    folds: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        head, _, name = key.partition(".")
        if not head.startswith("fold") or not head[4:].isdigit() or not name:
            raise DataError(f"These are not the tensors of a trial: {key!r}")
        folds.setdefault(int(head[4:]), {})[name] = value
    return dict(sorted(folds.items()))


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries under ``prefix.``, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}


def mean_prediction(predictions: Sequence[Prediction]) -> Prediction:
    """Mean logits and mean attributes of the folds; the spread of fold attributes adds to their own
    variance.
    """

    def stacked(name: str) -> Tensor | None:
        values = [getattr(prediction, name) for prediction in predictions]
        return None if values[0] is None else torch.stack(values)

    logits, attributes, std = stacked("logits"), stacked("attributes"), stacked("std")
    if std is not None and attributes is not None:
        std = (std.square().mean(0) + attributes.var(0, correction=0)).sqrt()
    return Prediction(None if logits is None else logits.mean(0), None if attributes is None else attributes.mean(0), std)


class Predictor:
    """All folds of one trial. Make it with :func:`load_predictor`."""

    def __init__(
        self, method: Method, params: Any, shapes: Shapes, state: Mapping[str, Tensor], device: str | torch.device = "cpu"
    ) -> None:
        self.method, self.params, self.shapes, self.device = method, params, shapes, torch.device(device)
        self.layers = method.layers(params, shapes)
        self.columns = {
            name: normalise.columns_of({layer: stream.layers[layer] for layer in self.layers[name]})
            for name, stream in shapes.streams.items()
        }
        self.folds = []
        for tensors in split_state(state).values():
            own = part(tensors, "model")
            with torch.random.fork_rng(devices=[]):
                expected = _shapes(method, params, shapes)
                if wrong := [name for name in expected if name not in own or own[name].shape != expected[name]]:
                    name = wrong[0]
                    found = list(own[name].shape) if name in own else "not there"
                    raise DataError(f"The tensors are not those of this model: {name} is {found}, not {list(expected[name])}")
                model = method.build(params, shapes)
            model.load_state_dict(own)
            norms = {}
            for name, stream in shapes.streams.items():
                kind = "tfidf" if stream.kind == "counts" else normalise.FITTED.get(params.normalise, params.normalise)
                norms[name] = normalise.Normaliser.from_state(kind, self.columns[name], part(tensors, f"norm.{name}")).to(self.device)
            self.folds.append((model.to(self.device).eval(), norms))
        if not self.folds:
            raise DataError("A predictor needs the tensors of at least one fold")

    def predict(
        self,
        views: Mapping[str, FeatureView] | FeatureView,
        rows: Any,
        *,
        speakers: Sequence[str] | None = None,
        corpora: Sequence[str] | None = None,
        batch: int = 256,
    ) -> Prediction:
        """Mean of the folds, on the CPU: ``logits`` float32 (n, C) and/or ``attributes`` (n, A) in
        [0, 1].

        Args:
            views: the features by stream name, all with the same utterances in the same order (or
                the only one).
            rows: int (n,) rows of the views; they must be present in all of them (in one, where the
                method takes partial ones).
            speakers: names (n,), for ``normalise: speaker``; without them the rows are taken for
                one speaker's. A speaker with too few rows gets the statistics of the training data.
            corpora: names (n,), for ``normalise: corpus`` where training held several.

        Raises ConfigError for a missing stream, DataError for absent rows.
        """
        views = self._views(views)
        rows = np.asarray(rows, dtype=np.int64)
        usable = self.method.needs.usable(view.present[rows] for view in views.values())
        if not usable.all():
            row = int(rows[~usable][0])
            lacking = [name for name, view in views.items() if not view.present[row]]
            ids = next(iter(views.values())).utterances
            absent = [ids[row] for row in rows[~usable][:5]]
            raise DataError("Utterances without features cannot be predicted", where=f"{', '.join(lacking)}: {', '.join(absent)}")
        tables = {name: self._own_statistics(name, view, rows, speakers) for name, view in views.items()}
        parts = [
            mean_prediction(self._batch(views, rows[begin : begin + batch], slice(begin, begin + batch), tables, corpora))
            for begin in range(0, len(rows), batch)
        ]
        return Prediction(*(_cat([getattr(p, name) for p in parts]) for name in ("logits", "attributes", "std")))

    def logits(self, views: Mapping[str, FeatureView] | FeatureView, rows: Any, **named: Any) -> np.ndarray:
        """Mean fold logits float32 (n, C); arguments as :meth:`predict`.

        Raises ConfigError when the task has no classes.
        """
        result = self.predict(views, rows, **named).logits
        if result is None:
            raise ConfigError("This model predicts attributes, not classes")
        return result.numpy()

    def _views(self, views: Mapping[str, FeatureView] | FeatureView) -> dict[str, FeatureView]:
        if not isinstance(views, Mapping):
            views = {next(iter(self.shapes.streams)): views}
        missing = [name for name in self.shapes.streams if name not in views]
        if missing:
            raise ConfigError(f"This model needs the features {', '.join(missing)} too", choices=list(self.shapes.streams))
        return {name: views[name] for name in self.shapes.streams}

    def _own_statistics(
        self, name: str, view: FeatureView, rows: np.ndarray, speakers: Sequence[str] | None
    ) -> list[tuple[Tensor, Tensor] | None]:
        """For each row the statistics of its own speaker, None where the training data's hold."""
        if self.params.normalise != "speaker" or view.spec.kind == "counts":
            return [None] * len(rows)
        who = np.asarray(speakers if speakers is not None else [""] * len(rows))
        known: dict[str, tuple[Tensor, Tensor] | None] = {}
        for speaker in np.unique(who):
            statistics = normalise.batch_statistics(view, self.columns[name], rows[who == speaker])
            known[speaker] = None if statistics is None else (statistics[0].to(self.device), statistics[1].to(self.device))
        return [known[speaker] for speaker in who]

    def _batch(
        self, views: Mapping[str, FeatureView], rows: np.ndarray, where: slice, tables: Mapping[str, list], corpora: Sequence[str] | None
    ) -> list[Prediction]:
        results = []
        none = torch.full((len(rows),), -1, dtype=torch.long, device=self.device)
        raw = {name: view.batch(rows, self.layers[name], self.device) for name, view in views.items()}
        names = None if corpora is None else list(corpora[where])
        for model, norms in self.folds:
            streams = {}
            for name, stream in raw.items():
                norm = norms[name]
                group: Tensor | None = None
                if norm.kind == "speaker":
                    norm, group = _with_rows(norm, tables[name][where])
                elif norm.kind == "corpus":
                    group = norm.groups_of(names, len(rows)).to(self.device)
                own = replace(stream, layers={layer: x.clone() for layer, x in stream.layers.items()})  # normalised in place, by each fold
                streams[name] = normalised(own, norm, group)
            items = Batch(torch.from_numpy(rows).to(self.device), streams, none, None, None, none, none)
            with torch.inference_mode():
                results.append(_to_cpu(self.method.predict(model, items)))
        return results


def _shapes(method: Method, params: Any, shapes: Shapes) -> dict[str, torch.Size]:
    """Shapes of the model's tensors, without one of them: a file may name a model of terabytes and
    hold a few numbers.

    Empty for a method of somebody's package that computes with values while it is built.
    """
    try:
        with torch.device("meta"):
            return {name: value.shape for name, value in method.build(params, shapes).state_dict().items()}
    except (NotImplementedError, RuntimeError, TypeError):
        return {}


def _with_rows(norm: normalise.Normaliser, own: list[tuple[Tensor, Tensor] | None]) -> tuple[normalise.Normaliser, Tensor]:
    """A normaliser whose groups are the speakers of this batch, and the group of each item."""
    distinct = {id(entry): entry for entry in own if entry is not None}
    number = {key: position for position, key in enumerate(distinct)}
    mean = torch.stack([*(entry[0] for entry in distinct.values()), norm.mean[-1]])
    scale = torch.stack([*(entry[1] for entry in distinct.values()), norm.scale[-1]])
    group = torch.tensor([number[id(entry)] if entry is not None else len(distinct) for entry in own], dtype=torch.long, device=mean.device)
    return normalise.Normaliser("speaker", norm.columns, mean, scale), group


def _to_cpu(prediction: Prediction) -> Prediction:
    return Prediction(
        *(None if value is None else value.float().cpu() for value in (prediction.logits, prediction.attributes, prediction.std))
    )


def _cat(values: list[Any]) -> Tensor | None:
    return torch.cat(values) if values and values[0] is not None else None


def load_predictor(
    method: Method, params: Any, shapes: Shapes, state: Mapping[str, Tensor], *, device: str | torch.device = "cpu"
) -> Predictor:
    """A :class:`Predictor` from ``Trainer.state()`` (as read back from safetensors).

    Args:
        params: an instance of ``method.Params`` or its dict. shapes: task and streams of the trial
            (``train_prior`` is not needed).
    """
    if isinstance(params, Mapping):
        params = method.Params(**params)
    return Predictor(method, params, shapes, state, device)
