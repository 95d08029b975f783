"""Class priors: moving predictions from one to another, and estimating an unknown one (papers 3.7 step 2)."""

from __future__ import annotations

import numpy as np

from raysere.ensemble.calibration import log_softmax
from raysere.errors import ConfigError


def shift_prior(logp: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """``log p'_k = log p_k + log target_k - log source_k``, renormalised; (..., K), dtype kept."""
    ratio = np.log(np.maximum(target, 1e-12)) - np.log(np.maximum(source, 1e-12))
    return log_softmax(logp + ratio.astype(logp.dtype))


def decision_prior(choice: str | tuple[float, ...], metric: str, selection: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """The prior (K,) under which the ensemble decides (see EnsembleConfig.prior).

    Under a uniform prior the most probable class is the Bayes decision for the UAR, under the true one for accuracy; for
    macro-F1, whose best thresholds lie between, halfway on the log scale.
    """
    if not isinstance(choice, str):
        if len(choice) != len(classes):
            raise ConfigError(
                f"The prior has {len(choice)} numbers, but there are {len(classes)} classes", where="ensemble.prior", choices=classes
            )
        return np.asarray(choice, np.float64) / sum(choice)
    if choice == "auto":
        power = {"uar": 0.0, "macro_f1": 0.5}.get(metric, 1.0)
    else:
        power = 1.0 if choice == "same" else 0.0
    prior = np.asarray(selection, np.float64) ** power
    return prior / prior.sum()


def estimate_prior(logp: np.ndarray, source: np.ndarray, *, rounds: int = 1000, tolerance: float = 1e-8) -> np.ndarray:
    """Class prior (K,) of unlabelled rows by expectation maximisation (Saerens et al., 2002).

    Off by default everywhere, because it reads the inputs of all rows that are to be answered at once.

    Args:
        logp: (N, K) log-probabilities calibrated to prior ``source`` (K,).
    """
    ratio = np.exp(logp.astype(np.float64)) / np.maximum(source, 1e-12)
    prior = np.asarray(source, np.float64).copy()
    for _ in range(rounds):
        posterior = ratio * prior
        posterior /= np.maximum(posterior.sum(1, keepdims=True), 1e-300)
        new = posterior.mean(0)
        moved = np.abs(new - prior).max()
        prior = new
        if moved < tolerance:
            break
    return prior
