"""Past this machine:

MSP-Podcast (324 h) and 10,000 h with all 25 layers of WavLM-large, priced from measured constants.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

from raysere.pipeline.cluster_cost import Cluster, Encoding, Load, Trials, priced

CLIP_S, LONGEST_S = 5.6, 11.0  # assumed of both
AUDIO = 32_000.0  # bytes of a second, 16 kHz wav
TRIALS, EPOCHS = 500, 20
SIZES = {"MSP-Podcast": 324.0, "10,000 hours": 10_000.0}
CLUSTERS = {"h100": Cluster(64, "h100", 1, 16), "a100": Cluster(64, "a100", 1, 16), "none": Cluster(256, cores=16)}


def measure(seconds: float = 60.0) -> dict[str, float]:
    """Seconds of speech a second that one core encodes and reads, its rate of products, and seconds
    of a trial for each row and epoch.
    """
    from benchmarks.extraction import LARGE, _corpus, _model
    from raysere.features.extract.cost import measure, measure_reading, spread, works_of
    from raysere.features.spec import resolve
    from raysere.pipeline.cost import core_rate

    with tempfile.TemporaryDirectory() as name:
        manifest, _ = _corpus(Path(name) / "clips", 24)
        spec = resolve({"backbone": f"hf:{_model(Path(name) / 'large', LARGE)}"})
        works = [work for work in works_of(manifest, spec) if work is not None]
        speed = measure(spec, spread(works), seconds=seconds)
        reading = measure_reading(spec, spread(works), seconds=1.0)
        chunk = spec.model_copy(update={"granularity": "chunk", "dtype": "float16", "chunk_s": 1.0, "chunk_hop_s": 0.5})
        frame = spec.model_copy(update={"granularity": "frame", "dtype": "float16"})
        sizes = {f"{one.granularity}_bytes": _bytes(one) for one in (spec, chunk, frame)}
    return {"speed": speed or 0.0, "reading_speed": reading or 0.0, "core_rate": core_rate(), "row_epoch_s": _row_epoch(), **sizes}


def _bytes(spec: Any) -> float:
    """Of a mean clip, all layers."""
    from raysere.features.extract.cost import expected_bytes
    from raysere.features.store.content import Work

    return expected_bytes(spec, [Work("clip", "clip", CLIP_S)])


def _row_epoch() -> float:
    """Of ``pooled`` with its published head on a learned mix of 25 layers of mean and deviation,
    one core, one fold.
    """
    from benchmarks.folds import train, trial
    from raysere.methods.pooled import Pooled

    data = trial(1500, 25, 2048)
    one = dataclasses.replace(data, folds=data.folds[:1])
    params = Pooled.Params(epochs=2, patience=2)
    train(one, params, "cpu", None)  # warm
    began = time.perf_counter()
    train(one, params, "cpu", None)
    return (time.perf_counter() - began) / 2 / len(one.folds[0].train)


def extrapolated(constants: dict[str, float]) -> list[dict[str, Any]]:
    """Prices by corpus and kind of node: extraction of everything, then the search, on the official
    splits (one fold).
    """
    result = []
    for corpus, hours in SIZES.items():
        items = round(hours * 3600 / CLIP_S)
        stored = items * constants["utterance_bytes"]
        encoding = Encoding(
            "wavlm",
            hours * 3600,
            items,
            LONGEST_S,
            constants["speed"],
            constants["reading_speed"],
            constants["core_rate"],
            hours * 3600 * AUDIO,
            stored,
        )
        trials = Trials("pooled", TRIALS, constants["row_epoch_s"] * 0.7 * items * EPOCHS, "rows and epochs")
        for kind, cluster in CLUSTERS.items():
            load = Load((encoding,), (trials,), stored, items, gpu=0.25 if cluster.has_gpu else 0.0)
            result.append({"corpus": corpus, "hours": hours, "kind": kind, "items": items, **priced(load, cluster)})
    return result
