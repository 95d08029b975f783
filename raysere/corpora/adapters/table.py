"""A table of the user's own: one row for each utterance, CSV, TSV or parquet."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.adapters.base import Adapter
from raysere.corpora.adapters.tabular import read_text_or_parquet, typed_column
from raysere.corpora.schema import ATTRIBUTES, SCHEMA, SPLIT_NAMES

_SPLITS = {
    **{name: name for name in SPLIT_NAMES},
    "training": "train",
    "development": "dev",
    "devel": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "unlabeled": "unlabelled",
    "none": None,
    "": None,
}
_LABELS = ("emotion", "votes", "traces", *ATTRIBUTES)
_SHOWN = 20
_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".parquet")


class Table(Adapter):
    """Columns ``path, speaker, emotion`` and any other manifest column;
    ``columns: {manifest_column: their_name}`` maps other names.

    Paths are relative to the table's folder, or to ``root``; absolute ones are taken as they are.
    Instead of ``emotion`` a table may have attributes, votes or traces; instead of ``path`` it may
    have ``utterance`` and ``transcript``, for text alone. Duration and rate are read from the
    audio.

    Options: ``root`` (folder of the audio), ``language`` (BCP-47, for a table without that column),
    ``scale`` ([low, high] of the attributes), ``separator`` (one character), ``linked`` (lists of
    speakers that must stay in one fold, ``[[s0, s1], [s4, s7]]``; with several corpora in one table
    ``corpus/speaker``), ``name`` (the corpus's name, default ``table``).
    """

    name = "table"
    licence = "the user's own data"
    layout = "a CSV, TSV or parquet file with the columns path, speaker, emotion, or a folder that holds one such file"

    def read(
        self,
        path: Path,
        columns: Mapping[str, str] | None = None,
        *,
        root: str | None = None,
        language: str | None = None,
        scale: Sequence[float] | None = None,
        separator: str | None = None,
        linked: Sequence[Sequence[str]] = (),
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of the table.

        Raises:
            DataError: columns are missing (the ones found are listed), values are of the wrong kind
                (with their lines).
            ConfigError: ``columns`` names a manifest column that does not exist, an option is of
                the wrong kind, or a linked speaker is none of the table's.
            MissingFileError: ``root`` does not exist.
        """
        groups = _groups(linked)
        _check_text(root=root, separator=separator, language=language)
        file = self._file(path)
        if language is not None:
            self.language = language
        if scale is not None:
            self.scale = _pair(scale)
        table = read_text_or_parquet(file, separator)
        sources = self._sources(table, columns or {}, file)
        first_line = 0 if file.read_bytes()[:4] == b"PAR1" else 2  # a text table has its header in line 1
        values = {
            column: typed_column(table[source], column, source, file, first_line) for column, source in sources.items() if column != "split"
        }
        if "split" in sources:
            values["split"] = self._splits(table[sources["split"]], sources["split"], file, first_line)
        self._link(groups, values["speaker"], values.get("corpus") or [None] * table.height)
        unused = [name for name in table.columns if name not in sources.values()]
        if unused:
            self.note(f"The table {file.name} has columns that were not used: {', '.join(unused)}.")
        self.audio = "path" in sources
        if "path" in values:
            self.audio_root = self._root(values["path"], file, root)
        for row in range(table.height):
            yield {column: column_values[row] for column, column_values in values.items()}

    def _link(self, groups: list[list[str]], speakers: Sequence[str | None], corpora: Sequence[str | None]) -> None:
        """Link speakers that are named as in the table or, as in a manifest, ``corpus/speaker``.

        Every name must be one speaker's.
        """
        full: dict[str, str] = {}
        short: defaultdict[str, set[str]] = defaultdict(set)
        for speaker, corpus in zip(speakers, corpora, strict=True):
            own = (speaker or "").strip() or "unknown"
            key = f"{(corpus or '').strip() or self.corpus}/{own}"
            full[key] = key
            short[own].add(key)
        for group in groups:
            found: list[str] = []
            for speaker in group:
                keys = short.get(speaker) or {full.get(speaker, "")}
                if "" in keys or len(keys) > 1:
                    fault = "is not a speaker of the table" if "" in keys else f"could be {' or '.join(sorted(keys))}"
                    raise ConfigError(
                        f"The linked speaker {speaker!r} {fault}",
                        where="linked",
                        choices=[*sorted(full)[:_SHOWN], *(["..."] if len(full) > _SHOWN else [])],
                        remedy="Write ids as the table has them; ids with leading zeros need quotes.",
                    )
                found += keys
            if len(set(found)) < 2:
                raise ConfigError(
                    f"The linked speakers {', '.join(group)} are one speaker of the table", where="linked", choices=sorted(full)
                )
            self.link(found)

    def _file(self, path: Path) -> Path:
        if path.is_file():
            self.audio_root = path.parent
            return path
        files = sorted(
            file for file in path.iterdir() if file.is_file() and file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
        )
        if len(files) != 1:
            raise DataError(
                f"The folder holds {len(files) or 'no'} tables",
                where=path,
                choices=[file.name for file in files] or None,
                remedy="Name the table file itself.",
            )
        return files[0]

    def _sources(self, table: pl.DataFrame, columns: Mapping[str, str], file: Path) -> dict[str, str]:
        """Manifest column to the table's column."""
        unknown = [column for column in columns if column not in SCHEMA]
        if unknown:
            raise ConfigError(
                f"There is no manifest column {', '.join(map(repr, unknown))}",
                where="columns",
                choices=SCHEMA,
                remedy="Write {manifest column: column of the table}.",
            )
        sources = {column: column for column in SCHEMA if column in table.columns} | {
            column: str(source) for column, source in columns.items()
        }
        missing = [
            f"{source!r} (for {column})" if source != column else repr(source)
            for column, source in sources.items()
            if source not in table.columns
        ]
        if "path" not in sources and not {"utterance", "transcript"} <= set(sources):
            missing.append("'path'")
        if "speaker" not in sources:
            missing.append("'speaker'")
        if not set(sources) & set(_LABELS):
            missing.append("'emotion'")
        if missing:
            raise DataError(
                f"The table lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
                f"it has {', '.join(map(repr, table.columns))}",
                where=file,
                remedy="Map names with `columns: {path: your_column, ...}`.",
            )
        for given in ("duration_s", "sampling_rate"):
            if "path" in sources:
                sources.pop(given, None)
        return sources

    def _splits(self, values: pl.Series, source: str, file: Path, first_line: int) -> list[str | None]:
        given = [None if value is None else str(value).strip() for value in values.cast(pl.String).to_list()]
        bad = [
            f"line {row + first_line}: {value!r}" for row, value in enumerate(given) if value is not None and value.lower() not in _SPLITS
        ]
        if bad:
            raise DataError(
                f"{len(bad)} values of the column {source!r} are not names of a split: {', '.join(bad[:20])}",
                where=file,
                choices=SPLIT_NAMES,
            )
        return [None if value is None else _SPLITS[value.lower()] for value in given]

    def _root(self, paths: list[str | None], file: Path, root: str | None) -> Path:
        """The folder above all audio files; relative paths become absolute where they do not lie
        under the table's folder.
        """
        folder = file.parent if root is None else file.parent / Path(root).expanduser()
        if not folder.is_dir():
            raise MissingFileError(
                "There is no audio folder here",
                where=folder,
                remedy="Correct the option `root` of the table; it counts from the table's folder.",
            )
        folder = Path(os.path.abspath(folder))
        named = [row for row, one in enumerate(paths) if one is not None and one.strip()]
        full = {row: os.path.normpath(folder / Path(str(paths[row]).strip()).expanduser()) for row in named}
        if all(Path(one).is_relative_to(folder) for one in full.values()):
            common = folder
        else:
            common = (
                Path(os.path.commonpath([folder, *(os.path.dirname(one) for one in full.values())]))
                if root is None
                else Path(os.path.commonpath([os.path.dirname(one) for one in full.values()]))
            )
        for row, one in full.items():
            paths[row] = Path(one).relative_to(common).as_posix()
        return common


def _groups(linked: Any) -> list[list[str]]:
    """The option ``linked`` as groups of ids."""
    if linked is None:
        return []
    right = isinstance(linked, list | tuple) and all(isinstance(group, list | tuple) for group in linked)
    right = right and all(isinstance(one, str | int) and not isinstance(one, bool) for group in linked for one in group)
    groups = [[str(one).strip() for one in group] for group in linked] if right else []
    if not right or any(len(set(group)) < 2 for group in groups):
        raise ConfigError(
            f"The option linked of a table is a list of groups of two or more speaker ids, not {linked!r}",
            where="linked",
            remedy="Write a list in the list, also for one group: linked: [[s0, s1]].",
        )
    return groups


def _pair(scale: Any) -> tuple[float, float]:
    """The option ``scale`` as (low, high)."""
    right = isinstance(scale, list | tuple) and len(scale) == 2
    if right and all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in scale):
        low, high = float(scale[0]), float(scale[1])
        if low < high:
            return low, high
    raise ConfigError(
        f"The scale of a table is [low, high], two numbers, not {scale!r}", where="scale", remedy="Write, for example, scale: [1, 7]."
    )


def _check_text(*, root: Any, separator: Any, language: Any) -> None:
    if root is not None and not (isinstance(root, str | os.PathLike) and str(root).strip()):
        raise ConfigError(f"The root of a table is the folder of its audio, not {root!r}", where="root", remedy="Write root: ../audio.")
    if separator is not None and not (isinstance(separator, str) and len(separator.encode()) == 1 and separator not in '"\r\n'):
        raise ConfigError(
            f"The separator of a table is one character, not {separator!r}",
            where="separator",
            remedy='Leave it out for tab, semicolon and comma; a tab is written "\\t", in double quotes.',
        )
    if language is not None and not isinstance(language, str):  # YAML reads no as false: Norwegian needs quotes
        raise ConfigError(f"The language of a table is a BCP-47 code, not {language!r}", where="language", remedy='Write language: "de".')
