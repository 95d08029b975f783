"""How long a batch takes: a fixed part and one by the work in it, told from the latest batches."""

from __future__ import annotations

_FIRST_RATE = 0.1  # seconds of work a unit, before anything was measured
_FORGET = 0.1  # weight of the latest batch
_RIDGE = 0.01  # squared coefficient of variation of the work at which the batches and the prior (no fixed part) count alike


class Pace:
    """Seconds of a batch as ``fixed + slope * units``; least squares over past batches, those of long ago forgotten.

    Batches of one size cannot tell the two parts apart, so the slope is drawn a little towards the mean rate, and neither part is negative.

    Args:
        rate: seconds a unit, until batches were seen.
    """

    def __init__(self, rate: float = _FIRST_RATE) -> None:
        self.fixed, self.slope = 0.0, rate
        self._weight = self._units = self._seconds = self._squares = self._products = 0.0

    def learn(self, units: float, seconds: float) -> None:
        """Take account of a batch of ``units`` (> 0) of work that took ``seconds``."""
        keep = 1 - _FORGET
        self._weight = keep * self._weight + 1
        self._units = keep * self._units + units
        self._seconds = keep * self._seconds + seconds
        self._squares = keep * self._squares + units * units
        self._products = keep * self._products + units * seconds
        work, took = self._units / self._weight, self._seconds / self._weight
        spread = max(0.0, self._squares / self._weight - work * work)
        together = self._products / self._weight - work * took
        prior = _RIDGE * work * work
        self.slope = min(max(0.0, (together + prior * took / work) / (spread + prior)), took / work)
        self.fixed = max(0.0, took - self.slope * work)

    def seconds(self, units: float) -> float:
        """Of one batch of ``units``; nothing takes no time."""
        return self.fixed + self.slope * units if units > 0 else 0.0
