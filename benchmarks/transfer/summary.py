"""From finished runs to figures: what each row chose without a target label, and how right it was
on target speakers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.transfer.again import ABLATIONS
from benchmarks.transfer.systems import METHODS, ROWS, rows_of, study
from raysere.ensemble.fit.unlabelled_target import MIXED_RULE

DRAWS = 2000
#: Rules of choice that are compared on the same trials; the first is raysere's own.
RULES = {
    "raysere": None,
    "four criteria": MIXED_RULE,
    "infomax": ("infomax",),
    "dev": ("dev",),
    "snd": ("snd",),
    "class_ami": ("class_ami",),
    "bnm": ("bnm",),
}
NEAR = "mean of those near the best"  # on source speakers: an ensemble, beside the rules that choose one trial


def read_pair(run_folder: Path) -> dict[str, Any]:
    """Answers by row and rule, truth and speakers of the target, and for each trial its criteria
    and its target score.
    """
    from raysere.ensemble.data.predictions import load_fit_rows, load_predictions
    from raysere.ensemble.data.run_labels import Run, test_truth
    from raysere.ensemble.fit.unlabelled_target import RULE, choose_member, criteria_of_members, near_members
    from raysere.training.metrics import uar

    run = Run.open(run_folder)
    names = {study(row): row for row in ROWS}
    classes = len(run.task.classes)
    answers: dict[tuple[str, str], list[np.ndarray]] = {}
    labels, speakers, order, trials = [], [], [], []
    for outer in run.outers:
        selection, held = load_fit_rows([run], outer), load_predictions([run], outer, "test")
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
            near = near_members(part, run.task)
            answers.setdefault((names[name], NEAR), []).append(tested.logp[near].mean(0).argmax(1))
            for m, member in enumerate(part.predictions.members):
                score = uar(truth.label, tested.logp[m].argmax(1), classes)
                trials.append({"row": names[name], "outer": outer, "target": score, **told[member.id]})
        labels.append(truth.label)
        speakers.append(truth.speaker)
        order.append(np.argsort(np.array(held.utterances), kind="stable"))
    return {
        "answers": {key: np.concatenate(parts) for key, parts in answers.items()},
        "label": np.concatenate(labels),
        "speaker": np.concatenate(speakers),
        "classes": classes,
        "trials": trials,
        "by_id": order,
        "again": {},
    }


def add_again(pair: dict[str, Any], lines: Iterable[dict[str, Any]]) -> None:
    """Put the answers of :mod:`benchmarks.transfer.again` beside those of the search: by (row,
    variant, transductive), one array a seed.
    """
    found: dict[tuple[str, str, bool], dict[int, dict[int, np.ndarray]]] = {}
    for line in lines:
        order = pair["by_id"][line["outer"]]
        answers = np.empty(len(order), dtype=np.int64)
        answers[order] = line["answers"]
        found.setdefault((line["row"], line["variant"], line["transductive"]), {}).setdefault(line["seed"], {})[line["outer"]] = answers
    outers = range(len(pair["by_id"]))
    for name, seeds in found.items():
        whole = [np.concatenate([parts[outer] for outer in outers]) for parts in seeds.values() if set(parts) == set(outers)]
        if whole:
            pair["again"][name] = whole


def figures(pair: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """UAR of each row under each rule, with its interval over target speakers for raysere's rule,
    and its trials an outer fold.
    """
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


def complete(pair: dict[str, Any], feature: str) -> bool:
    """Whether all rows of a pair have been searched; a quarter of a row's trials may have been
    infeasible.
    """
    counts = {row: entry["trials"] for row, entry in figures(pair).items()}
    enough = min(counts.values()) >= 0.75 * max(counts.values())
    return enough and set(counts) == set(rows_of(feature))


def agreement(trials: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean Spearman correlation of each criterion with the target's score, over the trials of a row
    and outer fold; no choice reads it.
    """
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
    """Mean over pairs of corpora of UAR(row) - UAR(rival), its 95 % interval by a bootstrap of
    target speakers within each pair.
    """
    return _difference(pairs, *[[[pair["answers"][name, rule]] for pair in pairs] for name in (row, rival)])


def paired_again(pairs: Sequence[dict[str, Any]], one: tuple[str, str, bool], other: tuple[str, str, bool]) -> dict[str, float]:
    """The same of mean UARs over the seeds of two (row, variant, transductive)."""
    return _difference(pairs, *[[pair["again"][name] for pair in pairs] for name in (one, other)])


def mean_again(pairs: Sequence[dict[str, Any]], name: tuple[str, str, bool]) -> dict[str, float]:
    """Mean UAR over pairs and seeds, its 95 % interval by a bootstrap of target speakers, and the
    mean standard deviation over seeds.
    """
    result = _difference(pairs, [pair["again"][name] for pair in pairs], [()] * len(pairs))
    from raysere.training.metrics import uar

    seeds = [[float(uar(pair["label"], answer, pair["classes"])) for answer in pair["again"][name]] for pair in pairs]
    return {**result, "seeds": round(float(np.mean([np.std(one, ddof=1) if len(one) > 1 else np.nan for one in seeds])), 4)}


def _difference(pairs: Sequence[dict[str, Any]], ones: Any, others: Any) -> dict[str, float]:
    """Mean over pairs of the mean UAR of ``ones`` less that of ``others`` (0 where there are none),
    lists of answers by pair.
    """
    from raysere.training.metrics import group_confusions, statistic_of

    random, uar = np.random.default_rng(0), statistic_of("uar")
    total, value = np.zeros(DRAWS), 0.0
    for pair, *both in zip(pairs, ones, others, strict=True):
        groups = len(np.unique(pair["speaker"]))
        draws = random.multinomial(groups, np.full(groups, 1 / groups), size=DRAWS).astype(float)
        for sign, answers in zip((1, -1), both, strict=True):
            for answer in answers:
                sums = group_confusions(pair["label"], answer, pair["speaker"], pair["classes"]).astype(float)
                total += sign * uar((draws @ sums.reshape(groups, -1)).reshape(DRAWS, *sums.shape[1:])) / len(answers)
                value += sign * float(uar(sums.sum(0))) / len(answers)
    low, high = np.nanquantile(total / len(pairs), [0.025, 0.975])
    return {"value": round(value / len(pairs), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def whole(done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All that a page shows of one feature: ``done`` is what :func:`read_pair` and
    :func:`add_again` gave, by pair.

    Rows, differences and ablations are means over the pairs in which all of them were trained
    again: ``seen`` without URDU, and ``urdu``.
    """
    rows = [row for row in ROWS if all((row, "raysere") in pair["answers"] for pair in done.values())]
    again = {name: pair for name, pair in done.items() if all((row, "chosen", False) in pair["again"] for row in rows)}
    groups = {
        "seen": [pair for name, pair in again.items() if not name.endswith("-urdu")],
        "urdu": [pair for name, pair in again.items() if name.endswith("-urdu")],
    }

    def means(name: tuple[str, str, bool]) -> dict[str, Any]:
        return {group: mean_again(pairs, name) for group, pairs in groups.items() if pairs and all(name in pair["again"] for pair in pairs)}

    def against(one: tuple[str, str, bool], other: tuple[str, str, bool]) -> dict[str, Any]:
        return {
            group: paired_again(pairs, one, other)
            for group, pairs in groups.items()
            if pairs and all(name in pair["again"] for pair in pairs for name in (one, other))
        }

    methods = [row for row in METHODS if row in rows]
    return {
        "pairs": {name: figures(pair) for name, pair in done.items()},
        "again": list(again),
        "rows": {row: {"inductive": means((row, "chosen", False)), "transductive": means((row, "chosen", True))} for row in rows},
        "against": {
            method: {rival: against((method, "chosen", False), (rival, "chosen", False)) for rival in rows if rival not in METHODS}
            for method in methods
        },
        "ablations": {
            method: {
                title: {"mean": means((method, title, False)), "loss": against((method, title, False), (method, "chosen", False))}
                for title in ABLATIONS[method]
            }
            for method in methods
            if method in ABLATIONS
        },
        "agreement": agreement([{**trial, "row": f"{name} {trial['row']}"} for name, pair in done.items() for trial in pair["trials"]]),
    }
