"""Whole searches over codebook sizes and anchor layers as Tune trials, on features that all of them
share, beside ``pooled``.

Per space: trials a minute of the search, its start included, and the greatest memory of a worker,
in alternating rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.transfer.systems import EPOCHS, experiment

PAIR = ("emodb", "emovo")
SPACES = ("pooled", "adaptation", "quantized_codebook", "layer_anchoring")
TRIALS, ROUNDS = 24, 3


def measure(trials: int = TRIALS, rounds: int = ROUNDS) -> dict[str, Any]:
    """By space:

    ``per_minute`` and ``worker_mb``, one value a round; Ray must be there, and the features are
    extracted first.
    """
    from benchmarks.accuracy.running import run

    found: dict[str, dict[str, list[float]]] = {name: {"per_minute": [], "worker_mb": []} for name in SPACES}
    settings = experiment(*PAIR, "speech", trials, ["per domain"])
    with tempfile.TemporaryDirectory(prefix="raysere-transfer-") as folder:
        for number in range(-1, rounds):  # the first round warms: files, and processes that have imported torch
            for name in SPACES:
                fixed = {"epochs": EPOCHS, "normalise": "corpus" if name == "pooled" else "domain"}
                # half of the trials in each of the two outer folds
                search = {"name": name, "space": name, "features": "speech", "trials": trials // 2, "fixed": fixed}
                one = {**settings, "name": f"{name}-{number}", "search": [search], "runs": str(Path(folder) / "runs")}
                with Peak() as peak:
                    start = time.perf_counter()
                    run(one, until="tune")
                    seconds = time.perf_counter() - start
                if number >= 0:
                    found[name]["per_minute"].append(round(60 * trials / seconds, 2))
                    found[name]["worker_mb"].append(round(peak.bytes / 1e6, 1))
    return {"trials": trials, "pair": "-".join(PAIR), "spaces": found, "median": {k: median(v) for k, v in found.items()}}


def median(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(many) for name, many in values.items()}


class Peak:
    """The greatest resident memory of any trial's worker while it is open, looked at ten times a
    second.
    """

    def __enter__(self) -> Peak:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *what: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for status in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if status.read_bytes().startswith(b"ray::ResourceTrainable"):
                        resident = int((status.parent / "statm").read_text().split()[1]) * 4096
                        self.bytes = max(self.bytes, resident)
                except OSError:
                    continue
