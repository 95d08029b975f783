"""Five speaker-independent folds of one configuration: one stacked pass against five trainings one
after the other, one thread.

Both sides are this package's :class:`Trainer` on the same data with the same seed; the alternative
gets one fold at a time, as a loop over folds would. Construction, epochs, development scores, and
predictions of development and test rows are in the time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks._measure import Row, alternate, result, speed

TITLE = "Folds of one configuration"
FOLDS, CLASSES, TEST_SPEAKERS = 5, 4, 2
AGREE = 1e-3  # largest difference of a probability that counts as the same result

# what, utterances, layers, width of a layer, hidden, epochs
SHAPES = [
    ("88-64 on 600 utterances", 600, 1, 88, 64, 30),
    ("768-64 on 600 utterances", 600, 1, 768, 64, 20),
    ("1024-256 on 8,000 utterances", 8000, 1, 1024, 256, 2),
    ("1024-1024 with a mix of 7 layers on 600 utterances", 600, 7, 1024, 1024, 3),
]


def trial(utterances: int, layers: int, width: int, seed: int = 0) -> Any:
    """Gaussian classes; 12 speakers of unequal size, the last two for the test."""
    from raysere.features.spec import FeatureSpec, LayerSpec
    from raysere.features.views import FeatureView
    from raysere.training.task import Fold, Labels, Task, TrialData

    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, utterances)
    speakers = 2 * FOLDS + TEST_SPEAKERS
    speaker = rng.choice(speakers, utterances, p=np.linspace(1, 1.5, speakers) / np.linspace(1, 1.5, speakers).sum())
    centres = rng.standard_normal((CLASSES, width)) * 1.5 / np.sqrt(width)
    arrays = {
        number: list((rng.standard_normal((utterances, width)) + centres[label]).astype(np.float32)[:, None]) for number in range(layers)
    }
    ids = [f"u{number:05d}" for number in range(utterances)]
    kinds = tuple(LayerSpec(number=number, name=f"layer {number}", dim=width, rows="utterance") for number in range(layers))
    spec = FeatureSpec(
        backbone="synthetic",
        identity="synthetic",
        modality="audio",
        granularity="utterance",
        layers=kinds,
        dtype="float32",
        sampling_rate=16000,
        frame_s=None,
    )
    names = [f"s{number}" for number in range(speakers)]
    zero = np.zeros(utterances, dtype=np.int64)
    labels = Labels(ids, label, None, None, speaker, names, zero, ["synthetic"], zero, np.ones(utterances))
    rows, fold = np.arange(utterances), speaker % FOLDS
    pool = speaker < 2 * FOLDS
    folds = tuple(Fold(number, rows[pool & (fold != number)], rows[pool & (fold == number)]) for number in range(FOLDS))
    view = FeatureView.from_arrays(spec, ids, arrays)
    return TrialData(Task(classes=tuple("abcd")), labels, folds, rows[~pool], {"speech": view})


def train(data: Any, params: Any, device: str, stacked: bool | None) -> Any:
    from raysere.methods.pooled import Pooled
    from raysere.training.loop import Trainer

    trainer = Trainer(Pooled(), params, data, seed=1, device=device, precision="float32", stacked=stacked)
    while not trainer.finished:
        trainer.epoch()
    trainer.predictions()
    return trainer


def agreement(data: Any, params: Any, device: str) -> str:
    """Largest difference of a predicted probability, and whether every fold alone reaches the same.

    AssertionError where not.
    """
    import polars as pl

    together = train(data, params, device, True)
    separate = train(data, params, device, False)
    names = [name for name in together.predictions().columns if name.startswith("p.")]
    table = together.predictions()
    difference = float(np.abs(table[names].to_numpy() - separate.predictions()[names].to_numpy()).max())
    assert together.best["epoch"] == separate.best["epoch"], "another best epoch"
    last = params.model_copy(update={"epochs": 1})
    first = train(data, last, device, True).predictions().filter(pl.col("split") == "dev")
    for fold in data.folds:
        alone = train(replace(data, folds=(fold,)), last, device, False).predictions().filter(pl.col("split") == "dev")
        part = first.filter(pl.col("fold") == fold.number)
        difference = max(difference, float(np.abs(part[names].to_numpy() - alone[names].to_numpy()).max()))
    assert difference < AGREE, f"a probability differs by {difference}"
    return f"same best epoch ({together.best['epoch']}), a predicted probability differs by at most {difference:.1e}, with dropout .5"


def compare(what: str, data: Any, params: Any, device: str, goal: float) -> list[Row]:
    """As the trainer does it by itself; and stacked, where by itself it would not."""
    checked = agreement(data, params, device)
    alone = [replace(data, folds=(fold,)) for fold in data.folds]

    def after_each_other() -> None:
        for one in alone:
            train(one, params, device, False)

    chosen = train(data, params, device, None)
    stacks = len(chosen.groups) == 1
    rows = []
    for name, stacked, wanted in (("stacked" if stacks else "all in one pass, not stacked", None, goal), ("stacked", True, None)):
        if stacked and stacks:
            continue
        seconds = alternate(lambda stacked=stacked: train(data, params, device, stacked), after_each_other)
        named = f"{what}, {device}: {name}" + (" (the default)" if stacked is None else " (not the default here)")
        rows.append(
            speed(named, "five trainings one after the other", seconds, goal=wanted, checked=checked, detail={"epochs": params.epochs})
        )
    return rows


def run() -> dict[str, Any]:
    import torch

    from raysere.methods.pooled import PooledParams

    torch.set_num_threads(1)
    rows = []
    for device, goal in (("cpu", 1.0), ("cuda", 3.0)):
        for what, utterances, layers, width, hidden, epochs in SHAPES:
            if device == "cuda" and not torch.cuda.is_available():
                unmeasured = "needs a GPU, and this machine has none"
                rows.append(Row(f"{what}, cuda", "five trainings one after the other", goal=goal, not_measured=unmeasured))
                continue
            params = PooledParams(hidden=hidden, epochs=epochs, patience=epochs)
            rows.extend(compare(what, trial(utterances, layers, width), params, device, goal))
    return result(
        rows,
        """On a CPU, stacking saves calls, not arithmetic. It pays where a step of one fold is
        mostly calls, and gains little where matrix products fill the time. The trainer stacks by
        itself only up to the size at which stacking was measured to pay.""",
    )
