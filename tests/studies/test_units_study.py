"""The study on planted data: units, shared vowels and movements with emotion are found again; what
may not be asked is refused.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from test_units_kmeans import spec_of

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.ipa import ipa_phones
from raysere.features.views import FeatureView
from raysere.nn.frame_units import FrameUnits, frame_norm
from raysere.studies.units.config import UnitsConfig, units_config
from raysere.studies.units.counts import PhoneFrames, SpeakerCounts, balanced, count_units
from raysere.studies.units.files import read_units, write_units
from raysere.studies.units.inventory import floor_message, inventories, overlaps
from raysere.studies.units.page import write_units_page
from raysere.studies.units.study import UnitsResult, anchor_vowels, frames_by_phone, study_units
from raysere.studies.units.subsets import subset

UNITS, DIM, STEP = 10, 6, 0.01
VOWELS = ["a", "e", "i", "o", "u"]
SHARED = {"a", "i"}  # of the same units in both languages
DRIFT = {"a": 0.0, "i": 0.0, "e": 0.4, "o": 0.7, "u": 1.0}  # how much of a vowel's mass is elsewhere in the second language
MOVED = {("a", "anger"), ("o", "anger"), ("o", "sadness")}
EMOTIONS = ("neutral", "anger", "sadness")
CENTRES = np.random.default_rng(0).normal(0, 6, (UNITS, DIM))
QUICK = UnitsConfig(units=UNITS, seeds=2, permutations=199, bootstraps=100, splits=10, layer_units=UNITS, min_speakers=6)


def _masses(language: str, vowel: str, emotion: str) -> np.ndarray:
    """Two units of its own for each vowel; in the second language a part of the mass lies on those
    of the vowel two places on.
    """
    own = 2 * VOWELS.index(vowel)
    p = np.full(UNITS, 0.01)
    p[own], p[own + 1] = 0.5, 0.4
    if language == "yy":
        p = (1 - DRIFT[vowel]) * p + DRIFT[vowel] * np.roll(p, 4)
    if (vowel, emotion) in MOVED:
        p = 0.6 * p + 0.4 * np.roll(p, 1)
    return p / p.sum()


def planted(*, languages: tuple[str, ...] = ("xx", "yy"), speakers: int = 8, frames: int = 30) -> tuple[FeatureView, pl.DataFrame]:
    rng = np.random.default_rng(1)
    rows, arrays = [], []
    for language in languages:
        for speaker in range(speakers):
            for emotion in EMOTIONS:
                for take in range(3):
                    order = rng.permutation(VOWELS)
                    drawn = np.concatenate([rng.choice(UNITS, frames, p=_masses(language, vowel, emotion)) for vowel in order])
                    values = CENTRES[drawn] + rng.normal(0, 0.4, (len(drawn), DIM)) + rng.normal(0, 0.1, DIM)
                    pause = rng.normal(0, 6, (5, DIM))
                    arrays.append(np.concatenate([values, pause]).astype(np.float32))
                    phones = [
                        {"label": str(vowel), "start_s": place * frames * STEP, "end_s": (place + 1) * frames * STEP}
                        for place, vowel in enumerate(order)
                    ]
                    name = f"{language}/{speaker}{emotion}{take}"
                    rows.append((name, language, language, f"{language}/{speaker}", emotion, phones))
    names = ("utterance", "corpus", "language", "speaker", "emotion", "phones")
    table = pl.DataFrame({column: [row[place] for row in rows] for place, column in enumerate(names)})
    return FeatureView.from_arrays(spec_of(DIM), [row[0] for row in rows], {0: arrays}), table


@pytest.fixture(scope="module")
def data() -> tuple[FeatureView, pl.DataFrame]:
    return planted()


@pytest.fixture(scope="module")
def result(data: tuple[FeatureView, pl.DataFrame]) -> UnitsResult:
    view, table = data
    return study_units(view, table, ipa_phones(table), (STEP / 2, STEP), QUICK)


def f1(found: set, planted_set: set) -> float:
    hits = len(found & planted_set)
    return 2 * hits / (len(found) + len(planted_set))


def test_the_planted_units_are_found(data: tuple[FeatureView, pl.DataFrame], result: UnitsResult) -> None:
    """Every planted centre has a unit of its own, the same one in both languages although each is
    normalised by itself.
    """
    view, table = data
    norm = frame_norm(view, 0, "corpus", table["corpus"].to_list(), table["speaker"].to_list())
    found = [
        result.codebook.units(torch.from_numpy(((CENTRES - shift) / scale).astype(np.float32)))
        for shift, scale in zip(norm.shift, norm.scale, strict=True)
    ]
    assert sorted(found[0]) == list(range(UNITS))
    assert np.mean(found[0] == found[1]) >= 0.9
    quality = dict(result.tables["quality"].select("language", "pnmi").iter_rows())
    assert quality["xx"] > 0.6 > quality["yy"]  # in the second language vowels share units
    assert result.tables["inventories"]["units_used"].to_list() == [UNITS, UNITS]


def test_anchors_are_the_vowels_that_were_planted_as_shared(result: UnitsResult) -> None:
    assert f1(set(anchor_vowels(result, top=2)), SHARED) == 1
    table = result.tables["anchors"]
    assert table["eligible"].all()
    assert table.filter(pl.col("vowel").is_in(list(SHARED)))["stability"].to_list() == [1, 1]
    assert (table["bound"] <= table["similarity"] + 1e-9).all()
    assert table.filter(pl.col("vowel") == "i")["mean_by_emotion"].item() > 0.95


def test_distances_grow_with_the_planted_drift(result: UnitsResult) -> None:
    rows = {row["vowel"]: row for row in result.tables["shared_vowels"].iter_rows(named=True)}
    order = ["e", "o", "u"]
    for measure, sign in [("similarity", -1), ("corrected_similarity", -1)] + [
        (name, 1) for name in ("hellinger", "tv", "cosine", "kl", "weighted_js")
    ]:
        values = [sign * rows[vowel][measure] for vowel in ("a", *order)]
        assert all(one < other for one, other in pairwise(values)), measure
    for measure in ("emd", "frechet", "mmd"):  # these know how far the units lie apart, so drifts of different vowels are not in one order
        assert max(rows[vowel][measure] for vowel in SHARED) < min(rows[vowel][measure] for vowel in order), measure
    agreement = result.tables["identification"]["agreement_with_frechet"].item()
    assert agreement > 0.2
    assert any("disagree" in message for message in result.messages) == (agreement < 0.5)


def test_only_vowels_that_match_their_namesake_are_significant(result: UnitsResult) -> None:
    found = result.tables["shared_vowels"].filter("significant")["vowel"].to_list()
    assert set(found) >= SHARED
    assert "u" not in found  # all of its mass is another vowel's
    assert result.tables["identification"]["mrr"].item() > result.tables["identification"]["mrr_chance"].item()


def test_movements_with_emotion_are_the_planted_ones(result: UnitsResult) -> None:
    table = result.tables["emotion_shifts"]
    for language in ("xx", "yy"):
        found = {
            (row["vowel"], row["emotion"]) for row in table.filter("significant", pl.col("language") == language).iter_rows(named=True)
        }
        assert f1(found, MOVED) >= 0.85
    still = [row["corrected_js"] for row in table.iter_rows(named=True) if (row["vowel"], row["emotion"]) not in MOVED]
    moved = [row["corrected_js"] for row in table.iter_rows(named=True) if (row["vowel"], row["emotion"]) in MOVED]
    plain = [row["js"] for row in table.iter_rows(named=True) if (row["vowel"], row["emotion"]) not in MOVED]
    assert abs(np.mean(still)) < 0.002 < 0.004 < np.mean(plain), "the correction takes away what the number of frames alone makes"
    assert min(moved) > max(still) + 0.02


def test_validation_passes_on_clean_data(result: UnitsResult) -> None:
    checks = {(row["check"][:2], row["of"]): row for row in result.tables["validation"].iter_rows(named=True)}
    assert checks["V1", "xx"]["accuracy"] == 1
    assert checks["V1", "xx"]["chance"] == 0.2
    assert checks["V2", "xx-yy"]["mrr"] > 0.6
    assert checks["V6", "xx-yy, other seeds"]["tau"] > 0.5


def test_counts_are_the_frames(data: tuple[FeatureView, pl.DataFrame], result: UnitsResult) -> None:
    view, table = data
    counts = result.counts
    assert counts.schema["n"] == pl.Int64
    assert counts["n"].sum() == int(view.lengths(np.arange(len(view))).sum())
    assert counts.filter(pl.col("phone").is_null())["n"].sum() == 5 * len(view)
    by_cell = counts.drop_nulls("phone").group_by("language", "speaker", "phone", "emotion").agg(pl.col("n").sum())
    assert by_cell.height == 2 * 8 * 5 * 3
    assert by_cell["n"].unique().to_list() == [90]
    kept = frames_by_phone(view, table, PhoneFrames.of(ipa_phones(table), (STEP / 2, STEP)))
    assert kept["n"].sum() == counts["n"].sum()
    assert result.tables["frames"]["share"].unique().to_list() == pytest.approx([150 / 155])


def test_boundary_frames_may_be_left_out(data: tuple[FeatureView, pl.DataFrame]) -> None:
    view, table = data
    near = PhoneFrames.of(ipa_phones(table), (STEP / 2, STEP), 0.02)
    codes = near.of_utterance(view.utterances[0], 155)
    assert (codes >= 0).sum() == 5 * (30 - 4)
    assert (codes[:2] == -1).all()


def test_too_many_units_are_refused_with_what_they_would_need(data: tuple[FeatureView, pl.DataFrame]) -> None:
    view, table = data
    with pytest.raises(DataError, match="needs 50000 frames of a vowel, and the most frequent vowel has 2160") as error:
        study_units(view, table, ipa_phones(table), (STEP / 2, STEP), QUICK.model_copy(update={"units": 1000}))
    assert "--units 43" in str(error.value)


def test_cells_without_frames_enough_are_nan_with_their_count(data: tuple[FeatureView, pl.DataFrame]) -> None:
    """30 units bear the 2160 frames of a vowel and not the 720 of a vowel in an emotion."""
    view, table = data
    found = study_units(view, table, ipa_phones(table), (STEP / 2, STEP), QUICK.model_copy(update={"units": 30, "seeds": 1}))
    shifts = found.tables["emotion_shifts"]
    assert shifts["js"].is_nan().all()
    assert shifts["p_adjusted"].is_nan().all()
    assert shifts["frames"].unique().to_list() == [720]
    assert shifts["frames_needed"].unique().to_list() == [1500]
    assert found.tables["shared_vowels"]["similarity"].is_finite().all()
    assert not found.tables["anchors"]["eligible_by_emotion"].any()
    assert any("with 14 units one has" in message for message in found.messages)


def test_anchors_read_no_emotion(data: tuple[FeatureView, pl.DataFrame]) -> None:
    """With the labels of one language shuffled, and a codebook that is learned without labels, the
    bounds stay as they are.
    """
    view, table = data
    shuffled = table.with_columns(
        emotion=pl.Series(np.random.default_rng(0).permutation(table["emotion"].to_numpy()).tolist(), dtype=pl.String)
    )
    norm = frame_norm(view, 0, "corpus", table["corpus"].to_list(), table["speaker"].to_list())
    book = FrameUnits((CENTRES / 6).astype(np.float32), 0, "corpus", view.spec.key)
    bounds = []
    for one in (table, shuffled):
        (counts,) = count_units(view, [book], norm, one, PhoneFrames.of(ipa_phones(one), (STEP / 2, STEP)))
        from raysere.studies.units.questions import Pair, anchors

        pair = Pair(*(SpeakerCounts.of(counts, name, VOWELS, list(EMOTIONS), UNITS) for name in ("xx", "yy")))
        bounds.append([(row["vowel"], row["bound"], row["eligible"]) for row in anchors(pair, QUICK)])
    assert bounds[0] == bounds[1]


def test_labels_of_a_target_without_labels_change_no_byte(data: tuple[FeatureView, pl.DataFrame], tmp_path: Path) -> None:
    view, table = data
    config = QUICK.model_copy(update={"unlabelled": ("yy",), "permutations": 19})
    shuffled = pl.Series(np.random.default_rng(0).permutation(table["emotion"].to_numpy()).tolist(), dtype=pl.String)
    other = table.with_columns(emotion=pl.when(pl.col("corpus") == "yy").then(shuffled).otherwise(pl.col("emotion")))
    for name, one in (("a", table), ("b", other)):
        found = study_units(view, one, ipa_phones(one), (STEP / 2, STEP), config)
        found.meta["seconds"] = 0.0
        write_units(found, tmp_path / name)
        assert set(anchor_vowels(found, top=2)) == SHARED
        cells = found.codebook.meta["cells"]
        assert sum(count for cell, count in cells.items() if cell.startswith("xx ")) == cells["yy"]  # languages count alike
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 10
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path
    with pytest.raises(DataError, match="no corpus 'zz'"):
        study_units(view, table, ipa_phones(table), (STEP / 2, STEP), QUICK.model_copy(update={"unlabelled": ("zz",)}))


def test_without_phones_only_inventories_are_compared(data: tuple[FeatureView, pl.DataFrame]) -> None:
    view, table = data
    bare = table.with_columns(phones=pl.lit(None, dtype=table.schema["phones"]))
    found = study_units(view, bare, ipa_phones(bare), (STEP / 2, STEP), QUICK)
    assert set(found.tables) == {"frames", "inventories", "overlaps"}
    assert "No utterance has phones" in found.messages[0]
    assert found.tables["overlaps"]["overlap"].item() > 0.7
    with pytest.raises(DataError, match="no anchors"):
        anchor_vowels(found)


def _usage(rows: list[tuple[str, str, int, int]]) -> pl.DataFrame:
    columns = {"corpus": pl.String, "language": pl.String, "unit": pl.Int32, "n": pl.Int64}
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_inventories_by_hand() -> None:
    counts = _usage([("c1", "xx", 0, 60), ("c1", "xx", 1, 40), ("c2", "xx", 0, 100), ("c3", "yy", 1, 10), ("c3", "yy", 2, 90)])
    rows = {row["language"]: row for row in inventories(counts, 4)}
    assert (rows["xx"]["frames"], rows["xx"]["units_used"]) == (200, 2)
    assert rows["xx"]["own_units"] == rows["yy"]["own_units"] == 0.25  # units 0 and 2; unit 1 is shared, unit 3 nobody's
    assert np.isnan(inventories(_usage([("c", "xx", 0, 5)]), 4)[0]["own_units"])
    config = UnitsConfig(frames_per_unit=1)
    found = {(row["a"], row["b"]): row["overlap"] for row in overlaps(counts, 4, config)}
    assert set(found) == {("xx", "yy"), ("c1", "c2")}  # of corpora only those of one language
    assert 0 < found["xx", "yy"] < found["c1", "c2"] < 1
    assert "xx come from more than one corpus" in floor_message(counts)
    assert "not separable" in floor_message(counts.filter(pl.col("corpus") != "c2"))


def _said(rows: str) -> pl.DataFrame:
    """Utterances written as sentence, emotion, sex: ``aNf`` ."""
    words = rows.split()
    return pl.DataFrame(
        {
            "utterance": [f"c/{number}" for number in range(len(words))],
            "corpus": ["c"] * len(words),
            "sex": [{"f": "female", "m": "male"}.get(word[2]) for word in words],
            "transcript": [None if word[0] == "-" else word[0] for word in words],
            "emotion": [None if word[1] == "-" else word[1] for word in words],
        },
        schema_overrides={"sex": pl.String, "transcript": pl.String, "emotion": pl.String},
    )


def test_the_same_sentences_in_every_emotion() -> None:
    table = _said("aNf aNf aWf aWm aWf bNf cWf -Nf a-f")
    kept = subset(table, UnitsConfig(same_sentences=True))
    assert kept.group_by("transcript", "emotion").len().sort("emotion").rows() == [("a", "N", 2), ("a", "W", 2)]
    both = pl.concat([table, _said("a-f b-f").with_columns(corpus=pl.lit("d"), utterance=pl.concat_str(pl.lit("d"), "utterance"))])
    assert subset(both, UnitsConfig(same_sentences=True))["corpus"].to_list().count("d") == 2  # no emotions there to be balanced
    assert subset(table, UnitsConfig(sex="male"))["utterance"].to_list() == ["c/3"]
    assert subset(table, UnitsConfig()).equals(table)
    with pytest.raises(DataError, match="No sentence"):
        subset(_said("aNf bWf"), UnitsConfig(same_sentences=True))
    with pytest.raises(DataError, match="spoken by: other") as error:
        subset(table, UnitsConfig(sex="other"))
    assert "female, male" in str(error.value)


def test_balanced_speakers_count_alike() -> None:
    table = balanced(np.array([[[80, 20]], [[5, 5]], [[100, 900]]]))
    assert table[:, 0].tolist() == [[0.8, 0.2], [0, 0], [0.1, 0.9]]


def test_the_folder_is_the_result(result: UnitsResult, tmp_path: Path) -> None:
    folder = write_units(result, tmp_path / "study", experiment="planted")
    again = read_units(folder)
    assert again.counts.equals(result.counts)
    assert again.config == result.config
    assert anchor_vowels(again, "xx", "yy", top=2) == anchor_vowels(result, top=2)
    page = write_units_page(folder)
    text = page.read_text()
    assert "anchors, xx-yy" in text
    assert "src=" not in text
    assert "http" not in text.replace("http-equiv", "")
    figures = {path.name for path in (folder / "figures").glob("*.svg")}
    assert {"vowels-xx-yy.svg", "anchors-xx-yy.svg", "overlap.svg", "emotion-shifts-xx.svg"} <= figures
    import xml.etree.ElementTree as ElementTree

    for path in (folder / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
        assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}", "a file of its own has a size"
    with pytest.raises(MissingFileError):
        write_units_page(tmp_path)
    (folder / "units.json").write_text('{"format": "other"}')
    with pytest.raises(ConfigError, match="other"):
        read_units(folder)


def test_wrong_settings_name_the_field() -> None:
    with pytest.raises(ConfigError, match="permutations"):
        units_config({"permutations": 1})
    with pytest.raises(ConfigError, match="wrong"):
        units_config({"wrong": 1})


def test_seeds_and_draws_repeat(data: tuple[FeatureView, pl.DataFrame], result: UnitsResult) -> None:
    view, table = data
    again = study_units(view, table, ipa_phones(table), (STEP / 2, STEP), QUICK)
    for name in result.tables:
        assert again.tables[name].equals(result.tables[name], null_equal=True), name
