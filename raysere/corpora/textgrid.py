"""Praat TextGrid files, long and short format, as forced aligners write them: tiers of labelled intervals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from raysere.errors import DataError

_TOKENS = re.compile(r'"((?:[^"]|"")*)"|(?<![\w.])([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.\]])|(<exists>|<absent>)')


def read_textgrid(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Interval tiers by name; point tiers are left out, and so are intervals without text.

    Returns:
        tier name to ``[{"label": str, "start_s": float, "end_s": float}, ...]`` in order of time: the manifest's alignment columns.

    Raises:
        DataError: the file is no TextGrid, or ends before its tiers do.
    """
    text = _decode(path.read_bytes())
    if "TextGrid" not in text[:400]:
        raise DataError("This is no Praat TextGrid", where=path)
    values = _values(text)
    try:
        position = values.index("<exists>") + 2  # after it: the number of tiers
        tiers: dict[str, list[dict[str, Any]]] = {}
        for _ in range(int(values[position - 1])):
            kind, name, _, _, count = values[position : position + 5]
            position += 5
            width = 3 if kind == "IntervalTier" else 2
            items = [values[start : start + width] for start in range(position, position + width * int(count), width)]
            position += width * int(count)
            if position > len(values):
                raise ValueError("the file ends before its last tier")
            if kind == "IntervalTier":
                tiers[name] = [
                    {"label": label.strip(), "start_s": float(start), "end_s": float(end)} for start, end, label in items if label.strip()
                ]
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"This TextGrid cannot be read: {error}", where=path) from error
    return tiers


def _values(text: str) -> list[Any]:
    """The bare values in order: both formats are the same list, one with names around it (``xmin = 0``, ``intervals [3]:``)."""
    values: list[Any] = []
    for quoted, number, flag in _TOKENS.findall(text):
        if number:
            values.append(number)
        else:
            values.append(flag or quoted.replace('""', '"'))
    return values


def _decode(data: bytes) -> str:
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
