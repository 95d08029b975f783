"""``docs/transfer.md`` from ``benchmarks/results/transfer.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.transfer.systems import BY_SPEAKER, FOLDS, OUTER, PAIRS, ROWS, TITLES

HEAD = """# From one language to another

Written by `python -m benchmarks.transfer` from `benchmarks/results/transfer.json`; not edited by hand.

Unweighted average recall (UAR) of four classes (anger, happiness, neutral, sadness; chance .250) on the speakers of a target corpus of
which no label was read: neither in training nor in the choice among the trials of a row. **Inductive**: target speakers are tested in
{outer} parts, after an adaptation to the unlabelled clips of the other part. Models are trained on {folds} speaker-disjoint halves of the
source. Every row has the same search budget, trunk and loop, and the same rule of choice: among trials within a standard error of the
best on source speakers, the best mean rank of four criteria without labels. Rows *per speaker* normalise each speaker by their own clips,
test speakers included, and so know which clips are of one speaker: they are told apart. In brackets 95 % intervals over target speakers.

Corpus and language are one here: what is called a language differs in room, microphone, actors and text as well.
"""


def draw(result: dict[str, Any]) -> str:
    parts = [HEAD.format(outer=OUTER, folds=FOLDS)]
    for feature, found in result["features"].items():
        title = "the encoder of Whisper base" if feature == "speech" else "acoustic functionals"
        parts += [f"## With {title}\n", _means(found), _against(found), _rules(found), _pairs(found)]
    if not result["features"]:
        parts.append("Not measured yet.\n")
    return "\n".join(parts)


def _figure(value: float, sign: bool = False) -> str:
    return f"{value:+.3f}".replace("0.", ".") if sign else f"{value:.3f}".lstrip("0")


def _rows(found: dict[str, Any]) -> list[str]:
    return [row for row in ROWS if all(row in pair for pair in found["pairs"].values())]


def _mean(found: dict[str, Any], row: str, urdu: bool, rule: str = "raysere") -> str:
    values = [pair[row][rule] for name, pair in found["pairs"].items() if name.endswith("-urdu") == urdu]
    return _figure(sum(values) / len(values)) if values else "-"


def _means(found: dict[str, Any]) -> str:
    trials = sorted({entry["trials"] for pair in found["pairs"].values() for entry in pair.values()})
    budget = f"{trials[0]} trials" if len(trials) == 1 else f"{trials[0]} to {trials[-1]} trials"
    counts = [sum(name.endswith("-urdu") == urdu for name in found["pairs"]) for urdu in (False, True)]
    lines = [
        f"{budget} of each row in each outer fold.\n",
        f"| row | mean of {counts[0]} pairs | mean of {counts[1]} pairs to URDU |",
        "| --- | --- | --- |",
    ]
    for row in _rows(found):
        shown = f"*{row}*" if row in BY_SPEAKER else row
        lines.append(f"| {shown} | {_mean(found, row, False)} | {_mean(found, row, True)} |")
    return "\n".join(lines) + "\n"


def _against(found: dict[str, Any]) -> str:
    lines = ["Differences, paired over target speakers:\n", "| method | minus | mean of the pairs | to URDU |", "| --- | --- | --- | --- |"]
    for method, rivals in found["against"].items():
        for rival, groups in rivals.items():
            shown = [
                f"{_figure(g['value'], True)} [{_figure(g['low'], True)}, {_figure(g['high'], True)}]" if (g := groups.get(name)) else "-"
                for name in ("seen", "urdu")
            ]
            lines.append(f"| {method} | {rival} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines) + "\n"


def _rules(found: dict[str, Any]) -> str:
    rules = [name for name in next(iter(next(iter(found["pairs"].values())).values())) if name not in ("low", "high", "trials")]
    lines = [
        "Rules of choice on the same trials (mean of all pairs):\n",
        f"| row | {' | '.join(rules)} |",
        "| --- |" + " --- |" * len(rules),
    ]
    for row in _rows(found):
        values = [sum(pair[row][rule] for pair in found["pairs"].values()) / len(found["pairs"]) for rule in rules]
        lines.append(f"| {row} | {' | '.join(map(_figure, values))} |")
    told = ", ".join(f"{name} {value:+.2f}" for name, value in found["agreement"].items())
    return (
        "\n".join(lines)
        + f"\n\nSpearman correlation with the target's UAR over the trials of a row (an analysis, read by no choice): {told}.\n"
    )


def _pairs(found: dict[str, Any]) -> str:
    names = ["-".join(pair) for pair in PAIRS if "-".join(pair) in found["pairs"]]
    lines = []
    for name in names:
        source, target = name.split("-")
        lines += [f"### {TITLES[source]} to {TITLES[target]}\n", "| row | UAR |", "| --- | --- |"]
        for row, entry in found["pairs"][name].items():
            lines.append(f"| {row} | {_figure(entry['raysere'])} [{_figure(entry['low'])}, {_figure(entry['high'])}] |")
        lines.append("")
    return "\n".join(lines)
