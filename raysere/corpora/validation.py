"""Checks of a manifest table: all problems, each with row, column, value, reason and remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from raysere.corpora.schema import ATTRIBUTES, REQUIRED, SCHEMA, SEXES

_END_SLACK_S = 0.1  # aligners work in frames and may end a hop after the audio


@dataclass(frozen=True)
class Problem:
    """One fault of a table.

    ``row`` counts from 0 in the table as given; None where the whole column is meant.
    """

    row: int | None
    column: str
    value: Any
    reason: str
    remedy: str

    def __str__(self) -> str:
        place = f"row {self.row}, " if self.row is not None else ""
        return f"{place}column {self.column!r}, value {_short(self.value)}: {self.reason}. {self.remedy}"


def conform(table: pl.DataFrame) -> tuple[pl.DataFrame, list[Problem]]:
    """The table with exactly the manifest's columns and types (missing nullable columns become
    null), or the problems that forbid it.
    """
    problems = [
        Problem(None, column, None, "this is no manifest column", "Remove or rename it; the columns are " + ", ".join(SCHEMA) + ".")
        for column in table.columns
        if column not in SCHEMA
    ]
    problems += [
        Problem(None, column, None, "this column is missing", "Every manifest needs it.")
        for column in REQUIRED
        if column not in table.columns
    ]
    columns = {}
    for column, dtype in SCHEMA.items():
        if column not in table.columns:
            columns[column] = pl.Series(column, [None] * table.height, dtype=dtype)
        elif table[column].dtype == dtype:
            columns[column] = table[column]
        else:
            columns[column], bad = conversion_problems(column, table[column].to_list(), dtype)
            problems += bad
    return pl.DataFrame(columns), problems


def conversion_problems(column: str, values: Sequence[Any], dtype: pl.DataType) -> tuple[pl.Series, list[Problem]]:
    """The values as a series of ``dtype``; those that do not fit become null and a problem each.
    Text that holds a number is taken as the number.
    """
    kept: list[Any] = []
    problems = []
    for row, value in enumerate(values):
        try:
            kept.append(
                value if value is None else _number(value, dtype) if dtype.is_numeric() else pl.Series([value], dtype=dtype, strict=True)[0]
            )
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            kept.append(None)
            problems.append(Problem(row, column, value, f"this is no {_type_name(dtype)}", "Correct or empty it."))
    return pl.Series(column, kept, dtype=dtype, strict=True), problems


def _number(value: Any, dtype: pl.DataType) -> float | int:
    number = float(value)
    if not dtype.is_integer():
        return number
    if number != int(number) or abs(number) >= 2**31:
        raise ValueError("no 32-bit whole number")
    return int(number)


def validate(table: pl.DataFrame, scales: Mapping[str, tuple[float, float]] | None = None) -> list[Problem]:
    """All problems of a table, in order of column and row; an empty list for a sound one.

    Args:
        table: with the columns of ``SCHEMA`` (see :func:`conform`); other types give a problem a
            column.
        scales: corpus to (low, high): attributes must lie inside.
    """
    problems = [
        Problem(None, column, None, "this column is missing", "Add it (nulls will do unless it is required).")
        for column in SCHEMA
        if column not in table.columns
    ]
    problems += [
        Problem(None, column, str(table[column].dtype), f"this column must be {_type_name(dtype)}", "Cast it.")
        for column, dtype in SCHEMA.items()
        if column in table.columns and table[column].dtype != dtype
    ]
    if problems:
        return problems
    table = table.with_row_index("_row")
    if table.height == 0:
        return [Problem(None, "utterance", None, "the table has no rows", "At least one utterance is needed.")]
    for column, bad, reason, remedy in _rules(scales or {}):
        hits = table.filter(bad.fill_null(False)).select("_row", column)
        problems += [Problem(row, column, value, reason, remedy) for row, value in hits.iter_rows()]
    for column in ("words", "phones"):
        problems += _alignment_problems(table, column)
    problems += _vote_problems(table) + _trace_problems(table)
    order = {column: number for number, column in enumerate(SCHEMA)}
    return sorted(problems, key=lambda problem: (problem.row is not None, problem.row or 0, order[problem.column]))


def _rules(scales: Mapping[str, tuple[float, float]]) -> list[tuple[str, pl.Expr, str, str]]:
    """(column, expression that is true for a bad row, reason, remedy)."""
    col = pl.col
    rules = [
        (column, col(column).is_null() | (col(column).str.strip_chars() == ""), "it is empty", "Every utterance needs one.")
        for column in REQUIRED
    ]
    inside = "a speaker of another corpus could be taken for this one"
    rules += [
        (
            "utterance",
            col("utterance").is_duplicated() & col("utterance").is_not_null(),
            "another row has the same id",
            "Ids are unique; give segments of a file start_s and end_s.",
        ),
        (
            "utterance",
            ~col("utterance").str.starts_with(pl.concat_str("corpus", pl.lit("/"))),
            "it does not start with 'corpus/'",
            "Write it as corpus/stem.",
        ),
        ("corpus", col("corpus").str.contains(r"[/\s]"), "a corpus name holds neither slash nor blank", "Rename it."),
        (
            "language",
            ~col("language").str.contains(r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*$"),
            "it is no BCP-47 tag",
            "Write 'de', 'it', 'cmn', or 'und' where it is not known.",
        ),
        (
            "path",
            col("path").str.starts_with("/") | col("path").str.contains(r"^[A-Za-z]:[\\/]"),
            "it is absolute",
            "Paths are relative to the corpus root.",
        ),
        ("path", col("path").str.contains(r"(^|/)\.\.(/|$)"), "it leaves the corpus root", "Name a root above all files."),
        ("path", col("path") == "", "it is empty", "Null stands for no audio."),
        (
            "start_s",
            col("start_s").is_null() != col("end_s").is_null(),
            "only one of start_s and end_s is set",
            "A segment needs both, a whole file neither.",
        ),
        ("start_s", ~col("start_s").is_finite() | (col("start_s") < 0), "it is no time in the file", "Times are seconds from 0."),
        (
            "end_s",
            ~col("end_s").is_finite() | (col("end_s") <= col("start_s")),
            "the segment is empty or negative",
            "end_s must be after start_s.",
        ),
        (
            "duration_s",
            col("path").is_not_null() & (col("duration_s").is_null() | (col("duration_s") <= 0)),
            "it must be above 0 s where there is audio",
            "Read it from the file.",
        ),
        ("duration_s", ~col("duration_s").is_finite() | (col("duration_s") < 0), "it is no duration", "Seconds, 0 or above."),
        (
            "duration_s",
            (col("duration_s") - (col("end_s") - col("start_s"))).abs() > 1e-3,
            "it is not end_s - start_s",
            "duration_s is that of the segment.",
        ),
        (
            "sampling_rate",
            col("path").is_not_null() & (col("sampling_rate").is_null() | (col("sampling_rate") <= 0)),
            "it must be above 0 Hz where there is audio",
            "Read it from the file.",
        ),
        (
            "speaker",
            ~col("speaker").str.starts_with(pl.concat_str("corpus", pl.lit("/"))),
            f"it does not start with 'corpus/', so {inside}",
            "Write it as corpus/id.",
        ),
        ("sex", ~col("sex").is_in(SEXES), f"it is none of {', '.join(SEXES)}", "Use one of these or null."),
        ("emotion", col("emotion").str.strip_chars() != col("emotion"), "blanks stand around it", "Strip them."),
        ("emotion", col("emotion") == "", "it is empty", "Null stands for no label."),
        ("turn", col("turn") < 0, "it is negative", "Turns count from 0."),
    ]
    for attribute in ATTRIBUTES:
        rules.append((attribute, ~col(attribute).is_finite(), "it is not finite", "Null stands for no value."))
        for corpus, (low, high) in scales.items():
            outside = (col("corpus") == corpus) & ((col(attribute) < low) | (col(attribute) > high))
            rules.append(
                (attribute, outside, f"it lies outside the scale of {corpus}, {low:g} to {high:g}", "Correct the value or the scale.")
            )
    return rules


def _alignment_problems(table: pl.DataFrame, column: str) -> list[Problem]:
    parts = table.filter(pl.col(column).list.len() > 0).select("_row", "duration_s", column).explode(column).unnest(column)
    parts = parts.with_columns(_before=pl.col("start_s").shift(1).over("_row"))
    late = pl.col("end_s") > pl.col("duration_s") + _END_SLACK_S
    rules = (
        (
            (pl.col("start_s") < 0)
            | (pl.col("end_s") < pl.col("start_s"))
            | pl.any_horizontal(pl.col("start_s", "end_s").is_null())
            | ~pl.col("start_s").is_finite()
            | ~pl.col("end_s").is_finite(),
            "a label has no valid times",
            "Seconds from the utterance's start; end_s not before start_s.",
        ),
        (pl.col("start_s") < pl.col("_before"), "labels are not in order of time", "Sort them by start_s."),
        (late & (pl.col("duration_s") > 0), "a label ends after the utterance", "Times count from the utterance's start."),
    )
    return [
        Problem(row, column, label, reason, remedy)
        for bad, reason, remedy in rules
        for row, label in parts.filter(bad.fill_null(False))
        .unique("_row", keep="first", maintain_order=True)
        .select("_row", "label")
        .iter_rows()
    ]


def _vote_problems(table: pl.DataFrame) -> list[Problem]:
    parts = table.filter(pl.col("votes").list.len() > 0).select("_row", "votes").explode("votes").unnest("votes")
    bad = pl.any_horizontal(~pl.col(*ATTRIBUTES).is_finite())
    return [
        Problem(row, "votes", rater, "a vote has an attribute that is not finite", "Null stands for no value.")
        for row, rater in parts.filter(bad.fill_null(False))
        .unique("_row", keep="first", maintain_order=True)
        .select("_row", "rater")
        .iter_rows()
    ]


def _trace_problems(table: pl.DataFrame) -> list[Problem]:
    parts = table.filter(pl.col("traces").list.len() > 0).select("_row", "traces").explode("traces").unnest("traces")
    unnamed = ~pl.col("attribute").is_in(ATTRIBUTES) | pl.col("attribute").is_null()
    broken = (
        ~pl.col("time_s").is_finite()
        | (pl.col("time_s") < 0)
        | ~pl.col("value").is_finite()
        | pl.any_horizontal(pl.col("time_s", "value").is_null())
    )
    rules = (
        (unnamed, "attribute", "a trace is of no known attribute", f"Attributes are {', '.join(ATTRIBUTES)}."),
        (broken, "time_s", "a trace point has no finite time and value", "Remove it."),
    )
    return [
        Problem(row, "traces", value, reason, remedy)
        for bad, shown, reason, remedy in rules
        for row, value in parts.filter(bad.fill_null(False))
        .unique("_row", keep="first", maintain_order=True)
        .select("_row", shown)
        .iter_rows()
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type_name(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Enum):
        return "one of " + ", ".join(dtype.categories.to_list())
    if dtype.is_integer():
        return "whole number"
    if dtype.is_float():
        return "number"
    if dtype == pl.String:
        return "text"
    return str(dtype)
