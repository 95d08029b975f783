"""Praat TextGrid files, long and short format, as forced aligners write them: tiers of labelled
intervals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from raysere.base.bounds import LABEL_BYTES, read_bytes, refusal
from raysere.base.errors import DataError

_VALUES = 3_000_000  # a million intervals
_TOKENS = re.compile(r'"((?:[^"]|"")*)"|(?<![\w.])([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.\]])|(<exists>|<absent>)')


def read_textgrid(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Interval tiers by name; point tiers are left out, and so are intervals without text.

    Returns:
        tier name to ``[{"label": str, "start_s": float, "end_s": float}, ...]`` in order of time:
        the manifest's alignment columns.

    Raises:
        DataError: the file is no TextGrid, ends before its tiers do, or is larger than one
            recording can need.
    """
    text = _decode(read_bytes(path, LABEL_BYTES))
    if "TextGrid" not in text[:400]:
        raise DataError("This is not a Praat TextGrid", where=path)
    values = list(islice(_values(text), _VALUES + 1))
    if len(values) > _VALUES:
        raise refusal("values in this TextGrid", f"more than {_VALUES:,}", _VALUES, where=path)
    try:
        position = values.index("<exists>") + 2  # after it: the number of tiers
        tiers: dict[str, list[dict[str, Any]]] = {}
        for _ in range(int(values[position - 1])):
            kind, name, _, _, count = values[position : position + 5]
            position += 5
            width = 3 if kind == "IntervalTier" else 2
            end = position + width * int(count)
            if not position <= end <= len(values):  # before anything is made of that many
                raise ValueError(f"a tier of {count[:20]} entries, where the file holds {len(values) - position} values more")
            items = [values[start : start + width] for start in range(position, end, width)]
            position = end
            if kind == "IntervalTier":
                tiers[name] = [
                    {"label": label.strip(), "start_s": float(start), "end_s": float(end)} for start, end, label in items if label.strip()
                ]
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"This TextGrid cannot be read: {error}", where=path) from error
    return tiers


def _values(text: str) -> Iterator[str]:
    """The bare values in order: both formats are the same list, one with names around it
    (``xmin = 0``, ``intervals [3]:``).
    """
    for match in _TOKENS.finditer(text):
        quoted, number, flag = match.groups(default="")
        yield number or flag or quoted.replace('""', '"')


def _decode(data: bytes) -> str:
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
