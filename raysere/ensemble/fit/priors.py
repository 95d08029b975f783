"""Class priors: moving predictions from one to another, and estimating an unknown one
(docs/methods.md 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raysere.base.errors import ConfigError
from raysere.ensemble.fit.calibration import log_softmax

if TYPE_CHECKING:
    from raysere.ensemble.config import EnsembleConfig


def shift_prior(logp: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """``log p'_k = log p_k + log target_k - log source_k``, renormalised; (..., K), dtype kept."""
    ratio = np.log(np.maximum(target, 1e-12)) - np.log(np.maximum(source, 1e-12))
    return log_softmax(logp + ratio.astype(logp.dtype))


@dataclass(frozen=True)
class Posterior:
    """Log-probabilities (N, K) together with the class prior (K,) that they carry, so that no prior
    can be corrected twice.

    The only way to another prior is :meth:`under`, which starts from the one that is carried: asked
    twice for the same, it changes nothing the second time, and any chain of priors ends where its
    last link alone would.
    """

    logp: np.ndarray
    prior: np.ndarray

    def under(self, target: np.ndarray) -> Posterior:
        """The same evidence under the class prior ``target`` (K,)."""
        return Posterior(shift_prior(self.logp, self.prior, target), np.asarray(target))


def check_prior(config: EnsembleConfig, classes: Sequence[str]) -> None:
    """Raise ConfigError unless a prior that is stated as a list has one number for each class; to
    be called before a search.
    """
    _check_length(config.prior, classes)


def _check_length(choice: str | tuple[float, ...], classes: Sequence[str]) -> None:
    if not isinstance(choice, str) and len(choice) != len(classes):
        raise ConfigError(
            f"The prior has {len(choice)} numbers, but there are {len(classes)} classes",
            where="ensemble.prior",
            remedy="Give one number for each class, in this order: " + ", ".join(classes) + "." if classes else "Leave it out.",
        )


def likeliest_class(prior: np.ndarray, selection: np.ndarray, classes: Sequence[str]) -> int:
    """The answer where no member has one: the class with the largest ``prior`` (K,), of equals (a
    uniform prior) the one that the selection rows have most of, then the first by name. It does not
    depend on the order of the classes.
    """
    return min(range(len(classes)), key=lambda k: (-round(float(prior[k]), 9), -round(float(selection[k]), 9), classes[k]))


def decision_prior(choice: str | tuple[float, ...], metric: str, selection: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """The prior (K,) under which the ensemble decides (see EnsembleConfig.prior).

    Under a uniform prior the most probable class is the Bayes decision for the UAR, under the true
    one for accuracy; for macro-F1, whose best thresholds lie between, halfway on the log scale.
    """
    if not isinstance(choice, str):
        _check_length(choice, classes)
        return np.asarray(choice, np.float64) / sum(choice)
    if choice == "auto":
        power = {"uar": 0.0, "macro_f1": 0.5}.get(metric, 1.0)
    else:
        power = 0.0 if choice == "uniform" else 1.0  # "estimate" starts from the selection prior, too
    prior = np.asarray(selection, np.float64) ** power
    return prior / prior.sum()


def estimate_prior(logp: np.ndarray, source: np.ndarray, *, rounds: int = 1000, tolerance: float = 1e-8) -> np.ndarray:
    """Class prior (K,) of unlabelled rows by expectation maximisation (Saerens et al., 2002).

    Off by default everywhere, because it reads the inputs of all rows that are to be answered at
    once.

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
