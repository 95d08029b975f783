"""Quantization and InfoLoss: identities of docs/methods.md 6.4."""

import itertools
import math

import pytest
import torch

from raysere.nn import quantization as C
from raysere.nn.alignment import jensen_shannon

N, CLASSES, K = 200, 4, 7
EXACT = 1e-300  # a floor that floors nothing


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex(n, c, seed=0):
    x = draw(n, c, seed=seed) ** 3 + 1e-4
    return x / x.sum(1, keepdim=True)


def entropy(p):
    return float(-torch.special.xlogy(p, p).sum())


def case(kind, seed=0):
    posterior, weights = simplex(N, CLASSES, seed), 0.2 + draw(N, seed=seed + 1)
    q = simplex(N, K, seed + 2)
    if kind == "hard":
        q = torch.nn.functional.one_hot(q.argmax(1), K).double()
    return q, posterior, weights


def total_information(posterior, weights):
    """I(X; Y) of the weighted empirical index."""
    share = weights / weights.sum()
    return entropy(share @ posterior) - float(sum(s * entropy(p) for s, p in zip(share, posterior, strict=True)))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_info_loss_is_the_information_that_codes_lose(kind):
    q, posterior, weights = case(kind)
    pi, _ = C.code_posteriors(q, posterior, weights)
    found = float(C.info_loss(q, posterior, pi, weights, EXACT))
    expected = total_information(posterior, weights) - float(C.information(q, posterior, weights))
    assert found == pytest.approx(expected, abs=1e-9)
    assert expected > 0.01


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_stale_table_costs_its_divergence(kind):
    q, posterior, weights = case(kind)
    pi, mass = C.code_posteriors(q, posterior, weights)
    other = simplex(K, CLASSES, 9)
    divergence = (torch.special.xlogy(pi, pi) - torch.special.xlogy(pi, other)).sum(1)
    expected = float(C.info_loss(q, posterior, pi, weights, EXACT)) + float((mass / mass.sum() * divergence).sum())
    assert float(C.info_loss(q, posterior, other, weights, EXACT)) == pytest.approx(expected, abs=1e-9)


def test_info_loss_at_its_ends():
    q, _, _ = case("hard")
    ones = torch.ones(N, dtype=torch.float64)
    label = torch.nn.functional.one_hot((draw(N, seed=3) * CLASSES).long(), CLASSES).double()
    pi, mass = C.code_posteriors(q, label, ones)
    conditional = sum(float(m) / N * entropy(row) for m, row in zip(mass, pi, strict=True))
    assert float(C.info_loss(q, label, pi, ones, EXACT)) == pytest.approx(conditional, abs=1e-9)
    posterior = simplex(N, CLASSES, 5)
    one = torch.ones(N, 1, dtype=torch.float64)
    assert float(C.info_loss(one, posterior, C.code_posteriors(one, posterior, ones)[0], ones, EXACT)) == pytest.approx(
        total_information(posterior, ones), abs=1e-9
    )
    each = torch.eye(N, dtype=torch.float64)
    assert float(C.info_loss(each, posterior, posterior, ones, EXACT)) == pytest.approx(0, abs=1e-9)


def test_merging_codes_costs_their_divergence_and_never_pays():
    q, posterior, weights = case("hard")
    pi, mass = C.code_posteriors(q, posterior, weights)
    before = float(C.info_loss(q, posterior, pi, weights, EXACT))
    for a, b in ((0, 1), (2, 6)):
        merged = torch.cat([q[:, [k for k in range(K) if k not in (a, b)]], q[:, [a]] + q[:, [b]]], 1)
        after = float(C.info_loss(merged, posterior, C.code_posteriors(merged, posterior, weights)[0], weights, EXACT))
        p = mass[a] / mass.sum(), mass[b] / mass.sum()
        by_hand = float((p[0] + p[1]) * jensen_shannon(pi[a], pi[b], float(p[0] / (p[0] + p[1]))))
        assert after - before == pytest.approx(by_hand, abs=1e-9)
        assert float(C.merge_cost(pi, mass, a, b)) == pytest.approx(by_hand, abs=1e-12)
        assert after > before


def test_gradient_of_codewords():
    """dL/dm_j = (2 beta / N) sum_i q_ij (D_ij - mean_i) (x_i - m_j); zero where all tables are the
    same.
    """
    x, codes = draw(30, 3, seed=1) * 2, (draw(5, 3, seed=2) * 2).requires_grad_()
    posterior, pi, beta = simplex(30, CLASSES, 3), simplex(5, CLASSES, 4), 0.7
    ones = torch.ones(30, dtype=torch.float64)

    def loss(book, table=pi):
        return C.info_loss(C.soft_codes(C.distances(x, book), 1 / beta), posterior, table, ones, EXACT)

    found = torch.autograd.grad(loss(codes), codes)[0]
    q = C.soft_codes(C.distances(x, codes.detach()), 1 / beta)
    d = (torch.special.xlogy(posterior, posterior)).sum(1, keepdim=True) - posterior @ pi.log().T
    away = q * (d - (q * d).sum(1, keepdim=True))
    expected = 2 * beta / 30 * (away.T @ x - away.sum(0).unsqueeze(1) * codes.detach())
    assert torch.allclose(found, expected, atol=1e-8)
    step = 1e-5
    for j, c in ((0, 1), (4, 2)):
        up, down = codes.detach().clone(), codes.detach().clone()
        up[j, c] += step
        down[j, c] -= step
        assert float(loss(up) - loss(down)) / (2 * step) == pytest.approx(float(found[j, c]), abs=1e-6)
    same = pi[:1].expand(5, -1)
    assert torch.autograd.grad(loss(codes, same), codes)[0].abs().max() < 1e-12


def test_straight_through_and_the_two_sides_of_the_quantization_loss():
    z, book = draw(6, 3, seed=1).requires_grad_(), draw(4, 3, seed=2).requires_grad_()
    codes = C.hard_codes(C.distances(z, book))
    weights = draw(6, 3, seed=3)
    value = C.straight_through(z, book[codes])
    assert torch.allclose(value, book[codes])
    to_z, to_book = torch.autograd.grad((weights * value).sum(), (z, book), allow_unused=True)
    assert torch.equal(to_z, weights)
    assert to_book is None
    to_z, to_book = torch.autograd.grad(C.quantization_loss(z, book[codes], 0.25), (z, book))
    assert torch.allclose(to_z, 2 * 0.25 * (z - book[codes]) / 18, atol=1e-12)
    expected = torch.stack([2 * (book[k] - z[codes == k]).sum(0) / 18 for k in range(4)])
    assert torch.allclose(to_book, expected, atol=1e-12)


def test_averages_without_memory_are_a_step_of_lloyd():
    z, book = draw(300, 4, seed=1), draw(6, 4, seed=2)
    inertias = []
    for _ in range(40):
        squared = C.distances(z, book)
        codes = C.hard_codes(squared)
        inertias.append(float(squared.gather(1, codes.unsqueeze(1)).sum()))
        counts, _, moved = C.ema_codebook(torch.zeros(6).double(), torch.zeros(6, 4).double(), codes, z, 0.0, 0.0)
        means = torch.stack([z[codes == k].mean(0) for k in range(6)])
        assert torch.allclose(moved, means, atol=1e-12)
        assert counts.sum() == 300
        fixed = torch.allclose(moved, book, atol=1e-12)
        book = moved
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(inertias))
    assert fixed


def test_averages_remember():
    counts, sums = torch.tensor([4.0, 0.0]), torch.tensor([[8.0], [0.0]])
    counts, sums, book = C.ema_codebook(counts, sums, torch.tensor([0, 1, 1]), torch.tensor([[1.0], [5.0], [7.0]]), 0.5, 0.0)
    assert counts.tolist() == [2.5, 1.0]
    assert book.flatten().tolist() == pytest.approx([4.5 / 2.5, 6.0])
    _, _, smoothed = C.ema_codebook(
        torch.zeros(3), torch.zeros(3, 1), torch.tensor([0, 0, 1]), torch.tensor([[1.0], [3.0], [8.0]]), 0.0, 0.5
    )
    assert smoothed.flatten().tolist() == pytest.approx([4 / (5 / 3), 8, 0]), "N' is (2.5, 1.5, .5) / 4.5 * 3"


def test_perplexity_and_dead_codes():
    assert float(C.perplexity(torch.ones(9))) == pytest.approx(9)
    assert float(C.perplexity(torch.tensor([0.0, 3.0, 0.0]))) == pytest.approx(1)
    assert C.dead_codes(torch.tensor([10.0, 0.9, 1.1]), 30.0).tolist() == [False, True, False]


def test_soft_codes_between_hard_and_none():
    z, book = draw(50, 3, seed=1), draw(6, 3, seed=2)
    squared = C.distances(z, book)
    brute = (z.unsqueeze(1) - book).square().sum(-1)
    assert torch.allclose(squared, brute, atol=1e-12)
    assert torch.equal(C.soft_codes(squared, 1e-9).argmax(1), C.hard_codes(squared))
    assert C.soft_codes(squared, 1e-9).max(1).values.min() > 0.99
    assert torch.allclose(C.soft_codes(squared, 1e9), torch.full((50, 6), 1 / 6).double(), atol=1e-6)
    assert torch.equal(C.hard_codes(C.distances(z + 1000.0, book + 1000.0)), C.hard_codes(squared))
    far = C.distances((z + 1000.0).float(), (book + 1000.0).float())
    assert (C.hard_codes(far) == C.hard_codes(squared)).float().mean() > 0.95, "float32 keeps its digits far from 0"
    assert float(C.distances(100 * z.float(), 100 * z.float()).min()) >= 0, "what rounding takes below 0 comes back"
    twins = torch.stack([book[2], book[2]])
    assert C.hard_codes(C.distances(z, twins)).max() == 0
    assert math.isclose(float(C.distances(z, z).diagonal().max()), 0, abs_tol=1e-12)
