"""The pieces of the study (a corpus, a baseline, a kind of normalisation, an outer fold), each in a
file of its own once it is done.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmarks.accuracy import baselines, features
from benchmarks.accuracy.data import CORPORA, Data, folder, load

WINDOW = "full"  # of the encoder, as published
NORMALISED = ("none", "speaker")
SYSTEMS = {
    "egemaps-linear": "eGeMAPS, linear SVM",
    "egemaps-rbf": "eGeMAPS, RBF SVM",
    "compare-linear": "ComParE, linear SVM",
    "probe": "encoder layer, logistic regression",
}
VERSION = 1  # raised when a baseline changes


@dataclass(frozen=True)
class Piece:
    corpus: str
    system: str
    normalise: str
    outer: int

    @property
    def path(self) -> Path:
        return folder(f"pieces-{VERSION}") / f"{self.corpus}-{self.system}-{self.normalise}-{self.outer:02d}.npz"


def all_pieces() -> list[Piece]:
    return [
        Piece(corpus, system, normalise, outer)
        for corpus in CORPORA
        for system in SYSTEMS
        for normalise in NORMALISED
        for outer in range(len(load(corpus).inner))
    ]


@lru_cache(maxsize=2)
def _inputs(corpus: str, system: str) -> tuple[Data, object]:
    data = load(corpus)
    return data, features.layers(data, WINDOW) if system == "probe" else features.smile(data, system.partition("-")[0])


def family(piece: Piece) -> tuple[Data, baselines.Family]:
    data, inputs = _inputs(piece.corpus, piece.system)
    if isinstance(inputs, dict):
        return data, baselines.Probe(data, inputs, piece.normalise)
    assert isinstance(inputs, np.ndarray)
    return data, baselines.Svm(data, inputs, piece.normalise, baselines.GAMMAS if piece.system.endswith("rbf") else None)


def do(piece: Piece) -> str:
    """Do one piece and keep it; the line to print."""
    data, system = family(piece)
    scored = baselines.nested(system, data, [piece.outer])
    rows, pool = data.outer == piece.outer, data.inner[piece.outer] >= 0
    chosen = np.frombuffer(json.dumps(scored.chosen[piece.outer]).encode(), dtype=np.uint8)
    temporary = piece.path.with_suffix(".part.npz")
    np.savez(temporary, test=scored.test[rows], inner=scored.inner[piece.outer][pool], chosen=chosen)
    temporary.rename(piece.path)
    right = (scored.test[rows].argmax(axis=1) == data.label[rows]).mean()
    return f"{piece.corpus} {piece.system} {piece.normalise} outer {piece.outer}: {scored.chosen[piece.outer]}, accuracy {right:.3f}"


def run_all(workers: int) -> None:
    """Do what is not done yet."""
    todo = [piece for piece in all_pieces() if not piece.path.is_file()]
    for corpus in dict.fromkeys(piece.corpus for piece in todo):  # features once, before processes share the work
        for system in dict.fromkeys(piece.system for piece in todo if piece.corpus == corpus):
            _inputs(corpus, system)
    if todo:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for line in pool.map(do, todo):
                print(line, flush=True)


def read(corpus: str, system: str, normalise: str) -> baselines.Scored:
    """All outer folds of a system. Raises FileNotFoundError where one is not done."""
    data = load(corpus)
    shape = (len(data.label), len(data.classes))
    scored = baselines.Scored(np.full(shape, np.nan), np.full((len(data.inner), *shape), np.nan), [])
    for outer, within in enumerate(data.inner):
        with np.load(Piece(corpus, system, normalise, outer).path) as kept:
            scored.test[data.outer == outer] = kept["test"]
            scored.inner[outer][within >= 0] = kept["inner"]
            scored.chosen.append(json.loads(kept["chosen"].tobytes()))
    return scored


def fused(corpus: str, normalise: str) -> tuple[baselines.Scored, list[str]]:
    """The average of the better SVM on eGeMAPS (by inner folds, in each outer fold) and the probe;
    with which SVM that was.
    """
    data = load(corpus)
    linear, rbf, probe = (read(corpus, system, normalise) for system in ("egemaps-linear", "egemaps-rbf", "probe"))
    better, names = baselines.Scored(linear.test.copy(), linear.inner.copy(), []), []
    for outer in range(len(data.inner)):
        wins = rbf.chosen[outer][-1] > linear.chosen[outer][-1]
        names.append("RBF" if wins else "linear")
        if wins:
            better.test[data.outer == outer], better.inner[outer] = rbf.test[data.outer == outer], rbf.inner[outer]
    return baselines.average(data, [better, probe]), names
