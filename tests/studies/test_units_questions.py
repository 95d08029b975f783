"""Q1 to Q4 on small tables of counts, each against a brute force or a planted effect that only it
can see.
"""

from __future__ import annotations

import numpy as np
import pytest

from raysere.studies.units.config import UnitsConfig
from raysere.studies.units.counts import SpeakerCounts
from raysere.studies.units.distances import js
from raysere.studies.units.questions import Pair, anchors, emotion_shifts, emotion_specific, shared_vowels, with_adjusted
from raysere.studies.units.statistics import speaker_weights
from raysere.studies.units.validation import across_languages, articulation, ranking_stability, split_half

EMOTIONS: list[str | None] = ["anger", "neutral", None]
CONFIG = UnitsConfig(permutations=199, bootstraps=300, splits=20, min_speakers=5, min_frames=100, frames_per_unit=20)


def side(language: str, phones: list[str], masses: np.ndarray, *, speakers: int = 10, frames: int = 60, spread: float = 0.0, seed: int = 0):
    """Counts of speakers who share the masses (phones, emotions, K), or, with a spread, mix in a
    taste of their own.
    """
    rng = np.random.default_rng([seed, *language.encode()])
    counts = np.zeros((speakers, len(phones), len(EMOTIONS), masses.shape[-1]), dtype=np.int64)
    for speaker in range(speakers):
        taste = rng.dirichlet(np.full(masses.shape[-1], 0.3))
        for phone in range(len(phones)):
            for emotion in range(2):
                p = (1 - spread) * masses[phone, emotion] + spread * taste
                counts[speaker, phone, emotion] = rng.multinomial(frames, p / p.sum())
    return SpeakerCounts(language, [f"{language}{n}" for n in range(speakers)], phones, EMOTIONS, counts)


def two(*peaks: int, units: int = 6) -> np.ndarray:
    """A mass with most of it on these units."""
    p = np.full(units, 0.02)
    p[list(peaks)] = 1.0
    return p / p.sum()


def test_a_vowel_that_is_similar_in_one_emotion_only() -> None:
    """The vowel e moves with anger in the second language alone; a moves alike in both; i never
    moves.
    """
    phones = ["a", "e", "i"]
    one = side("xx", phones, np.array([[two(1), two(0)], [two(2), two(2)], [two(4), two(4)]]))
    other = side("yy", phones, np.array([[two(1), two(0)], [two(3), two(2)], [two(4), two(4)]]))
    rows = {row["vowel"]: row for row in with_adjusted(emotion_specific(Pair(one, other), CONFIG), 0.05)}
    assert {vowel: row["significant"] for vowel, row in rows.items()} == {"a": False, "e": True, "i": False}
    assert rows["e"]["difference"] == pytest.approx(rows["e"]["similarity"] - rows["e"]["similarity_reference"])
    assert rows["e"]["difference"] < -0.5
    assert rows["e"]["similarity"] == pytest.approx(1 - float(js(*(part.cell("e", "anger").sum(0) for part in (one, other)))))
    assert abs(rows["a"]["difference"]) < 0.05  # both are similar in anger and in neutral, though anger differs from neutral


def test_speakers_who_differ_are_no_movement() -> None:
    """Strong tastes of few speakers: compared with themselves they would look more alike across
    emotions than across halves.
    """
    phones = ["a", "e"]
    one = side("xx", phones, np.array([[two(0), two(0)], [two(3), two(2)]]), spread=0.9, frames=300, speakers=6)
    rows = {row["vowel"]: row for row in emotion_shifts(one, CONFIG.model_copy(update={"splits": 300}))}
    assert abs(rows["a"]["corrected_js"]) < 0.01
    assert rows["a"]["p"] > 0.05
    plain = {row["vowel"]: row for row in emotion_shifts(side("xx", phones, np.array([[two(0), two(0)], [two(3), two(2)]])), CONFIG)}
    assert plain["e"]["corrected_js"] > 0.5
    assert plain["e"]["p"] <= 0.02  # exchanging the labels of all speakers at once changes nothing, so a draw may equal it


def test_anchor_bounds_are_the_bootstrap_over_speakers_of_both_languages() -> None:
    phones = ["a", "i"]
    masses = np.array([[two(0), two(0)], [two(3), two(3)]])
    one, other = side("xx", phones, masses, spread=0.5), side("yy", phones, masses, spread=0.5)
    pair = Pair(one, other)
    rows = {row["vowel"]: row for row in anchors(pair, CONFIG)}
    rng = np.random.default_rng([CONFIG.seed, 4, *pair.seed])
    draws = [speaker_weights(10, CONFIG.bootstraps, rng) for _ in range(2)]
    for vowel in phones:
        values = [
            1 - float(js((a[:, None] * one.phone(vowel)).sum(0), (b[:, None] * other.phone(vowel)).sum(0)))
            for a, b in zip(*draws, strict=True)
        ]
        assert rows[vowel]["bound"] == pytest.approx(np.quantile(values, 0.05))
        assert rows[vowel]["bound"] < rows[vowel]["similarity"]
        by_emotion = [float(1 - js(one.cell(vowel, name).sum(0), other.cell(vowel, name).sum(0))) for name in ("anger", "neutral")]
        assert rows[vowel]["mean_by_emotion"] == pytest.approx(np.mean(by_emotion))
        assert rows[vowel]["sd_by_emotion"] == pytest.approx(np.std(by_emotion))
        drawn = [
            [
                float(1 - js((a[:, None] * one.cell(vowel, name)).sum(0), (b[:, None] * other.cell(vowel, name)).sum(0)))
                for name in ("anger", "neutral")
            ]
            for a, b in zip(*draws, strict=True)
        ]
        bound = np.quantile(np.mean(drawn, 1) - np.std(drawn, 1), 0.05)
        assert rows[vowel]["bound_by_emotion"] == pytest.approx(bound)
        rival = phones[1 - phones.index(vowel)]
        assert rows[vowel]["margin"] == pytest.approx(
            rows[vowel]["similarity"] - 1 + float(js(one.phone(vowel).sum(0), other.phone(rival).sum(0)))
        )


def test_anchors_need_frames_and_speakers() -> None:
    masses = np.array([[two(0), two(0)]])
    few = side("yy", ["a"], masses, speakers=4)
    (row,) = anchors(Pair(side("xx", ["a"], masses), few), CONFIG)
    assert (row["eligible"], row["speakers"]) == (False, 4)
    (row,) = anchors(Pair(side("xx", ["a"], masses), side("yy", ["a"], masses)), CONFIG.model_copy(update={"min_frames": 5000}))
    assert (row["eligible"], row["frames"], row["frames_needed"]) == (False, 1200, 5000)


def test_the_margin_test_sees_a_match_and_no_more() -> None:
    """Vowels that are alike in both languages, against the same masses under the wrong names."""
    phones = ["a", "e", "i", "o"]
    masses = np.array([[two(n), two(n)] for n in range(4)])
    one = side("xx", phones, masses)
    right, _, found = shared_vowels(Pair(one, side("yy", phones, masses)), CONFIG)
    assert found["mrr"] == 1
    assert found["mrr_chance"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert all(row["p"] <= 0.01 and row["rank"] == 1 for row in right)
    wrong, matrix, found = shared_vowels(Pair(one, side("yy", phones, masses[[1, 2, 3, 0]])), CONFIG)
    assert all(row["p"] > 0.5 and row["rank"] > 1 for row in wrong)
    assert len(matrix) == 16
    assert found["mrr"] < 0.6
    assert found["p"] > 0.5


def test_rows_of_one_question_are_adjusted_together() -> None:
    rows = with_adjusted([{"p": value} for value in (0.01, 0.04, 0.03, 0.005, float("nan"))], 0.03)
    assert [row["p_adjusted"] for row in rows[:4]] == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert [row["significant"] for row in rows] == [True, False, False, True, False]


def test_checks() -> None:
    phones = ["a", "i", "u"]
    masses = np.array([[two(n), two(n)] for n in range(3)])
    one, other = side("xx", phones, masses), side("yy", phones, masses[[0, 2, 1]])
    assert split_half(one, CONFIG)["accuracy"] == 1
    same = np.array([[two(0), two(0)]] * 3)
    assert split_half(side("xx", phones, same), CONFIG)["accuracy"] < 0.7
    found = across_languages(Pair(one, other))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["mrr"] < 0.8
    wide = side("xx", phones, np.array([[two(0)] * 2, [two(1)] * 2, [two(2, 3, 4)] * 2]))
    between = side("yy", phones, np.array([[two(0)] * 2, [two(1)] * 2, [two(2, 0)] * 2]))  # nearest to a, though u is nearest to it
    assert across_languages(Pair(wide, between))["accuracy"] == pytest.approx(5 / 6)
    assert np.isnan(articulation(one, CONFIG)["correlation"])  # three vowels have no correlation to speak of
    chart = ["a", "e", "i", "o", "u"]
    row = np.array([3.0, 1.5, 0.0, 6.0, 7.5])  # along the vowel chart from front to back
    near = np.exp(-((row[:, None] - np.arange(8)) ** 2) / 4)
    vowels = side("xx", chart, np.stack([near, near], 1))
    assert articulation(vowels, CONFIG)["correlation"] > 0.3
    (stable,) = ranking_stability(
        "xx-yy", {"a": 3.0, "i": 2.0, "u": 1.0}, {"other seeds": [{"a": 3.0, "i": 2.0, "u": 1.0}, {"a": 1.0, "i": 2.0, "u": 3.0}]}
    )
    assert (stable["of"], stable["tau"]) == ("xx-yy, other seeds", 0.0)
