"""Random Fourier features: vectors whose dot products are a Gaussian kernel, at a cost that does
not grow with the training set.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=64)
def frequencies(width: int, count: int, number: int) -> Tensor:
    """float32 (width, count): orthogonal random frequencies (Yu et al. 2016, arXiv:1610.09072), the
    same on every machine.

    Columns are drawn in blocks of ``width`` orthogonal directions, whose lengths are those of
    Gaussian vectors; ``number`` tells draws apart. They are not stored with a model but drawn
    again, so they come from numpy's frozen generator, and the signs of the orthogonal blocks are
    settled by hand: libraries differ in them.
    """
    draw = np.random.RandomState((width * 1_000_003 + number) % 2**32)
    blocks = []
    for first in range(0, count, width):
        size = min(width, count - first)
        q, r = np.linalg.qr(draw.standard_normal((width, size)))
        lengths = np.sqrt(draw.chisquare(width, size=size))
        blocks.append(q * np.sign(np.diag(r)) * lengths)
    return torch.from_numpy(np.concatenate(blocks, axis=1).astype(np.float32))


def gaussian_map(x: Tensor, omega: Tensor, gamma: float) -> Tensor:
    """(n, 2 M): ``[cos, sin](sqrt(2 gamma / D) x omega) / sqrt(M)``, whose dot products tend to
    ``exp(-gamma |x - y|^2 / D)``.

    Rahimi and Recht 2007, "Random features for large-scale kernel machines".

    Args:
        x: (n, D). omega: :func:`frequencies` (D, M). gamma: per column, so that it means the same
            for any width.
    """
    phase = (x @ omega).float() * (2 * gamma / x.shape[-1]) ** 0.5
    return torch.cat([phase.cos(), phase.sin()], dim=-1) / omega.shape[1] ** 0.5
