"""Figures of the study of transfer, on made-up answers."""

import numpy as np
import pytest

pytest.importorskip("benchmarks.transfer")
from benchmarks.transfer import page, summary
from benchmarks.transfer.systems import PAIRS, ROWS, experiment, study


def pair(right, seed=0, speakers=8):
    """Answers of which a share is right, for two rows and all rules."""
    random = np.random.default_rng(seed)
    label = np.arange(40 * speakers) % 4
    answers = {}
    for row, share in right.items():
        wrong = (label + random.integers(1, 4, len(label))) % 4
        said = np.where(random.random(len(label)) < share, label, wrong)
        answers |= {(row, rule): said for rule in summary.RULES}
    trials = [
        {"row": row, "outer": outer, "target": 0.3 + 0.1 * n, "source_dev": 0.5, "infomax": 0.1 * n, "dev": 0.1 * n}
        for row in right
        for outer in (0, 1)
        for n in range(6)
    ]
    return {"answers": answers, "label": label, "speaker": np.repeat(np.arange(speakers), 40), "classes": 4, "trials": trials}


def test_every_row_has_a_study_and_every_pair_an_experiment(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYSERE_CORPORA", str(tmp_path))
    monkeypatch.setenv("RAYSERE_BENCH_CACHE", str(tmp_path))
    assert len(PAIRS) == 16
    assert len({study(row) for row in ROWS}) == len(ROWS)
    from raysere.experiment import Experiment

    read = Experiment.model_validate(experiment("emodb", "urdu", "acoustic", 3))
    assert [entry.name for entry in read.search] == [study(row) for row, (space, _) in ROWS.items() if space != "layer_anchoring"]
    assert read.protocol.kind == "transfer"


def test_differences_are_paired_and_averaged_over_pairs():
    pairs = [pair({"per domain": 0.6, "layer anchoring": 0.8}), pair({"per domain": 0.5, "layer anchoring": 0.6}, seed=1)]
    found = summary.paired(pairs, "layer anchoring", "per domain")
    assert found["value"] == pytest.approx(0.15, abs=0.04)
    assert found["low"] < found["value"] < found["high"]
    assert summary.paired(pairs, "per domain", "layer anchoring")["value"] == pytest.approx(-found["value"])
    assert summary.paired(pairs, "per domain", "per domain") == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_criteria_are_correlated_in_the_direction_that_is_better():
    told = summary.agreement(pair({"per domain": 0.6})["trials"])
    assert told["infomax"] == pytest.approx(1.0)
    assert told["dev"] == pytest.approx(-1.0), "a lower risk is better, and here it goes with lower scores"
    assert "source_dev" not in told, "it is the same for all"


def test_page_shows_what_there_is():
    one = pair({"per domain": 0.6, "layer anchoring": 0.8})
    figures = summary.figures(one)
    assert figures["layer anchoring"]["trials"] == 6
    assert figures["layer anchoring"]["low"] < figures["layer anchoring"]["raysere"] < figures["layer anchoring"]["high"]
    shown = {"value": 0.2, "low": 0.1, "high": 0.3}
    found = {
        "pairs": {"emodb-emovo": figures, "emodb-urdu": figures},
        "against": {"layer anchoring": {"per domain": {"seen": shown}}},
        "agreement": {"infomax": 0.5},
    }
    text = page.draw({"features": {"speech": found}})
    assert "| layer anchoring | per domain | +.200 [+.100, +.300] | - |" in text
    assert "6 trials of each row" in text
    assert "### EmoDB to URDU" in text
    assert "infomax +0.50" in text
    assert "Not measured yet" in page.draw({"features": {}})
