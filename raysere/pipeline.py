"""The stages of a run in order: manifest, features, search, ensemble, evaluation, report. What is done is skipped.

Everything that can be wrong with an experiment is found by :func:`prepare` before a file is written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysere.cluster import start_ray, stop_ray
from raysere.corpora.adapters import load_corpus
from raysere.corpora.labels import ClassMap
from raysere.corpora.manifest import Manifest, concat
from raysere.corpora.splits import describe_splits, make_splits, verify_splits
from raysere.doctor import versions
from raysere.errors import ConfigError, MissingFileError
from raysere.experiment import Experiment, load_experiment
from raysere.features.spec import FeatureSpec, resolve
from raysere.files import atomic_write, explain_write_errors, read_json, read_yaml, write_yaml
from raysere.progress import Progress
from raysere.training.task import Task

RUN_FORMAT = "raysere.run/1"
STAGES = ("extract", "tune", "evaluate", "report")
NO_TEXT = "no transcript"
REJECTED = {"path": pl.String, "utterance": pl.String, "reason": pl.String, "stage": pl.String}


@dataclass
class Prepared:
    """A checked experiment with its data in memory; nothing is written yet."""

    experiment: Experiment
    manifest: Manifest
    rejected: pl.DataFrame
    class_map: ClassMap | None
    task: Task
    dropped: dict[str, int]
    splits: pl.DataFrame
    specs: dict[str, FeatureSpec]
    studies: list[Any]


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


# --- preparing -------------------------------------------------------------------------------------------------------


def load_manifest(experiment: Experiment) -> tuple[Manifest, pl.DataFrame]:
    """The manifest of an experiment: that of its run where there is one, else read from the corpora."""
    folder = experiment.run_folder
    if (folder / "manifest.parquet").is_file() and (folder / "experiment.yaml").is_file():
        rejected = (
            pl.read_parquet(folder / "quarantine.parquet") if (folder / "quarantine.parquet").is_file() else pl.DataFrame(schema=REJECTED)
        )
        manifest = Manifest.read(folder / "manifest.parquet")
        moved = {entry.options.get("name") or entry.corpus: Path(entry.path) for entry in experiment.corpora}
        roots = {name: root if Path(root).is_dir() else _folder(moved.get(name), root) for name, root in manifest.roots.items()}
        return replace(manifest, roots=roots), rejected.filter(pl.col("stage") == "manifest")
    loaded = [load_corpus(entry.corpus, Path(entry.path), columns=entry.columns, options=entry.options) for entry in experiment.corpora]
    return concat([one.manifest for one in loaded]), pl.concat([one.rejected.select(list(REJECTED)) for one in loaded])


def prepare(experiment: Experiment) -> Prepared:
    """Load the data and check everything: labels, splits, features, spaces. Raises a RaysereError for the first kind of fault."""
    from raysere.ensemble.priors import check_prior
    from raysere.planning import add_vote_rows, plan_studies
    from raysere.training.data import build_labels

    _check_same_run(experiment)
    specs = {name: resolve(config) for name, config in experiment.features.items()}
    manifest, rejected = load_manifest(experiment)
    scales = set(manifest.scales.values())
    if experiment.task.kind != "categorical" and len(scales) > 1 and experiment.task.scale is None:
        raise ConfigError(
            f"The corpora rate attributes on different scales: {sorted(scales)}",
            where="task.scale",
            remedy="Give task.scale, or take corpora of one scale.",
        )
    task = experiment.resolved_task(next(iter(scales), None))
    rules = experiment.class_map()
    check_prior(experiment.ensemble, task.classes)
    labels, dropped = build_labels(manifest, rules, task)
    if rules is not None and (empty := [name for code, name in enumerate(task.classes) if not (labels.label == code).any()]):
        raise ConfigError(
            f"No utterance is of the class {', '.join(empty)}",
            where="task.classes",
            remedy=f"Take another class map, or name the labels yourself; there are: {', '.join(sorted(set(table_labels(manifest))))}.",
        )
    _check_sources(manifest, task, labels, specs)
    names = [task.classes[code] if code >= 0 else None for code in labels.label.tolist()] if task.categorical else [None] * len(labels)
    kept = manifest.table.filter(pl.col("utterance").is_in(labels.utterances)).sort("utterance")
    order = pl.DataFrame({"utterance": labels.utterances, "label": pl.Series(names, dtype=pl.String)})
    table = kept.join(order, on="utterance", how="inner", validate="1:1", maintain_order="left")
    splits = make_splits(table, experiment.protocol, seed=experiment.seed, linked_speakers=manifest.linked_speakers)
    if experiment.protocol.by == "speaker" and task.categorical:
        splits = add_vote_rows(splits, table, labels.soft)
    group = {"speaker": "speaker", "dialogue": "dialogue", "sentence": "transcript"}[experiment.protocol.by]
    verify_splits(splits, dict(zip(table["utterance"], table[group], strict=True)), manifest.linked_speakers if group == "speaker" else ())
    manifest = replace(
        manifest,
        notes=[*manifest.notes, *(note for note in describe_splits(splits, table, experiment.protocol) if note not in manifest.notes)],
    )
    studies = plan_studies(experiment, task, rules, specs, splits)
    return Prepared(experiment, manifest, rejected, rules, task, dropped, splits, specs, studies)


def _folder(path: Path | None, otherwise: str) -> str:
    """Where a corpus lies now that its folder was moved."""
    if path is None or not path.exists():
        return otherwise
    return str(path if path.is_dir() else path.parent)


def _check_sources(manifest: Manifest, task: Task, labels: Any, specs: dict[str, FeatureSpec]) -> None:
    """What the corpora lack for this task and these features, before anything is computed."""
    if task.dimensional:
        rated = [] if labels.attributes is None else np.isfinite(labels.attributes).any(0)
        lacking = [name for name, there in zip(task.attributes, rated, strict=True) if not there] if len(rated) else list(task.attributes)
        if lacking:
            raise ConfigError(
                f"No utterance has a rating of {', '.join(lacking)}",
                where="task.attributes",
                remedy="Take the attributes that the corpus rates, or kind: categorical.",
            )
    for name, spec in specs.items():
        if spec.reads == "text" and manifest.table["transcript"].null_count() == len(manifest):
            raise ConfigError(
                f"The feature {name!r} reads transcripts, and the corpora have none",
                where=f"features.{name}",
                remedy="Leave this feature and its search out, or give transcripts (a table has a column `transcript`).",
            )


def table_labels(manifest: Manifest) -> list[str]:
    return manifest.table["emotion"].drop_nulls().unique().to_list()


def _check_same_run(experiment: Experiment) -> None:
    """A run folder belongs to one data set, task, protocol and seed: everything else may grow."""
    path = experiment.run_folder / "experiment.yaml"
    if path.is_file() and _settings(path).get("frozen") != experiment.frozen_part():
        raise ConfigError(
            f"The run {experiment.name!r} was made with other corpora, task, protocol or seed",
            where=experiment.run_folder,
            remedy="Give this experiment another name (--set name=...), or remove that folder.",
        )


def _settings(path: Path) -> dict[str, Any]:
    """A run's experiment.yaml. Raises ConfigError for a file that no run wrote."""
    settings = read_yaml(path)
    if not isinstance(settings, dict) or settings.get("format") != RUN_FORMAT:
        raise ConfigError("This experiment.yaml does not come from a run of this version", where=path, choices=[RUN_FORMAT])
    return settings


def write_run(prepared: Prepared) -> Path:
    """Write what defines the run: experiment.yaml, manifest.parquet, splits.parquet, quarantine.parquet."""
    experiment, folder = prepared.experiment, prepared.experiment.run_folder
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "experiment.yaml").is_file():  # written last: without it the other two may be those of another start
        prepared.manifest.write(folder / "manifest.parquet")
        with atomic_write(folder / "splits.parquet") as temporary:
            prepared.splits.write_parquet(temporary)
    elif pl.read_parquet(folder / "splits.parquet").equals(prepared.splits):
        if Manifest.read(folder / "manifest.parquet").roots != prepared.manifest.roots:  # the corpus was moved
            prepared.manifest.write(folder / "manifest.parquet")
    else:
        raise ConfigError(
            "The splits of this run are not those that this experiment makes now",
            where=folder / "splits.parquet",
            remedy="Another version of raysere made them, or the file was changed: give this experiment another name (--set name=...).",
        )
    _write_rejected(folder, prepared.rejected)
    rules = prepared.class_map
    write_yaml(
        folder / "experiment.yaml",
        {
            "format": RUN_FORMAT,
            "name": experiment.name,
            "frozen": experiment.frozen_part(),
            "corpora": [entry.model_dump(mode="json") for entry in experiment.corpora],
            "task": prepared.task.model_dump(mode="json"),
            "class_map": None if rules is None else rules.to_dict(),
            "dropped": prepared.dropped,
            "protocol": experiment.protocol.model_dump(mode="json"),
            "features": {
                name: {**config.model_dump(mode="json"), "spec_key": prepared.specs[name].key}
                for name, config in experiment.features.items()
            },
            "store": str(experiment.store_folder.resolve()),
            "search": [entry.model_dump(mode="json") for entry in experiment.search],
            "trial": experiment.trial.model_dump(mode="json"),
            "halving": experiment.halving.model_dump(mode="json") if experiment.halving else None,
            "ensemble": experiment.ensemble.model_dump(mode="json"),
            "seed": experiment.seed,
            "manifest_fingerprint": prepared.manifest.fingerprint,
            "synthetic": prepared.manifest.synthetic,
            "notes": prepared.manifest.notes,
            "versions": versions(),
            "git_commit": _git_commit(),
        },
    )
    return folder


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _write_rejected(folder: Path, rejected: pl.DataFrame) -> None:
    with atomic_write(folder / "quarantine.parquet") as temporary:
        rejected.select(list(REJECTED)).unique(maintain_order=True).write_parquet(temporary)


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Hold the run: a second driver on one run folder is refused. The lock goes with its process, however that ends."""
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".driver.lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise ConfigError(
            "Another raysere works on this run already",
            where=folder,
            remedy="Wait for it (`raysere status` says how far it is), or give this run another name.",
        ) from None
    try:
        yield
    finally:
        handle.close()


def _sweep(folder: Path) -> None:
    """Remove what a killed start left half written. Only for the one driver of a run folder."""
    for pattern in (".*.tmp", "search/*/.*.tmp", "ensemble/.*.tmp"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# --- running ---------------------------------------------------------------------------------------------------------


def run_experiment(
    experiment: Experiment, *, until: str = "report", progress: Progress | None = None, retry_errors: bool = False
) -> Outcome:
    """Run the stages of an experiment up to ``until`` (extract, tune, evaluate or report).

    Raises RaysereError for a fault of the experiment, the data or the machine; every stage resumes where it was.
    """
    progress = progress or Progress(quiet=True)
    prepared = prepare(experiment)
    for note in prepared.manifest.notes:
        progress.say(f"Note: {note}")
    if prepared.dropped:
        progress.say("Left out by the class map: " + ", ".join(f"{count} x {label}" for label, count in sorted(prepared.dropped.items())))
    with only_driver(experiment.run_folder), _own_ray():
        _sweep(experiment.run_folder)
        folder = write_run(prepared)
        outcome = Outcome(folder, until, notes=list(prepared.manifest.notes))
        rejected = _extract(prepared, progress)
        _write_rejected(folder, rejected)
        outcome.rejected = rejected.filter(pl.col("stage") != NO_TEXT).to_dicts()  # a transcript may be missing
        if until == "extract":
            return outcome
        outcome.trials = _search(prepared, progress, retry_errors)
        if until == "tune":
            return outcome
        outcome.evaluation = _evaluate(folder, progress)
        if until == "report":
            from raysere.report.page import write_report

            outcome.report = write_report(folder)
            progress.say(f"report: {outcome.report}")
    return outcome


@contextmanager
def _own_ray() -> Iterator[None]:
    """End a Ray that a stage starts on this machine; leave one alone that was there before."""
    import sys

    before = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    try:
        yield
    finally:
        if not before:
            stop_ray()


def price(experiment: Experiment, *, seconds: float = 10.0) -> dict[str, Any]:
    """What an experiment will cost: a JSON object with bytes, seconds and cached shares by feature, and trials by study."""
    from raysere.features.plan import plan

    prepared = prepare(experiment)
    manifest = prepared.manifest.with_rows(_used(prepared))
    features = {name: plan(manifest, spec, experiment.store_folder, seconds=seconds).to_json() for name, spec in prepared.specs.items()}
    lanes = prepared.splits["outer"].n_unique()
    studies = {study.name: {"trials": study.trials * lanes, "trials_of_each_fold": study.trials} for study in prepared.studies}
    return {
        "format": "raysere.plan/1",
        "utterances": len(manifest),
        "rejected": prepared.rejected.to_dicts(),
        "dropped": prepared.dropped,
        "features": features,
        "studies": studies,
    }


def _used(prepared: Prepared) -> pl.DataFrame:
    """Rows of the manifest that some split uses."""
    return prepared.manifest.table.join(prepared.splits.select("utterance").unique(), on="utterance", how="semi").sort("utterance")


def _extract(prepared: Prepared, progress: Progress) -> pl.DataFrame:
    from raysere.features.extract import extract

    rejected = [prepared.rejected.select(list(REJECTED))]
    manifest = prepared.manifest.with_rows(_used(prepared))
    for name, spec in prepared.specs.items():
        done = extract(
            manifest,
            spec,
            prepared.experiment.store_folder,
            actors=prepared.experiment.extraction.actors,
            fail_threshold=prepared.experiment.extraction.fail_threshold,
            progress=progress,
        )
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


def _search(prepared: Prepared, progress: Progress, retry_errors: bool) -> int:
    from raysere.search.ledger import Ledger
    from raysere.search.tuner import run_search

    experiment, ledger = prepared.experiment, Ledger(prepared.experiment.run_folder)
    wanted = {study.trial_id(outer, number) for study in prepared.studies for outer in study.lanes for number in range(study.trials)}
    if missing := wanted - {record.trial for record in ledger.trials() if not (retry_errors and record.status == "error")}:
        start_ray()
        progress.say(f"search: {len(missing)} of {len(wanted)} trials are to run")
        run_search(
            experiment.run_folder,
            prepared.studies,
            resources={"cpu": experiment.trial.cpu, "gpu": experiment.trial.gpu},
            max_concurrent=experiment.trial.concurrent,
            progress=progress,
            retry_errors=retry_errors,
        )
    return len(ledger.ids())


def _evaluate(folder: Path, progress: Progress) -> dict[str, Any]:
    """Fit the ensemble, save it, score it; skipped where the trials are those of the evaluation that is there."""
    from raysere.ensemble.evaluation import evaluate, evaluation_is_current

    if evaluation_is_current(folder):
        return read_json(folder / "evaluation.json")
    progress.say("ensemble: calibrating and choosing members")
    return evaluate(folder)


# --- verbs on runs ---------------------------------------------------------------------------------------------------


def open_run(run: str | os.PathLike[str]) -> Path:
    """The folder of a run, given as a folder or as a name under ``runs``. Raises MissingFileError with the runs there are."""
    given = Path(run).expanduser()
    for folder in (given, Path("runs") / given):
        if (folder / "experiment.yaml").is_file() and (folder / "manifest.parquet").is_file():
            _settings(folder / "experiment.yaml")
            return folder
    there = sorted(str(path.parent) for path in Path("runs").glob("*/experiment.yaml")) if Path("runs").is_dir() else []
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


def run_status(run: str | os.PathLike[str]) -> dict[str, Any]:
    """How far a run is, read from its files alone (so also from another shell while it runs)."""
    from raysere.search.ledger import Ledger
    from raysere.search.study import read_study

    folder = open_run(run)
    ledger = Ledger(folder)
    studies: dict[str, dict[str, Any]] = {}
    specs = [read_study(folder, path.parent.name) for path in sorted(folder.glob("search/*/study.json"))]
    planned = {spec.name: spec.trials * len(spec.lanes) for spec in specs}
    for trial in ledger.trials():
        study = studies.setdefault(trial.study, {"planned": planned.get(trial.study, 0), "status": {}, "best": None})
        study["status"][trial.status] = study["status"].get(trial.status, 0) + 1
        if trial.score is not None and (study["best"] is None or trial.score > study["best"]):
            study["best"] = trial.score
    for name, count in planned.items():
        studies.setdefault(name, {"planned": count, "status": {}, "best": None})
    return {
        "format": "raysere.status/1",
        "run": str(folder),
        "running": _is_running(folder),
        "studies": studies,
        "evaluated": (folder / "evaluation.json").is_file(),
        "report": str(folder / "report.html") if (folder / "report.html").is_file() else None,
    }


def _is_running(folder: Path) -> bool:
    try:
        with (folder / ".driver.lock").open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
