"""Mean and standard deviation of chunks for a new random alignment: prefix sums against slicing and
pooling the frames.

10,000 utterances of 50 to 600 frames (1 to 12 s), eleven chunks of one second in each, as the
papers on chunked attention draw them. Both sides get the frames in memory; the prefix sums are made
once, and every alignment after that uses them again.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from benchmarks._measure import ROUNDS, alternate, result, speed

TITLE = "Chunk statistics"
UTTERANCES, DIM, CHUNKS, WINDOW = 10_000, 128, 11, 50


def sliced(frames: list[Tensor], starts: Tensor) -> tuple[Tensor, Tensor]:
    """What is written first: a slice, a mean and a standard deviation for each chunk."""
    means, stds = [], []
    for own, places in zip(frames, starts.tolist(), strict=True):
        chunks = [own[place : place + WINDOW] for place in places]
        means.append(torch.stack([chunk.mean(0) for chunk in chunks]))
        stds.append(torch.stack([chunk.std(0, correction=0) for chunk in chunks]))
    return torch.stack(means), torch.stack(stds)


def bagged(values: Tensor, squares: Tensor, first: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Without a loop: all frames of all chunks averaged by one fused gather, and their squares by
    another.
    """
    index = ((first[:, None] + starts)[..., None] + torch.arange(WINDOW)).view(-1, WINDOW)
    mean, power = (embedding_bag(index, table, mode="mean") for table in (values, squares))
    std = torch.addcmul(power, mean, mean, value=-1).clamp_(min=0).sqrt_()
    return mean.view(*starts.shape, DIM), std.view(*starts.shape, DIM)


def run() -> dict[str, Any]:
    from raysere.features.device_cache import CACHE
    from raysere.features.spec import FeatureSpec, LayerSpec
    from raysere.features.views import FeatureView

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    counts = np.clip(np.exp(rng.normal(np.log(110), 0.5, UTTERANCES)), WINDOW, 600).astype(np.int64)
    starts = [torch.from_numpy(rng.integers(0, counts - WINDOW + 1, (CHUNKS, UTTERANCES)).T.copy()) for _ in range(ROUNDS + 1)]
    spec = FeatureSpec(
        backbone="benchmark",
        identity="benchmark",
        modality="audio",
        granularity="frame",
        dtype="float32",
        sampling_rate=16000,
        frame_s=0.02,
        layers=(LayerSpec(number=0, name="hidden", dim=DIM, rows="frame"),),
    )
    values = rng.standard_normal((int(counts.sum()), DIM), dtype=np.float32)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    view = FeatureView.from_arrays(spec, [str(number) for number in range(UTTERANCES)], {0: np.split(values, first[1:])})
    del values
    frames = torch.from_numpy(view.source.array(0, 0))  # the same memory for both sides
    listed = list(frames.split(counts.tolist()))

    CACHE.set_budget("cpu", 4 << 30)
    begin = time.perf_counter()
    sums = view.prefix(0)
    built = time.perf_counter() - begin
    assert view.prefix(0) is sums

    rows = []
    turns = {"ours": 0, "theirs": 0}

    def alignment(side: str) -> Tensor:
        turns[side] += 1
        return starts[(turns[side] - 1) % len(starts)]

    def ours() -> None:
        places = alignment("ours")
        view.prefix(0).chunk_stats(places, places + WINDOW, out=held)  # buffers kept from one alignment to the next

    held = view.prefix(0).chunk_stats(starts[0], starts[0] + WINDOW)
    mine, plain = view.prefix(0).chunk_stats(starts[0], starts[0] + WINDOW), sliced(listed, starts[0])
    apart = [float((a - b).abs().max()) for a, b in zip(mine, plain, strict=True)]
    assert max(apart) < 1e-5
    rows.append(
        speed(
            f"{CHUNKS} chunks of each of {UTTERANCES} utterances, {DIM} values, a new alignment every time",
            "a loop that slices and pools the frames in torch",
            alternate(ours, lambda: sliced(listed, alignment("theirs"))),
            goal=20,
            checked=f"largest difference of a mean {apart[0]:.1e}, of a standard deviation {apart[1]:.1e} (values of variance 1)",
            detail={
                "seconds of making the sums, once": round(built, 2),
                "MiB of sums": sums.bytes >> 20,
                "MiB of frames": frames.nbytes >> 20,
            },
        )
    )
    del plain
    squares, offsets = frames.square(), torch.from_numpy(first)
    fused = bagged(frames, squares, offsets, starts[0])
    apart = [float((a - b).abs().max()) for a, b in zip(mine, fused, strict=True)]
    assert max(apart) < 1e-4
    rows.append(
        speed(
            "the same",
            "fused gathers of all frames and their squares (embedding_bag)",
            alternate(ours, lambda: bagged(frames, squares, offsets, alignment("theirs"))),
            checked=f"largest difference of a mean {apart[0]:.1e}, of a standard deviation {apart[1]:.1e}",
        )
    )
    limits = """One thread. Memory is the limit: each chunk reads two rows of float64 sums and
        writes two rows of float32, and half of the time goes to rows that are in no cache. The
        sums take 16 bytes for each value, so they stay in memory only for small corpora and
        narrow features (RAYSERE_RESIDENT_GB). Beyond that they are computed again for each
        request, and the gain is lost."""
    return result(rows, limits)
