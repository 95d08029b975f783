"""Losses that bring two domains together, as pure functions: the source is labelled, the target is
not (docs/methods.md 5.2, 8.4).

Scalars out. Nothing here reads a target label: class posteriors of target items are what a model
says of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_TINY = 1e-8


def ramp(progress: float, alpha: float = 10.0) -> float:
    """``2 / (1 + exp(-alpha p)) - 1``, p from 0 to 1 over the training: 0 at the start, tanh(alpha
    / 2) at the end (Ganin et al. 2016).

    Example:
        >>> ramp(0.0), round(ramp(1.0), 4)
        (0.0, 0.9999)
    """
    return 2 / (1 + math.exp(-alpha * progress)) - 1


# ---- moments -------------------------------------------------------------------------------------


def covariance(x: Tensor) -> Tensor:
    """Unbiased (d, d) of rows (n, d).

    Example:
        >>> covariance(torch.tensor([[0.0, 0.0], [2.0, 4.0]])).tolist()
        [[2.0, 4.0], [4.0, 8.0]]
    """
    centred = x - x.mean(0)
    return centred.T @ centred / max(len(x) - 1, 1)


def coral(source: Tensor, target: Tensor, *, mean_term: bool = False) -> Tensor:
    """``|C_S - C_T|_F^2 / (4 d^2)`` of features (n, d), (m, d); with ``mean_term`` the mean squared
    gap of the means beside it.

    Noise: for equal unit-Gaussian domains its mean is :func:`coral_noise`, above what a variance
    four times as large makes of it at batches of 32: compare values only after that is divided out
    (4.4).

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
        >>> float(coral(x, x)), float(coral(x, 2 * x))
        (0.0, 56.25)
    """
    width = source.shape[1]
    value = (covariance(source) - covariance(target)).square().sum() / (4 * width**2)
    return value + (source.mean(0) - target.mean(0)).square().mean() if mean_term else value


def coral_noise(width: int, source: int, target: int) -> float:
    """Mean of :func:`coral` between samples of one unit-Gaussian distribution:
    ``(d + 1) / (4 d) (1 / (n - 1) + 1 / (m - 1))``.

    Example:
        >>> round(coral_noise(256, 32, 32), 3)
        0.016
    """
    return (width + 1) / (4 * width) * (1 / (source - 1) + 1 / (target - 1))


def mmd(source: Tensor, target: Tensor) -> Tensor:
    """Squared maximum mean discrepancy, unbiased, of a Gaussian kernel whose width is the median
    squared distance of all pairs.
    """
    joined = torch.cat([source, target])
    distances = torch.cdist(joined, joined).square()
    n, m = len(source), len(target)
    apart = ~torch.eye(n + m, dtype=torch.bool, device=joined.device)
    kernel = torch.exp(-distances / distances.detach()[apart].median().clamp_min(_TINY))
    same_s = (kernel[:n, :n].sum() - n) / (n * max(n - 1, 1))
    same_t = (kernel[n:, n:].sum() - m) / (m * max(m - 1, 1))
    return same_s + same_t - 2 * kernel[:n, n:].mean()


def recolour(source: Tensor, target: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """``(A, b)`` with ``x A + b`` of the target's mean and covariance:
    ``A = C_S^{-1/2} C_T^{1/2}``, C = cov + ridge I (closed CORAL).

    Args:
        source, target: (n, d), (m, d), any dtype; computed in float64. Returns float64 (d, d) and
            (d,).
    """
    source, target = source.double(), target.double()
    turn = _covariance_power(source, ridge, -0.5) @ _covariance_power(target, ridge, 0.5)
    return turn, target.mean(0) - source.mean(0) @ turn


def _covariance_power(x: Tensor, ridge: float, exponent: float) -> Tensor:
    """``(cov + ridge I)^exponent`` (d, d) of rows (n, d); without a ridge, directions without
    variance stay without.

    By the rows' own singular vectors: with hundreds of rows of a thousand columns that is a tenth
    of the work of a (d, d) matrix's.
    """
    _, roots, turn = torch.linalg.svd((x - x.mean(0)) / max(len(x) - 1, 1) ** 0.5, full_matrices=False)
    values = roots.square() + ridge
    elsewhere = ridge**exponent if ridge else 0.0  # what directions get that no row has
    raised = torch.where(values > 1e-12 * values.max(), values.clamp_min(1e-300).pow(exponent), elsewhere)
    return elsewhere * torch.eye(x.shape[1], dtype=x.dtype, device=x.device) + (turn.T * (raised - elsewhere)) @ turn


# ---- what target posteriors look like ------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax(logits) (n, C) in nats, 0 to log C.

    Example:
        >>> round(float(entropy(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))), 3)
        0.347
    """
    logp = torch.log_softmax(logits, dim=-1)
    return -(logp.exp() * logp).sum(-1).mean()


def even_offset(logits: Tensor, rounds: int = 200) -> Tensor:
    """b (C,) of mean 0 with which softmax(logits + b), logits (n, C), is even on the mean:

    Sinkhorn on one margin (Cuturi 2013).
    """
    offset = torch.zeros(logits.shape[1], device=logits.device)
    for _ in range(rounds):
        share = torch.softmax(logits + offset, dim=-1).mean(0).clamp_min(1e-6)
        offset = offset - share.log() - math.log(logits.shape[1])
        if float((share * logits.shape[1] - 1).abs().max()) < 1e-4:
            break
    return offset - offset.mean()


def infomax(logits: Tensor) -> Tensor:
    """``H(mean p) - mean H(p)``, the mutual information of item and answer: 0 for one class or no
    opinion, log C for sure and balanced.

    Example:
        >>> round(float(infomax(50 * torch.eye(4))), 3)  # sure and even: log 4
        1.386
    """
    mean = torch.softmax(logits, dim=-1).mean(0)
    return -torch.special.xlogy(mean, mean).sum() - entropy(logits)


def class_confusion(logits: Tensor, temperature: float = 2.5) -> Tensor:
    """Minimum class confusion of logits (B, C): how much classes are confused with each other, the
    more so by sure items.

    ``P = softmax(z / T)``, ``w = B (1 + e^{-H}) / sum`` without gradient, ``M = P' diag(w) P`` with
    rows of sum 1; the mean over classes of what is off the diagonal. (C - 1) / C for no opinion or
    one class, 0 for sure and balanced.

    Example:
        >>> round(float(class_confusion(torch.zeros(8, 4))), 3)  # no idea: (C - 1) / C
        0.75
    """
    p = torch.softmax(logits / temperature, dim=-1)
    weights = entropy_weights(p)
    confusion = (p * weights.unsqueeze(1)).T @ p
    confusion = confusion / (confusion.sum(1, keepdim=True) + _TINY)
    return (confusion.sum() - confusion.trace()) / p.shape[1]


def entropy_weights(p: Tensor) -> Tensor:
    """``1 + exp(-H(p_i))`` scaled to a mean of 1, without gradient: sure items count up to twice
    what unsure ones do. p (B, C).
    """
    p = p.detach()
    raw = 1 + torch.exp(torch.special.xlogy(p, p).sum(1))
    return raw / raw.mean()


# ---- adversaries ---------------------------------------------------------------------------------


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -ctx.strength * gradient, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """``x``, whose gradient comes back times ``-strength``."""
    return _Reverse.apply(x, strength)


def domain_loss(source: Tensor, target: Tensor, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Binary cross-entropy of a domain critic's logits (n,) for source (1) and (m,) for target (0),
    both domains with equal weight.

    ``weights``: of the items of each, as :func:`entropy_weights` gives them.
    """
    here = torch.nn.functional.softplus(-source)
    there = torch.nn.functional.softplus(target)
    if weights is not None:
        here, there = here * weights[0], there * weights[1]
    return (here.mean() + there.mean()) / 2


def outer_map(features: Tensor, posterior: Tensor) -> Tensor:
    """Features (B, d) and class posteriors (B, C) as their outer product (B, d C):

    ``<T, T'> = <f, f'> <g, g'>`` (CDAN).
    """
    return (features.unsqueeze(2) * posterior.unsqueeze(1)).flatten(1)


def random_map(features: Tensor, posterior: Tensor, turn: Tensor, turn_classes: Tensor) -> Tensor:
    """:func:`outer_map` in the mean over fixed normal matrices (d, R), (C, R):

    ``(f R_f) (g R_g) / sqrt(R)``.
    """
    return (features @ turn) * (posterior @ turn_classes) / turn.shape[1] ** 0.5


# ---- histograms ----------------------------------------------------------------------------------


def jensen_shannon(p: Tensor, q: Tensor, weight: float = 0.5) -> Tensor:
    """Of distributions (..., K) in nats: ``H(w p + (1 - w) q) - w H(p) - (1 - w) H(q)``, w the
    share of the first.

    Example:
        >>> p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> round(float(jensen_shannon(p, q)), 3)  # log 2
        0.693
    """
    mixed = weight * p + (1 - weight) * q
    return weight * _relative(p, mixed) + (1 - weight) * _relative(q, mixed)


def _relative(p: Tensor, q: Tensor) -> Tensor:
    """KL(p | q) along the last axis, where q > 0 wherever p is; no gradient of log at 0.

    Half of the smallest number there is is 0, so that a mixture may be 0 where a part of it is not.
    """
    there = (p > 0) & (q > 0)
    ratio = torch.where(there, p, 1.0).log() - torch.where(there, q, 1.0).log()
    return (p * ratio).sum(-1)


def jensen_shannon_noise(units: int, source: float, target: float) -> float:
    """Mean of :func:`jensen_shannon` between histograms of ``source`` and ``target`` independent
    draws from one distribution over K units.

    ``(K - 1) / 8 (1 / n + 1 / m)`` nats, for 5 K draws and more; with fewer it saturates below log
    2 (1.3 item 3).

    Example:
        >>> round(jensen_shannon_noise(50, 3000, 1000), 4)
        0.0082
    """
    return (units - 1) / 8 * (1 / source + 1 / target)
