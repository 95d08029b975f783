"""Criteria for a model on a target domain that read no target label (docs/methods.md 5.6).

Posteriors p are (n, C) of target items; features are of the trained model. Which direction is
better stands in :data:`BETTER`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

#: 1 where a higher value is better, -1 where a lower one is.
BETTER = {"source_dev": 1, "infomax": 1, "iwcv": -1, "dev": -1, "devn": -1, "snd": 1, "bnm": 1, "class_ami": 1}
DENSITY_ITEMS = 5000  # of the soft neighbourhood density, whose cost grows with the square
_DECAYS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


def mean_entropy(p: np.ndarray) -> float:
    """Mean entropy of the rows in nats."""
    return float(-_xlogx(p).sum(1).mean())


def infomax(p: np.ndarray) -> float:
    """``H(mean p) - mean H(p)``, 0 to log C; prefers an even spread over classes, wrong where the
    target's is not.
    """
    return float(-_xlogx(p.mean(0)).sum()) - mean_entropy(p)


def bnm(p: np.ndarray) -> float:
    """Nuclear norm over n: sqrt(C / n) for sure and balanced answers, 1 / sqrt(n) for one class."""
    return float(np.linalg.svd(p.astype(np.float64), compute_uv=False).sum() / len(p))


def snd(p: np.ndarray, temperature: float = 0.05, seed: int = 0) -> float:
    """Soft neighbourhood density: mean entropy of each item's softmax over cosine similarities to
    all others (Saito et al. 2021).

    Its maximum log(n - 1) is reached by one class for all and by no opinion, too: see
    :func:`density_is_meant`.
    """
    if len(p) > DENSITY_ITEMS:
        p = p[np.sort(np.random.default_rng(seed).choice(len(p), DENSITY_ITEMS, replace=False))]
    unit = p.astype(np.float64) / np.linalg.norm(p, axis=1, keepdims=True).clip(1e-12)
    total = 0.0
    for first in range(0, len(unit), 1024):
        close = unit[first : first + 1024] @ unit.T / temperature
        close[np.arange(len(close)), first + np.arange(len(close))] = -np.inf
        close -= close.max(1, keepdims=True)
        weight = np.exp(close)
        weight /= weight.sum(1, keepdims=True)
        total -= float(_xlogx(weight).sum())
    return total / len(unit)


def density_is_meant(p: np.ndarray, source_prior: np.ndarray) -> bool:
    """Whether :func:`snd` may be read: answers spread over half as many classes as the source has,
    and are surer than guesses.
    """
    spread = np.exp(-_xlogx(p.mean(0)).sum())
    return bool(spread >= 0.5 * np.exp(-_xlogx(source_prior).sum()) and p.max(1).mean() >= 1.5 / p.shape[1])


# ---- importance weights --------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """Density ratios target / source (n,) of source items, and whether an estimate by them can be
    trusted.
    """

    values: np.ndarray

    @property
    def effective(self) -> float:
        """Share of the items that the weights leave: ``(sum w)^2 / (n sum w^2)``."""
        return float(self.values.sum() ** 2 / (len(self.values) * (self.values**2).sum())) if self.values.any() else 0.0

    @property
    def reliable(self) -> bool:
        """Effective share of 5 % or more, no weight above 50 (docs/methods.md 5.6), and a mean near
        1, which ratios of densities have: where the domains lie apart all weights are nearly 0. The
        last condition is ours.
        """
        return self.effective >= 0.05 and float(self.values.max()) <= 50 and 1 / 3 <= float(self.values.mean()) <= 3


def density_ratio(train_source: np.ndarray, train_target: np.ndarray, of: np.ndarray, seed: int = 0) -> Weights:
    """``w = (n_S / n_T) P(T | f) / P(S | f)`` of rows ``of`` (n, d) by a logistic domain
    classifier.

    80 % of source (n_S, d) and target features (n_T, d) train it, the rest chooses its weight decay
    by accuracy.
    """
    features = np.concatenate([train_source, train_target]).astype(np.float64)
    domain = np.r_[np.zeros(len(train_source)), np.ones(len(train_target))]
    middle, spread = features.mean(0), features.std(0)
    spread[spread < 1e-12] = 1.0
    features = (features - middle) / spread
    generator = np.random.default_rng(seed)
    held = np.zeros(len(domain), bool)
    for value in (0, 1):
        rows = np.flatnonzero(domain == value)
        held[generator.permutation(rows)[: max(1, len(rows) // 5)]] = True
    best: tuple[float, np.ndarray] | None = None
    theta = np.zeros(features.shape[1] + 1)
    for decay in _DECAYS:
        theta = _logistic(features[~held], domain[~held], decay, theta)
        accuracy = float(((features[held] @ theta[:-1] + theta[-1] > 0) == (domain[held] > 0.5)).mean())
        if best is None or accuracy > best[0]:
            best = accuracy, theta.copy()
    assert best is not None
    odds = ((of - middle) / spread) @ best[1][:-1] + best[1][-1]
    return Weights(len(train_source) / len(train_target) * np.exp(np.clip(odds, -50, 50)))


def _logistic(x: np.ndarray, y: np.ndarray, decay: float, start: np.ndarray) -> np.ndarray:
    """Weights and bias (d + 1,) of least ``mean log-loss + decay / 2 |w|^2``."""
    from scipy.optimize import minimize

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        score = x @ theta[:-1] + theta[-1]
        value = np.logaddexp(0, score).mean() - (y * score).mean() + decay / 2 * theta[:-1] @ theta[:-1]
        error = (1 / (1 + np.exp(-np.clip(score, -500, 500))) - y) / len(y)
        return float(value), np.r_[x.T @ error + decay * theta[:-1], error.sum()]

    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x


def weighted_risk(loss: np.ndarray, weights: np.ndarray) -> float:
    """``iwcv``: mean of w l over source development items (n,)."""
    return float((weights * loss).mean())


def deep_embedded(loss: np.ndarray, weights: np.ndarray) -> float:
    """``dev``: ``mean(w l) + eta mean(w) - eta`` with ``eta = -Cov(w l, w) / Var(w)``, the risk
    with w as control variate.

    Without variance of w the plain mean of l. Lower is better (You et al. 2019).
    """
    if len(weights) < 2 or np.var(weights, ddof=1) <= 1e-300:
        return float(loss.mean())
    weighted = weights * loss
    eta = -float(np.cov(weighted, weights, ddof=1)[0, 1] / np.var(weights, ddof=1))
    return float(weighted.mean() + eta * weights.mean() - eta)


def normalised(weights: np.ndarray) -> np.ndarray:
    """Of ``devn``: over the largest, then moved to a mean of 1 (Saito et al. 2021)."""
    scaled = weights / max(float(weights.max()), 1e-300)
    return scaled + (1 - scaled.mean())


# ---- clusters ------------------------------------------------------------------------------------


def adjusted_mutual_information(one: np.ndarray, other: np.ndarray) -> float:
    """Of two labellings (n,): mutual information less its mean under permutation, over the mean
    entropy less the same; 1 for the same.
    """
    from scipy.special import gammaln

    _, one = np.unique(one, return_inverse=True)
    _, other = np.unique(other, return_inverse=True)
    n = len(one)
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    a, b = table.sum(1), table.sum(0)
    entropies = [-float(_xlogx(side / n).sum()) for side in (a, b)]
    if len(a) == len(b) == 1 or len(a) == len(b) == n:
        return 1.0
    mutual = entropies[0] + entropies[1] + float(_xlogx(table / n).sum())
    expected = 0.0
    for left in a:
        for right in b:
            count = np.arange(max(1, left + right - n), min(left, right) + 1)
            log_p = (
                gammaln(left + 1) + gammaln(right + 1) + gammaln(n - left + 1) + gammaln(n - right + 1)
                - gammaln(n + 1) - gammaln(count + 1) - gammaln(left - count + 1) - gammaln(right - count + 1)
                - gammaln(n - left - right + count + 1)
            )  # fmt: skip
            expected += float((count / n * np.log(n * count / (left * right)) * np.exp(log_p)).sum())
    norm = (entropies[0] + entropies[1]) / 2 - expected
    return float((mutual - expected) / (norm if abs(norm) > 1e-15 else np.copysign(1e-15, norm)))


def cluster(features: np.ndarray, count: int, seed: int = 0, restarts: int = 4) -> np.ndarray:
    """k-means labels (n,) int of rows (n, d), of the start of least inertia."""
    import torch

    from raysere.nn.kmeans import kmeans, nearest

    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    found = kmeans(lambda _: [x], count, seeds=range(seed, seed + restarts), passes=0, lloyd=50)
    return nearest(x, min(found, key=lambda one: one.inertia).centres)[0].numpy()


def class_ami(p: np.ndarray, features: np.ndarray, seed: int = 0) -> float:
    """Agreement of the predicted classes with k-means of the features into as many clusters
    (docs/methods.md 5.6).
    """
    return adjusted_mutual_information(p.argmax(1), cluster(features, p.shape[1], seed))


def _xlogx(p: np.ndarray) -> np.ndarray:
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0.0)


# ---- all of them for one model -------------------------------------------------------------------


def criteria_of(
    *,
    source_prior: np.ndarray,
    train_features: np.ndarray,
    dev_features: np.ndarray,
    dev_loss: np.ndarray,
    target: np.ndarray,
    target_features: np.ndarray,
    seed: int = 0,
) -> dict[str, float]:
    """All criteria but the source's own score, from one trained model.

    Args:
        source_prior: (C,). train_features: (n, d) of source training items; dev_features, dev_loss:
            (m, d), (m,) 0/1 errors of source development items. target, target_features: posteriors
            (t, C) and features (t, d) of unlabelled target items.

    A criterion that its guard rejects is left out: importance weights that a few items carry, a
    density that means nothing.
    """
    found = {"infomax": infomax(target), "bnm": bnm(target), "class_ami": class_ami(target, target_features, seed)}
    if density_is_meant(target, source_prior):
        found["snd"] = snd(target, seed=seed)
    weights = density_ratio(train_features, target_features, dev_features, seed)
    found["weights_effective"] = weights.effective
    if weights.reliable:
        found["iwcv"] = weighted_risk(dev_loss, weights.values)
        found["dev"] = deep_embedded(dev_loss, weights.values)
        found["devn"] = deep_embedded(dev_loss, normalised(weights.values))
    return found


def ranked(trials: Mapping[str, Mapping[str, float]], names: tuple[str, ...]) -> dict[str, float]:
    """Mean rank of each trial over the criteria (1 the best, ties share); a criterion that a trial
    lacks ranks it last there.
    """
    keys = list(trials)
    ranks = np.zeros(len(keys))
    for name in names:
        value = np.array([BETTER[name] * trials[key].get(name, -np.inf * BETTER[name]) for key in keys])
        ranks += np.array([(value > one).sum() + ((value == one).sum() + 1) / 2 for one in value])
    return dict(zip(keys, (ranks / len(names)).tolist(), strict=True))
