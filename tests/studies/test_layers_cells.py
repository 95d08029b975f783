"""Two languages compared by the centroids of their cells: invariances, nulls, ready-made tables."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from raysere.base.errors import DataError
from raysere.studies.layers.cells import PAIRED, Cells, cells_from_table, centred_cosine, compare_cells, procrustes, shared_cells
from raysere.studies.layers.cka import linear_cka
from raysere.studies.layers.discrepancy import zscored

VOWELS = [f"{vowel}/{emotion}" for vowel in "aeiou" for emotion in ("anger", "sadness")]


def languages(shared: float, *, names=VOWELS, each: int = 12, speakers: int = 6, dim: int = 24, seed: int = 0) -> tuple[Cells, Cells]:
    """Cells of two languages whose centres have ``shared`` in common, beside a large vector that
    every row has.
    """
    random = np.random.default_rng(seed)
    common = random.normal(size=(len(names), dim))
    sides = []
    for side in range(2):
        centres = shared * common + math.sqrt(1 - shared**2) * random.normal(size=(len(names), dim)) + 40
        cell = np.repeat(names, each)
        rows = centres[np.repeat(np.arange(len(names)), each)] + 0.5 * random.normal(size=(len(cell), dim))
        sides.append(Cells.of(rows, cell.tolist(), [f"{side}/{number % speakers}" for number in range(len(cell))]))
    return sides[0], sides[1]


def test_a_common_vector_counts_for_nothing_in_the_cosine():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(9, 30)), random.normal(size=(9, 30))
    raw = ((x + 100) * (y + 100)).sum(1) / np.linalg.norm(x + 100, axis=1) / np.linalg.norm(y + 100, axis=1)
    assert raw.min() > 0.99
    assert abs(centred_cosine(x + 100, y + 100)) < 0.3
    assert centred_cosine(x + 100, 3 * x - 7) == pytest.approx(1)
    assert centred_cosine([[1, 0], [0, 1], [0.5, 0.5]], [[1, 0], [0, 1], [0.5, 0.5]]) == pytest.approx(2 / 3)  # a cell at the mean is 0
    assert math.isnan(centred_cosine(np.ones((4, 2)), x[:4, :2]))


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_procrustes_is_one_less_half_the_squared_distance_after_the_best_rotation_and_scale(shape):
    from scipy.spatial import procrustes as by_scipy

    random = np.random.default_rng(1)
    x, y = random.normal(size=shape), random.normal(size=shape)
    rotation, _ = np.linalg.qr(random.normal(size=(shape[1], shape[1])))
    value = procrustes(x, y)
    assert value == pytest.approx(math.sqrt(1 - by_scipy(x, y)[2]), abs=1e-9)
    assert procrustes(x, 5 * y @ rotation + 2) == pytest.approx(value, abs=1e-9)
    assert procrustes(x, x @ rotation) == pytest.approx(1)
    assert math.isnan(procrustes(np.ones((4, 2)), x[:4, :2]))


def test_cells_of_related_languages_are_alike_and_those_of_unrelated_ones_are_at_their_null():
    related, unrelated = (compare_cells(*languages(shared), permutations=199) for shared in (0.95, 0.0))
    for measure, found in related.items():
        assert found.p == pytest.approx(1 / 200), measure
        assert found.null_edge < found.low < found.high, measure
        assert found.low < found.value < found.high, measure
    for measure, found in unrelated.items():
        assert found.p > 0.05, measure
        assert abs(found.value - found.null) < 0.2, measure
    assert related["debiased_cka"].value > 0.8
    assert unrelated["procrustes"].value > 0.4  # high for nothing: it is read beside its null


def test_measures_are_those_of_the_centroids_of_z_scored_rows():
    a, b = languages(0.7, speakers=2)
    rows = []
    for side in (a, b):
        z = zscored(side.rows)
        rows.append(np.stack([z[side.cell == name].mean(0) for name in sorted(VOWELS)]))
    found = compare_cells(a, b, permutations=20)
    assert found["debiased_cka"].value == pytest.approx(linear_cka(*rows).value, abs=1e-10)
    assert found["centred_cosine"].value == pytest.approx(centred_cosine(*rows), abs=1e-10)
    assert found["procrustes"].value == pytest.approx(procrustes(*rows), abs=1e-10)


def test_rare_cells_are_left_out_and_too_few_say_why():
    a, b = languages(0.9, names=["a", "e", "i"])
    few = Cells.of(np.concatenate([b.rows, b.rows[:9]]), [*b.cell, *["rare"] * 9], [*b.speaker, *b.speaker[:9]])
    kept, dropped = shared_cells(a, few, 10)
    assert kept == ["a", "e", "i"]
    assert dropped == {"rare": (0, 9)}
    found = compare_cells(a, few, permutations=99)
    assert found["centred_cosine"].value == pytest.approx(compare_cells(a, b, permutations=99)["centred_cosine"].value)
    assert found["centred_cosine"].p >= 1 / 6  # three cells have six orders
    assert "fewer than 4" in found["debiased_cka"].reason
    none = compare_cells(a, b, n_min=100)
    assert set(none) == set(PAIRED)
    assert all("0 cells have 100 rows" in one.reason for one in none.values())


def test_the_interval_is_the_jackknife_over_the_speakers_of_both_languages():
    a, b = languages(0.8, speakers=4)
    found = compare_cells(a, b, permutations=9)["centred_cosine"]
    centres = []
    for side in (a, b):
        z, people = zscored(side.rows), sorted(set(side.speaker))
        left = [None, *people]
        centres.append([np.stack([z[(side.cell == name) & (side.speaker != out)].mean(0) for name in sorted(VOWELS)]) for out in left])
    first, second = centres
    variance = sum(
        3 / 4 * np.square(np.array(values) - np.mean(values)).sum()
        for values in (
            [centred_cosine(x, second[0]) for x in first[1:]],
            [centred_cosine(first[0], y) for y in second[1:]],
        )
    )
    assert found.high - found.value == pytest.approx(1.96 * math.sqrt(variance), abs=1e-9)
    one_speaker_has_a_cell = Cells(a.rows, a.cell, np.where(a.cell == VOWELS[0], "alone", a.speaker))
    found = compare_cells(one_speaker_has_a_cell, b, permutations=9)["centred_cosine"]
    assert math.isfinite(found.value)
    assert math.isnan(found.low)


def test_cells_come_ready_made_as_a_table():
    a, _ = languages(0.5)
    utterances = [f"u{row}" for row in range(len(a.rows))]
    table = pl.DataFrame({"utterance": utterances, "cell": a.cell.tolist(), "layer": [3] * len(utterances), "vector": a.rows.tolist()})
    other = table.head(5).with_columns(layer=pl.lit(4, pl.Int64), vector=pl.col("vector").list.head(2))
    found = cells_from_table(pl.concat([table, other]), dict(zip(utterances, a.speaker.tolist(), strict=True)))
    assert list(found) == [3, 4]
    assert np.array_equal(found[3].rows, a.rows)
    assert found[3].counts() == a.counts()
    assert found[4].rows.shape == (5, 2)
    with pytest.raises(DataError, match="no column cell, vector"):
        cells_from_table(table.drop("cell", "vector"), {"u0": "s"})
    with pytest.raises(DataError, match="no row of these utterances"):
        cells_from_table(table, {"elsewhere": "s"})
    with pytest.raises(DataError, match="different widths"):
        cells_from_table(pl.concat([table, other.with_columns(layer=pl.lit(3, pl.Int64))]), {"u0": "s", "u1": "s"})
    with pytest.raises(DataError, match="a cell and a speaker"):
        Cells.of(np.zeros((3, 2)), ["a"], ["s"])
