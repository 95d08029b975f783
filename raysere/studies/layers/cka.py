"""Linear centred kernel alignment, debiased and biased, and maps over layers.

Kornblith et al. 2019 (linear CKA), Song et al. 2012 (the unbiased statistic), in the form of
docs/methods.md 8.7. CKA compares **rows**: both sides have the same ones. Utterances of two
languages have no such correspondence, so between languages it is defined for centroids of cells
(:mod:`raysere.studies.layers.cells`) or, within each language, between layers (:func:`cka_map`) and
of second order (:func:`second_order`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysere.base.errors import DataError
from raysere.studies.estimate import Estimate, permutation_p, spearman

FEWEST_ROWS = 4


def _centred(x: ArrayLike, n: int | None = None) -> NDArray[np.float64]:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 2 or (n is not None and len(values) != n):
        raise DataError(f"CKA compares two arrays (rows, width) with the same rows, not {values.shape}" + (f" with {n} rows" if n else ""))
    return values - values.mean(0)


def _statistic(products: float, a: NDArray, b: NDArray, debiased: bool) -> float:
    """h(A, B) of docs/methods.md 8.7 from ``products`` = |A^T B|_F^2 and the squared norms (n,) of
    the rows.
    """
    if not debiased:
        return products
    n = len(a)
    return products - n / (n - 2) * float(a @ b) + float(a.sum()) * float(b.sum()) / ((n - 1) * (n - 2))


def _products(x: NDArray, y: NDArray) -> float:
    """``|X^T Y|_F^2 = <X X^T, Y Y^T>``, by the smaller of the two matrices."""
    if len(x) <= min(x.shape[1], y.shape[1]):
        return float(((x @ x.T) * (y @ y.T)).sum())
    return float(np.square(x.T @ y).sum())


def linear_cka(x: ArrayLike, y: ArrayLike, *, debiased: bool = True) -> Estimate:
    """Linear CKA of two arrays (n, D1), (n, D2) with the same rows, in float64 (docs/methods.md
    8.7).

    Debiased: ``h(X, Y) / sqrt(h(X, X) h(Y, Y))`` with the U-statistic of HSIC; near 0 for unrelated
    rows whatever n and D are, and it may be negative. Biased (``debiased=False``): near 1 for
    unrelated rows as soon as D is much larger than n; only for comparison. Invariant to
    translations, orthogonal maps and one factor for all columns, not to other linear maps.

    Returns:
        The value; NaN with a reason where one side has no (unbiased) variance.

    Raises:
        DataError: different rows, or fewer than 4.
    """
    x = _centred(x)
    y = _centred(y, len(x))
    if len(x) < FEWEST_ROWS:
        raise DataError(f"CKA needs more than 3 rows, and there are {len(x)}", remedy="Take more cells, or cells with fewer items.")
    a, b = np.square(x).sum(1), np.square(y).sum(1)
    own_x, own_y = (_statistic(_products(z, z), c, c, debiased) for z, c in ((x, a), (y, b)))
    floor = 1e-24 * max(float(a.sum()), 1e-300) ** 2, 1e-24 * max(float(b.sum()), 1e-300) ** 2
    if own_x <= floor[0] or own_y <= floor[1]:
        side = "first" if own_x <= floor[0] else "second"
        return Estimate(float("nan"), reason=f"the {side} side has no {'unbiased ' if debiased else ''}variance over these {len(x)} rows")
    return Estimate(_statistic(_products(x, y), a, b, debiased) / math.sqrt(own_x * own_y))


def row_orders(n: int, permutations: int, seed: int = 0) -> NDArray[np.int64]:
    """Orders of n rows other than their own, int64 (B, n): all of them where there are no more than
    ``permutations``, else random ones.
    """
    if n <= 8 and math.factorial(n) - 1 <= permutations:
        from itertools import permutations as every

        return np.array(list(every(range(n)))[1:], dtype=np.int64).reshape(-1, n)
    generator = np.random.default_rng(seed)
    return np.stack([generator.permutation(n) for _ in range(permutations)])


def permutation_test(measure: Callable[[NDArray, NDArray], float], x: ArrayLike, y: ArrayLike, orders: NDArray[np.int64]) -> Estimate:
    """A measure of two arrays with corresponding rows, with its null: the rows of ``y`` in each of
    ``orders`` (B, n), see :func:`row_orders`; ``p`` is that of a value as large or larger.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    value = measure(x, y)
    if not math.isfinite(value):
        return Estimate(value)
    null = [measure(x, y[order]) for order in orders]
    return Estimate(value, null=float(np.nanmean(null)), null_edge=float(np.nanquantile(null, 0.95)), p=permutation_p(value, null))


def cka_map(layers: Sequence[ArrayLike], *, debiased: bool = True) -> NDArray[np.float64]:
    """CKA between all layers of the same utterances: (L + 1, L + 1), symmetric, 1 on the diagonal;
    NaN for layers without variance.
    """
    arrays = [_centred(layer) for layer in layers]
    if not arrays or any(len(array) != len(arrays[0]) for array in arrays) or len(arrays[0]) < FEWEST_ROWS:
        raise DataError("A map of CKA needs the same utterances, 4 or more, in every layer")
    count = len(arrays)
    few = len(arrays[0]) <= count * min(array.shape[1] for array in arrays) / 2  # then one Gram matrix a layer is cheaper than the products
    grams = [array @ array.T for array in arrays] if few else []
    norms = [np.square(array).sum(1) for array in arrays]
    table = np.empty((count, count))
    for i in range(count):
        for j in range(i, count):
            products = float((grams[i] * grams[j]).sum()) if few else _products(arrays[i], arrays[j])
            table[i, j] = table[j, i] = _statistic(products, norms[i], norms[j], debiased)
    own = np.diagonal(table).copy()
    own[own <= 1e-24 * np.array([max(float(norm.sum()), 1e-300) ** 2 for norm in norms])] = np.nan
    return table / np.sqrt(np.outer(own, own))


def second_order(first: ArrayLike, second: ArrayLike, *, permutations: int = 999, seed: int = 0) -> Estimate:
    """Spearman's correlation of the upper triangles of two maps of :func:`cka_map` (docs/methods.md
    8.5), with a Mantel test.

    The null permutes the layers of one map. Layers near each other are alike in every deep network,
    so a small p says only that the two maps share the order of the layers; the value itself is what
    can be compared.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise DataError(f"Two square maps over the same layers are needed, not {a.shape} and {b.shape}")
    upper = np.triu_indices(len(a), 1)
    value = spearman(a[upper], b[upper])
    if not math.isfinite(value):
        return Estimate(value, reason="fewer than three pairs of layers with a CKA")
    null = [spearman(a[upper], b[np.ix_(order, order)][upper]) for order in row_orders(len(a), permutations, seed)]
    return Estimate(value, null=float(np.nanmean(null)), null_edge=float(np.nanquantile(null, 0.95)), p=permutation_p(value, null))
