"""TensorBoard view of a whole search: HParams columns, charts side by side, progress.

``search/`` itself (TensorBoard's run ``.``) holds the HParams experiment and the layout of Custom
Scalars, written once a start, and how many trials a minute come to an end; ``search/STUDY`` (the
run of that name) the best score of the study so far.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raysere.base.files import atomic_write, canonical_json, explain_write_errors
from raysere.search.ledger import Record
from raysere.search.study import StudySpec
from raysere.search.watch.event_file import EventFile, hparams_value
from raysere.training.metrics import CATEGORICAL
from raysere.training.task import Task

OVERVIEW = "events.out.tfevents.0.overview"
_RECENT = 20  # trials over which their number a minute is taken


def write_overview(run_dir: str | os.PathLike[str], studies: Sequence[StudySpec]) -> Path:
    """Write ``search/events.out.tfevents.0.overview`` anew for these studies; whole or not at all."""
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    path = Path(run_dir) / "search" / OVERVIEW
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, EventFile(temporary) as file:
            file.add(0, [hparams_value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment(studies)))])
            file.add(0, [_layout_value(studies)])
    return path


def experiment(studies: Sequence[StudySpec]) -> Any:
    """The ``Experiment`` message of the HParams page: every parameter of every space with its
    domain, and the metrics.

    The page hides a trial whose value is not in the domain of a column, so a domain is the union
    over the studies, defaults included.
    """
    from tensorboard.plugins.hparams.api_pb2 import DatasetType, Experiment, MetricInfo, MetricName

    values: dict[str, list[Any]] = {
        "study": [study.name for study in studies],
        "method": [study.method for study in studies],
        "features": ["+".join(feature.name for feature in study.features) for study in studies],
    }
    intervals: set[str] = set()
    for study in studies:
        space = study.parsed_space()
        for name, dimension in space.dims.items():
            known = values.setdefault(name, [])
            if dimension.kind in ("int", "float"):
                intervals.add(name)
                known += [dimension.low, dimension.high]
            else:
                known += dimension.choices
            if name in space.defaults:
                known.append(space.defaults[name])
    metrics = [
        MetricInfo(name=MetricName(tag=tag), display_name=shown, description=about, dataset_type=kind)
        for tag, shown, about, kind in [
            *((tag, title, _BEST, DatasetType.DATASET_VALIDATION) for tag, title in _metrics(studies)),
            ("resources/seconds", "seconds", "training time of the trial", DatasetType.DATASET_UNKNOWN),
            ("resources/resident_memory_mb", "MB of the worker", "most memory while the trial ran", DatasetType.DATASET_UNKNOWN),
        ]
    ]
    infos = [info for name, known in values.items() if (info := _info(name, known, interval=name in intervals)) is not None]
    return Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=time.time())


_BEST = "development rows of the best epoch"


def _metrics(studies: Sequence[StudySpec]) -> list[tuple[str, str]]:
    """Tag and title: the score, by the metric that it is, then the other metrics by the names that
    records have.
    """

    def of(task: Task) -> list[str]:
        attributes = ["ccc", *(f"ccc.{name}" for name in task.attributes)] if task.dimensional else []
        return [*(CATEGORICAL if task.categorical else []), *attributes]

    scores = {study.task.metric for study in studies}
    others = dict.fromkeys(name for study in studies for name in of(study.task) if scores != {name})
    return [("best/score", f"best {' or '.join(sorted(scores))}"), *((f"best/{name.replace('.', '/')}", f"best {name}") for name in others)]


def _info(name: str, values: Sequence[Any], *, interval: bool) -> Any:
    """``HParamInfo`` of a parameter: an interval of numbers, or the values one by one; None where
    no value can be shown.
    """
    from tensorboard.plugins.hparams.api_pb2 import DATA_TYPE_BOOL, DATA_TYPE_FLOAT64, DATA_TYPE_STRING, HParamInfo

    plain = [shown(value) for value in values if value is not None]
    numbers = [value for value in plain if isinstance(value, float)]
    distinct = list(dict.fromkeys(canonical_json(value) for value in plain))
    if not plain:
        return None
    info = HParamInfo(name=name, differs=len(distinct) > 1)
    if len(numbers) == len(plain):
        info.type = DATA_TYPE_FLOAT64
        if interval:
            info.domain_interval.min_value, info.domain_interval.max_value = min(numbers), max(numbers)
        else:
            info.domain_discrete.extend(sorted(set(numbers)))
    elif all(isinstance(value, bool) for value in plain):
        info.type = DATA_TYPE_BOOL
        info.domain_discrete.extend(sorted({bool(value) for value in plain}))
    else:
        info.type = DATA_TYPE_STRING
        info.domain_discrete.extend(dict.fromkeys(value if isinstance(value, str) else canonical_json(value) for value in plain))
    return info


def shown(value: Any) -> float | bool | str:
    """A parameter's value as the HParams page takes it: numbers as floats, what is no plain value
    as its JSON text.
    """
    return value if isinstance(value, bool | str) else float(value) if isinstance(value, int | float) else canonical_json(value)


def _layout_value(studies: Sequence[StudySpec]) -> Any:
    """Custom Scalars: the score, the losses, the weights of the layers, the search; tags are
    regular expressions.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    streams = sorted({feature.name for study in studies for feature in study.features})
    charts = {
        "Development": {"score by epoch": ["dev/score"], "loss by epoch": ["dev_loss"]},
        "Training": {"loss by epoch": ["loss"], "terms of the loss": ["train/.*"]},
        "Weights of layers (by layer, best epoch)": {name: [f"layer_weights/{name}"] for name in streams},
        "The search": {"best score by finished trial": ["search/best_score"], "trials a minute": ["search/trials_per_minute"]},
    }
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=[layout_pb2.Chart(title=name, multiline={"tag": tags}) for name, tags in parts.items()])
            for title, parts in charts.items()
        ]
    )
    text = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()])
    return Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, metadata=metadata.create_summary_metadata(), tensor=text)


class SearchEvents:
    """Appends how the search goes on after ``records``; ``stamp`` is of this start, since a resumed
    search adds files of its own.
    """

    def __init__(self, run_dir: str | os.PathLike[str], stamp: str, records: Iterable[Record] = ()) -> None:
        self.folder, self.stamp = Path(run_dir) / "search", stamp
        self._files: dict[str, EventFile] = {}
        self._ends: deque[float] = deque(maxlen=_RECENT)
        self._counts: Counter[str] = Counter()
        self._best: dict[str, float] = {}
        for record in records:
            self._count(record)

    def _count(self, record: Record) -> None:
        self._counts[record.study] += 1
        if record.scored and record.score is not None:
            self._best[record.study] = max(record.score, self._best.get(record.study, record.score))

    def finished(self, record: Record, ended: float) -> None:
        """A trial ended at ``ended`` (seconds)."""
        self._count(record)
        self._ends.append(ended)
        if record.study in self._best:
            self._file(record.study).scalars(self._counts[record.study], {"search/best_score": self._best[record.study]})
        taken = self._ends[-1] - self._ends[0]
        if taken > 0:
            self._file("").scalars(self._counts.total(), {"search/trials_per_minute": 60 * (len(self._ends) - 1) / taken})
        for file in self._files.values():
            file.flush()

    def _file(self, study: str) -> EventFile:
        if study not in self._files:
            self._files[study] = EventFile(self.folder / study / f"events.out.tfevents.{time.time():.0f}.{self.stamp}.search")
        return self._files[study]

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
