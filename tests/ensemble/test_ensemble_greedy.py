"""Step 5: greedy selection, plain and bagged."""

from __future__ import annotations

import time

import numpy as np
import pytest

from raysere.base.errors import DataError
from raysere.ensemble.fit.calibration import log_softmax
from raysere.ensemble.fit.exact_argmax import FixedPoint, Running, Workspace
from raysere.ensemble.fit.greedy import Candidates, GreedyParams, contributions, draw_bag, greedy_path, greedy_weights, prune, thread_count
from raysere.ensemble.fit.objective import Objective
from raysere.training.metrics import uar

UAR = Objective("uar")
PLAIN = GreedyParams(bags=0)


def _library(toy, skills, *, items=300, speakers=10, seed=0, log_pool=False, ids=None):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 4, items)
    logp = log_softmax(np.stack([toy.logits(label, skill, generator) for skill in skills])).astype(np.float32)
    return _candidates(logp, label, generator.integers(0, speakers, items), log_pool, ids)


def _candidates(logp, label, group, log_pool=False, ids=None, present=None):
    present = np.ones(logp.shape[:2], bool) if present is None else present
    scores = contributions(logp, present, np.ones(logp.shape[2]), log_pool=log_pool)
    return Candidates(scores, present, label, group, np.ones(len(label)), ids or [f"m{m:03d}" for m in range(len(logp))], log_pool)


def _reorder(candidates, order):
    return Candidates(
        np.ascontiguousarray(candidates.scores[:, order]),
        candidates.present[order],
        candidates.label,
        candidates.group,
        candidates.item_weights,
        [candidates.ids[m] for m in order],
        candidates.log_pool,
    )


def test_a_perfect_member_among_random_ones_gets_all_the_weight(toy):
    library = _library(toy, [0.0] * 15 + [40.0] + [0.0] * 14)
    weights = greedy_weights(library, UAR, PLAIN)
    assert weights[15] == 1.0


@pytest.mark.parametrize("bags", [0, 6])
@pytest.mark.parametrize("log_pool", [False, True])
def test_the_order_of_members_does_not_matter(toy, bags, log_pool):
    library = _library(toy, np.linspace(0.2, 1.2, 12), log_pool=log_pool)
    order = np.random.default_rng(7).permutation(12)
    params = GreedyParams(bags=bags, seed=3)
    assert np.array_equal(greedy_weights(library, UAR, params)[order], greedy_weights(_reorder(library, order), UAR, params))


@pytest.mark.parametrize("bags", [0, 6])
def test_copies_in_the_library_do_not_change_the_pooled_prediction(toy, bags):
    library = _library(toy, np.linspace(0.4, 1.2, 8))
    doubled = _reorder(library, np.array([0, 1, 2, 3, 4, 5, 6, 7, 7, 7, 6]))
    doubled = Candidates(
        doubled.scores, doubled.present, doubled.label, doubled.group, doubled.item_weights, [*library.ids, "m007x", "m007y", "m006x"]
    )
    params = GreedyParams(bags=bags)
    pooled = np.tensordot(library.scores, greedy_weights(library, UAR, params), axes=(1, 0))
    assert np.allclose(pooled, np.tensordot(doubled.scores, greedy_weights(doubled, UAR, params), axes=(1, 0)))


def test_the_same_seed_gives_the_same_weights_and_another_one_others(toy):
    library = _library(toy, [0.8] * 20)
    first = greedy_weights(library, UAR, GreedyParams(bags=5, seed=1))
    assert np.array_equal(first, greedy_weights(library, UAR, GreedyParams(bags=5, seed=1)))
    assert not np.array_equal(first, greedy_weights(library, UAR, GreedyParams(bags=5, seed=2)))
    assert first.sum() == pytest.approx(1)


def test_each_step_is_the_best_addition_and_the_answer_the_best_prefix(toy):
    library = _library(toy, np.linspace(0.3, 1.1, 9), items=200)
    path = greedy_path(library, UAR, GreedyParams(bags=0, steps=12, patience=12, start=2))
    running = np.zeros_like(library.scores[:, 0])
    for step, member in enumerate(path.chosen):
        values = [uar(library.label, (running + library.scores[:, m]).argmax(0), 4) for m in range(9)]
        if step >= 2:
            assert values[member] == pytest.approx(max(values))
        assert path.objective[step] == pytest.approx(values[member])
        running = running + library.scores[:, member]
    assert path.objective[path.length - 1] == pytest.approx(max(path.objective))
    assert len(path.chosen) == 12


def test_it_stops_when_nothing_is_gained(toy):
    library = _library(toy, [40.0, 40.0, 0.0])
    path = greedy_path(library, UAR, GreedyParams(bags=0, steps=50, patience=4))
    assert len(path.chosen) == 5  # the first reaches 1, four more gain nothing


def test_equal_objectives_are_parted_by_likelihood_then_by_id():
    label = np.array([0, 1, 0, 1])
    sure = np.log(np.where(np.eye(2)[label] == 1, 0.9, 0.1))
    shy = np.log(np.where(np.eye(2)[label] == 1, 0.6, 0.4))
    logp = np.stack([shy, sure]).astype(np.float32)
    group = np.arange(4)
    assert greedy_weights(_candidates(logp, label, group, ids=["a", "b"]), UAR, PLAIN).tolist() == [0, 1]
    same = np.stack([sure, sure[:, ::1] + 1e-9]).astype(np.float64)
    both = _candidates(same.astype(np.float32), label, group, ids=["z", "a"])
    assert greedy_weights(both, UAR, PLAIN).tolist() == [0, 1]


def _running(library, chosen=(), repeats=None):
    everyone = np.arange(len(library.ids))
    fixed = FixedPoint.of(library.scores, everyone, library.present, library.fallback, 51, wide=library.log_pool)
    running = Running(fixed, everyone, library.label, repeats, library.fallback, Workspace())
    for member in chosen:
        running.add(member)
    return running


def test_candidate_counts_equal_slow_ones(toy):
    library = _library(toy, [0.5, 1.0, 1.5], items=150)
    repeats = np.random.default_rng(0).integers(0, 3, 150)
    added = library.scores[:, 1] * 2
    slow = [uar(np.repeat(library.label, repeats), np.repeat((added + library.scores[:, m]).argmax(0), repeats), 4) for m in range(3)]
    running = _running(library, [1, 1], repeats)
    assert np.allclose(UAR(running.candidate_counts()), slow)
    assert UAR(running.counts()) == pytest.approx(uar(np.repeat(library.label, repeats), np.repeat(added.argmax(0), repeats), 4))


def test_of_equal_classes_the_first_is_answered():
    label = np.array([0, 1, 2, 3])
    equal = Candidates(np.ones((4, 2, 4), np.float32), np.ones((2, 4), bool), label, label, np.ones(4), ["a", "b"], fallback=3)
    for counts in (_running(equal).single_counts()[0], _running(equal, [0]).candidate_counts()[1], _running(equal, [0, 1]).counts()):
        assert (counts == np.eye(4)[:, [0]] * 0 + np.array([1, 0, 0, 0])).all()


def test_missing_predictions_count_neither_for_nor_against(toy):
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 200)
    logp = log_softmax(np.stack([toy.logits(label, 1.0, generator), toy.logits(label, 40.0, generator)])).astype(np.float32)
    present = np.ones((2, 200), bool)
    present[1, ::2] = False
    weights = greedy_weights(_candidates(logp, label, np.arange(200) % 9, present=present), UAR, PLAIN)
    assert (weights > 0).all(), "the perfect member answers one half, the other one is needed for the rest"


@pytest.mark.parametrize("log_pool", [False, True])
def test_rows_that_nobody_answers_get_the_fallback_and_the_prior(toy, log_pool):
    generator = np.random.default_rng(1)
    label = generator.integers(0, 3, 90)
    logp = log_softmax(np.stack([toy.logits(label, skill, generator, 3) for skill in (1.0, 2.0)])).astype(np.float32)
    present = generator.random((2, 90)) < 0.6
    prior = np.array([0.2, 0.3, 0.5])
    scores = contributions(logp, present, np.ones(3), log_pool=log_pool)
    library = Candidates(scores, present, label, np.arange(90) % 5, np.ones(90), ["a", "b"], log_pool, prior, 2)
    alone = [uar(label, np.where(present[m], logp[m].argmax(1), 2), 3) for m in range(2)]
    assert np.allclose(UAR(_running(library).single_counts()), alone)
    assert np.allclose(UAR(_running(library).candidate_counts()), alone)
    either = np.where(present[0] | present[1], (scores[:, 0] + scores[:, 1]).argmax(0), 2)
    second = UAR(_running(library, [0]).candidate_counts())
    assert second[1] == pytest.approx(uar(label, either, 3))
    path = greedy_path(library, UAR, GreedyParams(bags=0, steps=1, start=1))
    (chosen,) = path.chosen
    picked = np.where(present[chosen], logp[chosen, np.arange(90), label], np.log(prior)[label])
    assert path.nll[0] == pytest.approx(-picked.mean(), abs=1e-5)


def test_the_likelihood_of_a_log_pool_is_that_of_the_mean_of_those_present():
    label = np.array([0, 1])
    logp = np.log(np.array([[[0.6, 0.4], [0.3, 0.7]], [[0.9, 0.1], [0.5, 0.5]]])).astype(np.float32)
    present = np.array([[True, True], [True, False]])
    path = greedy_path(_candidates(logp, label, label, log_pool=True, present=present), UAR, GreedyParams(bags=0, steps=2, start=2))
    both = np.sqrt(np.array([0.6 * 0.9, 0.4 * 0.1]))
    expected = -(np.log(both[0] / both.sum()) + np.log(0.7)) / 2
    assert path.nll[1] == pytest.approx(expected, abs=1e-6)


# ---- against the plain algorithm -----------------------------------------------------------------


def _plain_path(library, objective, params, repeats=None):
    """Caruana's algorithm as it is written: every sum formed for all rows, in float64 and item by
    item.
    """
    classes, members, items = library.scores.shape
    rows = np.arange(items) if repeats is None else np.repeat(np.arange(items), repeats)
    scores, present = library.scores[:, :, rows].astype(np.float64), library.present[:, rows]
    label, weights = library.label[rows], library.item_weights[rows]
    prior = np.full(classes, 1 / classes) if library.prior is None else library.prior

    def judge(chosen):
        size = present[chosen].sum(0)
        total = scores[:, chosen].sum(1)
        answer = np.where(size > 0, total.argmax(0), library.fallback)
        counts = np.zeros((classes, classes))
        np.add.at(counts, (label, answer), 1)
        p = np.exp(total / np.maximum(size, 1)) if library.log_pool else total
        p = np.where(size > 0, p, prior[:, None])
        nll = np.average(-np.log(np.maximum(p[label, np.arange(len(rows))] / p.sum(0), 1e-30)), weights=weights)
        return round(float(objective(counts)), 11), round(float(nll), 9)

    order = sorted(range(members), key=lambda m: (-judge([m])[0], judge([m])[1], library.ids[m]))
    chosen, told, best, since = [], [], -np.inf, 0
    for step in range(params.steps):
        if step < min(params.start, members):
            chosen.append(order[step])
        else:
            tried = {m: judge([*chosen, m]) for m in range(members)}
            chosen.append(min(range(members), key=lambda m: (-tried[m][0], tried[m][1], library.ids[m])))
        told.append(judge(chosen))
        since = 0 if told[-1][0] > best + params.gain else since + 1
        best = max(best, told[-1][0])
        if since >= params.patience:
            break
    return chosen, min(range(len(chosen)), key=lambda i: (-told[i][0], told[i][1], i)) + 1


@pytest.mark.parametrize("seed", range(60))
def test_it_chooses_what_the_plain_algorithm_chooses(seed):
    """Made-up problems with exact ties (coarse contributions), missing predictions, repeats and
    unanswered rows.
    """
    generator = np.random.default_rng(seed)
    classes, members, items = generator.integers(2, 10), generator.integers(1, 9), generator.integers(3, 60)
    log_pool, coarse = bool(seed % 3 == 0), bool(seed % 2)
    label = generator.integers(0, classes, items)
    logits = generator.normal(size=(members, items, classes)) + generator.uniform(0, 1.5) * np.eye(classes)[label]
    present = generator.random((members, items)) < generator.choice([1.0, 0.9, 0.4])
    scores = contributions(log_softmax(logits).astype(np.float32), present, generator.uniform(0.5, 2, classes), log_pool=log_pool)
    scores = np.where(present, np.round(scores * (8 if coarse else 2**16)) / (8 if coarse else 2**16), 0).astype(np.float32)
    if not log_pool:
        scores = np.where(present, np.maximum(scores, 2.0**-3), 0).astype(np.float32)
    prior = generator.dirichlet(np.ones(classes))
    library = Candidates(
        scores,
        present,
        label,
        label,
        generator.uniform(0.5, 2, items),
        [f"m{m}" for m in generator.permutation(members)],
        log_pool,
        prior if seed % 5 else None,
        int(generator.integers(classes)),
    )
    repeats = generator.integers(0, 4, items) if seed % 4 else None
    if repeats is not None and not repeats.any():
        repeats = None
    metric = [UAR, Objective("macro_f1"), Objective("accuracy"), Objective("macro_f1", tuple(prior))][seed % 4]
    params = GreedyParams(bags=0, steps=int(generator.integers(1, 15)), start=int(generator.integers(1, 4)), patience=6)
    path = greedy_path(library, metric, params, repeats)
    assert (path.chosen, path.length) == _plain_path(library, metric, params, repeats)


def test_the_result_does_not_depend_on_the_number_of_threads(toy, monkeypatch):
    library = _library(toy, np.linspace(0.3, 1.1, 9), items=200)
    params = GreedyParams(bags=7, steps=12)
    one = greedy_weights(library, UAR, params, threads=1)
    assert np.array_equal(one, greedy_weights(library, UAR, params, threads=3))
    expected = np.zeros(9)
    for bag in range(7):
        half, repeats = draw_bag(0, bag, 9, library.group)
        part = Candidates(
            library.scores[:, half],
            library.present[half],
            library.label,
            library.group,
            library.item_weights,
            [library.ids[m] for m in half],
        )
        expected[half] += greedy_path(part, UAR, params, repeats).weights(len(half)) / 7
    assert np.allclose(one, prune(expected, params.prune))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert thread_count() == 1


def test_contributions_are_rounded_finely_and_sums_fit():
    generator = np.random.default_rng(0)
    for classes, terms, wide, kind in (
        (8, 51, False, np.int32),
        (3, 1001, False, np.int64),
        (40, 51, False, np.int64),
        (4, 51, True, np.int64),
    ):
        scores = (3 * generator.random((classes, 5, 30))).astype(np.float32)
        scores[0, 0, 0] = 3
        fixed = FixedPoint.of(scores, np.arange(5), np.ones((5, 30), bool), 0, terms, wide=wide)
        assert fixed.values.dtype == kind
        back = np.empty_like(scores, dtype=np.float64)
        places = np.broadcast_to(fixed.order, fixed.classes.shape)
        for m in range(5):
            back[fixed.classes, m, places] = fixed.values[m] * fixed.unit
        assert np.abs(back - scores).max() <= 3 * 2.0**-20
        assert int(np.abs(fixed.values).max()) * terms + (1 << fixed.bits) <= np.iinfo(kind).max


def test_small_weights_are_dropped_but_never_all():
    assert prune(np.array([0.005, 0.495, 0.5]), 0.01).tolist() == pytest.approx([0, 0.495 / 0.995, 0.5 / 0.995])
    assert prune(np.full(200, 0.005), 0.01).sum() == pytest.approx(1)


def test_an_empty_library_is_refused(toy):
    with pytest.raises(DataError, match="nothing to select"):
        greedy_path(
            Candidates(np.zeros((4, 0, 5), np.float32), np.zeros((0, 5), bool), np.zeros(5, int), np.zeros(5, int), np.ones(5), []),
            UAR,
            PLAIN,
        )


@pytest.mark.slow
def test_a_challenge_sized_library(toy):
    generator = np.random.default_rng(0)
    label = generator.integers(0, 8, 25_000)
    logp = log_softmax(generator.normal(size=(200, 25_000, 8)).astype(np.float32) + 0.5 * np.eye(8, dtype=np.float32)[label])
    library = _candidates(logp, label, np.arange(25_000) % 500)
    start = time.monotonic()
    weights = greedy_weights(library, Objective("macro_f1"), GreedyParams(bags=2))
    print(f"two bags: {time.monotonic() - start:.1f} s")
    assert weights.sum() == pytest.approx(1)
