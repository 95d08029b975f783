"""Controls of the procedure: what each of its parts is worth, and what it finds where there is nothing to find (papers 3.10)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.evaluation import scores_of
from raysere.ensemble.fit import fit_part
from raysere.ensemble.library import Selection
from raysere.ensemble.protocols import cross_fit, fit_runs, in_sample
from raysere.ensemble.runs import Run
from raysere.training.metrics import confusion, statistic_of
from raysere.training.task import Task

#: What is taken away from the procedure, or held fixed, one at a time.
VARIANTS: dict[str, dict[str, Any]] = {
    "without calibration": {"calibrate": False},
    "without prior correction": {"prior": "same"},
    "without offsets": {"offsets": "none"},
    "without bags": {"bags": 0},
    "linear pool only": {"pool": "linear"},
    "log pool only": {"pool": "log"},
    "always the average": {"family": "average"},
    "always one greedy pass": {"family": "greedy_once"},
    "always bagged greedy": {"family": "greedy"},
    "always convex weights": {"family": "convex"},
    "always the stack": {"family": "stack"},
}


def ablate(
    run: str | os.PathLike[str], variants: Mapping[str, dict[str, Any]] | None = None, config: EnsembleConfig | None = None
) -> list[dict[str, Any]]:
    """Fit and score the whole protocol of a run once for each variant.

    Args:
        variants: name to changed settings of the ensemble; None: ``VARIANTS``.
        config: the full procedure; None: the run's own settings with everything that can be chosen left open.

    Returns:
        Rows ``variant, value, low, high`` and, but for the first ("the full procedure"), ``worth``: the full procedure minus the variant
        with its paired interval over speakers. Nothing is saved.
    """
    opened = Run.open(run)
    full = config or opened.config.model_copy(update={"family": "auto", "pool": "auto", "offsets": "auto"})
    full = full.model_copy(update={"recipes": ()})
    first = scores_of([opened], fit_runs([opened], full), full)
    rows: list[dict[str, Any]] = [{"variant": "the full procedure", **first.interval("ensemble", opened.task.metric)}]
    for name, changed in (VARIANTS if variants is None else variants).items():
        settings = EnsembleConfig.model_validate(full.model_dump() | changed)
        other = scores_of([opened], fit_runs([opened], settings), settings)
        rows.append({"variant": name, **other.interval("ensemble", opened.task.metric), "worth": first.difference(other, "ensemble")})
    return rows


def shuffled_control(selection: Selection, task: Task, config: EnsembleConfig, *, seed: int = 0) -> dict[str, float]:
    """The procedure on labels that were shuffled among the rows: the cross-fitted score should be chance, the in-sample one flatters.

    Returns:
        ``held_out`` (cross-fitted), ``in_sample`` and ``chance`` (1 / K) of the class metric.
    """
    labelled = selection.part(selection.label >= 0)
    mixed = replace(labelled, label=np.random.default_rng(seed).permutation(labelled.label))
    plain = config.model_copy(update={"recipes": ()})
    classes = len(task.classes)
    metric = statistic_of("uar" if task.metric == "ccc" else task.metric)

    def score(answer: np.ndarray) -> float:
        return float(metric(confusion(mixed.label, answer, classes)))

    return {
        "held_out": score(cross_fit(mixed, task, plain, 0).answer["ensemble"]),
        "in_sample": score(in_sample(fit_part(mixed, task, plain), mixed, task)[1]),
        "chance": 1 / classes,
    }
