"""``docs/transfer.md`` from ``benchmarks/results/transfer.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.transfer.systems import BY_SPEAKER, EPOCHS, FOLDS, OUTER, PAIRS, ROWS, TITLES
from raysere.ensemble.blind import RULE

HEAD = """# From one language to another

Written by `python -m benchmarks.transfer` from `benchmarks/results/transfer.json`; not edited by hand.

Unweighted average recall (UAR) of four classes (anger, happiness, neutral, sadness; chance .250) on the speakers of a target corpus of
which no label was read: neither in training nor in the choice among the trials of a row. **Inductive**: target speakers are tested in
{outer} parts, after an adaptation to the unlabelled clips of the other part. **Transductive**: adapted to the tested clips as well. Models
are trained on {folds} speaker-disjoint halves of the source. Every row has the same search budget, trunk, loop and {epochs} epochs, and the
same rule of choice, {rule}. The chosen configuration is then trained with three seeds; figures are means of their UARs, in brackets 95 %
intervals over target speakers. Rows in *italics* know which target clips are of one speaker, and normalise each speaker by their own
clips, those tested included: they are told apart.

Corpus and language are one here: what is called a language differs in room, microphone, actors and text as well. RAVDESS clips have a
second of near silence around the voice; in URDU speakers nearly are emotions, so that whatever evens speakers takes the emotion away.
"""


def draw(result: dict[str, Any]) -> str:
    rule = "the best score on source speakers" if RULE == ("source_dev",) else f"by {', '.join(RULE)}"
    parts = [HEAD.format(outer=OUTER, folds=FOLDS, epochs=EPOCHS, rule=rule)]
    for feature, found in result["features"].items():
        title = "the encoder of Whisper base" if feature == "speech" else "acoustic functionals"
        parts += [f"## With {title}\n", _means(found), _against(found), _ablations(found), _rules(found), _pairs(found)]
    if result.get("speed"):
        parts.append(_speed(result["speed"]))
    if not result["features"]:
        parts.append("Not measured yet.\n")
    return "\n".join(parts)


def _speed(told: dict[str, Any]) -> str:
    base = told["median"]["pooled"]["per_minute"]
    lines = [
        "## Trials a minute\n",
        f"Whole searches of {told['trials']} trials on shared features (EmoDB to EMOVO, the encoder of Whisper base), start included, two "
        f"workers of one thread; medians of {len(told['spaces']['pooled']['per_minute'])} alternating rounds. Memory: largest worker.\n",
        "| space | trials a minute | beside `pooled` | memory of a worker, MB |",
        "| --- | --- | --- | --- |",
    ]
    for name, values in told["median"].items():
        ratio = values["per_minute"] / base
        lines.append(f"| `{name}` | {values['per_minute']:.0f} | {ratio:.2f} | {values['worker_mb']:.0f} |")
    return "\n".join(lines) + "\n\nWith a GPU, four trials at once (`trial: {gpu: 0.25}`): not measured.\n"


def _figure(value: float, sign: bool = False) -> str:
    return f"{value:+.3f}".replace("0.", ".") if sign else f"{value:.3f}".lstrip("0")


def _rows(found: dict[str, Any]) -> list[str]:
    return [row for row in ROWS if all(row in pair for pair in found["pairs"].values())]


def _interval(group: dict[str, Any] | None, sign: bool = False) -> str:
    """Value and interval of one group of pairs."""
    if not group:
        return "-"
    return f"{_figure(group['value'], sign)} [{_figure(group['low'], sign)}, {_figure(group['high'], sign)}]"


def _means(found: dict[str, Any]) -> str:
    trials = sorted({entry["trials"] for pair in found["pairs"].values() for entry in pair.values()})
    budget = f"{trials[0]} trials" if len(trials) == 1 else f"{trials[0]} to {trials[-1]} trials"
    counts = [sum(name.endswith("-urdu") == urdu for name in found["again"]) for urdu in (False, True)]
    places = [f"{count} pairs{where}" for count, where in zip(counts, ("", " to URDU"), strict=True)]
    heads = [f"{kind}, {place}" for kind in ("inductive", "transductive") for place in places]
    far = f" {len(found['pairs'])} of {len(PAIRS)} pairs are measured so far, {len(found['again'])} of them with three seeds."
    lines = [
        f"{budget} of each row in each outer fold; three seeds of the chosen one.{far if len(found['again']) < len(PAIRS) else ''}\n",
        f"| row | {' | '.join(heads)} | s.d. of seeds |",
        "| --- |" + " --- |" * 5,
    ]
    for row, kinds in found["rows"].items():
        shown = f"*{row}*" if row in BY_SPEAKER else row
        values = [_interval(kinds[kind].get(group)) for kind in ("inductive", "transductive") for group in ("seen", "urdu")]
        spread = kinds["inductive"].get("seen", {}).get("seeds")
        lines.append(f"| {shown} | {' | '.join(values)} | {'-' if spread is None else _figure(spread)} |")
    return "\n".join(lines) + "\n"


def _against(found: dict[str, Any]) -> str:
    lines = [
        "Differences, inductive, paired over target speakers:\n",
        "| method | minus | mean of the pairs | to URDU |",
        "| --- | --- | --- | --- |",
    ]
    for method, rivals in found["against"].items():
        for rival, groups in rivals.items():
            lines.append(f"| {method} | {rival} | {_interval(groups.get('seen'), True)} | {_interval(groups.get('urdu'), True)} |")
    return "\n".join(lines) + "\n"


def _ablations(found: dict[str, Any]) -> str:
    lines = [
        "One part of the chosen configuration taken out, and what that changes (inductive, three seeds):\n",
        "| method | change | UAR | difference | to URDU | difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, changes in found["ablations"].items():
        for title, told in changes.items():
            cells = [
                cell
                for group in ("seen", "urdu")
                for cell in (
                    _figure(told["mean"][group]["value"]) if group in told["mean"] else "-",
                    _interval(told["loss"].get(group), True),
                )
            ]
            lines.append(f"| {method} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rules(found: dict[str, Any]) -> str:
    rules = [name for name in next(iter(next(iter(found["pairs"].values())).values())) if name not in ("low", "high", "trials")]
    lines = [
        "Rules of choice on the same trials, one seed (mean of all pairs); the last is an ensemble and not a trial:\n",
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
