"""The first trials of a lane, spread evenly over the space.

With ten random draws a choice of three is missed altogether once in sixty searches, and what the
first trials never saw TPE seldom asks for. Here every block of k numbers holds each of the k
choices once, and the numbers of the start-up fall into as many equal strata of each range, in an
order of their own for each parameter (Latin hypercube sampling, McKay 1979).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from raysere.base.files import digest


class SpreadSampler(optuna.samplers.BaseSampler):
    """Values of the trial of one number; they depend on the seed, the number and the parameter's
    name alone.

    Args:
        seed: of the lane, the same for all its numbers.
        number: of the trial, from 0.
        count: how many numbers the start-up has.
    """

    def __init__(self, seed: int, number: int, count: int) -> None:
        self.seed, self.number, self.count = seed, number, count

    def infer_relative_search_space(self, study: optuna.Study, trial: Any) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: optuna.Study, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        if isinstance(param_distribution, CategoricalDistribution):
            choices = param_distribution.choices
            block, place = divmod(self.number, len(choices))
            return choices[self._generator(param_name, block).permutation(len(choices))[place]]
        block, place = divmod(self.number, self.count)
        generator = self._generator(param_name, block)
        strata, jitter = generator.permutation(self.count), generator.random(self.count)
        return _at(param_distribution, (strata[place] + jitter[place]) / self.count)

    def _generator(self, name: str, block: int) -> np.random.Generator:
        return np.random.default_rng(int(digest({"seed": self.seed, "parameter": name, "block": block}, 16), 16))


def _at(distribution: BaseDistribution, share: float) -> float | int:
    """The value at a share in [0, 1) of a range, on the scale on which it is searched."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    whole = isinstance(distribution, IntDistribution)
    if whole:
        low, high = low - 0.5, high + 0.5  # so that the two ends are as likely as the values between
    if distribution.log:
        low = max(low, 0.5) if whole else low
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    else:
        value = low + share * (high - low)
    if distribution.step is not None and (whole or distribution.step):
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if whole else float(value)
