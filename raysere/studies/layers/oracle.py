"""ORACLE: analyses that read target labels. They choose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysere.base.errors import DataError
from raysere.nn.anchors import choose_anchors, layer_scores
from raysere.studies.estimate import Estimate, spearman_test
from raysere.studies.layers.cells import Cells, shared_cells
from raysere.studies.layers.compare import CorpusLayers, Description, Settings, cell_similarities, similarity_of
from raysere.studies.layers.probes import oracle_transfer

NORMS = ("corpus", "source")


def emotion_cells(corpus: CorpusLayers, label: NDArray[np.int64], classes: Sequence[str]) -> dict[int, Cells]:
    """Utterance vectors x emotion as cells, by layer; utterances without a class (-1) are left out."""
    names = [None if code < 0 else classes[code] for code in label.tolist()]
    return {number: Cells.of(values, names, corpus.speakers) for number, values in corpus.layers.items()}


def oracle(
    source: Description,
    target: Description,
    labels: tuple[NDArray[np.int64], NDArray[np.int64]],
    classes: Sequence[str],
    compared: Mapping[str, Any],
    settings: Settings,
) -> dict[str, Any]:
    """The ORACLE part of a pair, to stand beside :func:`raysere.studies.layers.compare.compare`'s
    answer ``compared``.

    Returns:
        ``measures``: emotion cells, by layer. ``transfer``: UAR on the target by norm and layer.
        ``correlation``: Spearman of each measure's similarity (and of R_l and the score) with the
        transfer by layer (``corpus`` norm). ``anchors``: UAR of a probe on the anchors of each kind
        side by side; ``by_relevance`` that of the group which R_l alone would choose (does the
        similarity add anything?), and ``windows`` that of every window of the same width.

    Raises DataError for a source that was described without labels.
    """
    if source.relevance is None:
        raise DataError("Transfer needs labels of the source", where=source.corpus.name)
    r = [one.value for one in source.relevance]
    here, there = (emotion_cells(one.corpus, label, classes) for one, label in zip((source, target), labels, strict=True))
    measures = {f"emotion.{name}": values for name, values in cell_similarities(here, there, settings).items()}
    kept, _ = shared_cells(next(iter(here.values())), next(iter(there.values())), settings.n_min)
    numbers = list(source.corpus.layers)

    def reach(layers: Sequence[int], norm: str = "corpus") -> Estimate:
        sides = [np.concatenate([one.corpus.layers[number] for number in layers], axis=1) for one in (source, target)]
        speakers = target.corpus.speakers
        options: dict[str, Any] = {"norm": norm, "draws": settings.draws, "seed": settings.seed}
        return oracle_transfer(sides[0], labels[0], sides[1], labels[1], speakers, len(classes), **options)

    transfer = {norm: [reach([number], norm) for number in numbers] for norm in NORMS}
    reached = [one.value for one in transfer["corpus"]]

    def correlation(values: Any) -> Estimate:
        return spearman_test(values, reached, permutations=settings.permutations, seed=settings.seed)

    found = {name: correlation(similarity_of(name, values)) for name, values in {**compared["measures"], **measures}.items()}
    similarity = similarity_of(settings.similarity, compared["measures"][settings.similarity])
    found["relevance"] = correlation(r)
    if np.isfinite(similarity).any():
        found["score"] = correlation(layer_scores(r, similarity, settings.gamma))
    width = min(settings.width, len(numbers))
    windows = [numbers[start : start + width] for start in range(len(numbers) - width + 1)]
    alone = [numbers[at] for at in choose_anchors(r, r, "group", width, 0.0)]
    return {
        "cells": kept,
        "measures": measures,
        "transfer": transfer,
        "correlation": found,
        "anchors": {kind: reach(layers) for kind, layers in compared["anchors"][settings.similarity].items()},
        "by_relevance": (alone, reach(alone)),
        "windows": [(window, reach(window)) for window in windows],
    }
