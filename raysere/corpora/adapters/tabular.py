"""Read tables: CSV and TSV as text, parquet with its types; errors name the line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.bounds import TEXT_BYTES, TEXT_CELLS, check_text_table, parse_json, read_parquet
from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.schema import SCHEMA

_NO_NUMBER = {"", "na", "n/a", "nan", "null", "none", "-"}
_SHOWN = 20
_HEADER = 4 << 20


def read_text_or_parquet(path: Path, separator: str | None = None) -> pl.DataFrame:
    """A table with a header row. Parquet is known by its content; text must be UTF-8 (with or
    without mark), all its columns come as text, empty is null.

    Args:
        path: the file.
        separator: of a text table; None takes the one of tab, semicolon and comma that the header
            holds most often.

    Raises:
        MissingFileError: no such file.
        DataError: empty, not UTF-8, rows of unequal length, a column name twice (columns without a
            name may be several).
    """
    if not path.is_file():
        raise MissingFileError(f"There is no table {path.name!r}", where=path.parent)
    with path.open("rb") as file:
        packed = file.read(4) == b"PAR1"
    try:
        if packed:
            return read_parquet(path)
        check_text_table(path, separator or ",", most=TEXT_BYTES, cells=TEXT_CELLS)
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"This table is not UTF-8 (byte {error.start})", where=path, remedy="Save it as UTF-8; spreadsheets offer 'CSV UTF-8'."
        ) from error
    header = text.lstrip("\r\n").split("\n", 1)[0]
    if not header.strip():
        raise DataError("This table is empty", where=path, remedy="Its first line names the columns.")
    separator = separator or max("\t;,", key=header.count)
    try:
        start = text[:_HEADER].lstrip("\r\n")  # StringIO takes four bytes a character
        names = Counter(name.strip() for name in next(csv.reader(io.StringIO(start, newline=""), delimiter=separator)))
        table = pl.read_csv(text.encode(), separator=separator, infer_schema=False, null_values=[""])
    except (pl.exceptions.PolarsError, ValueError, csv.Error) as error:
        raise DataError(
            f"This table cannot be read: {str(error).splitlines()[0]}", where=path, remedy="Check the separator and the quotes."
        ) from error
    if double := [name for name, count in names.items() if name and count > 1]:
        raise DataError(
            f"The table has the column{'s' if len(double) > 1 else ''} {', '.join(map(repr, double))} more than once",
            where=path,
            remedy="Rename or remove the one that is not meant.",
        )
    return table.rename({name: name.strip() for name in table.columns if name.strip()})


def typed_column(values: pl.Series, column: str, source: str, path: Path, first_line: int) -> list[Any]:
    """The values of a table column as those of a manifest column.

    Numbers written as text are read (``NA``, ``nan`` and empty are null), lists may be JSON,
    anything may be text.

    Raises:
        DataError: values that do not fit, with lines (``first_line`` is that of row 0).
    """
    dtype = SCHEMA[column]
    if dtype.is_numeric():
        given = values.cast(pl.String).str.strip_chars()
        given = given.set(given.str.to_lowercase().is_in(list(_NO_NUMBER)).fill_null(False), None)
        numbers = given.cast(pl.Float64, strict=False)
        bad = numbers.is_null() & given.is_not_null()
        if dtype.is_integer():
            bad = bad | (numbers.is_not_null() & (numbers != numbers.round(0)))
        if bad.any():
            rows = bad.arg_true().to_list()
            shown = ", ".join(f"line {row + first_line}: {given[row]!r}" for row in rows[:_SHOWN])
            raise DataError(
                f"{len(rows)} values of the column {source!r} are not {'whole ' if dtype.is_integer() else ''}numbers: {shown}",
                where=path,
                remedy=f"It is read as {column!r}.",
            )
        numbers = numbers.fill_nan(None)
        return numbers.cast(pl.Int64).to_list() if dtype.is_integer() else numbers.to_list()
    if isinstance(dtype, pl.List):
        return [_from_json(value, column, source, path, row + first_line) for row, value in enumerate(values.to_list())]
    if values.dtype == pl.Float64 and (values == values.round(0)).all():  # ids that a spreadsheet turned into 3.0
        values = values.cast(pl.Int64)
    return values.cast(pl.String).to_list()


def _from_json(value: Any, column: str, source: str, path: Path, line: int) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, where=path)
    except ConfigError as error:
        raise DataError(f"The column {source!r}, line {line}, is read as {column!r} and holds no JSON list: {error}", where=path) from error
