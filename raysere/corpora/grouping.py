"""Groups of utterances that stay together in a split: speakers, dialogues or sentences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from raysere.base.errors import DataError

#: The manifest column of a unit, where it has another name.
COLUMNS = {"sentence": "transcript"}


def group_key(value: object, by: str) -> str:
    """The group that a value of the unit's column names; sentences are compared without regard to
    case and spaces.
    """
    return " ".join(str(value).casefold().split()) if by == "sentence" else str(value)


class Grouped:
    """The rows that take part, sorted by utterance, with groups and classes as numbers."""

    def __init__(self, table: pl.DataFrame, by: str, linked: Sequence[Sequence[str]]) -> None:
        column = COLUMNS.get(by, by)
        absent = [name for name in dict.fromkeys(("utterance", "speaker", "label", column)) if name not in table.columns]
        if absent:
            raise DataError(f"The table to split lacks {', '.join(absent)}", choices=table.columns)
        if "split" not in table.columns:
            table = table.with_columns(split=pl.lit(None, dtype=pl.String))
        table = (
            table.with_columns(pl.col("split").cast(pl.String), pl.col("label").cast(pl.String))
            .filter(pl.col("split").ne_missing("unlabelled"))
            .sort("utterance")
        )
        self.labelled = table["label"].null_count() < table.height
        table = table.filter(pl.col("label").is_not_null()) if self.labelled else table.with_columns(label=pl.lit(""))
        if table.height == 0:
            raise DataError("The table has no utterances to split")
        if table["utterance"].n_unique() < table.height:
            raise DataError(
                "The table to split holds an utterance twice", where=table.filter(pl.col("utterance").is_duplicated())["utterance"][0]
            )
        if table[column].null_count():
            raise DataError(
                f"{table[column].null_count()} of {table.height} utterances have no {column}",
                remedy=f"The protocol divides by {by}; choose another `by`.",
            )
        self.name = by
        self.utterances: list[str] = table["utterance"].to_list()
        self.split = np.array([one or "" for one in table["split"].to_list()])
        keys = [group_key(key, by) for key in table[column].to_list()]
        head = linked_heads(linked) if by == "speaker" else {}
        groups = [head.get(key, key) for key in keys]
        self.group_names = sorted(set(groups))
        number = {name: index for index, name in enumerate(self.group_names)}
        self.group = np.array([number[name] for name in groups], np.int64)
        self.members: dict[str, int] = dict(zip(keys, self.group.tolist(), strict=True))
        self.classes = sorted(set(table["label"].to_list()))
        code = {name: index for index, name in enumerate(self.classes)}
        self.label = np.array([code[name] for name in table["label"].to_list()], np.int64)
        if self.labelled and len(self.classes) < 2:
            raise DataError(
                f"All {len(self)} utterances have the class {self.classes[0]!r}: there is nothing to tell apart",
                remedy="Check the class map and the corpus's labels; two classes are the least.",
            )

    def __len__(self) -> int:
        return len(self.utterances)

    def rows(self, mask: np.ndarray) -> np.ndarray:
        return np.flatnonzero(mask)

    def counts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Groups among the rows (numbers), and their class counts (groups, classes); classes
        without rows are left out.
        """
        groups, place = np.unique(self.group[rows], return_inverse=True)
        counts = np.zeros((len(groups), len(self.classes)), np.int64)
        np.add.at(counts, (place, self.label[rows]), 1)
        return groups, counts[:, counts.sum(0) > 0]

    def apart(self, parts: Mapping[str, np.ndarray]) -> None:
        """DataError where a group is in two of the named parts."""
        places: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for part, rows in parts.items():
            for group, count in Counter(self.group[rows].tolist()).items():
                places[group][part] = count
        crossing = [
            f"{self.group_names[group]} ({', '.join(f'{count} in {part}' for part, count in found.items())})"
            for group, found in sorted(places.items())
            if len(found) > 1
        ]
        if crossing:
            raise DataError(
                f"{len(crossing)} of {len(self.group_names)} {self.name}s are in two parts of the corpus's own split: "
                f"{'; '.join(crossing[:10])}",
                remedy="Divide by another unit (`by: dialogue`), choose the protocol nested (it does not use that split), "
                "or correct the column split.",
            )

    def trainable(self, rows: np.ndarray, part: str, of: np.ndarray) -> list[str]:
        """Complaints about a training part that lacks a class which ``of`` has."""
        absent = np.setdiff1d(np.unique(self.label[of]), np.unique(self.label[rows]))
        complaints = []
        for code in absent.tolist():
            hit = of[self.label[of] == code]
            owners = [self.group_names[group] for group in np.unique(self.group[hit])]
            shown = ", ".join(owners[:5]) + (", ..." if len(owners) > 5 else "")
            complaints.append(
                f"{part} has no {self.classes[code]!r} "
                f"(its {len(hit)} utterances are of {len(owners)} {self.name}{'s' if len(owners) > 1 else ''}: {shown})"
            )
        return complaints


def linked_groups(linked: Iterable[Iterable[str]]) -> list[list[str]]:
    """Groups that share a speaker as one group, sorted; groups of one are left out."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for speaker, first in sorted(linked_heads([list(group) for group in linked]).items()):
        groups[first].append(speaker)
    return sorted(group for group in groups.values() if len(group) > 1)


def linked_heads(linked: Iterable[Sequence[str]]) -> dict[str, str]:
    """Speaker to the first of all that it is linked to, directly or through others."""
    head: dict[str, str] = {}

    def find(one: str) -> str:
        while head.setdefault(one, one) != one:
            one = head[one]
        return one

    for group in linked:
        for other in group[1:]:
            first, second = sorted((find(group[0]), find(other)))
            head[second] = first
    return {one: find(one) for one in list(head)}
