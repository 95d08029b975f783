"""V4, V5 and V6 by layers on planted data: the similarity follows formants where units do, and
foretells transfer where vowels do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from test_units_kmeans import spec_of

from raysere.corpora.ipa import ipa_phones
from raysere.features.spec import FeatureSpec, LayerSpec
from raysere.features.views import FeatureView
from raysere.studies.layers.probes import oracle_transfer
from raysere.studies.units.config import UnitsConfig
from raysere.studies.units.counts import SpeakerCounts
from raysere.studies.units.files import read_units, summary, write_units
from raysere.studies.units.formants import bark, vowel_places
from raysere.studies.units.page import write_units_page
from raysere.studies.units.study import UnitsResult, study_units
from raysere.studies.units.utility import VowelMeans, utility
from raysere.studies.units.validation import formant_geometry

HZ = {
    "i": (280, 2250),
    "e": (380, 2200),
    "ɛ": (550, 1850),
    "a": (750, 1300),
    "ɔ": (580, 1000),
    "o": (400, 800),
    "u": (310, 750),
    "ə": (480, 1500),
}
GRID = np.array([(f1, f2) for f1 in np.linspace(2, 8, 7) for f2 in np.linspace(6, 15, 10)])  # units as places in Bark
CONFIG = UnitsConfig(permutations=199, bootstraps=50)


def _by_formants(names: list[str]) -> SpeakerCounts:
    """Frames of vowel ``names[k]`` fall on the units near the place of the k-th vowel."""
    places = bark(np.array(list(HZ.values())))
    near = np.exp(-((places[:, None] - GRID[None]) ** 2).sum(-1) / (2 * 1.5**2))
    counts = np.round(2000 * near / near.sum(1, keepdims=True)).astype(np.int64)
    return SpeakerCounts("xx", ["xx/s"], names, ["neutral", None], np.stack([counts, 0 * counts], 1)[None])


def _places() -> pl.DataFrame:
    rows = [("u", "xx", f"xx/{speaker}", vowel, *hz) for vowel, hz in HZ.items() for speaker in range(2) for _ in range(3)]
    return vowel_places(pl.DataFrame(rows, schema=["utterance", "language", "speaker", "vowel", "f1", "f2"], orient="row"))


def test_units_that_lie_by_formants_agree_with_them_and_shuffled_ones_do_not() -> None:
    names = list(HZ)
    row = formant_geometry(_by_formants(names), _places(), CONFIG)
    assert (row["check"], row["of"], row["items"]) == ("V4 formants", "xx", 8)
    assert row["correlation"] > 0.95
    assert row["p"] < 0.01
    rng = np.random.default_rng(0)
    shuffled = [formant_geometry(_by_formants(rng.permutation(names).tolist()), _places(), CONFIG) for _ in range(12)]
    assert abs(np.mean([row["correlation"] for row in shuffled])) < 0.2
    assert np.mean([row["p"] for row in shuffled]) > 0.3
    few = formant_geometry(_by_formants(names), _places().head(3), CONFIG)
    assert few["items"] == 3
    assert np.isnan(few["correlation"])


def test_vowel_means_are_those_of_each_utterance() -> None:
    table = pl.DataFrame({"language": ["xx", "xx", "yy"], "emotion": ["anger", None, "anger"]})
    means = VowelMeans(table, [0, 2])
    frames = torch.arange(14.0).reshape(7, 2)
    means(np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 2, 0, 0, 2, 2, -1]), frames)
    means(np.array([2, 2]), np.array([1, 2]), frames[:2] + 100)
    rows, vectors = means.of(0)
    assert rows.tolist() == [0]  # utterance 1 has no emotion
    assert vectors.tolist() == [[2, 3]]
    assert means.of(2)[0].tolist() == [0, 2]
    assert means.of(2)[1].tolist() == [[2, 3], [102, 103]]
    limited = VowelMeans(pl.DataFrame({"language": ["xx"] * 50, "emotion": ["anger"] * 50}), [0], most=7)
    assert limited.kept.sum() == 7


VOWELS = ["a", "e", "i", "o", "u", "y"]
ALIKE = {vowel: 1 - place / 5 for place, vowel in enumerate(VOWELS)}  # how much of emotion and sound is the same in the other language
EMOTIONS = ("anger", "neutral", "sadness")
STEP, FRAMES, DIM = 0.01, 20, 8


def planted(layers: int = 1) -> tuple[FeatureView, pl.DataFrame]:
    """Vowels have their own places, and emotion moves them; the second language shares both as
    often as ``ALIKE`` says.
    """
    rng = np.random.default_rng(3)
    place, elsewhere = rng.normal(0, 4, (6, DIM)), rng.normal(0, 4, (6, DIM))
    moves = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2]]) @ rng.normal(size=(3, DIM))
    rows, arrays = [], []
    for language in ("xx", "yy"):
        for speaker in range(4):
            for code, emotion in enumerate(EMOTIONS):
                for take in range(6):
                    parts = []
                    for number, vowel in enumerate(VOWELS):
                        share = ALIKE[vowel] if language == "yy" else 1.0
                        middle = place[number] if rng.random() < share else elsewhere[number]
                        moved = moves[code] if rng.random() < 0.3 + 0.7 * share else moves[(code + 1) % 3]
                        parts.append(middle + moved + rng.normal(0, 1.5, DIM) + rng.normal(0, 0.5, (FRAMES, DIM)))
                    arrays.append(np.concatenate(parts).astype(np.float32))
                    phones = [{"label": v, "start_s": n * FRAMES * STEP, "end_s": (n + 1) * FRAMES * STEP} for n, v in enumerate(VOWELS)]
                    rows.append((f"{language}/{speaker}{emotion}{take}", language, language, f"{language}/{speaker}", emotion, phones))
    names = ("utterance", "corpus", "language", "speaker", "emotion", "phones")
    table = pl.DataFrame({column: [row[at] for row in rows] for at, column in enumerate(names)})
    spec = spec_of(DIM) if layers == 1 else _layered(layers)
    turned = [np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32) for _ in range(layers)]
    return FeatureView.from_arrays(spec, [row[0] for row in rows], {n: [one @ turned[n] for one in arrays] for n in range(layers)}), table


def _layered(layers: int) -> FeatureSpec:
    one = spec_of(DIM)
    first = one.layers[0]
    return FeatureSpec(**{**one.__dict__, "layers": [LayerSpec(**{**first.__dict__, "number": n}) for n in range(layers)]})


QUICK = UnitsConfig(
    units=12, seeds=2, permutations=199, bootstraps=50, splits=4, layer_units=12, frames_per_unit=10, min_speakers=2, layers_compared=2
)


@pytest.fixture(scope="module")
def data() -> tuple[FeatureView, pl.DataFrame]:
    return planted(3)


def _study(data: tuple[FeatureView, pl.DataFrame], **settings: object) -> UnitsResult:
    view, table = data
    return study_units(view, table, ipa_phones(table), (STEP / 2, STEP), QUICK.model_copy(update=settings))


@pytest.fixture(scope="module")
def result(data: tuple[FeatureView, pl.DataFrame]) -> UnitsResult:
    return _study(data)


def test_vowels_that_are_alike_transfer(result: UnitsResult) -> None:
    answers = {(row["source"], row["target"]): row for row in result.tables["ORACLE_utility"].iter_rows(named=True)}
    assert set(answers) == {("xx", "yy"), ("yy", "xx")}
    for row in answers.values():
        assert row["items"] == 6
        assert row["correlation"] > 0.8
        assert row["p"] < 0.05
        assert np.isnan(row["correlation_utterances"])  # as many of each vowel
    reached = result.tables["ORACLE_transfer"].filter(pl.col("source") == "xx").sort("vowel")
    assert reached["vowel"].to_list() == VOWELS
    assert reached["uar"][0] > 0.8
    assert reached["uar"][-1] < 0.4  # most of its emotions are another's there
    assert reached["chance"].unique().to_list() == [pytest.approx(1 / 3)]
    assert reached.select("utterances_source", "utterances_target").unique().rows() == [(72, 72)]
    inside = (pl.col("low") <= pl.col("uar") + 1e-9) & (pl.col("uar") <= pl.col("high") + 1e-9)
    assert reached.select(inside.all()).item()


def test_similarities_of_other_vowels_foretell_nothing(data: tuple[FeatureView, pl.DataFrame]) -> None:
    view, table = data
    means = VowelMeans(table, range(6))
    phone = np.tile(np.repeat(np.arange(6), FRAMES), len(view))
    means(np.repeat(np.arange(len(view)), 6 * FRAMES), phone, torch.from_numpy(view.packed(0, np.arange(len(view)))))
    codes = {vowel: code for code, vowel in enumerate(VOWELS)}
    rng = np.random.default_rng(0)
    found = [
        utility(means, table, codes, ("xx", "yy"), dict(zip(VOWELS, rng.permutation(6).astype(float), strict=True)), CONFIG)[0]
        for _ in range(12)
    ]
    assert abs(np.mean([row["correlation"] for row in found])) < 0.35
    right, rows = utility(means, table, codes, ("xx", "yy"), ALIKE, CONFIG)
    assert right["correlation"] > 0.8
    assert right["mean_uar"] == pytest.approx(np.mean([row["uar"] for row in rows]))
    at, vectors = means.of(codes["o"])
    first = np.array([table["language"][int(row)] == "xx" for row in at])
    label = np.array([EMOTIONS.index(table["emotion"][int(row)]) for row in at])
    heard = np.array([table["speaker"][int(row)] for row in at])
    forth = oracle_transfer(vectors[first], label[first], vectors[~first], label[~first], heard[~first], 3, draws=50)
    back = oracle_transfer(vectors[~first], label[~first], vectors[first], label[first], heard[first], 3, draws=50)
    assert rows[codes["o"]]["uar"] == forth.value != back.value
    assert (rows[codes["o"]]["low"], rows[codes["o"]]["high"]) == (forth.low, forth.high)
    unknown, _ = utility(means, table, codes, ("xx", "yy"), {**ALIKE, "a": float("nan")}, CONFIG)
    assert unknown["items"] == 5
    rare = table.with_columns(
        emotion=pl.when((pl.col("language") == "yy") & (pl.int_range(pl.len()) >= 76)).then(None).otherwise("emotion")
    )
    scarce = VowelMeans(rare, range(6))
    scarce(np.repeat(np.arange(len(view)), 6 * FRAMES), phone, torch.from_numpy(view.packed(0, np.arange(len(view)))))
    answer, rows = utility(scarce, rare, codes, ("xx", "yy"), ALIKE, CONFIG)
    assert answer["items"] == 0
    assert [row["utterances_target"] for row in rows] == [4] * 6


def test_it_feeds_nothing_and_can_be_left_out(data: tuple[FeatureView, pl.DataFrame], result: UnitsResult, tmp_path: Path) -> None:
    without = _study(data, oracle=False)
    assert set(result.tables) - set(without.tables) == {"ORACLE_utility", "ORACLE_transfer"}
    for name, table in without.tables.items():
        assert table.equals(result.tables[name], null_equal=True), name
    assert "ORACLE" not in summary(without)
    assert _study(data, unlabelled=("yy",)).tables.keys() == without.tables.keys()  # no emotions of one side
    folder = write_units(result, tmp_path)
    page = write_units_page(folder).read_text()
    assert "ORACLE: read with the target" in page
    assert (folder / "figures" / "ORACLE-transfer-xx-yy.svg").exists()
    assert set(summary(read_units(folder))["ORACLE"]) == {"utility", "transfer"}
    assert "ORACLE" not in write_units_page(write_units(without, tmp_path / "without")).read_text()


def test_stability_over_layers(result: UnitsResult) -> None:
    """All layers hold the same frames, turned: their units rank vowels alike."""
    rows = {row["of"]: row for row in result.tables["validation"].iter_rows(named=True) if row["check"].startswith("V6")}
    layer = result.meta["layer"]
    others = [f"xx-yy, layer {number}" for number in range(3) if number != layer]
    assert set(rows) == {"xx-yy, other seeds", "xx-yy, half of the units", *others}
    assert all(rows[name]["tau"] > 0.5 for name in others)


def test_formants_reach_the_page(data: tuple[FeatureView, pl.DataFrame], tmp_path: Path) -> None:
    view, table = data
    rows = [("u", "xx", f"xx/{speaker}", vowel, *HZ[vowel]) for vowel in "aeiou" for speaker in range(2) for _ in range(3)]
    tokens = pl.DataFrame(rows, schema=["utterance", "language", "speaker", "vowel", "f1", "f2"], orient="row")
    settings = QUICK.model_copy(update={"oracle": False, "layers_compared": 0, "layer": 0})
    found = study_units(view, table, ipa_phones(table), (STEP / 2, STEP), settings, formants=tokens)
    checks = {(row["check"], row["of"]): row for row in found.tables["validation"].iter_rows(named=True)}
    assert checks["V4 formants", "xx"]["items"] == 5
    assert checks["V4 formants", "yy"]["items"] == 0
    assert found.tables["formants"]["vowel"].to_list() == list("aeiou")
    assert not any("layer" in of for _, of in checks)
    text = write_units_page(write_units(found, tmp_path)).read_text()
    assert "where vowels lie by their formants" in text
    assert (tmp_path / "figures" / "formants-xx.svg").exists()
