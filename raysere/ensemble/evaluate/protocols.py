"""Fit on development rows and answer held-out rows, by protocol.

No label of a test row passes through here: test rows come as Predictions, which hold none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from raysere.base.errors import DataError
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions, load_fit_rows, load_predictions
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.evaluate.diversity import diversity_of
from raysere.ensemble.evaluate.recipes import RECIPES, fit_baselines, wanted_recipes
from raysere.ensemble.fit.answers import Answers, Fitted
from raysere.ensemble.fit.attributes import group_folds
from raysere.ensemble.fit.classes import decide
from raysere.ensemble.fit.part import OuterFit, fit_part
from raysere.training.task import Task

#: Cross-fitting repeats the whole procedure for each group of folds; more groups than this are
#: merged.
MAX_GROUPS = 10
SYSTEMS = ("ensemble", *RECIPES)


def fit_runs(runs: Sequence[Run], config: EnsembleConfig, keep: Callable[[MemberInfo], bool] | None = None) -> Fitted:
    """Fit on development rows and answer held-out ones.

    - nested: for each outer fold, everything on its development rows, answers for its test rows;
      the final ensemble is the uniform mixture of the outer ones. The same for a transfer, whose
      development rows are of the source and test rows of the target.
    - test rows are there: everything on the development rows, answers for the test rows.
    - else cross-fitting: for each group of folds everything on the other folds, the best single
      member's choice included.

    Args:
        keep: which finished trials may be members; None: all. The rows stay those of all finished
            trials.

    Raises DataError where there is no finished trial, or one speaker only.
    """
    first = runs[0]
    notes = _recipe_notes(config, first.task)
    if first.kind in ("nested", "transfer"):
        fitted = Fitted([], [], "nested" if first.kind == "nested" else "test", [*notes, *_transfer_notes(first)])
        for outer in first.outers:
            _fit_split(fitted, _kept(load_fit_rows(runs, outer), keep), _held(runs, outer, keep), first.task, config, outer)
        return fitted
    outer = first.outers[0]
    held = _held(runs, outer, keep)
    fitted = Fitted([], [], "test" if held.utterances else "out_of_fold", notes)
    if not held.utterances:
        notes.append(
            "There are no test rows: the ensemble was cross-fitted over held-out folds. The search itself saw the development score of all "
            "folds, so the members (not the ensembling) may be scored a little too high; the nested protocol takes that away."
        )
    _fit_split(fitted, _kept(load_fit_rows(runs, outer), keep), held, first.task, config, outer)
    return fitted


def _fit_split(fitted: Fitted, selection: FitRows, held: StackedPredictions, task: Task, config: EnsembleConfig, outer: int) -> None:
    """Add the part of one outer split, its answers (cross-fitted ones where there are no held-out
    rows) and its report.
    """
    start = time.process_time()
    part = fit_part(selection, task, config)
    found = answer_rows(part, selection, held, task, config, outer) if held.utterances else cross_fit(selection, task, config, outer)
    fitted.seconds += time.process_time() - start
    found.in_sample = [in_sample(part, selection, task)]
    fitted.parts.append(part)
    fitted.answers.append(found)
    fitted.diversity.append(diversity_of(part, selection, task, config.seed))


def _kept(selection: FitRows, keep: Callable[[MemberInfo], bool] | None) -> FitRows:
    if keep is None:
        return selection
    numbers = [number for number, member in enumerate(selection.predictions.members) if keep(member)]
    if not numbers:
        raise DataError("The member filter leaves no trial in one outer split")
    return selection.take_members(numbers)


def _held(runs: Sequence[Run], outer: int, keep: Callable[[MemberInfo], bool] | None) -> StackedPredictions:
    held = load_predictions(runs, outer, "test")
    return held if keep is None else held.take_members([number for number, member in enumerate(held.members) if keep(member)])


def _transfer_notes(run: Run) -> list[str]:
    protocol = run.settings.get("protocol") or {}
    if run.kind != "transfer":
        return []
    how = "the tested clips, unlabelled" if protocol.get("transductive") else "clips of other target speakers, unlabelled"
    corpora = ", ".join(protocol.get("source") or ()), ", ".join(protocol.get("target") or ())
    return [
        f"Transfer from {corpora[0]} to {corpora[1]}: members adapt to {how}; all choices are by source speakers, none by a target label."
    ]


def _recipe_notes(config: EnsembleConfig, task: Task) -> list[str]:
    if config.recipes == "auto" and task.categorical and "forest" not in wanted_recipes(config, task):
        return ["The random-forest recipe was not run: it needs scikit-learn (pip install raysere[baselines])."]
    return []


def cross_fit(selection: FitRows, task: Task, config: EnsembleConfig, outer: int) -> Answers:
    """Answers for every selection row from an ensemble (and recipes) fitted on the other folds
    alone.
    """
    groups = cross_fit_groups(selection, config)
    pieces, order = [], []
    for number in np.unique(groups):
        held = groups == number
        fitting = selection.take_rows(~held)
        part = fit_part(fitting, task, config)
        pieces.append(answer_rows(part, fitting, _unlabelled(selection.predictions.take_rows(held)), task, config, outer))
        order.append(np.flatnonzero(held))
    place = np.argsort(np.concatenate(order))

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(arrays)[place]

    return Answers(
        outer,
        selection.predictions.utterances,
        {name: join([piece.answer[name] for piece in pieces]) for name in pieces[0].answer},
        {name: join([piece.values[name] for piece in pieces]) for name in pieces[0].values},
        join([piece.natural for piece in pieces]),
        join([piece.logp for piece in pieces]),
        join([piece.answered for piece in pieces]),
        [member for piece in pieces for member in piece.best],
    )


def cross_fit_groups(selection: FitRows, config: EnsembleConfig) -> np.ndarray:
    """Group (N,) of each row: the search's own folds, many merged to MAX_GROUPS; with one fold
    only, folds of speakers.
    """
    folds = np.unique(selection.fold)
    if len(folds) > 1:
        return np.searchsorted(folds, selection.fold) % MAX_GROUPS
    groups = group_folds(selection.group, config.inner_folds, config.seed)
    if len(np.unique(groups)) < 2:
        raise DataError(
            "One speaker only: nothing can be held out to score an ensemble on", remedy="Use a corpus with several speakers, or test rows."
        )
    return groups


def _unlabelled(predictions: StackedPredictions) -> StackedPredictions:
    """Mark rows as held out, so that nothing can be fitted on them by mistake."""
    return StackedPredictions(
        predictions.members,
        predictions.utterances,
        predictions.classes,
        predictions.attributes,
        predictions.logp,
        predictions.values,
        predictions.present,
        "test",
    )


def answer_rows(part: OuterFit, selection: FitRows, held: StackedPredictions, task: Task, config: EnsembleConfig, outer: int) -> Answers:
    """Answers of the fitted part and of the plain recipes (chosen on ``selection``) for held-out
    rows.
    """
    recipes = fit_baselines(selection, task, config)
    logp, values = part.predict(held)
    count = len(held.utterances)
    others = recipes.answers(held)
    answer: dict[str, np.ndarray] = {}
    answered = np.zeros(count, bool)
    natural = np.zeros((count, 0))
    if part.classes is not None:
        answer = {"ensemble": decide(logp, part.classes.fallback(held.classes)), **{name: found[0] for name, found in others.items()}}
        answered |= np.isfinite(logp).all(1)
        natural = part.classes.natural(held)
    filled = np.where(np.isfinite(values), values, recipes.middle)
    if values.shape[1]:
        answered |= np.isfinite(values).any(1)
    return Answers(
        outer,
        held.utterances,
        answer,
        {"ensemble": filled, **{name: found[1] for name, found in others.items() if found[1] is not None}} if task.dimensional else {},
        natural,
        logp,
        answered,
        [recipes.best],
    )


def in_sample(part: OuterFit, selection: FitRows, task: Task) -> tuple[FitRows, np.ndarray, np.ndarray]:
    """The part's answers on the rows that it was fitted on: to tell how much they flatter."""
    logp, values = part.predict(selection.predictions)
    answer = np.zeros(len(logp), np.int64)
    if part.classes is not None:
        answer = decide(logp, part.classes.fallback(selection.predictions.classes))
    return selection, answer, values
