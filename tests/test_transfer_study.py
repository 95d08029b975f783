"""Figures of the study of transfer, on made-up answers."""

import numpy as np
import pytest

pytest.importorskip("benchmarks.transfer")
from benchmarks.transfer import again, page, summary
from benchmarks.transfer.systems import PAIRS, ROWS, experiment, study


def pair(right, seed=0, speakers=8):
    """Answers of which a share is right, for two rows and all rules."""
    random = np.random.default_rng(seed)
    label = np.arange(40 * speakers) % 4
    answers = {}
    for row, share in right.items():
        wrong = (label + random.integers(1, 4, len(label))) % 4
        said = np.where(random.random(len(label)) < share, label, wrong)
        answers |= {(row, rule): said for rule in (*summary.RULES, summary.NEAR)}
    trials = [
        {"row": row, "outer": outer, "target": 0.3 + 0.1 * n, "source_dev": 0.5, "infomax": 0.1 * n, "dev": 0.1 * n}
        for row in right
        for outer in (0, 1)
        for n in range(6)
    ]
    return {
        "answers": answers,
        "label": label,
        "speaker": np.repeat(np.arange(speakers), 40),
        "classes": 4,
        "trials": trials,
        "by_id": [np.arange(len(label) // 2)[::-1], np.arange(len(label) // 2)],
        "again": {},
    }


def lines(one, row, variant="chosen", transductive=False, seeds=3, wrong=0.3):
    """What again.py would have written of a row, its first ``wrong`` answers false."""
    half = len(one["label"]) // 2
    for seed in range(seeds):
        said = one["label"].copy()
        said[: int(wrong * len(said))] = (said[: int(wrong * len(said))] + 1 + seed) % 4
        for outer in (0, 1):
            part = said[outer * half : (outer + 1) * half]
            answers = part[one["by_id"][outer]].tolist()
            yield {"row": row, "variant": variant, "transductive": transductive, "seed": seed, "outer": outer, "answers": answers}


def test_every_row_has_a_study_and_every_pair_an_experiment(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYSERE_CORPORA", str(tmp_path))
    monkeypatch.setenv("RAYSERE_BENCH_CACHE", str(tmp_path))
    assert len(PAIRS) == 16
    assert len({study(row) for row in ROWS}) == len(ROWS)
    from raysere.pipeline.experiment import Experiment

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


def test_lines_come_back_in_the_order_of_the_truth():
    one = pair({"per domain": 0.6})
    summary.add_again(one, [*lines(one, "per domain", wrong=0.25), {**next(lines(one, "mcc")), "seed": 7}])
    assert [round(float((said == one["label"]).mean()), 6) for said in one["again"]["per domain", "chosen", False]] == [0.75] * 3
    assert ("mcc", "chosen", False) not in one["again"], "one outer split of two is no answer"


def test_seeds_are_averaged_and_differences_paired():
    one = pair({"per domain": 0.6, "layer anchoring": 0.8})
    summary.add_again(one, [*lines(one, "per domain", wrong=0.5), *lines(one, "layer anchoring", wrong=0.25)])
    names = [(row, "chosen", False) for row in ("layer anchoring", "per domain")]
    mean = summary.mean_again([one], names[0])
    assert mean["value"] == pytest.approx(0.75)
    assert mean["seeds"] == pytest.approx(0.0)
    found = summary.paired_again([one, one], *names)
    assert found["value"] == pytest.approx(0.25)
    assert found["low"] < 0.25 < found["high"]


def test_a_pair_counts_when_all_rows_have_the_same_trials():
    one = pair(dict.fromkeys(ROWS, 0.6))
    assert summary.complete(one, "speech")
    assert not summary.complete(one, "acoustic"), "it has no anchors"
    assert not summary.complete(pair({"per domain": 0.6}), "speech")
    one["trials"] = one["trials"][:-2]
    assert not summary.complete(one, "speech")


def test_a_training_that_was_cut_off_is_none(tmp_path):
    kept = tmp_path / "a.jsonl"
    kept.write_text('{"key": "a", "variant": "chosen"}\n{"key": "a", "variant": "without InfoLoss"}\n{"key": "b", "vari')
    assert list(again.read(kept)) == [("a", "chosen"), ("a", "without InfoLoss")], "a change that changes nothing hides nothing"
    assert again.read(tmp_path / "none.jsonl") == {}


def test_ablations_change_what_they_name():
    changes = again.ABLATIONS["quantized codebook"]
    params = {"alignment": "code_js", "classes": "none", "info": 0.5}
    assert changes["separate codebooks"](params) == {"codebook": "separate", "alignment": "mmd"}
    assert changes["without InfoLoss"](params) == {"info": 0.0}
    assert {change for method in again.ABLATIONS for change in again.ABLATIONS[method]} >= {"without codebook", "lambda = 0, same anchors"}


def test_page_shows_what_there_is():
    one = pair({"per domain": 0.6, "layer anchoring": 0.8})
    summary.add_again(one, [*lines(one, "per domain", wrong=0.5), *lines(one, "layer anchoring", wrong=0.25)])
    summary.add_again(one, lines(one, "layer anchoring", "random group", wrong=0.75))
    found = summary.whole({"emodb-emovo": one, "emodb-urdu": one})
    assert found["pairs"]["emodb-emovo"]["layer anchoring"]["trials"] == 6
    text = page.draw({"features": {"speech": found}})
    assert "| layer anchoring | per domain | +.250 [" in text
    assert "| layer anchoring | random group | .250 | -.500 [" in text
    assert "| per domain | .500 [" in text
    assert "6 trials of each row" in text
    assert "### From EmoDB\n\n| row | to EMOVO | to URDU |" in text
    assert "infomax +1.00" in text
    assert "Not measured yet" in page.draw({"features": {}})


def test_page_shows_the_speed_beside_pooled():
    told = {"per_minute": 60.0, "worker_mb": 400.0}
    spaces = {name: {key: [value] for key, value in told.items()} for name in ("pooled", "quantized_codebook")}
    median = {"pooled": told, "quantized_codebook": {"per_minute": 45.0, "worker_mb": 420.0}}
    text = page.draw({"features": {}, "speed": {"trials": 24, "pair": "emodb-emovo", "spaces": spaces, "median": median}})
    assert "| `quantized_codebook` | 45 | 0.75 | 420 |" in text
