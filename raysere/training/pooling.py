"""Rows to one vector: mean, mean and standard deviation, attentive statistics; always on valid rows only (papers 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-5


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, D) over the valid rows of x (B, T, D); zeros where no row is valid. ``mask`` is bool (B, T)."""
    weights = mask.unsqueeze(-1).to(x.dtype)
    # where, not a product: what stands in the padding may be anything, also NaN
    return torch.where(mask.unsqueeze(-1), x, 0.0).sum(1) / weights.sum(1).clamp_min(1)


def masked_mean_std(x: Tensor, mask: Tensor) -> Tensor:
    """[mean; population std] (B, 2 D) over the valid rows; variance floored at 1e-5."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean.unsqueeze(1)) ** 2, mask)
    return torch.cat([mean, variance.clamp_min(VARIANCE_FLOOR).sqrt()], dim=-1)


class AttentiveStatistics(nn.Module):
    """``e_t = v . tanh(W x_t + b)``, ``a = softmax_t(e)`` on valid rows, ``[sum a x; sqrt(max(sum a x^2 - mu^2, 1e-5))]`` (papers 3.2).

    Args:
        dim: D of the rows. bottleneck: width of W.
    """

    def __init__(self, dim: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.project = nn.Linear(dim, bottleneck)
        self.score = nn.Linear(bottleneck, 1, bias=False)

    def attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """Weights (B, T), summing to 1 over the valid rows of each item (0 where none is valid)."""
        valid = mask.flatten().nonzero().squeeze(1)  # the products are the cost: padding has no part in them
        energy = self.score(torch.tanh(self.project(x.flatten(0, 1).index_select(0, valid)))).squeeze(-1).float()
        lowest = torch.full((mask.numel(),), torch.finfo(torch.float32).min, device=x.device)
        return torch.softmax(lowest.index_put((valid,), energy).view(mask.shape), dim=-1) * mask

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = self.attention(x, mask).unsqueeze(1).to(x.dtype)  # (B, 1, T)
        x = torch.where(mask.unsqueeze(-1), x, 0.0)
        mean = (weights @ x).squeeze(1)
        # about the mean: the same number as sum a x^2 - mu^2, without its cancellation; its derivative by the mean is zero
        variance = (weights @ (x - mean.detach().unsqueeze(1)).square()).squeeze(1)
        return torch.cat([mean, variance.clamp_min(VARIANCE_FLOOR).sqrt()], dim=-1)


def pooled_dim(pooling: str, dim: int) -> int:
    """Width of the pooled vector of rows of width ``dim``."""
    return dim if pooling == "mean" else 2 * dim
