"""The ledger: one immutable folder for each finished trial, ``trials/ID``.

A worker stages what a trial has so far in a hidden folder; the driver adds ``DONE`` and renames it
to ``trials/ID``. So a folder is there whole or not at all, whatever was killed, and Tune's and
Optuna's own state is never needed again. ``DONE`` repeats what ``params.yaml`` says, since a
thousand trials are read in an eighth of the time without YAML, and holds the hashes of all files
(:mod:`raysere.search.hashes`), which commands check that certify a trial.
"""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.bounds import read_parquet
from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.base.files import (
    atomic_folder,
    canonical_json,
    explain_write_errors,
    file_hash,
    flush_folder,
    read_json,
    read_yaml,
    to_yaml,
    write_json,
)
from raysere.search.hashes import hash_folder, sealed

TRIAL_FORMAT = "raysere.trial/1"
STATUSES = ("done", "stopped", "infeasible", "error")
SCORED = ("done", "stopped")
_STAGED = ".partial"
_OPTIONAL = ("epoch", "epochs", "seconds", "memory", "error", "metrics", "describe", "twin_of", "files")


@dataclass(frozen=True)
class Record:
    """A finished trial.

    Attributes:
        trial, study, space, method, features, modality, outer, number, seed: where it belongs and
        how it was seeded.
        config: hash of the configuration. params: the configuration, inactive branches left out.
            resolved: all of the method's ``Params``, defaults included (empty where they could not
            be built).
        status: ``done`` (trained to its end), ``stopped`` (by successive halving), ``infeasible``
            or ``error``.
        score: development score of the best epoch; None without one. epoch: that epoch. epochs: how
            many were trained.
        seconds: of training. memory: bytes at its peak, ``resident`` of the worker and ``gpu``
            (empty where nobody looked).
        twin_of: the finished trial of the same configuration from which this one was copied.
        files: name to SHA-256 of each file; None for a trial that was recorded before hashes were
            kept.
    """

    folder: Path
    trial: str
    study: str
    space: str
    method: str
    features: tuple[str, ...]
    modality: str
    outer: int
    number: int
    seed: int
    config: str
    params: dict[str, Any]
    status: str
    score: float | None
    resolved: dict[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    epochs: int = 0
    seconds: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    describe: dict[str, Any] = field(default_factory=dict)
    twin_of: str | None = None
    files: dict[str, str] | None = None

    @property
    def scored(self) -> bool:
        return self.status in SCORED and self.score is not None

    def value(self, penalty: float) -> float:
        """The value for the sampler: the score, or ``penalty`` where there is none."""
        return self.score if self.scored and self.score is not None else penalty

    def rows(self) -> pl.DataFrame:
        """``metrics.parquet``: a row for each epoch, with ``epoch`` (from 0), ``score`` and what
        the loop logs (:meth:`Trainer.epoch`).
        """
        return read_parquet(self.folder / "metrics.parquet")

    def predictions(self) -> pl.DataFrame:
        """``predictions.parquet`` of the best epoch.

        Raises MissingFileError where the trial has none (infeasible, error).
        """
        path = self.folder / "predictions.parquet"
        if not path.is_file():
            raise MissingFileError(f"The trial {self.trial} has no predictions (status {self.status})", where=self.folder)
        return read_parquet(path, remedy="Move the folder of this trial away: `raysere run` or `raysere tune` then trains it anew.")


class Ledger:
    """The finished trials of a run directory."""

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.run_dir = Path(run_dir)
        self.folder = self.run_dir / "trials"

    def ids(self) -> list[str]:
        """Ids of the finished trials, sorted."""
        if not self.folder.is_dir():
            return []
        return [name for name in self.names() if (self.folder / name / "DONE").is_file()]

    def names(self) -> list[str]:
        """Names of all folders that may be finished trials, sorted."""
        try:
            return sorted(name for name in os.listdir(self.folder) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def read(self, trial: str) -> Record:
        """One record.

        Raises MissingFileError, or DataError for a folder that is no finished trial of a known
        format.
        """
        return self.record(trial, read_json(self.folder / trial / "DONE"))

    def record(self, trial: str, done: dict[str, Any]) -> Record:
        """The record of a trial whose ``DONE`` says ``done``. Raises as :meth:`read`."""
        folder = self.folder / trial
        return make_record(folder, done["head"] if "head" in done else read_yaml(folder / "params.yaml"), done)

    def trials(self) -> list[Record]:
        """All finished trials, by id."""
        records = []
        for trial in self.names():
            try:
                records.append(self.read(trial))
            except MissingFileError:
                if (self.folder / trial / "DONE").is_file():
                    raise
        return records

    def finished(self, study: str, outer: int | None = None) -> list[Record]:
        """Finished trials of a study (and of one outer fold), by number."""
        records = [record for record in self.trials() if record.study == study and (outer is None or record.outer == outer)]
        return sorted(records, key=lambda record: (record.outer, record.number))

    def staged_path(self, trial: str, attempt: str, epochs: int) -> Path:
        """Where a worker stages a trial: a name of its own for each attempt, so that an orphan of a
        killed run disturbs nobody.
        """
        return self.folder / f".{trial}.{attempt}.{epochs:05d}{_STAGED}"

    def finalise(self, trial: str, staged: Path, done: dict[str, Any]) -> None:
        """Flush a staged folder, add ``DONE`` and rename it to ``trials/ID``. A record that is
        there already stays as it is.

        ``done`` may have ``files``, the hashes that the writer of the files took, or None for files
        whose hashes nobody knows.
        """
        target = self.folder / trial
        with explain_write_errors(target):
            if (target / "DONE").is_file():
                shutil.rmtree(staged, ignore_errors=True)
                return
            flush_folder(staged)
            record = done if done.get("head") else {**done, **_repeated(staged)}
            write_json(staged / "DONE", sealed(record if "files" in record else {**record, "files": hash_folder(staged)}))
            if target.exists():  # a folder without DONE: someone's torn copy
                os.rename(target, self.folder / f".{trial}.torn-{os.getpid()}")
            os.rename(staged, target)
            _sync_folder(self.folder)

    def record_without_training(self, head: dict[str, Any], done: dict[str, Any], attempt: str) -> Record:
        """Record a trial that a worker could not stage (its process died again and again)."""
        staged = self.staged_path(head["trial"], attempt, 0)
        if not staged.exists():
            with atomic_folder(staged, flush=False) as folder:
                write_head(folder, head)
                empty_rows().write_parquet(folder / "metrics.parquet")
        self.finalise(head["trial"], staged, done)
        return self.read(head["trial"])

    def copy(self, twin: Record, head: dict[str, Any], attempt: str) -> Record:
        """Record a trial whose configuration another one of the lane has already: the same files
        under a new id.
        """
        staged = self.staged_path(head["trial"], attempt, 0)
        with atomic_folder(staged, flush=False) as folder:
            for source in twin.folder.iterdir():
                if source.name not in ("params.yaml", "DONE"):
                    shutil.copyfile(source, folder / source.name)
            write_head(folder, {**head, "resolved": twin.resolved})
            # the hashes that the twin's files had when they were written: a file that changed
            # before or while it was copied is found out
            files = None if twin.files is None else {**twin.files, "params.yaml": file_hash(folder / "params.yaml")}
        first = twin.twin_of or twin.trial
        done = {**read_json(twin.folder / "DONE"), "head": None, "seconds": 0.0, "files": files}
        done["twin_of"] = None if first == head["trial"] else first  # the first one was set aside, and takes its place again
        self.finalise(head["trial"], staged, done)
        return self.read(head["trial"])

    def sweep(self) -> None:
        """Remove what killed runs left staged. Only for the one driver of a run directory."""
        if self.folder.is_dir():
            for path in self.folder.glob(f".*{_STAGED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def forget_errors(self, studies: set[str]) -> int:
        """Take the trials that ended with an error off the ledger, so that they run again; returns
        how many.
        """
        failed = [record for record in self.trials() if record.study in studies and record.status == "error"]
        for record in failed:
            shutil.rmtree(self._hide(record.trial, f".{record.trial}.again{_STAGED}"), ignore_errors=True)
        return len(failed)

    def set_aside(self, trial: str) -> Path:
        """Take a trial off the ledger and keep all that is there of it, under a hidden name;
        returns that folder.
        """
        return self._hide(trial, f".{trial}.changed-{uuid.uuid4().hex[:8]}")

    def _hide(self, trial: str, name: str) -> Path:
        """Rename a trial's folder, and put what TensorBoard shows of it there too: else the next
        attempt would not be shown.
        """
        hidden = self.folder / name
        shutil.rmtree(hidden, ignore_errors=True)
        with explain_write_errors(hidden):
            os.rename(self.folder / trial, hidden)
            for events in self.run_dir.glob(f"search/*/{glob.escape(trial)}/events.out.tfevents.*"):
                os.rename(events, hidden / events.name)
        return hidden

    def __iter__(self) -> Iterator[Record]:
        return iter(self.trials())


def make_record(folder: Path, head: dict[str, Any], done: dict[str, Any]) -> Record:
    """The record of what ``params.yaml`` and ``DONE`` say.

    Raises DataError where they are not of a known format.
    """
    try:
        if head["format"] != TRIAL_FORMAT:
            raise DataError(f"The trial is of the format {head['format']!r}, and this version reads {TRIAL_FORMAT!r}", where=folder)
        if done["status"] not in STATUSES:
            raise DataError(f"The trial has the unknown status {done['status']!r}", where=folder, choices=STATUSES)
        return Record(
            folder=folder,
            **{key: head[key] for key in ("trial", "study", "space", "method", "modality", "outer", "number", "seed", "config", "params")},
            features=tuple(head["features"]),
            resolved=head.get("resolved") or {},
            status=done["status"],
            score=done["score"],
            **{key: done[key] for key in _OPTIONAL if key in done},
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"The trial lacks {error}",
            where=folder,
            remedy="Move this folder away; `raysere run` or `raysere tune` then trains the trial anew.",
        ) from error


def _repeated(staged: Path) -> dict[str, Any]:
    """The head of a staged trial for its ``DONE``; nothing where JSON cannot hold it (a parameter
    that is not finite).
    """
    head = json_head(read_yaml(staged / "params.yaml"))
    return {} if head is None else {"head": head}


def json_head(head: dict[str, Any]) -> dict[str, Any] | None:
    """``head`` if JSON can hold it."""
    try:
        canonical_json(head)
    except ValueError:
        return None
    return head


def empty_rows() -> pl.DataFrame:
    return pl.DataFrame(schema={"epoch": pl.Int64, "score": pl.Float64})


def write_head(folder: Path, head: dict[str, Any]) -> None:
    """Write ``params.yaml``: what the trial is, before anything is known of how it went."""
    if missing := {"trial", "study", "params", "config"} - set(head):
        raise ConfigError(f"A trial's head lacks {', '.join(sorted(missing))}")
    (folder / "params.yaml").write_text(to_yaml({"format": TRIAL_FORMAT, **head}), encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
