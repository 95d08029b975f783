"""Vectors of the user's own: ``table:FILE`` with a parquet, csv, tsv or npz file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysere.base.bounds import ZIP_ERRORS, check_text_table, npy_header, open_zip, read_parquet, refusal, unpacked_most
from raysere.base.errors import ConfigError, DataError, MissingFileError, RaysereError
from raysere.base.files import digest
from raysere.features.backbone import Backbone, BackboneInfo, Item, Layer

if TYPE_CHECKING:
    import polars as pl

CODE_VERSION = 1  # raise it whenever an output changes: it is part of every feature key
ID_NAMES = ("utterance", "utt_id", "utterance_id", "id", "name", "file", "path")
SUFFIXES = (".parquet", ".csv", ".tsv", ".npz")


@dataclass(frozen=True)
class _Content:
    """``values`` float32 (N, D), grouped so that the rows of an id are ``bounds[id]``; ``many``:
    some id has several rows.
    """

    values: np.ndarray
    bounds: dict[str, tuple[int, int]]
    many: bool
    sha256: str


class Table(Backbone):
    """Rows of a file by utterance id. No audio and no text is read (``sampling_rate`` is None); an
    item needs only its id.

    An id in the file is the manifest's whole id (``meld/dev_dia0_utt0``) or its part behind the
    corpus (``dev_dia0_utt0``).
    """

    def __init__(self, content: _Content, info: BackboneInfo) -> None:
        self._content, self.info = content, info

    @staticmethod
    def describe(
        argument: str | None = None, *, modality: Literal["audio", "text"] = "audio", id: str | None = None, values: str | None = None
    ) -> BackboneInfo:
        """Read the file.

        Args:
            argument: path of the file.
            modality: what the vectors were made of, ``audio`` or ``text``.
            id: column (or array of an npz) with the ids; default: the first there is of
                ``utterance``, ``utt_id``, ``utterance_id``, ``id``, ``name``, ``file``, ``path``.
            values: column that holds a list of numbers (or the two-dimensional array of an npz);
                default: the only one of that kind, else all columns of numbers.

        Raises:
            MissingFileError: no such file. ConfigError: a wrong option or column.
            DataError: a file that is not what its suffix says, empty, or without ids.
        """
        return _describe(argument, modality, id, values)[1]

    @staticmethod
    def open(
        argument: str | None = None,
        *,
        device: str = "cpu",
        modality: Literal["audio", "text"] = "audio",
        id: str | None = None,
        values: str | None = None,
    ) -> Table:
        """Arguments and errors: see :meth:`describe`. Stays in main memory whatever the device."""
        return Table(*_describe(argument, modality, id, values))

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        """See :meth:`Backbone.encode`.

        Raises DataError: no row for this utterance, or none that is finite. ConfigError: no layer.
        """
        if any(layer != 0 for layer in layers):
            raise ConfigError(f"The backbone {self.info.name!r} has one layer", choices=[0])
        return [[self._rows(item.utterance) for _ in layers] for item in items]

    def _rows(self, utterance: str) -> np.ndarray:
        bounds = self._content.bounds
        start, end = bounds.get(utterance) or bounds.get(utterance.partition("/")[2]) or (0, 0)
        if start == end:
            raise DataError("no row for this utterance", where=f"{utterance} in {self.info.name}")
        rows = self._content.values[start:end].copy()
        if not np.isfinite(rows).all():
            raise DataError("values that are not finite", where=f"{utterance} in {self.info.name}")
        return rows


def _describe(
    argument: str | None, modality: Literal["audio", "text"], id_name: str | None, values_name: str | None
) -> tuple[_Content, BackboneInfo]:
    if not argument:
        raise ConfigError("The backbone 'table' needs a file after the colon", remedy="For instance table:vectors.parquet.")
    if modality not in ("audio", "text"):
        raise ConfigError(f"{modality!r} is not a modality", where=f"table:{argument}", choices=["audio", "text"])
    path = Path(argument).expanduser()
    if not path.is_file():
        raise MissingFileError(f"There is no file {path.name!r}", where=path.parent.resolve())
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"Tables of the kind {path.suffix!r} are not read", where=path, choices=SUFFIXES)
    stat = path.stat()
    content = _load(path, stat.st_size, stat.st_mtime_ns, id_name, values_name)
    identity = digest({"backbone": "table", "file": content.sha256, "id": id_name, "values": values_name, "code": CODE_VERSION})
    layer = Layer("rows", content.values.shape[1], "frame" if content.many else "utterance")
    return content, BackboneInfo(
        f"table:{argument}",
        modality,
        (layer,),
        identity,
        sampling_rate=None,
        frame_s=None,
        batching="padded",
        min_s=0.0,
        max_s=float("inf"),
    )


@lru_cache(maxsize=4)
def _load(path: Path, size: int, changed_ns: int, id_name: str | None, values_name: str | None) -> _Content:
    """Read the file once, however often it is described; size and time of change are part of the
    cache's key.
    """
    read = _read_npz if path.suffix.lower() == ".npz" else _read_table
    ids, values = read(path, id_name, values_name)
    if len(ids) != len(values) or len(ids) == 0 or values.shape[1] == 0:
        raise DataError(
            f"{len(ids)} ids and an array of {' x '.join(map(str, values.shape))}: one row of numbers an id is needed, and at least one",
            where=path,
        )
    order = np.argsort(ids, kind="stable")  # rows of one utterance keep their order
    names, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    bounds = {str(name): (int(start), int(start + count)) for name, start, count in zip(names, starts, counts, strict=True)}
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _Content(np.ascontiguousarray(values[order], dtype=np.float32), bounds, bool(counts.max() > 1), sha256)


def _read_npz(path: Path, id_name: str | None, values_name: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values; the headers of all arrays are looked at first, and only these two arrays are
    unpacked.
    """
    try:
        with open_zip(path, 10_000) as archive:
            kinds = {}
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    kinds[entry.filename.removesuffix(".npy")] = (*npy_header(file), entry)
            texts = [name for name, (dtype, shape, *_) in kinds.items() if len(shape) == 1 and dtype.kind == "U"]
            matrices = [name for name, (dtype, shape, *_) in kinds.items() if len(shape) == 2 and dtype.kind in "fiu"]
            chosen = [
                _choose(id_name, texts, "array of ids", "id", path),
                _choose(values_name, matrices, "two-dimensional array of numbers", "values", path),
            ]
            asked = sum(math.prod(kinds[name][1]) * kinds[name][0].itemsize for name in chosen)
            if asked > (most := unpacked_most(path.stat().st_size)):
                raise refusal(
                    "bytes of arrays, unpacked", asked, most, where=path, remedy="If you trust it, save it with numpy.savez, uncompressed."
                )
            ids, values = (_unpack(archive, *kinds[name]) for name in chosen)
            return ids, values
    except ZIP_ERRORS as error:
        if isinstance(error, RaysereError):
            raise
        raise DataError(
            f"This is not an npz file of plain arrays: {error}",
            where=path,
            remedy="Ids must be stored as text (dtype 'U'), not as objects.",
        ) from error


def _unpack(archive: Any, dtype: np.dtype, shape: tuple[int, ...], by_columns: bool, start: int, entry: Any) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    with archive.open(entry) as file:
        file.read(start)
        data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{entry.filename} ends before its {' x '.join(map(str, shape))} values do")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


def _read_table(path: Path, id_name: str | None, values_name: str | None) -> tuple[np.ndarray, np.ndarray]:
    import polars as pl

    try:
        if path.suffix.lower() == ".parquet":
            table = read_parquet(path)
        else:
            check_text_table(path, "\t" if path.suffix.lower() == ".tsv" else ",")
            table = pl.read_csv(path, separator="\t" if path.suffix.lower() == ".tsv" else ",", infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        if isinstance(error, RaysereError):
            raise
        raise DataError(f"This is not a {path.suffix[1:]} file: {str(error).splitlines()[0]}", where=path) from error
    if table.height == 0:
        raise DataError("The table has no rows", where=path)
    column = _choose(id_name, [name for name in table.columns if id_name or name in ID_NAMES], "column of ids", "id", path, table.columns)
    if table[column].null_count():
        raise DataError(f"{table[column].null_count()} rows have no id in the column {column!r}", where=path)
    lists = [name for name, kind in table.schema.items() if isinstance(kind, pl.List | pl.Array)]
    if values_name or lists:
        name = _choose(values_name, lists, "column of lists of numbers", "values", path, table.columns)
        rows = table[name].arr.to_list() if isinstance(table.schema[name], pl.Array) else table[name]
        widths = set(rows.list.len().cast(pl.Int64).fill_null(-1).to_list())
        if len(widths) > 1 or -1 in widths:
            raise DataError(f"The lists in the column {name!r} have different lengths", where=path, choices=sorted(widths))
        return table[column].cast(pl.String).to_numpy().astype(str), _numbers(rows, widths.pop(), path)
    numbers = [name for name, kind in table.schema.items() if kind.is_numeric() and name != column]
    if not numbers:
        raise DataError("The table has neither a column of lists nor columns of numbers", where=path)
    return table[column].cast(pl.String).to_numpy().astype(str), table.select(
        pl.col(numbers).cast(pl.Float32).fill_null(float("nan"))
    ).to_numpy()


def _numbers(rows: pl.Series, width: int, path: Path) -> np.ndarray:
    """Lists of one length as float32 (N, width), without a Python object a number."""
    import polars as pl

    values = rows.explode() if width else pl.Series([], dtype=pl.Float32)
    if not (values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.Null)):
        raise DataError(f"The lists do not hold numbers: they are of type {values.dtype}", where=path)
    return values.cast(pl.Float32).fill_null(float("nan")).to_numpy().reshape(len(rows), width)


def _choose(asked: str | None, found: list[str], what: str, option: str, path: Path, names: list[str] | None = None) -> str:
    """The name that was asked for, or the only (or best known) one found."""
    if asked is not None:
        if asked not in found:
            raise ConfigError(f"{asked!r} is not a {what}", where=path, choices=found or names or [])
        return asked
    known = [name for name in ID_NAMES if name in found] if option == "id" else []
    if known:
        return known[0]
    if len(found) != 1:
        raise ConfigError(
            f"The file has {len(found)} candidates for a {what}",
            where=path,
            choices=found or names or [],
            remedy=f"Name one with the option '{option}'.",
        )
    return found[0]
