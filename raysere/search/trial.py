"""One trial in a worker process: build, train to the next rung, stage the outcome. No Ray here.

Everything is built from the run directory and ``study.json``. What is expensive (torch, manifest,
labels, feature views) stays in the process for the next trial: see :class:`TrialCache`.
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import time
import traceback
from pathlib import Path
from typing import Any

from raysere.base.errors import ConfigError, InfeasibleTrial, RaysereError, machine_fault, named_file, out_of_memory
from raysere.base.files import atomic_folder, digest
from raysere.base.memory import forget_peak, peak_bytes
from raysere.search.hashes import hash_folder
from raysere.search.ledger import TRIAL_FORMAT, Ledger, empty_rows, json_head, write_head
from raysere.search.study import StudyFeature, StudySpec, read_study
from raysere.search.watch.live import LiveCurves

OUTCOME = "outcome.json"


def _on_this_node(store: str, key: str) -> str:
    """The store folder to map: the store itself, or with ``RAYSERE_LOCAL_STORE`` the copy that the
    node's store actor keeps there.
    """
    local = os.environ.get("RAYSERE_LOCAL_STORE")
    if not local:
        return store
    from raysere.features.store.remote import locate

    return locate(store, key, local)


class TrialCache:
    """What a worker process keeps between trials: studies, labels by class map and task, feature
    views, the folds of a lane.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Any] = {}

    def _keep(self, key: tuple[Any, ...], make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def study(self, run_dir: Path, name: str, stamp: str) -> StudySpec:
        """The study; ``stamp`` changes with the driver, so that a longer-lived process never uses
        an older ``study.json``.
        """
        return self._keep(("study", run_dir, name, stamp), lambda: read_study(run_dir, name))

    def data(self, run_dir: Path, study: StudySpec, outer: int) -> Any:
        """TrialData of one lane: labels, folds and feature views, joined by utterance id."""
        import polars as pl

        from raysere.corpora.labels import class_map
        from raysere.corpora.manifest import Manifest
        from raysere.features.store.store import FeatureStore
        from raysere.training.data import add_copies, build_labels, trial_data

        manifest = self._keep(("manifest", run_dir), lambda: Manifest.read(run_dir / "manifest.parquet"))
        rules = json.dumps([study.class_map, study.task.model_dump(mode="json")], sort_keys=True)
        labels = self._keep(
            ("labels", run_dir, rules),
            lambda: build_labels(manifest, None if study.class_map is None else class_map(study.class_map), study.task)[0],
        )
        splits = self._keep(("splits", run_dir), lambda: pl.read_parquet(run_dir / "splits.parquet"))
        used = self._keep(("used", run_dir), lambda: manifest.used_by(splits))
        store = str(run_dir / study.store)
        taught = self._keep(("taught", run_dir), lambda: manifest.used_by(splits.filter(pl.col("role") == "pool")))

        def view(key: str, table: Any) -> Any:
            return self._keep(("view", run_dir, store, key, len(table)), lambda: FeatureStore(_on_this_node(store, key)).open(key, table))

        def whole(feature: StudyFeature) -> Any:
            clips = view(feature.spec_key, used)
            copies = feature.copies.items()
            return clips.joined({name: view(key, taught) for name, key in copies}) if copies else clips

        views = {
            feature.name: self._keep(
                ("whole", run_dir, store, feature.spec_key, *feature.copies.values()), lambda feature=feature: whole(feature)
            )
            for feature in study.features
        }
        altered = sorted({name for feature in study.features for name in feature.copies})

        def data() -> Any:
            here = trial_data(
                labels,
                splits,
                outer,
                views,
                study.task,
                by_speaker=study.by == "speaker",
                linked_speakers=manifest.linked_speakers,
                transductive=study.transductive,
            )
            return add_copies(here, altered) if altered else here

        streams = tuple((feature.name, feature.spec_key, *feature.copies.values()) for feature in study.features)
        return self._keep(("data", run_dir, rules, outer, study.transductive, streams), data)

    def places(self, labels: Any) -> dict[str, int]:
        """Row of the labels by utterance."""
        return self._keep(("places", id(labels)), lambda: {utterance: row for row, utterance in enumerate(labels.utterances)})


WORKSHOP = TrialCache()  # one a process: the cache of what is read, never of what is decided


class TrialRun:
    """A trial as a worker sees it.

    Args:
        run_dir: absolute path, readable and writable by every worker.
        job: ``study``, ``outer``, ``number``, ``trial``, ``params``, ``config``, ``attempt``,
            ``stamp``, ``cpu``, ``gpu``.
    """

    def __init__(self, run_dir: Path, job: dict[str, Any], workshop: TrialCache = WORKSHOP) -> None:
        self.run_dir, self.job, self.workshop = Path(run_dir), job, workshop
        self.ledger = Ledger(run_dir)
        self.trainer: Any = None
        self.study: StudySpec | None = None
        self.resolved: dict[str, Any] = {}
        self.rungs: list[int] = []
        self.seconds = 0.0
        self.epochs = 0
        self._staged: Path | None = None
        self._curves = LiveCurves(self.run_dir / "search" / job["study"] / job["trial"])

    def advance(self) -> dict[str, Any]:
        """Train to the next rung or to the end, stage what there is, and say how it stands; it
        never raises for a fault of the trial.

        Returns ``score`` (best so far; the penalty where there is none), ``epoch`` (trained so
        far), ``status`` (``running``, ``done``, ``infeasible``, ``error`` or ``fatal``: a fault of
        the machine or of the data, which ends the search), ``staged`` (folder) and ``error``.
        """
        start = time.perf_counter()
        try:
            if self.trainer is None:
                self._begin()
            status, error = self._train(), None
        except _Fatal as fault:
            return self._fatal(fault.cause)
        except BaseException as fault:
            if isinstance(fault, KeyboardInterrupt | SystemExit):
                raise
            if (verdict := _classify(fault)) is None:
                return self._fatal(fault)
            status, error = verdict
        self.seconds += time.perf_counter() - start
        try:
            staged = self._stage(status, error)
        except Exception as fault:
            if (verdict := _classify(fault)) is None:
                return self._fatal(fault)
            status, error = verdict
            self.trainer = None  # what it cannot write once, it cannot write twice
            try:
                staged = self._stage(status, error)
            except Exception as again:  # not even that it failed can be written: no fault of the trial
                return self._fatal(again)
        if status != "running":
            self._curves.close()
            self._free(status)
        return {"score": self._score(), "epoch": self.epochs, "status": status, "staged": str(staged), "error": error}

    def _begin(self) -> None:
        """Read the lane's data (a fault there is nobody's configuration, so it ends the search) and
        build the trainer.
        """
        import torch
        from pydantic import ValidationError

        from raysere.methods import METHODS
        from raysere.training.loop import Trainer
        from raysere.training.method import Shapes

        job = self.job
        try:
            self.study = study = self.workshop.study(self.run_dir, job["study"], job["stamp"])
            torch.set_num_threads(study.threads or max(1, int(job["cpu"])))
            forget_peak()
            if study.device.startswith("cuda") and torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats(study.device)
            if study.device.startswith("cuda") and 0 < job["gpu"] < 1:
                torch.cuda.set_per_process_memory_fraction(float(job["gpu"]))
            method = METHODS.get(study.method)()
            data = self.workshop.data(self.run_dir, study, job["outer"])
        except Exception as fault:
            raise _Fatal(fault) from fault
        try:
            params = method.Params.model_validate(job["params"])
        except ValidationError as error:
            raise InfeasibleTrial("The parameters exclude each other: " + "; ".join(fault["msg"] for fault in error.errors())) from error
        if study.max_epochs is not None and params.epochs > study.max_epochs:
            params = params.model_copy(update={"epochs": study.max_epochs})
        self.resolved = params.model_dump(mode="json")
        method.check(params, Shapes(data.task, {name: view.shape() for name, view in data.features.items()}))
        self.rungs = study.rungs(params.epochs)
        self.trainer = Trainer(
            method,
            params,
            data,
            seed=study.trial_seed(job["outer"], job["config"]),
            device=study.device,
            threads=study.threads or max(1, int(job["cpu"])),
            precision=study.precision,
        )

    def _train(self) -> str:
        goal = next((rung for rung in self.rungs if rung > self.epochs), None)
        while not self.trainer.finished and self.epochs != goal:
            self.trainer.epoch()
            self.epochs += 1
            self._curves.show(self.trainer.rows)
        if not self.trainer.finished:
            return "running"
        if self._best() is None:
            raise InfeasibleTrial("The training diverged: no epoch has a finite development score")
        return "done"

    def _best(self) -> dict[str, Any] | None:
        best = getattr(self.trainer, "best", None) if self.trainer is not None else None
        return best if best and best.get("score") is not None and math.isfinite(best["score"]) else None

    def _score(self) -> float:
        best = self._best()
        if self.study is None:
            return 0.0
        return self.study.penalty if best is None else float(best["score"])

    def _head(self) -> dict[str, Any]:
        assert self.study is not None  # nothing is staged before the study is read
        return {**head(self.study, self.job), "resolved": self.resolved}

    def _stage(self, status: str, error: str | None) -> Path:
        """Write the whole folder under a hidden name of this attempt and epoch, then drop the older
        one.
        """
        staged = self.ledger.staged_path(self.job["trial"], self.job["attempt"], self.epochs)
        shutil.rmtree(staged, ignore_errors=True)
        failed = status in ("infeasible", "error")
        best = None if failed else self._best()
        head = self._head()
        with atomic_folder(staged, flush=False) as folder:  # the driver flushes it, while this process trains the next trial
            write_head(folder, head)
            outcome: dict[str, Any] = {
                "head": json_head({"format": TRIAL_FORMAT, **head}),
                "score": None if best is None else float(best["score"]),
                "epoch": None if best is None else int(best["epoch"]),
                "epochs": self.epochs,
                "seconds": round(self.seconds, 3),
                "memory": self._memory(),
                "error": error,
                "metrics": {},
                "describe": {},
                "rows": [] if self.trainer is None else self.trainer.rows,
                "confusion": None,
            }
            _rows_frame(outcome["rows"]).write_parquet(folder / "metrics.parquet")
            if best is not None:
                from safetensors.torch import save_file

                outcome["metrics"] = {key: float(value) for key, value in best.get("metrics", {}).items()}
                outcome["describe"] = plain(self.trainer.describe())
                predictions = self.trainer.predictions()
                predictions.write_parquet(folder / "predictions.parquet")
                outcome["confusion"] = self._confusion(predictions)
                save_file(
                    {name: tensor.detach().cpu().contiguous() for name, tensor in self.trainer.state().items()},
                    str(folder / "model.safetensors"),
                    # one entry: safetensors writes several in an order that changes from process to
                    # process
                    metadata={"raysere": json.dumps({"format": "raysere.trial/1", "trial": self.job["trial"]})},
                )
            outcome["files"] = hash_folder(folder)
            (folder / OUTCOME).write_text(json.dumps(plain(outcome), allow_nan=False), encoding="utf-8")
        if self._staged is not None and self._staged != staged:
            shutil.rmtree(self._staged, ignore_errors=True)
        self._staged = staged
        return staged

    def _confusion(self, predictions: Any) -> Any:
        """Counts (C, C) over the development rows, true class by row; None for attributes."""
        import polars as pl

        from raysere.training import metrics

        data = self.trainer.data
        if not data.task.categorical:
            return None
        places = self.workshop.places(data.labels)
        dev = predictions.filter(pl.col("split") == "dev")
        truth = data.labels.label[[places[utterance] for utterance in dev["utterance"].to_list()]]
        predicted = dev.select([f"p.{name}" for name in data.task.classes]).to_numpy().argmax(1)
        return metrics.confusion(truth, predicted, len(data.task.classes))

    def _fatal(self, fault: BaseException) -> dict[str, Any]:
        """What stops the whole search travels as plain values: any process can build the error
        again.
        """
        self._free("fatal")
        fault = machine_fault(fault, named_file(fault) or self.run_dir) or fault
        if isinstance(fault, RaysereError):
            parts: dict[str, Any] = {
                "kind": type(fault).__name__,
                "what": fault.what,
                "where": fault.where,
                "remedy": fault.remedy,
                "choices": fault.choices,
            }
        else:
            parts = {
                "kind": "RaysereError",
                "what": f"A worker could not load the study {self.job['study']!r}: {type(fault).__name__}: {fault}",
                "where": "".join(traceback.format_exception(fault))[-2000:],
                "remedy": None,
                "choices": None,
            }
        return {"score": 0.0, "epoch": self.epochs, "status": "fatal", "staged": "", "error": json.dumps(parts)}

    def _memory(self) -> dict[str, int]:
        """Bytes at the peak since the trial began:

        ``resident`` of this process, mapped features included, and ``gpu`` of its tensors.
        """
        peaks = {"resident": peak_bytes()}
        if self.study is not None and self.study.device.startswith("cuda"):
            import torch

            peaks["gpu"] = torch.cuda.max_memory_allocated(self.study.device)
        return {name: count for name, count in peaks.items() if count is not None}

    def _free(self, status: str) -> None:
        if status in ("infeasible", "fatal", "error"):
            self.trainer = None
            gc.collect()
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class _Fatal(Exception):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def head(study: StudySpec, job: dict[str, Any]) -> dict[str, Any]:
    """``params.yaml`` of a trial, from what the driver knows."""
    return {
        "trial": job["trial"],
        "study": study.name,
        "space": study.space["name"],
        "method": study.method,
        "features": [feature.name for feature in study.features],
        "modality": study.modality,
        "outer": job["outer"],
        "number": job["number"],
        "seed": study.trial_seed(job["outer"], job["config"]),
        "config": job["config"],
        "params": job["params"],
    }


def _classify(fault: BaseException) -> tuple[str, str] | None:
    """What is recorded of a trial that failed: ``infeasible`` for what this configuration cannot do
    here, ``error`` (with the traceback).

    None for a fault of the machine, which is not recorded: disk, permission, open files, and
    memory that is lacking while a file is read or written. Memory that is lacking while a
    configuration trains is too little for this configuration.
    """
    if isinstance(fault, ConfigError | InfeasibleTrial):
        return "infeasible", fault.message
    if out_of_memory(fault):
        return "infeasible", f"Out of memory: {(str(fault).splitlines() or [type(fault).__name__])[0]}"
    if machine_fault(fault) is not None:
        return None
    return "error", "".join(traceback.format_exception(fault))


def _rows_frame(rows: list[dict[str, Any]]) -> Any:
    """Epoch rows as a frame:

    ``epoch`` int64, other columns float64, or lists of it; a column that some epochs lack has nulls
    there.
    """
    import polars as pl

    if not rows:
        return empty_rows()
    columns = dict.fromkeys(key for row in rows for key in row)
    return pl.DataFrame([_column(key, [row.get(key) for row in rows]) for key in columns])


def _column(name: str, values: list[Any]) -> Any:
    import polars as pl

    if name == "epoch":
        return pl.Series(name, [int(value) for value in values], dtype=pl.Int64)
    if any(isinstance(value, list) for value in values):
        return pl.Series(name, values, dtype=pl.List(pl.Float64))
    return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64)


def plain(value: Any) -> Any:
    """Numbers, texts, lists and mappings that JSON can hold: arrays become lists, what is not
    finite becomes null.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def attempt_name(*parts: Any) -> str:
    """Short name of one attempt at a trial; the parts hold something that no other driver process
    has.
    """
    return digest([str(part) for part in parts], 8)
