"""Weighted ridge regression in closed form, its leave-one-out predictions, and the scale that makes
logits of its scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SCALES = (0.3, 300.0)  # within which the scale of logits lies
_STEPS = 25  # of each of two nested grids over it


@dataclass
class Ridge:
    """``x coefficients + bias``: float32 (P, K) and (K,); ``left_out`` float32 (n, K): each
    training row predicted without itself.
    """

    coefficients: Tensor
    bias: Tensor
    left_out: Tensor


def fit_ridge(x: Tensor, targets: Tensor, weights: Tensor, strength: float) -> Ridge:
    """Minimise ``sum_i w_i |t_i - x_i B - b|^2 + lambda |B|^2`` (the bias is not punished).

    ``lambda = strength * sum_i w_i |x_i - m|^2 / n`` with m the weighted mean of the rows, so that
    ``strength`` means the same whatever the scale and the number of the columns. Solved by the
    smaller of the two systems, (P, P) or (n, n), in float64. Leaving one row out is the closed form
    of ridge regression with the mean of all rows (Allen 1974, "PRESS").

    Args:
        x: float32 (n, P). targets: float32 (n, K). weights: float32 (n,), positive.
    """
    weights = weights.double() / weights.double().mean()
    share = (weights / weights.sum()).to(x.dtype)
    mean, middle = share @ x, share.double() @ targets.double()
    centred, wanted = x - mean, targets.double() - middle
    root = weights.sqrt().unsqueeze(1)
    scaled, scaled_targets = centred * root.to(x.dtype), wanted * root
    penalty = strength * scaled.square().sum().double() / len(x) + 1e-12
    if len(x) <= x.shape[1]:
        system = (scaled @ scaled.T).double()
        system.diagonal().add_(penalty)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
        dual = inverse @ scaled_targets
        coefficients = (scaled.T @ dual.to(x.dtype)).double()
        residual = dual / inverse.diagonal().unsqueeze(1) / root
    else:
        system = (scaled.T @ scaled).double()
        system.diagonal().add_(penalty)
        factor = torch.linalg.cholesky(system)
        coefficients = torch.cholesky_solve(scaled.T.double() @ scaled_targets, factor)
        leverage = torch.linalg.solve_triangular(factor, scaled.T.double(), upper=False).square().sum(0)
        residual = (wanted - centred.double() @ coefficients) / (1 - leverage).clamp_min(1e-6).unsqueeze(1)
    bias = middle - mean.double() @ coefficients
    return Ridge(coefficients.float(), bias.float(), (targets.double() - residual).float())


def logit_scale(scores: Tensor, label: Tensor, weights: Tensor) -> float:
    """The factor s that minimises the weighted cross-entropy of ``softmax(s * scores)``; it never
    changes an answer.

    Args:
        scores: (n, C), of rows that were left out. label: int64 (n,). weights: (n,).
    """
    low, high = _SCALES
    for _ in range(2):
        scales = torch.logspace(torch.log10(torch.tensor(low)), torch.log10(torch.tensor(high)), _STEPS).tolist()
        losses = [
            float((torch.nn.functional.cross_entropy(scale * scores.double(), label, reduction="none") * weights).sum()) for scale in scales
        ]
        best = min(range(_STEPS), key=losses.__getitem__)
        low, high = scales[max(best - 1, 0)], scales[min(best + 1, _STEPS - 1)]
    return scales[best]
