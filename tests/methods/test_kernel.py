import numpy as np
import pytest
import torch

from raysere.base.errors import ConfigError
from raysere.methods import METHODS
from raysere.methods.kernel import Kernel, KernelModel, KernelParams
from raysere.nn.random_features import frequencies, gaussian_map
from raysere.nn.ridge import fit_ridge, logit_scale
from raysere.testing.method import check_method
from raysere.testing.toy import toy_batch, toy_data, toy_task
from raysere.training.loop import Trainer
from raysere.training.method import Shapes, StreamShape

SMALL = {"epochs": 1, "frequencies": 128}
KERNEL = Kernel()


def shapes(kind="categorical", layers=None, stats=2):
    return Shapes(toy_task(kind), {"audio": StreamShape("audio", layers or {0: 8, 1: 8}, stats, "utterance")}, (0.6, 0.3, 0.1))


FROZEN = [0.3948885500431061, 0.3522409200668335, -0.27758294343948364]


def test_is_registered():
    assert METHODS.get("kernel") is Kernel


@pytest.mark.parametrize("granularity", ["utterance", "chunk", "frame"])
def test_conforms(granularity):
    check_method(KERNEL, SMALL, granularities=[granularity])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "linear", "shrink": 0.0},
        {"layers": "one", "depth": 1.0, "pooling": "mean"},
        {"class_weight": 0.5, "gamma": 0.05},
    ],
    ids=str,
)
def test_every_option_conforms(options):
    check_method(KERNEL, {**SMALL, **options}, granularities=["utterance"], kinds=["both"])


def test_is_solved_in_one_epoch():
    trainer = Trainer(KERNEL, SMALL, toy_data("categorical", granularity="utterance", modalities=["audio"]), seed=0)
    before = trainer.folds[0].model.coefficients.abs().sum()
    trainer.epoch()
    assert before == 0
    assert trainer.folds[0].model.coefficients.abs().sum() > 0
    assert trainer.finished
    with pytest.raises(ValueError, match="less than or equal to 1"):
        KernelParams(epochs=2)


def test_has_no_sampler():
    with pytest.raises(ConfigError, match="sampler"):
        KERNEL.check(KernelParams(sampler="balanced"), shapes())


def test_layers_lie_around_a_depth():
    wide = shapes(layers=dict.fromkeys(range(10, 23), 8))
    chosen = {
        (layers, depth): KERNEL.layers(KernelParams(layers=layers, depth=depth), wide)["audio"]
        for layers in ("near", "one", "all")
        for depth in (0.0, 0.5, 1.0)
    }
    assert chosen["near", 0.5] == [14, 15, 16, 17, 18]
    assert chosen["near", 0.0] == [10, 11, 12]
    assert chosen["near", 1.0] == [20, 21, 22]
    assert chosen["one", 0.5] == [16]
    assert chosen["all", 0.5] == list(range(10, 23))


def test_solution_is_the_minimum_of_what_losses_say():
    """At the solution of a vanishing ridge the gradient of the loss is zero."""
    data = toy_data("categorical", granularity="utterance", modalities=["audio"])
    params = KernelParams(kernel="linear", shrink=0.0, strength=1e-6)
    model = KernelModel(params, Shapes(data.task, {n: v.shape() for n, v in data.features.items()}, (1 / 3,) * 3), {"audio": [0, 1]})
    batch = toy_batch(data, data.folds[0].train, {"audio": [0, 1]})
    with torch.no_grad():
        KERNEL.solve(model, batch)
    loss = KERNEL.losses(model, batch, None)["squared"]
    loss.backward()
    assert float(model.bias.grad.abs().max()) < 1e-5
    assert float(model.coefficients.grad.abs().max()) < 1e-3
    with torch.no_grad():
        model.coefficients += 0.01 * torch.randn(model.coefficients.shape, generator=torch.Generator().manual_seed(0))
    assert KERNEL.losses(model, batch, None)["squared"] > loss


# ---- ridge ---------------------------------------------------------------------------------------


def problem(n, width, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=draw)
    t = torch.tanh(x[:, :3] + 0.3 * torch.randn(n, 3, generator=draw))
    return x, t, 0.5 + torch.rand(n, generator=draw)


def direct(x, t, w, strength):
    """The normal equations with an unpunished column of ones."""
    x, t, w = x.double(), t.double(), w.double() / w.double().mean()
    mean = (w[:, None] * x).sum(0) / w.sum()
    penalty = strength * (w[:, None] * (x - mean) ** 2).sum() / len(x)
    wide = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    punished = penalty * torch.diag(torch.cat([torch.ones(x.shape[1]), torch.zeros(1)]).double())
    solution = torch.linalg.solve(wide.T @ (w[:, None] * wide) + punished, wide.T @ (w[:, None] * t))
    return solution[:-1], solution[-1]


@pytest.mark.parametrize(("n", "width"), [(40, 12), (12, 40)], ids=["primal", "dual"])
def test_ridge_solves_the_normal_equations(n, width):
    x, t, w = problem(n, width)
    fitted = fit_ridge(x, t, w, 0.2)
    coefficients, bias = direct(x, t, w, 0.2)
    torch.testing.assert_close(fitted.coefficients.double(), coefficients, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(fitted.bias.double(), bias, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("n", "width"), [(40, 12), (12, 40)], ids=["primal", "dual"])
def test_left_out_predictions_are_those_of_refitting_without_the_row(n, width):
    """With the mean and the penalty of all rows held fixed, which is what the closed form says."""
    x, t, w = problem(n, width)
    fitted = fit_ridge(x, t, w, 0.2)
    x, t, w = x.double(), t.double(), w.double() / w.double().mean()
    mean, middle = (w[:, None] * x).sum(0) / w.sum(), (w[:, None] * t).sum(0) / w.sum()
    penalty = 0.2 * (w[:, None] * (x - mean) ** 2).sum() / n
    for row in (0, n // 2, n - 1):
        rest = torch.arange(n) != row
        a, b, share = (x - mean)[rest], (t - middle)[rest], w[rest, None]
        solution = torch.linalg.solve(a.T @ (share * a) + penalty * torch.eye(width, dtype=torch.float64), a.T @ (share * b))
        expected = (x[row] - mean) @ solution + middle
        torch.testing.assert_close(fitted.left_out[row].double(), expected, rtol=2e-3, atol=1e-4)


def test_strength_means_the_same_at_any_scale():
    x, t, w = problem(30, 10)
    one, other = fit_ridge(x, t, w, 0.5), fit_ridge(100 * x, t, w, 0.5)
    torch.testing.assert_close(one.coefficients, 100 * other.coefficients, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(one.left_out, other.left_out, rtol=1e-3, atol=1e-4)


def test_logit_scale_is_the_best_on_a_fine_grid():
    draw = np.random.default_rng(0)
    label = torch.from_numpy(draw.integers(0, 3, 300))
    scores = torch.nn.functional.one_hot(label, 3) * 0.2 + torch.from_numpy(draw.normal(0, 0.2, (300, 3)))
    weights = torch.from_numpy(draw.uniform(0.5, 2, 300))

    def loss(scale):
        return float((torch.nn.functional.cross_entropy(scale * scores, label, reduction="none") * weights).sum())

    found = logit_scale(scores.float(), label, weights)
    best = min(np.geomspace(0.3, 300, 3000), key=loss)
    assert abs(np.log(found / best)) < 0.05
    assert abs(np.log(logit_scale(scores.float() / 4, label, weights) / (4 * found))) < 0.06


# ---- random features and the metric --------------------------------------------------------------


def test_random_features_tend_to_the_gaussian_kernel():
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    exact = torch.exp(-0.3 * torch.cdist(x, x) ** 2 / 32)
    errors = []
    for count in (64, 4096):
        found = gaussian_map(x, frequencies(32, count, 0), 0.3)
        errors.append(float((found @ found.T - exact).abs().max()))
    assert errors[1] < 0.03
    assert errors[1] < errors[0]


def test_frequencies_are_orthogonal_of_gaussian_length_and_frozen():
    omega = frequencies(48, 48, 3)
    gram = omega.T @ omega
    assert float((gram - torch.diag(torch.diag(gram))).abs().max()) < 1e-3
    assert 40 < float(torch.diag(gram).mean()) < 56
    assert not torch.equal(omega, frequencies(48, 48, 4))
    torch.testing.assert_close(omega[0, :3], torch.tensor(FROZEN), rtol=1e-4, atol=1e-5)


def test_metric_shrinks_what_varies_within_classes():
    """Two classes apart in the first column, a strong nuisance in the second: factors are those of
    the full covariance.
    """
    draw = np.random.default_rng(1)
    label = torch.from_numpy(draw.integers(0, 3, 4000))
    x = torch.from_numpy(draw.normal(0, 1, (4000, 8))).float()
    x[:, 1] *= 5
    x[:, 0] += 3 * label
    params = KernelParams(shrink=0.5, frequencies=16)
    model = KernelModel(params, shapes(layers={0: 8}, stats=1), {"audio": [0]})
    model.learn_metric([x], label)
    v, factors = model.directions0, model.factors0
    centred = torch.cat([x[label == k] - x[label == k].mean(0) for k in range(3)])
    covariance = centred.T @ centred / len(x)
    level = covariance.trace() / 8
    metric = torch.eye(8) + v @ torch.diag(factors - 1) @ v.T
    expected = torch.linalg.inv(0.5 * level * torch.eye(8) + 0.5 * covariance)
    ratio = (metric @ metric) / expected
    torch.testing.assert_close(torch.diag(ratio) / ratio[0, 0], torch.ones(8), rtol=1e-2, atol=1e-2)
    assert float(metric[1, 1]) < 0.5 * float(metric[0, 0])
