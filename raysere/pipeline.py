"""The stages of a run in order: manifest, features, search, ensemble, evaluation, report. What is done is skipped."""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from raysere.cluster import start_ray, stop_ray
from raysere.errors import ConfigError, MissingFileError
from raysere.experiment import Experiment, load_experiment, storage
from raysere.features.content import MISSING
from raysere.files import atomic_write, explain_write_errors, open_lock, read_json
from raysere.preparation import REJECTED, Prepared, prepare, run_settings, write_rejected, write_run
from raysere.progress import Progress
from raysere.search.hashes import FileCheck

if TYPE_CHECKING:
    from raysere.corpora.manifest import Manifest
    from raysere.features.extract import Extraction
    from raysere.features.spec import FeatureSpec

_LOCK_TRIES = 3


@dataclass
class Outcome:
    """What a command did: the run folder, what was rejected, and the evaluation if it got that far."""

    run: Path
    stage: str
    rejected: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    report: Path | None = None
    trials: int = 0
    notes: list[str] = field(default_factory=list)


def run(experiment: str | os.PathLike[str], *, overrides: tuple[str, ...] = (), quiet: bool = False) -> Outcome:
    """Run an experiment file to its report. The Python form of ``raysere run``."""
    with Progress(quiet=quiet) as progress:
        return run_experiment(load_experiment(experiment, overrides), progress=progress)


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Hold the run: a second driver on one run folder is refused. The lock goes with its process, however that ends."""
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = open_lock(folder / ".driver.lock")
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.1)  # `raysere status` may be looking
    else:
        handle.close()
        raise ConfigError(
            "Another raysere works on this run already",
            where=folder,
            remedy=f"Wait for it; `raysere status {folder}` says how far it is.",
        )
    try:
        _sweep(folder)
        yield
    finally:
        _sweep(folder)  # workers of a killed start may have outlived the first
        handle.close()


def is_held(folder: Path) -> bool:
    """Whether a living process holds the run."""
    try:
        with open_lock(folder / ".driver.lock", make=False) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def _sweep(folder: Path) -> None:
    """Remove what a killed start left half written. Only for the one driver of a run folder."""
    for pattern in (".*.tmp", "search/*/.*.tmp", "search/*/*/.*.tmp", "ensemble/.*.tmp"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


# --- running ---------------------------------------------------------------------------------------------------------


def run_experiment(
    experiment: Experiment, *, until: str = "report", progress: Progress | None = None, retry_errors: bool = False
) -> Outcome:
    """Run the stages of an experiment up to ``until`` (extract, tune, evaluate or report).

    Raises RaysereError for a fault of the experiment, the data or the machine; every stage resumes where it was.
    """
    progress = progress or Progress(quiet=True)
    with own_ray():
        if until != "extract" and not (experiment.run_folder / "experiment.yaml").is_file():
            _import_ahead()
            start_ray()  # a new run has trials to run: workers get ready while the data is read and checked
        return _run_stages(experiment, until, progress, retry_errors)


def _run_stages(experiment: Experiment, until: str, progress: Progress, retry_errors: bool) -> Outcome:
    prepared = prepare(experiment)
    for note in prepared.manifest.notes:
        progress.say(f"Note: {note}")
    if prepared.dropped:
        progress.say("Left out by the class map: " + ", ".join(f"{count} x {label}" for label, count in sorted(prepared.dropped.items())))
    with only_driver(experiment.run_folder):
        folder = write_run(prepared)
        progress.keep_in(folder)
        outcome = Outcome(folder, until, notes=list(prepared.manifest.notes))
        rejected = _extract(prepared, progress)
        write_rejected(folder, rejected)
        outcome.rejected = rejected.filter(~pl.col("stage").is_in(list(MISSING.values()))).to_dicts()  # a modality may be missing
        if until == "extract":
            return outcome
        check = FileCheck()
        outcome.trials = _search(prepared, progress, retry_errors, check)
        if until == "tune":
            return outcome
        outcome.evaluation = _evaluate(folder, progress, check)
        if until == "report":
            from raysere.report.page import write_report

            outcome.report = write_report(folder, check)
            progress.say(f"report: {outcome.report}")
    return outcome


def _import_ahead() -> None:
    """Import what the checks need while this thread waits for Ray: torch and the methods take longer than all of the reading."""

    def load() -> None:
        with suppress(Exception):  # where it is needed it is imported again, and fails there
            importlib.import_module("raysere.planning")
            importlib.import_module("raysere.training.data")
            importlib.import_module("raysere.methods.pooled")

    threading.Thread(target=load, name="raysere-imports", daemon=True).start()


@contextmanager
def own_ray() -> Iterator[None]:
    """End a Ray that a stage starts on this machine; leave one alone that was there before."""
    before = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    try:
        yield
    finally:
        if not before:
            stop_ray()


def extract_feature(experiment: Experiment, spec: FeatureSpec, manifest: Manifest, progress: Progress | None) -> Extraction:
    """Cache one feature of all utterances of a manifest, as the experiment says; Ray must be there (see :func:`own_ray`)."""
    from raysere.features.extract import extract

    actors, threshold = experiment.extraction.actors, experiment.extraction.fail_threshold
    return extract(manifest, spec, experiment.store_folder, actors=actors, fail_threshold=threshold, progress=progress)


def _extract(prepared: Prepared, progress: Progress) -> pl.DataFrame:
    rejected = [prepared.rejected.select(list(REJECTED))]
    for name, (spec, manifest) in prepared.heard().items():
        done = extract_feature(prepared.experiment, spec, manifest, progress)
        if done.quarantined.height:
            places = manifest.table.select("utterance", relative="path")
            rejected.append(
                done.quarantined.join(places, on="utterance", how="left", maintain_order="left").select(
                    path=pl.coalesce("relative", "path"),
                    utterance="utterance",
                    reason=pl.lit(f"{name}: ") + pl.col("reason"),
                    stage="stage",
                )
            )
    return pl.concat(rejected)


def _search(prepared: Prepared, progress: Progress, retry_errors: bool, check: FileCheck) -> int:
    from raysere.search.ledger import Ledger
    from raysere.search.tuner import complete_search, run_search

    experiment, ledger = prepared.experiment, Ledger(prepared.experiment.run_folder)
    wanted = {study.trial_id(outer, number) for study in prepared.studies for outer in study.lanes for number in range(study.trials)}
    check.set_aside(ledger)
    if missing := wanted - {record.trial for record in check.trials(ledger) if not (retry_errors and record.status == "error")}:
        start_ray()
        progress.say(f"search: {len(missing)} of {len(wanted)} trials are to run")
        run_search(
            experiment.run_folder,
            prepared.studies,
            resources={"cpu": experiment.trial.cpu, "gpu": experiment.trial.gpu},
            max_concurrent=experiment.trial.concurrent,
            progress=progress,
            retry_errors=retry_errors,
            check=check,
        )
    else:
        complete_search(experiment.run_folder, prepared.studies)
    return len(ledger.ids())


def _evaluate(folder: Path, progress: Progress, check: FileCheck) -> dict[str, Any]:
    """Fit the ensemble, save it, score it; skipped where the trials are those of the evaluation that is there."""
    from raysere.ensemble.evaluation import evaluate, evaluation_is_current

    if evaluation_is_current(folder, check):
        return read_json(folder / "evaluation.json")
    progress.say("ensemble: calibrating and choosing members", stage="ensemble")
    return evaluate(folder, check=check)


# --- verbs on runs ---------------------------------------------------------------------------------------------------


def open_run(run: str | os.PathLike[str]) -> Path:
    """The folder of a run, given as a folder or as a name under ``runs``, here or in RAYSERE_STORAGE.

    Raises MissingFileError with the runs there are.
    """
    given = Path(run).expanduser()
    runs = storage() / "runs"
    for folder in (given, runs / given):
        if (folder / "experiment.yaml").is_file() and (folder / "manifest.parquet").is_file():
            run_settings(folder / "experiment.yaml")
            return folder
    there = sorted(str(path.parent) for path in runs.glob("*/experiment.yaml")) if runs.is_dir() else []
    raise MissingFileError(f"There is no run {str(run)!r}", choices=there or None, remedy="A run is a folder that `raysere run` wrote.")


def evaluate_run(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Fit and score the ensemble of a run again; writes ensemble/ and evaluation.json and returns the evaluation."""
    from raysere.ensemble.evaluation import evaluate

    folder = open_run(run)
    with only_driver(folder):
        return evaluate(folder)


def fuse_runs(runs: list[Path], out: Path, *, family: str | None = None) -> dict[str, Any]:
    """One ensemble of the finished trials of several runs, with its evaluation, in ``out``."""
    from raysere.ensemble.evaluation import evaluate_runs

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("This is no empty folder", where=out, remedy="Name a new one with --out.")
    return evaluate_runs([open_run(run) for run in runs], out, family=family)


def predict_files(
    folder: Path, files: list[str], texts: list[str], speaker: str | None = None, corpus: str | None = None
) -> list[dict[str, Any]]:
    """Rows of predictions, one a file (or one a text where there are no files); a file that cannot be used has ``error``."""
    from raysere.ensemble.predict import Ensemble

    if not files and not texts:
        raise ConfigError("Nothing to predict", remedy="Name audio files, or give --text.")
    if files and texts and len(texts) != len(files):
        raise ConfigError(
            f"{len(texts)} texts for {len(files)} files", remedy="Give --text once for each file, in their order ('' for none)."
        )
    count = len(files) or len(texts)
    table = Ensemble.load(folder).predict(
        files or None,
        texts=texts or None,
        speakers=[speaker] * count if speaker else None,
        corpora=[corpus] * count if corpus else None,
    )
    return table.to_dicts()


def write_demo(folder: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """Synthesise the demo corpus into FOLDER/corpus and write FOLDER/experiment.yaml; returns the experiment's path."""
    from importlib.resources import files

    from raysere.corpora.demo import make_demo

    make_demo(folder / "corpus", seed=seed, progress=progress)
    packaged = Path(str(files("raysere"))) / "experiments" / "demo.yaml"
    source = packaged if packaged.is_file() else Path(__file__).resolve().parent.parent / "experiments" / "demo.yaml"
    with atomic_write(folder / "experiment.yaml") as temporary:
        temporary.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return folder / "experiment.yaml"
