"""From answers to figures:

UAR with intervals over speakers, paired differences, error reduction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.accuracy import pieces
from benchmarks.accuracy.data import CORPORA, SEED, Data, folder, load
from benchmarks.accuracy.pieces import NORMALISED, SYSTEMS
from benchmarks.accuracy.systems import ROWS

DRAWS = 2000
FUSED = {"average": "average of eGeMAPS SVM and encoder layer"}
WITHOUT_ENCODER = ("egemaps-linear", "egemaps-rbf", "compare-linear")
RIVALS = {"acoustic": WITHOUT_ENCODER, "speech": (*SYSTEMS, *FUSED)}  # what each row of raysere is held against


def own_path(corpus: str, row: str, normalise: str) -> Any:
    """Where the answers of a row of raysere are kept, one class number an utterance in the order of
    the corpus.
    """
    return folder("answers") / f"{corpus}-{row}-{normalise}.npy"


def answered(corpus: str) -> dict[tuple[str, str], tuple[np.ndarray, Any]]:
    """(system, normalisation) to the answers of all utterances and what was chosen, of all systems
    that are done.
    """
    data = load(corpus)
    found: dict[tuple[str, str], tuple[np.ndarray, Any]] = {}
    for normalise in NORMALISED:
        for system in SYSTEMS:
            if all(pieces.Piece(corpus, system, normalise, outer).path.is_file() for outer in range(len(data.inner))):
                scored = pieces.read(corpus, system, normalise)
                found[system, normalise] = scored.test.argmax(axis=1), scored.chosen
        if {(system, normalise) for system in ("egemaps-linear", "egemaps-rbf", "probe")} <= found.keys():
            scored, svms = pieces.fused(corpus, normalise)
            found["average", normalise] = scored.test.argmax(axis=1), [[*pair] for pair in zip(svms, scored.chosen, strict=True)]
        for row in ROWS:
            if own_path(corpus, row, normalise).is_file():
                found[row, normalise] = np.load(own_path(corpus, row, normalise)), None
    return found


def summarise(corpus: str) -> dict[str, Any]:
    """All rows of a corpus: value and interval, and for raysere's the paired difference to the best
    rival.
    """
    data, found = load(corpus), answered(corpus)
    rows = [_row(data, system, normalise, *found[system, normalise]) for system, normalise in found]
    values = {(row["system"], row["normalise"]): row["value"] for row in rows}
    for row in rows:
        if row["system"] not in ROWS:
            continue
        for name, allowed in (("same normalisation", (row["normalise"],)), ("any normalisation", NORMALISED)):
            rivals = [key for key in values if key[0] in RIVALS[row["system"]] and key[1] in allowed]
            if rivals:
                best = max(rivals, key=values.__getitem__)  # the best on the test speakers themselves: a hard rival
                answer = found[row["system"], row["normalise"]][0]
                row.setdefault("against", {})[name] = _difference(data, answer, found[best][0], best)
    return {
        "title": CORPORA[corpus].title,
        "classes": list(data.classes),
        "utterances": len(data.label),
        "speakers": len(np.unique(data.speaker)),
        "outer_folds": len(data.inner),
        "rows": rows,
    }


def _row(data: Data, system: str, normalise: str, answer: np.ndarray, chosen: Any) -> dict[str, Any]:
    from raysere.training.metrics import bootstrap

    interval = bootstrap("uar", data.label, answer, data.speaker, classes=len(data.classes), draws=DRAWS, seed=SEED)
    row = {"system": system, "normalise": normalise, "value": _short(interval.value), "low": _short(interval.low)}
    return {**row, "high": _short(interval.high), **({} if chosen is None else {"chosen": chosen})}


def _difference(data: Data, ours: np.ndarray, theirs: np.ndarray, rival: tuple[str, str]) -> dict[str, Any]:
    """The paired difference, and the share of the rival's error that is gone."""
    from raysere.training.metrics import bootstrap_difference, group_confusions, statistic_of

    sums = [group_confusions(data.label, answer, data.speaker, len(data.classes)) for answer in (ours, theirs)]
    uar = statistic_of("uar")
    pair = bootstrap_difference(*sums, uar, draws=DRAWS, seed=SEED)
    error = 1 - float(uar(sums[1].sum(0)))
    reduction = pair.value / error if error else 0.0
    return {
        "system": rival[0],
        "normalise": rival[1],
        "value": _short(pair.value),
        "low": _short(pair.low),
        "high": _short(pair.high),
        "error_reduction": _short(reduction),
    }


def _short(value: float) -> float:
    return round(float(value), 4)
