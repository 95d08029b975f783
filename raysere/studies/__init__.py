"""Studies of the features of an experiment: what a study needs is read and extracted, then it runs, then its page is written."""

from __future__ import annotations

from raysere.studies.layers import analyze_layers
from raysere.studies.units import analyze_units

__all__ = ["analyze_layers", "analyze_units"]
