"""From the command to the first trained epoch, with cached features: ``raysere tune`` against a
plain Tune script.

Both are commands in a process of their own and end when the first result is there: of ours the
first finished trial (all of its epochs, recorded with weights, predictions and curves), of the
script the first ``tune.report`` of one epoch.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import ROUNDS, Row, result

TITLE = "From the command to the first epoch"
LIMIT_S = 120
EPOCHS = 5

EXPERIMENT = """name: first
corpora: [{{corpus: demo, path: {corpus}}}]
task: {{kind: categorical, classes: {classes}}}
protocol: {{kind: out_of_fold, folds: 3}}
features:
  acoustic: {{backbone: acoustic}}
search:
  - {{space: {space}, features: acoustic, trials: 4}}
store: {store}
runs: {runs}
"""

SCRIPT = """
import sys, time
import numpy as np
from ray import tune
from ray.tune.search.optuna import OptunaSearch
import ray

PATH, OUT = sys.argv[1], sys.argv[2]

def trainable(config):
    import torch
    from torch import nn
    torch.set_num_threads(1)
    with np.load(PATH) as file:
        x, y, dev = torch.from_numpy(file["x"]), torch.from_numpy(file["y"]), torch.from_numpy(file["dev"])
    x = (x - x[~dev].mean(0)) / (x[~dev].std(0) + 1e-6)
    model = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Dropout(config["dropout"]), nn.Linear(256, int(y.max()) + 1))
    optimiser = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    train = torch.nonzero(~dev).flatten()
    for epoch in range(5):
        model.train()
        for rows in train[torch.randperm(len(train))].split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            score = float((model(x[dev]).argmax(1) == y[dev]).float().mean())
        tune.report({"score": score})

class First(tune.Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        open(OUT, "w").close()

ray.init(num_cpus=int(sys.argv[3]), include_dashboard=False, log_to_driver=False)
space = {"lr": tune.loguniform(1e-4, 1e-2), "dropout": tune.uniform(0, 0.5)}
tune.Tuner(
    tune.with_resources(trainable, {"cpu": 1}),
    param_space=space,
    tune_config=tune.TuneConfig(search_alg=OptunaSearch(metric="score", mode="max", seed=0), num_samples=4),
    run_config=tune.RunConfig(storage_path=sys.argv[4], verbose=0, callbacks=[First()]),
).fit()
"""


def until(command: list[str], done: Callable[[], bool], environment: dict[str, str]) -> float:
    """Seconds from the start of the command until ``done``; the command is then ended with all that
    it started.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        while not done():
            if process.poll() is not None and not done():
                raise RuntimeError(f"{command[:4]} ended too early: {process.stderr.read().decode()[-2000:] if process.stderr else ''}")
            if time.perf_counter() - start > LIMIT_S:
                raise RuntimeError(f"{command[:4]}: no result within {LIMIT_S} s")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        for kind, wait in ((signal.SIGINT, 30), (signal.SIGKILL, 10)):
            if process.poll() is None:
                os.killpg(process.pid, kind)
                try:
                    process.wait(wait)
                except subprocess.TimeoutExpired:
                    continue


def run() -> dict[str, Any]:
    from raysere.base.cluster import available_cores
    from raysere.demo.corpus import make_demo

    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory(prefix="raysere-bench-") as folder:
        root = Path(folder)
        make_demo(root / "demo")
        experiment, runs = _experiment(root)
        raysere = [sys.executable, "-m", "raysere"]
        subprocess.run([*raysere, "extract", str(experiment)], check=True, env=environment, stdout=subprocess.DEVNULL)
        rng = np.random.default_rng(0)
        np.savez(
            root / "x.npz", x=rng.standard_normal((400, 1024), dtype=np.float32), y=rng.integers(0, 4, 400), dev=np.arange(400) % 5 == 0
        )
        (root / "plain.py").write_text(SCRIPT, encoding="utf-8")
        spent: dict[str, list[float]] = {"ours": [], "plain": []}
        for number in range(ROUNDS):
            for side in ("ours", "plain") if number % 2 else ("plain", "ours"):
                if side == "ours":
                    shutil.rmtree(runs, ignore_errors=True)
                    trials = runs / "first" / "trials"
                    took = until([*raysere, "tune", str(experiment)], lambda trials=trials: any(trials.glob("*/DONE")), environment)
                else:
                    flag = root / f"first-{number}"
                    arguments = [str(root / "x.npz"), str(flag), str(available_cores()), str(root / f"tune-{number}")]
                    took = until([sys.executable, str(root / "plain.py"), *arguments], flag.exists, environment)
                spent[side].append(took)
    row = Row(
        "raysere tune, to the first finished trial of 5 epochs, three folds, recorded",
        "plain Tune script, to the first report of one epoch",
        [plain / ours for ours, plain in zip(spent["ours"], spent["plain"], strict=True)],
        goal=1.0,
        checked="both wrote the result; raysere trained 15 fold epochs, the script one epoch",
        detail={"seconds": statistics.median(spent["ours"]), "seconds of the alternative": statistics.median(spent["plain"])},
    )
    return result([row], LIMITS)


def _experiment(root: Path) -> tuple[Path, Path]:
    space = root / "first.yaml"
    space.write_text(
        f"method: pooled\ndefaults: {{epochs: {EPOCHS}}}\nspace:\n  lr: {{float: [1.0e-4, 1.0e-2], log: true}}\n", encoding="utf-8"
    )
    path = root / "experiment.yaml"
    text = EXPERIMENT.format(corpus=root / "demo", classes="demo4", space=space, store=root / "store", runs=root / "runs")
    path.write_text(text, encoding="utf-8")
    return path, root / "runs"


LIMITS = """Imports and the start of Ray's own daemons, on both sides. The imports of the driver
    (Ray, polars, torch), of the daemons, and of the workers (torch, once for each process, begun
    before there is a trial) fill two cores until the first trial. In raysere, reading and
    checking the experiment takes half a second and the first trial itself one second."""
