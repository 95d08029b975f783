"""Vector quantization and InfoLoss as pure functions (docs/methods.md 6.2 to 6.4).

InfoLoss is our form of Lazebnik and Raginsky (TPAMI 2009): a code that keeps what the unit tells of
its class. Units z are rows (n, d), a codebook is (K, d). Distances, softmax over codes and
divergences are float32 or better whatever z is: in half precision codes flip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raysere.nn.alignment import jensen_shannon

PI_FLOOR = 1e-6


def distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances (n, K), never below 0; of groups z (G, n, d) to codebooks (G, K, d) they
    are (G, n, K).

    Example:
        >>> distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[25.0, 1.0]]
    """
    z, codebook = (
        z.float() if z.dtype in (torch.float16, torch.bfloat16) else z,
        codebook.to(torch.promote_types(codebook.dtype, torch.float32)),
    )
    # of rows less their mean: a common offset would eat the digits of the difference of squares
    middle = codebook.mean(-2, keepdim=True)
    z, codebook = z - middle, codebook - middle
    return (z.square().sum(-1, keepdim=True) - 2 * z @ codebook.mT + codebook.square().sum(-1).unsqueeze(-2)).clamp_min(0)


def hard_codes(squared: Tensor) -> Tensor:
    """Nearest code (n,) int64; of equally near ones the lowest.

    Example:
        >>> hard_codes(torch.tensor([[25.0, 1.0]])).tolist()
        [1]
    """
    return squared.argmin(-1)


def soft_codes(squared: Tensor, tau: float | Tensor) -> Tensor:
    """``softmax(-D / tau)`` (n, K).

    Example:
        >>> soft_codes(torch.tensor([[1.0, 1.0]]), 0.5).tolist()
        [[0.5, 0.5]]
    """
    return torch.softmax(-squared / tau, dim=-1)


def straight_through(z: Tensor, code: Tensor) -> Tensor:
    """The code's value with the gradient of z: ``z + sg(e_k - z)``."""
    return z + (code - z).detach()


def quantization_loss(z: Tensor, code: Tensor, commitment: float) -> Tensor:
    """``(|sg(z) - e_k|^2 + b |z - sg(e_k)|^2) / d``, mean over units: the first moves codes, the
    second z.
    """
    moved = (z.detach() - code).square().mean(-1)
    committed = (z - code.detach()).square().mean(-1)
    return (moved + commitment * committed).mean()


def perplexity(usage: Tensor) -> Tensor:
    """``exp(H)`` of code usage (K,), which need not sum to 1: from 1 (one code) to K.

    Example:
        >>> round(float(perplexity(torch.full((8,), 0.125))), 3)
        8.0
    """
    share = usage / usage.sum().clamp_min(1e-12)
    return torch.exp(-torch.special.xlogy(share, share).sum())


def ema_codebook(counts: Tensor, sums: Tensor, codes: Tensor, z: Tensor, decay: float, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """One step of exponential averages: (counts (K,), sums (K, d), codebook (K, d)); with decay 0
    and eps 0 it is a step of Lloyd's.

    ``e_k = m_k / N'_k`` with ``N'_k = (N_k + eps) / (sum N + K eps) sum N``; codes that were never
    used keep no meaning (0 / 0 is 0).
    """
    size = len(counts)
    here = torch.zeros_like(counts).index_add_(0, codes, torch.ones_like(codes, dtype=counts.dtype))
    counts = decay * counts + (1 - decay) * here
    sums = decay * sums + (1 - decay) * torch.zeros_like(sums).index_add_(0, codes, z.to(sums.dtype))
    total = counts.sum()
    smoothed = (counts + eps) / (total + size * eps) * total
    return counts, sums, torch.where(smoothed.unsqueeze(1) > 0, sums / smoothed.clamp_min(1e-30).unsqueeze(1), 0.0)


def dead_codes(counts: Tensor, units: float) -> Tensor:
    """Bool (K,): running counts a step below a tenth of an even share of ``units`` a step."""
    return counts < 0.1 * units / len(counts)


# ---- InfoLoss ------------------------------------------------------------------------------------


def code_posteriors(q: Tensor, posterior: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """``pi_k = sum_i w_i q_ik P_i / sum_i w_i q_ik`` (K, C) and the mass ``sum_i w_i q_ik`` (K,).

    Args:
        q: (n, K) code of each unit, hard or soft. posterior: (n, C), on the simplex. weights: (n,).
    """
    mass = weights @ q
    return (q * weights.unsqueeze(1)).T @ posterior / mass.clamp_min(1e-12).unsqueeze(1), mass


def info_loss(q: Tensor, posterior: Tensor, pi: Tensor, weights: Tensor, floor: float = PI_FLOOR) -> Tensor:
    """What quantization loses of the class: ``(1 / W) sum_i w_i sum_k q_ik KL(P_i | pi_k)`` in
    nats.

    With pi of :func:`code_posteriors` it is ``I(X; Y) - I(K; Y)``; with any other it is larger by
    ``sum_k p_k KL(pi_k | pi'_k)`` (1.4).
    """
    pi = floored(pi, floor)
    own = torch.special.xlogy(posterior, posterior).sum(1)
    cross = q @ pi.log()
    terms = own - (posterior * cross).sum(1)
    return (weights * terms).sum() / weights.sum().clamp_min(1e-12)


def floored(pi: Tensor, floor: float = PI_FLOOR) -> Tensor:
    """Rows of a distribution with nothing below ``floor``, of sum 1 again."""
    held = pi.clamp_min(floor)
    return held / held.sum(-1, keepdim=True)


def information(q: Tensor, posterior: Tensor, weights: Tensor) -> Tensor:
    """``I(K; Y)`` in nats of codes and classes: how much of the class the code tells."""
    pi, mass = code_posteriors(q, posterior, weights)
    share = mass / mass.sum()
    marginal = share @ pi
    return torch.special.xlogy(share.unsqueeze(1) * pi, pi / marginal.clamp_min(1e-300)).sum()


def merge_cost(pi: Tensor, mass: Tensor, first: int, second: int) -> Tensor:
    """By how much the optimal InfoLoss rises when two codes become one:

    ``(p_a + p_b) JS_w(pi_a, pi_b)``, w = p_a / (p_a + p_b).
    """
    share = mass / mass.sum()
    both = share[first] + share[second]
    return both * jensen_shannon(pi[first], pi[second], float(share[first] / both))
