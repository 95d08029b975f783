import torch

from raysere.nn.dropout import Dropout, dropout
from raysere.nn.pooling import AttentiveStatistics, Pooling, masked_mean, masked_mean_std, pooled_dim


def ragged():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4)
    mask = torch.arange(5) < torch.tensor([5, 2, 1]).unsqueeze(1)
    return x, mask


def test_mean_and_std_of_valid_rows():
    x, mask = ragged()
    dirty = x.masked_fill(~mask.unsqueeze(-1), float("nan"))
    for item, length in enumerate((5, 2, 1)):
        own = x[item, :length]
        assert torch.allclose(masked_mean(dirty, mask)[item], own.mean(0), atol=1e-6)
        expected = torch.cat([own.mean(0), own.var(0, correction=0).clamp_min(1e-5).sqrt()])
        assert torch.allclose(masked_mean_std(dirty, mask)[item], expected, atol=1e-5)
    assert pooled_dim("mean", 4) == 4
    assert pooled_dim("attentive", 4) == 8


def test_nothing_valid_is_finite():
    x, mask = torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)
    for value in (masked_mean(x, mask), masked_mean_std(x, mask), AttentiveStatistics(4, 3)(x, mask)):
        assert bool(torch.isfinite(value).all())


def test_attentive_statistics_follow_the_formula():
    x, mask = ragged()
    module = AttentiveStatistics(4, 3)
    result = module(x, mask)
    for item, length in enumerate((5, 2, 1)):
        own = x[item, :length]
        energy = torch.tanh(own @ module.project.weight.T + module.project.bias) @ module.score.weight[0]
        a = torch.softmax(energy, 0).unsqueeze(1)
        mean = (a * own).sum(0)
        sigma = ((a * own**2).sum(0) - mean**2).clamp_min(1e-5).sqrt()
        assert torch.allclose(result[item], torch.cat([mean, sigma]), atol=1e-4)
    assert torch.allclose(module.attention(x, mask).sum(1), torch.ones(3))


def test_gradients_of_attentive_statistics_are_those_of_the_formula():
    x, mask = ragged()
    module = AttentiveStatistics(4, 3).double()
    x = x.double().requires_grad_()
    weights = torch.randn(3, 8, dtype=torch.float64)
    (module(x, mask) * weights).sum().backward()
    found = [x.grad, *(parameter.grad for parameter in module.parameters())]

    again = x.detach().clone().requires_grad_()
    energy = module.score(torch.tanh(module.project(again))).squeeze(-1).masked_fill(~mask, -1e30)
    a = torch.softmax(energy, -1).unsqueeze(-1)
    mean = (a * again).sum(1)
    variance = (a * again**2).sum(1) - mean**2
    loss = (torch.cat([mean, variance.clamp_min(1e-5).sqrt()], -1) * weights).sum()
    expected = torch.autograd.grad(loss, [again, *module.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_what_stands_in_the_padding_does_not_matter_to_attention():
    x, mask = ragged()
    module = AttentiveStatistics(4, 3)
    assert torch.equal(module(x.masked_fill(~mask.unsqueeze(-1), float("nan")), mask), module(x, mask))


def test_equal_scores_give_plain_statistics():
    x, mask = ragged()
    module = AttentiveStatistics(4, 3)
    torch.nn.init.zeros_(module.score.weight)
    assert torch.allclose(module(x, mask), masked_mean_std(x, mask), atol=1e-5)


def test_dropout_keeps_the_expectation_and_its_gradient_is_its_mask():
    torch.manual_seed(0)
    x = torch.ones(400, 501, requires_grad=True)  # not a multiple of the eight values of a draw
    y = dropout(x, 0.3, True)
    assert abs(float((y == 0).float().mean()) - 0.3) < 0.01
    assert abs(float(y.detach().mean()) - 1) < 0.01
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    columns = (y == 0).float().mean(0)
    assert float(columns.max()) < 0.5
    assert dropout(x, 0.3, False) is x
    assert dropout(x, 0.0, True) is x
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_dropout_follows_the_global_generator():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(torch.ones(64), 0.5, True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_attention_pooling_is_the_mean_half_of_attentive_statistics():
    x, mask = ragged()
    dirty = x.masked_fill(~mask.unsqueeze(-1), float("nan"))
    both = Pooling("attentive", 4, 3)
    mean = Pooling("attention", 4, 3)
    mean.load_state_dict(both.state_dict())
    assert torch.allclose(mean(dirty, mask), both(x, mask)[:, :4], atol=1e-6)
    assert (mean.out, both.out) == (4, 8)
    for kind, function in (("mean", masked_mean), ("mean_std", masked_mean_std)):
        assert torch.equal(Pooling(kind, 4, 3)(dirty, mask), function(x, mask))
        assert not list(Pooling(kind, 4, 3).parameters())
