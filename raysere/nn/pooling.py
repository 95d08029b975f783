"""Rows to one vector: mean, mean and deviation, attention, attentive statistics (docs/methods.md
1.1).

Padding never enters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VARIANCE_FLOOR = 1e-5


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, D) over the valid rows of x (B, T, D); zeros where no row is valid. ``mask`` is bool
    (B, T).

    Example:
        >>> x, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])
        >>> masked_mean(x, mask).tolist()
        [[2.0]]
    """
    weights = mask.unsqueeze(-1).to(x.dtype)
    # where, not a product: what stands in the padding may be anything, also NaN
    return torch.where(mask.unsqueeze(-1), x, 0.0).sum(1) / weights.sum(1).clamp_min(1)


def masked_mean_std(x: Tensor, mask: Tensor) -> Tensor:
    """[mean; population std] (B, 2 D) over the valid rows; variance floored at 1e-5.

    Example:
        >>> x, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])
        >>> masked_mean_std(x, mask).round(decimals=3).tolist()
        [[2.0, 1.0]]
    """
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean.unsqueeze(1)) ** 2, mask)
    return torch.cat([mean, variance.clamp_min(VARIANCE_FLOOR).sqrt()], dim=-1)


class AttentionPooling(nn.Module):
    """``e_t = v . tanh(W x_t + b)``, ``a = softmax_t(e)`` on valid rows, ``sum a x``
    (docs/methods.md 1.1).

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

    def mean(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x with zeros in the padding, weights (B, 1, T), weighted mean (B, D)."""
        x = torch.where(mask.unsqueeze(-1), x, 0.0)
        weights = self.attention(x, mask).unsqueeze(1).to(x.dtype)
        return x, weights, (weights @ x).squeeze(1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.mean(x, mask)[2]


class AttentiveStatistics(AttentionPooling):
    """``[sum a x; sqrt(max(sum a x^2 - mu^2, 1e-5))]`` with the weights of
    :class:`AttentionPooling` (docs/methods.md 1.1).
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x, weights, mean = self.mean(x, mask)
        # about the mean: the same number as sum a x^2 - mu^2, without its cancellation; its
        # derivative by the mean is zero
        variance = (weights @ (x - mean.detach().unsqueeze(1)).square()).squeeze(1)
        return torch.cat([mean, variance.clamp_min(VARIANCE_FLOOR).sqrt()], dim=-1)


def attention_of(pooling: str, dim: int, bottleneck: int) -> AttentionPooling | None:
    """The module of ``attention`` and ``attentive`` pooling; None for ``mean`` and ``mean_std``,
    which learn nothing.
    """
    kinds: dict[str, type[AttentionPooling]] = {"attention": AttentionPooling, "attentive": AttentiveStatistics}
    return kinds[pooling](dim, bottleneck) if pooling in kinds else None


def pool(pooling: str, x: Tensor, mask: Tensor, attention: AttentionPooling | None) -> Tensor:
    """Rows (B, T, D) to one vector (B, :func:`pooled_dim`); ``attention`` is that of
    :func:`attention_of`.
    """
    if attention is not None:
        return attention(x, mask)
    return masked_mean(x, mask) if pooling == "mean" else masked_mean_std(x, mask)


class Pooling(nn.Module):
    """:func:`pool` as a module with what it learns; ``out`` is the width of its result."""

    def __init__(self, kind: str, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.kind, self.out = kind, pooled_dim(kind, dim)
        self.attention = attention_of(kind, dim, bottleneck)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return pool(self.kind, x, mask, self.attention)


def pooled_dim(pooling: str, dim: int) -> int:
    """Width of the pooled vector of rows of width ``dim``.

    Example:
        >>> pooled_dim("mean_std", 768)
        1536
    """
    return dim if pooling in ("mean", "attention") else 2 * dim
