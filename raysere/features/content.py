"""Which bytes an utterance stands for: content hashes, so that a grown corpus extracts only what is new.

Audio is named by its file's bytes and the segment (and the channel, where one is named), text by its words and language,
a row of a ready table by the utterance id. File hashes are cached by path, size and time of change.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from raysere.errors import DataError
from raysere.features.spec import FeatureSpec
from raysere.files import atomic_write, digest

if TYPE_CHECKING:
    from raysere.corpora.manifest import Manifest

HASHES: dict[str, Any] = {"path": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "hash": pl.String}
MAP: dict[str, Any] = {"utterance": pl.String, "path": pl.String, "start_s": pl.Float64, "end_s": pl.Float64, "content": pl.String}
CHARACTERS_PER_S = 15.0  # of read speech: what a text costs in seconds when nothing was heard


@dataclass(frozen=True)
class Work:
    """One content to extract.

    ``seconds`` is what it is expected to cost, in seconds of speech; ``channel`` is the one that is heard (None: the spec's).
    """

    content: str
    utterance: str
    seconds: float
    path: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    text: str | None = None
    language: str | None = None
    channel: int | Literal["mix"] | None = None


@dataclass(frozen=True)
class Failure:
    """An utterance without features. ``lasting``: its content is at fault, so it is not tried again while that stays the same."""

    utterance: str
    content: str | None
    path: str | None
    reason: str
    lasting: bool = True


@dataclass
class Contents:
    """Content hash (or None) of each row of a table, what to do for each content, and the rows that have none, with the reason."""

    utterances: list[str]
    content: list[str | None]
    work: dict[str, Work] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


class FileHashes:
    """SHA-256 of files, remembered in ``<store>/hashes.parquet`` by path, size and time of change. Losing it costs one reading."""

    def __init__(self, store: Path) -> None:
        self.path = store / "hashes.parquet"
        self._known = self._load()
        self._new: dict[str, tuple[int, int, str]] = {}

    def known(self, path: Path) -> str | None:
        """The hash without reading the file, or None where it is not known or the file changed."""
        try:
            stat = os.stat(path)
        except OSError:
            return None
        size, mtime, value = self._known.get(str(path), (-1, -1, ""))
        return value if (size, mtime) == (stat.st_size, stat.st_mtime_ns) else None

    def of(self, path: Path) -> str | DataError:
        """The hash of a file, or the reason why there is none."""
        from raysere.features.audio import content_hash

        value = self.known(path)
        if value is not None:
            return value
        try:
            before = os.stat(path)
            value = content_hash(path)
        except FileNotFoundError:
            return DataError("missing file", where=path)
        except DataError as error:
            return error
        except OSError as error:
            return DataError(f"unreadable ({error.strerror or error})", where=path)
        self._new[str(path)] = (before.st_size, before.st_mtime_ns, value)
        return value

    def save(self) -> None:
        """Write what is new. Raises EnvironmentFault when the store cannot be written."""
        if not self._new:
            return
        self._known = {**self._load(), **self._new}
        self._new = {}
        table = pl.DataFrame([(path, *entry) for path, entry in sorted(self._known.items())], schema=HASHES, orient="row")
        with atomic_write(self.path) as temporary:
            table.write_parquet(temporary)

    def _load(self) -> dict[str, tuple[int, int, str]]:
        try:
            table = pl.read_parquet(self.path)
            return {path: (size, mtime, value) for path, size, mtime, value in table.select(list(HASHES)).iter_rows()}
        except (OSError, pl.exceptions.PolarsError):
            return {}


def contents(manifest: Manifest, spec: FeatureSpec, hashes: FileHashes, *, known_only: bool = False) -> Contents:
    """Content of each row of the manifest for this spec. ``known_only`` reads no file: audio that was never hashed has no content then."""
    table = manifest.table
    if spec.reads != "wave":
        return text_contents(table, spec)
    rows = list(table.select("utterance", "corpus", "path", "start_s", "end_s", "duration_s", "speaker").iter_rows(named=True))
    paths: list[Path | None] = [None if row["path"] is None else manifest.path(row) for row in rows]
    different = list(dict.fromkeys(path for path in paths if path is not None))
    if known_only:
        values: dict[Path, Any] = {path: hashes.known(path) for path in different}
    else:
        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:  # hashing lets go of the interpreter lock
            values = dict(zip(different, pool.map(hashes.of, different), strict=True))
    result = Contents([row["utterance"] for row in rows], [])
    for row, path in zip(rows, paths, strict=True):
        value = DataError("no audio file") if path is None else values[path]
        if not isinstance(value, str):
            result.content.append(None)
            result.failures.append(Failure(row["utterance"], None, None if path is None else str(path), _reason(value), lasting=False))
            continue
        channel = manifest.channels.get(row["speaker"]) if spec.channel is None else spec.channel
        content = _wave_content(value, row["start_s"], row["end_s"], channel)
        result.content.append(content)
        result.work.setdefault(
            content,
            Work(content, row["utterance"], max(0.01, row["duration_s"] or 1.0), str(path), row["start_s"], row["end_s"], channel=channel),
        )
    return result


def text_contents(table: pl.DataFrame, spec: FeatureSpec) -> Contents:
    """Contents that the table itself tells: words, or rows of a ready table."""
    result = Contents(table["utterance"].to_list(), [])
    if spec.reads == "id":
        for utterance in result.utterances:
            content = digest(f"id|{utterance}", 64)
            result.content.append(content)
            result.work[content] = Work(content, utterance, 1.0)
        return result
    for utterance, text, language in table.select("utterance", "transcript", "language").iter_rows():
        if text is None or not text.strip():
            result.content.append(None)
            result.failures.append(Failure(utterance, None, None, "no transcript", lasting=False))
            continue
        content = digest(f"text|{language or ''}|{text}", 64)
        result.content.append(content)
        result.work.setdefault(content, Work(content, utterance, max(0.1, len(text) / CHARACTERS_PER_S), text=text, language=language))
    return result


def content_map(table: pl.DataFrame, found: Contents) -> pl.DataFrame:
    """Rows of the ``utterances.parquet`` of a key: which content each audio row had when it was extracted last."""
    return (
        table.select("utterance", "path", "start_s", "end_s")
        .with_columns(pl.Series("content", found.content, dtype=pl.String))
        .cast(pl.Schema(MAP))
    )


def merge_map(old: pl.DataFrame | None, new: pl.DataFrame) -> pl.DataFrame:
    """The old map with the new rows in place of those with the same utterance, path and segment."""
    parts = [new] if old is None else [old.select(list(MAP)).cast(pl.Schema(MAP)), new]
    return (
        pl.concat(parts)
        .unique(["utterance", "path", "start_s", "end_s"], keep="last", maintain_order=True)
        .sort("utterance", "path", "start_s")
    )


def lookup(table: pl.DataFrame, mapping: pl.DataFrame) -> tuple[list[str | None], list[str]]:
    """(content of each row of ``table``, utterances that the map does not hold)."""
    known = {(utterance, path, start, end): content for utterance, path, start, end, content in mapping.select(list(MAP)).iter_rows()}
    keys = list(table.select("utterance", "path", "start_s", "end_s").iter_rows())
    return [known.get(key) for key in keys], [key[0] for key in keys if key not in known]


def _wave_content(file_hash: str, start_s: float | None, end_s: float | None, channel: int | Literal["mix"] | None) -> str:
    if start_s is None and end_s is None and channel is None:
        return file_hash
    return digest(f"{file_hash}|segment {start_s!r} {end_s!r}|channel {channel!r}", 64)


def _reason(error: DataError | None) -> str:
    return "not hashed yet" if error is None else error.what


def failures_table(failures: Iterable[Failure]) -> pl.DataFrame:
    """(utterance, path, reason, stage), as every stage lists what it had to leave out."""
    rows = sorted((failure.utterance, failure.path, failure.reason, "features") for failure in failures)
    return pl.DataFrame(rows, schema={"utterance": pl.String, "path": pl.String, "reason": pl.String, "stage": pl.String}, orient="row")
