import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysere.base.errors import ConfigError
from raysere.training.samplers import BALANCED_FROM, Sampler, balanced_at, fold_generator, seed_of

LABEL = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)


def test_natural_is_a_permutation():
    order = Sampler("natural", LABEL, 16).order(0, fold_generator(1, 0))
    assert sorted(order.tolist()) == list(range(100))
    assert order.tolist() != list(range(100))


def test_balanced_takes_every_class_equally_often_and_every_row_by_turns():
    order = Sampler("balanced", LABEL, 16).order(0, fold_generator(1, 0))
    assert len(order) == 100
    counts = torch.bincount(LABEL[order])
    assert counts.max() - counts.min() <= 1
    times = torch.bincount(order, minlength=100)
    assert times[:60].max() == 1
    assert set(times[90:].tolist()) <= {3, 4}


def test_items_without_a_class_are_one_more_group():
    label = torch.cat([LABEL, torch.full((80,), -1)])
    order = Sampler("balanced", label, 16).order(0, fold_generator(1, 0))
    assert int((label[order] == -1).sum()) == 45


def test_natural_then_balanced_turns_at_epoch_4():
    assert [balanced_at("natural_then_balanced", epoch) for epoch in range(6)] == [False] * BALANCED_FROM + [True] * 2
    sampler = Sampler("natural_then_balanced", LABEL, 16)
    assert torch.bincount(LABEL[sampler.order(3, fold_generator(0, 0))]).tolist() == [60, 30, 10]
    assert torch.bincount(LABEL[sampler.order(4, fold_generator(0, 0))]).max() <= 34


def test_a_sampler_of_classes_needs_classes():
    with pytest.raises(ConfigError, match="needs classes"):
        Sampler("balanced", torch.full((5,), -1), 2)
    Sampler("natural", torch.full((5,), -1), 2)


@given(st.integers(1, 300), st.integers(1, 70))
@settings(max_examples=80, deadline=None)
def test_cuts_cover_the_epoch_without_a_tiny_last_batch(items, batch):
    cuts = Sampler("natural", torch.zeros(items, dtype=torch.long), batch).cuts()
    assert sum(cuts) == items
    assert max(cuts) <= max(batch + 2, 2)
    assert len(cuts) == 1 or batch < 3 or cuts[-1] > 2


def test_seeds_differ_by_fold_and_do_not_depend_on_order():
    assert len({seed_of(seed, fold) for seed in range(20) for fold in range(10)}) == 200
    assert torch.equal(torch.rand(3, generator=fold_generator(5, 2)), torch.rand(3, generator=fold_generator(5, 2)))
    assert not torch.equal(torch.rand(3, generator=fold_generator(5, 2)), torch.rand(3, generator=fold_generator(2, 5)))
