"""How every benchmark measures and what it returns.

Both sides of a comparison run in the same process, or in like processes, one after the other, in
rounds; every round gives one ratio, and a row is the median of the rounds with the smallest and the
largest beside it. The order within a round alternates, so that a machine that slows down does not
favour a side.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROUNDS = 5


@dataclass
class Row:
    """One line of the table.

    Attributes:
        what: what was measured. against: the named alternative, or the limit.
        values: one figure a round: a ratio against the alternative, or a share of the limit.
        unit: what a figure is: ``times as fast``, ``of the limit``, ``copies`` ...
        goal: the target, in the same unit; None where there is none. higher: whether more is
            better.
        checked: how it was made sure that both sides did the same work, with the figure of the
            agreement.
        detail: medians behind the ratio (seconds, items a second, bytes), as plain JSON.
        not_measured: why there is no figure, for example that it needs a GPU.
    """

    what: str
    against: str
    values: Sequence[float] = ()
    unit: str = "times as fast"
    goal: float | None = None
    higher: bool = True
    checked: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    not_measured: str | None = None

    def plain(self) -> dict[str, Any]:
        row: dict[str, Any] = {"what": self.what, "against": self.against, "unit": self.unit, "goal": self.goal, "higher": self.higher}
        if self.not_measured is not None:
            return {**row, "not_measured": self.not_measured}
        median = statistics.median(self.values)
        met = None if self.goal is None else (median >= self.goal if self.higher else median <= self.goal)
        rounds = [_short(value) for value in self.values]
        return {**row, "median": _short(median), "rounds": rounds, "met": met, "checked": self.checked, "detail": self.detail}


def result(rows: Sequence[Row], limits: str, **more: Any) -> dict[str, Any]:
    """What ``run()`` of a benchmark returns: its rows, and two or three sentences on what limits
    them now.
    """
    return {"rows": [row.plain() for row in rows], "limits": " ".join(limits.split()), **more}


def alternate(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = ROUNDS, *, warm: bool = True
) -> tuple[list[float], list[float]]:
    """Wall seconds of each side in every round; each runs once before, uncounted, unless ``warm``
    is False.
    """
    sides = (ours, theirs)
    if warm:
        for call in sides:
            call()
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            gc.collect()
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    return seconds


def speed(what: str, against: str, seconds: tuple[list[float], list[float]], **named: Any) -> Row:
    """A row of how many times as fast ours was, from :func:`alternate`; ``named`` goes to
    :class:`Row`.
    """
    mine, other = seconds
    detail = {
        "seconds": _short(statistics.median(mine)),
        "seconds of the alternative": _short(statistics.median(other)),
        **named.pop("detail", {}),
    }
    return Row(what, against, [theirs / ours for ours, theirs in zip(mine, other, strict=True)], detail=detail, **named)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def kept_folder() -> Path:
    """Where benchmarks keep what a second start need not do again: RAYSERE_BENCH_CACHE, or a folder
    in the user's cache.

    Not among the temporary files: there another user could have made it, with files of their own.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("RAYSERE_BENCH_CACHE") or cache / "raysere" / "benchmarks")
