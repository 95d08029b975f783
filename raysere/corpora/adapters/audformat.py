"""Any database in audformat's layout: ``db.yaml`` and its CSV or parquet tables.

The files are read directly. The audformat package is not needed: it would unpickle tables and write
pickles beside the corpus.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.base.files import read_yaml
from raysere.corpora.adapters.base import Adapter, Loaded
from raysere.corpora.adapters.tabular import read_text_or_parquet, typed_column
from raysere.corpora.schema import ATTRIBUTES, SCHEMA

_GUESSES = {
    "emotion": ("emotion",),
    "speaker": ("speaker", "speaker_id"),
    "sex": ("gender", "sex"),
    "transcript": ("transcription", "transcript", "text"),
    "language": ("language",),
    "dialogue": ("dialogue", "dialog", "conversation"),
    **{attribute: (attribute,) for attribute in ATTRIBUTES},
}
_LABELS = ("emotion", *ATTRIBUTES)
_SPLITS = {"train": "train", "dev": "dev", "test": "test"}
_LANGUAGES = {
    "deu": "de",
    "ger": "de",
    "eng": "en",
    "ita": "it",
    "pol": "pl",
    "urd": "ur",
    "fra": "fr",
    "fre": "fr",
    "spa": "es",
    "rus": "ru",
    "por": "pt",
    "nld": "nl",
    "tur": "tr",
    "jpn": "ja",
    "kor": "ko",
    "zho": "zh",
    "chi": "zh",
    "hin": "hi",
    "ara": "ar",
    "fas": "fa",
    "per": "fa",
    "ell": "el",
    "dan": "da",
    "swe": "sv",
    "fin": "fi",
    "ces": "cs",
    "hun": "hu",
    "est": "et",
    "ben": "bn",
}  # BCP-47 takes the two-letter code where there is one
_TIME = re.compile(r"^(?:(\d+) days?,? ?)?(?:(\d+):(\d+):(\d+(?:\.\d+)?))?$")  # pandas leaves the clock out of whole days

Key = tuple[str, float | None, float | None]


@dataclass
class _Table:
    """One table of the database: ``columns`` maps a column's id to (scheme id, rater id)."""

    name: str
    columns: dict[str, tuple[str | None, str | None]]
    split: str | None
    data: pl.DataFrame
    keys: list[Key]
    segmented: bool
    file: Path
    first_line: int


class Audformat(Adapter):
    """A folder with ``db.yaml``. Every row of a table with an emotion (or an attribute) is an
    utterance; speaker, sex and transcript are looked up by file.

    Columns are guessed by their id, then by their scheme: emotion, speaker, gender or sex,
    transcription or transcript or text, arousal, valence, dominance, language.
    ``columns: {manifest_column: column}`` says otherwise; ``table:column`` names one of several. A
    table's split id gives the split. Columns with the emotion's scheme and a rater each become
    votes.

    Options: ``tables`` (ids; default all that hold the emotion), ``header`` (base name, default
    ``db``), ``name`` (corpus name, default the database's).
    """

    name = "audformat"
    licence = "as the database's header says"
    homepage = "https://audeering.github.io/audformat"
    layout = "an audformat database: db.yaml, db.TABLE.csv or db.TABLE.parquet, and the media files"

    def load(self, path: str | Path, *, columns: Mapping[str, str] | None = None, name: str | None = None, **options: Any) -> Loaded:
        """As the base class; the corpus is named after the database unless ``name`` is given."""
        header = Path(path).expanduser() / f"{options.get('header', 'db')}.yaml"
        if name is None and header.is_file():
            given = read_yaml(header)
            name = re.sub(r"[/\s]+", "-", str(given["name"])) if isinstance(given, dict) and given.get("name") else None
        return super().load(path, columns=columns, name=name, **options)

    def read(
        self, path: Path, columns: Mapping[str, str] | None = None, *, tables: Sequence[str] | None = None, header: str = "db"
    ) -> Iterator[dict[str, Any]]:
        """Yield the annotated files or segments.

        Raises:
            MissingFileError: no header, or a table's file is missing.
            ConfigError: a table or column that the database does not have.
            DataError: no emotion or attribute in any table, values that contradict each other, a
                table that exists as pickle only.
        """
        if not (path / f"{header}.yaml").is_file():
            raise MissingFileError(f"There is no {header}.yaml", where=path, remedy=f"Expected: {self.layout}.")
        self._folder, self._header = path, header
        meta = read_yaml(path / f"{header}.yaml")
        if not isinstance(meta, dict) or not isinstance(meta.get("tables"), dict):
            raise DataError("This header lists no tables", where=path / f"{header}.yaml", remedy=f"Expected: {self.layout}.")
        self._describe(meta)
        if tables is not None and (unknown := [one for one in tables if one not in meta["tables"]]):
            raise ConfigError(f"The database has no table {', '.join(map(repr, unknown))}", where=path, choices=meta["tables"])
        every = [self._table(name, entry or {}, meta) for name, entry in meta["tables"].items()]
        chosen = self._choose(every, columns or {})
        rows = self._rows(every, chosen, tables)
        self._look_up(rows, every, chosen, meta)
        self._votes(rows, every, chosen, meta)
        for (file, start, end), row in rows.items():
            yield {**row, "path": file, "start_s": start, "end_s": end}

    def _describe(self, meta: dict[str, Any]) -> None:
        languages = [str(one) for one in meta.get("languages") or []]
        if len(languages) == 1:
            self.language = _LANGUAGES.get(languages[0], languages[0])
        if meta.get("license"):
            self.note(f"{meta.get('name', 'audformat')}: licence {meta['license']}.")
        limits = {
            (scheme.get("minimum"), scheme.get("maximum"))
            for name, scheme in (meta.get("schemes") or {}).items()
            if name in ATTRIBUTES and isinstance(scheme, dict)
        }
        if len(limits) == 1:
            low, high = limits.pop()
            if low is not None and high is not None:
                self.scale = (float(low), float(high))

    def _data(self, table: str) -> tuple[pl.DataFrame, Path, int]:
        """A table's data; parquet before CSV; never a pickle."""
        stem = self._folder / f"{self._header}.{table}"
        for suffix, first_line in ((".parquet", 0), (".csv", 2)):
            file = stem.with_name(stem.name + suffix)
            if file.is_file():
                return read_text_or_parquet(file, ","), file, first_line
        if stem.with_name(stem.name + ".pkl").is_file():
            raise DataError(
                f"The table {table!r} exists only as pickle, which can run code and is not read",
                where=self._folder,
                remedy="Convert it where you trust it: audformat.Database.load(folder).save(folder, storage_format='parquet').",
            )
        raise MissingFileError(
            f"The table {table!r} has no file", where=self._folder, remedy=f"Expected {stem.name}.parquet or {stem.name}.csv."
        )

    def _table(self, name: str, entry: dict[str, Any], meta: dict[str, Any]) -> _Table:
        data, file, first_line = self._data(name)
        segmented = {"start", "end"} <= set(data.columns) and entry.get("type") != "filewise"
        if "file" not in data.columns:
            raise DataError(f"The table {name!r} has no column 'file'", where=file, choices=data.columns)
        starts = [_seconds(one, file) for one in data["start"].to_list()] if segmented else [None] * data.height
        ends = [_seconds(one, file) for one in data["end"].to_list()] if segmented else [None] * data.height
        keys: list[Key] = [
            (file_name, None, None) if not start and end is None else (file_name, start or 0.0, end)
            for file_name, start, end in zip(data["file"].cast(pl.String).to_list(), starts, ends, strict=True)
        ]
        columns = {
            column: ((spec or {}).get("scheme_id"), (spec or {}).get("rater_id"))
            for column, spec in (entry.get("columns") or {}).items()
            if column in data.columns
        }
        split = ((meta.get("splits") or {}).get(entry.get("split_id")) or {}).get("type")
        return _Table(name, columns, _SPLITS.get(str(split)), data, keys, segmented, file, first_line)

    def _choose(self, every: list[_Table], columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Manifest column to {table: column id}."""
        unknown = [column for column in columns if column not in SCHEMA]
        if unknown:
            raise ConfigError(f"There is no manifest column {', '.join(map(repr, unknown))}", where="columns", choices=SCHEMA)
        chosen: dict[str, dict[str, str]] = {}
        for column, source in columns.items():
            table_id, _, column_id = str(source).rpartition(":")
            found = {table.name: column_id for table in every if column_id in table.columns and table_id in ("", table.name)}
            if not found:
                raise ConfigError(
                    f"The database has no column {source!r}",
                    where=f"columns: {column}",
                    choices=[f"{table.name}:{one}" for table in every for one in table.columns],
                )
            chosen[column] = found
        for column, names in _GUESSES.items():
            if column in chosen:
                continue
            for table in every:
                by_scheme = [one for one, (scheme, _) in table.columns.items() if scheme in names]
                hit = next((name for name in names if name in table.columns), by_scheme[0] if len(by_scheme) == 1 else None)
                if hit is not None:
                    chosen.setdefault(column, {})[table.name] = hit
        if not set(chosen) & set(_LABELS):
            raise DataError(
                "No table of the database has an emotion or an attribute",
                where=self._folder,
                remedy="Name it: `columns: {emotion: table:column}`.",
                choices=[f"{table.name}:{one}" for table in every for one in table.columns],
            )
        return chosen

    def _rows(self, every: list[_Table], chosen: dict[str, dict[str, str]], wanted: Sequence[str] | None) -> dict[Key, dict[str, Any]]:
        used = [
            table
            for table in every
            if any(table.name in chosen.get(column, {}) for column in _LABELS) and (wanted is None or table.name in wanted)
        ]
        if not used:
            raise ConfigError(
                "None of the chosen tables has an emotion or an attribute",
                where="tables",
                choices=sorted({name for column in _LABELS for name in chosen.get(column, {})}),
            )
        if len({table.segmented for table in used}) > 1:
            raise DataError(
                "Labels stand in tables of files and in tables of segments",
                where=self._folder,
                choices=[table.name for table in used],
                remedy="Choose some with the option `tables`.",
            )
        rows: dict[Key, dict[str, Any]] = {}
        for table in used:
            for column in [*(column for column in chosen if table.name in chosen[column]), "split"]:
                values = [table.split] * len(table.keys) if column == "split" else self._values(table, chosen[column][table.name], column)
                for key, value in zip(table.keys, values, strict=True):
                    row = rows.setdefault(key, {})
                    if value is not None and row.setdefault(column, value) != value:
                        raise DataError(
                            f"The tables disagree about {key[0]!r}: {column} is {row[column]!r} and {value!r} (table {table.name!r})",
                            where=self._folder,
                            remedy="Choose tables with the option `tables`, or a column as `table:column`.",
                        )
        return {key: row for key, row in rows.items() if any(row.get(column) is not None for column in _LABELS)}

    def _values(self, table: _Table, column_id: str, column: str) -> list[Any]:
        return typed_column(table.data[column_id], column, column_id, table.file, table.first_line)

    def _look_up(
        self, rows: dict[Key, dict[str, Any]], every: list[_Table], chosen: dict[str, dict[str, str]], meta: dict[str, Any]
    ) -> None:
        """Fill what the label tables lack: by segment or by file from other tables, then by speaker
        from the speaker's scheme.
        """
        for column, found in chosen.items():
            if column in _LABELS:
                continue
            for table in every:
                if table.name not in found:
                    continue
                known = {
                    key: value
                    for key, value in zip(table.keys, self._values(table, found[table.name], column), strict=True)
                    if value is not None
                }
                for key, row in rows.items():
                    value = known.get(key, known.get((key[0], None, None)))
                    if row.get(column) is None and value is not None:
                        row[column] = value
        table_of = {table.name: table for table in every}
        schemes = {table_of[name].columns[one][0] for name, one in chosen.get("speaker", {}).items()}
        for scheme in sorted(one for one in schemes if one):
            facts = self._label_facts((meta.get("schemes") or {}).get(scheme) or {}, meta)
            for row in rows.values():
                fact = facts.get(str(row.get("speaker")), {})
                for column in ("sex", "language"):
                    value = next((fact[name] for name in _GUESSES[column] if fact.get(name) not in (None, "")), None)
                    if row.get(column) is None and value is not None:
                        row[column] = str(value)
        for row in rows.values():
            if row.get("language") is not None:
                row["language"] = _LANGUAGES.get(row["language"], row["language"])

    def _label_facts(self, scheme: dict[str, Any], meta: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What a scheme says of each of its labels: in the header itself, or in a misc table."""
        labels = scheme.get("labels")
        if isinstance(labels, dict):
            return {str(label): facts for label, facts in labels.items() if isinstance(facts, dict)}
        if isinstance(labels, str) and labels in (meta.get("misc_tables") or {}):
            data, _, _ = self._data(labels)
            return {str(row[data.columns[0]]): row for row in data.iter_rows(named=True)}
        return {}

    def _votes(self, rows: dict[Key, dict[str, Any]], every: list[_Table], chosen: dict[str, dict[str, str]], meta: dict[str, Any]) -> None:
        """One vote a rater: columns of the emotion's scheme that name a human rater and are not the
        label itself.
        """
        raters = {name for name, entry in (meta.get("raters") or {}).items() if (entry or {}).get("type", "human") == "human"}
        labels = chosen.get("emotion", {})
        schemes = {table.columns[labels[table.name]][0] for table in every if table.name in labels} - {None} or set(_GUESSES["emotion"])
        for table in every:
            for column, (scheme, rater) in table.columns.items():
                if scheme not in schemes or rater not in raters or labels.get(table.name) == column:
                    continue
                for key, value in zip(table.keys, self._values(table, column, "emotion"), strict=True):
                    if value is not None and key in rows:
                        rows[key].setdefault("votes", []).append({"rater": rater, "emotion": value})


def _seconds(value: Any, file: Path) -> float | None:
    """Seconds of a pandas time: a duration, ``0 days 00:00:01.5``, or a plain number; NaT is None."""
    if value is None or str(value).strip() in ("", "NaT"):
        return None
    if isinstance(value, timedelta):
        return value / timedelta(seconds=1)
    match = _TIME.match(str(value).strip())
    if match:
        days, hours, minutes, seconds = match.groups()
        return int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)
    try:
        return float(value)
    except ValueError as error:
        raise DataError(f"The time {value!r} is not understood", where=file, remedy="Times are like '0 days 00:00:01.500000'.") from error
