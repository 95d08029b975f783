"""What commands left in a folder, as plain values; and the differences between two such records.

A record maps ``file: key`` to a number, a text or an array. What must differ between two runs is
left out: times, memory, process ids, versions, and hashes of files that hold such values. Paths of
the folder itself are written as ``FOLDER``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from safetensors.numpy import load_file

Record = dict[str, Any]

#: Keys whose values say when, how fast or where something ran.
VOLATILE = frozenset(
    {"seconds", "memory", "sha256", "files", "started", "created", "made", "versions", "raysere", "host", "pid", "fingerprint_time"}
)
#: Files that only say how far a run is, hold event streams with times in them, are pages drawn from
#: the others, or are indexes of the feature store, which name shards.
SKIPPED_FOLDERS = frozenset({"_tune"})
SKIPPED_SUFFIXES = frozenset({".html", ".lock", ".trial", ".search", ".overview"})
SKIPPED_FILES = frozenset({"progress.json", ".driver.lock", "lock", "index.parquet", "hashes.parquet", "utterances.parquet"})


def record(folder: Path, inside: str, root: Path) -> Record:
    """The values of all files below ``folder/inside``."""
    found: Record = {}
    start = folder / inside
    for spec in sorted(start.glob("*/spec.json")):
        found |= {f"{spec.parent.relative_to(folder)}: {key}" if key else key: value for key, value in features(spec.parent).items()}
    for file in sorted([start] if start.is_file() else start.rglob("*")):
        relative = file.relative_to(folder)
        if not file.is_file() or skipped(relative) or (file.parent.name.startswith("shard-") and (file.parent / "meta.json").is_file()):
            continue
        for key, value in read(file, root).items():
            found[f"{relative}: {key}" if key else str(relative)] = value
    return found


def features(folder: Path) -> Record:
    """The rows of each layer of stored features, by the content that they belong to: which shard
    holds it depends on the time it took.
    """
    found: Record = {}
    for shard in sorted(folder.glob("shard-*")):
        index = pl.read_parquet(shard / "index.parquet")
        layers = {path.stem: np.load(path, allow_pickle=False) for path in sorted(shard.glob("layer-*.npy"))}
        for content, first, rows in index.select("content", "first", "rows").iter_rows():
            found |= {f"{content[:16]} {name}": values[first : first + rows] for name, values in layers.items()}
    return dict(sorted(found.items()))


def skipped(relative: Path) -> bool:
    """Whether a file is left out of records."""
    return (
        bool(SKIPPED_FOLDERS & set(relative.parts))
        or relative.name in SKIPPED_FILES
        or relative.suffix in SKIPPED_SUFFIXES
        or ".tfevents." in relative.name
    )


def read(file: Path, root: Path) -> Record:
    """The values of one file, by its kind; a file of another kind is its hash."""
    if file.suffix == ".parquet":
        return {f"column {name}": value for name, value in table(pl.read_parquet(file), root).items()}
    if file.suffix == ".safetensors":
        return {f"tensor {name}": value for name, value in load_file(file).items()}
    if file.suffix == ".npy":
        return {"": np.load(file, allow_pickle=False)}
    if file.suffix == ".json" or file.name == "DONE":
        return flat(json.loads(file.read_text()), root)
    if file.suffix in (".yaml", ".yml"):
        return flat(yaml.safe_load(file.read_text()), root)
    if file.suffix in (".md", ".txt", ".csv", ".svg"):
        return {"": file.read_text().replace(str(root), "FOLDER")}
    return {"": hashlib.sha256(file.read_bytes()).hexdigest()}


def table(frame: pl.DataFrame, root: Path) -> Record:
    """The columns of a table: arrays of numbers, and lists of everything else."""
    columns: Record = {}
    for name in frame.columns:
        if name.rpartition(".")[2] in VOLATILE:
            continue
        column = frame[name]
        if column.dtype.is_numeric() and not column.null_count():
            columns[name] = column.to_numpy()
        else:
            columns[name] = json.dumps(column.to_list(), default=str).replace(str(root), "FOLDER")
    return columns


def flat(value: Any, root: Path, key: str = "") -> Record:
    """A nested value by its keys, joined with dots."""
    if isinstance(value, dict):
        found: Record = {}
        for name, item in value.items():
            if str(name) not in VOLATILE:
                found |= flat(item, root, f"{key}.{name}" if key else str(name))
        return found
    if isinstance(value, list):
        found = {f"{key}.length": len(value)}
        for number, item in enumerate(value):
            found |= flat(item, root, f"{key}.{number}")
        return found
    return {key: value.replace(str(root), "FOLDER") if isinstance(value, str) else value}


def differences(old: Record, new: Record) -> list[str]:
    """One line for each value that differs or that one side lacks; an empty list where all are
    equal, bit for bit.
    """
    lines = [f"- only in the old: {key}" for key in old if key not in new]
    lines += [f"+ only in the new: {key}" for key in new if key not in old]
    for key, before in old.items():
        if key in new and (told := difference(before, new[key])):
            lines.append(f"! {key}: {told}")
    return lines


def difference(before: Any, after: Any) -> str | None:
    """How two values differ, or None where they are the same bits."""
    if not (isinstance(before, np.ndarray) and isinstance(after, np.ndarray)):
        same = type(before) is type(after) and (before == after or (before != before and after != after))
        return None if same else f"{str(before)[:80]!r} became {str(after)[:80]!r}"
    if before.dtype != after.dtype or before.shape != after.shape:
        return f"{before.dtype}{before.shape} became {after.dtype}{after.shape}"
    if before.tobytes() == after.tobytes():
        return None
    if not np.issubdtype(before.dtype, np.number):
        return f"{int((before != after).sum())} of {before.size} values differ"
    gap = np.abs(before.astype(np.float64) - after.astype(np.float64))
    return f"{int((gap != 0).sum())} of {before.size} values differ, by at most {np.nanmax(gap):.3g}"
