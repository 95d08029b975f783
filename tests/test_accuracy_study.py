"""The accuracy study's own machinery: what a baseline may see, how it normalises, how scores become
probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from benchmarks.accuracy import baselines
from benchmarks.accuracy.page import draw


@pytest.fixture
def data() -> Any:
    """Six speakers of eight clips, three classes; two outer folds of three speakers, three inner
    ones.
    """
    speaker = np.repeat(np.arange(6), 8)
    label = np.tile(np.array([0, 1, 2, 0, 1, 2, 0, 1]), 6)
    outer = (speaker >= 3).astype(int)
    inner = np.stack([np.where(outer == number, -1, speaker % 3) for number in range(2)])
    return SimpleNamespace(label=label, speaker=speaker, classes=("a", "b", "c"), outer=outer, inner=inner)


class Spy:
    """Knows the answer at one point of its grid, and notes what it was fitted on."""

    def __init__(self, data: Any) -> None:
        self.data, self.calls = data, []

    def scores(self, train: np.ndarray, test: np.ndarray, only: Any = None) -> Iterator[tuple[tuple[float], np.ndarray]]:
        self.calls.append((set(train.tolist()), set(test.tolist()), only))
        right = np.eye(3)[self.data.label[test]]
        for point, scores in (((1.0,), np.roll(right, 1, axis=1)), ((2.0,), right), ((3.0,), right)):
            if only in (None, point):
                yield point, scores


def test_a_baseline_is_chosen_by_inner_folds_and_never_sees_test_speakers(data: Any) -> None:
    spy = Spy(data)
    scored = baselines.nested(spy, data)
    assert (scored.test.argmax(axis=1) == data.label).all()
    assert scored.chosen == [[2.0, 1.0], [2.0, 1.0]]  # of equals the first
    for number in range(2):
        tested = set(np.flatnonzero(data.outer == number).tolist())
        calls = spy.calls[4 * number : 4 * number + 4]
        for train, dev, only in calls[:3]:
            assert not train & dev
            assert not (train | dev) & tested
            assert only is None
            assert not {data.speaker[row] for row in train} & {data.speaker[row] for row in dev}
        train, test, only = calls[3]
        assert train == set(range(48)) - tested
        assert test == tested
        assert only == (2.0,)
        assert np.isnan(scored.inner[number][sorted(tested)]).all()


def test_a_speaker_is_normalised_by_its_own_rows_and_the_rest_by_training_rows(data: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 4)) * (1 + data.speaker[:, None]) + 10 * data.speaker[:, None]
    x[:, 3] = 7.0
    own = baselines.normed(x, data.speaker, np.arange(8), "speaker")
    for who in range(6):
        np.testing.assert_allclose(own[data.speaker == who][:, :3].mean(axis=0), 0, atol=1e-9)
        np.testing.assert_allclose(own[data.speaker == who][:, :3].std(axis=0), 1, atol=1e-9)
    train = np.arange(24)
    one = baselines.normed(x, data.speaker, train, "none")
    expected = (x[:, :3] - x[train, :3].mean(axis=0)) / x[train, :3].std(axis=0)
    np.testing.assert_allclose(one[:, :3], np.clip(expected, -10, 10))
    assert (one[:, 3] == 0).all()
    assert (own[:, 3] == 0).all()


def test_linear_svm_finds_classes_that_a_line_divides_and_the_rbf_one_a_ring(data: Any) -> None:
    rng = np.random.default_rng(1)
    angle = 2 * np.pi * data.label / 3
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.normal(size=(48, 2))
    assert (baselines.nested(baselines.Svm(data, x, "none"), data).test.argmax(axis=1) == data.label).all()
    turn = rng.uniform(0, 2 * np.pi, 48)
    ring = (1 + data.label)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    found = baselines.nested(baselines.Svm(data, ring, "none", baselines.GAMMAS), data).test.argmax(axis=1)
    line = baselines.nested(baselines.Svm(data, ring, "none"), data).test.argmax(axis=1)
    assert (found == data.label).mean() > 0.8 > (line == data.label).mean()


def test_a_rotation_into_the_span_of_the_training_rows_changes_no_probe(data: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    x = rng.normal(size=(48, 120)) + np.eye(120)[data.label] * 3
    train, test = np.arange(24), np.arange(24, 48)
    point = (5, "mean and std", 1e-2)
    scores = dict(baselines.Probe(data, {5: x}, "none").scores(train, test, point))[point]
    z = baselines.normed(x, data.speaker, train, "none")
    plain = LogisticRegression(C=1e-2, class_weight="balanced", max_iter=5000, tol=1e-8).fit(z[train], data.label[train])
    np.testing.assert_allclose(scores, plain.decision_function(z[test]), atol=2e-2)


def test_the_temperature_of_scores_is_found(data: Any) -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(60000, 3))
    label = (scores * 2.5 + rng.gumbel(size=scores.shape)).argmax(axis=1)  # softmax of 2.5 times the scores by construction
    assert baselines.temperature(scores, label) == pytest.approx(2.5, rel=0.03)


def test_the_average_is_the_mean_of_probabilities(data: Any) -> None:
    rng = np.random.default_rng(4)
    parts = []
    for _ in range(2):
        inner = rng.normal(size=(2, 48, 3)) + 2 * np.eye(3)[data.label]
        inner[data.inner < 0] = np.nan
        parts.append(baselines.Scored(rng.normal(size=(48, 3)), inner, [None, None]))
    both = baselines.average(data, parts)
    scale = [[baselines.temperature(part.inner[o][data.inner[o] >= 0], data.label[data.inner[o] >= 0]) for part in parts] for o in (0, 1)]
    row, outer = 30, 1
    expected = sum(np.exp(s * part.test[row]) / np.exp(s * part.test[row]).sum() for s, part in zip(scale[outer], parts, strict=True)) / 2
    np.testing.assert_allclose(np.exp(both.test[row]), expected)


def test_a_class_without_training_rows_is_never_chosen() -> None:
    scores = baselines.whole(np.array([[0.1, -5.0]]), np.array([0, 2]), 3)
    assert scores[0, 1] < -100
    assert scores[0, 2] == -5.0
    np.testing.assert_allclose(baselines.whole(np.array([2.0]), np.array([0, 1]), 2), [[-2.0, 2.0]])


def test_the_page_says_the_difference_and_the_share_of_the_error_that_is_gone() -> None:
    against = {"system": "probe", "normalise": "none", "value": 0.05, "low": 0.01, "high": 0.09, "error_reduction": 0.25}
    rows = [
        {"system": "probe", "normalise": "none", "value": 0.8, "low": 0.7, "high": 0.9},
        {"system": "speech", "normalise": "none", "value": 0.85, "low": 0.8, "high": 0.9, "against": {"same normalisation": against}},
    ]
    corpus = {"title": "T", "classes": ["a", "b"], "utterances": 9, "speakers": 3, "outer_folds": 3, "rows": rows}
    page = draw({"corpora": {"t": corpus}})
    assert "| .850 [.800, .900] | .850 |" in page
    assert "+.050 [+.010, +.090] | 25% |" in page
