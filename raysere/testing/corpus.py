"""Check that a corpus adapter keeps its contract, on a folder with a part of its corpus.

In a test of one's own::

    from raysere.testing.corpus import check_corpus

    def test_my_corpus():
        check_corpus(MyCorpus, "testdata/my_corpus")

All checks run; the failures come together in one AssertionError that says for each what was
expected, what was found and what to change.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.errors import ConfigError, DataError, MissingFileError, RaysereError
from raysere.corpora.adapters import CORPORA
from raysere.corpora.adapters.base import AUDIO_SUFFIXES, Adapter, Loaded
from raysere.corpora.labels import class_map
from raysere.corpora.manifest import Manifest, validate

_SAMPLE = 12
_LARGEST_TABLE = 64 << 20
_NOT_COPIED = {*AUDIO_SUFFIXES, ".mp4", ".mkv", ".avi", ".flv", ".zip", ".gz", ".npz"}
_BCP47 = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_NO_OPTION = "an_option_that_no_adapter_has"


@dataclass
class CorpusReport:
    """What the suite saw:

    ``loaded`` by the adapter, names of the checks that ``passed`` and that were ``skipped`` (with
    the reason).
    """

    loaded: Loaded
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


class _Skip(Exception):
    pass


class _Failed(Exception):
    pass


def _expect(condition: Any, problem: str) -> None:
    if not condition:
        raise _Failed(problem)


@dataclass
class _Case:
    adapter: type[Adapter]
    folder: Path
    columns: Mapping[str, str] | None
    options: dict[str, Any]
    allow_unknown_speakers: bool
    loaded: Loaded

    @property
    def manifest(self) -> Manifest:
        return self.loaded.manifest

    def load(self, folder: Path, **more: Any) -> Loaded:
        return self.adapter().load(folder, columns=self.columns, **{**self.options, **more})


def check_corpus(
    adapter: str | type[Adapter],
    folder: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    allow_unknown_speakers: bool = False,
) -> CorpusReport:
    """Check that an adapter keeps the contract of :class:`raysere.corpora.adapters.base.Adapter` on
    a folder.

    Args:
        adapter: a registered name or an adapter class.
        folder: a folder (or table file) in the corpus's layout. A dozen clips do; nothing in it is
            changed.
        columns, options: as for ``load``.
        allow_unknown_speakers: for corpora that tell no speakers at all.

    Returns:
        a report of what was loaded and checked.

    Raises:
        AssertionError: at least one check failed; all failures are listed.

    Example:
        >>> check_corpus(MyAdapter(), "corpus")  # doctest: +SKIP
    """
    kind = CORPORA.get(adapter) if isinstance(adapter, str) else adapter
    if not (isinstance(kind, type) and issubclass(kind, Adapter)):
        raise AssertionError(
            f"{adapter!r} is not an adapter: pass a class that inherits raysere.corpora.adapters.base.Adapter, or a registered name."
        )
    folder, options = Path(folder).expanduser(), dict(options or {})
    label = f"The adapter {getattr(kind, 'name', None) or kind.__name__!r} on {folder}"
    try:
        loaded = kind().load(folder, columns=columns, **options)
    except RaysereError as error:
        also = "".join(f"\n  - the adapter describes itself: {fault}" for fault in _description_faults(kind))
        raise AssertionError(f"{label} could not be loaded at all, so nothing else was checked: {error}{also}") from error
    except Exception as error:
        raise AssertionError(
            f"{label} ended in {type(error).__name__}: {error}. `read` must name faults by `reject` or raise a raysere error."
        ) from error
    case, report, failures = _Case(kind, folder, columns, options, allow_unknown_speakers, loaded), CorpusReport(loaded), []
    for name, check in _CHECKS.items():
        try:
            check(case)
        except _Skip as skip:
            report.skipped[name] = str(skip)
        except _Failed as failure:
            failures.append(f"{name}: {failure}")
        except Exception as error:  # a fault of the adapter; the others are still worth knowing
            failures.append(f"{name}: ended in {type(error).__name__}: {error}")
        else:
            report.passed.append(name)
    if failures:
        raise AssertionError(
            f"{label} fails {len(failures)} of {len(_CHECKS)} checks:\n" + "\n".join(f"  - {failure}" for failure in failures)
        )
    return report


def _description_faults(adapter: type[Adapter]) -> list[str]:
    faults = []
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", getattr(adapter, "name", "")):
        faults.append("`name` must be lower-case letters, digits, dots and dashes")
    if not _BCP47.fullmatch(adapter.language):
        faults.append(f"`language` {adapter.language!r} is no BCP-47 tag ('de', 'cmn', 'und')")
    if not adapter.layout:
        faults.append("`layout` is empty: say in one line which files are expected")
    if not adapter.licence or adapter.licence == "unknown":
        faults.append("`licence` is not given")
    if adapter.homepage and not adapter.homepage.startswith(("http://", "https://")):
        faults.append(f"`homepage` {adapter.homepage!r} is no address")
    if adapter.scale is not None and not adapter.scale[0] < adapter.scale[1]:
        faults.append(f"`scale` {adapter.scale!r} is not (low, high)")
    return faults


def _describes_itself(case: _Case) -> None:
    faults = _description_faults(case.adapter)
    _expect(not faults, "; ".join(faults))


def _manifest_is_sound(case: _Case) -> None:
    problems = validate(case.manifest.table, case.manifest.scales)
    _expect(not problems, "; ".join(map(str, problems[:3])))


def _loads_the_same_twice(case: _Case) -> None:
    again = case.load(case.folder)
    _expect(
        again.manifest.fingerprint == case.manifest.fingerprint,
        "a second load of the same folder gave another manifest: `read` must not depend on "
        "earlier calls, on random numbers or on the order in which a file system lists files",
    )
    _expect(again.rejected.equals(case.loaded.rejected), "a second load rejected other rows than the first")


def _audio_is_there(case: _Case) -> None:
    table = case.manifest.table.filter(pl.col("path").is_not_null())
    if not table.height:
        _expect(not case.adapter.audio, "no utterance has audio; an adapter of a corpus without audio sets `audio = False`")
        raise _Skip("no audio in this folder")
    lost = [row["path"] for row in table.select("corpus", "path").iter_rows(named=True) if not case.manifest.path(row).is_file()]
    _expect(not lost, f"{len(lost)} paths lead to no file under the corpus root (the first: {lost[0] if lost else ''})")


def _speakers_are_told(case: _Case) -> None:
    speakers = case.manifest.table["speaker"].unique().to_list()
    named = [speaker for speaker in speakers if speaker.split("/", 1)[1] != "unknown"]
    _expect(
        named or case.allow_unknown_speakers,
        "no utterance has a speaker, so no split can keep speakers apart: yield `speaker`, or one id a recording "
        "('unknown-RECORDING'); pass allow_unknown_speakers=True where the corpus tells none",
    )


def _labels_have_classes(case: _Case) -> None:
    table = case.manifest.table
    has_attributes = any(table[name].null_count() < table.height for name in ("arousal", "valence", "dominance"))
    _expect(
        table["emotion"].null_count() < table.height or has_attributes or table["traces"].null_count() < table.height,
        "no utterance has an emotion, an attribute or a trace",
    )
    if not case.adapter.classes:
        raise _Skip("the adapter names no default class map")
    try:
        labels, _ = class_map(case.adapter.classes).apply(table)
    except RaysereError as error:
        raise _Failed(f"the default class map does not fit the labels: {error}") from error
    _expect(
        any(labels) or table["emotion"].null_count() == table.height, f"the class map {case.adapter.classes!r} leaves out every utterance"
    )


def _attributes_have_a_scale(case: _Case) -> None:
    table = case.manifest.table
    if all(table[name].null_count() == table.height for name in ("arousal", "valence", "dominance")):
        raise _Skip("no attributes")
    lacking = sorted(set(table["corpus"]) - set(case.manifest.scales))
    _expect(not lacking, f"there are attributes but no `scale` for {', '.join(lacking)}")


def _survives_a_round_trip(case: _Case) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "manifest.parquet")
        case.manifest.write(file)
        _expect(Manifest.read(file).fingerprint == case.manifest.fingerprint, "the manifest changes when it is written and read back")


def _refuses_what_is_not_there(case: _Case) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for folder, kind, what in (
            (Path(temporary, "none"), MissingFileError, "a path that does not exist"),
            (Path(temporary), (DataError, MissingFileError), "an empty folder"),
        ):
            try:
                case.load(folder)
            except kind as error:
                words = case.adapter.layout.split()[:4]
                _expect(
                    folder.name == "none" or all(word in str(error) for word in words),
                    f"the error for {what} does not say what layout is expected: {error}",
                )
            except Exception as error:
                raise _Failed(f"{what} ended in {type(error).__name__}: {error}; expected a DataError or MissingFileError") from error
            else:
                raise _Failed(f"{what} was loaded without an error")


def _refuses_unknown_options(case: _Case) -> None:
    try:
        case.load(case.folder, **{_NO_OPTION: 1})
    except ConfigError:
        return
    except Exception as error:
        raise _Failed(f"an unknown option ended in {type(error).__name__}: {error}; expected a ConfigError") from error
    raise _Failed("an unknown option was taken without a word: name the options of `read` instead of **options")


def _survives_moving_and_broken_audio(case: _Case) -> None:
    root = _common_root(case)
    chosen = list(case.manifest.table["path"].drop_nulls().unique().sort().to_list())[:: max(1, len(case.manifest) // _SAMPLE)][:_SAMPLE]
    if not chosen:
        raise _Skip("no audio in this folder")
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, "elsewhere", root.name)
        _copy(root, copy, chosen)
        folder = copy / case.folder.resolve().relative_to(root)
        before = case.manifest.table.filter(pl.col("path").is_in(chosen))
        moved = case.load(folder).manifest.table.filter(pl.col("path").is_in(chosen))
        _expect(
            moved["utterance"].to_list() == before["utterance"].to_list(),
            "utterance ids change when the corpus lies in another folder or is a part of itself: build them from the published names alone",
        )
        victim = chosen[0]
        (copy / victim).write_bytes(b"")
        try:
            loaded = case.load(folder)
        except DataError as error:
            _expect(len(chosen) == 1, f"one empty audio file among {len(chosen)} made the whole corpus unusable: {error}")
            return
        _expect(victim not in loaded.manifest.table["path"].to_list(), f"the empty file {victim} was accepted")
        _expect(
            victim in loaded.rejected["path"].to_list(),
            f"the empty file {victim} vanished: it is neither in the manifest nor among the rejected",
        )
        rest = set(before.filter(pl.col("path") != victim)["utterance"]) - set(loaded.manifest.table["utterance"])
        _expect(not rest, f"one empty file took {len(rest)} sound utterances with it (such as {sorted(rest)[:1]})")


def _common_root(case: _Case) -> Path:
    roots = set(case.manifest.roots.values())
    root = Path(next(iter(roots))) if len(roots) == 1 else None
    if root is None or not case.folder.resolve().is_relative_to(root):
        raise _Skip("the audio does not lie under the given folder")
    return root


def _copy(root: Path, copy: Path, audio: list[str]) -> None:
    """The chosen clips, and all tables and texts of the corpus."""
    for file in root.rglob("*"):
        wanted = file.suffix.lower() not in _NOT_COPIED and file.is_file() and file.stat().st_size <= _LARGEST_TABLE
        if wanted:
            target = copy / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                shutil.copyfile(file, target)
    for name in audio:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)


_CHECKS: dict[str, Callable[[_Case], None]] = {
    "the adapter describes itself": _describes_itself,
    "the manifest is sound": _manifest_is_sound,
    "loading twice gives the same": _loads_the_same_twice,
    "audio is where the manifest says": _audio_is_there,
    "speakers are told": _speakers_are_told,
    "labels have classes": _labels_have_classes,
    "attributes have a scale": _attributes_have_a_scale,
    "the manifest survives a round trip": _survives_a_round_trip,
    "what is not there is refused": _refuses_what_is_not_there,
    "unknown options are refused": _refuses_unknown_options,
    "a move and a broken file are survived": _survives_moving_and_broken_audio,
}
