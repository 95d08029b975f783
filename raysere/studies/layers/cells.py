"""Two languages compared by the centroids of cells that both have: a vowel, an emotion, or both
(docs/methods.md 8.5).

Utterances of two languages do not correspond, cells do. A cell is a name for rows (of frames pooled
over a vowel, of utterances of an emotion, ...). Cells that are named by emotions need the target's
true labels: such a comparison is ORACLE. Cells of vowels are label-free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from raysere.base.errors import DataError
from raysere.studies.estimate import Estimate, jackknife_interval, speaker_groups
from raysere.studies.layers.cka import FEWEST_ROWS, linear_cka, permutation_test, row_orders
from raysere.studies.layers.discrepancy import zscored


def centred_cosine(x: ArrayLike, y: ArrayLike) -> float:
    """Mean cosine of corresponding rows (C, D), each side centred: the large vector that all cells
    share would make every cosine near 1.

    NaN where a side has no variance; a single cell that lies on the mean counts 0.
    """
    x, y = _centred(x), _centred(y)
    if not (np.square(x).sum() > 0 and np.square(y).sum() > 0):
        return float("nan")
    norms = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
    return float(np.where(norms > 0, (x * y).sum(1) / np.where(norms > 0, norms, 1), 0).mean())


def procrustes(x: ArrayLike, y: ArrayLike) -> float:
    """``|X^T Y|_* / (|X|_F |Y|_F)`` of centred rows: 1 less half the squared distance after the
    best rotation and scale, in [0, 1].

    Few cells in many dimensions can always be turned towards each other: read it beside its null.
    NaN where a side has no variance.
    """
    x, y = _centred(x), _centred(y)
    scale = math.sqrt(float(np.square(x).sum()) * float(np.square(y).sum()))
    if not scale > 0:
        return float("nan")
    first, second = (np.asarray(np.linalg.qr(side.T, mode="r")) for side in (x, y))
    core = first @ second.T  # of the same singular values as x^T y, and only (C, C)
    return float(np.linalg.svd(core, compute_uv=False).sum()) / scale


def _cka(x: ArrayLike, y: ArrayLike) -> float:
    return linear_cka(x, y).value if len(np.asarray(x)) >= FEWEST_ROWS else float("nan")


#: Measures of centroids (C, D) of the same cells in two languages, by name, with their bounds;
#: larger is more alike.
PAIRED: dict[str, tuple[Callable[[NDArray, NDArray], float], tuple[float, float]]] = {
    "centred_cosine": (centred_cosine, (-1.0, 1.0)),
    "procrustes": (procrustes, (0.0, 1.0)),
    "debiased_cka": (_cka, (-math.inf, 1.0)),
}
JACKKNIFE_GROUPS = 20


def _centred(x: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(x, dtype=np.float64)
    return values - values.mean(0)


@dataclass(frozen=True)
class Cells:
    """Rows of one language in one layer by cell:

    ``rows`` float64 (n, D), ``cell`` and ``speaker`` str (n,).
    """

    rows: NDArray[np.float64]
    cell: NDArray
    speaker: NDArray

    @classmethod
    def of(cls, rows: ArrayLike, cell: Sequence[str | None], speaker: Sequence[str]) -> Cells:
        """Rows without a cell (None) are left out.

        Raises DataError for columns of different lengths.
        """
        values = np.asarray(rows, dtype=np.float64)
        if values.ndim != 2 or not len(values) == len(cell) == len(speaker):
            raise DataError(f"Cells need a vector, a cell and a speaker a row, not {values.shape}, {len(cell)} and {len(speaker)}")
        kept = np.array([name is not None for name in cell], dtype=bool)
        return cls(values[kept], np.array([str(name) for name in cell])[kept], np.array([str(name) for name in speaker])[kept])

    def counts(self) -> dict[str, int]:
        """Rows of each cell."""
        names, numbers = np.unique(self.cell, return_counts=True)
        return {str(name): int(number) for name, number in zip(names, numbers, strict=True)}

    def sums(self, names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums of the rows (S, C, D) and their numbers (S, C), by speaker and cell; cells in the
        order of ``names``.
        """
        people, person = np.unique(self.speaker, return_inverse=True)
        place = {name: number for number, name in enumerate(names)}
        cell = np.array([place.get(str(name), -1) for name in self.cell], dtype=np.int64)
        total, count = np.zeros((len(people), len(names), self.rows.shape[1])), np.zeros((len(people), len(names)))
        kept = cell >= 0
        np.add.at(total, (person[kept], cell[kept]), self.rows[kept])
        np.add.at(count, (person[kept], cell[kept]), 1)
        return total, count


def cells_from_table(table: pl.DataFrame, speakers: Mapping[str, str]) -> dict[int, Cells]:
    """Ready-made cells, by layer: a table of ``utterance, cell, layer, vector`` (a list or array of
    numbers), any number of rows each.

    ``speakers`` gives the speaker of each utterance; rows of other utterances are left out.

    Raises DataError for a missing column, vectors of different widths in a layer, or no row of a
    known utterance.
    """
    if missing := sorted({"utterance", "cell", "layer", "vector"} - set(table.columns)):
        raise DataError(f"A table of cells has no column {', '.join(missing)}", choices=["utterance", "cell", "layer", "vector"])
    known = table.filter(pl.col("utterance").is_in(list(speakers)))
    if not known.height:
        raise DataError("A table of cells has no row of these utterances", remedy="Make it from the corpora of this experiment.")
    found = {}
    for number in sorted(known["layer"].unique().to_list()):
        part = known.filter(pl.col("layer") == number)
        vectors = part["vector"].to_list()
        if len({len(vector) for vector in vectors}) > 1:
            raise DataError(f"The vectors of layer {number} in a table of cells have different widths")
        found[int(number)] = Cells.of(
            np.array(vectors, dtype=np.float64), part["cell"].to_list(), [speakers[name] for name in part["utterance"].to_list()]
        )
    return found


def shared_cells(source: Cells, target: Cells, n_min: int = 10) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Cells with ``n_min`` rows or more in both languages, sorted; and those that are left out,
    with their rows in each.
    """
    first, second = source.counts(), target.counts()
    every = sorted({*first, *second})
    kept = [name for name in every if min(first.get(name, 0), second.get(name, 0)) >= n_min]
    return kept, {name: (first.get(name, 0), second.get(name, 0)) for name in every if name not in kept}


def compare_cells(source: Cells, target: Cells, *, n_min: int = 10, permutations: int = 999, seed: int = 0) -> dict[str, Estimate]:
    """Each of :data:`PAIRED` over the shared cells, rows z-scored within each language first.

    The interval is that of a jackknife over the speakers of both languages; there is none where a
    cell hangs on one group of them. The null permutes the names of the target's cells (all orders
    where there are few), so with C cells no p is below 1 / C!.
    """
    names, _ = shared_cells(source, target, n_min)
    if len(names) < 2:
        reason = f"{len(names)} cells have {n_min} rows or more in both languages"
        return {measure: Estimate(float("nan"), reason=reason) for measure in PAIRED}
    first, second = (_centroids(side, names, seed) for side in (source, target))
    a, b = first[0], second[0]
    orders = row_orders(len(names), permutations, seed)
    found: dict[str, Estimate] = {}
    for measure, (function, bounds) in PAIRED.items():
        tested = permutation_test(function, a, b, orders)
        if not math.isfinite(tested.value):
            few = len(names) < FEWEST_ROWS and measure == "debiased_cka"
            reason = f"{len(names)} cells are fewer than 4" if few else "a side has no (unbiased) variance"
            found[measure] = replace(tested, reason=reason)
            continue
        left_out = [[function(x, b) for x in first[1:]], [function(a, y) for y in second[1:]]]
        low, high = jackknife_interval(tested.value, left_out, bounds)
        found[measure] = replace(tested, low=low, high=high)
    return found


def _centroids(side: Cells, names: Sequence[str], seed: int) -> list[NDArray]:
    """Centroids (C, D) of z-scored rows, of all speakers and then without each group of them; NaN
    for a cell that is lost with a group.
    """
    kept = np.isin(side.cell, names)
    total, count = Cells(zscored(side.rows[kept]), side.cell[kept], side.speaker[kept]).sums(names)
    groups = speaker_groups(side.speaker[kept], JACKKNIFE_GROUPS, seed)
    people = np.unique(side.speaker[kept])
    found = []
    for left_out in [np.array([], dtype=people.dtype), *groups]:
        weight = (~np.isin(people, left_out)).astype(float)
        number = weight @ count
        found.append(np.tensordot(weight, total, 1) / np.where(number > 0, number, np.nan)[:, None])
    return found
