"""The driver's board of a search: which lanes there are, what is recorded, what went wrong.

No Tune here.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from raysere.base import errors
from raysere.base.errors import ConfigError, RaysereError, machine_fault, named_file
from raysere.base.files import read_json, read_yaml
from raysere.base.progress import Progress
from raysere.search.file_check import FileCheck
from raysere.search.ledger import Ledger, Record, make_record
from raysere.search.study import StudySpec
from raysere.search.trial import OUTCOME, attempt_name, head
from raysere.search.watch.overview import SearchEvents, write_overview
from raysere.search.watch.tensorboard import TrialEvents

if TYPE_CHECKING:
    from raysere.search.gain import Gains
    from raysere.search.lane import Lane, Proposal

STAGE = "search"


@dataclass(frozen=True)
class SearchSummary:
    """What a search did.

    Attributes:
        trials: finished trials of its studies, earlier ones included. statuses: how many of each
            status.
        ran: trained now. copied: copied now from an equal configuration. resumed: found finished at
            the start.
        best: study to (trial id, score) of its best trial. seconds: wall time.
    """

    trials: int
    statuses: dict[str, int]
    ran: int
    copied: int
    resumed: int
    best: dict[str, tuple[str, float]]
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass
class Board:
    """State of one search in its driver process; everything that must survive the process is in the
    ledger.
    """

    run_dir: Path
    studies: list[StudySpec]
    progress: Progress
    resources: dict[str, float]
    check: FileCheck = field(default_factory=FileCheck)
    ledger: Ledger = field(init=False)
    lanes: list[Lane] = field(init=False)
    records: dict[str, Record] = field(init=False)
    failure: BaseException | None = None
    given_up: dict[str, Proposal] = field(default_factory=dict)
    ran: int = 0
    copied: int = 0
    best: float | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.run_dir)
        self.stamp = uuid.uuid4().hex
        self.started = time.monotonic()
        self.reload()
        self._events = TrialEvents(self.run_dir)
        self._search_events = SearchEvents(self.run_dir, self.stamp[:8])  # catch_up() tells it what is finished
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="ledger")  # neither the disk nor drawing holds up the next trial
        self._written: list[Future[Any]] = []  # TensorBoard events
        self._broken = False  # of the writer: nothing is recorded after a record that could not be written, or a later start would differ
        self.rebuild()

    def reload(self) -> None:
        """Read the finished trials of these studies that are as they were recorded."""
        names = {study.name for study in self.studies}
        self.records = {record.trial: record for record in self.check.trials(self.ledger) if record.study in names}
        self.resumed = len(self.records)

    def _mine(self) -> list[Record]:
        return [self.records[trial] for trial in sorted(self.records)]

    def rebuild(self) -> None:
        """Build all lanes from the finished trials."""
        from raysere.search.lane import Lane

        records = self._mine()
        gains = self._gains()
        self.lanes = [
            Lane(
                study,
                outer,
                [record for record in records if record.study == study.name and record.outer == outer],
                gains=gains.get(outer) if study.objective == "ensemble_gain" else None,
            )
            for study in self.studies
            for outer in study.lanes
        ]

    def _gains(self) -> dict[int, Gains]:
        """By outer fold the predictions of all its finished trials, for studies whose sampler asks
        for gains.
        """
        self.gains: dict[int, Gains] = {}
        asking = [study for study in self.studies if study.objective == "ensemble_gain"]
        if not asking:
            return self.gains
        from raysere.corpora.labels import class_map
        from raysere.corpora.manifest import Manifest
        from raysere.search.gain import Gains
        from raysere.training.data import build_labels

        task, rules = asking[0].task, asking[0].class_map
        others = [study.name for study in self.studies if (study.task, study.class_map) != (task, rules)]
        if others:
            raise ConfigError(
                f"The studies {asking[0].name} and {others[0]} predict something else, and no ensemble holds both",
                where="objective",
                remedy="Search them in two runs, or take objective: score.",
            )
        manifest = Manifest.read(self.run_dir / "manifest.parquet")
        labels = build_labels(manifest, None if rules is None else class_map(rules), task)[0]
        self.gains = {outer: Gains(labels, task) for study in asking for outer in study.lanes}
        for record in self._mine():
            self.finished(record.trial, record.outer, record.folder if record.scored else None)
        return self.gains

    def finished(self, trial: str, outer: int, folder: Path | None) -> None:
        """Let the gains of that outer fold know what a finished trial predicts; None: nothing."""
        if folder is not None and outer in self.gains and (folder / "predictions.parquet").is_file():
            self.gains[outer].add(trial, pl.read_parquet(folder / "predictions.parquet"))

    @property
    def unfinished(self) -> int:
        """Trials that are still to be recorded, under way ones included."""
        return sum(len(lane.free) + len(lane.running) for lane in self.lanes)

    def job(self, proposal: Proposal) -> dict[str, Any]:
        """What a worker needs of a proposal."""
        study = proposal.lane.study
        return {
            "study": study.name,
            "outer": proposal.lane.outer,
            "number": proposal.number,
            "trial": proposal.trial,
            "params": proposal.params,
            "config": proposal.config,
            "attempt": attempt_name(self.stamp, proposal.trial, proposal.failures),
            "stamp": self.stamp,
            **self.resources,
        }

    def fail(self, fault: BaseException) -> None:
        """Remember the first fault that ends the whole search."""
        self.failure = self.failure or machine_fault(fault, named_file(fault) or self.run_dir) or fault

    def record(self, proposal: Proposal, result: dict[str, Any]) -> None:
        """Take what a worker staged: known at once, in the ledger as soon as the disk has it."""
        if result["status"] == "fatal":
            self.fail(_rebuilt(json.loads(result["error"])))
            return
        staged = Path(result["staged"])
        status = "stopped" if result["status"] == "running" else result["status"]
        outcome = read_json(staged / OUTCOME)
        rows, confusion = outcome.pop("rows"), outcome.pop("confusion")  # for TensorBoard, which need not read the files then
        done = {"status": status, **outcome, "twin_of": None}
        (staged / OUTCOME).unlink()
        head = outcome["head"] or read_yaml(staged / "params.yaml")
        record = make_record(self.ledger.folder / proposal.trial, head, done)
        self._later(self._finalise, record, staged, done)
        self._recorded(proposal, record, rows, None if confusion is None else np.array(confusion))
        self.ran += 1

    def _finalise(self, record: Record, staged: Path, done: dict[str, Any]) -> None:
        if self._broken:
            return
        try:
            self.ledger.finalise(record.trial, staged, done)
        except Exception as fault:
            self._broken = True
            self.fail(fault)

    def give_up(self, proposal: Proposal, reason: str) -> None:
        """Record a trial whose worker process died at each attempt."""
        job = self.job(proposal)
        done: dict[str, Any] = {
            "status": "error",
            "score": None,
            "epoch": None,
            "epochs": 0,
            "seconds": 0.0,
            "error": reason,
            "metrics": {},
            "describe": {},
            "twin_of": None,
        }
        self._recorded(proposal, self.ledger.record_without_training(head(proposal.lane.study, job), done, job["attempt"]))
        self.ran += 1

    def copy(self, proposal: Proposal, twin: Record) -> Record:
        """Record a proposal whose configuration is finished already."""
        job = self.job(proposal)
        self._later(bool).result()  # what is recorded is in the ledger then
        if self.failure is not None:
            raise self.failure
        record = self.ledger.copy(twin, head(proposal.lane.study, job), job["attempt"])
        self._recorded(proposal, record)
        self.copied += 1
        return record

    def _recorded(self, proposal: Proposal, record: Record, *events: Any) -> None:
        proposal.lane.remember(record)
        self._write_events(record, proposal.lane.study, *events)
        self.records[record.trial] = record
        if record.scored and (self.best is None or record.value(-1.0) > self.best):
            self.best = record.value(-1.0)
        self._show(self._search_events.finished, record, time.time())
        self.progress.advance(STAGE, note="" if self.best is None else f"best {self.best:.4f}")

    def _write_events(self, record: Record, study: StudySpec, *events: Any) -> None:
        self._show(self._events.write, record, study, *events)

    def _show(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Write something for TensorBoard in the writer's thread.

        A fault of the machine ends the search, as the next trial would meet it, too; any other is
        said at the end.
        """

        def show() -> None:
            try:
                function(*arguments)
            except Exception as fault:
                if machine_fault(fault) is None:
                    raise
                self.fail(fault)

        self._written.append(self._later(show))

    def _later(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Do it in the writer's thread, in the order of the calls."""
        return self._writer.submit(function, *arguments)

    def catch_up(self) -> None:
        """Write what TensorBoard shows of the studies, and the events of finished trials that a
        kill left without.
        """
        self._search_events = SearchEvents(self.run_dir, self.stamp[:8], self._mine())
        self._show(write_overview, self.run_dir, self.studies)
        studies = {study.name: study for study in self.studies}
        for record in self._mine():
            if not self._events.has(record):
                self._write_events(record, studies[record.study])

    def close(self) -> list[str]:
        """Wait for the ledger and for the TensorBoard events; an event that failed for a reason of
        its own is said, and costs no trial.
        """
        self._show(self._search_events.close)
        self._writer.shutdown(wait=True)
        faults = [str(future.exception()) for future in self._written if future.exception() is not None]
        return [f"{len(faults)} TensorBoard events could not be written: {faults[0]}"] if faults else []

    def check_studies(self) -> None:
        """Raise RaysereError where every trial of a study failed: the commonest reason is said."""
        records = self._mine()
        for study in self.studies:
            mine = [record for record in records if record.study == study.name]
            if mine and not any(record.scored for record in mine):
                reasons = Counter(_reason(record) for record in mine)
                reason, count = reasons.most_common(1)[0]
                raise RaysereError(
                    f"All {len(mine)} trials of the study {study.name!r} failed, {count} of them with: {reason}",
                    where=self.ledger.folder / mine[0].trial / "DONE",
                    remedy="Correct the space, the features or the machine, then add --retry-errors, or give the search another name.",
                )

    def summary(self, notes: list[str]) -> SearchSummary:
        records = self._mine()
        best: dict[str, tuple[str, float]] = {}
        for record in records:
            if record.scored and (record.study not in best or record.value(-1.0) > best[record.study][1]):
                best[record.study] = (record.trial, record.value(-1.0))
        return SearchSummary(
            len(records),
            dict(Counter(record.status for record in records)),
            self.ran,
            self.copied,
            self.resumed,
            best,
            time.monotonic() - self.started,
            tuple(notes),
        )


def _reason(record: Record) -> str:
    lines = [line for line in (record.error or record.status).strip().splitlines() if line.strip()]
    return lines[-1].strip() if record.status == "error" else lines[0].strip()


def _rebuilt(parts: dict[str, Any]) -> RaysereError:
    """The error that a worker described: one of :mod:`raysere.base.errors`."""
    kind = getattr(errors, parts.pop("kind"), RaysereError)
    what = parts.pop("what")
    if not (isinstance(kind, type) and issubclass(kind, RaysereError)) or kind is errors.UnknownNameError:
        kind = RaysereError
    return kind(what, **parts)
