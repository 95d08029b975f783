"""Attention between sequences with masks; padding never reaches a valid row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysere.nn.dropout import Dropout, dropout


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762): rows (B, Tq, D) look at the
    valid rows of another sequence.

    Args:
        dim: D, a multiple of ``heads``. probability: dropout of the result (of whole rows' weights
            there is none: it would have to be drawn for every pair of rows).
    """

    def __init__(self, dim: int, heads: int, probability: float) -> None:
        super().__init__()
        self.heads, self.probability = heads, probability
        self.query, self.result = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.keys_values = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """(B, Tq, D) of x (B, Tq, D), other (B, Tk, D) and its ``mask`` bool (B, Tk), which has a
        valid row in each item.
        """
        query = self._by_head(self.query(x))
        keys, values = (self._by_head(part) for part in self.keys_values(other).chunk(2, dim=-1))
        found = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None, None, :])
        return dropout(self.result(found.transpose(1, 2).flatten(2)), self.probability, self.training)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def feed_forward(dim: int, times: int, probability: float) -> nn.Sequential:
    """Linear, ReLU, Linear of hidden width ``times`` dim, with dropout after each."""
    return nn.Sequential(nn.Linear(dim, times * dim), nn.ReLU(), Dropout(probability), nn.Linear(times * dim, dim), Dropout(probability))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual and a LayerNorm behind it (post-norm,
    as published in 2017).
    """

    def __init__(self, dim: int, heads: int, probability: float, times: int) -> None:
        super().__init__()
        self.attention, self.forth = Attention(dim, heads, probability), feed_forward(dim, times, probability)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norms[0](x + self.attention(x, x, mask))
        return self.norms[1](x + self.forth(x))


class CrossLayer(nn.Module):
    """Attention to another sequence and feed-forward, a LayerNorm before each (pre-norm; the
    crossmodal block of Tsai et al. 2019, arXiv:1906.00295).
    """

    def __init__(self, dim: int, heads: int, probability: float, times: int) -> None:
        super().__init__()
        self.attention, self.forth = Attention(dim, heads, probability), feed_forward(dim, times, probability)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)])

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """``mask`` (B, Tk) of ``other`` (B, Tk, D)."""
        x = x + self.attention(self.norms[0](x), self.norms[1](other), mask)
        return x + self.forth(self.norms[2](x))


def sinusoids(steps: int, dim: int, device: torch.device) -> Tensor:
    """Positions (T, D), D even: ``sin(t / 10000^(2 i / D))`` in the first half of the columns, the
    cosines in the second.

    Example:
        >>> sinusoids(3, 8, torch.device("cpu")).shape
        torch.Size([3, 8])
    """
    rates = torch.exp(torch.arange(dim // 2, device=device) * (-2 * torch.log(torch.tensor(10000.0)).item() / dim))
    angles = torch.arange(steps, device=device).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
