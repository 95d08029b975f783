"""Domain losses: values that follow from their formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysere.nn import alignment as A


def rows(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_covariance(n, matrix, seed=0):
    """Rows whose unbiased covariance is exactly ``matrix`` and whose mean is 0."""
    x = rows(n, len(matrix), seed)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(A.covariance(x))).T
    return white @ torch.linalg.cholesky(matrix).T


@pytest.mark.parametrize(("scale", "width"), [(2.0, 256), (0.5, 8)])
def test_coral_of_two_sizes(scale, width):
    eye = torch.eye(width, dtype=torch.float64)
    found = A.coral(with_covariance(600, eye), with_covariance(700, scale**2 * eye, 1))
    assert float(found) == pytest.approx((1 - scale**2) ** 2 / (4 * width), abs=1e-9)


def test_coral_hears_neither_place_nor_order_and_grows_with_the_fourth_power():
    x, y = rows(40, 5), 1.7 * rows(50, 5, 1)
    value = float(A.coral(x, y))
    assert float(A.coral(x + 3, y - 1)) == pytest.approx(value, abs=1e-12)
    assert float(A.coral(y, x)) == pytest.approx(value, abs=1e-12)
    assert float(A.coral(3 * x, 3 * y)) == pytest.approx(81 * value, rel=1e-9)
    with_mean = A.coral(x, y, mean_term=True)
    assert float(with_mean) == pytest.approx(value + float((x.mean(0) - y.mean(0)).square().mean()), abs=1e-12)


def test_gradient_of_coral():
    x, y = rows(12, 4).requires_grad_(), rows(9, 4, 1)
    A.coral(x, y).backward()
    centred = (x - x.mean(0)).detach()
    gap = A.covariance(x.detach()) - A.covariance(y)
    expected = centred @ gap / (16 * 11)
    assert torch.allclose(x.grad, expected, atol=1e-12)


@pytest.mark.parametrize(("width", "draws"), [(32, 300), (3, 3000)])  # narrow: there d + 1 is not nearly d
def test_noise_of_coral(width, draws):
    values = [float(A.coral(rows(32, width, seed), rows(48, width, seed + 10_000))) for seed in range(draws)]
    assert np.mean(values) == pytest.approx(A.coral_noise(width, 32, 48), rel=0.05)


def test_recolouring_gives_the_target_its_moments():
    x, y = rows(60, 6) @ rows(6, 6, 2) + 2, rows(80, 6, 1) @ rows(6, 6, 3) - 1
    turn, shift = A.recolour(x, y, 0.0)
    moved = x @ turn + shift
    assert torch.allclose(A.covariance(moved), A.covariance(y), atol=1e-9)
    assert torch.allclose(moved.mean(0), y.mean(0), atol=1e-9)
    strong, _ = A.recolour(x, y, 1e9)
    assert torch.allclose(strong, torch.eye(6, dtype=torch.float64), atol=1e-6)


def test_mmd_is_about_zero_for_the_same_and_grows_with_the_gap():
    same = np.mean([float(A.mmd(rows(60, 3, seed), rows(70, 3, seed + 500))) for seed in range(60)])
    apart = [float(A.mmd(rows(60, 3), rows(70, 3, 1) + shift)) for shift in (0.5, 1.0, 2.0)]
    assert abs(same) < 0.003
    assert apart == sorted(apart)
    assert apart[0] > 0.05


def test_confusion_of_classes():
    one_hot = 400 * torch.eye(4, dtype=torch.float64).repeat(5, 1)
    assert float(A.class_confusion(one_hot)) == pytest.approx(0, abs=1e-6)
    assert float(A.class_confusion(torch.zeros(20, 4, dtype=torch.float64))) == pytest.approx(0.75, abs=1e-6)
    collapsed = torch.zeros(20, 4, dtype=torch.float64)
    collapsed[:, 2] = 30.0
    assert float(A.class_confusion(collapsed)) == pytest.approx(0.75, abs=1e-2)


def test_confusion_by_hand_and_without_gradient_through_the_weights():
    z = rows(7, 3).requires_grad_()
    p = torch.softmax(z / 2.5, 1)
    h = -(p * p.log()).sum(1)
    w = ((1 + torch.exp(-h)) / (1 + torch.exp(-h)).sum() * 7).detach()
    matrix = torch.stack([torch.stack([(w * p[:, j] * p[:, k]).sum() for k in range(3)]) for j in range(3)])
    assert torch.allclose(matrix, matrix.T)
    expected = 1 - (matrix.diagonal() / matrix.sum(1)).mean()
    value = A.class_confusion(z)
    assert value.item() == pytest.approx(expected.item(), abs=1e-7)
    first = torch.autograd.grad(value, z, retain_graph=True)[0]
    assert torch.allclose(first, torch.autograd.grad(expected, z)[0], atol=1e-7)


def test_weights_of_sure_items():
    p = torch.tensor([[1.0, 0, 0], [0.2, 0.5, 0.3]], dtype=torch.float64)
    weights = A.entropy_weights(p)
    h = float(-(p[1] * p[1].log()).sum())
    assert float(weights.sum()) == pytest.approx(2)
    assert float(weights[0] / weights[1]) == pytest.approx(2 / (1 + np.exp(-h)))


def test_entropy_and_information_of_answers():
    sure, none = 500 * torch.eye(3, dtype=torch.float64).repeat(4, 1), torch.zeros(9, 3, dtype=torch.float64)
    one = torch.zeros(9, 3, dtype=torch.float64)
    one[:, 0] = 500
    assert [float(A.entropy(x)) for x in (sure, none, one)] == pytest.approx([0, np.log(3), 0], abs=1e-9)
    assert [float(A.infomax(x)) for x in (sure, none, one)] == pytest.approx([np.log(3), 0, 0], abs=1e-9)


def test_reversed_gradient_and_ramp():
    x = rows(3, 2).requires_grad_()
    y = A.reverse_gradient(x, 0.7)
    assert torch.equal(y, x)
    (y * torch.arange(6.0).view(3, 2)).sum().backward()
    assert torch.allclose(x.grad, -0.7 * torch.arange(6.0, dtype=torch.float64).view(3, 2))
    assert A.ramp(0) == 0
    assert A.ramp(1) == pytest.approx(np.tanh(5), abs=1e-12)
    assert A.ramp(1, alpha=1.0) == pytest.approx(0.46212, abs=1e-5)


def test_a_critic_pays_the_same_for_either_domain():
    assert float(A.domain_loss(torch.zeros(3), torch.zeros(50))) == pytest.approx(np.log(2))
    assert float(A.domain_loss(torch.full((3,), 9.0), torch.full((50,), -9.0))) < 1e-3
    even = A.domain_loss(torch.tensor([1.0, -1]), torch.tensor([2.0]), (torch.ones(2), torch.ones(1)))
    assert float(even) == pytest.approx(float(A.domain_loss(torch.tensor([1.0, -1]), torch.tensor([2.0]))))


def test_products_of_features_and_classes():
    f, g = rows(6, 5), torch.softmax(rows(6, 3, 1), 1)
    outer = A.outer_map(f, g)
    assert torch.allclose(outer @ outer.T, (f @ f.T) * (g @ g.T), atol=1e-12)
    draws = []
    for seed in range(400):
        r_f, r_g = rows(5, 64, seed), rows(3, 64, seed + 1000)
        mapped = A.random_map(f, g, r_f, r_g)
        draws.append(mapped @ mapped.T)
    assert torch.allclose(torch.stack(draws).mean(0), (f @ f.T) * (g @ g.T), atol=0.25)


# ---- Jensen-Shannon ------------------------------------------------------------------------------


def test_divergence_of_histograms():
    p, q = torch.tensor([0.5, 0.5, 0, 0], dtype=torch.float64), torch.tensor([0, 0, 0.25, 0.75], dtype=torch.float64)
    assert float(A.jensen_shannon(p, q)) == pytest.approx(np.log(2))
    assert float(A.jensen_shannon(p, p)) == 0
    x = p.clone().requires_grad_()
    A.jensen_shannon(x, q).backward()
    assert torch.isfinite(x.grad).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_root_of_the_divergence_is_a_metric_and_the_divergence_is_information(seed):
    generator = np.random.default_rng(seed)
    p, q, r = torch.from_numpy(generator.dirichlet(np.full(5, 0.4), 3))
    root = [float(A.jensen_shannon(a, b).clamp_min(0).sqrt()) for a, b in ((p, q), (q, r), (p, r))]
    assert root[2] <= root[0] + root[1] + 1e-9
    assert float(A.jensen_shannon(p, q)) == pytest.approx(float(A.jensen_shannon(q, p)), abs=1e-12)
    joint = np.stack([p.numpy(), q.numpy()]) / 2
    outer = joint.sum(1, keepdims=True) * joint.sum(0)
    there = joint > 0
    assert float(A.jensen_shannon(p, q)) == pytest.approx(float((joint[there] * np.log(joint[there] / outer[there])).sum()), abs=1e-9)


def test_weighted_divergence_is_the_g_statistic():
    from scipy.stats import chi2_contingency

    counts = np.array([[30, 10, 5, 55], [12, 22, 9, 7]])
    n = counts.sum(1)
    p, q = torch.from_numpy(counts / n[:, None])
    found = 2 * n.sum() * float(A.jensen_shannon(p, q, n[0] / n.sum()))
    assert found == pytest.approx(chi2_contingency(counts, lambda_="log-likelihood", correction=False)[0], rel=1e-9)


def test_noise_of_the_divergence():
    generator = np.random.default_rng(0)
    draws = [
        float(A.jensen_shannon(*(torch.from_numpy(generator.multinomial(n, np.full(50, 1 / 50)) / n) for n in (3000, 1000))))
        for _ in range(400)
    ]
    assert A.jensen_shannon_noise(50, 3000, 1000) == pytest.approx(0.0082, abs=1e-4)
    assert np.mean(draws) == pytest.approx(0.0082, rel=0.05)


def test_an_offset_makes_answers_even():
    logits = rows(200, 4, seed=9) * 2 + torch.tensor([2.0, 0.0, -1.0, 0.0]).double()
    offset = A.even_offset(logits)
    assert torch.allclose(torch.softmax(logits + offset, 1).mean(0), torch.full((4,), 0.25).double(), atol=1e-4)
    assert abs(float(offset.sum())) < 1e-9
    assert torch.allclose(A.even_offset(logits + offset), torch.zeros(4).double(), atol=1e-3)


def test_divergence_of_shares_that_underflow_is_finite():
    smallest = torch.tensor([1e-45, 0.4, 0.6], requires_grad=True)
    other = torch.tensor([0.0, 0.5, 0.5])
    assert float(smallest.detach()[0]) > 0 == float(0.5 * smallest.detach()[0])
    value = A.jensen_shannon(smallest, other)
    assert float(value.detach()) == pytest.approx(float(A.jensen_shannon(torch.tensor([0.4, 0.6]), other[1:])), abs=1e-7)
    assert torch.isfinite(torch.autograd.grad(value, smallest)[0]).all()
