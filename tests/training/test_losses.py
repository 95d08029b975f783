import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raysere.nn import losses
from raysere.training import metrics

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 1.5, 0.0], [0.0, 0.0, 1.0]])
LABEL = torch.tensor([0, 2, 1, -1])
ONE_HOT = losses.hard_targets(LABEL, 3)
PRIOR = torch.tensor([0.7, 0.2, 0.1])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_class_weights():
    assert torch.allclose(losses.class_weights(PRIOR, 1.0), 1 / (3 * PRIOR))
    assert torch.allclose(losses.class_weights(PRIOR, 0.0), torch.ones(3))
    half = losses.class_weights(PRIOR, 0.5)
    assert torch.allclose(half / half[0], (PRIOR[0] / PRIOR) ** 0.5)
    for alpha in (0.0, 0.3, 1.0):
        assert float((losses.class_weights(PRIOR, alpha) * PRIOR).sum()) == pytest.approx(1)


def test_cross_entropy_equals_torch():
    weights = torch.tensor([0.5, 1.0, 3.0])
    assert torch.allclose(losses.cross_entropy(LOGITS, ONE_HOT), F.cross_entropy(LOGITS, LABEL, ignore_index=-1))
    assert torch.allclose(losses.cross_entropy(LOGITS, ONE_HOT, weights=weights), F.cross_entropy(LOGITS, LABEL, weights, ignore_index=-1))


def test_label_smoothing_equals_torch():
    kept = LABEL >= 0
    ours = losses.cross_entropy(LOGITS, losses.smooth(ONE_HOT, 0.1))
    assert torch.allclose(ours, F.cross_entropy(LOGITS[kept], LABEL[kept], label_smoothing=0.1))
    assert losses.smooth(ONE_HOT, 0.1)[3].tolist() == [0, 0, 0]


def test_divergence_is_zero_at_the_target_and_has_the_gradient_of_soft_cross_entropy():
    votes = torch.tensor([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]])
    exact = votes.clamp_min(1e-30).log()
    assert float(losses.cross_entropy(exact, votes, divergence=True)) == pytest.approx(0, abs=1e-6)
    logits = LOGITS[:2].clone().requires_grad_()
    grads = [torch.autograd.grad(losses.cross_entropy(logits, votes, divergence=flag), logits)[0] for flag in (True, False)]
    assert torch.allclose(*grads)
    expected = (votes * (votes.clamp_min(1e-30).log() - F.log_softmax(LOGITS[:2], -1))).sum(1).mean()
    assert torch.allclose(losses.cross_entropy(LOGITS[:2], votes, divergence=True), expected)


def test_focal():
    p = F.softmax(LOGITS, -1)[torch.arange(3), LABEL[:3]]
    assert torch.allclose(losses.cross_entropy(LOGITS, ONE_HOT, gamma=2.0), ((1 - p) ** 2 * -p.log()).mean())
    sure = torch.tensor([[60.0, 0, 0]], requires_grad=True)
    losses.cross_entropy(sure, ONE_HOT[:1], gamma=0.5).backward()
    assert bool(torch.isfinite(sure.grad).all())


def test_no_target_is_no_loss():
    nothing = torch.zeros(4, 3)
    logits = LOGITS.clone().requires_grad_()
    for value in (losses.cross_entropy(logits, nothing), losses.soft_macro_f1(logits, nothing) - 1):
        assert float(value.detach()) == 0
    losses.cross_entropy(logits, nothing).backward()
    assert float(logits.grad.abs().sum()) == 0


def test_vector_scaling_and_logit_adjustment():
    delta = (0.7 / PRIOR) ** 0.3
    assert torch.allclose(losses.adjusted_logits(LOGITS, PRIOR, tau=1.0, gamma=0.3), LOGITS / delta + PRIOR.log())
    assert torch.allclose(losses.adjusted_logits(LOGITS, PRIOR, tau=0.5), LOGITS + 0.5 * PRIOR.log())
    assert losses.adjusted_logits(LOGITS, PRIOR) is LOGITS


def test_logit_adjustment_learns_a_uniform_prior():
    # with one bias a class and no input, plain cross-entropy finds log prior, the adjusted one
    # finds equal logits
    bias = torch.zeros(3, requires_grad=True)
    targets = PRIOR.unsqueeze(0)
    optimiser = torch.optim.LBFGS([bias], max_iter=100)

    def closure():
        optimiser.zero_grad()
        loss = losses.cross_entropy(losses.adjusted_logits(bias.unsqueeze(0), PRIOR, tau=1.0), targets)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert torch.allclose(bias.detach() - bias.detach().mean(), torch.zeros(3), atol=1e-3)


def test_soft_macro_f1_of_sure_predictions_is_macro_f1():
    label, predicted = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0])
    logits = 200 * F.one_hot(torch.from_numpy(predicted), 3).float()
    value = losses.soft_macro_f1(logits, losses.hard_targets(torch.from_numpy(label), 3))
    assert float(value) == pytest.approx(1 - metrics.macro_f1(label, predicted), abs=1e-6)


def test_vote_targets_fall_back_to_the_label():
    votes = torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert losses.vote_targets(torch.tensor([0, 2, -1]), votes).tolist() == [[0.5, 0.5, 0], [0, 0, 1], [0, 0, 0]]


def test_rater_dropout():
    distribution = torch.tensor([[0.6, 0.4, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).repeat(4000, 1)
    count = torch.tensor([5.0, 1.0, 0.0]).repeat(4000)
    result = losses.drop_raters(distribution, count, 0.2, generator())
    first, second, third = result[0::3], result[1::3], result[2::3]
    assert torch.allclose(first.sum(1), torch.ones(4000))
    assert float(first[:, 0].mean()) == pytest.approx(0.6, abs=0.01)  # thinning keeps the expected share
    assert first[:, 0].unique().numel() > 3
    assert torch.equal(second, distribution[1::3])  # the only rater cannot be dropped
    assert float(third.abs().sum()) == 0
    # all three votes of class 0 and both of class 1 kept or all lost, or equal thinning: P(share
    # unchanged) by enumeration
    same = sum(
        math.comb(3, a) * math.comb(2, b) * 0.8 ** (a + b) * 0.2 ** (5 - a - b) for a in range(4) for b in range(3) if a * 2 == b * 3
    )
    assert float((first[:, 0] - 0.6).abs().lt(1e-6).float().mean()) == pytest.approx(same, abs=0.03)


def test_ccc_equals_the_metric_and_leaves_missing_out():
    random = np.random.default_rng(0)
    y = random.random((50, 3)).astype(np.float32)
    x = (y + 0.2 * random.normal(size=y.shape)).astype(np.float32)
    y[random.random(y.shape) < 0.2] = np.nan
    value = losses.ccc_loss(torch.from_numpy(x), torch.from_numpy(y))
    assert float(value) == pytest.approx(1 - metrics.mean_ccc(x, y), abs=1e-5)


def test_ccc_of_perfect_predictions_costs_nothing():  # population moments: not 1/n
    y = torch.rand(8, 3, generator=generator())
    assert float(losses.ccc_loss(y, y)) == pytest.approx(0, abs=1e-6)


def test_ccc_without_targets_has_no_gradient():
    x = torch.rand(4, 2, requires_grad=True)
    target = torch.full((4, 2), float("nan"))
    target[0, 0] = 0.3  # one value has no variance
    loss = losses.ccc_loss(x, target)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(x.grad.abs().sum()) == 0
    target[1, 0] = 0.9
    y = torch.rand(4, 2, requires_grad=True)
    losses.ccc_loss(y, target).backward()
    assert float(y.grad[:2, 0].abs().sum()) > 0
    assert float(y.grad[2:].abs().sum()) == 0
    assert bool(torch.isfinite(y.grad).all())


def test_mixup():
    assert losses.mixup_draw(5, 0.0, 0.2, generator()) is None
    chance = generator()
    draws = [losses.mixup_draw(5, 0.3, 0.2, chance) for _ in range(2000)]
    taken = [draw for draw in draws if draw]
    assert len(taken) / 2000 == pytest.approx(0.3, abs=0.04)
    shares = np.array([share for share, _ in taken])
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)  # variance of Beta(a, a)
    share, order = taken[0]
    values = torch.randn(5, 4)
    assert torch.allclose(losses.mix(values, share, order), share * values + (1 - share) * values[order], atol=1e-6)
    assert torch.allclose(losses.mix(ONE_HOT[:3], 0.25, torch.tensor([1, 2, 0]))[0], torch.tensor([0.25, 0, 0.75]))


def test_attribute_mse_is_in_points_of_a_scale_of_1_to_7_and_leaves_missing_out():
    x = torch.tensor([[0.5, 0.0], [0.25, 1.0]], requires_grad=True)
    target = torch.tensor([[0.0, float("nan")], [0.5, 0.75]])
    value = losses.attribute_mse(x, target)
    on_scale = [(1 + 6 * 0.5 - 1) ** 2, (1 + 6 * 0.25 - 4) ** 2, (7 - 5.5) ** 2]
    assert float(value.detach()) == pytest.approx(sum(on_scale) / 3)
    value.backward()
    assert float(x.grad[0, 1]) == 0
    assert float(x.grad[0, 0]) == pytest.approx(36 * 2 * 0.5 / 3)
    nothing = losses.attribute_mse(x, torch.full((2, 2), float("nan")))
    assert float(nothing.detach()) == 0
    assert torch.allclose(losses.attribute_mse(torch.stack([x, x]), torch.stack([target, target])), value.expand(2))  # a value a fold
