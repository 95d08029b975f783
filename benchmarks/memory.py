"""Memory that cached features take on a node: 1, 2, 4 and 8 Ray workers that each read all of them,
against one copy.

Utterance vectors of six layers and the frames of one layer lie in many shards, as an extraction
leaves them. Every worker opens the views as a trial does and reads every row. Then two things are
added up over the workers: the proportional set size of the mapped store files, and all that their
other memory grew by reading, in which a hidden copy would stand.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks._measure import ROUNDS, Row, alternate, result, speed

TITLE = "Feature memory of a node"
UTTERANCES, SHARDS, WORKERS, GOAL = 4000, 25, (1, 2, 4, 8), 1.05
KINDS = {"utterance": (1024, 6), "frame": (320, 1)}  # width and number of layers
BATCH = 64


def spec_of(granularity: str) -> Any:
    from raysere.features.spec import FeatureSpec, LayerSpec

    width, layers = KINDS[granularity]
    rows = "utterance" if granularity == "utterance" else "frame"
    return FeatureSpec(
        backbone=f"benchmark-{granularity}",
        identity="benchmark",
        modality="text",
        granularity=granularity,
        dtype="float32" if granularity == "utterance" else "float16",
        sampling_rate=None,
        frame_s=None,
        layers=tuple(LayerSpec(number=number, name=f"hidden {number}", dim=width, rows=rows) for number in range(layers)),
    )


def fill(folder: Path) -> dict[str, int]:
    """A manifest and a store of both granularities; the checksum of each layer in the order of the
    manifest.
    """
    from raysere.corpora.manifest import Manifest
    from raysere.features.store.content import text_contents
    from raysere.features.store.shards import rebuild_index, write_shard
    from raysere.features.store.store import FeatureStore

    row = {"corpus": "benchmark", "language": "en", "speaker": "benchmark/a", "emotion": "neutral"}
    names = [f"{number:05d}" for number in range(UTTERANCES)]
    manifest = Manifest.checked(pl.DataFrame([{**row, "utterance": f"benchmark/{name}", "transcript": name} for name in names]))
    manifest.write(folder / "manifest.parquet")
    rng, sums = np.random.default_rng(0), {}
    frames = np.clip(np.exp(rng.normal(np.log(110), 0.5, UTTERANCES)), 50, 600).astype(np.int64)
    shard_of = rng.integers(0, SHARDS, UTTERANCES)
    for granularity, (width, layers) in KINDS.items():
        spec = spec_of(granularity)
        place = FeatureStore(folder / "features").prepare(spec)
        contents = text_contents(manifest.table, spec).content
        counts = np.ones(UTTERANCES, np.int64) if granularity == "utterance" else frames
        values = [
            np.split(rng.standard_normal((int(counts.sum()), width), dtype=np.float32).astype(spec.dtype), np.cumsum(counts)[:-1])
            for _ in range(layers)
        ]
        for shard in range(SHARDS):
            here = np.flatnonzero(shard_of == shard).tolist()
            write_shard(place, spec, [contents[at] for at in here], {k: [layer[at] for at in here] for k, layer in enumerate(values)})
        rebuild_index(place)
        for number, layer in enumerate(values):
            crc = 0
            for array in layer:
                crc = zlib.crc32(array.astype(np.float32), crc)
            sums[f"{granularity} {number}"] = crc
    return sums


class Reader:
    """A worker with the views of a trial."""

    def __init__(self, folder: str) -> None:
        import torch

        from raysere.corpora.manifest import Manifest
        from raysere.features.store.store import FeatureStore

        torch.set_num_threads(1)
        self.folder = folder
        table = Manifest.read(Path(folder) / "manifest.parquet").table
        store = FeatureStore(Path(folder) / "features")
        self.views = {granularity: store.open(spec_of(granularity).key, table) for granularity in KINDS}
        self.before = 0
        self.before = self.memory()["growth"]

    def read(self) -> dict[str, int]:
        """Read every row of every layer as trials do (whole matrices, batches of frames); the
        checksum of each layer.
        """
        sums = {}
        for number in range(KINDS["utterance"][1]):
            sums[f"utterance {number}"] = zlib.crc32(self.views["utterance"].matrix(number))
        crc = 0
        for begin in range(0, UTTERANCES, BATCH):
            stream = self.views["frame"].batch(np.arange(begin, min(begin + BATCH, UTTERANCES)), [0])
            crc = zlib.crc32(stream.layers[0][stream.mask].numpy(), crc)
        sums["frame 0"] = crc
        return sums

    def memory(self) -> dict[str, int]:
        """Bytes: proportional share of the mapped store files, and growth of all other memory of
        its own since the views were opened.
        """
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # freed buffers back to the kernel: what is left is held
        share = anonymous = 0
        store = str(Path(self.folder) / "features")
        mapped = False
        with open("/proc/self/smaps", encoding="utf-8") as lines:
            for line in lines:
                name, _, rest = line.partition(":")
                if " " in name:  # the head of a mapping
                    mapped = store in line
                elif name == "Pss" and mapped:
                    share += int(rest.split()[0]) << 10
                elif name == "Anonymous" and not mapped:
                    anonymous += int(rest.split()[0]) << 10
        return {"share": share, "growth": anonymous - self.before}


def one_round(folder: Path, expected: dict[str, int]) -> dict[int, tuple[int, int]]:
    """By number of workers, over all of them: bytes of the mapped files, and growth of other
    memory.
    """
    import ray

    workers = [ray.remote(Reader).options(num_cpus=0).remote(str(folder)) for _ in range(max(WORKERS))]
    found = {}
    have = 0
    for number in WORKERS:
        for sums in ray.get([worker.read.remote() for worker in workers[have:number]]):
            assert sums == expected
        have = number
        memory = ray.get([worker.memory.remote() for worker in workers[:number]])
        found[number] = sum(one["share"] for one in memory), sum(max(0, one["growth"]) for one in memory)
    for worker in workers:
        ray.kill(worker)
    return found


def batches_row(folder: Path) -> Row:
    """What it costs that nobody holds a copy: batches out of the mapped shards against batches out
    of a tensor of the process.
    """
    import torch

    torch.set_num_threads(1)
    view = Reader(str(folder)).views["frame"]
    width = KINDS["frame"][0]
    everything = view.batch(np.arange(UTTERANCES), [0])
    frames = everything.layers[0][everything.mask].half()  # one after the other, as stored
    del everything
    counts = torch.from_numpy(view.lengths(np.arange(UTTERANCES)))
    first = counts.cumsum(0) - counts
    order = np.random.default_rng(1).permutation(UTTERANCES)
    asked = [torch.from_numpy(order[begin : begin + BATCH]) for begin in range(0, UTTERANCES, BATCH)]

    def own(rows: torch.Tensor) -> torch.Tensor:
        step = torch.arange(int(counts[rows].max()))
        mask = step < counts[rows][:, None]
        values = frames.index_select(0, torch.where(mask, first[rows][:, None] + step, 0).flatten()).float()
        return values.view(*mask.shape, width).masked_fill_(~mask[..., None], 0)

    def epoch(batch: Callable[[torch.Tensor], Any]) -> None:
        for rows in asked:
            batch(rows)

    assert all(torch.equal(view.batch(rows, [0]).layers[0], own(rows)) for rows in asked)
    return speed(
        f"an epoch of padded frames from {SHARDS} mapped shards, {BATCH} utterances a batch",
        "index_select from one tensor in the memory of the process",
        alternate(lambda: epoch(lambda rows: view.batch(rows, [0])), lambda: epoch(own)),
        checked=f"all {len(asked)} batches are equal bit by bit",
    )


def run() -> dict[str, Any]:
    from raysere.base.cluster import start_ray, stop_ray

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        expected = fill(folder)
        size = sum(path.stat().st_size for path in folder.glob("features/*/shard-*/layer-*.npy"))
        start_ray(object_store_gb=0.2)
        try:
            rounds = [one_round(folder, expected) for _ in range(ROUNDS)]
        finally:
            stop_ray()
        batches = batches_row(folder)
    rows = [
        Row(
            f"{number} worker{'s' if number > 1 else ''}, {UTTERANCES} utterances in {SHARDS} shards, vectors and frames",
            "one copy of the features",
            [sum(one[number]) / size for one in rounds],
            "copies",
            GOAL,
            higher=False,
            checked=f"every worker read all {len(expected)} layers, each with the checksum of the values that were written",
            detail={
                "MiB of features": size >> 20,
                "copies in mapped files": statistics.median(one[number][0] for one in rounds) / size,
                "MiB that other memory of a worker grew": statistics.median(one[number][1] for one in rounds) / number / (1 << 20),
            },
        )
        for number in WORKERS
    ]
    limits = """Every worker copies what it trains on out of the mapped shards: batches of frames
        or, for utterance vectors, normalised matrices. These matrices belong to the worker and
        stay for its next trials, up to RAYSERE_RESIDENT_GB (not counted here). The kernel takes
        the mapped pages back when memory is short."""
    return result([*rows, batches], limits)
