"""Synthetic run directories for the benchmarks of the search: real manifest, splits, labels and
feature store, no audio.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

CLASSES = ("anger", "happiness", "neutral", "sadness")
SPEAKERS, DEV_SPEAKERS = 40, 8
SPACE: dict[str, Any] = {
    "name": "bench",
    "method": "pooled",
    "defaults": {"hidden": 256, "depth": 1, "epochs": 5, "patience": 5, "batch": 64, "dropout": 0.2, "lr": 0.001, "class_weight": 1.0},
    "space": {
        "lr": {"float": [1e-4, 3e-3], "log": True},
        "dropout": {"float": [0.05, 0.5]},
        "weight_decay": {"float": [1e-6, 1e-1], "log": True},
        "class_weight": {"float": [0.0, 1.0]},
        "label_smoothing": {"float": [0.0, 0.2]},
    },
}


@dataclass(frozen=True)
class Data:
    """Features float32 (N, D), class numbers int64 (N,), and which rows train and score."""

    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    dev: np.ndarray


def make_data(utterances: int, width: int, seed: int = 0) -> Data:
    """Gaussian classes, unequal in size, hard enough that configurations differ; the last speakers
    are the development set.
    """
    rng = np.random.default_rng(seed)
    y = rng.choice(len(CLASSES), utterances, p=[0.15, 0.2, 0.45, 0.2])
    centres = rng.standard_normal((len(CLASSES), width)).astype(np.float32) * 0.09
    x = rng.standard_normal((utterances, width), dtype=np.float32) + centres[y]
    speaker = np.arange(utterances) % SPEAKERS
    dev = speaker >= SPEAKERS - DEV_SPEAKERS
    return Data(x, y.astype(np.int64), np.flatnonzero(~dev), np.flatnonzero(dev))


def make_run(folder: Path, data: Data) -> Path:
    """A run directory over these features: one stream ``speech`` of one layer, one fold."""
    from raysere.corpora.manifest import Manifest
    from raysere.features.store.content import text_contents
    from raysere.features.store.shards import rebuild_index, write_shard
    from raysere.features.store.store import FeatureStore

    folder.mkdir(parents=True)
    count = len(data.y)
    rows = [
        {
            "utterance": f"bench/{number:06d}",
            "corpus": "bench",
            "language": "en",
            "speaker": f"bench/s{number % SPEAKERS:02d}",
            "emotion": CLASSES[data.y[number]],
            "transcript": f"utterance {number}",
        }
        for number in range(count)
    ]
    manifest = Manifest.checked(pl.DataFrame(rows))
    manifest.write(folder / "manifest.parquet")
    is_dev = np.zeros(count, bool)
    is_dev[data.dev] = True
    fold = pl.Series("fold", [0 if dev else None for dev in is_dev], dtype=pl.Int32)
    frame = pl.DataFrame(
        {"outer": pl.Series([0] * count, dtype=pl.Int32), "utterance": manifest.table["utterance"], "role": ["pool"] * count}
    )
    frame.with_columns(fold).write_parquet(folder / "splits.parquet")
    spec = feature_spec(data.x.shape[1])
    place = FeatureStore(folder / "features").prepare(spec)
    write_shard(place, spec, text_contents(manifest.table, spec).content, {0: [row[None] for row in data.x]})
    rebuild_index(place)
    return folder


def feature_spec(width: int) -> Any:
    from raysere.features.spec import FeatureSpec, LayerSpec

    return FeatureSpec(
        backbone="bench",
        identity="bench",
        modality="text",
        granularity="utterance",
        dtype="float32",
        sampling_rate=None,
        frame_s=None,
        layers=(LayerSpec(number=0, name="only", dim=width, rows="utterance"),),
    )


def make_study(width: int, trials: int, name: str = "bench", *, space: dict[str, Any] | None = None, **more: Any) -> Any:
    from raysere.methods.pooled import Pooled
    from raysere.search.space.checks import check
    from raysere.search.space.grammar import parse_space
    from raysere.search.study import StudyFeature, StudySpec
    from raysere.training.method import Shapes, StreamShape
    from raysere.training.task import Task

    task = Task(classes=CLASSES)
    shapes = Shapes(task, {"speech": StreamShape("text", {0: width}, 1, "utterance")})
    checked = check(parse_space(space or SPACE), Pooled.Params, shapes, method=Pooled())
    return StudySpec(
        **{
            "name": name,
            "space": checked.to_dict(),
            "method": "pooled",
            "features": (StudyFeature(name="speech", spec_key=feature_spec(width).key, modality="text"),),
            "store": "features",
            "task": task,
            "class_map": list(CLASSES),
            "trials": trials,
            "threads": 1,
            **more,
        }
    )
