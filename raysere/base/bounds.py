"""Bounds on files that others wrote: the declared sizes are checked before anything is allocated.

A few bytes can stand for petabytes (an array's header, a compressed table, a YAML alias) or for a
depth that ends the process. Every kind of file has one bound here and one message. With them no
such file takes more than 1 GB of memory or 10 s.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from raysere.base.errors import ConfigError, DataError, MissingFileError, RaysereError, machine_fault

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

MB = 1 << 20
DEPTH = 100  # containers inside of each other, in YAML and JSON
YAML_BYTES, YAML_NODES = 16 * MB, 600_000  # a node is a value, a key, a list or a mapping; an alias counts as all that it stands for
JSON_BYTES = 32 * MB
LABEL_BYTES = 32 * MB  # a file of labels, times or words of one recording
TABLE_BYTES, TABLE_CELLS = 512 * MB, 64_000_000  # a table of numbers as text; cells are lines times columns
TEXT_BYTES, TEXT_CELLS = 128 * MB, 20_000_000  # a table of texts
ROWS_BYTES, ROWS_CELLS = 32 * MB, 2_000_000  # a table of texts that is read row by row into dicts
HEADER_BYTES = 4 * MB  # of a safetensors file
UNPACKED_BYTES, UNPACKED_RATIO = 256 * MB, 8  # what a compressed file may become: the larger of the number and the ratio to its size

_SMALL = 16_384  # YAML of so many characters without aliases can neither be many nor deep enough to do harm while it is read
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_NUMBER = re.compile(r"[-+]?(?:0[xXbB][0-9a-fA-F_]+|[0-9_:]+(\.[0-9_]*)?)")
_NPY = re.compile(rb"\{'descr': '([<>|=][a-zA-Z]\d*)', 'fortran_order': (True|False), 'shape': \(((?:\d+, ?)*\d*)\), ?\}\s*")


def refusal(
    what: str, found: float | str, most: float | str, *, where: object, remedy: str | None = None, error: type[RaysereError] = DataError
) -> RaysereError:
    """The one message for a bound:

    ``what`` (such as "bytes of this table"), how many there are, how many are the most.
    """
    shown = [f"{value:,}" if isinstance(value, int | float) else value for value in (found, most)]
    return error(
        f"This file asks for more than raysere gives to one file: {shown[0]} {what}, where {shown[1]} are the most",
        where=where,
        remedy=remedy or "If you trust it, make it smaller; if you do not know who made it, do not use it.",
    )


def read_bytes(path: str | os.PathLike[str], most: int, *, error: type[RaysereError] = DataError, remedy: str | None = None) -> bytes:
    """All of a regular file of at most ``most`` bytes; a pipe or a device, which may have no end,
    is not opened.

    Raises MissingFileError, or ``error`` for a file that is larger or none.
    """
    path = Path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe that nobody writes to would hold us
    except (FileNotFoundError, NotADirectoryError) as gone:
        raise MissingFileError(f"There is no file {path.name!r}", where=path.parent) from gone
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise MissingFileError(f"There is no file {path.name!r}", where=path.parent)
        if not stat.S_ISREG(status.st_mode):
            raise error("This is a pipe or a device, not a file", where=path)
        if status.st_size > most:
            raise refusal("bytes", status.st_size, most, where=path, error=error, remedy=remedy)
        return file.read(most)


# ---- YAML and JSON -------------------------------------------------------------------------------


def parse_json(text: str | bytes, *, where: object) -> Any:
    """Plain values of JSON text.

    Raises ConfigError: no JSON, a number of thousands of digits, too deep.
    """
    try:
        value = json.loads(text)
        if len(text) > DEPTH and _is_deep(value):
            raise RecursionError
        return value
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:  # also UnicodeDecodeError
        raise ConfigError(f"This is not JSON: {error}", where=where) from error


def parse_yaml(text: str, *, where: object) -> Any:
    """Plain values of YAML text.

    Raises ConfigError with line and column: no YAML, too deep, too many values (aliases unfolded).
    """
    try:
        if len(text) > _SMALL or "*" in text:
            _check_yaml(text, where)
            return yaml.load(text, Loader=_YAML)  # noqa: S506  a safe loader, in C where it is there
        value = yaml.load(text, Loader=_YAML)  # noqa: S506
        if _is_deep(value):
            raise RecursionError
        return value
    except RecursionError as error:
        raise _too_deep(where) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date or a number that cannot be
        if isinstance(error, RaysereError):
            raise
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise ConfigError(f"This is not YAML: {getattr(error, 'problem', None) or error}", where=place) from error


def _check_yaml(text: str, where: object) -> None:
    """Count values as if every alias were written out, without building one."""
    if len(text) > YAML_BYTES:
        raise refusal("bytes of YAML", len(text), YAML_BYTES, where=where, error=ConfigError)
    nodes, long_numbers = 0, 0
    known: dict[str, tuple[int, int]] = {}  # anchor to the number of its nodes and its height
    open_: list[list[Any]] = []  # anchor, nodes before it, height so far
    event: Any
    for event in yaml.parse(text, Loader=_YAML):
        kind, height = type(event), 0
        if kind is yaml.ScalarEvent:
            nodes += 1
            if len(event.value) > 18 and (event.tag or event.implicit[0]):
                number = _NUMBER.fullmatch(event.value)
                whole = event.tag == f"{_TAG}int" or (number is not None and number[1] is None)
                long_numbers += whole  # as keys they can be made to fall on one place of the dict
                if len(event.value) > 1000 and (whole or number or event.tag == f"{_TAG}float"):
                    raise refusal("digits of one number", len(event.value), 1000, where=where, error=ConfigError)
                if long_numbers > 1000:
                    raise refusal("whole numbers of more than 18 digits", "more than 1,000", 1000, where=where, error=ConfigError)
            if event.anchor:
                known[event.anchor] = (1, 0)
        elif kind is yaml.AliasEvent:
            if any(one[0] == event.anchor for one in open_):
                raise ConfigError(
                    f"This YAML contains itself: the alias *{event.anchor} is used inside the value that it names",
                    where=f"{where}, line {event.start_mark.line + 1}",
                )
            count, height = known.get(event.anchor, (1, 0))  # an unknown one is told by the composer
            nodes += count
        elif kind in (yaml.SequenceStartEvent, yaml.MappingStartEvent):
            open_.append([event.anchor, nodes, 1])
            nodes += 1
        elif kind in (yaml.SequenceEndEvent, yaml.MappingEndEvent):
            anchor, before, height = open_.pop()
            if anchor:
                known[anchor] = (nodes - before, height)
        if open_:
            open_[-1][2] = max(open_[-1][2], height + 1)
        if len(open_) + height > DEPTH:
            raise _too_deep(where)
        if nodes > YAML_NODES:
            raise refusal("values in YAML, aliases written out", f"more than {YAML_NODES:,}", YAML_NODES, where=where, error=ConfigError)


def _is_deep(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        below = (child for one in level for child in (one.values() if isinstance(one, dict) else one))
        level = [child for child in below if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def _too_deep(where: object) -> RaysereError:
    return refusal("levels of lists and mappings", f"more than {DEPTH}", DEPTH, where=where, error=ConfigError)


# ---- archives and arrays -------------------------------------------------------------------------


def unpacked_most(size: int) -> int:
    """Bytes that a compressed file of ``size`` bytes may become."""
    return max(UNPACKED_BYTES, UNPACKED_RATIO * size)


def open_zip(path: Path, entries: int) -> zipfile.ZipFile:
    """An archive of at most ``entries`` files, whose list of them is looked at before it is read.

    Raises DataError: more of them, or no archive.
    """
    most = entries * 512
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - 66_000))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        listed = struct.unpack_from("<L", tail, at + 12)[0] if 0 <= at <= len(tail) - 22 else 0
        wide = tail.rfind(b"PK\x06\x06")
        if wide >= 0 and len(tail) - wide >= 56:
            listed = max(listed if listed != 0xFFFFFFFF else 0, struct.unpack_from("<Q", tail, wide + 40)[0])
    if listed > most:
        raise refusal("bytes of the archive's list of files", listed, most, where=path)
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise DataError(f"This is not a zip archive that can be read: {error}", where=path) from error
    if len(archive.filelist) > entries:
        archive.close()
        raise refusal("files in the archive", len(archive.filelist), entries, where=path)
    return archive


#: What reading a damaged or an unusual archive raises (encrypted, another compression, a broken
#: stream).
ZIP_ERRORS = (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, struct.error, zlib.error)


def npy_header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """(dtype, shape, whether by columns, bytes of the header) at the start of an ``.npy`` file;
    nothing in it is evaluated.

    Raises ValueError: no such header, objects or records, a header of more than 64 KB.
    """
    import numpy as np

    start = file.read(10)
    if start[:6] != b"\x93NUMPY" or len(start) < 10 or start[6] not in (1, 2, 3):
        raise ValueError("no .npy header")
    if start[6] == 1:
        length, read = struct.unpack("<H", start[8:])[0], 10
    else:
        length, read = struct.unpack("<L", start[8:] + file.read(2).ljust(2, b"\0"))[0], 12
    if length > 65_535:
        raise ValueError(f"a header of {length:,} bytes, where 65,535 are the most")
    match = _NPY.fullmatch(file.read(length))
    if match is None:
        raise ValueError("a header of another kind than plain arrays have")
    kind = match[1].decode()
    if kind[1] == "O":
        raise ValueError("object values are not read: they are pickles")
    try:
        dtype = np.dtype(kind)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return dtype, tuple(int(part) for part in re.findall(rb"\d+", match[3])), match[2] == b"True", read + length


def check_tensors(path: str | os.PathLike[str]) -> None:
    """Raises DataError where the header of a safetensors file is larger than :data:`HEADER_BYTES`;
    whether it is one, its reader tells.
    """
    with open(path, "rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if HEADER_BYTES < length <= size - 8:
        raise refusal("bytes of safetensors header", length, HEADER_BYTES, where=path)


# ---- tables --------------------------------------------------------------------------------------


def read_parquet(path: str | os.PathLike[str], *, remedy: str | None = None) -> pl.DataFrame:
    """A parquet file whose rows are counted before they are unpacked.

    Raises MissingFileError; DataError (with the ``remedy``, where there is one): no parquet, or it
    unfolds to too much.
    """
    import polars as pl

    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file {path.name!r}", where=path.parent)
    most = unpacked_most(path.stat().st_size)
    smaller = remedy or "If you trust it, write it again without compression and without dictionaries; if not, do not use it."
    try:
        schema = pl.read_parquet_schema(path)
        rows = pl.scan_parquet(path, hive_partitioning=False).select(pl.len()).collect().item()
        if (asked := rows * sum(_width(kind) for kind in schema.values())) > most:
            raise refusal(f"bytes for {rows:,} rows of {len(schema)} columns", asked, most, where=path, remedy=smaller)
        if any(kind.is_nested() for kind in schema.values()) and (asked := _nested_bytes(path)) > most:
            raise refusal("bytes for the values of lists", asked, most, where=path, remedy=smaller)
        table = pl.read_parquet(path, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError, ValueError, pl.exceptions.PanicException) as error:
        if isinstance(error, RaysereError):
            raise
        if fault := machine_fault(error, path):
            raise fault from error
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"This is not a parquet file, or it cannot be read: {said}", where=path, remedy=remedy) from error
    if (asked := table.estimated_size()) > most:  # one long text may stand in every row
        raise refusal("bytes, texts written out", asked, most, where=path, remedy=smaller)
    return table


def _width(kind: Any) -> int:
    """Bytes of one value, at least."""
    import polars as pl

    if kind.is_nested():
        return 16
    return {pl.Float32: 4, pl.Int32: 4, pl.UInt32: 4, pl.Int16: 2, pl.Int8: 1, pl.UInt8: 1, pl.Boolean: 1}.get(type(kind), 8) + 8 * (
        kind == pl.String or kind == pl.Binary
    )


def _nested_bytes(path: Path) -> int:
    """What the footer says that all values take, those in lists included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8))
        tail = file.read(8)
    if len(tail) == 8 and (length := struct.unpack("<L", tail[:4])[0]) > 64 * MB:
        raise refusal("bytes of parquet footer", length, 64 * MB, where=path)
    try:
        found = pq.read_metadata(path)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    widths = {"FLOAT": 4, "INT32": 4, "BOOLEAN": 1, "BYTE_ARRAY": 16}
    parts = [found.row_group(group).column(column) for group in range(found.num_row_groups) for column in range(found.num_columns)]
    return sum(part.num_values * widths.get(part.physical_type, 8) for part in parts)


def check_text_table(path: Path, separator: str = ",", *, most: int = TABLE_BYTES, cells: int = TABLE_CELLS) -> None:
    """Raises DataError for a table as text with too many bytes or cells (short lines are filled up
    to the columns of the first).
    """
    remedy = "If you trust it, save it as parquet."
    if not path.is_file():
        raise MissingFileError(f"There is no table {path.name!r}", where=path.parent)
    if (size := path.stat().st_size) > most:
        raise refusal("bytes of a table as text", size, most, where=path, remedy=remedy)
    lines, columns, first = 1, 1, True
    with path.open("rb") as file:
        while block := file.read(4 * MB):
            lines += block.count(b"\n")
            if first:
                head, end, _ = block.partition(b"\n")
                columns += head.count(separator.encode())
                first = not end and not block[:1].isspace()
    if columns > 20_000:
        raise refusal("columns of a table as text", columns, 20_000, where=path, remedy=remedy)
    if lines * columns > cells:
        raise refusal("cells of a table as text", lines * columns, cells, where=path, remedy=remedy)
