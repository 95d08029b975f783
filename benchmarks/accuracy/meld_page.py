"""Draws ``docs/accuracy_meld.md`` from ``benchmarks/results/accuracy_meld.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.meld_baselines import SYSTEMS
from benchmarks.accuracy.page import interval, three
from raysere.ensemble.evaluate.claims import LABELS

_HEAD = """# Real words and voice: MELD

Written by `python -m benchmarks.accuracy.meld` from `benchmarks/results/accuracy_meld.json`; not edited by hand.

MELD is a television series in dialogue, with seven emotions; half of the lines are neutral.
**Speakers recur**: six main characters speak most lines of all splits. No figure here is
speaker-independent; folds and intervals are by dialogue instead. The voice is available for the
development split alone: {voices} of its {utterances} lines, and the one line without voice is
answered by its words. The voice is one vector for each line, from a wav2vec2 that its authors tuned
on MELD's training split. The words are those of the transcripts, encoded by a frozen
all-MiniLM-L6-v2.

The protocol has {outer} outer folds of dialogues of the development split, with {inner} inner folds
in each. Three kinds of members are trained:

- text members on the training split (9,989 lines) and the development folds;
- audio members on the development folds alone;
- fusion members (`concat`) on both, where the lines of the training split have no voice.

For each outer fold, {text} text, {audio} audio and {fusion} fusion configurations are searched
anew. Search, calibration, weights, decision offsets and the choice of the family (the way to weigh
the members) see its inner folds alone. Nothing is normalised by speaker. The baselines of
scikit-learn use the same folds and the same training rows, with C chosen by the inner folds. The
test split takes no part.

Only differences on this one split of one series, with these features, may be claimed. Intervals (95
%, 2,000 draws) are over {dialogues} dialogues. Fear and disgust have {fear} and {disgust} lines, so
a few lines move the macro-F1.

## Predicted before the study was run, but after a try-out of six members a fold had been seen

Text members .40 to .42 macro-F1, audio members .28, the ensemble of both .44; the ensemble ahead of its best single member by .02 to .04
with an interval that may hold 0; ahead of the plain average by .01 at most; with shuffled voices within .01 of text alone.

## Figures
"""


def draw(result: dict[str, Any]) -> str:
    """The page as Markdown."""
    classes = result["classes"]
    head = _HEAD.format(
        voices=f"{result['utterances'] - 1:,}",
        utterances=f"{result['utterances']:,}",
        dialogues=result["dialogues"],
        outer=result["folds"][0],
        inner=result["folds"][1],
        fear=classes.get("fear", 0),
        disgust=classes.get("disgust", 0),
        **result["trials"],
    )
    parts = [head, _systems(result), "\n## Is the ensemble right to listen to the voice?\n", _check(result), "\n## What was chosen\n"]
    parts += [_chosen(result), "\n## By class, ensemble of words and voice\n", _by_class(result)]
    return "\n".join(parts) + "\n"


def _systems(result: dict[str, Any]) -> str:
    titles = {f"both:{key}": label for key, label in LABELS.items()}
    titles |= {f"text:{key}": f"{LABELS[key]}, words alone" for key in ("ensemble", "best_single")}
    titles |= {f"voice:{key}": f"{LABELS[key]}, voice and fusion members alone" for key in ("ensemble", "best_single")}
    titles |= {name: f"scikit-learn: {label}" for name, label in SYSTEMS.items()}
    rows = {row["system"]: row for row in result["rows"]}
    lines = ["| system | macro-F1 | UAR | weighted F1 | ensemble minus this |", "| --- | --- | --- | --- | --- |"]
    for name, title in titles.items():
        if name in rows:
            cells = [interval(rows[name]["macro_f1"]), three(rows[name]["uar"]["value"]), three(rows[name]["weighted_f1"]["value"])]
            other = result["differences"].get(name)
            lines.append(f"| {' | '.join([title, *cells, '-' if other is None else interval(other, sign=True)])} |")
    return "\n".join([*lines, "", result["claim"]])


def _check(result: dict[str, Any]) -> str:
    lines = [
        "The study is repeated once with the vectors of voice shuffled among the lines, with a fixed seed. Audio members then learn",
        "nothing, and an honest ensemble should be at most one standard error worse than words alone.",
        "",
        "| ensemble with shuffled voices minus | difference | s.e. | within one s.e. |",
        "| --- | --- | --- | --- |",
    ]
    for name, title in (("text:ensemble", "the text ensemble"), ("text:best_single", "the best text member")):
        one = result["shuffled"][name]
        below = -one["value"] / one["error"] if one["error"] else 0.0
        verdict = "yes" if below <= 1 else f"**no**: {below:.1f} s.e. below"
        lines.append(f"| {title} | {interval(one, sign=True)} | {three(one['error'])} | {verdict} |")
    return "\n".join(lines)


def _chosen(result: dict[str, Any]) -> str:
    lines = ["| ensemble of | family of each outer fold |", "| --- | --- |"]
    names = {"text": "words", "both": "words and voice", "shuffled": "words and shuffled voice", "voice": "voice and fusion members"}
    lines += [f"| {names[name]} | {', '.join(chosen)} |" for name, chosen in result["chosen"].items()]
    members = "; ".join(", ".join(f"{count} {name}" for name, count in part.items()) for part in result["modalities"])
    flattery = f"On the rows that it was fitted on, the ensemble is {three(result['optimism']['value'], sign=True)} better than held out"
    told = f"Members in each fold: {members}. {flattery}; its expected calibration error is {three(result['ece'])}."
    return "\n".join([*lines, "", told])


def _by_class(result: dict[str, Any]) -> str:
    lines = ["| class | lines | recall | precision | F1 |", "| --- | --- | --- | --- | --- |"]
    for name, one in result["by_class"].items():
        cells = ["-" if one[key] is None else three(one[key]) for key in ("recall", "precision", "f1")]
        lines.append(f"| {' | '.join([name, str(result['classes'][name]), *cells])} |")
    return "\n".join(lines)
