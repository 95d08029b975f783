"""TensorBoard events of finished trials: scalars, hparams, resources, layer weights, confusion
matrix.

Written by the driver (no torch). ``raysere tensorboard RUN`` shows one run for each trial;
:mod:`raysere.search.watch.overview` writes what is about the search as a whole.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysere.base.files import canonical_json, explain_write_errors
from raysere.search.ledger import Record
from raysere.search.study import StudySpec
from raysere.search.watch.event_file import EventFile, hparams_value
from raysere.search.watch.live import add_row, file_name
from raysere.search.watch.overview import shown
from raysere.search.watch.pictures import Picture, confusion_image, weights_image
from raysere.training import metrics


class TrialEvents:
    """Writes ``search/STUDY/TRIAL/events.out.tfevents.*.trial``; the file appears whole by rename."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir)
        self._labels: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def folder(self, record: Record) -> Path:
        return self.run_dir / "search" / record.study / record.trial

    def has(self, record: Record) -> bool:
        return any(self.folder(record).glob("events.out.tfevents.*.trial"))

    def write(
        self, record: Record, study: StudySpec, rows: Sequence[Mapping[str, Any]] | None = None, confusion: np.ndarray | None = None
    ) -> None:
        """Write the events of one trial; nothing if they are there already.

        ``rows`` and ``confusion`` come from the worker where the trial has just ended; else they
        are read from its files.
        """
        if self.has(record):
            return
        target = self.folder(record)
        temporary = target / f".{uuid.uuid4().hex[:8]}.tmp"
        with explain_write_errors(target):
            target.mkdir(parents=True, exist_ok=True)
            try:
                if rows is None:
                    rows, confusion = record.rows().to_dicts(), self._confusion(record, study)
                write_events(temporary, record, rows, confusion, study.task.classes)
                os.rename(temporary, target / file_name("trial"))
            finally:
                temporary.unlink(missing_ok=True)

    def _confusion(self, record: Record, study: StudySpec) -> np.ndarray | None:
        """Counts int64 (C, C), true class by row, over the development rows; None for attributes or
        without predictions.
        """
        classes = list(study.task.classes)
        if not classes or not (record.folder / "predictions.parquet").is_file():
            return None
        predictions = record.predictions()
        columns = [f"p.{name}" for name in classes]
        if not set(columns) <= set(predictions.columns):
            return None
        labels = self._class_of(study)
        dev = predictions.filter(pl.col("split") == "dev")
        index = {name: number for number, name in enumerate(classes)}
        truth = np.array([index.get(labels.get(utterance, ""), -1) for utterance in dev["utterance"].to_list()], dtype=np.int64)
        predicted = dev.select(columns).to_numpy().argmax(1) if len(dev) else np.zeros(0, dtype=np.int64)
        return metrics.confusion(truth, predicted, len(classes))

    def _class_of(self, study: StudySpec) -> dict[str, str]:
        """Utterance to class name under the study's class map."""
        from raysere.corpora.labels import class_map
        from raysere.corpora.manifest import Manifest

        key = canonical_json(study.class_map)
        with self._lock:
            if key not in self._labels:
                table = Manifest.read(self.run_dir / "manifest.parquet").table
                mapped = class_map(study.class_map).apply(table)[0]
                self._labels[key] = {
                    utterance: label for utterance, label in zip(table["utterance"].to_list(), mapped, strict=True) if label is not None
                }
            return self._labels[key]


def write_events(
    path: Path, record: Record, rows: Sequence[Mapping[str, Any]], confusion: np.ndarray | None, classes: Sequence[str]
) -> None:
    """Write one event file; ``rows`` are those of ``metrics.parquet``, one for each epoch."""
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    now, at = time.time(), record.epoch or 0
    start = SessionStartInfo(group_name=record.trial, start_time_secs=now - record.seconds)
    for name, value in hparams(record).items():
        if isinstance(value, bool):  # before number: a truth value is one
            start.hparams[name].bool_value = value
        elif isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    end = SessionEndInfo(status=STATUS_SUCCESS if record.scored else STATUS_FAILURE, end_time_secs=now)
    with EventFile(path) as file:
        file.restart()  # live curves have shown some of it already
        file.add(0, [hparams_value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))])
        for row in rows:
            add_row(file, row)
        file.scalars(at, outcome(record))
        for stream, weights in (record.describe.get("layer_weights") or {}).items():
            for layer, weight in weights.items():  # a profile: the layer where the other charts have the epoch
                file.scalars(int(layer), {f"layer_weights/{stream}": weight})
            by_epoch = [row[f"layer_weights.{stream}"] for row in rows if row.get(f"layer_weights.{stream}")]
            if by_epoch:
                file.add(at, [_picture(f"layer_weights/{stream}/by_epoch", weights_image(np.array(by_epoch), list(weights)))])
        if confusion is not None:
            file.add(at, [_picture("confusion", confusion_image(confusion, classes))])
        file.add(0, [hparams_value(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))])


def outcome(record: Record) -> dict[str, float]:
    """What a trial came to, by tag: its best epoch, and what it took (seconds, MB of memory)."""
    found = {"resources/seconds": record.seconds}
    found |= {f"resources/{kind}_memory_mb": count / 1e6 for kind, count in record.memory.items()}
    if record.score is not None:
        found |= {"best/score": float(record.score), **{f"best/{name.replace('.', '/')}": value for name, value in record.metrics.items()}}
    return found


def _picture(name: str, picture: Picture) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=picture.png)
    return Summary.Value(tag=name, image=image)


def hparams(record: Record) -> dict[str, float | bool | str]:
    """Plain scalars as the HParams page shows them; branches that were not taken are left out."""
    result: dict[str, float | bool | str] = {"study": record.study, "method": record.method, "features": "+".join(record.features)}
    for name, value in record.params.items():
        if value is None:
            continue
        result[name] = shown(value)
    return result
