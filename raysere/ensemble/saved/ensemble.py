"""Predict files and texts with a saved ensemble, without Ray."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from raysere.base.bounds import check_tensors
from raysere.base.errors import ConfigError, DataError, RaysereError
from raysere.base.files import canonical_json, digest
from raysere.ensemble.data.predictions import MemberInfo, StackedPredictions
from raysere.ensemble.fit.calibration import log_softmax
from raysere.ensemble.fit.part import mixture
from raysere.ensemble.saved.contributions import contributions_of
from raysere.ensemble.saved.read import Bundle, load_ensemble
from raysere.features.backbone import Backbone, Item

if TYPE_CHECKING:
    from raysere.features.spec import FeatureSpec
    from raysere.features.store.content import Work
    from raysere.features.views import FeatureView


_NO_AUDIO, _NO_TEXT, _KNOWN_ONLY = "no audio", "no text", "holds features of known utterances only"
_NOT_GIVEN = (_NO_AUDIO, _NO_TEXT, _KNOWN_ONLY)
_NO_SPEAKER = "no speaker named: members that normalise by speaker use training statistics"


class Ensemble:
    """A saved ensemble, ready to predict. Models and backbones are opened on first use and kept.

    Examples:
        >>> ensemble = Ensemble.load("runs/demo/ensemble")  # doctest: +SKIP
        >>> ensemble.predict(["clip.wav"], texts=["what was said"])  # doctest: +SKIP
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle, self.task, self.device = bundle, bundle.task, device
        self._predictors: dict[str, Any] = {}
        self._backbones: dict[str, Any] = {}  # by name and options: one copy, however many features and members read it

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, device: str = "cpu") -> Ensemble:
        """Open a saved ensemble; hashes are checked.

        Raises MissingFileError or DataError (see ``load_ensemble``).
        """
        return cls(load_ensemble(folder), device)

    def open(self) -> Ensemble:
        """Open all members and backbones now rather than on first use, so that what does not fit is
        known before anybody asks.

        Raises ConfigError for a backbone whose weights or code are others than the ensemble was
        made with, MissingFileError or EnvironmentFault where one is not on this machine, DataError
        for a member that does not fit its method.
        """
        from raysere.features.extract.encoder import Encoder

        for spec in self.bundle.specs.values():
            if spec.reads != "id":
                Encoder(spec, None, device=self.device, backbone=self._backbone(spec)).open()
        for name in self.bundle.members:
            self._predictor(name)
        return self

    @property
    def modalities(self) -> list[str]:
        return sorted({modality for entry in self.bundle.members.values() for modality in entry["modality"].split("+")})

    def predict(
        self,
        files: Sequence[str | os.PathLike[str] | None] | None = None,
        texts: Sequence[str | None] | None = None,
        speakers: Sequence[str | None] | None = None,
        *,
        corpora: Sequence[str | None] | None = None,
        languages: Sequence[str | None] | None = None,
        segments: Sequence[tuple[float, float] | None] | None = None,
        contributions: bool = False,
    ) -> pl.DataFrame:
        """Predict audio files with or without their transcripts, or texts alone.

        Args:
            files: audio files; None (for all or for some) for text only.
            texts: a transcript for each file ('' or None: none), or the texts themselves.
            speakers: who speaks, for members that normalise by speaker: their clips are normalised
                together. None: every clip by itself.
            corpora: names of the training corpora that the inputs are like, for members that
                normalise by corpus and were trained on several. None, or a name that is none of
                theirs: the statistics of all training rows.
            languages: BCP 47 codes, for backbones that want to know. None: not told.
            segments: (start, end) in seconds of the part of each file that is meant. None: the
                whole file.
            contributions: add a column of each member's share and probabilities.

        Returns:
            One row an input: ``file, text``, ``p.CLASS...`` (under the prior by which the ensemble
            decides), ``predicted``, ``confidence``, attributes on the task's scale, ``members``
            (how many answered), ``note`` (what was missing), ``error`` (why nothing could be
            answered; the rest of the row is null). Classes or an attribute that no member could
            answer are null by themselves, and the note says so. Raises ConfigError for lists of
            different lengths.
        """
        count = len(files) if files is not None else len(texts or [])
        if count == 0:
            raise ConfigError("Nothing to predict", remedy="Give audio files or texts.")
        asked = {"texts": texts, "speakers": speakers, "corpora": corpora, "languages": languages, "segments": segments}
        for what, given in asked.items():
            if given is not None and len(given) != count:
                raise ConfigError(f"{len(given)} {what} for {count} inputs", remedy="Give one each, in the same order.")
        paths = [None if files is None or files[n] is None else str(files[n]) for n in range(count)]
        words: list[str | None] = [text if text and text.strip() else None for text in (texts or [None] * count)]
        people = [f"#{n}" if speakers is None or speakers[n] is None else str(speakers[n]) for n in range(count)]
        views, failures = self._features(paths, words, languages or [None] * count, segments or [None] * count)
        predictions = self.member_predictions(views, count, people, corpora)
        unnamed = np.array([speakers is None or speakers[n] is None for n in range(count)])
        return self._frame(predictions, paths, words, failures, unnamed & self._without_own_statistics(views, predictions), contributions)

    def member_predictions(
        self, views: dict[str, FeatureView], count: int, speakers: Sequence[str], corpora: Sequence[str | None] | None = None
    ) -> StackedPredictions:
        """Stacked predictions of all members from views (by feature key) of the same ``count``
        items in the same order.
        """
        from raysere.methods import METHODS

        task = self.task
        infos = tuple(
            MemberInfo(entry["trial"], entry["run"], entry["modality"], entry["method"], entry["study"])
            for entry in self.bundle.members.values()
        )
        logp = np.zeros((len(infos), count, len(task.classes)), np.float32)
        values = np.zeros((len(infos), count, len(task.attributes) if task.dimensional else 0), np.float32)
        present = np.zeros((len(infos), count), bool)
        low, high = task.scale
        for m, (name, entry) in enumerate(self.bundle.members.items()):
            keys = entry["features"].values()
            if not any(key in views for key in keys):
                continue
            own = {stream: views[key] if key in views else self._absent(key, count) for stream, key in entry["features"].items()}
            rows = np.flatnonzero(METHODS.get(entry["method"]).needs.usable(view.present for view in own.values()))
            if not len(rows):
                continue
            found = self._predictor(name).predict(
                own,
                rows,
                speakers=[speakers[row] for row in rows.tolist()],
                corpora=None if corpora is None else [corpora[row] or "" for row in rows.tolist()],
            )
            present[m, rows] = True
            if task.categorical:
                logp[m, rows] = log_softmax(found.logits.numpy().astype(np.float32))
            if task.dimensional:
                values[m, rows] = np.clip(found.attributes.numpy() * (high - low) + low, low, high)
        return StackedPredictions(
            infos,
            tuple(str(n) for n in range(count)),
            task.classes,
            task.attributes if task.dimensional else (),
            logp,
            values,
            present,
            "new",
        )

    def answer(self, predictions: StackedPredictions) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities (N, K), attributes (N, A)) float64; NaN where nobody could answer."""
        logp, values = mixture([part.predict(predictions) for part in self.bundle.parts])
        return np.exp(logp), values

    # ---- parts -----------------------------------------------------------------------------------

    def _features(
        self,
        paths: list[str | None],
        words: list[str | None],
        languages: Sequence[str | None],
        segments: Sequence[tuple[float, float] | None],
    ) -> tuple[dict[str, FeatureView], list[dict[str, str]]]:
        """One backbone run for each distinct feature spec: views by key, and for each item the
        reasons by key why it has none.
        """
        from raysere.features.extract.run import encode_view, item

        def work(n: int, spec: FeatureSpec) -> Work:
            if spec.reads != "wave":
                return item(str(n), text=words[n], language=languages[n])
            start_s, end_s = segments[n] or (None, None)
            return item(str(n), path=paths[n], language=languages[n], start_s=start_s, end_s=end_s)

        views: dict[str, FeatureView] = {}
        failures: list[dict[str, str]] = [{} for _ in paths]
        shared: dict[str, EncodeOnce] = {}
        used = sorted({key for entry in self.bundle.members.values() for key in entry["features"].values()})
        for key in used:
            spec = self.bundle.specs[key]
            if spec.reads == "id":
                for reasons in failures:
                    reasons[key] = f"{spec.backbone} {_KNOWN_ONLY}"
                continue
            given = paths if spec.reads == "wave" else words
            usable = [n for n, value in enumerate(given) if value is not None]
            for n, value in enumerate(given):
                if value is None:
                    failures[n][key] = _NO_AUDIO if spec.reads == "wave" else _NO_TEXT
            if not usable:
                continue
            heard = _heard(spec)
            if heard not in shared:
                alike = [self.bundle.specs[other] for other in used if _heard(self.bundle.specs[other]) == heard]
                shared[heard] = EncodeOnce(self._backbone(spec), sorted({number for one in alike for number in one.numbers}))
            view, failed = encode_view(spec, [work(n, spec) for n in usable], device=self.device, backbone=shared[heard])
            for utterance, reason in failed.select("utterance", "reason").iter_rows():
                failures[int(utterance)][key] = reason
            views[key] = _spread(view, usable, len(paths))
        return views, failures

    def _without_own_statistics(self, views: dict[str, FeatureView], predictions: StackedPredictions) -> np.ndarray:
        """bool (N,): a member that normalises by speaker answered, and the clip by itself is too
        short for statistics of its own.
        """
        from raysere.training.normalise import MIN_OWN_ROWS

        fell_back = np.zeros(len(predictions.utterances), bool)
        for m, entry in enumerate(self.bundle.members.values()):
            if (entry.get("resolved") or entry["params"]).get("normalise") != "speaker":
                continue
            for key in entry["features"].values():
                if key in views and self.bundle.specs[key].kind != "counts":
                    fell_back |= predictions.present[m] & (views[key].lengths(np.arange(len(fell_back))) < MIN_OWN_ROWS)
        return fell_back

    def _absent(self, key: str, count: int) -> FeatureView:
        """Features that none of the ``count`` items has."""
        from raysere.features.views import FeatureView

        spec = self.bundle.specs[key]
        return FeatureView.from_arrays(spec, [str(n) for n in range(count)], {number: [None] * count for number in spec.numbers})

    def _backbone(self, spec: FeatureSpec) -> Any:
        key = canonical_json([spec.backbone, spec.options])
        if key not in self._backbones:
            from raysere.features.backbones import open_backbone

            self._backbones[key] = open_backbone(spec.backbone, device=self.device, **spec.options)
        return self._backbones[key]

    def _predictor(self, name: str) -> Any:
        if name not in self._predictors:
            from safetensors import SafetensorError
            from safetensors.torch import load

            from raysere.methods import METHODS
            from raysere.training.method import Shapes
            from raysere.training.predictor import load_predictor

            entry = self.bundle.members[name]
            streams = {stream: self.bundle.specs[key].shape() for stream, key in entry["features"].items()}
            method = METHODS.get(entry["method"])()
            check_tensors(self.bundle.weights[name])
            tensors = self.bundle.weights[name].read_bytes()
            if digest(tensors, 64) != entry["sha256"]:  # of the bytes that answer: a member may be opened long after the check
                raise DataError(
                    f"The tensors of the member {name} were changed since the ensemble was opened",
                    where=self.bundle.weights[name],
                    remedy="Open the ensemble again.",
                )
            try:
                self._predictors[name] = load_predictor(
                    method,
                    entry["resolved"] or entry["params"],
                    Shapes(self.task, streams),
                    load(tensors),
                    device=self.device,
                )
            except (KeyError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
                if isinstance(error, RaysereError):
                    raise
                raise DataError(f"The member {name} does not fit its method in this version: {error}", where=self.bundle.folder) from error
        return self._predictors[name]

    def _frame(
        self,
        predictions: StackedPredictions,
        paths: list[str | None],
        words: list[str | None],
        failures: list[dict[str, str]],
        fell_back: np.ndarray,
        contributions: bool,
    ) -> pl.DataFrame:
        task = self.task
        p, values = self.answer(predictions)
        names = task.attributes if task.dimensional else ()
        blocks = {"the classes": np.isfinite(p).all(1)} if task.categorical else {}
        blocks |= {name: np.isfinite(values[:, a]) for a, name in enumerate(names)}
        answered = np.logical_or.reduce(list(blocks.values()))
        classed = blocks["the classes"] if task.categorical else answered
        columns: dict[str, Any] = {"file": pl.Series(paths, dtype=pl.String), "text": pl.Series(words, dtype=pl.String)}
        for k, name in enumerate(task.classes):
            columns[f"p.{name}"] = [float(p[n, k]) if classed[n] else None for n in range(len(paths))]
        if task.categorical:
            columns["predicted"] = pl.Series(
                [task.classes[int(p[n].argmax())] if classed[n] else None for n in range(len(paths))], dtype=pl.String
            )
            columns["confidence"] = [float(p[n].max()) if classed[n] else None for n in range(len(paths))]
        for a, name in enumerate(names):
            columns[name] = [float(values[n, a]) if blocks[name][n] else None for n in range(len(paths))]
        number = predictions.present.sum(0)
        columns["members"] = [int(count) for count in number]
        notes: list[str | None] = []
        for n in range(len(paths)):
            silent = [name for name, found in blocks.items() if not found[n]]
            parts = [self._note(predictions, n, failures[n])]
            parts += [f"no member could answer {', '.join(silent)}"] if silent else []
            parts += [_NO_SPEAKER] if fell_back[n] else []
            notes.append(("; ".join(part for part in parts if part) or None) if answered[n] else None)
        columns["note"] = pl.Series(notes, dtype=pl.String)
        columns["error"] = pl.Series([None if answered[n] else _why(failures[n].values()) for n in range(len(paths))], dtype=pl.String)
        if contributions:
            columns["contributions"] = self._shares(predictions)
        floats = {name: pl.Float64 for name in columns if name.startswith("p.") or name in ("confidence", *task.attributes)}
        return pl.DataFrame(columns, schema_overrides=floats)

    def _note(self, predictions: StackedPredictions, n: int, failures: dict[str, str]) -> str | None:
        """What was missing for an item that was answered all the same."""
        here = predictions.present[:, n]
        absent = [member for member, answers in zip(predictions.members, here) if not answers]
        lacking = [not failures.keys().isdisjoint(entry["features"].values()) for entry in self.bundle.members.values()]
        partial = int((here & np.array(lacking, dtype=bool)).sum())
        notes = []
        if absent:
            kinds = sorted({member.modality for member in absent})
            who = f"{len(absent)} of {len(predictions.members)} members ({', '.join(kinds)})"
            notes.append(f"{who} left out: {_reasons(failures.values())}; the weights of the others were renormalised")
        if partial:
            notes.append(f"{partial} of {len(here)} members answered without one of their features: {_reasons(failures.values())}")
        return "; ".join(notes) or None

    def _shares(self, predictions: StackedPredictions) -> list[list[dict[str, Any]]]:
        ids, shares, p = contributions_of(self.bundle.parts, predictions)
        modality = {name: entry["modality"] for name, entry in self.bundle.members.items()}
        return [
            [
                {"member": name, "modality": modality[name], "share": float(shares[m, n]), "p": p[m, n].tolist()}
                for m, name in enumerate(ids)
                if shares[m, n] > 0
            ]
            for n in range(len(predictions.utterances))
        ]


class EncodeOnce(Backbone):
    """A backbone that encodes each item once for all feature specs that give it the same audio or
    text; made for one call.
    """

    def __init__(self, backbone: Backbone, numbers: list[int]) -> None:
        self.info, self._backbone, self._numbers = backbone.info, backbone, numbers
        self._rows: dict[str, dict[int, np.ndarray]] = {}

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        fresh = [item for item in items if item.utterance not in self._rows]
        if fresh:
            for item, rows in zip(fresh, self._backbone.encode(fresh, self._numbers), strict=True):
                self._rows[item.utterance] = dict(zip(self._numbers, rows, strict=True))
        return [[self._rows[item.utterance][layer] for layer in layers] for item in items]


def _heard(spec: FeatureSpec) -> str:
    """What a backbone is given for an item, and which backbone: specs that agree in it differ only
    in what they keep of the rows.
    """
    return canonical_json([spec.backbone, spec.options, spec.reads, spec.channel, spec.level, spec.speed, spec.noise_db])


def _why(reasons: Iterable[str]) -> str:
    """Why nothing was answered: what is wrong with what was given; what was not given, only where
    nothing was.
    """
    told = sorted(set(reasons))
    return _reasons([reason for reason in told if not reason.endswith(_NOT_GIVEN)] or told)


def _reasons(reasons: Any) -> str:
    return "; ".join(sorted(set(reasons))) or "no member could answer"


def _spread(view: FeatureView, places: list[int], count: int) -> FeatureView:
    """A view of ``count`` items in which the given ones stand at ``places`` and the others are
    absent.
    """
    if len(places) == count:
        return view
    from raysere.features.views import FeatureView

    layers = {}
    for number in view.spec.numbers:
        rows: list[np.ndarray | None] = [None] * count
        stream = view.batch(np.arange(len(places)), [number])
        for position, place in enumerate(places):
            if view.present[position]:
                rows[place] = stream.layers[number][position][stream.mask[position]].numpy()
        layers[number] = rows
    return FeatureView.from_arrays(view.spec, [str(n) for n in range(count)], layers)
