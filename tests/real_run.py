"""A small real run:

40 made-up clips of 10 speakers, three trained trials, one saved ensemble of audio and text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import soundfile
import yaml

from raysere.corpora.manifest import Manifest, rows_to_table
from raysere.corpora.splits import Protocol, make_splits
from raysere.ensemble.evaluate.evaluation import evaluate
from raysere.training.task import Task

CLASSES = ("high", "low")
WORDS = {"high": "what a wonderful bright morning", "low": "everything is grey and lost again"}


def _tone(path, pitch, seed):
    generator = np.random.default_rng(seed)
    time = np.arange(9600) / 16000
    wave = 0.2 * np.sin(2 * np.pi * pitch * (1 + 0.02 * np.sin(9 * time)) * time) + 0.02 * generator.normal(size=len(time))
    soundfile.write(path, wave.astype(np.float32), 16000)


def make_run(root: Path) -> dict[str, Any]:
    """Out of fold, with test rows:

    ``folder`` of the run, ``audio`` folder of the clips, ``result`` of the evaluation.
    """
    from safetensors.torch import save_file

    from raysere.features.extract.run import extract_local
    from raysere.features.spec import resolve
    from raysere.features.store.store import FeatureStore
    from raysere.methods import METHODS
    from raysere.training.data import build_labels, trial_data
    from raysere.training.loop import Trainer

    audio, folder = root / "audio", root / "run"
    audio.mkdir()
    folder.mkdir()
    rows = []
    for n in range(40):
        label, speaker = CLASSES[n % 2], n // 4
        _tone(audio / f"{n:02d}.wav", (320 if label == "high" else 140) + 5 * speaker, n)
        rows.append(
            {
                "utterance": f"toy/{n:02d}",
                "corpus": "toy",
                "language": "en",
                "path": f"{n:02d}.wav",
                "duration_s": 0.6,
                "sampling_rate": 16000,
                "speaker": f"toy/s{speaker}",
                "emotion": label,
                "transcript": WORDS[label] + " and so on" * (n % 3),
                "split": "test" if speaker >= 8 else None,
            }
        )
    manifest = Manifest.checked(rows_to_table(rows), roots={"toy": str(audio)})
    manifest.write(folder / "manifest.parquet")
    task = Task(classes=CLASSES)
    splits = make_splits(manifest.table.with_columns(label=pl.col("emotion")), Protocol(kind="out_of_fold", folds=2), seed=0)
    splits.write_parquet(folder / "splits.parquet")
    rules = {"name": "toy", "classes": list(CLASSES), "rules": {name: name for name in CLASSES}}
    from raysere.corpora.labels import class_map

    labels, _ = build_labels(manifest, class_map(rules), task)
    store = FeatureStore(root / "store")
    features, method = {}, METHODS.get("pooled")()
    for number, (name, backbone, layer) in enumerate([("acoustic", "acoustic", 2), ("words", "hashed", 0), ("acoustic", "acoustic", 1)]):
        spec = resolve({"backbone": backbone})
        extract_local(manifest, spec, store.root)
        features[name] = {"backbone": backbone, "spec_key": spec.key}
        data = trial_data(labels, splits, 0, {name: store.open(spec, manifest.table)}, task)
        params = method.Params(layers="one", layer=layer, hidden=8, epochs=4, lr=0.01, batch=8)
        trainer = Trainer(method, params, data, seed=number)
        while not trainer.finished:
            trainer.epoch()
        trial = folder / "trials" / f"pooled-{name}-{number:04d}"
        trial.mkdir(parents=True)
        trainer.predictions().write_parquet(trial / "predictions.parquet")
        save_file(trainer.state(), str(trial / "model.safetensors"))
        head = {
            "format": "raysere.trial/1",
            "trial": trial.name,
            "study": f"pooled-{name}",
            "space": "pooled",
            "method": "pooled",
            "features": [name],
            "modality": spec.modality,
            "outer": 0,
            "number": number,
            "seed": number,
            "config": f"{number:016x}",
            "params": {"layer": layer},
            "resolved": params.model_dump(mode="json"),
        }
        (trial / "params.yaml").write_text(yaml.safe_dump(head))
        (trial / "DONE").write_text(
            json.dumps(
                {
                    "status": "done",
                    "score": trainer.best["score"],
                    "epoch": trainer.best["epoch"],
                    "epochs": 4,
                    "seconds": 1.0,
                    "error": None,
                    "metrics": {},
                    "describe": trainer.describe(),
                },
                default=float,
            )
        )
    (folder / "experiment.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "real",
                "task": task.model_dump(mode="json"),
                "class_map": rules,
                "protocol": {"kind": "out_of_fold", "by": "speaker"},
                "features": features,
                "store": str(root / "store"),
                "ensemble": {"family": "average", "draws": 100},
                "seed": 0,
                "corpora": [],
            }
        )
    )
    result = evaluate(folder)
    return {"folder": folder, "audio": audio, "result": result}
