"""TensorBoard curves of a running trial."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysere.search.watch.event_file import EventFile

AFTER_S, EVERY_S = 20.0, 5.0  # seconds of training before the first write (a short trial appears when it ends); between two writes


class LiveCurves:
    """Writes the rows of ``metrics.parquet`` so far into ``folder`` (``search/STUDY/TRIAL``).

    What cannot be written is not shown; a curve costs no trial.
    """

    def __init__(self, folder: Path, *, after_s: float = AFTER_S, every_s: float = EVERY_S) -> None:
        self.folder = folder
        self._next, self._every_s = time.monotonic() + after_s, every_s
        self._file: EventFile | None = None
        self._shown = 0

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows that are not shown yet, if it is time for it."""
        if time.monotonic() < self._next:
            return
        with contextlib.suppress(OSError):
            if self._file is None:
                self._file = self._open()
            for row in rows[self._shown :]:
                add_row(self._file, row)
            self._file.flush()
            self._shown = len(rows)
        self._next = time.monotonic() + self._every_s

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _open(self) -> EventFile:
        from raysere.search.watch.event_file import EventFile

        self.folder.mkdir(parents=True, exist_ok=True)
        file = EventFile(self.folder / file_name("live"))
        file.restart()  # after an attempt that was killed
        return file


def file_name(ending: str) -> str:
    """Of an event file that readers take to be later than those that are there."""
    return f"events.out.tfevents.{time.time():.6f}.{ending}"


def add_row(file: EventFile, row: Mapping[str, Any]) -> None:
    """The scalars of one epoch."""
    file.scalars(int(row["epoch"]), {tag(name): value for name, value in row.items() if name != "epoch" and isinstance(value, int | float)})


def tag(name: str) -> str:
    """``loss.ce`` becomes ``loss/ce``: TensorBoard groups by the part before the slash."""
    return name.replace(".", "/") if "." in name else f"dev/{name}" if name == "score" else name
