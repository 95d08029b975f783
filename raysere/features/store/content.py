"""Content hashes of utterances, so that a corpus that grew extracts only what is new.

Audio is named by its file's bytes and the segment (and the channel, where one is named), text by
its words and language, a row of a ready table by the utterance id. File hashes are cached by path,
size and time of change.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from raysere.base.errors import DataError
from raysere.base.files import atomic_write, digest
from raysere.corpora.audiofile import unreadable
from raysere.features.spec import FeatureSpec

if TYPE_CHECKING:
    from raysere.corpora.manifest import Manifest

HASHES: dict[str, Any] = {"path": pl.String, "size": pl.Int64, "mtime_ns": pl.Int64, "hash": pl.String}
MAP: dict[str, Any] = {
    "root": pl.String,
    "utterance": pl.String,
    "path": pl.String,
    "start_s": pl.Float64,
    "end_s": pl.Float64,
    "content": pl.String,
}
_ROW = ["utterance", "path", "start_s", "end_s"]
NO_TRANSCRIPT = "no transcript"
#: Reasons of a missing modality, which is no fault, and the stage that such an utterance is listed
#: with.
NO_PHONES = "none of the phones that these features are of"
MISSING = {NO_TRANSCRIPT: NO_TRANSCRIPT, "no row for this utterance": "no row", NO_PHONES: "no phones"}
CHARACTERS_PER_S = 15.0  # of read speech: what a text costs in seconds when nothing was heard


@dataclass(frozen=True)
class Work:
    """One content to extract.

    ``seconds`` is what it is expected to cost, in seconds of speech; ``channel`` is the one that is
    heard (None: the spec's). ``spans`` are the (start, end) in s, from the start of the utterance,
    that alone count; None for all.
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
    spans: tuple[tuple[float, float], ...] | None = None


@dataclass(frozen=True)
class Failure:
    """An utterance without features.

    ``lasting``: its content is at fault, so it is not tried again while that stays the same.
    """

    utterance: str
    content: str | None
    path: str | None
    reason: str
    lasting: bool = True

    @property
    def stage(self) -> str:
        """``no transcript``, ``no phones`` or ``no row`` where there is nothing to read, a missing
        modality; else ``features``.
        """
        return MISSING.get(self.reason, "features")


@dataclass
class Contents:
    """Content hash (or None) of each row of a table, what to do for each content, and the rows that
    have none, with the reason.
    """

    utterances: list[str]
    content: list[str | None]
    work: dict[str, Work] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


class FileHashes:
    """SHA-256 of files, remembered in ``<store>/hashes.parquet`` by path, size and time of change.

    Losing it costs one reading.
    """

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
        """The hash of a file, or the reason why there is none.

        Raises EnvironmentFault where the disk fails.
        """
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
            if isinstance(reason := unreadable(path, error), DataError):
                return reason
            raise reason from None
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
    """Content of each row of the manifest for this spec.

    ``known_only`` reads no file: audio that was never hashed has no content then.
    """
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
    spoken = phone_spans(table, spec.phones) if spec.phones else None
    result = Contents([row["utterance"] for row in rows], [])
    for row, path in zip(rows, paths, strict=True):
        value = DataError("no audio file") if path is None else values[path]
        if not isinstance(value, str):
            result.content.append(None)
            result.failures.append(Failure(row["utterance"], None, None if path is None else str(path), _reason(value), lasting=False))
            continue
        spans = None if spoken is None else spoken.get(row["utterance"])
        if spoken is not None and spans is None:
            result.content.append(None)
            result.failures.append(Failure(row["utterance"], None, str(path), NO_PHONES, lasting=False))
            continue
        channel = manifest.channels.get(row["speaker"]) if spec.channel is None else spec.channel
        content = _wave_content(value, row["start_s"], row["end_s"], channel)
        content = content if spans is None else digest(f"{content}|spans {spans!r}", 64)
        result.content.append(content)
        seconds = max(0.01, row["duration_s"] or 1.0)
        work = Work(content, row["utterance"], seconds, str(path), row["start_s"], row["end_s"], channel=channel, spans=spans)
        result.work.setdefault(content, work)
    return result


def phone_spans(table: pl.DataFrame, phones: Sequence[str]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Where the ``phones`` (IPA) lie in each utterance of a manifest's table that has any: (start,
    end) in s, in order of time.
    """
    from raysere.corpora.ipa import ipa_phones

    found: dict[str, list[tuple[float, float]]] = {}
    for utterance, start, end in (
        ipa_phones(table).filter(pl.col("ipa").is_in(list(phones))).select("utterance", "start_s", "end_s").iter_rows()
    ):
        found.setdefault(utterance, []).append((start, end))
    return {utterance: tuple(sorted(spans)) for utterance, spans in found.items()}


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
            result.failures.append(Failure(utterance, None, None, NO_TRANSCRIPT, lasting=False))
            continue
        content = digest(f"text|{language or ''}|{text}", 64)
        result.content.append(content)
        result.work.setdefault(content, Work(content, utterance, max(0.1, len(text) / CHARACTERS_PER_S), text=text, language=language))
    return result


def root_hash(root: str | os.PathLike[str]) -> str:
    """What a map calls a corpus root: two corpora may share their name and all their relative
    paths, but not the folder.
    """
    return digest(f"root|{Path(root).expanduser().resolve()}", 64)


def content_map(manifest: Manifest, found: Contents) -> pl.DataFrame:
    """Rows of the ``utterances.parquet`` of a key: which content each audio row had when it was
    extracted last.

    ``root`` is the :func:`root_hash` of the row's corpus, null where the manifest names no root for
    it.
    """
    return (
        manifest.table.with_columns(root=_roots(manifest.table, manifest.roots), content=pl.Series(found.content, dtype=pl.String))
        .select(list(MAP))
        .cast(pl.Schema(MAP))
    )


def read_map(path: Path) -> pl.DataFrame:
    """A map as written; one of before roots were kept has nulls there.

    Raises what polars raises for a file that cannot be read.
    """
    table = pl.read_parquet(path)
    if "root" not in table.columns:
        table = table.with_columns(root=pl.lit(None, dtype=pl.String))
    return table.select(list(MAP)).cast(pl.Schema(MAP))


def merge_map(old: pl.DataFrame | None, new: pl.DataFrame) -> pl.DataFrame:
    """The old map with the new rows in place of those with the same root, utterance, path and
    segment.

    An old row of an unknown root goes only where a new one says the same: it may be of another
    corpus.
    """
    if old is not None:
        said = new.select(*_ROW, "content").unique()
        old = pl.concat(
            [
                old.filter(pl.col("root").is_not_null()),
                old.filter(pl.col("root").is_null()).join(said, on=[*_ROW, "content"], how="anti", nulls_equal=True),
            ]
        )
    return (
        pl.concat([new] if old is None else [old, new])
        .unique(["root", *_ROW], keep="last", maintain_order=True)
        .sort("utterance", "path", "start_s", "root", "end_s")
    )


def lookup(
    table: pl.DataFrame, mapping: pl.DataFrame, roots: Mapping[str, str] | None = None, *, guess: bool = True
) -> tuple[list[str | None], list[int]]:
    """(content of each row of ``table``, numbers of the rows that the map does not hold).

    A row whose corpus is in ``roots`` has the content that was extracted from there; where that was
    never, what the map holds of an unknown root. A row without root has what the map holds of any
    root. Of one of several contents nothing is guessed.

    Args:
        guess: False leaves out what the map holds of unknown roots, for rows that have one.

    Raises DataError where a row without a usable root may be one of several contents.
    """
    exact: dict[tuple[Any, ...], str | None] = {}
    any_root: defaultdict[tuple[Any, ...], set[str | None]] = defaultdict(set)
    unknown_root: defaultdict[tuple[Any, ...], set[str | None]] = defaultdict(set)
    for root, *key, content in mapping.select(list(MAP)).iter_rows():
        row = tuple(key)
        any_root[row].add(content)
        if root is None:
            unknown_root[row].add(content)
        else:
            exact[root, row] = content
    found: list[str | None] = []
    missing: list[int] = []
    unclear: list[str] = []
    for number, (root, *key) in enumerate(table.select(_roots(table, roots or {}), *_ROW).iter_rows()):
        row = tuple(key)
        if (root, row) in exact:
            found.append(exact[root, row])
            continue
        open_to = any_root if root is None else unknown_root if guess else {}
        choices = open_to.get(row, set())
        if len(choices) > 1 or (choices and root is not None and len(any_root[row]) > 1):
            unclear.append(row[0])
        found.append(next(iter(choices)) if len(choices) == 1 else None)
        if not choices:
            missing.append(number)
    if unclear:
        raise DataError(
            f"{len(unclear)} of {table.height} utterances were extracted from several corpora with the same name and the same paths",
            where=", ".join(unclear[:5]),
            remedy="Open the features with the manifest (or name the corpus roots), and run `raysere extract` for it; "
            "or give the corpora different names.",
        )
    return found, missing


def _roots(table: pl.DataFrame, roots: Mapping[str, str]) -> pl.Series:
    names = {corpus: root_hash(root) for corpus, root in roots.items()}
    corpora = table["corpus"].to_list() if names and "corpus" in table.columns else [None] * table.height
    return pl.Series("root", [None if corpus is None else names.get(corpus) for corpus in corpora], dtype=pl.String)


def _wave_content(file_hash: str, start_s: float | None, end_s: float | None, channel: int | Literal["mix"] | None) -> str:
    if start_s is None and end_s is None and channel is None:
        return file_hash
    return digest(f"{file_hash}|segment {start_s!r} {end_s!r}|channel {channel!r}", 64)


def _reason(error: DataError | None) -> str:
    return "not hashed yet" if error is None else error.what


def failures_table(failures: Iterable[Failure]) -> pl.DataFrame:
    """(utterance, path, reason, stage), as every stage lists what it had to leave out; stage as in
    :attr:`Failure.stage`.
    """
    rows = sorted(((one.utterance, one.path, one.reason, one.stage) for one in failures), key=lambda row: (row[0], row[1] or "", row[2]))
    return pl.DataFrame(rows, schema={"utterance": pl.String, "path": pl.String, "reason": pl.String, "stage": pl.String}, orient="row")
