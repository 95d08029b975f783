"""Members, their stacked predictions, and the rows that may be used for fitting.

:class:`StackedPredictions` never hold a label. :class:`FitRows` adds labels, and refuses
predictions of test rows: a function that takes a FitRows cannot see test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import polars as pl

from raysere.base.errors import DataError, RaysereError, machine_fault
from raysere.ensemble.data.run_labels import Run, check_same, dev_truth
from raysere.search.ledger import Record
from raysere.training.task import Task

#: Smallest probability that differs from zero: float32 predictions underflow below it.
FLOOR = 1e-30


@dataclass(frozen=True)
class MemberInfo:
    """A finished trial.

    ``prior`` is the class prior that its logits carry, in the class order of the library, or None.
    """

    trial: str
    run: str
    modality: str
    method: str
    study: str
    prior: tuple[float, ...] | None = None
    record: Record | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        return f"{self.run}/{self.trial}"


@dataclass(frozen=True)
class StackedPredictions:
    """Predictions of M members for N utterances, without labels.

    Attributes:
        classes, attributes: names, in the order of the last axes.
        logp: float32 (M, N, K) log-probabilities; values: float32 (M, N, A) attributes on the
            task's scale (K or A may be 0).
        present: bool (M, N); where False the numbers are meaningless (but finite).
        stage: "dev" rows may be fitted on, "test" and "new" rows only predicted.
    """

    members: tuple[MemberInfo, ...]
    utterances: tuple[str, ...]
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    logp: np.ndarray
    values: np.ndarray
    present: np.ndarray
    stage: Literal["dev", "test", "new"]

    def __post_init__(self) -> None:
        shape = (len(self.members), len(self.utterances))
        if (
            self.present.shape != shape
            or self.logp.shape != (*shape, len(self.classes))
            or self.values.shape != (*shape, len(self.attributes))
        ):
            raise DataError(
                f"Predictions of shapes {self.logp.shape}, {self.values.shape}, {self.present.shape} "
                f"do not belong to {shape[0]} members and {shape[1]} utterances"
            )
        if len({member.id for member in self.members}) != len(self.members):
            raise DataError("A member is in the library twice")

    def take_members(self, numbers: Sequence[int] | np.ndarray) -> StackedPredictions:
        index = np.asarray(numbers, dtype=np.int64)
        if np.array_equal(index, np.arange(len(self.members))):
            return self  # a library is large: no copy where nothing is left out
        return replace(
            self,
            members=tuple(self.members[m] for m in index),
            logp=self.logp[index],
            values=self.values[index],
            present=self.present[index],
        )

    def take_rows(self, rows: np.ndarray) -> StackedPredictions:
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        if np.array_equal(index, np.arange(len(self.utterances))):
            return self
        return replace(
            self,
            utterances=tuple(self.utterances[n] for n in index),
            logp=self.logp[:, index],
            values=self.values[:, index],
            present=self.present[:, index],
        )

    def aligned(self, members: Sequence[MemberInfo]) -> StackedPredictions:
        """The same rows with these members in this order; a member that is not here is absent
        everywhere.
        """
        numbers = {member.id: m for m, member in enumerate(self.members)}
        found = np.array([numbers.get(member.id, -1) for member in members], dtype=np.int64)
        index = np.maximum(found, 0)
        present = self.present[index] & (found >= 0)[:, None] if len(self.members) else np.zeros((len(members), len(self.utterances)), bool)
        if not len(self.members):
            return replace(
                self,
                members=tuple(members),
                logp=np.zeros((len(members), *self.logp.shape[1:]), np.float32),
                values=np.zeros((len(members), *self.values.shape[1:]), np.float32),
                present=present,
            )
        return replace(self, members=tuple(members), logp=self.logp[index], values=self.values[index], present=present)


@dataclass(frozen=True)
class FitRows:
    """Development predictions with labels: all that anything may be fitted on.

    Attributes:
        label: int64 (N,), -1 none; target: float64 (N, A), NaN none.
        group: (N,) names of what never stands in two folds and is drawn as one: speakers, or
            dialogues or sentences where the splits are by these. fold: int64 (N,) of the search's
            own folds (0 where the protocol has none).
    """

    predictions: StackedPredictions
    label: np.ndarray
    target: np.ndarray
    group: np.ndarray
    fold: np.ndarray

    def __post_init__(self) -> None:
        if self.predictions.stage != "dev":
            raise DataError(f"Only development rows may be used for fitting, not {self.predictions.stage} rows")
        if not len(self.label) == len(self.target) == len(self.group) == len(self.fold) == len(self.predictions.utterances):
            raise DataError("Labels and predictions do not have the same rows")
        pairs = set(zip(self.group.tolist(), self.fold.tolist()))
        if len(pairs) != len(set(self.group.tolist())):
            folds = {group: sorted(fold for name, fold in pairs if name == group) for group, _ in pairs}
            group, where = next((group, where) for group, where in sorted(folds.items()) if len(where) > 1)
            raise DataError(
                f"The group {group!r} is in several folds: {', '.join(map(str, where))}",
                remedy="Folds must not share a speaker (dialogue, sentence): split again.",
            )

    def take_rows(self, rows: np.ndarray) -> FitRows:
        return FitRows(self.predictions.take_rows(rows), self.label[rows], self.target[rows], self.group[rows], self.fold[rows])

    def take_members(self, numbers: Sequence[int] | np.ndarray) -> FitRows:
        return replace(self, predictions=self.predictions.take_members(numbers))


def load_fit_rows(runs: Sequence[Run], outer: int = 0) -> FitRows:
    """Development (or out-of-fold) predictions of all finished trials, with their labels.

    Raises DataError: no finished trial, different classes or splits, predictions that do not fit
    the splits.
    """
    predictions = load_predictions(runs, outer, "dev")
    truth = dev_truth(runs, outer, predictions.utterances)
    folds = pl.concat([run.rows(outer, "pool") for run in runs]).unique(subset="utterance", maintain_order=True)
    joined = pl.DataFrame({"utterance": predictions.utterances}).join(folds, on="utterance", how="left", maintain_order="left")
    return FitRows(predictions, truth.label, truth.target, truth.group, joined["fold"].fill_null(0).cast(pl.Int64).to_numpy())


def load_predictions(runs: Sequence[Run], outer: int, stage: Literal["dev", "test"]) -> StackedPredictions:
    """Stacked predictions of all finished trials of an outer split for one stage, joined by
    utterance id, classes by name.
    """
    check_same(runs)
    task = runs[0].task
    role = "pool" if stage == "dev" else "test"
    members: list[MemberInfo] = []
    tables: list[pl.DataFrame] = []
    for run in runs:
        rows = run.rows(outer, role)
        for record in usable_trials(run):
            if record.outer != outer:
                continue
            try:
                table = record.predictions().filter(pl.col("split").cast(pl.String) == stage)
                tables.append(_check_rows(table, rows, task, record, folds=stage == "dev" and run.kind != "holdout"))
            except (pl.exceptions.PolarsError, OSError) as error:
                if isinstance(error, RaysereError):
                    raise
                if fault := machine_fault(error, record.folder / "predictions.parquet"):
                    raise fault from error
                raise DataError(
                    f"The predictions of {record.trial} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}",
                    where=record.folder / "predictions.parquet",
                    remedy="Move the folder of this trial away; `raysere run` or `raysere tune` then trains it anew.",
                ) from error
            members.append(_member(run, record))
    if not members:
        of = f" of outer fold {outer}" if runs[0].kind in ("nested", "transfer") else ""
        raise DataError(
            f"There is no finished trial{of} to make an ensemble of",
            where=runs[0].folder,
            remedy="Run the search first: `raysere run` or `raysere tune`.",
        )
    if len({member.id for member in members}) != len(members):
        raise DataError(
            "Two runs have the same name, so their trials cannot be told apart",
            where=", ".join(str(run.folder) for run in runs),
            remedy="Rename one in its experiment.yaml.",
        )
    utterances = sorted(set().union(*[table["utterance"].to_list() for table in tables]))
    if not utterances and stage == "dev":
        raise DataError("The trials hold no development predictions", where=runs[0].folder)
    return _stack(members, tables, utterances, task.classes, task.attributes, stage)


def usable_trials(run: Run) -> list[Record]:
    """Finished trials that may become members: trained (to the end or stopped early), as recorded,
    and no copy of another.
    """
    records = run.trials()
    originals = {record.trial for record in records if record.twin_of is None}
    found: dict[str, Record] = {}
    for record in records:
        if record.scored and record.twin_of not in originals:
            found.setdefault(record.twin_of or record.trial, record)  # the first copy stands for an original that was left out
    return list(found.values())


def _member(run: Run, record: Record) -> MemberInfo:
    told = record.describe.get("effective_prior")
    shares = [told.get(name) for name in run.task.classes] if isinstance(told, dict) else list(told or [])
    fits = len(shares) == len(run.task.classes) and all(share is not None and share > 0 for share in shares)
    prior = tuple(float(share or 0) for share in shares) if fits and shares else None
    return MemberInfo(record.trial, run.name, record.modality, record.method, record.study, prior, record)


def _check_rows(table: pl.DataFrame, rows: pl.DataFrame, task: Task, record: Record, *, folds: bool) -> pl.DataFrame:
    path = record.folder / "predictions.parquet"
    wanted = [*(f"p.{name}" for name in task.classes), *task.attributes]
    missing = [name for name in wanted if name not in table.columns]
    extra = [name for name in table.columns if name.startswith("p.") and name not in wanted]
    if missing or extra:
        raise DataError(f"The predictions of {record.trial} are of other classes: {', '.join(missing + extra)}", where=path, choices=wanted)
    if table["utterance"].n_unique() != table.height:
        raise DataError(f"{record.trial} predicts an utterance twice", where=path)
    joined = table.join(rows, on="utterance", how="left", suffix="_split", maintain_order="left")
    known = table["utterance"].is_in(rows["utterance"].to_list())
    if not known.all():
        raise DataError(
            f"{record.trial} predicts {int((~known).sum())} utterances that the splits do not have in this part, "
            f"such as {table['utterance'].filter(~known)[0]}",
            where=path,
            remedy="The splits of a run must not change after its search.",
        )
    if folds and joined["fold"].cast(pl.Int64).ne_missing(joined["fold_split"].cast(pl.Int64)).any():
        raise DataError(
            f"{record.trial} was trained on other folds than the run's splits",
            where=path,
            remedy="Its rows may have been training rows: move the folder of this trial away; `raysere run` then trains it anew.",
        )
    return table.select("utterance", pl.col(wanted).cast(pl.Float32).fill_null(float("nan")))


def _stack(
    members: list[MemberInfo],
    tables: list[pl.DataFrame],
    utterances: list[str],
    classes: tuple[str, ...],
    attributes: tuple[str, ...],
    stage: Literal["dev", "test"],
) -> StackedPredictions:
    order = pl.DataFrame({"utterance": utterances}, schema={"utterance": pl.String})
    logp = np.zeros((len(members), len(utterances), len(classes)), np.float32)
    values = np.zeros((len(members), len(utterances), len(attributes)), np.float32)
    present = np.zeros((len(members), len(utterances)), bool)
    for m, table in enumerate(tables):
        same = table["utterance"].to_list() == utterances
        joined = table if same else order.join(table, on="utterance", how="left", maintain_order="left")
        numbers = joined.select(pl.col(table.columns[1:]).fill_null(float("nan"))).to_numpy()
        present[m] = np.isfinite(numbers).all(1)
        p, rest = numbers[:, : len(classes)], numbers[:, len(classes) :]
        logp[m] = np.where(present[m][:, None], np.log(np.clip(p, FLOOR, None)), 0.0) if len(classes) else p
        values[m] = np.where(present[m][:, None], rest, 0.0)
    return StackedPredictions(tuple(members), tuple(utterances), tuple(classes), tuple(attributes), logp, values, present, stage)
