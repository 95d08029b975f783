"""Step 4: pools and missing members."""

from __future__ import annotations

import numpy as np

from raysere.ensemble.fit.pools import POOLS, linear, log, normal_scores, rank, row_weights, vote

P = np.array(
    [[[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]], [[0.1, 0.6, 0.3], [0.2, 0.5, 0.3]], [[0.5, 0.25, 0.25], [0.4, 0.1, 0.5]]], dtype=np.float32
)
EVERY = np.ones((3, 2), bool)
W = np.array([0.5, 0.3, 0.2])


def test_linear_and_log_pools_are_their_formulas():
    assert np.allclose(np.exp(linear(np.log(P), W, EVERY)), np.einsum("m,mnk->nk", W, P))
    product = np.prod(P.astype(float) ** W[:, None, None], axis=0)
    assert np.allclose(np.exp(log(np.log(P), W, EVERY)), product / product.sum(1, keepdims=True), atol=1e-6)


def test_one_member_is_itself_in_every_probability_pool():
    only = np.array([0.0, 1.0, 0.0])
    for name in ("linear", "log"):
        assert np.allclose(np.exp(POOLS[name](np.log(P), only, EVERY)), P[1], atol=1e-6)


def test_missing_members_are_masked_and_weights_renormalised():
    present = EVERY.copy()
    present[0, 1] = False
    assert np.allclose(np.exp(linear(np.log(P), W, present)[1]), (0.3 * P[1, 1] + 0.2 * P[2, 1]) / 0.5)
    assert np.allclose(row_weights(W, present)[:, 1], [0, 0.6, 0.4])
    present[:, 1] = False
    assert np.isnan(linear(np.log(P), W, present)[1]).all()
    assert np.isfinite(linear(np.log(P), W, present)[0]).all()
    present[:, 0] = [False, True, True]
    assert np.isnan(linear(np.log(P), np.array([1.0, 0, 0]), present)).all(), "a member without weight answers nothing"


def test_vote_is_weighted_plurality_and_ties_go_to_the_mean_probability():
    assert vote(np.log(P), np.ones(3), EVERY).argmax(1).tolist() == [0, 2]
    assert vote(np.log(P), np.array([0.1, 0.8, 0.1]), EVERY).argmax(1).tolist() == [1, 1]
    tied = vote(
        np.log(P[:2]), np.ones(2), EVERY[:2]
    )  # first item: 0 against 1, mean probabilities .4 and .4; second: 2 against 1, .35 and .4
    assert tied[1].argmax() == 1


def test_the_rank_pool_is_blind_to_monotone_maps_of_a_member():
    generator = np.random.default_rng(0)
    logp = np.log(generator.dirichlet(np.ones(3), size=(2, 50))).astype(np.float32)
    bent = logp.copy()
    bent[0] = np.exp(3 * logp[0])
    every = np.ones((2, 50), bool)
    assert np.allclose(rank(logp, np.array([0.4, 0.6]), every), rank(bent, np.array([0.4, 0.6]), every))


def test_normal_scores_are_symmetric_and_leave_absent_items_out():
    present = np.array([[True, True, True, False]])
    values = np.array([[[3.0], [1.0], [2.0], [9.0]]])
    scores = normal_scores(values, present)[0, :, 0]
    assert scores[2] == 0
    assert scores[0] == -scores[1] > 0
    assert scores[3] == 0
