"""A toy run directory: real manifest, splits, labels and feature store, small enough for trials of
a tenth of a second.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from raysere.corpora.manifest import Manifest
from raysere.features.spec import FeatureSpec, LayerSpec
from raysere.features.store.content import text_contents
from raysere.features.store.shards import rebuild_index, write_shard
from raysere.features.store.store import FeatureStore
from raysere.methods.pooled import Pooled
from raysere.search.space.checks import check
from raysere.search.space.grammar import parse_space
from raysere.search.study import Asha, StudyFeature, StudySpec
from raysere.training.method import Shapes, StreamShape
from raysere.training.task import Task

CLASSES = ("anger", "neutral", "sadness")
SPACE = {
    "name": "toy",
    "method": "pooled",
    "defaults": {"hidden": 16, "epochs": 6, "patience": 6, "lr": 0.01},
    "space": {
        "layers": {"choice": ["mix", "one"]},
        "layer": {"int": [0, "last"], "when": {"layers": "one"}},
        "hidden": {"choice": [8, 16, 32]},
        "lr": {"float": [1e-4, 1e-1], "log": True},
        "dropout": {"float": [0.0, 0.6]},
        "class_weight": {"float": [0.0, 1.0]},
    },
}
SPEC = FeatureSpec(
    backbone="toy",
    identity="toy",
    modality="text",
    granularity="utterance",
    dtype="float32",
    sampling_rate=None,
    frame_s=None,
    layers=(LayerSpec(number=0, name="weak", dim=6, rows="utterance"), LayerSpec(number=1, name="strong", dim=6, rows="utterance")),
)


def toy_run(folder: Path, *, outers: int = 1, seed: int = 0) -> Path:
    """A run directory with 6 speakers, 3 classes and 2 folds by speaker; layer 1 tells the classes
    better than layer 0.
    """
    rng = np.random.default_rng(seed)
    rows = [
        {
            "utterance": f"toy/{speaker}-{take:02d}-{label}",
            "corpus": "toy",
            "language": "en",
            "speaker": f"toy/s{speaker}",
            "emotion": label,
            "transcript": f"take {take} of {speaker} {label}",
        }
        for speaker in range(6)
        for label in CLASSES
        for take in range(4)
    ]
    manifest = Manifest.checked(pl.DataFrame(rows))
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder / "manifest.parquet")
    table = manifest.table
    speaker = table["speaker"].str.tail(1).cast(pl.Int32)
    parts = []
    for outer in range(outers):
        test = speaker == outer if outers > 1 else pl.Series([False] * len(table))
        parts.append(
            pl.DataFrame(
                {
                    "outer": pl.Series([outer] * len(table), dtype=pl.Int32),
                    "utterance": table["utterance"],
                    "role": pl.select(pl.when(test).then(pl.lit("test")).otherwise(pl.lit("pool"))).to_series(),
                    "fold": pl.select(pl.when(test).then(None).otherwise(speaker % 2)).to_series().cast(pl.Int32),
                }
            )
        )
    pl.concat(parts).write_parquet(folder / "splits.parquet")
    store = FeatureStore(folder / "features")
    place = store.prepare(SPEC)
    number = {label: code for code, label in enumerate(CLASSES)}
    centre = np.eye(3, 6)[[number[label] for label in table["emotion"].to_list()]]
    layers = {
        layer: [row[None] for row in (strength * centre + rng.normal(size=centre.shape)).astype(np.float32)]
        for layer, strength in ((0, 0.6), (1, 1.6))
    }
    write_shard(place, SPEC, text_contents(table, SPEC).content, layers)
    rebuild_index(place)
    return folder


def shapes() -> Shapes:
    return Shapes(Task(classes=CLASSES), {"words": StreamShape("text", {0: 6, 1: 6}, 1, "utterance")})


def toy_study(
    name: str = "toy",
    *,
    space: dict | None = None,
    trials: int = 6,
    outer: tuple[int, ...] | None = None,
    asha: Asha | None = None,
    seed: int = 0,
    **more,
) -> StudySpec:
    checked = (
        check(parse_space(space or SPACE), Pooled.Params, shapes(), method=Pooled())
        if more.get("method", "pooled") == "pooled"
        else parse_space(space)
    )
    return StudySpec(
        **{
            "name": name,
            "space": checked.to_dict(),
            "method": "pooled",
            "features": (StudyFeature(name="words", spec_key=SPEC.key, modality="text"),),
            "store": "features",
            "task": Task(classes=CLASSES),
            "class_map": list(CLASSES),
            "outer": outer,
            "trials": trials,
            "seed": seed,
            "asha": asha,
            "threads": 1,
            **more,
        }
    )
