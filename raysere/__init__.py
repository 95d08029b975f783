"""raysere: from a corpus folder to a searched, fused and honestly evaluated speech emotion
recogniser.

The same verbs as the command line, importable without loading torch or Ray:

    import raysere
    raysere.run("experiment.yaml")
    raysere.leaderboard("runs/emodb")
    raysere.Ensemble.load("runs/emodb/ensemble").predict(["clip.wav"])
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Ensemble": "raysere.ensemble.saved.ensemble:Ensemble",
    "evaluate": "raysere.pipeline.verbs:evaluate_run",
    "Experiment": "raysere.pipeline.experiment:Experiment",
    "fuse": "raysere.pipeline.verbs:fuse_runs",
    "leaderboard": "raysere.search.leaderboard:leaderboard",
    "load_experiment": "raysere.pipeline.experiment:load_experiment",
    "RaysereError": "raysere.base.errors:RaysereError",
    "run": "raysere.pipeline.stages:run",
    "status": "raysere.pipeline.status:run_status",
    "write_report": "raysere.report.page:write_report",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'raysere' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
