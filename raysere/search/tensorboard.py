"""TensorBoard events of finished trials: scalars per epoch, hparams, and the confusion matrix of the best epoch.

Written by the driver with TensorBoard's own writer (no torch). ``tensorboard --logdir RUN/search`` shows one run a trial.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysere.files import canonical_json, explain_write_errors
from raysere.search.ledger import Record
from raysere.search.study import StudySpec
from raysere.training import metrics

_INK, _PAPER, _HUE = (32, 33, 36), (255, 255, 255), (23, 94, 150)


class TrialEvents:
    """Writes ``search/STUDY/TRIAL/events.out.tfevents*``; a folder appears whole by rename."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir)
        self._labels: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def folder(self, record: Record) -> Path:
        return self.run_dir / "search" / record.study / record.trial

    def has(self, record: Record) -> bool:
        return self.folder(record).is_dir()

    def write(
        self, record: Record, study: StudySpec, rows: Sequence[Mapping[str, Any]] | None = None, confusion: np.ndarray | None = None
    ) -> None:
        """Write the events of one trial; nothing if they are there already.

        ``rows`` and ``confusion`` come from the worker where the trial has just ended; else they are read from its files.
        """
        target = self.folder(record)
        if target.is_dir():
            return
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        with explain_write_errors(target):
            temporary.mkdir(parents=True)
            try:
                if rows is None:
                    rows, confusion = record.rows().to_dicts(), self._confusion(record, study)
                write_events(temporary, record, rows, confusion, study.task.classes)
                os.rename(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    def _confusion(self, record: Record, study: StudySpec) -> np.ndarray | None:
        """Counts int64 (C, C), true class by row, over the development rows; None for attributes or without predictions."""
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
    folder: Path, record: Record, rows: Sequence[Mapping[str, Any]], confusion: np.ndarray | None, classes: Sequence[str]
) -> None:
    """Write one event file into ``folder``; ``rows`` are those of ``metrics.parquet``, one an epoch."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    now = time.time()
    writer = EventFileWriter(str(folder))

    def add(step: int, summary: Summary) -> None:
        writer.add_event(Event(wall_time=now, step=step, summary=summary))

    try:
        start = SessionStartInfo(group_name=record.trial, start_time_secs=now - record.seconds)
        for name, value in hparams(record).items():
            if isinstance(value, bool):  # before number: a truth value is one
                start.hparams[name].bool_value = value
            elif isinstance(value, str):
                start.hparams[name].string_value = value
            else:
                start.hparams[name].number_value = value
        add(0, _hparams_summary("_hparams_/session_start_info", HParamsPluginData(session_start_info=start)))
        for row in rows:
            values = [
                Summary.Value(tag=tag(name), simple_value=float(value))
                for name, value in row.items()
                if name != "epoch" and value is not None
            ]
            if values:
                add(int(row["epoch"]), Summary(value=values))
        if record.score is not None:
            add(record.epoch or 0, Summary(value=[Summary.Value(tag="best/score", simple_value=float(record.score))]))
        if confusion is not None:
            png, (height, width) = confusion_image(confusion, classes, title=f"{record.trial}: development, epoch {record.epoch}")
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
            add(record.epoch or 0, Summary(value=[Summary.Value(tag="confusion", image=image)]))
        end = SessionEndInfo(status=STATUS_SUCCESS if record.scored else STATUS_FAILURE, end_time_secs=now)
        add(0, _hparams_summary("_hparams_/session_end_info", HParamsPluginData(session_end_info=end)))
        writer.flush()
    finally:
        writer.close()


def _hparams_summary(name: str, data: Any) -> Any:
    """What ``tensorboard.plugins.hparams.summary`` makes; that module wants TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    return Summary(value=[Summary.Value(tag=name, metadata=SummaryMetadata(plugin_data=plugin))])


def tag(name: str) -> str:
    """``loss.ce`` becomes ``loss/ce``: TensorBoard groups by the part before the slash."""
    return name.replace(".", "/") if "." in name else f"dev/{name}" if name == "score" else name


def hparams(record: Record) -> dict[str, float | bool | str]:
    """Plain scalars as the HParams page shows them; branches that were not taken are left out."""
    result: dict[str, float | bool | str] = {"study": record.study, "method": record.method, "features": "+".join(record.features)}
    for name, value in record.params.items():
        if value is None:
            continue
        result[name] = value if isinstance(value, bool | str) else float(value) if isinstance(value, int | float) else canonical_json(value)
    return result


def confusion_image(matrix: np.ndarray, classes: Sequence[str], *, title: str = "") -> tuple[bytes, tuple[int, int]]:
    """PNG of a confusion matrix and its (height, width): rows are true classes, shade is the share of the row, numbers are counts."""
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    cell = 56
    left = 40 + max(int(font.getlength(name)) for name in classes)
    top = 74
    names = [name if font.getlength(name) <= cell - 6 else _shortened(name, font, cell - 6) for name in classes]
    width = max(left + cell * len(classes) + 16, int(small.getlength(title)) + 24)
    height = top + cell * len(classes) + 16
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((12, 8), title, fill=_INK, font=small)
    draw.text((left, 28), "predicted", fill=_INK, font=small)
    draw.text((12, top - 22), "true", fill=_INK, font=small)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for i, name in enumerate(classes):
        middle = top + cell * i + cell // 2
        draw.text((left - 10, middle), name, fill=_INK, font=font, anchor="rm")
        draw.text((left + cell * i + cell // 2, top - 14), names[i], fill=_INK, font=font, anchor="mm")
        for j in range(len(classes)):
            share = float(shares[i, j])
            shade = tuple(round(paper + (hue - paper) * share) for paper, hue in zip(_PAPER, _HUE, strict=True))
            box = (left + cell * j, top + cell * i, left + cell * (j + 1) - 2, top + cell * (i + 1) - 2)
            draw.rectangle(box, fill=shade, outline=(218, 220, 224))
            ink = _PAPER if share > 0.55 else _INK
            centre = (left + cell * j + cell // 2 - 1, middle - 1)
            draw.text((centre[0], centre[1] - 9), f"{100 * share:.0f} %", fill=ink, font=font, anchor="mm")
            draw.text((centre[0], centre[1] + 11), str(int(matrix[i, j])), fill=ink, font=small, anchor="mm")
    buffer = io.BytesIO()
    # a palette: a third of the bytes and a tenth of the time of full colour; thousands of these are written while trials want the cores
    image.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG")
    return buffer.getvalue(), (height, width)


def _shortened(name: str, font: Any, room: int) -> str:
    while len(name) > 1 and font.getlength(name + ".") > room:
        name = name[:-1]
    return name + "."
