"""From a manifest and splits to the data of a trial: labels joined by utterance id, folds as row
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from raysere.base.errors import DataError
from raysere.corpora.grouping import linked_heads
from raysere.training.task import Fold, Labels, Task, TrialData

if TYPE_CHECKING:
    from raysere.corpora.labels import ClassMap
    from raysere.corpora.manifest import Manifest
    from raysere.features.views import FeatureView

_SEX = {"female": 0, "f": 0, "male": 1, "m": 1}


def build_labels(manifest: Manifest, class_map: ClassMap | None, task: Task) -> tuple[Labels, dict[str, int]]:
    """Targets and groups of all utterances of a manifest, in its order.

    An utterance whose label the class map leaves out stays, with label -1: its votes can still
    teach (docs/methods.md 1.5: O/X items), and nothing else reads it. Votes go through the same
    map; votes for classes outside the task do not count. An attribute that the manifest does not
    give is the mean of its votes; attributes are mapped from the corpus's scale to the task's.

    Returns:
        The labels, and how many utterances the class map left out, by own label.
    """
    table = manifest.table
    label = np.full(table.height, -1, dtype=np.int64)
    dropped: dict[str, int] = {}
    soft = votes = attributes = None
    if task.categorical:
        if class_map is None:
            raise DataError("A categorical task needs a class map")
        if tuple(class_map.classes) != tuple(task.classes):
            raise DataError(f"The class map {class_map.name!r} and the task name different classes", choices=class_map.classes)
        number = {name: code for code, name in enumerate(task.classes)}
        mapped, dropped = class_map.apply(table)
        label = np.array([-1 if name is None else number[name] for name in mapped], dtype=np.int64)
        soft, votes = _votes(table, class_map, number)
    if task.dimensional:
        attributes = _attributes(manifest, task)
    speaker, speakers = _codes(table["speaker"])
    corpus, corpora = _codes(table["corpus"])
    sex = np.array([_SEX.get((value or "").lower(), -1) for value in table["sex"].to_list()], dtype=np.int64)
    duration = table["duration_s"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return Labels(table["utterance"].to_list(), label, soft, attributes, speaker, speakers, corpus, corpora, sex, duration, votes), dropped


def _codes(column: pl.Series) -> tuple[np.ndarray, list[str]]:
    names = sorted(column.drop_nulls().unique().to_list())
    number = {name: code for code, name in enumerate(names)}
    return np.array([number[name] for name in column.to_list()], dtype=np.int64), names


def _exploded(table: pl.DataFrame) -> pl.DataFrame:
    """One row a vote: ``row`` of the table, corpus, and the fields of the vote."""
    rows = table.select("corpus", "votes").with_row_index("row").filter(pl.col("votes").list.len() > 0)
    return rows.explode("votes").unnest("votes")


def _votes(table: pl.DataFrame, class_map: ClassMap, number: Mapping[str, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
    ballots = _exploded(table).filter(pl.col("emotion").is_not_null())
    if not ballots.height:
        return None, None
    pairs = ballots.select("corpus", "emotion").unique()
    known: dict[tuple[str, str], int] = {}
    for corpus, emotion in pairs.iter_rows():
        try:
            name = class_map.apply(pl.DataFrame({"corpus": [corpus], "emotion": [emotion]}))[0][0]
        except DataError:  # raters may choose what no consensus label is ("other", free text): such a vote counts for no class
            name = None
        if name is not None:
            known[corpus, emotion] = number[name]
    counts = np.zeros((table.height, len(number)), dtype=np.float32)
    for row, corpus, emotion in ballots.select("row", "corpus", "emotion").iter_rows():
        if (corpus, emotion) in known:
            counts[row, known[corpus, emotion]] += 1
    total = counts.sum(1)
    return counts / np.maximum(total, 1)[:, None], total


def _attributes(manifest: Manifest, task: Task) -> np.ndarray:
    table = manifest.table
    values = np.stack([table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in task.attributes], axis=1).astype(
        np.float64
    )
    ballots = _exploded(table)
    if ballots.height:
        means = ballots.group_by("row").agg([pl.col(name).mean() for name in task.attributes])
        voted = np.full(values.shape, np.nan)
        voted[means["row"].to_numpy()] = means.select(
            [pl.col(name).cast(pl.Float64).fill_null(float("nan")) for name in task.attributes]
        ).to_numpy()
        values = np.where(np.isfinite(values), values, voted)
    low, high = task.scale
    for corpus in table["corpus"].unique().to_list():
        own_low, own_high = manifest.scales.get(corpus, task.scale)
        here = (table["corpus"] == corpus).to_numpy()
        values[here] = low + (values[here] - own_low) / (own_high - own_low) * (high - low)
    return values.astype(np.float32)


def trial_data(
    labels: Labels,
    splits: pl.DataFrame,
    outer: int,
    features: Mapping[str, FeatureView],
    task: Task,
    *,
    by_speaker: bool = True,
    linked_speakers: Sequence[Sequence[str]] = (),
    transductive: bool = False,
) -> TrialData:
    """What a trial of one outer split sees.

    Fold f trains on the rows of the pool whose fold is not f (rows without a fold always train) and
    is scored on those whose fold is f and that have a target. Test rows are predicted only, rows of
    role ``adapt`` learned from without their labels: the labels of neither are in what is returned.

    Args:
        splits: table of ``outer, utterance, role ("pool", "test" or "adapt"), fold``.
        by_speaker: False for splits by dialogue or sentence, in which speakers recur.
        linked_speakers: groups of speaker names that count as one speaker.
        transductive: the test rows are adapted to, too.

    Raises:
        DataError: an unknown outer split, an utterance without labels row, an utterance on both
            sides of a split, or (unless ``by_speaker`` is False) a speaker whose utterances with a
            target are trained on while others are held out.
    """
    here = splits.filter(pl.col("outer") == outer)
    if not here.height:
        raise DataError(f"There is no outer split {outer}", choices=sorted(splits["outer"].unique().to_list()))
    number = {utterance: row for row, utterance in enumerate(labels.utterances)}
    missing = [utterance for utterance in here["utterance"].to_list() if utterance not in number]
    if missing:
        raise DataError(f"{len(missing)} utterances of the splits are not among the labels", where=", ".join(missing[:5]))
    rows = np.array([number[utterance] for utterance in here["utterance"].to_list()], dtype=np.int64)
    order = np.argsort(rows, kind="stable")  # row order, so that a shuffled splits file trains the same
    rows = rows[order]
    pool = (here["role"] == "pool").to_numpy()[order]
    fold = here["fold"].cast(pl.Int64).fill_null(-1).to_numpy()[order]
    target = labels.has_target(task)
    person = _persons(labels, linked_speakers) if by_speaker else None
    teaches = labels.has_target(task, soft=True)
    folds = []
    for value in np.unique(fold[pool & (fold >= 0)]).tolist():
        train, dev = rows[pool & (fold != value)], rows[pool & (fold == value)]
        where = f"fold {value} of outer split {outer}"
        _disjoint(labels, train, dev, where)
        _no_shared_speaker(labels, person, train[teaches[train]], dev[target[dev]], where)
        folds.append(Fold(int(value), train, dev[target[dev]]))
    if not folds:
        raise DataError(f"The outer split {outer} has no development fold")
    tested = (here["role"] == "test").to_numpy()[order]
    test, adapt = rows[tested], rows[~pool & ~tested]
    for part, name in ((test, "test"), (adapt, "target")):
        where = f"the {name} part of outer split {outer}"
        _disjoint(labels, rows[pool], part, where)
        _no_shared_speaker(labels, person, rows[pool & teaches[rows]], part, where)
    if not transductive:
        _no_shared_speaker(labels, person, adapt, test, f"the test part of outer split {outer}")
    adapt = np.union1d(adapt, test) if transductive else adapt
    return TrialData(task, _only(labels, rows[pool]), tuple(folds), test, dict(features), unlabelled=adapt)


def _only(labels: Labels, rows: np.ndarray) -> Labels:
    """The same rows with the targets of ``rows`` alone."""
    hidden = np.ones(len(labels), bool)
    hidden[rows] = False

    def without(values: np.ndarray | None, nothing: float) -> np.ndarray | None:
        if values is None:
            return None
        values = values.copy()
        values[hidden] = nothing
        return values

    label = np.where(hidden, -1, labels.label)
    soft, votes = without(labels.soft, 0.0), without(labels.votes, 0.0)
    return replace(labels, label=label, soft=soft, votes=votes, attributes=without(labels.attributes, np.nan))


def add_copies(data: TrialData, names: Sequence[str]) -> TrialData:
    """The same trial with altered copies of its clips: labels of ``utterance@name`` for every name,
    spoken by speakers of their own.
    """
    labels, count = data.labels, len(data.labels)
    rows = np.unique(np.concatenate([part for fold in data.folds for part in (fold.train, fold.dev)]))
    every = np.concatenate([np.arange(count), *([rows] * len(names))])
    number = np.concatenate([np.zeros(count, dtype=np.int64), np.repeat(np.arange(1, len(names) + 1), len(rows))])

    columns = ("label", "soft", "attributes", "corpus", "sex", "duration_s", "votes")
    grown: dict[str, Any] = {name: None if (values := getattr(labels, name)) is None else values[every] for name in columns}
    ids = [*labels.utterances, *(f"{labels.utterances[row]}@{name}" for name in names for row in rows)]
    speakers = [*labels.speakers, *(f"{speaker}@{name}" for name in names for speaker in labels.speakers)]
    wide = replace(
        labels,
        utterances=ids,
        speakers=speakers,
        speaker=labels.speaker[every] + number * len(labels.speakers),
        **grown,
    )
    return replace(data, labels=wide, original=np.where(number > 0, every, -1))


def _disjoint(labels: Labels, train: np.ndarray, held: np.ndarray, where: str) -> None:
    both = np.intersect1d(train, held)
    if len(both):
        raise DataError(f"{len(both)} utterances are on both sides of a split", where=f"{where}: {labels.utterances[both[0]]}")


def _persons(labels: Labels, linked_speakers: Sequence[Sequence[str]]) -> np.ndarray:
    """Code of the person of each row: of its speaker, or of the first of those that are linked to
    it.
    """
    head = linked_heads(linked_speakers)
    number: dict[str, int] = {}
    codes = np.array([number.setdefault(head.get(name, name), len(number)) for name in labels.speakers], dtype=np.int64)
    return codes[labels.speaker] if len(codes) else labels.speaker


def _no_shared_speaker(labels: Labels, person: np.ndarray | None, train: np.ndarray, held: np.ndarray, where: str) -> None:
    """DataError where a person is heard on both sides. ``person`` None: nobody asks."""
    if person is None:
        return
    both = np.intersect1d(person[train], person[held])
    if len(both):
        rows = np.concatenate([train, held])
        names = sorted({labels.speakers[code] for code in labels.speaker[rows[np.isin(person[rows], both)]]})
        raise DataError(
            f"{len(both)} speaker{'s are' if len(both) > 1 else ' is'} on both sides of a split: {', '.join(names[:10])}",
            where=where,
            remedy="Make the splits again, by speaker; linked speakers count as one.",
        )
