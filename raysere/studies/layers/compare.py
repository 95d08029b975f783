"""Compare layers across two corpora: similarity and relevance, without target labels.

:func:`describe` looks at one corpus, :func:`compare` at an ordered pair. Neither takes a label of
the target; what does is in :mod:`raysere.studies.layers.oracle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysere.base.errors import DataError, UnknownNameError
from raysere.nn.anchors import ANCHOR_KINDS, choose_anchors
from raysere.studies.estimate import Estimate, jackknife_interval, speaker_groups
from raysere.studies.layers.cells import PAIRED, Cells, compare_cells, shared_cells
from raysere.studies.layers.cka import cka_map, second_order
from raysere.studies.layers.discrepancy import DISCREPANCIES, discrepancy, kernel_sums, plain, zscored
from raysere.studies.layers.probes import proxy_a_distance, relevance, speaker_folds

#: The label-free measures of every pair; a larger value is a larger distance.
DISTANCES = (*DISCREPANCIES, "proxy_a_distance")
#: Those that label-free cells add.
CELL_MEASURES = tuple(f"cells.{name}" for name in PAIRED)
JACKKNIFE_GROUPS = 10


@dataclass(frozen=True)
class Settings:
    """How the analysis is done; all of it is written into its output.

    ``most``: utterances of a corpus that the measures with a matrix of all pairs read (a seeded
    choice, even over speakers). ``similarity``: the measure that the anchors of the report are
    chosen by.
    """

    draws: int = 1000
    permutations: int = 999
    most: int = 1500
    n_min: int = 10
    width: int = 3
    gamma: float = 1.0
    similarity: str = "covariance_gap"
    seed: int = 0

    def check(self, measures: Iterable[str]) -> None:
        """Raises UnknownNameError where ``similarity`` is none of these."""
        names = list(measures)
        if self.similarity not in names:
            raise UnknownNameError("similarity", self.similarity, names)


@dataclass(frozen=True)
class CorpusLayers:
    """Utterance vectors of one corpus: ``layers`` float64 (n, D_l) by number, ``speakers`` (n,). No
    label is in here.

    ``linked`` are groups of speakers that count as one.
    """

    name: str
    language: str
    utterances: list[str]
    speakers: list[str]
    layers: dict[int, NDArray[np.float64]]
    linked: tuple[tuple[str, ...], ...] = ()

    def rows(self, kept: NDArray) -> CorpusLayers:
        """Some of the utterances, by index or bool."""
        index = np.arange(len(self.utterances))[kept]
        return replace(
            self,
            utterances=[self.utterances[row] for row in index],
            speakers=[self.speakers[row] for row in index],
            layers={number: values[index] for number, values in self.layers.items()},
        )

    def sample(self, most: int, seed: int) -> CorpusLayers:
        """At most ``most`` utterances, of every speaker about as many."""
        if len(self.utterances) <= most:
            return self
        order = np.random.default_rng(seed).permutation(len(self.utterances))
        turn = np.empty(len(order), dtype=np.int64)  # the first of each speaker, the second of each, ...
        seen: dict[str, int] = {}
        for row in order:
            turn[row] = seen[self.speakers[row]] = seen.get(self.speakers[row], -1) + 1
        return self.rows(np.sort(order[np.argsort(turn[order], kind="stable")][:most]))


@dataclass(frozen=True)
class Description:
    """One corpus: its CKA map (L + 1, L + 1), the maps without each of some groups of speakers, and
    R_l where it has labels.
    """

    corpus: CorpusLayers
    map: NDArray[np.float64]
    without: list[NDArray[np.float64]]
    relevance: list[Estimate] | None


def describe(corpus: CorpusLayers, label: NDArray[np.int64] | None, classes: int, settings: Settings) -> Description:
    """The CKA map of a corpus and, with labels (n,) (-1 for none), the relevance of its layers.

    Columns are z-scored before CKA: one dimension may hold half of the variance of a layer (so in
    blocks 4 and 5 of a Whisper encoder), and the map would show where it is.
    """
    part = corpus.sample(settings.most, settings.seed)
    groups = speaker_groups(part.speakers, JACKKNIFE_GROUPS, settings.seed)
    kept = [~np.isin(part.speakers, group) for group in groups]
    without = [cka_map([zscored(layer[rows]) for layer in part.layers.values()]) for rows in kept if rows.sum() > 3]
    found = None
    if label is not None:
        fold = speaker_folds(corpus.speakers, label, seed=settings.seed, linked=corpus.linked)
        found = [
            relevance(layer, label, fold, corpus.speakers, classes, draws=settings.draws, seed=settings.seed)
            for layer in corpus.layers.values()
        ]
    return Description(corpus, cka_map([zscored(layer) for layer in part.layers.values()]), without, found)


def map_similarity(source: Description, target: Description, settings: Settings) -> Estimate:
    """Second-order similarity of two corpora, with a jackknife interval over the speakers of both."""
    found = second_order(source.map, target.map, permutations=settings.permutations, seed=settings.seed)
    left_out = [
        [second_order(one, second.map, permutations=1).value for one in first.without]
        for first, second in ((source, target), (target, source))
    ]
    low, high = jackknife_interval(found.value, left_out, (-1.0, 1.0))
    return replace(found, low=low, high=high)


def distances(source: CorpusLayers, target: CorpusLayers, settings: Settings) -> tuple[dict[str, list[Estimate]], dict[str, list[float]]]:
    """Each of :data:`DISTANCES` for each layer, of corpora with the same layers, symmetric in the
    two; and the plain forms of the discrepancies (the published ones, with their sampling noise).
    """
    options = {"draws": settings.draws, "seed": settings.seed}
    a, b = source.sample(settings.most, settings.seed), target.sample(settings.most, settings.seed)
    speakers = (a.speakers, b.speakers)
    linked = tuple(dict.fromkeys((*source.linked, *target.linked)))
    found: dict[str, list[Estimate]] = {name: [] for name in DISTANCES}
    noisy: dict[str, list[float]] = {name: [] for name in DISCREPANCIES}
    for number in a.layers:
        for name in DISCREPANCIES:
            sums = kernel_sums(name, a.layers[number], b.layers[number], speakers)
            found[name].append(discrepancy(name, sums, permutations=settings.permutations, **options))
            noisy[name].append(plain(name, sums))
        found["proxy_a_distance"].append(proxy_a_distance(a.layers[number], b.layers[number], speakers, linked=linked, **options))
    return found, noisy


def cell_similarities(source: Mapping[int, Cells], target: Mapping[int, Cells], settings: Settings) -> dict[str, list[Estimate]]:
    """The measures of :mod:`raysere.studies.layers.cells`, by layer, of layers that both sides
    have.
    """
    found: dict[str, list[Estimate]] = {}
    for number in sorted(set(source) & set(target)):
        compared = compare_cells(
            source[number],
            target[number],
            n_min=settings.n_min,
            permutations=settings.permutations,
            seed=settings.seed,
        )
        for name, estimate in compared.items():
            found.setdefault(name, []).append(estimate)
    return found


def similarity_of(measure: str, values: Sequence[Estimate]) -> NDArray[np.float64]:
    """Larger is more alike: distances with their sign turned."""
    numbers = np.array([one.value for one in values], dtype=np.float64)
    return -numbers if measure in DISTANCES else numbers


def anchors_by(measure: str, values: Sequence[Estimate], source: Description, settings: Settings) -> dict[str, list[int]]:
    """Layer numbers of each kind of anchor by one measure; {} where the source has no relevance or
    the measure no value.
    """
    similarity = similarity_of(measure, values)
    if source.relevance is None or not np.isfinite(similarity).any():
        return {}
    numbers = list(source.corpus.layers)
    r = [one.value for one in source.relevance]
    return {
        kind: [numbers[at] for at in choose_anchors(r, similarity, kind, settings.width, settings.gamma, seed=settings.seed)]
        for kind in ANCHOR_KINDS
    }


def compare(
    source: Description,
    target: Description,
    measured: Mapping[str, list[Estimate]],
    settings: Settings,
    *,
    cells: tuple[Mapping[int, Cells], Mapping[int, Cells]] | None = None,
) -> dict[str, Any]:
    """The label-free part of a pair: measures by layer, second-order similarity, and anchors of
    each kind by each measure.

    Args:
        measured: of :func:`distances`.
        cells: label-free cells (vowels) of both sides by layer, which add their measures as
            ``cells.NAME``.

    Raises:
        DataError: corpora with different layers, or cells that do not cover them.
    """
    if list(source.corpus.layers) != list(target.corpus.layers):
        raise DataError("Two corpora can be compared in the same layers only", where=f"{source.corpus.name}, {target.corpus.name}")
    every = dict(measured)
    notes: dict[str, Any] = {}
    if cells is not None:
        if missing := sorted(set(source.corpus.layers) - (set(cells[0]) & set(cells[1]))):
            raise DataError(f"The cells have no rows of the layers {', '.join(map(str, missing))}", where=source.corpus.name)
        every |= {f"cells.{name}": values for name, values in cell_similarities(*cells, settings).items()}
        kept, dropped = shared_cells(next(iter(cells[0].values())), next(iter(cells[1].values())), settings.n_min)
        notes = {"cells": kept, "cells_left_out": {name: list(counts) for name, counts in dropped.items()}}
    settings.check(every)
    return {
        "measures": every,
        "second_order": map_similarity(source, target, settings),
        "anchors": {name: anchors_by(name, values, source, settings) for name, values in every.items()},
        **notes,
    }
