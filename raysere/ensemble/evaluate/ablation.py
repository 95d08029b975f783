"""Ablations: the value of each part of the procedure, and a control with shuffled labels
(docs/methods.md 4.14).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.data.predictions import FitRows, MemberInfo, usable_trials
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.evaluate.evaluation import Scores, scores_of
from raysere.ensemble.evaluate.protocols import cross_fit, fit_runs, in_sample
from raysere.ensemble.fit.part import fit_part
from raysere.training.metrics import bootstrap, confusion, statistic_of
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


SIZES = (8, 16, 32)  # members of each outer split that an ablation tries, where there are more

Keep = Callable[[MemberInfo], bool]


def ablate(
    run: str | os.PathLike[str],
    variants: Mapping[str, dict[str, Any]] | None = None,
    config: EnsembleConfig | None = None,
    libraries: Mapping[str, Keep] | None = None,
) -> list[dict[str, Any]]:
    """Fit and score the whole protocol of a run once for each variant of the procedure and once for
    each part of the library.

    Args:
        variants: name to changed settings of the ensemble; None: ``VARIANTS``.
        config: the full procedure; None: the run's own settings with everything that can be chosen
            left open.
        libraries: name to which members are left; None: those of :func:`libraries_of`.

    Returns:
        Rows ``variant, value, low, high, seconds`` (of processor time: fitting and answering) and,
        but for the first ("the full procedure"), ``worth``: the full procedure minus the variant
        with its paired interval over speakers. Nothing is saved.
    """
    opened = Run.open(run)
    full = config or opened.config.model_copy(update={"family": "auto", "pool": "auto", "offsets": "auto"})
    full = full.model_copy(update={"recipes": ()})
    changes = VARIANTS if variants is None else variants
    plans: dict[str, tuple[EnsembleConfig, Keep | None]] = {"the full procedure": (full, None)}
    plans |= {name: (EnsembleConfig.model_validate(full.model_dump() | changed), None) for name, changed in changes.items()}
    plans |= {name: (full, keep) for name, keep in (libraries_of(opened) if libraries is None else libraries).items()}
    rows: list[dict[str, Any]] = []
    first: Scores | None = None
    for name, (settings, keep) in plans.items():
        fitted = fit_runs([opened], settings, keep)
        scores = scores_of([opened], fitted, settings)
        row = {"variant": name, **scores.interval("ensemble", opened.task.metric), "seconds": round(fitted.seconds, 3)}
        first = first or scores
        rows.append(row if first is scores else {**row, "worth": first.difference(scores, "ensemble")})
    return rows


def libraries_of(run: Run) -> dict[str, Keep]:
    """Parts of a run's library: members on one set of features alone, where there are several, and
    the first ``SIZES`` trials.

    The first n trials of an outer split are taken from its studies in turns, as a search with a
    smaller budget would have run them.
    """
    records = usable_trials(run)
    heard = sorted({record.features for record in records})
    found: dict[str, Keep] = {f"only {'+'.join(one)}": _on(one) for one in heard} if len(heard) > 1 else {}
    turns = sorted(records, key=lambda record: (record.number, record.study))
    by_outer = [[record.trial for record in turns if record.outer == outer] for outer in run.outers]
    for size in SIZES:
        if size < max(map(len, by_outer)):
            found[f"{size} members"] = _among({trial for trials in by_outer for trial in trials[:size]})
    return found


def _on(features: tuple[str, ...]) -> Keep:
    return lambda member: member.record is not None and member.record.features == features


def _among(trials: set[str]) -> Keep:
    return lambda member: member.trial in trials


def shuffled_control(selection: FitRows, task: Task, config: EnsembleConfig, *, seed: int = 0) -> dict[str, float]:
    """The procedure on labels that were shuffled among the rows: the cross-fitted score should be
    chance, the in-sample one flatters.

    Returns:
        ``held_out`` (cross-fitted) with ``low`` and ``high``, its 95 % interval over speakers,
        ``in_sample`` and ``chance`` (1 / K) of the class metric.
    """
    labelled = selection.take_rows(selection.label >= 0)
    mixed = replace(labelled, label=np.random.default_rng(seed).permutation(labelled.label))
    plain = config.model_copy(update={"recipes": ()})
    classes, name = len(task.classes), "uar" if task.metric == "ccc" else task.metric
    answer = cross_fit(mixed, task, plain, 0).answer["ensemble"]
    held_out = bootstrap(name, mixed.label, answer, mixed.group, classes=classes, draws=plain.draws, seed=plain.seed)
    flattered = confusion(mixed.label, in_sample(fit_part(mixed, task, plain), mixed, task)[1], classes)
    return {
        "held_out": held_out.value,
        "low": held_out.low,
        "high": held_out.high,
        "in_sample": float(statistic_of(name)(flattered)),
        "chance": 1 / classes,
    }
