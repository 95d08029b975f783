"""Draws ``docs/accuracy_library.md`` from ``benchmarks/results/accuracy_library.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.library_runs import EXPECTED, FOUND
from benchmarks.accuracy.page import interval, three
from raysere.ensemble.evaluate.claims import LABELS

_HEAD = """# The ensembler on real libraries

Written by `python -m benchmarks.accuracy.library` from `benchmarks/results/accuracy_library.json`; not edited by hand.

Every figure is the unweighted average recall (UAR) over all test speakers of a nested protocol. Each
outer fold tests speakers that no member was trained or chosen on, and whose labels no ensemble has
seen. Brackets hold 95 % intervals over speakers (percentile bootstrap, 2,000 draws); differences
are paired. With the 6 speakers of EMOVO these intervals are too narrow: trust RAVDESS, with 24. The
features are raysere's own acoustic features and the layers of the multilingual Whisper base encoder
(clip window).

What was expected was written and committed before anything of a study was run. It is shown
unchanged, so it speaks of budgets that were then cut: RAVDESS to three outer folds, the comparison
of objectives to 24 trials and three seeds, the shuffles to four.

A *member* is one trained configuration; the *library* is all members that the ensemble may choose
from; a *family* is a way to weigh them.
"""


def draw(result: dict[str, Any]) -> str:
    """The page as Markdown; studies that are not done are left out."""
    parts = [_HEAD]
    corpora = [one for one in result["corpora"].values() if one["library"]]
    if corpora:
        parts += ["## A library of 64 members\n", _told("library"), *(_library(one) for one in corpora)]
    controls = [one for one in corpora if one["shuffled"]]
    if controls:
        parts += ["\n## Labels shuffled\n", _told("shuffled"), _shuffled(controls)]
    ablated = [one for one in corpora if one["ablation"]]
    if ablated:
        parts += ["\n## What each part is worth, and what it costs\n", _told("ablation"), *(_ablation(one) for one in ablated)]
    if result["gain"]:
        parts += ["\n## Searching for the ensemble\n", _told("gain"), _gain(result["gain"])]
    return "\n".join(parts) + "\n"


def _told(study: str) -> str:
    found = f"\n\n**Found.** {FOUND[study]}" if FOUND.get(study) else ""
    return f"**Expected.** {EXPECTED[study]}{found}\n"


def _library(corpus: dict[str, Any]) -> str:
    one = corpus["library"]
    lines = [
        f"\n### {corpus['title']}\n",
        f"{one['n_utterances']} clips, {one['n_speakers']} speakers; {min(one['members'])} to {max(one['members'])} members in each of "
        f"{len(one['members'])} outer folds, {one['stopped'] / sum(one['members']):.0%} of them stopped early by halving; chance "
        f"{three(one['chance']['value'])}. Development scores of the members:\n",
        "| study | lowest | quartile | median | quartile | highest | s a trial |",
        "| --- |" + " --- |" * 6,
    ]
    for name, study in one["studies"].items():
        lines.append(f"| {name} | {' | '.join(map(three, study['scores']))} | {study['seconds']:.1f} |")
    lines += ["\n| system | UAR | ensemble minus this | |", "| --- | --- | --- | --- |"]
    for name, entry in one["systems"].items():
        pair = one["difference"].get(f"ensemble - {name}")
        shown = "" if pair is None else interval(pair, sign=True)
        lines.append(f"| {LABELS[name]} | {interval(entry)} | {shown} | {'' if pair is None else standing(pair)} |")
    best = one["difference"]["ensemble - best_single"]
    lines += [
        f"\nAgainst the best single member: {standard_errors(best):+.1f} standard errors. On the rows that it was fitted on, the "
        f"ensemble has {three(one['optimism']['in_sample'])}: {three(one['optimism']['value'], sign=True)} against held out.",
        f"Family chosen in each outer fold: {', '.join(one['chosen'])}. Mean score of each family on inner folds: "
        + ", ".join(f"{name} {three(score)}" for name, score in one["tried"].items())
        + ".",
        f"The trials of the search took {one['trial_seconds']} s.",
    ]
    return "\n".join(lines)


def _shuffled(corpora: list[dict[str, Any]]) -> str:
    lines = [
        "Labels are shuffled among the development rows of an outer fold, and the whole procedure is cross-fitted on those rows. Brackets "
        "hold t intervals over the shuffles.\n",
        "| corpus | shuffles | chance | held out | intervals over speakers that hold chance | in sample | s |",
        "| --- |" + " --- |" * 6,
    ]
    for corpus in corpora:
        one = corpus["shuffled"]
        number = len(one["shuffles"])
        cells = [corpus["title"], str(number), three(one["chance"]), interval(one["held_out"]), f"{one['within']} of {number}"]
        lines.append(f"| {' | '.join([*cells, interval(one['in_sample'])])} | {one['seconds']:.0f} |")
    return "\n".join(lines)


def _ablation(corpus: dict[str, Any]) -> str:
    lines = [
        f"\n### {corpus['title']}\n",
        "| procedure or library | UAR | the whole minus this | | s of processor time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in corpus["ablation"]["rows"]:
        worth = row.get("worth")
        shown = ["", ""] if worth is None else [interval(worth, sign=True), standing(worth)]
        lines.append(f"| {row['variant']} | {interval(row)} | {' | '.join(shown)} | {row['seconds']:.1f} |")
    return "\n".join(lines)


def _gain(gain: dict[str, Any]) -> str:
    lines = [
        "| seed | ensemble: score | ensemble: gain | best single: score | best single: gain | mean member: score | mean member: gain |",
        "| --- |" + " --- |" * 6,
    ]
    for number, seed in enumerate(gain["seeds"]):
        cells = [three(seed[objective][name]) for name in ("ensemble", "best_single", "score_of_members") for objective in seed]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    lines.append("\n`ensemble_gain` minus `score`: mean over the seeds with its t interval, and the standard deviation over the seeds:\n")
    lines += ["| | difference | sd | |", "| --- | --- | --- | --- |"]
    for name, pair in gain["difference"].items():
        label = LABELS.get(name, "development score of a member")
        lines.append(f"| {label} | {interval(pair, sign=True)} | {three(pair['sd'])} | {standing(pair)} |")
    return "\n".join(lines)


def standing(difference: dict[str, Any]) -> str:
    """``ahead`` or ``behind`` where the interval excludes 0, else ``level``."""
    return "ahead" if difference["low"] > 0 else "behind" if difference["high"] < 0 else "level"


def standard_errors(difference: dict[str, Any]) -> float:
    """A difference in standard errors, as its 95 % interval tells them."""
    return difference["value"] / ((difference["high"] - difference["low"]) / (2 * 1.96))
