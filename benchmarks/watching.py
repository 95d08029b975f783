"""TensorBoard on a run of 1,000 finished trials: bytes of events a trial, and seconds from the
command until every trial is listed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import ROUNDS, Row, result
from benchmarks.start import TRIALS, fill

TITLE = "Watching a search"
NAMES = ("train.class", "loss", "dev_loss", "score", "uar", "macro_f1", "accuracy")
LIMIT_S, LIMIT_BYTES, EPOCHS, LAYERS = 10.0, 20_000, 20, 25


def opened(folder: Path) -> float:
    """Seconds from ``raysere tensorboard`` until it lists all runs, and all sessions of the HParams
    page.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "raysere", "tensorboard", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = next(found.group() for line in process.stderr or () if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        body = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": [], "startIndex": 0, "sliceSize": 2 * TRIALS}
        asked = urllib.request.Request(f"{url}data/plugin/hparams/session_groups", json.dumps(body).encode())
        asked.add_header("Content-Type", "application/json")
        runs, sessions = 0, 0
        while runs < TRIALS or sessions < TRIALS:
            runs = len(json.load(urllib.request.urlopen(f"{url}data/runs")))
            sessions = len(json.load(urllib.request.urlopen(asked))["sessionGroups"])
        return time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def run() -> dict[str, Any]:
    from raysere.search.ledger import Ledger
    from raysere.search.study import read_study
    from raysere.search.watch.tensorboard import TrialEvents

    rng, layers = np.random.default_rng(0), {"layer_weights": {"speech": {str(layer): 1 / LAYERS for layer in range(LAYERS)}}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fill(folder)
        study, events = read_study(folder, "pooled"), TrialEvents(folder)
        for record in Ledger(folder).trials():
            record.describe.update(layers)
            rows = [
                {"epoch": epoch, **{key: rng.uniform() for key in ("train.class", "loss", "dev_loss", "score")}} for epoch in range(EPOCHS)
            ]
            rows = [{**row, "layer_weights.speech": rng.dirichlet([9] * LAYERS).tolist()} for row in rows]
            events.write(record, study, rows, rng.integers(0, 60, (4, 4)))
        size = sum(path.stat().st_size for path in folder.glob("search/*/*/*")) / TRIALS
        took = [opened(folder) for _ in range(ROUNDS)]
    checked = f"all {TRIALS} runs and all {TRIALS} sessions are in the answers"
    what = f"events of a trial ({EPOCHS} epochs, {LAYERS} learned layer weights, 4 classes)"
    rows = [
        Row(
            f"raysere tensorboard, {TRIALS} trials listed",
            f"{LIMIT_S:g} s",
            [value / LIMIT_S for value in took],
            "of the limit",
            1,
            False,
            checked,
            {"seconds": float(np.median(took))},
        ),
        Row(what, f"{LIMIT_BYTES} bytes", [size / LIMIT_BYTES], "of the limit", 1, False, "counted on the disk", {"bytes": round(size)}),
    ]
    return result(rows, "Most of the time is TensorBoard's own imports; most of the bytes are the two pictures of each trial.")
