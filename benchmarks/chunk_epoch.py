"""An epoch of ``pooled`` on chunk features against the same module in a plain PyTorch loop with a
``DataLoader``, one thread each.

The alternative: a ``Dataset`` of one tensor an utterance, already normalised, a ``DataLoader`` that
shuffles and pads to the longest of the batch, with the better of 0 and 2 workers, ``AdamW`` as
torch gives it, and torch's own gradient clipping. Steps, batch size, learning rate and clipping are
the same. Its pooling is written down as the formula stands, over the padded batch. Each side has a
process of its own, ours set up as a worker of a search is.
"""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import numpy as np

from benchmarks._measure import ROUNDS, Row, result, speed

TITLE = "An epoch on chunk features"
UTTERANCES, WIDTH, CLASSES, BATCH, HIDDEN = 3000, 512, 4, 64, 256
AGREE = 1e-4  # largest relative difference of a loss between the two sides


def trial(seed: int = 0) -> Any:
    """3,000 utterances of 4 to 24 chunks, each [mean; std] of 512 values; one fold of 2,400
    training rows.
    """
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


def plain_pool(pool: Any) -> Any:
    """The pooling of ``pool`` with its weights, on padded batches: products and two masked sums."""
    import torch

    def weigh(x: Any, mask: Any) -> Any:
        if pool.attention is None:
            return mask / mask.sum(1, keepdim=True)
        energy = pool.attention.score(torch.tanh(pool.attention.project(x))).squeeze(-1)
        return torch.softmax(energy.masked_fill(~mask, -1e9), dim=1)

    class PlainPool(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = pool.attention

        def forward(self, stream: Any) -> Any:
            x = stream.layers[0]
            weights = weigh(x, stream.mask).unsqueeze(1)
            mean = (weights @ x).squeeze(1)
            variance = (weights @ x.square()).squeeze(1) - mean.square()
            return torch.cat([mean, variance.clamp_min(1e-5).sqrt()], dim=1)

    return PlainPool()


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
        self.model.pools[0] = plain_pool(self.model.pools[0])
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
            multiprocessing_context="fork" if workers else None,
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
    """Two epochs without dropout from the same weights on the same batches.

    AssertionError where the losses differ.
    """
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


def options(pooling: str) -> Any:
    from raysere.methods.pooled import PooledParams

    return PooledParams(pooling=pooling, hidden=HIDDEN, batch=BATCH, epochs=1000, warmup=0.0, schedule="constant")  # type: ignore[arg-type]


def side(pooling: str, workers: int | None, pipe: Any) -> None:
    """A process that trains an epoch whenever it is told to; ``workers`` of the DataLoader, None:
    ours.
    """
    import torch

    from raysere.base.memory import keep_memory

    torch.set_num_threads(1)
    if workers is None:
        keep_memory()
    ours = Ours(trial(), options(pooling))
    runner = ours if workers is None else Plain(ours, options(pooling), workers)
    while pipe.recv():
        start = time.perf_counter()
        runner.epoch()
        pipe.send(time.perf_counter() - start)


class Side:
    """:func:`side` and the other end of its pipe."""

    def __init__(self, pooling: str, workers: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=side, args=(pooling, workers, other))
        self.process.start()
        self.epoch()

    def epoch(self) -> float:
        self.pipe.send(True)
        if not self.pipe.poll(120):
            raise RuntimeError("no epoch within 120 s")
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send(False)
        self.process.join(30)


def compare(data: Any, pooling: str) -> Row:
    checked = agreement(data, options(pooling))
    seconds_of = {}
    for workers in (0, 2):
        plain = Side(pooling, workers)
        seconds_of[workers] = (plain.epoch() + plain.epoch()) / 2
        plain.close()
    best = min(seconds_of, key=lambda workers: seconds_of[workers])
    ours, theirs = Side(pooling, None), Side(pooling, best)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds[which].append((ours, theirs)[which].epoch())
    ours.close()
    theirs.close()
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
        """`mean_std` has no weights before the pooling, so chunks are pooled once for each fold
        (a tenth of an epoch of the alternative, not counted here). An epoch then runs on
        utterance vectors and costs the matrix products of the head. With attention, every epoch
        reads every chunk: half of its time goes to the products of the attention on valid
        chunks, forward and backward, and most of the rest to memory traffic.""",
    )
