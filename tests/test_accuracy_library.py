"""The study of the ensembler: what is searched, what is kept between starts, how pieces become
figures and a page.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sklearn")

from benchmarks.accuracy import library, library_page, library_runs
from raysere.ensemble.evaluate.claims import LABELS
from raysere.pipeline.experiment import Experiment


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("RAYSERE_CORPORA", "RAYSERE_MODELS"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("RAYSERE_BENCH_CACHE", str(tmp_path / "cache"))


def test_a_library_has_more_than_sixty_members_and_objectives_differ_in_nothing_else(cache) -> None:
    for corpus in library_runs.LIBRARIES:
        experiment = Experiment.model_validate(library_runs.library(corpus, 1))
        assert experiment.protocol.kind == "nested"
        assert sum(entry.trials for entry in experiment.search) >= 64
    assert len(library_runs.GAIN_SEEDS) >= 3
    for seed in library_runs.GAIN_SEEDS:
        one, other = (Experiment.model_validate(library_runs.gain(objective, seed, 1)) for objective in library_runs.OBJECTIVES)
        assert {entry.objective for entry in one.search} == {"score"}
        assert {entry.objective for entry in other.search} == {"ensemble_gain"}
        assert one.seed == other.seed == seed
        plain = [entry.model_copy(update={"objective": "score"}) for entry in other.search]
        assert other.model_copy(update={"name": one.name, "search": plain}) == one


def test_a_piece_is_made_anew_where_it_is_of_other_trials(cache) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(len(made))
        return {"number": made[-1]}

    assert library._once("piece", "a", make)["number"] == 0
    assert library._once("piece", "a", make)["number"] == 0
    assert library._once("piece", "b", make)["number"] == 1
    assert library._read("piece") == {"inputs": "b", "number": 1}
    assert library._read("another") is None


def test_the_spread_is_a_t_interval() -> None:
    found = library.spread([1.0, 2.0, 3.0, 6.0])  # mean 3, variance (4 + 1 + 0 + 9) / 3, t(3; .975) = 3.18245
    assert found["value"] == 3
    assert found["sd"] == pytest.approx((14 / 3) ** 0.5)
    assert found["high"] - 3 == pytest.approx(3.18245 * (14 / 12) ** 0.5, abs=1e-4)
    assert 3 - found["low"] == pytest.approx(found["high"] - 3)


def test_a_difference_is_told_by_its_interval() -> None:
    told = [
        library_page.standing({"value": 0.0, "low": low, "high": high}) for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.1))
    ]
    assert told == ["ahead", "behind", "level", "level"]
    assert library_page.standard_errors({"value": -0.02, "low": -0.0396, "high": -0.0004}) == pytest.approx(-2.0)


def test_the_page_shows_what_is_done_and_leaves_out_the_rest(cache) -> None:
    empty = {"title": "EMOVO", "library": None, "shuffled": None, "ablation": None}
    nothing = library_page.draw({"corpora": {"emovo": empty}, "gain": None})
    assert "Expected" not in nothing

    def entry(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    found = {
        "n_utterances": 90,
        "n_speakers": 6,
        "members": [64, 62],
        "stopped": 63,
        "trial_seconds": 10,
        "studies": {"pooled_small-speech": {"scores": [0.1, 0.2, 0.3, 0.4, 0.5], "seconds": 0.5}},
        "chance": {"value": 0.25},
        "systems": {name: entry(0.6) for name in LABELS},
        "difference": {f"ensemble - {name}": entry(0.03) for name in LABELS if name != "ensemble"},
        "optimism": {"in_sample": 0.7, "value": 0.1},
        "chosen": ["greedy", "stack"],
        "tried": {"greedy": 0.61},
    }
    controls = [
        {"outer": n, "held_out": 0.2 + n / 100, "low": 0.1, "high": 0.24 + n / 50, "in_sample": 0.4, "chance": 0.25, "seconds": 2.0}
        for n in (0, 1)
    ]
    rows = [
        {"variant": "the full procedure", **entry(0.6), "seconds": 3.0},
        {"variant": "8 members", **entry(0.5), "seconds": 1.0, "worth": entry(0.1)},
    ]
    seeds = [
        [dict.fromkeys(("ensemble", "best_single", "average", "score_of_members"), 0.5 + n / 10 + k / 100) for k in (0, 1)] for n in (0, 1)
    ]
    result = {
        "corpora": {"emovo": {"title": "EMOVO", "library": found, "shuffled": library._control(controls), "ablation": {"rows": rows}}},
        "gain": library._gain(seeds),
    }
    page = library_page.draw(result)
    assert "62 to 64 members in each of 2 outer folds, 50% of them stopped early" in page
    assert "| random-forest stack | .600 [.580, .620] | +.030 [+.010, +.050] | ahead |" in page
    assert "| EMOVO | 2 | .250 | .205 [" in page
    assert "| 1 of 2 |" in page, "the interval of the first shuffle ends below chance"
    assert "| 8 members | .500 [.480, .520] | +.100 [+.080, +.120] | ahead | 1.0 |" in page
    assert "| ensemble | +.010 [+.010, +.010] | .000 | ahead |" in page
    assert all(text in page for text in library_runs.EXPECTED.values())
