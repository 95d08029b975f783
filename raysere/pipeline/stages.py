"""The stages of a run in order; finished stages are skipped."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from raysere.base.cluster import start_ray, stop_ray
from raysere.base.files import read_json
from raysere.base.progress import Progress
from raysere.features.store.content import MISSING
from raysere.pipeline.experiment import Experiment, load_experiment
from raysere.pipeline.lock import only_driver
from raysere.pipeline.prepare import REJECTED, CheckedRun, prepare, write_rejected, write_run
from raysere.search.file_check import FileCheck

if TYPE_CHECKING:
    from raysere.corpora.manifest import Manifest
    from raysere.features.extract.run import Extraction
    from raysere.features.spec import FeatureSpec
    from raysere.search.ledger import Record


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
    """Run an experiment file to its report: the Python form of ``raysere run``.

    Finished stages and trials are skipped, so the same call resumes a run.

    Args:
        experiment: path of the YAML file.
        overrides: changes such as ``search.0.trials=40``, with the value as YAML.
        quiet: whether to print no progress.

    Returns:
        The run folder, rejected inputs, the evaluation and the path of the report.

    Raises:
        RaysereError: a fault of the experiment, the data or the machine.

    Example:
        >>> outcome = raysere.run("emodb.yaml", overrides=("search.0.trials=40",))  # doctest: +SKIP
        >>> outcome.report  # doctest: +SKIP
    """
    with Progress(quiet=quiet) as progress:
        return run_experiment(load_experiment(experiment, overrides), progress=progress)


# --- running --------------------------------------------------------------------------------------


def run_experiment(
    experiment: Experiment, *, until: str = "report", progress: Progress | None = None, retry_errors: bool = False
) -> Outcome:
    """Run the stages of an experiment up to ``until`` (extract, tune, evaluate or report).

    Raises RaysereError for a fault of the experiment, the data or the machine; every stage resumes
    where it was.
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
    """Import what the checks need while this thread waits for Ray: torch and the methods take
    longer than all of the reading.
    """

    def load() -> None:
        with suppress(Exception):  # where it is needed it is imported again, and fails there
            importlib.import_module("raysere.pipeline.lanes")
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
    """Cache one feature of all utterances of a manifest, as the experiment says; Ray must be there
    (see :func:`own_ray`).
    """
    from raysere.features.extract.run import extract

    actors, threshold = experiment.extraction.actors, experiment.extraction.fail_threshold
    return extract(manifest, spec, experiment.store_folder, actors=actors, fail_threshold=threshold, progress=progress)


def _extract(prepared: CheckedRun, progress: Progress) -> pl.DataFrame:
    rejected = [prepared.rejected.select(list(REJECTED))]
    for name, (spec, manifest) in prepared.features_to_extract().items():
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


def _search(prepared: CheckedRun, progress: Progress, retry_errors: bool, check: FileCheck) -> int:
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
    if told := untrained([record for record in check.trials(ledger) if record.trial in wanted], experiment.run_folder):
        progress.say(told)
    return len(ledger.ids())


def untrained(records: Sequence[Record], run: Path) -> str | None:
    """A line for the user on trials that failed or that their configuration ruled out; None where all were trained."""
    failed = [record for record in records if record.status == "error"]
    ruled_out = [record for record in records if record.status == "infeasible"]
    if not failed and not ruled_out:
        return None
    first = (failed or ruled_out)[0]
    reason = (first.error or "no reason is recorded").splitlines()[0]
    counts = [f"{len(failed)} failed (`--retry-errors` runs them again)"] if failed else []
    counts += [f"{len(ruled_out)} had a configuration that cannot be trained"] if ruled_out else []
    return f"search: of {len(records)} trials {' and '.join(counts)}. The first, {first.trial}: {reason}. All: raysere leaderboard {run}"


def _evaluate(folder: Path, progress: Progress, check: FileCheck) -> dict[str, Any]:
    """Fit the ensemble, save it, score it; skipped where the trials are those of the evaluation
    that is there.
    """
    from raysere.ensemble.evaluate.evaluation import evaluate, evaluation_is_current

    if evaluation_is_current(folder, check):
        return read_json(folder / "evaluation.json")
    progress.say("ensemble: calibrating and choosing members", stage="ensemble")
    return evaluate(folder, check=check)


# --- verbs on runs --------------------------------------------------------------------------------
