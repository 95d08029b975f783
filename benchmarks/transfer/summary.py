"""From finished runs to figures: what each row chose without a target label, and how right it was on target speakers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.transfer.systems import ROWS, study

DRAWS = 2000
#: Rules of choice that are compared on the same trials; the first is raysere's own.
RULES = {
    "raysere": None,
    "source score": ("source_dev",),
    "infomax": ("infomax",),
    "dev": ("dev",),
    "snd": ("snd",),
    "class_ami": ("class_ami",),
    "bnm": ("bnm",),
}


def read_pair(run_folder: Path) -> dict[str, Any]:
    """Answers by row and rule, truth and speakers of the target, and for each trial its criteria and its target score."""
    from raysere.ensemble.blind import RULE, choose_member, criteria_of_members
    from raysere.ensemble.library import load_predictions, load_selection
    from raysere.ensemble.runs import Run, test_truth
    from raysere.training.metrics import uar

    run = Run.open(run_folder)
    names = {study(row): row for row in ROWS}
    classes = len(run.task.classes)
    answers: dict[tuple[str, str], list[np.ndarray]] = {}
    labels, speakers, trials = [], [], []
    for outer in run.outers:
        selection, held = load_selection([run], outer), load_predictions([run], outer, "test")
        truth = test_truth([run], outer, held.utterances)  # opened after everything is chosen: see `told`
        told = criteria_of_members(selection, run.task)
        found = {name for name in names if any(member.study == name for member in selection.predictions.members)}
        for name in sorted(found):
            own = [m for m, member in enumerate(selection.predictions.members) if member.study == name]
            part = selection.take_members(own)
            tested = held.aligned(part.predictions.members)
            for rule, criteria in RULES.items():
                chosen = choose_member(part, run.task, criteria or RULE)
                answers.setdefault((names[name], rule), []).append(tested.logp[chosen].argmax(1))
            for m, member in enumerate(part.predictions.members):
                score = uar(truth.label, tested.logp[m].argmax(1), classes)
                trials.append({"row": names[name], "outer": outer, "target": score, **told[member.id]})
        labels.append(truth.label)
        speakers.append(truth.speaker)
    return {
        "answers": {key: np.concatenate(parts) for key, parts in answers.items()},
        "label": np.concatenate(labels),
        "speaker": np.concatenate(speakers),
        "classes": classes,
        "trials": trials,
    }


def figures(pair: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """UAR of each row under each rule, with its interval over target speakers for raysere's rule, and its trials an outer fold."""
    from raysere.training.metrics import bootstrap, uar

    result: dict[str, dict[str, Any]] = {}
    for (row, rule), answer in pair["answers"].items():
        entry = result.setdefault(row, {})
        entry[rule] = round(float(uar(pair["label"], answer, pair["classes"])), 4)
        if rule == "raysere":
            interval = bootstrap("uar", pair["label"], answer, pair["speaker"], classes=pair["classes"], draws=DRAWS, seed=0)
            entry |= {"low": round(float(interval.low), 4), "high": round(float(interval.high), 4)}
    for row, entry in result.items():
        counts = Counter(trial["outer"] for trial in pair["trials"] if trial["row"] == row)
        entry["trials"] = min(counts.values())
    return result


def agreement(trials: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean Spearman correlation of each criterion with the target's score, over the trials of a row and outer fold; no choice reads it."""
    from scipy.stats import spearmanr

    from raysere.training.criteria import BETTER

    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for trial in trials:
        groups.setdefault((trial["row"], trial["outer"]), []).append(trial)
    found: dict[str, list[float]] = {name: [] for name in BETTER}
    for group in groups.values():
        for name in BETTER:
            pairs = [(BETTER[name] * one[name], one["target"]) for one in group if name in one]
            if len(pairs) >= 5 and len({value for value, _ in pairs}) > 1 and len({score for _, score in pairs}) > 1:
                found[name].append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
    return {name: round(float(np.mean(values)), 3) for name, values in found.items() if values}


def paired(pairs: Sequence[dict[str, Any]], row: str, rival: str, rule: str = "raysere") -> dict[str, float]:
    """Mean over pairs of corpora of UAR(row) - UAR(rival), its 95 % interval by a bootstrap of target speakers within each pair."""
    from raysere.training.metrics import group_confusions, statistic_of

    random, uar = np.random.default_rng(0), statistic_of("uar")
    total, value = np.zeros(DRAWS), 0.0
    for pair in pairs:
        sums = [
            group_confusions(pair["label"], pair["answers"][name, rule], pair["speaker"], pair["classes"]).astype(float)
            for name in (row, rival)
        ]
        groups = len(sums[0])
        draws = random.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS).astype(float)
        drawn = [uar((draws @ one.reshape(groups, -1)).reshape(DRAWS, *one.shape[1:])) for one in sums]
        total += drawn[0] - drawn[1]
        value += float(uar(sums[0].sum(0))) - float(uar(sums[1].sum(0)))
    low, high = np.nanquantile(total / len(pairs), [0.025, 0.975])
    return {"value": round(value / len(pairs), 4), "low": round(float(low), 4), "high": round(float(high), 4)}
