"""The contract of a corpus adapter: it lists utterances, and the base class does the rest."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import polars as pl

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.audiofile import AudioInfo, probe
from raysere.corpora.grouping import linked_groups
from raysere.corpora.manifest import SCHEMA, Manifest, rows_to_table

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".oga", ".opus", ".aiff", ".aif", ".au", ".w64", ".caf")
REJECTED_SCHEMA = {"path": pl.String, "utterance": pl.String, "reason": pl.String, "stage": pl.String}
_SEXES = {
    "f": "female",
    "female": "female",
    "w": "female",
    "woman": "female",
    "m": "male",
    "male": "male",
    "man": "male",
    "other": "other",
    "o": "other",
}
_SEGMENT_SLACK_S = 0.01  # annotation tools round times to centiseconds


@dataclass(frozen=True)
class Loaded:
    """What an adapter found: the usable utterances, and what was turned away.

    ``rejected`` has the columns path, utterance, reason (all str, path may be null) and stage
    (always ``manifest``).
    """

    manifest: Manifest
    rejected: pl.DataFrame


class Adapter(abc.ABC):
    """A corpus in its published layout. A subclass sets the class attributes and writes
    :meth:`read`; one instance loads one folder.

    :meth:`read` yields one dict for each utterance. Keys are manifest columns; what is left out is
    null. Of these

    * ``path`` (str or Path) is relative to the corpus root (an absolute one must lie inside it);
      None without audio;
    * ``speaker`` is the corpus's own id (``"03"``): the base makes it ``"emodb/03"``. Where the
      corpus does not know the speaker, give one id a recording (``"unknown-<recording>"``); None
      becomes one shared ``unknown`` speaker, which never leaks but costs folds;
    * ``utterance`` is optional: the default is the path without suffix, plus ``@start-end`` for a
      segment. The base puts the corpus in front;
    * ``emotion`` is the corpus's own label, unmapped; ``sex`` may be F, M, female, male, in any
      case;
    * ``duration_s`` and ``sampling_rate`` are read from the file by the base and never taken from a
      table (kept only when ``path`` is None);
    * ``language`` and ``corpus`` default to the adapter's; ``linked`` is not a column: see
      :attr:`linked_speakers`;
    * ``reject`` (str) turns the row away with that reason: a listed file without audio, a name that
      cannot be right.

    :meth:`read` may call :meth:`note` and :meth:`link`, and may set ``self.audio_root`` (where the
    audio does not lie under the given folder), ``self.language``, ``self.scale`` and
    ``self.audio``, where they depend on the folder or on an option.

    Attributes:
        name: registered name, and the default of the ``corpus`` column.
        language: BCP-47.
        licence, homepage: as published, one line each.
        classes: name of the default class map in :mod:`raysere.corpora.labels`.
        layout: one line that says what files are expected; it goes into the error for a folder in
            which nothing is found.
        audio: False for a corpus that may come without audio; then missing audio is no reason to
            reject a row, and its path becomes null.
        scale: (low, high) of arousal, valence and dominance, or None.
        linked_speakers: groups of the corpus's own speaker ids that must stay in one fold; those
            without utterances are left out.
        corpus: while it loads, the value of the ``corpus`` column of rows that name no other.
        notes: traps that were handled or that the user must know; they go into the manifest and the
            report.
        synthetic: True for speech that nobody spoke.
        channels: the corpus's own speaker id to the channel (0 is the left one) that alone is taken
            of that speaker's files with several channels.
    """

    name: ClassVar[str]
    language: str = "und"
    licence: ClassVar[str] = "unknown"
    homepage: ClassVar[str] = ""
    classes: ClassVar[str] = ""
    layout: ClassVar[str] = ""
    audio: bool = True
    scale: tuple[float, float] | None = None
    linked_speakers: ClassVar[Sequence[Sequence[str]]] = ()
    notes: ClassVar[Sequence[str]] = ()
    synthetic: ClassVar[bool] = False
    channels: ClassVar[Mapping[str, int]] = {}

    audio_root: Path
    corpus: str

    @abc.abstractmethod
    def read(self, path: Path, *args: Any, **kwargs: Any) -> Iterator[dict[str, Any]]:
        """Yield the utterances under ``path`` as dicts, in any order.

        A subclass names its options after ``path``, each with a default; a parameter ``columns``
        only where it reads the user's own table.
        """

    def note(self, text: str) -> None:
        """Add a note to the manifest (once)."""
        if text not in self._notes:
            self._notes.append(text)

    def link(self, speakers: Iterable[str]) -> None:
        """Say that these speakers (the corpus's own ids, or ``corpus/id``) must stay in one fold."""
        self._links.append(sorted(set(speakers)))

    def load(self, path: str | Path, *, columns: Mapping[str, str] | None = None, name: str | None = None, **options: Any) -> Loaded:
        """Read a corpus folder (or table) into a checked manifest.

        Args:
            path: the folder that holds the published layout.
            columns: manifest column to the corpus's own column name, for adapters that read a table
                of the user.
            name: value of the ``corpus`` column (default: the adapter's name).
            options: what the adapter's ``read`` takes.

        Raises:
            MissingFileError: there is nothing at ``path``.
            ConfigError: an option that the adapter does not have.
            DataError: nothing usable is found, or the table is wrong (up to 20 rows are named).
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise MissingFileError(f"There is no corpus {self.name!r} at this path", where=path, remedy=self._expected())
        arguments = self._arguments(columns, options)
        self.audio_root = path if path.is_dir() else path.parent
        self._notes: list[str] = list(self.notes)
        self._links: list[list[str]] = [list(group) for group in self.linked_speakers]
        self.corpus = corpus = name or self.name
        found = list(self.read(path, **arguments))
        if not found:
            raise DataError(f"No utterance of the corpus {self.name!r} was found", where=path, remedy=self._expected())
        root = self.audio_root.resolve()
        rows, rejected = [], []
        for entry in found:
            row, reason = self._row(entry, corpus, root)
            if reason is None:
                rows.append(row)
            else:
                rejected.append((row, reason))
        rows = self._fill_from_audio(_one_file_an_utterance(rows, rejected), root, rejected)
        if not rows:
            reasons = "; ".join(f"{row['path'] or row['utterance']}: {reason}" for row, reason in rejected[:3])
            raise DataError(
                f"None of the {len(rejected)} utterances of the corpus {self.name!r} can be used",
                where=path,
                remedy=f"The first reasons: {reasons}. {self._expected()}",
            )
        corpora = sorted({row["corpus"] for row in rows})
        speakers = {row["speaker"] for row in rows}
        links = self._linked(speakers, {row["speaker"] for row, _ in rejected})
        manifest = Manifest.checked(
            rows_to_table(rows),
            roots={one: str(root) for one in corpora},
            scales=dict.fromkeys(corpora, self.scale) if self.scale else {},
            linked_speakers=links,
            notes=self._notes,
            synthetic=self.synthetic,
            channels={key: channel for speaker, channel in self.channels.items() if (key := f"{corpus}/{speaker}") in speakers},
            where=path,
        )
        table = [{"path": row["path"], "utterance": row["utterance"], "reason": reason, "stage": "manifest"} for row, reason in rejected]
        return Loaded(manifest, pl.DataFrame(table, schema=REJECTED_SCHEMA).sort("utterance", "path"))

    def _linked(self, speakers: set[str], rejected: set[str]) -> list[list[str]]:
        """Groups of linked speakers that are here.

        They are joined first: who links two others may have no usable utterance himself.
        """
        everyone = speakers | rejected
        named = [
            [key if (key := f"{self.corpus}/{speaker}") in everyone else speaker for speaker in group if speaker is not None]
            for group in self._links
        ]
        groups = linked_groups(named)
        gone = sorted({speaker for group in groups for speaker in group if speaker in rejected - speakers})
        if gone:
            self.note(f"All utterances of the linked speaker{'s' if len(gone) > 1 else ''} {', '.join(gone)} were rejected.")
        return [[speaker for speaker in group if speaker in speakers] for group in groups]

    def _expected(self) -> str:
        return f"Expected: {self.layout.rstrip('.')}." if self.layout else "Check the path."

    def _arguments(self, columns: Mapping[str, str] | None, options: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(self.read).parameters
        known = [
            key for key, parameter in parameters.items() if key not in ("path", "columns") and parameter.kind is not parameter.VAR_KEYWORD
        ]
        unknown = [key for key in options if key not in known]
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            raise ConfigError(f"The corpus {self.name!r} has no option {', '.join(map(repr, unknown))}", choices=[*known, "name"])
        if columns and "columns" not in parameters:
            raise ConfigError(
                f"The corpus {self.name!r} has a fixed layout and takes no columns", remedy="Remove `columns`, or use the corpus 'table'."
            )
        return {**options, **({"columns": dict(columns)} if columns else {})}

    def _row(self, entry: Mapping[str, Any], corpus: str, root: Path) -> tuple[dict[str, Any], str | None]:
        """The manifest row of an utterance dict, and why it is turned away, if it is."""
        unknown = set(entry) - {*SCHEMA, "reject"}
        if unknown:
            raise DataError(
                f"The adapter {self.name!r} yields keys that are not manifest columns: {', '.join(sorted(unknown))}", choices=SCHEMA
            )
        row = {column: _clean(entry.get(column)) for column in SCHEMA}
        reason = entry.get("reject")
        row["corpus"], row["language"] = row["corpus"] or corpus, row["language"] or self.language
        if row["path"] is not None:
            given = Path(row["path"])
            if given.is_absolute():  # first as written: files of a corpus are often links to another disk
                inside = next(
                    (
                        one.relative_to(base)
                        for one, base in ((given, self.audio_root.absolute()), (given.resolve(), root))
                        if one.is_relative_to(base)
                    ),
                    None,
                )
                if inside is None:
                    reason = reason or f"the file lies outside the corpus root {root}"
                given = inside or given
            row["path"] = given.as_posix()
        row["sex"] = _SEXES.get(str(row["sex"]).lower(), row["sex"]) if row["sex"] is not None else None
        if row["speaker"] is None:
            row["speaker"] = "unknown"
            self.note(f"{row['corpus']}: utterances without a speaker share one speaker 'unknown', so that nobody can be in two folds.")
        row["speaker"] = f"{row['corpus']}/{row['speaker']}"
        if row["dialogue"] is not None:
            row["dialogue"] = f"{row['corpus']}/{row['dialogue']}"
        identity = row["utterance"]
        if identity is None:
            if row["path"] is None:
                raise DataError(f"The adapter {self.name!r} yields an utterance with neither id nor path", where=root)
            identity = str(PurePosixPath(row["path"]).with_suffix(""))
            if row["start_s"] is not None or row["end_s"] is not None:
                identity += f"@{float(row['start_s'] or 0):.3f}-{'end' if row['end_s'] is None else format(float(row['end_s']), '.3f')}"
        row["utterance"] = f"{row['corpus']}/{identity}"
        return row, reason

    def _fill_from_audio(self, rows: list[dict[str, Any]], root: Path, rejected: list[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
        """Durations, rates and segment ends from the files; rows whose file cannot be used go to
        ``rejected``.
        """
        paths = sorted({row["path"] for row in rows if row["path"] is not None})
        with ThreadPoolExecutor(max_workers=8) as pool:  # opening files waits on the disk, and libsndfile leaves the interpreter lock
            infos = dict(zip(paths, pool.map(_probe, [root / path for path in paths]), strict=True))
        kept = []
        for row in rows:
            info = infos.get(row["path"])
            if info is None:
                if self.audio:
                    rejected.append((row, "no audio file is named"))
                    continue
            elif isinstance(info, str):
                if self.audio or not info.startswith("missing"):
                    rejected.append((row, info))
                    continue
                row["path"] = None
            else:
                reason = _place(row, info)
                if reason is not None:
                    rejected.append((row, reason))
                    continue
            kept.append(row)
        return kept


def audio_files(root: Path, pattern: str = "**/*") -> list[Path]:
    """Files under ``root`` whose suffix libsndfile may read, in any case, sorted; hidden files
    (macOS's ``._x.wav``) are left out.
    """
    return sorted(
        file
        for file in root.glob(pattern)
        if file.suffix.lower() in AUDIO_SUFFIXES and not file.name.startswith(".") and (file.is_file() or file.is_symlink())
    )


def find_audio(root: Path, stem: str) -> Path | None:
    """The audio file of a published relative ``stem`` (a known suffix on it is ignored), or None.

    Tries wav, flac, ogg, mp3 and so on.
    """
    base = root / stem
    if base.suffix.lower() in AUDIO_SUFFIXES:
        if base.is_file():
            return base
        base = base.with_suffix("")
    for suffix in AUDIO_SUFFIXES:
        for variant in (suffix, suffix.upper()):
            candidate = base.with_name(base.name + variant)
            if candidate.is_file():
                return candidate
    return None


def _clean(value: Any) -> Any:
    """Text without blanks around it (nEMO pads its speaker ids); empty text is no value."""
    if isinstance(value, str):
        return value.strip() or None
    return value


def _probe(path: Path) -> AudioInfo | str:
    try:
        return probe(path)
    except DataError as error:
        return error.what


def _place(row: dict[str, Any], info: AudioInfo) -> str | None:
    """Fill duration and rate; the reason why a segment cannot be, or None."""
    row["sampling_rate"] = info.sampling_rate
    if row["start_s"] is None and row["end_s"] is None:
        row["duration_s"] = info.duration_s
        return None
    try:
        start = 0.0 if row["start_s"] is None else float(row["start_s"])
        end = info.duration_s if row["end_s"] is None else float(row["end_s"])
    except (TypeError, ValueError):
        return f"the segment {row['start_s']!r} to {row['end_s']!r} is no pair of times in seconds"
    if not 0 <= start < end:
        return f"the segment {start:g} to {end:g} s is empty or negative"
    if end > info.duration_s + _SEGMENT_SLACK_S:
        return f"the segment {start:g} to {end:g} s ends after the file ({info.duration_s:.3f} s)"
    end = min(end, info.duration_s)
    if start >= end:
        return f"the segment {start:g} to {end:g} s lies after the file's end"
    row["start_s"], row["end_s"], row["duration_s"] = start, end, end - start
    return None


def _one_file_an_utterance(rows: list[dict[str, Any]], rejected: list[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
    """Of two files with one stem (``a.wav`` and ``a.flac``) the first is kept.

    The same file twice is left for validation to refuse.
    """
    first: dict[str, str | None] = {}
    kept = []
    for row in sorted(
        rows,
        key=lambda row: (
            row["utterance"],
            AUDIO_SUFFIXES.index(s) if (s := Path(row["path"] or "").suffix.lower()) in AUDIO_SUFFIXES else 99,
        ),
    ):
        other = first.setdefault(row["utterance"], row["path"])
        if other is not None and row["path"] is not None and other != row["path"]:
            rejected.append((row, f"a second file of the utterance that {other} holds"))
        else:
            kept.append(row)
    return kept
