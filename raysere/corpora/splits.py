"""Splits into training, development and test rows: by speaker by default, stratified, seeded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raysere.base.errors import DataError
from raysere.corpora.balance import assign
from raysere.corpora.grouping import Grouped, linked_heads

SPLIT_SCHEMA = {"outer": pl.Int32, "utterance": pl.String, "role": pl.String, "fold": pl.Int32}
LOSO = "leave_one_speaker_out"


def _texts(value: object) -> object:
    """Speaker ids are text, also where YAML read a number."""
    if isinstance(value, (list, tuple)):
        return [[str(one) for one in part] if isinstance(part, (list, tuple)) else part for part in value]
    return value


_Folds = Annotated[Annotated[int, Field(ge=2)] | Literal["leave_one_speaker_out"] | list[list[str]], BeforeValidator(_texts)]


class Protocol(BaseModel):
    """How utterances are divided into training, development and test rows.

    Speakers never cross a border unless `by` says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["holdout", "out_of_fold", "nested", "transfer"] = Field(
        "out_of_fold",
        description="`holdout`: one training, development and test part, the corpus's own where it has them. `out_of_fold`: each "
        "configuration is scored on folds; rows that the corpus marks as test stay outside and are read once. `nested`: each outer fold "
        "is the test set once, and the rest is divided into inner folds; the corpus's own split is not used. `transfer`: the corpora "
        "of `source` are learned from, those of `target` are adapted to and tested, and no label of theirs is read.",
        examples=["nested"],
    )
    by: Literal["speaker", "dialogue", "sentence"] = Field(
        "speaker",
        description="What never stands on both sides of a border. With `dialogue` or `sentence` (utterances of one transcript) speakers "
        "recur, and intervals are over dialogues or sentences.",
        examples=["dialogue"],
    )
    outer: _Folds = Field(
        5,
        description="Outer folds of `nested`, and of the target speakers of `transfer`: a number, `leave_one_speaker_out`, or lists "
        "of speakers.",
        examples=["leave_one_speaker_out"],
    )
    inner: Annotated[int, Field(ge=2)] | Literal["leave_one_speaker_out"] = Field(
        5, description="Inner folds of `nested`: a number or `leave_one_speaker_out`.", examples=[3]
    )
    folds: _Folds = Field(
        5,
        description="Folds of `out_of_fold`, and of the source speakers of `transfer`: a number, `leave_one_speaker_out`, or lists "
        "of speakers.",
        examples=[[["s01", "s02"], ["s03", "s04"]]],
    )
    dev_share: float = Field(
        0.2,
        gt=0,
        lt=0.9,
        description="Share of the utterances in the development part of a `holdout`, where the corpus has none.",
        examples=[0.1],
    )
    test_share: float = Field(
        0.2, gt=0, lt=0.9, description="Share of the utterances in the test part of a `holdout`, where the corpus has none.", examples=[0.1]
    )
    always_train: tuple[Literal["train", "dev"], ...] = Field(
        (),
        description="Parts of the corpus's own split that every model trains on and that are never scored; the folds are made of the rest. "
        "For `out_of_fold` and `nested`.",
        examples=[["train"]],
    )
    leave_out: tuple[Literal["train", "dev", "test"], ...] = Field(
        (), description="Parts of the corpus's own split that are not used at all.", examples=[["test"]]
    )
    source: tuple[str, ...] = Field((), description="Corpora of a `transfer` that are learned from, by name.", examples=[["emodb"]])
    target: tuple[str, ...] = Field(
        (), description="Corpora of a `transfer` that are adapted to without their labels, and tested.", examples=[["emovo"]]
    )
    transductive: bool = Field(
        False,
        description="Adapt to the very clips that are tested (all of the target). Otherwise the target speakers of each outer fold are "
        "tested once, after an adaptation to the other target speakers.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if self.dev_share + self.test_share > 0.9:
            raise ValueError(f"dev_share {self.dev_share:g} and test_share {self.test_share:g} leave less than a tenth for training")
        if self.always_train and self.kind in ("holdout", "transfer"):
            raise ValueError(f"a {self.kind} trains on one part in any case: `always_train` is for out_of_fold and nested")
        if (self.kind == "transfer") != bool(self.source or self.target) or bool(self.source) != bool(self.target):
            raise ValueError("`transfer` needs source and target, lists of names of corpora; the other protocols have none")
        if both := sorted(set(self.source) & set(self.target)):
            raise ValueError(f"{both[0]} is in source and in target")
        if self.transductive and self.kind != "transfer":
            raise ValueError("only a `transfer` is transductive or not")
        if self.kind == "transfer" and self.by != "speaker":
            raise ValueError("a `transfer` is by speaker")
        if both := sorted(set(self.always_train) & set(self.leave_out)):
            raise ValueError(f"{both[0]} is in always_train and in leave_out")
        target = [] if self.transductive else [self.outer]
        used = {"nested": [self.outer, self.inner], "out_of_fold": [self.folds], "holdout": [], "transfer": [self.folds, *target]}[
            self.kind
        ]
        if self.by != "speaker" and any(not isinstance(folds, int) for folds in used):
            raise ValueError(f"folds by {self.by} are a number; {LOSO} and lists of speakers need `by: speaker`")
        if any(isinstance(folds, list) and (len(folds) < 2 or not all(folds)) for folds in used):
            raise ValueError("a list of folds needs two or more folds, each with at least one speaker")
        return self


def make_splits(table: pl.DataFrame, protocol: Protocol, seed: int, linked_speakers: Sequence[Sequence[str]] = ()) -> pl.DataFrame:
    """Divide utterances; the answer depends on the content of ``table`` and the seed, not on the
    order of the rows.

    Args:
        table: columns utterance, speaker, label (the class; all null where there are no classes,
            then only sizes are balanced), optionally split (the corpus's own), and dialogue or
            transcript where the protocol divides by them. Rows whose split is ``unlabelled``, and
            rows without a label while others have one, take no part.
        protocol: see :class:`Protocol`.
        seed: any whole number of at least 0.
        linked_speakers: groups of speakers that are kept together.

    Returns:
        Columns outer (i32), utterance (str), role (``pool`` or ``test``, or ``adapt`` for target
        rows of a transfer that are learned from without their labels), fold (i32 or null), sorted
        by outer and utterance. For outer o and fold f: dev = rows of o with fold == f; train = rows
        of o with role pool and fold != f, a null fold being always trained on.

    Raises:
        DataError: a group in two parts, one group or one class only, fewer groups than folds, a
            class missing from a training part, no dev rows.
    """
    table = _without(table, protocol.leave_out)
    if protocol.kind == "transfer":
        return _transfer(table, protocol, seed, linked_speakers)
    data = Grouped(table, protocol.by, linked_speakers)
    always = np.isin(data.split, protocol.always_train)
    if protocol.always_train:
        _check_always(data, always, protocol.always_train)
    if protocol.kind == "holdout":
        parts = [_holdout(data, protocol, seed)]
    elif protocol.kind == "out_of_fold":
        test = data.rows(data.split == "test")
        pool = data.rows((data.split != "test") & ~always)
        data.apart({"test": test, "the pool (train and dev)": pool, "what is always trained on": data.rows(always)})
        fold = _folds(data, pool, protocol.folds, seed, 0, always=always)
        parts = [(np.where(data.split == "test", "test", "pool"), fold)]
    else:
        data.apart({"the folds": data.rows(~always), "what is always trained on": data.rows(always)})
        outer = _folds(data, data.rows(~always), protocol.outer, seed, 0, carriers=2, always=always)
        parts = []
        for number in range(outer.max() + 1):
            pool = data.rows((outer != number) & ~always)
            parts.append(
                (
                    np.where(outer == number, "test", "pool"),
                    _folds(data, pool, protocol.inner, seed, number + 1, where=f" of outer fold {number}", always=always),
                )
            )
    return pl.concat([_frame(number, data.utterances, role, fold) for number, (role, fold) in enumerate(parts)]).sort("outer", "utterance")


def _frame(outer: int, utterances: Sequence[str], role: np.ndarray, fold: np.ndarray) -> pl.DataFrame:
    """Rows of one outer split; ``fold`` int (n,), -1 for none."""
    folds = [None if one < 0 else int(one) for one in fold]
    columns = {"outer": [outer] * len(utterances), "utterance": list(utterances), "role": role.tolist(), "fold": folds}
    return pl.DataFrame(columns, schema=SPLIT_SCHEMA)


def _transfer(table: pl.DataFrame, protocol: Protocol, seed: int, linked_speakers: Sequence[Sequence[str]]) -> pl.DataFrame:
    """Folds of the source, and who of the target is adapted to and who is tested; the target is
    divided by sizes, not by labels.
    """
    if "corpus" not in table.columns:
        raise DataError("The table to split lacks corpus", choices=table.columns)
    there = sorted(set(table["corpus"].to_list()))
    if absent := [name for name in (*protocol.source, *protocol.target) if name not in there]:
        raise DataError(f"There is no corpus {absent[0]!r}", where="protocol", choices=there)
    mapped = table.filter(pl.col("label").is_not_null())
    source = Grouped(mapped.filter(pl.col("corpus").is_in(protocol.source)), "speaker", linked_speakers)
    hidden = mapped.filter(pl.col("corpus").is_in(protocol.target)).with_columns(label=pl.lit(None, dtype=pl.String))
    target = Grouped(hidden, "speaker", linked_speakers)
    if both := sorted(set(source.group_names) & set(target.group_names)):
        raise DataError(f"{len(both)} speakers are in the source and in the target: {', '.join(both[:10])}")
    none = np.zeros(len(source), bool)
    fold = _folds(source, source.rows(~none), protocol.folds, seed, 0, where=" of the source", always=none)
    tested = np.zeros(len(target), np.int64)
    if not protocol.transductive:
        none = np.zeros(len(target), bool)
        tested = _folds(target, target.rows(~none), protocol.outer, seed, 1, where=" of the target", always=none)
    frames = []
    for outer in range(tested.max() + 1):
        frames.append(_frame(outer, source.utterances, np.full(len(source), "pool"), fold))
        frames.append(_frame(outer, target.utterances, np.where(tested == outer, "test", "adapt"), np.full(len(target), -1)))
    return pl.concat(frames).sort("outer", "utterance")


def verify_splits(splits: pl.DataFrame, speakers: Mapping[str, str] | pl.DataFrame, linked_speakers: Iterable[Sequence[str]] = ()) -> None:
    """Check that no speaker (or other group) is in two parts of any outer fold.

    Args:
        splits: as :func:`make_splits` returns them.
        speakers: utterance to speaker, as a mapping or a table with these two columns. For splits
            by dialogue or sentence give those instead.
        linked_speakers: count as one.

    Raises:
        DataError: names up to ten of them; an utterance twice; an utterance without a speaker; a
            dev fold among the test rows.
    """
    if isinstance(speakers, pl.DataFrame):
        speakers = dict(speakers.select("utterance", "speaker").iter_rows())
    head = linked_heads(linked_speakers)
    unknown = sorted(set(splits["utterance"].to_list()) - set(speakers))
    if unknown:
        raise DataError(f"{len(unknown)} utterances of the splits have no speaker, the first is {unknown[0]!r}")
    if splits.select(pl.struct("outer", "utterance").is_duplicated().any()).item():
        raise DataError("The splits list an utterance twice in one outer fold")
    if splits.filter((pl.col("role") != "pool") & pl.col("fold").is_not_null()).height:
        raise DataError("A test or target row of the splits has a fold: it would be trained on or choose")
    places: defaultdict[tuple[int, str], set[tuple[str, int | None]]] = defaultdict(set)
    for outer, utterance, role, fold in splits.iter_rows():
        speaker = speakers[utterance]
        places[outer, head.get(speaker, speaker)].add((role, fold))
    crossing = sorted(f"{speaker} (outer {outer})" for (outer, speaker), found in places.items() if len(found) > 1)
    if crossing:
        raise DataError(
            f"{len(crossing)} speakers are in two parts of the splits: {', '.join(crossing[:10])}", remedy="Make the splits again."
        )


def describe_splits(splits: pl.DataFrame, table: pl.DataFrame, protocol: Protocol) -> list[str]:
    """What the user must know of these splits: speakers that recur (by dialogue or sentence),
    classes that a dev fold or the test rows lack.
    """
    notes = []
    joined = splits.join(table.select("utterance", "speaker", pl.col("label").cast(pl.String)), on="utterance", how="left")
    if protocol.by != "speaker":
        many = (
            joined.group_by("outer", "speaker")
            .agg(pl.struct("role", "fold").n_unique().alias("parts"))
            .filter(pl.col("parts") > 1)["speaker"]
            .n_unique()
        )
        notes.append(
            f"Split by {protocol.by}: {many} of {joined['speaker'].n_unique()} speakers are in more than one part, "
            "so the figures are not speaker-independent."
        )
    classes = set(joined["label"].drop_nulls().to_list())
    parts = (
        joined.filter((pl.col("role") == "test") | pl.col("fold").is_not_null())
        .group_by("outer", "role", "fold")
        .agg(pl.col("label").unique())
    )
    for outer, role, fold, found in parts.sort("outer", "role", "fold").iter_rows():
        absent = sorted(classes - set(found))
        if absent:
            place = "the test rows have" if role == "test" else f"dev fold {fold} has"
            notes.append(f"{f'Outer fold {outer}: ' if protocol.kind in ('nested', 'transfer') else ''}{place} no {', '.join(absent)}.")
    return notes


def _without(table: pl.DataFrame, parts: Sequence[str]) -> pl.DataFrame:
    """The table without these parts of the corpus's own split."""
    if not parts or "split" not in table.columns:
        return table
    return table.filter(~pl.col("split").cast(pl.String).fill_null("").is_in(parts))


def _check_always(data: Grouped, always: np.ndarray, parts: Sequence[str]) -> None:
    if not always.any():
        raise DataError(
            f"No utterance is in the part {' or '.join(parts)} of the corpus's own split, which is to be trained on always",
            choices=sorted({one for one in data.split.tolist() if one}),
            remedy="Correct protocol.always_train, or give the manifest a column `split`.",
        )
    if always.all():
        raise DataError("Every utterance is in `always_train`, so none is left to score", remedy="Shorten protocol.always_train.")


def _folds(
    data: Grouped,
    pool: np.ndarray,
    folds: int | str | list[list[str]],
    seed: int,
    stage: int,
    *,
    always: np.ndarray,
    carriers: int = 1,
    where: str = "",
) -> np.ndarray:
    """Fold of each row of the data, -1 outside the pool; ``always`` (bool) are the rows that are
    trained on beside.
    """
    groups, counts = data.counts(pool)
    if len(groups) < 2:
        name = f", {data.group_names[groups[0]]!r}" if len(groups) else ""
        raise DataError(
            f"There is only {len(groups)} {data.name}{name} to divide into folds{where}",
            remedy=f"Folds need two or more {data.name}s; linked speakers count as one.",
        )
    if isinstance(folds, str):  # leave one speaker out
        part = np.arange(len(groups))
    elif isinstance(folds, int):
        if len(groups) < folds:
            raise DataError(
                f"{folds} folds{where} need {folds} {data.name}s, and there are {len(groups)}",
                remedy=f"Ask for {len(groups)} folds or fewer; linked speakers count as one.",
            )
        part = assign(counts, np.full(folds, 1 / folds), 1 - np.eye(folds), np.random.default_rng([seed, stage]), carriers=carriers)
    else:
        part = _given(data, groups, folds)
    fold = np.full(len(data), -1, np.int64)
    fold[pool] = part[np.searchsorted(groups, data.group[pool])]
    if data.labelled:
        complaints = [
            line
            for number in range(part.max() + 1)
            for line in data.trainable(
                data.rows(((fold != number) & (fold >= 0)) | always), f"without fold {number}, the training part{where}", pool
            )
        ]
        if complaints:
            raise DataError(
                f"A class is missing from a training part: {'; '.join(complaints[:10])}",
                remedy=f"A class needs two {data.name}s or more in the pool. Ask for other folds, or leave the class out in the class map.",
            )
    return fold


def _given(data: Grouped, groups: np.ndarray, folds: list[list[str]]) -> np.ndarray:
    """Part of each group from lists of speakers, written ``emodb/03`` or, where that is clear,
    ``03``.
    """
    present = {name: group for name, group in data.members.items() if group in set(groups.tolist())}
    short: defaultdict[str, list[str]] = defaultdict(list)
    for name in present:
        short[name.split("/", 1)[-1]].append(name)
    found: dict[int, int] = {}
    named: dict[str, int] = {}
    for number, speakers in enumerate(folds):
        for speaker in speakers:
            names = [speaker] if speaker in present else short.get(speaker, [])
            if len(names) != 1:
                fault = f"could be {' or '.join(sorted(names))}" if names else "has no utterances here"
                raise DataError(
                    f"The fold {number} names the speaker {speaker!r}, which {fault}",
                    choices=sorted(present),
                )
            if named.setdefault(names[0], number) != number:
                raise DataError(f"The speaker {names[0]!r} is in the folds {named[names[0]]} and {number}")
            group = present[names[0]]
            if found.setdefault(group, number) != number:
                mates = sorted(name for name, other in present.items() if other == group)
                raise DataError(
                    f"The linked speakers {', '.join(mates)} are in the folds {found[group]} and {number}",
                    remedy="They share speech: put them into one fold.",
                )
    left = sorted(name for name in present if name not in named and present[name] not in found)
    if left:
        raise DataError(
            f"{len(left)} of {len(present)} speakers are in no fold: {', '.join(left[:10])}", remedy="Every speaker belongs to one fold."
        )
    return np.array([found[group] for group in groups.tolist()])


def _holdout(data: Grouped, protocol: Protocol, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Roles and folds (0 for dev, -1 for train and test) by the corpus's own split, made where it
    is missing.
    """
    split = data.split.astype(object)
    own = {name: data.rows(split == name) for name in ("train", "dev", "test", "")}
    if len(own[""]) < len(data):
        data.apart({name or "no part": rows for name, rows in own.items()})
    free = own[""]
    parts: tuple[str, ...]
    shares: tuple[float, ...]
    parts, shares = ("train", "dev", "test"), (1 - protocol.dev_share - protocol.test_share, protocol.dev_share, protocol.test_share)
    if len(free) == 0 and len(own["dev"]) == 0:
        free, parts, shares = own["train"], ("train", "dev"), (1 - protocol.dev_share, protocol.dev_share)
    if len(free):
        groups, counts = data.counts(free)
        if len(groups) < len(parts):
            raise DataError(
                f"A holdout of {' and '.join(parts)} needs {len(parts)} {data.name}s, "
                f"and there {'is' if len(groups) == 1 else 'are'} {len(groups)}",
                remedy="Use more data or folds (`kind: out_of_fold`).",
            )
        part = assign(counts, np.array(shares), np.eye(len(parts))[:1], np.random.default_rng([seed, 0]))
        split[free] = np.array(parts)[part[np.searchsorted(groups, data.group[free])]]
    train, dev = data.rows(split == "train"), data.rows(split == "dev")
    for name, rows in (("training", train), ("development", dev)):
        if len(rows) == 0:
            raise DataError(
                f"The corpus's own split leaves no {name} utterance",
                remedy="Choose the protocol out_of_fold or nested, or correct the column split.",
            )
    if data.labelled:
        complaints = data.trainable(train, "the training part", np.arange(len(data)))
        if complaints:
            raise DataError(
                f"A class is missing from a training part: {'; '.join(complaints[:10])}",
                remedy="Leave the class out in the class map, or choose another protocol.",
            )
    return np.where(split == "test", "test", "pool"), np.where(split == "dev", 0, -1)
