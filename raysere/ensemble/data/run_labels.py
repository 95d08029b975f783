"""What the ensemble reads of a run folder: task, splits, speakers and labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import ValidationError

from raysere.base.bounds import read_parquet
from raysere.base.errors import ConfigError, DataError, MissingFileError, machine_fault
from raysere.base.files import file_hash, read_yaml
from raysere.corpora.grouping import COLUMNS, group_key
from raysere.corpora.labels import class_map
from raysere.corpora.manifest import Manifest
from raysere.ensemble.config import EnsembleConfig
from raysere.search.file_check import FileCheck
from raysere.search.ledger import Ledger, Record
from raysere.training.data import build_labels
from raysere.training.task import Labels, Task


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder, opened.

    ``settings`` is its experiment.yaml; ``check`` reads its trials, and belongs to one command.
    """

    folder: Path
    settings: dict[str, Any]
    task: Task
    splits: pl.DataFrame
    check: FileCheck = field(default_factory=FileCheck)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], check: FileCheck | None = None) -> Run:
        """Raises MissingFileError where a file is missing, ConfigError for settings and DataError
        for splits that cannot be read.
        """
        folder = Path(folder)
        settings = read_yaml(folder / "experiment.yaml")
        if not isinstance(settings, dict) or "task" not in settings:
            raise ConfigError("This experiment.yaml does not come from a run", where=folder / "experiment.yaml")
        for name in ("ensemble", "protocol", "features"):
            if not isinstance(settings.get(name) or {}, dict):
                raise ConfigError(f"{name} is a mapping, not {settings[name]!r}", where=folder / "experiment.yaml")
        try:
            task = Task.model_validate(settings["task"])
        except ValidationError as error:
            raise ConfigError(
                f"The task of this run cannot be read: {error.errors()[0]['msg']}", where=folder / "experiment.yaml"
            ) from error
        for name in ("splits.parquet", "manifest.parquet"):
            if not (folder / name).is_file():
                raise MissingFileError(f"There is no {name}", where=folder, remedy="A run is a folder that `raysere run` wrote.")
        check_tables(folder, settings)
        return cls(folder, settings, task, _read_splits(folder / "splits.parquet"), check or FileCheck())

    @property
    def name(self) -> str:
        return str(self.settings.get("name") or self.folder.name)

    @property
    def kind(self) -> str:
        """Protocol: holdout, out_of_fold or nested."""
        return str((self.settings.get("protocol") or {}).get("kind", "holdout"))

    @property
    def unit(self) -> str:
        """What never crosses a border of the splits, and what a bootstrap draws: speaker, dialogue
        or sentence.
        """
        return str((self.settings.get("protocol") or {}).get("by", "speaker"))

    @property
    def outers(self) -> list[int]:
        return sorted(self.splits["outer"].unique().to_list())

    @property
    def config(self) -> EnsembleConfig:
        """The ``ensemble`` block; its seed follows the run's where it has none of its own."""
        block = dict(self.settings.get("ensemble") or {})
        try:
            return EnsembleConfig.model_validate(block if block.get("seed") else {**block, "seed": int(self.settings.get("seed") or 0)})
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"ensemble.{'.'.join(map(str, first['loc']))}: {first['msg']}", where=self.folder / "experiment.yaml"
            ) from error

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.read(self.folder / "manifest.parquet")

    @cached_property
    def _labels(self) -> Labels:
        """All labels of the manifest; only ``_truth`` takes rows of them."""
        rules = self.settings.get("class_map")
        return build_labels(self.manifest, None if rules is None else class_map(rules), self.task)[0]

    @cached_property
    def groups(self) -> list[str]:
        """The dialogue or sentence of each row of the manifest, as the splits know it."""
        keys = self.manifest.table[COLUMNS.get(self.unit, self.unit)].to_list()
        return [group_key(key, self.unit) for key in keys]

    def with_target(self) -> list[str]:
        """Utterances that have a target of the task: the others may teach, and are never scored."""
        labels = self._labels
        return [labels.utterances[row] for row in np.flatnonzero(labels.has_target(self.task))]

    @property
    def synthetic(self) -> bool:
        return bool(self.manifest.synthetic)

    def trials(self) -> list[Record]:
        """Finished trials that are as they were recorded; the user is warned of others
        (:class:`FileCheck`).
        """
        return self.check.trials(Ledger(self.folder))

    def rows(self, outer: int, role: str) -> pl.DataFrame:
        """Columns utterance, fold of the rows of one role (pool or test) of an outer split."""
        return self.splits.filter((pl.col("outer") == outer) & (pl.col("role") == role)).select("utterance", "fold")


def check_tables(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise DataError where a file of a run was changed since ``settings`` (its experiment.yaml)
    recorded its hash, MissingFileError where it is gone.
    """
    remedy = "Restore this file, or run the experiment again under another name (--set name=...)."
    for name, sha256 in (settings.get("files") or {}).items():
        path = folder / Path(name).name
        if not path.is_file():
            raise MissingFileError(f"There is no {name}", where=folder, remedy=remedy)
        if file_hash(path) != sha256:
            raise DataError(f"{name} was changed since the run began, and its figures depend on it", where=path, remedy=remedy)


def _read_splits(path: Path) -> pl.DataFrame:
    try:
        return read_parquet(path).select(
            pl.col("outer").cast(pl.Int32), pl.col("utterance", "role").cast(pl.String), pl.col("fold").cast(pl.Int32)
        )
    except (pl.exceptions.PolarsError, OSError, DataError) as error:
        if fault := machine_fault(error, path):
            raise fault from error
        raise DataError(
            f"These splits cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=path,
            remedy="Restore this file, or run the experiment again under another name.",
        ) from error


@dataclass(frozen=True)
class Truth:
    """Labels and groups of N utterances: ``label`` int (N,), -1 none; ``target`` float64 (N, A),
    NaN none; ``speaker`` (N,) names, one for all ids of a linked person; ``group`` (N,) the same,
    or dialogues or sentences where the splits are by these; ``about`` the manifest's other columns
    for break-downs.
    """

    label: np.ndarray
    target: np.ndarray
    speaker: np.ndarray
    group: np.ndarray
    about: pl.DataFrame


def check_same(runs: Sequence[Run]) -> None:
    """Raise DataError unless all runs have the same classes (in any order), metric, attributes and
    protocol, and no utterance is a test row in one and a development row in another, nor in
    different folds.
    """
    first = runs[0]
    for run in runs[1:]:
        if set(run.task.classes) != set(first.task.classes):
            raise DataError(
                f"{run.name} has the classes {', '.join(run.task.classes)}; {first.name} has {', '.join(first.task.classes)}",
                where=run.folder,
                remedy="Only runs with the same classes make one ensemble.",
            )
        if (run.task.kind, run.task.attributes, run.task.metric, run.kind, run.unit) != (
            first.task.kind,
            first.task.attributes,
            first.task.metric,
            first.kind,
            first.unit,
        ):
            raise DataError(
                f"{run.name} and {first.name} differ in task, metric or protocol", where=run.folder, remedy="Search them for the same task."
            )
        if run.task.dimensional and run.task.scale != first.task.scale:
            raise DataError(f"{run.name} rates attributes on {run.task.scale}, {first.name} on {first.task.scale}", where=run.folder)
        both = first.splits.join(run.splits, on=["outer", "utterance"], how="inner", suffix="_other")
        if not both.height:
            raise DataError(
                f"{run.name} and {first.name} have no utterance in common",
                where=run.folder,
                remedy="Members must have answered the same utterances.",
            )
        moved = both.filter((pl.col("role") != pl.col("role_other")) | pl.col("fold").ne_missing(pl.col("fold_other")))
        if moved.height:
            raise DataError(
                f"{run.name} and {first.name} split {moved.height} utterances differently, such as {moved['utterance'][0]}",
                where=run.folder,
                remedy="A member must not have trained on what another one is scored on: give both the same corpora, protocol and seed.",
            )


def dev_truth(runs: Sequence[Run], outer: int, utterances: Sequence[str]) -> Truth:
    """Labels of development rows.

    Raises DataError when one of them is a test row of this outer split.
    """
    asked = pl.Series("utterance", utterances)
    for run in runs:
        if asked.is_in(run.rows(outer, "test")["utterance"].to_list()).any():
            raise DataError("A development label was requested for a test row", where=run.folder)
    return _truth(runs, utterances)


def test_truth(runs: Sequence[Run], outer: int, utterances: Sequence[str]) -> Truth:
    """Labels of test rows, for the one function that scores them.

    Raises DataError for a row that is not one.
    """
    test = set().union(*[run.rows(outer, "test")["utterance"].to_list() for run in runs])
    if not test.issuperset(utterances):
        raise DataError("A test label was requested for a row that is not a test row", where=runs[0].folder)
    return _truth(runs, utterances)


test_truth.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name


def _truth(runs: Sequence[Run], utterances: Sequence[str]) -> Truth:
    task, count = runs[0].task, len(utterances)
    label = np.full(count, -1, np.int64)
    target = np.full((count, len(task.attributes)), np.nan)
    speaker, group, known = np.full(count, "", dtype=object), np.full(count, "", dtype=object), np.zeros(count, bool)
    order = pl.DataFrame({"utterance": list(utterances)}, schema={"utterance": pl.String})
    about: pl.DataFrame | None = None
    for run in runs:
        labels = run._labels
        numbered = pl.DataFrame({"utterance": labels.utterances, "row": np.arange(len(labels))})
        row = order.join(numbered, on="utterance", how="left", maintain_order="left", validate="1:1")["row"].fill_null(-1).to_numpy()
        here = row >= 0
        same_person = {name: group[0] for group in run.manifest.linked_speakers for name in group}
        people = np.array([same_person.get(name, name) for name in labels.speakers], dtype=object)
        names = np.where(here, people[labels.speaker[row]], "")
        turn = np.array(
            [task.classes.index(name) for name in run.task.classes] + [-1], np.int64
        )  # this run's class numbers to the first one's
        codes = np.where(here, turn[labels.label[row]], -1)
        if (clash := known & here & ((codes != label) | (names != speaker))).any():
            example = utterances[int(np.argmax(clash))]
            raise DataError(
                f"{run.name} and {runs[0].name} disagree about {int(clash.sum())} utterances, such as {example}",
                where=run.folder,
                remedy="Take runs of the same corpus and class map.",
            )
        new = here & ~known
        label[new], speaker[new] = codes[new], names[new]
        group[new] = names[new] if run.unit == "speaker" else np.array(run.groups, dtype=object)[row[new]]
        if labels.attributes is not None:
            target[new] = labels.attributes[row][new]
        known |= here
        columns = run.manifest.table.select("utterance", "corpus", "language", "sex", "duration_s")
        part = order.join(columns, on="utterance", how="left", maintain_order="left").drop("utterance")
        about = part if about is None else about.with_columns(pl.coalesce(about[name], part[name]).alias(name) for name in part.columns)
    if not known.all():
        raise DataError(
            f"{int((~known).sum())} utterances are in no manifest, such as {utterances[int(np.argmin(known))]}", where=runs[0].folder
        )
    assert about is not None
    return Truth(label, target, speaker.astype(str), group.astype(str), about)
