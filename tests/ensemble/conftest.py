"""Made-up libraries: members of known skill, in memory and as run folders on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import yaml

from raysere.corpora.manifest import Manifest, rows_to_table
from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions

CLASSES = ("anger", "happiness", "neutral", "sadness")


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def member_logits(label: np.ndarray, skill: float, generator: np.random.Generator, classes: int = 4) -> np.ndarray:
    """Logits of a member: ``skill`` for the true class plus unit noise."""
    return skill * np.eye(classes)[label] + generator.normal(size=(len(label), classes))


def make_selection(
    skills, *, items=400, speakers=20, classes=CLASSES, seed=0, stage="dev", shuffled=False, ids=None, folds=5, values=None, target=None
):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, len(classes), items)
    logits = np.stack([member_logits(label, skill, generator, len(classes)) for skill in skills])
    if shuffled:
        label = generator.permutation(label)
    p = softmax(logits)
    ids = ids or [f"t{m:03d}" for m in range(len(skills))]
    members = tuple(
        MemberInfo(name, "run", "audio" if m % 2 == 0 else "text", "pooled", "a" if m % 2 == 0 else "b") for m, name in enumerate(ids)
    )
    speaker = generator.integers(0, speakers, items)
    attributes = () if values is None else ("arousal",)
    values = np.zeros((len(skills), items, 0), np.float32) if values is None else values[:, :, None].astype(np.float32)
    found = StackedPredictions(
        members,
        tuple(f"u{n:05d}" for n in range(items)),
        tuple(classes),
        attributes,
        np.log(p).astype(np.float32),
        values,
        np.ones((len(skills), items), bool),
        stage,
    )
    return FitRows(
        found, label, np.zeros((items, 0)) if target is None else target[:, None], np.char.add("s", speaker.astype(str)), speaker % folds
    )


def write_run(
    folder: Path,
    *,
    skills,
    protocol="out_of_fold",
    items=240,
    speakers=12,
    classes=CLASSES,
    test_share=0.25,
    seed=0,
    kind="categorical",
    metric="uar",
    name=None,
    file_classes=None,
    text_missing=0.0,
    ensemble=None,
    noise_seed=1,
    synthetic=False,
    transform=None,
):
    """A run folder in the ledger's format.

    Skills may depend on nothing but the seed, so that two runs can share data.
    """
    generator = np.random.default_rng(seed)
    label = generator.integers(0, len(classes), items)
    rating = 1 + 6 * generator.random(items)
    speaker = np.arange(items) % speakers
    utterances = [f"toy/{n:04d}" for n in range(items)]
    rows = [
        {
            "utterance": utterances[n],
            "corpus": "toy",
            "language": "en",
            "path": f"{n:04d}.wav",
            "duration_s": 1.0,
            "sampling_rate": 16000,
            "speaker": f"toy/s{speaker[n]:02d}",
            "sex": "female" if speaker[n] // 4 % 2 else "male",
            "emotion": classes[label[n]],
            "arousal": float(rating[n]),
            "valence": float(8 - rating[n]),
            "dominance": 4.0 + float(rating[n]) / 10,
            "transcript": "some words",
        }
        for n in range(items)
    ]
    folder.mkdir(parents=True)
    Manifest.checked(rows_to_table(rows), roots={"toy": "corpora/toy"}, scales={"toy": (1.0, 7.0)}, synthetic=synthetic).write(
        folder / "manifest.parquet"
    )
    groups = speaker % 4
    splits = []
    if protocol == "nested":
        for outer in range(4):
            splits += [
                {
                    "outer": outer,
                    "utterance": u,
                    "role": "test" if groups[n] == outer else "pool",
                    "fold": None if groups[n] == outer else int((speaker[n] // 4) % 3),
                }
                for n, u in enumerate(utterances)
            ]
    elif protocol == "holdout":
        splits = [
            {"outer": 0, "utterance": u, "role": "test" if groups[n] == 3 else "pool", "fold": 0 if groups[n] == 2 else None}
            for n, u in enumerate(utterances)
        ]
    else:
        splits = [
            {
                "outer": 0,
                "utterance": u,
                "role": "test" if groups[n] == 3 and test_share else "pool",
                "fold": None if groups[n] == 3 and test_share else int(speaker[n] % 5),
            }
            for n, u in enumerate(utterances)
        ]
    table = pl.DataFrame(splits, schema={"outer": pl.Int32, "utterance": pl.String, "role": pl.String, "fold": pl.Int32})
    table.write_parquet(folder / "splits.parquet")
    attributes = ["arousal", "valence", "dominance"] if kind != "categorical" else []
    task = {
        "kind": kind,
        "classes": [] if kind == "dimensional" else list(classes),
        "attributes": attributes,
        "scale": [1.0, 7.0],
        "metric": "ccc" if kind == "dimensional" else metric,
    }
    settings = {
        "format": "raysere.run/1",
        "name": name or folder.name,
        "task": task,
        "class_map": {"name": "toy", "classes": list(classes), "rules": {c: c for c in classes}},
        "protocol": {"kind": protocol, "by": "speaker"},
        "features": {},
        "store": "store",
        "ensemble": {"bags": 5, "draws": 200, "recipes": ["two_system_mean"], **(ensemble or {})},
        "seed": 0,
        "corpora": [{"corpus": "toy", "path": "toy"}],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    outers = sorted(set(table["outer"].to_list()))
    noise = np.random.default_rng(noise_seed)
    for m, (study, skill) in enumerate(skills):
        modality = "text" if "text" in study else "audio"
        logits = member_logits(label, skill, noise, len(classes))
        rated = np.clip(4 + (rating - 4) * skill / 4 + noise.normal(size=items), 1, 7)
        if transform is not None:
            logits = transform(m, logits)
        for outer in outers:
            _write_trial(
                folder,
                study,
                m,
                outer,
                protocol,
                modality,
                softmax(logits),
                rated,
                table.filter(pl.col("outer") == outer),
                utterances,
                kind,
                file_classes or classes,
                classes,
                text_missing if modality == "text" else 0.0,
                noise,
            )
    return SimpleNamespace(folder=folder, label=label, speaker=speaker, rating=rating, utterances=utterances, splits=table)


def _write_trial(folder, study, number, outer, protocol, modality, p, rated, splits, utterances, kind, order, classes, missing, noise):
    trial = f"{study}-o{outer:02d}-{number:04d}" if protocol == "nested" else f"{study}-{number:04d}"
    place = folder / "trials" / trial
    place.mkdir(parents=True)
    role = dict(zip(splits["utterance"], splits["role"]))
    fold = dict(zip(splits["utterance"], splits["fold"]))
    rows = []
    for n in noise.permutation(len(utterances)):  # never in the order of the manifest
        u = utterances[n]
        if (role[u] == "pool" and fold[u] is None) or noise.random() < missing:
            continue
        row = {"utterance": u, "fold": fold[u] if role[u] == "pool" else None, "split": "dev" if role[u] == "pool" else "test"}
        if kind != "dimensional":
            row |= {f"p.{name}": float(p[n, classes.index(name)]) for name in order}
        if kind != "categorical":
            row |= {"arousal": float(rated[n]), "valence": float(8 - rated[n]), "dominance": float(np.clip(rated[n] / 10 + 4, 1, 7))}
        rows.append(row)
    schema = {
        "utterance": pl.String,
        "fold": pl.Int32,
        "split": pl.String,
        **{key: pl.Float32 for key in rows[0] if key not in ("utterance", "fold", "split")},
    }
    pl.DataFrame(rows, schema=schema).write_parquet(place / "predictions.parquet")
    head = {
        "format": "raysere.trial/1",
        "trial": trial,
        "study": study,
        "space": "pooled",
        "method": "pooled",
        "features": [study],
        "modality": modality,
        "outer": outer,
        "number": number,
        "seed": number,
        "config": f"{number:016x}",
        "params": {"lr": 0.001 * (number + 1)},
        "resolved": {"lr": 0.001 * (number + 1)},
    }
    (place / "params.yaml").write_text(yaml.safe_dump(head))
    (place / "model.safetensors").write_bytes(f"tensors of {trial}".encode())
    done = {
        "status": "done",
        "score": 0.5,
        "epoch": 1,
        "epochs": 2,
        "seconds": 1.0,
        "error": None,
        "metrics": {},
        "describe": {"effective_prior": {c: 1 / len(classes) for c in classes}},
    }
    (place / "DONE").write_text(json.dumps(done))


def add_features(folder: Path, studies) -> None:
    """Give a run the feature specs that its trials name."""
    from raysere.features.spec import FeatureSpec

    settings = yaml.safe_load((folder / "experiment.yaml").read_text())
    for study in studies:
        modality = "text" if "text" in study else "audio"
        spec = FeatureSpec(
            backbone=f"table:{study}.parquet",
            identity=study,
            modality=modality,
            granularity="utterance",
            layers=[{"number": 0, "name": "x", "dim": 4, "rows": "utterance"}],
            dtype="float32",
            sampling_rate=None,
            frame_s=None,
        )
        (folder / "store" / spec.key).mkdir(parents=True, exist_ok=True)
        (folder / "store" / spec.key / "spec.json").write_text(json.dumps(spec.to_json()))
        settings["features"][study] = {"backbone": spec.backbone, "spec_key": spec.key}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def record_hashes(folder: Path) -> None:
    """Give the trials of a run the hashes that the ledger records; without them they are as an
    earlier version wrote them.
    """
    from raysere.search.hashes import hash_folder, sealed

    for trial in (folder / "trials").iterdir():
        done = {**json.loads((trial / "DONE").read_text()), "files": hash_folder(trial)}
        (trial / "DONE").write_text(json.dumps(sealed(done)))


@pytest.fixture(scope="session")
def toy():
    return SimpleNamespace(
        selection=make_selection,
        run=write_run,
        hashes=record_hashes,
        features=add_features,
        logits=member_logits,
        softmax=softmax,
        classes=CLASSES,
    )
