"""Progress of all stages: bars on a terminal, plain lines elsewhere, and a file for other shells.

:meth:`Progress.keep_in` names a run folder: from then on ``progress.json`` there says which stage
is under way and how far it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "progress.json"
FORMAT = "raysere.base.progress/1"
_GROWTH = 0.05  # plain lines come further apart the longer a stage takes: a day of search should not be 8,640 lines
_KEPT_EVERY_S = 1.0
_JOINERS = "\u200c\u200d"  # letters of Persian, Urdu and Hindi need them
_KEPT = ("total", "done", "first", "at_once", "started", "since", "note")


@dataclass
class Stage:
    """How far a stage is.

    Attributes:
        total, done: items. at_once: of them under way side by side.
        started: wall clock in seconds. elapsed: seconds since then.
        first, since: items done, and seconds elapsed, when the first item came to its end: models
            and data are loaded then.
    """

    name: str
    total: int
    done: int
    first: int
    at_once: int
    started: float
    since: float | None = None
    elapsed: float = 0.0
    note: str = ""

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at the speed since the first item; None before there is one."""
        fresh, left = self.done - self.first, self.total - self.done
        return (self.elapsed - self.since) / fresh * left if self.since is not None and fresh > 0 and left > 0 else None

    def line(self) -> str:
        """``search: 12 of 40 (30 %), 2 min, about 5 min left, best 0.61``."""
        parts = [f"{self.name}: {self.done} of {self.total} ({100 * self.done // max(self.total, 1)} %)", duration(self.elapsed)]
        if self.left_s is not None:
            parts.append(f"about {duration(self.left_s)} left")
        return ", ".join([*parts, *([self.note] if self.note else [])])


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h`` or ``2.5 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def printable(text: str, *, lines: bool = True) -> str:
    """Text that a terminal shows and does not obey: what names of files, speakers, classes or errors may hold is escaped as in JSON.

    Escaped are control characters (ESC, carriage return, ...), characters that turn the direction of writing, and bytes that are no UTF-8.

    Args:
        lines: keep line ends and tabs; without it they are escaped, too: a name takes one line.

    Examples:
        >>> printable("a\\x1b[2Jb\\r\\u202ec")
        'a\\\\u001b[2Jb\\\\u000d\\\\u202ec'
    """
    if text.isprintable():  # most is
        return text
    return "".join(one if _is_plain(one, lines) else _escaped(one) for one in text)


def warn(line: str) -> None:
    """Say something on the console that must be seen, also under ``--quiet``."""
    print(printable(line), file=sys.stderr, flush=True)


def _is_plain(one: str, lines: bool) -> bool:
    if one in "\n\t":
        return lines
    return one in _JOINERS or unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(one: str) -> str:
    units = one.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class Progress:
    """Progress of named stages. Use as a context manager; ``quiet`` shows nothing.

    Examples:
        >>> with Progress(quiet=True) as progress:
        ...     progress.start("extract acoustic", total=2)
        ...     progress.advance("extract acoustic")
    """

    def __init__(self, *, quiet: bool = False, every_s: float = 10.0) -> None:
        self.quiet, self.every_s = quiet, every_s
        self._bars: dict[str, Any] = {}
        self._stages: dict[str, Stage] = {}
        self._shown: dict[str, float] = {}  # stage -> its elapsed seconds at the last plain line
        self._rich: Any = None
        self._file: Path | None = None
        self._kept = 0.0

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Rich

            self._rich = Rich(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("left"),  # two bare times would be a riddle
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                speed_estimate_period=600,  # trials of minutes have a speed, too
            )
            self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def keep_in(self, folder: Path) -> None:
        """Keep ``progress.json`` in that run folder from now on, for ``raysere status`` in another
        shell.
        """
        self._file = folder / FILE

    def start(self, stage: str, total: int, done: int = 0, at_once: int = 1) -> None:
        self._stages[stage] = now = Stage(stage, total, done, done, at_once, time.time())
        self._keep(now, always=True)
        if self.quiet:
            return
        if self._rich is not None:
            if stage in self._bars:
                self._rich.reset(self._bars[stage], total=total, completed=done)
            else:
                self._bars[stage] = self._rich.add_task(stage, total=total, completed=done, note="")
        else:
            self._shown[stage] = 0.0
            self.say(f"{stage}: {done} of {total} done at the start" if done else f"{stage}: {total} to do")

    def advance(self, stage: str, count: int = 1, note: str = "") -> None:
        state = self._stages[stage]
        state.done, state.note, state.elapsed = state.done + count, note, max(0.0, time.time() - state.started)
        if state.since is None:
            state.first, state.since = state.done, state.elapsed
        ended = state.done >= state.total
        self._keep(state, always=ended)
        if self.quiet:
            return
        if self._rich is not None:
            self._rich.update(self._bars[stage], advance=count, note=printable(note, lines=False))
        elif ended or state.elapsed - self._shown[stage] >= max(self.every_s, _GROWTH * state.elapsed):
            self._shown[stage] = state.elapsed
            self.say(state.line())

    def say(self, line: str, *, stage: str | None = None) -> None:
        """Print one line to standard error without breaking the bars; ``stage`` names one that has
        begun and has no count.
        """
        if stage is not None:
            self._keep(Stage(stage, 0, 0, 0, 1, time.time()), always=True)
        if self.quiet:
            return
        line = printable(line, lines=False)
        if self._rich is not None:
            self._rich.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _keep(self, stage: Stage, *, always: bool) -> None:
        now = time.monotonic()
        if self._file is None or (not always and now - self._kept < _KEPT_EVERY_S):
            return
        self._kept = now
        fields = {"stage": stage.name, **{key: getattr(stage, key) for key in _KEPT}}
        with contextlib.suppress(OSError):  # a display ends no run; and it need not survive a power cut, so nothing is flushed
            temporary = self._file.with_name(f".{FILE}.{os.urandom(4).hex()}.tmp")  # a name that nobody knows before
            temporary.write_text(json.dumps({"format": FORMAT, **fields}), encoding="utf-8")
            os.replace(temporary, self._file)


def read_stage(folder: Path) -> Stage | None:
    """The stage that ``progress.json`` of a run folder names, with the time since it began; None
    without a readable file.
    """
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if kept.pop("format") != FORMAT:
            return None
        return Stage(kept.pop("stage"), **kept, elapsed=max(0.0, time.time() - kept["started"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
