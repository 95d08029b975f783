"""Batch latency = load x (fixed + slope x work); fixed and slope are calibrated at start-up."""

from __future__ import annotations

from collections.abc import Sequence

_FIRST_RATE = 0.1  # seconds a unit, where nothing was tried
_FORGET = 0.1  # weight of the latest batch


class Latency:
    """Seconds of a batch, as ``load * (fixed + slope * units)``.

    Under load, a batch takes longer whatever is in it: parts that were fitted to such batches would
    take that for a large fixed part, and make the batches small. So the parts stay as they were on
    a calm machine, and only ``load`` follows.

    Args:
        tried: (units, seconds) of batches on a calm machine; their line by least squares, neither
            part negative.
    """

    def __init__(self, tried: Sequence[tuple[float, float]] = ()) -> None:
        self.load, self.fixed, self.slope = 1.0, 0.0, _FIRST_RATE
        if tried:
            work, took = (sum(one[n] for one in tried) / len(tried) for n in (0, 1))
            spread = sum((units - work) ** 2 for units, _ in tried)
            together = sum((units - work) * (seconds - took) for units, seconds in tried)
            self.slope = min(max(0.0, together / spread), took / work) if spread else took / work
            self.fixed = max(0.0, took - self.slope * work)

    def learn(self, units: float, seconds: float) -> None:
        """Take account of a batch of ``units`` (> 0) of work that took ``seconds``."""
        self.load += _FORGET * (seconds / self.calm(units) - self.load)

    def calm(self, units: float) -> float:
        """Seconds of one batch of ``units`` on a calm machine; nothing takes no time."""
        return self.fixed + self.slope * units if units > 0 else 0.0

    def seconds(self, units: float) -> float:
        """Seconds of one batch of ``units`` as things are."""
        return self.load * self.calm(units)
