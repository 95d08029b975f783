"""An epoch of ``pooled`` on chunk features against the same module in a plain PyTorch loop with a ``DataLoader``, one thread each.

The alternative: a ``Dataset`` of one tensor an utterance, already normalised, a ``DataLoader`` that shuffles and pads to the longest of
the batch, with the better of 0 and 2 workers, ``AdamW`` as torch gives it, and torch's own gradient clipping. Steps, batch size,
learning rate and clipping are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks._measure import Row, alternate, result, speed

TITLE = "An epoch on chunk features"
UTTERANCES, WIDTH, CLASSES, BATCH, HIDDEN = 3000, 512, 4, 64, 256
AGREE = 1e-4  # largest relative difference of a loss between the two sides


def trial(seed: int = 0) -> Any:
    """3,000 utterances of 4 to 24 chunks, each [mean; std] of 512 values; one fold of 2,400 training rows."""
    from raysere.features.spec import FeatureSpec, LayerSpec
    from raysere.features.views import FeatureView
    from raysere.training.task import Fold, Labels, Task, TrialData

    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, UTTERANCES)
    centres = rng.standard_normal((CLASSES, 2 * WIDTH)).astype(np.float32) * 0.1
    chunks = rng.integers(4, 25, UTTERANCES)
    arrays = [rng.standard_normal((count, 2 * WIDTH), dtype=np.float32) + centres[own] for count, own in zip(chunks, label, strict=True)]
    spec = FeatureSpec(
        backbone="synthetic",
        identity="synthetic",
        modality="audio",
        granularity="chunk",
        layers=(LayerSpec(number=0, name="layer 0", dim=WIDTH, rows="frame"),),
        dtype="float32",
        sampling_rate=16000,
        frame_s=0.02,
    )
    ids = [f"u{number:05d}" for number in range(UTTERANCES)]
    speaker, zero = np.arange(UTTERANCES) % 10, np.zeros(UTTERANCES, dtype=np.int64)
    labels = Labels(ids, label, None, None, speaker, [f"s{n}" for n in range(10)], zero, ["synthetic"], zero, np.ones(UTTERANCES))
    rows = np.arange(UTTERANCES)
    fold = Fold(0, rows[speaker < 8], rows[speaker >= 8])
    return TrialData(Task(classes=tuple("abcd")), labels, (fold,), rows[:0], {"speech": FeatureView.from_arrays(spec, ids, {0: arrays})})


class Ours:
    """One fold of a Trainer: its epochs without development scores, as the alternative has none."""

    def __init__(self, data: Any, params: Any) -> None:
        from raysere.methods.pooled import Pooled
        from raysere.training.loop import Trainer

        self.trainer = Trainer(Pooled(), params, data, seed=1)
        self.epochs = 0

    def epoch(self) -> float:
        sums: dict[str, Any] = {}
        self.trainer.groups[0].train(self.epochs, sums)
        self.epochs += 1
        return float(sums["class"]) / len(self.trainer.folds[0].rows)


class Plain:
    """The same module in a loop that a user of torch would write."""

    def __init__(self, ours: Ours, params: Any, workers: int, order: list[int] | None = None) -> None:
        import copy

        import torch
        from torch.nn.utils.rnn import pad_sequence
        from torch.utils.data import DataLoader

        fold = ours.trainer.folds[0]
        view, norm = ours.trainer.data.features["speech"], fold.streams["speech"].normaliser
        self.model, self.params = copy.deepcopy(fold.model), params
        stream = view.batch(fold.rows, [0])
        values = [norm.apply_(x[mask][None], None, 0)[0].clone() for x, mask in zip(stream.layers[0], stream.mask, strict=True)]
        label = torch.from_numpy(ours.trainer.data.labels.label[fold.rows])
        items = list(zip(values, label, strict=True))

        def collate(batch: list[Any]) -> Any:
            x = pad_sequence([x for x, _ in batch], batch_first=True)
            lengths = torch.tensor([len(x) for x, _ in batch])
            return x, torch.arange(x.shape[1]) < lengths[:, None], torch.stack([y for _, y in batch])

        self.loader = DataLoader(
            items,  # type: ignore[arg-type]
            batch_size=params.batch,
            shuffle=order is None,
            sampler=order,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=params.lr, weight_decay=params.weight_decay)
        self.items = len(items)

    def epoch(self) -> float:
        import torch

        from raysere.features.views import Stream

        total = 0.0
        self.model.train()
        for x, mask, y in self.loader:
            hidden = self.model({"speech": Stream({0: x}, mask, 2, "chunk")})
            loss = torch.nn.functional.cross_entropy(self.model.classes(hidden), y, self.model.weights)
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.params.clip)
            self.optimiser.step()
            total += float(loss.detach()) * len(y)
        return total / self.items


def agreement(data: Any, params: Any) -> str:
    """Two epochs without dropout from the same weights on the same batches. AssertionError where the losses differ."""
    from raysere.training.samplers import fold_generator

    still = params.model_copy(update={"dropout": 0.0})
    ours = Ours(data, still)
    fold = ours.trainer.folds[0]
    generator = fold_generator(1, fold.number)
    sides = []
    plain: Plain | None = None
    for epoch in range(2):
        again = Plain(ours, still, 0, fold.sampler.order(epoch, generator).tolist())
        if plain is None:
            plain = again
        else:
            plain.loader = again.loader
        theirs = plain.epoch()
        sides.append((ours.epoch(), theirs))
    difference = max(abs(one / other - 1) for one, other in sides)
    assert difference < AGREE, f"the losses differ by {difference}"
    return f"same weights and same batches, no dropout: the loss of an epoch differs by at most {difference:.1e} of itself in two epochs"


def compare(data: Any, pooling: str) -> Row:
    import time

    from raysere.methods.pooled import PooledParams

    params = PooledParams(pooling=pooling, hidden=HIDDEN, batch=BATCH, epochs=1000, warmup=0.0, schedule="constant")  # type: ignore[arg-type]
    checked = agreement(data, params)
    ours = Ours(data, params)
    seconds_of = {}
    for workers in (0, 2):
        plain = Plain(ours, params, workers)
        plain.epoch()
        start = time.perf_counter()
        plain.epoch()
        plain.epoch()
        seconds_of[workers] = (time.perf_counter() - start) / 2
        del plain
    best = min(seconds_of, key=lambda workers: seconds_of[workers])
    theirs = Plain(ours, params, best)
    seconds = alternate(ours.epoch, theirs.epoch)
    return speed(
        f"{pooling} pooling, {UTTERANCES} utterances of 4 to 24 chunks of {2 * WIDTH}",
        f"a PyTorch loop with a DataLoader of {best} workers",
        seconds,
        goal=1.5,
        checked=checked,
        detail={"seconds of the alternative by workers": {str(key): round(value, 3) for key, value in seconds_of.items()}},
    )


def run() -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    data = trial()
    return result(
        [compare(data, pooling) for pooling in ("mean_std", "attentive")],
        """Both sides pool every chunk in float32, and read it from memory to do so; the products of the network are the same on both.""",
    )
