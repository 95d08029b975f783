"""One progress display for all stages: rich bars on a terminal, plain lines elsewhere (job logs, pipes)."""

from __future__ import annotations

import sys
import time
from typing import Any


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
        self._plain: dict[str, list[float]] = {}  # stage -> [done, total, started, last line]
        self._rich: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Rich

            self._rich = Rich(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def start(self, stage: str, total: int, done: int = 0) -> None:
        if self.quiet:
            return
        if self._rich is not None:
            self._bars[stage] = self._rich.add_task(stage, total=total, completed=done, note="")
        else:
            now = time.monotonic()
            self._plain[stage] = [done, total, now, now]
            self.say(f"{stage}: {done} of {total} done at the start" if done else f"{stage}: {total} to do")

    def advance(self, stage: str, count: int = 1, note: str = "") -> None:
        if self.quiet:
            return
        if self._rich is not None:
            self._rich.update(self._bars[stage], advance=count, note=note)
            return
        state = self._plain[stage]
        state[0] += count
        now = time.monotonic()
        if now - state[3] >= self.every_s or state[0] >= state[1]:
            state[3] = now
            self.say(f"{stage}: {int(state[0])} of {int(state[1])}, {now - state[2]:.0f} s{', ' + note if note else ''}")

    def say(self, line: str) -> None:
        """Print one line to standard error without breaking the bars."""
        if self.quiet:
            return
        if self._rich is not None:
            self._rich.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)
