"""Studies of features, each with its page."""

from __future__ import annotations

from raysere.studies.layers.run import analyze_layers
from raysere.studies.units.run import analyze_units

__all__ = ["analyze_layers", "analyze_units"]
