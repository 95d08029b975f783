"""The manifest: one parquet file with a row for each utterance, read and checked with polars."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.bounds import parse_json, read_parquet
from raysere.base.errors import DataError, MissingFileError, RaysereError, machine_fault
from raysere.base.files import atomic_write, digest
from raysere.corpora.grouping import linked_groups
from raysere.corpora.schema import REQUIRED, SCHEMA, SPLIT_NAMES
from raysere.corpora.validation import Problem, conform, conversion_problems, validate

__all__ = ["REQUIRED", "SCHEMA", "SPLIT_NAMES", "Manifest", "Problem", "concat", "rows_to_table", "validate"]

FORMAT = "raysere.manifest/1"
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Manifest:
    """A checked table of utterances and what belongs to it. Make one with :meth:`checked`,
    :meth:`read` or :func:`concat`.

    Attributes:
        table: columns of :data:`SCHEMA` in that order, sorted by utterance.
        roots: corpus to the folder that its paths are relative to.
        scales: corpus to (low, high) of arousal, valence and dominance.
        linked_speakers: groups of speakers that must stay in one fold (two ids of one person,
            shared audio); no speaker is in two of them.
        notes: what was handled, and what the user must know.
        synthetic: whether any of it was spoken by a machine.
        channels: speaker to the channel (0 is the left one) that is read from the speaker's files
            with several channels; others are averaged.
    """

    table: pl.DataFrame
    roots: dict[str, str] = field(default_factory=dict)
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)
    linked_speakers: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    synthetic: bool = False
    channels: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.table.height

    def __eq__(self, other: object) -> bool:
        """Equal content; roots and notes do not count."""
        return isinstance(other, Manifest) and self.fingerprint == other.fingerprint

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def checked(
        cls,
        table: pl.DataFrame,
        *,
        roots: Mapping[str, str] | None = None,
        scales: Mapping[str, Sequence[float]] | None = None,
        linked_speakers: Iterable[Iterable[str]] = (),
        notes: Iterable[str] = (),
        synthetic: bool = False,
        channels: Mapping[str, int] | None = None,
        where: object = None,
    ) -> Manifest:
        """A manifest of a table whose columns may be in any order; nullable ones may be missing.
        Groups of linked speakers that share one become one group.

        Raises:
            DataError: names the first 20 problems with row number (of the table as given, from 0),
                column, value, reason and remedy, and their count.
        """
        plain = {corpus: (float(low), float(high)) for corpus, (low, high) in (scales or {}).items()}
        conformed, problems = conform(table)
        problems = problems or validate(conformed, plain)
        if problems:
            ids = conformed["utterance"].to_list()
            lines = "\n".join(
                f"  {problem}{f' ({ids[problem.row]})' if problem.row is not None and problem.column != 'utterance' else ''}"
                for problem in problems[:_SHOWN]
            )
            more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise DataError(
                f"The manifest has {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n{lines}{more}\n",
                where=where,
                remedy="Correct these rows and load it again.",
            )
        return cls(
            conformed.sort("utterance"),
            dict(roots or {}),
            plain,
            linked_groups(linked_speakers),
            list(dict.fromkeys(notes)),
            synthetic,
            {speaker: int(channel) for speaker, channel in sorted((channels or {}).items())},
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex characters: hash of the canonical table, scales, linked speakers and channels.
        Independent of roots, notes and row order.
        """
        buffer = io.BytesIO()
        self.table.write_ndjson(buffer)
        return digest(
            {
                "format": FORMAT,
                "table": digest(buffer.getvalue(), 64),
                "scales": {key: list(value) for key, value in self.scales.items()},
                "linked_speakers": self.linked_speakers,
                **({"channels": self.channels} if self.channels else {}),
            }
        )

    def path(self, row: Mapping[str, Any]) -> Path:
        """The audio file of a row (a dict with at least corpus and path).

        Raises DataError where there is none.
        """
        if row["path"] is None:
            raise DataError(
                f"The utterance {row.get('utterance')!r} has no audio",
                remedy="Use text, or features of your own (`table:`), for this corpus.",
            )
        return self.root(row["corpus"]) / row["path"]

    def root(self, corpus: str) -> Path:
        """The folder of a corpus. Raises DataError for a corpus whose root is not known."""
        if corpus not in self.roots:
            raise DataError(f"The manifest does not say where the corpus {corpus!r} lies", choices=self.roots)
        return Path(self.roots[corpus])

    def with_rows(self, table: pl.DataFrame) -> Manifest:
        """The same manifest with another (smaller, changed) table, checked again; links to speakers
        that are gone are dropped.
        """
        speakers = set(table["speaker"].to_list())
        corpora = set(table["corpus"].to_list())
        return Manifest.checked(
            table,
            roots=self.roots,
            scales={key: value for key, value in self.scales.items() if key in corpora},
            linked_speakers=[[s for s in group if s in speakers] for group in self.linked_speakers],
            notes=self.notes,
            synthetic=self.synthetic,
            channels={key: value for key, value in self.channels.items() if key in speakers},
        )

    def used_by(self, splits: pl.DataFrame) -> Manifest:
        """The rows that some split uses (column utterance); the others, without a label or
        unlabelled, need no features.
        """
        return self.with_rows(self.table.join(splits.select("utterance").unique(), on="utterance", how="semi"))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write one parquet file (zstd); the rest stands as JSON in its key-value metadata under
        ``raysere``. Appears whole or not at all.
        """
        rest = {
            "format": FORMAT,
            "roots": self.roots,
            "scales": {key: list(value) for key, value in self.scales.items()},
            "linked_speakers": self.linked_speakers,
            "notes": self.notes,
            "synthetic": self.synthetic,
            "channels": self.channels,
            "fingerprint": self.fingerprint,
        }
        with atomic_write(path) as temporary:
            self.table.write_parquet(temporary, compression="zstd", metadata={"raysere": json.dumps(rest, ensure_ascii=False)})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read what :meth:`write` wrote, checked again. A relative root counts from the manifest's
        own folder.

        Raises:
            MissingFileError: no such file.
            DataError: no parquet, no manifest, or written by a later version.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"There is no manifest {path.name!r}", where=path.parent)
        try:
            table, metadata = read_parquet(path), pl.read_parquet_metadata(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            if isinstance(error, RaysereError):
                raise
            if fault := machine_fault(error, path):
                raise fault from error
            raise DataError(f"This is not a parquet file that can be read: {str(error).splitlines()[0]}", where=path) from error
        try:
            rest = parse_json(metadata.get("raysere", ""), where=path)
            known = rest["format"] == FORMAT
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                "This parquet file is not a manifest: its metadata lacks the key 'raysere'",
                where=path,
                remedy="Read a table of your own with the corpus 'table'.",
            ) from error
        if not known:
            raise DataError(
                f"This manifest has the format {rest['format']!r}", where=path, choices=[FORMAT], remedy="Update raysere to read it."
            )
        if missing := [name for name in ("roots", "scales", "linked_speakers", "notes", "synthetic") if name not in rest]:
            raise DataError(f"The metadata of this manifest lacks {', '.join(missing)}", where=path)
        if not isinstance(rest["roots"], dict) or not isinstance(rest["scales"], dict):
            raise DataError("The roots and scales of this manifest are not mappings", where=path)
        roots = {corpus: str((path.parent / root).resolve()) if not os.path.isabs(root) else root for corpus, root in rest["roots"].items()}
        return cls.checked(
            table,
            roots=roots,
            scales=rest["scales"],
            linked_speakers=rest["linked_speakers"],
            notes=rest["notes"],
            synthetic=rest["synthetic"],
            channels=rest.get("channels"),
            where=path,
        )


def rows_to_table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """A table of row dicts in the manifest's types and column order.

    Raises:
        DataError: values that do not fit their column, with row number and value (the first 20 of
            them).
    """
    columns, problems = {}, []
    for column, dtype in SCHEMA.items():
        values = [row.get(column) for row in rows]
        try:
            columns[column] = pl.Series(column, values, dtype=dtype, strict=True)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            series, bad = conversion_problems(column, values, dtype)
            problems += bad
            columns[column] = series
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
        raise DataError(
            f"{len(problems)} value{'s do' if len(problems) > 1 else ' does'} not fit the manifest:\n{lines}\n",
            remedy="Correct these values and load it again.",
        )
    return pl.DataFrame(columns)


def concat(manifests: Sequence[Manifest]) -> Manifest:
    """Several corpora as one manifest.

    Raises:
        DataError: no manifest, an utterance in two of them, or one corpus with two roots or two
            scales.
    """
    if not manifests:
        raise DataError("No manifest was given to join")
    roots: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    for manifest in manifests:
        for what, joined, new in (("roots", roots, manifest.roots), ("scales", scales, manifest.scales)):
            for corpus, value in new.items():
                if joined.setdefault(corpus, value) != value:
                    raise DataError(
                        f"The corpus {corpus!r} has two {what}: {joined[corpus]} and {value}", remedy="Give one of them another `name`."
                    )
    return Manifest.checked(
        pl.concat([manifest.table for manifest in manifests]),
        roots=roots,
        scales=scales,
        linked_speakers=[group for manifest in manifests for group in manifest.linked_speakers],
        notes=[note for manifest in manifests for note in manifest.notes],
        synthetic=any(manifest.synthetic for manifest in manifests),
        channels={speaker: channel for manifest in manifests for speaker, channel in manifest.channels.items()},
    )
