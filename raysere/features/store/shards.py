"""Shards: immutable folders of features that appear by rename. The index at the top is only a
cache.

``shard-NNNNN/`` holds ``layer-XX.npy`` (rows, width) for each layer, ``index.parquet`` (content,
first, rows) and ``meta.json`` (format, counts, size and SHA-256 of every file).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from raysere.base.errors import DataError, RaysereError, machine_fault
from raysere.base.files import atomic_write, explain_write_errors, read_json, write_json
from raysere.features.rows import layer_path, shard_name
from raysere.features.spec import FeatureSpec

FORMAT = "raysere.shard/1"
INDEX = {"content": pl.String, "first": pl.Int64, "rows": pl.Int64}
TOP_INDEX = {"content": pl.String, "shard": pl.Int32, "first": pl.Int64, "rows": pl.Int64}
_SHARD = re.compile(r"shard-(\d{5,})")


def write_shard(folder: Path, spec: FeatureSpec, contents: Sequence[str], layers: dict[int, Sequence[np.ndarray]]) -> int:
    """Write one shard under ``folder`` and return its number.

    ``layers[number][i]`` are the stored rows of ``contents[i]``. The number is claimed by the
    rename itself, so two writers never share one. Raises EnvironmentFault when the disk is full or
    cannot be written; nothing is left then.
    """
    counts = np.array([len(rows) for rows in layers[spec.numbers[0]]], dtype=np.int64)
    for number in spec.numbers:
        if [len(rows) for rows in layers[number]] != counts.tolist():
            raise DataError(
                f"The layers of {spec.backbone} do not share their rows: layer {number} has others than layer {spec.numbers[0]}"
            )
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".shard.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir()
        try:
            for number in spec.numbers:
                np.save(layer_path(temporary, number), np.concatenate(list(layers[number])))
            first = np.concatenate([[0], np.cumsum(counts)[:-1]])
            pl.DataFrame({"content": list(contents), "first": first, "rows": counts}, schema=INDEX).write_parquet(
                temporary / "index.parquet"
            )
            files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(temporary.iterdir())}
            write_json(
                temporary / "meta.json",
                {"format": FORMAT, "key": spec.key, "items": len(counts), "rows": int(counts.sum()), "files": files},
            )
            for path in temporary.iterdir():
                _sync(path)
            number = max([*shard_numbers(folder), -1]) + 1
            while not _claim(temporary, folder / shard_name(number)):
                number += 1
            _sync(folder)
            return number
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def shard_numbers(folder: Path) -> list[int]:
    """Numbers of the shards that stand under ``folder``, ascending."""
    if not folder.is_dir():
        return []
    found = (_SHARD.fullmatch(entry.name) for entry in os.scandir(folder))
    return sorted(int(match.group(1)) for match in found if match)


def read_index(folder: Path) -> pl.DataFrame:
    """(content, shard, first, rows) of all shards, each content once; read from the shards where
    the merged cache is behind.
    """
    numbers = shard_numbers(folder)
    cached = _cached_index(folder).filter(pl.col("shard").is_in(numbers))
    known = set(cached["shard"].unique().to_list())
    parts = [cached]
    for number in numbers:
        if number not in known:
            path = folder / shard_name(number) / "index.parquet"
            try:
                part = pl.read_parquet(path)
            except (OSError, pl.exceptions.PolarsError) as error:
                if fault := machine_fault(error, path):
                    raise fault from error
                raise DataError(
                    f"The index of a shard cannot be read: {error}",
                    where=path,
                    remedy="Remove this shard folder and extract again: only its utterances are computed anew.",
                ) from error
            parts.append(part.select("content", pl.lit(number, dtype=pl.Int32).alias("shard"), "first", "rows"))
    return pl.concat(parts).unique("content", keep="first", maintain_order=True)


def rebuild_index(folder: Path) -> pl.DataFrame:
    """Write the merged ``index.parquet`` anew, whole, and return it; call it under the extraction
    lock, first and last.

    First, because a shard that was removed by hand must leave the cache before its number is given
    to a new one.
    """
    index = read_index(folder)
    with atomic_write(folder / "index.parquet") as temporary:
        index.write_parquet(temporary)
    return index


def _cached_index(folder: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(folder / "index.parquet").select(pl.col(name).cast(kind) for name, kind in TOP_INDEX.items())
    except (OSError, pl.exceptions.PolarsError):  # none yet, or unreadable: the shards are the truth
        return pl.DataFrame(schema=TOP_INDEX)


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files and folders of writers that died; call it under the extraction lock.

    Returns how many.
    """
    found = list(folder.glob(".*.tmp"))
    for path in found:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return len(found)


def check_shard(folder: Path, *, contents: bool = True) -> None:
    """Compare the files of one shard with its ``meta.json``: sizes, and hashes unless ``contents``
    is False. Raises DataError.
    """
    try:
        files = read_json(folder / "meta.json")["files"]
    except (RaysereError, KeyError, TypeError) as error:
        raise DataError(f"A shard without a readable meta.json: {error}", where=folder) from error
    for name, meta in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != meta["bytes"]:
            raise DataError(f"{name} is missing or does not have {meta['bytes']} bytes", where=folder)
        if contents and _sha256(path) != meta["sha256"]:
            raise DataError(f"{name} does not match the hash recorded when it was written", where=folder)


def _claim(temporary: Path, target: Path) -> bool:
    if target.exists():
        return False
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # another writer was faster
            return False
        raise
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
