"""Short trials on cached features: trials a minute against a plain Tune function trainable, and the
share of time that is training.

8,000 utterances x 1,024, a head 1024-256-4, 5 epochs of batches of 64, two workers of one thread.
Both sides sample the same space with Optuna's TPE and train with AdamW, warm-up and cosine,
clipping, class weights, and a development score every epoch.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import ROUNDS, Row, result
from benchmarks._runs import CLASSES, SPACE, Data, make_data, make_run, make_study

TITLE = "Trials on cached features"
UTTERANCES, WIDTH, TRIALS, MANY, PARITY = 8000, 1024, 24, 200, 12


def plain_training(config: dict[str, float], data: dict[str, np.ndarray], report: Any) -> float:
    """What a careful user writes: index batches, no DataLoader; calls ``report(score)`` each epoch
    and returns the best score.
    """
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    fixed = SPACE["defaults"]
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    train, dev = torch.from_numpy(data["train"]), torch.from_numpy(data["dev"])
    mean, std = x[train].mean(0), x[train].std(0)
    x = (x - mean) / std
    counts = torch.bincount(y[train], minlength=len(CLASSES)).float()
    weight = (len(train) / (len(CLASSES) * counts)) ** config["class_weight"]
    model = nn.Sequential(
        nn.Dropout(config["dropout"]),
        nn.Linear(x.shape[1], fixed["hidden"]),
        nn.LayerNorm(fixed["hidden"]),
        nn.ReLU(),
        nn.Dropout(config["dropout"]),
        nn.Linear(fixed["hidden"], len(CLASSES)),
    )
    loss_of = nn.CrossEntropyLoss(weight, label_smoothing=config["label_smoothing"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    steps = fixed["epochs"] * -(-len(train) // fixed["batch"])
    rise = max(1, round(0.05 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: (step + 1) / rise if step < rise else 0.5 * (1 + np.cos(np.pi * (step - rise) / max(1, steps - rise))),
    )
    best = 0.0
    for _ in range(fixed["epochs"]):
        model.train()
        for rows in train[torch.randperm(len(train))].split(fixed["batch"]):
            optimiser.zero_grad()
            loss_of(model(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            answer = model(x[dev]).argmax(1)
        score = float(torch.stack([(answer[y[dev] == k] == k).float().mean() for k in range(len(CLASSES))]).mean())
        best = max(best, score)
        report(score)
    return best


def plain_space(trial: Any) -> None:
    for name, entry in SPACE["space"].items():
        trial.suggest_float(name, *entry["float"], log=entry.get("log", False))


def plain_tune(path: Path, trials: int, storage: Path) -> None:
    """Tune as its documentation shows it: a function, OptunaSearch, a core a trial."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    def trainable(config: dict[str, float]) -> None:
        with np.load(path) as file:
            data = {name: file[name] for name in file.files}
        plain_training(config, data, lambda score: tune.report({"score": score}))

    results = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        tune_config=tune.TuneConfig(search_alg=OptunaSearch(plain_space, metric="score", mode="max", seed=0), num_samples=trials),
        run_config=tune.RunConfig(name="plain", storage_path=str(storage), verbose=0),
    ).fit()
    assert results.num_errors == 0
    assert len(results) == trials


def search(root: Path, trials: int, **more: Any) -> tuple[float, float, int]:
    """Wall seconds of a search from nothing, seconds its workers spent training, and how many
    workers there were.
    """
    from raysere.search.ledger import Ledger
    from raysere.search.tuner import capacity, run_search

    for name in ("trials", "search"):
        shutil.rmtree(root / name, ignore_errors=True)
    start = time.perf_counter()
    summary = run_search(root, [make_study(WIDTH, trials, **more)])
    wall = time.perf_counter() - start
    assert summary.statuses == {"done": trials}, summary
    return wall, sum(record.seconds for record in Ledger(root).trials()), capacity({"cpu": 1, "gpu": 0})


def parity(root: Path, data: Data) -> list[float]:
    """Best development score of ours minus the plain training's, for the first configurations of
    the last search.
    """
    from raysere.search.ledger import Ledger

    arrays = {"x": data.x, "y": data.y, "train": data.train, "dev": data.dev}
    return [(record.score or 0.0) - plain_training(record.params, arrays, lambda score: None) for record in Ledger(root).trials()[:PARITY]]


def run() -> dict[str, Any]:
    from raysere.base.cluster import start_ray, stop_ray

    data = make_data(UTTERANCES, WIDTH)
    with tempfile.TemporaryDirectory(prefix="raysere-bench-") as folder:
        root = make_run(Path(folder) / "run", data)
        path = Path(folder) / "features.npz"
        np.savez(path, x=data.x, y=data.y, train=data.train, dev=data.dev)
        start_ray()
        try:
            return _rows(root, path, data)
        finally:
            stop_ray()


def _rows(root: Path, path: Path, data: Data) -> dict[str, Any]:
    search(root, 4)  # warm: files in the page cache
    walls: dict[str, list[float]] = {"plain": [], "float32": [], "bfloat16": []}
    shares: list[float] = []
    differences: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        storage = path.parent / f"tune-{number}"
        start = time.perf_counter()
        plain_tune(path, TRIALS, storage)
        walls["plain"].append(time.perf_counter() - start)
        shutil.rmtree(storage, ignore_errors=True)
        for precision in ("float32", "bfloat16"):
            walls[precision].append(search(root, TRIALS, precision=precision)[0])
            if number == 0:
                differences[precision] = parity(root, data)
    for _ in range(ROUNDS):
        wall, training, workers = search(root, MANY)
        shares.append(training / (wall * workers))
    per_minute = {name: 60 * TRIALS / statistics.median(values) for name, values in walls.items()}
    rows = []
    for precision, goal in (("float32", 6.0), ("bfloat16", 10.0)):
        mean, error = statistics.mean(differences[precision]), statistics.stdev(differences[precision]) / PARITY**0.5
        rows.append(
            Row(
                f"{TRIALS} trials, {precision}, start of the search included",
                "Tune function trainable that loads an npz, a new actor each (Tune's default), start included",
                [plain / ours for plain, ours in zip(walls["plain"], walls[precision], strict=True)],
                goal=goal,
                checked=f"best development UAR minus that of the plain training, {PARITY} configurations: {mean:+.4f} (s.e. {error:.4f})",
                detail={"trials a minute": per_minute[precision], "trials a minute of the alternative": per_minute["plain"]},
            )
        )
    rows.append(
        Row(
            f"training / (wall x workers), {MANY} trials, start and search included",
            "the limit, 1.0",
            shares,
            unit="of the limit",
            goal=0.95,
            checked="every trial is recorded with its weights, predictions and curves",
        )
    )
    return result(rows, LIMITS)


LIMITS = """A plain trial starts a process, imports torch, reads its npz and only then trains; a
    trial of raysere only trains. In float32, half of the training is matrix products at the rate
    of one core; the rest is gathers, dropout, the optimiser and calls. In bfloat16 it is mostly
    calls. The start of a search (Tune's imports, first steps in fresh processes) costs three to
    four seconds: a quarter of the wall time of 24 short trials and 3 % of that of 200. Between
    two trials a worker waits 30 ms, which is another 3 %. Training several configurations in one
    stacked pass is not built."""
