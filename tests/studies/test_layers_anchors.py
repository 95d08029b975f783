"""Anchors by rank of relevance and similarity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raysere.base.errors import ConfigError, DataError
from raysere.nn.anchors import choose_anchors, layer_scores

NAN = float("nan")
RELEVANCE = [0.3, 0.5, 0.9, 0.8, 0.7, 0.6]
SIMILARITY = [0.9, 0.8, 0.1, 0.5, 0.6, 0.2]


def test_scores_are_ranks_and_gamma_weighs_the_similarity():
    assert layer_scores(RELEVANCE, SIMILARITY).tolist() == [1 + 6, 2 + 5, 6 + 1, 5 + 3, 4 + 4, 3 + 2]
    assert layer_scores(RELEVANCE, SIMILARITY, 0).tolist() == [1, 2, 6, 5, 4, 3]
    assert layer_scores([1, 1, 2], [5, NAN, 7]).tolist() == [1.5 + 2, 1.5 + 1, 3 + 3]  # ties share a rank, no number is the last
    assert np.array_equal(layer_scores(np.exp(RELEVANCE), np.array(SIMILARITY) * 7 - 3, 2), layer_scores(RELEVANCE, SIMILARITY, 2))


@pytest.mark.parametrize(
    ("kind", "width", "gamma", "wanted"),
    [
        ("final", 3, 1, [5]),
        ("all", 3, 1, [0, 1, 2, 3, 4, 5]),
        ("single", 3, 1, [3]),
        ("single", 3, 0, [2]),
        ("single", 3, 3, [0]),
        ("group", 3, 1, [2, 3, 4]),
        ("group", 2, 1, [3, 4]),
        ("group", 3, 3, [0, 1, 2]),
        ("topk", 2, 1, [3, 4]),
        ("topk", 3, 1, [0, 3, 4]),
        ("least_similar", 2, 1, [2, 3]),
        ("group", 99, 1, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_each_kind_takes_its_layers(kind, width, gamma, wanted):
    assert choose_anchors(RELEVANCE, SIMILARITY, kind, width, gamma) == wanted


def test_random_groups_are_windows_by_seed():
    found = [choose_anchors(RELEVANCE, SIMILARITY, "random_group", 3, seed=seed) for seed in range(40)]
    assert {tuple(one) for one in found} == {(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)}
    assert found[7] == choose_anchors(SIMILARITY, RELEVANCE, "random_group", 3, seed=7)


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(ConfigError, match=r"best.*final, single"):
        choose_anchors(RELEVANCE, SIMILARITY, "best")
    with pytest.raises(ConfigError, match="width"):
        choose_anchors(RELEVANCE, SIMILARITY, "group", 0)
    with pytest.raises(ConfigError, match="gamma"):
        choose_anchors(RELEVANCE, SIMILARITY, gamma=math.nan)
    with pytest.raises(DataError, match="one number for each layer"):
        choose_anchors(RELEVANCE, SIMILARITY[:-1])
    with pytest.raises(DataError, match="similarity"):
        choose_anchors(RELEVANCE, [NAN] * 6)
