"""The small experiments that both checkouts run, and the speech that they run on.

Everything is fixed: seeds, clips, the number of trials, one trial and one thread at a time. The
experiments are written for the code as users call it (the command line and the YAML file), so that
modules may move between the two checkouts.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

EMODB_SPEAKERS = ("03", "08", "09", "10")
EMOVO_CLIPS = ("-b1.", "-b2.", "-n1.")
EMOVO_CLASSES = ("rab", "gio", "neu", "tri")
QUICK = {"hidden": 16, "epochs": 4, "batch": 16}
CENTRES = {"anger": (6.0, 2.0), "happiness": (5.5, 6.0), "neutral": (3.5, 4.0), "sadness": (2.0, 2.5)}  # arousal, valence


@dataclass(frozen=True)
class Case:
    """One comparison: ``commands`` are the arguments of ``raysere``, run in order in a folder that
    ``prepare`` has filled.

    ``outputs`` are the folders and files that are compared. The standard output of a command that
    has ``--json`` is compared, too.
    """

    name: str
    prepare: Callable[[Path], None]
    commands: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]


def corpora() -> Path:
    """The folder of the corpora. Raises SystemExit where it is not named."""
    if not (named := os.environ.get("RAYSERE_CORPORA")):
        raise SystemExit("RAYSERE_CORPORA names the folder that holds emodb/ and emovo/; it is not set.")
    return Path(named).resolve()


def copy_emodb(folder: Path) -> None:
    """The published clips of four speakers, and the phonetic labels."""
    target = folder / "emodb" / "wav"
    target.mkdir(parents=True)
    for clip in sorted((corpora() / "emodb" / "wav").iterdir()):
        if clip.name[:2] in EMODB_SPEAKERS:
            shutil.copy(clip, target)
    shutil.copy(corpora() / "emodb" / "labels.zip", folder / "emodb")


def copy_emovo(folder: Path) -> None:
    """Three sentences in four classes by all six speakers, at the place that the corpus gives them."""
    source = corpora() / "emovo"
    for clip in sorted(source.rglob("*.flac")):
        if clip.name[:3] in EMOVO_CLASSES and any(part in clip.name for part in EMOVO_CLIPS):
            (folder / "emovo" / clip.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, folder / "emovo" / clip.relative_to(source))


def write(folder: Path, name: str, **keys: Any) -> None:
    """Write an experiment with what all of them share."""
    shared: dict[str, Any] = {
        "name": name,
        "protocol": {"kind": "out_of_fold", "folds": "leave_one_speaker_out"},
        "trial": {"concurrent": 1},
        "extraction": {"actors": 1},
        "seed": 0,
        "store": str(folder / "features"),
        "runs": str(folder / "runs"),
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(shared | keys, sort_keys=False))


def emodb(folder: Path) -> None:
    copy_emodb(folder)
    write(
        folder,
        "emodb",
        corpora=[{"corpus": "emodb", "path": str(folder / "emodb")}],
        task={"classes": "emodb4"},
        features={"acoustic": {"backbone": "acoustic"}, "frames": {"backbone": "acoustic", "granularity": "frame", "layers": [0]}},
        search=[
            {"space": "pooled", "features": "acoustic", "trials": 6, "fixed": QUICK},
            {"space": "kernel", "features": "acoustic", "trials": 4},
            {"space": "discrete_units", "features": "frames", "trials": 2, "fixed": {"units": 50, "epochs": 4}},
        ],
        ensemble={"family": "auto", "draws": 200},
    )


def nested(folder: Path) -> None:
    copy_emodb(folder)
    features: dict[str, Any] = {"acoustic": {"backbone": "acoustic"}}
    if named := os.environ.get("RAYSERE_MODELS"):
        weights = Path(named).resolve() / "whisper-base-encoder"
        features["speech"] = {"backbone": f"hf:{weights}", "layers": [2, 4, 6], "options": {"window": "clip"}}
    write(
        folder,
        "nested",
        corpora=[{"corpus": "emodb", "path": str(folder / "emodb")}],
        task={"classes": "emodb4"},
        protocol={"kind": "nested", "outer": 2, "inner": 2},
        features=features,
        search=[{"space": "pooled_quick", "features": name, "trials": 4, "fixed": QUICK} for name in features],
        ensemble={"family": "auto", "draws": 200},
    )


def transfer(folder: Path) -> None:
    copy_emodb(folder)
    copy_emovo(folder)
    held = {"epochs": 3, "normalise": "domain"}
    write(
        folder,
        "transfer",
        corpora=[{"corpus": name, "path": str(folder / name)} for name in ("emodb", "emovo")],
        task={"classes": "common4"},
        protocol={"kind": "transfer", "source": ["emodb"], "target": ["emovo"], "folds": 2, "outer": 2},
        features={
            "acoustic": {"backbone": "acoustic"},
            "frames": {"backbone": "acoustic", "granularity": "frame", "layers": [0]},
            "chunks": {"backbone": "acoustic", "granularity": "chunk", "layers": [0]},
        },
        search=[
            {"space": "adaptation", "features": "acoustic", "trials": 3, "fixed": {**held, "critic": 32}},
            {"space": "quantized_codebook", "features": "chunks", "trials": 3, "fixed": held},
            {"space": "layer_anchoring", "features": "chunks", "trials": 2, "fixed": {**held, "anchors": "all"}},
        ],
        halving=None,
        ensemble={"family": "average", "recipes": []},
    )


def dimensional(folder: Path) -> None:
    """Arousal and valence are made up from the emotion and the clip's number: what matters here is
    that they are fixed.
    """
    copy_emodb(folder)
    letters = {"W": "anger", "F": "happiness", "N": "neutral", "T": "sadness"}
    random = np.random.default_rng(0)
    with (folder / "attributes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "speaker", "arousal", "valence"])
        for clip in sorted((folder / "emodb" / "wav").iterdir()):
            values = np.clip(np.array(CENTRES[letters[clip.name[5]]]) + random.normal(0, 0.7, 2), 1, 7)
            table.writerow([f"emodb/wav/{clip.name}", clip.name[:2], *(f"{value:.2f}" for value in values)])
    write(
        folder,
        "dimensional",
        corpora=[{"corpus": "table", "path": str(folder / "attributes.csv"), "options": {"scale": [1, 7]}}],
        task={"kind": "dimensional", "attributes": ["arousal", "valence"]},
        features={"acoustic": {"backbone": "acoustic"}},
        search=[{"space": "pooled", "features": "acoustic", "trials": 6, "fixed": QUICK}],
        ensemble={"draws": 200},
    )


def fusion(folder: Path) -> None:
    """Audio and text of the demo corpus, whose words tell something; ``raysere demo`` has written
    it.
    """
    small = {"epochs": 3, "batch": 32}
    write(
        folder,
        "fusion",
        corpora=[{"corpus": "demo", "path": str(folder / "demo" / "corpus")}],
        task={"classes": "demo4"},
        protocol={"kind": "out_of_fold", "folds": 3},
        features={
            "acoustic": {"backbone": "acoustic"},
            "chunks": {"backbone": "acoustic", "granularity": "chunk", "layers": [0], "chunk_s": 0.5, "chunk_hop_s": 0.25},
            "words": {"backbone": "hashed"},
        },
        search=[
            {"space": "pooled_text", "features": "words", "trials": 3, "fixed": QUICK},
            {"space": "concat", "features": ["acoustic", "words"], "trials": 3, "fixed": {**small, "hidden": 128}},
            {"space": "xattn", "features": ["chunks", "words"], "trials": 2, "fixed": {**small, "width": 128}},
            {"space": "xattn_std", "features": ["chunks", "words"], "trials": 2, "fixed": small},
            {"space": "deepser", "features": ["chunks", "words"], "trials": 2, "fixed": {**small, "width": 128}},
        ],
        ensemble={"family": "blend", "draws": 200},
    )


def studies(folder: Path) -> None:
    """The comparison of layers and the study of units between German and Italian."""
    copy_emodb(folder)
    copy_emovo(folder)
    write(
        folder,
        "studies",
        corpora=[{"corpus": name, "path": str(folder / name)} for name in ("emodb", "emovo")],
        task={"classes": "common4"},
        features={"frames": {"backbone": "acoustic", "granularity": "frame", "layers": [0]}, "acoustic": {"backbone": "acoustic"}},
        search=[{"space": "pooled_quick", "features": "acoustic", "trials": 1}],
    )


def nothing(folder: Path) -> None:
    """The command itself makes the corpus."""


_CLIP, _OTHER = "emodb/wav/03a01Fa.flac", "emodb/wav/09b10Wa.flac"
CASES = (
    Case("emodb", emodb, (("run", "emodb.yaml", "-q"), ("predict", "runs/emodb/ensemble", _CLIP, _OTHER, "--json")), ("runs", "features")),
    Case(
        "nested",
        nested,
        (("run", "nested.yaml", "-q"), ("predict", "runs/nested/ensemble", _CLIP, _OTHER, "--json")),
        ("runs", "features"),
    ),
    Case("transfer", transfer, (("run", "transfer.yaml", "-q"),), ("runs", "features")),
    Case(
        "dimensional",
        dimensional,
        (("run", "dimensional.yaml", "-q"), ("predict", "runs/dimensional/ensemble", _CLIP, _OTHER, "--json")),
        ("runs", "features"),
    ),
    Case(
        "demo",
        nothing,
        (
            ("demo", "demo"),
            (
                *("run", "demo/experiment.yaml", "-q", "--set", "search.0.trials=5", "--set", "search.1.trials=3"),
                *("--set", "search.2.trials=2", "--set", "trial.concurrent=1", "--set", "extraction.actors=1"),
            ),
            ("predict", "runs/demo/ensemble", "--text", "I am so happy to see you", "--json"),
        ),
        ("demo", "runs", "features"),
    ),
    Case(
        "fusion",
        fusion,
        (
            ("demo", "demo"),
            ("run", "fusion.yaml", "-q"),
            ("predict", "runs/fusion/ensemble", "--text", "I am so happy to see you", "--json"),
            ("ensemble", "runs/fusion", "--out", "fused", "--family", "stack"),
        ),
        ("runs", "features", "fused"),
    ),
    Case(
        "studies",
        studies,
        (
            ("analyze", "layers", "studies.yaml", "--feature", "acoustic", "--draws", "50", "--out", "layers", "-q"),
            (
                *("analyze", "units", "studies.yaml", "--feature", "frames", "--units", "20", "--out", "units", "-q"),
                *("--option", "seeds=2", "--option", "permutations=50"),
            ),
        ),
        ("layers", "units", "features"),
    ),
)
