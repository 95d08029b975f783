"""``docs/transfer.md`` from ``benchmarks/results/transfer.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.transfer.systems import BY_SPEAKER, EPOCHS, FOLDS, OUTER, PAIRS, ROWS, TITLES
from raysere.ensemble.fit.unlabelled_target import RULE

HEAD = """# From one language to another

Written by `python -m benchmarks.transfer` from `benchmarks/results/transfer.json`; not edited by hand.

Every figure is the unweighted average recall (UAR) of four classes (anger, happiness, neutral,
sadness; chance .250) on the speakers of a target corpus. No target label was read, neither in
training nor in the choice among the trials of a row.

- **Inductive**: target speakers are tested in {outer} parts, each after an adaptation to the
  unlabelled clips of the other part.
- **Transductive**: the adaptation also reads the clips that are tested.

Models are trained on {folds} speaker-disjoint halves of the source. Every row has the same search
budget, trunk, training loop and {epochs} epochs, and the same rule of choice: {rule}. The chosen
configuration is then trained with three seeds. Figures are means of the UARs of these seeds;
brackets hold 95 % intervals over target speakers. Rows in *italics* know which target clips are
from the same speaker and normalise each speaker by that speaker's own clips, tested clips included.
They use more than the other rows and are marked for that reason.

Corpus and language cannot be separated here: corpora of two languages also differ in room,
microphone, actors and text. RAVDESS clips have a second of near silence around the voice. In URDU a
speaker nearly determines the emotion, so a method that makes speakers alike also removes the
emotion.
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
    rows = [
        [f"`{name}`", f"{values['per_minute']:.0f}", f"{values['per_minute'] / base:.2f}", f"{values['worker_mb']:.0f}"]
        for name, values in told["median"].items()
    ]
    return (
        f"## Trials a minute\n\nMeasured are whole searches of {told['trials']} trials on shared features (EmoDB to EMOVO, encoder of "
        "Whisper base), start included, with two workers of one thread each. Figures are medians of "
        f"{len(told['spaces']['pooled']['per_minute'])} alternating rounds; memory is that of the largest worker.\n\n"
        f"{_table(['space', 'trials a minute', 'beside `pooled`', 'memory of a worker, MB'], rows)}\n\n"
        "Not measured: four trials at once on a GPU (`trial: {gpu: 0.25}`).\n"
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows])


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
    rows = []
    for row, kinds in found["rows"].items():
        values = [_interval(kinds[kind].get(group)) for kind in ("inductive", "transductive") for group in ("seen", "urdu")]
        spread = kinds["inductive"].get("seen", {}).get("seeds")
        rows.append([f"*{row}*" if row in BY_SPEAKER else row, *values, "-" if spread is None else _figure(spread)])
    far = far if len(found["again"]) < len(PAIRS) else ""
    intro = f"{budget} of each row in each outer fold; three seeds of the chosen configuration.{far}"
    return f"{intro}\n\n{_table(['row', *heads, 's.d. of seeds'], rows)}\n"


def _against(found: dict[str, Any]) -> str:
    rows = [
        [method, rival, _interval(groups.get("seen"), True), _interval(groups.get("urdu"), True)]
        for method, rivals in found["against"].items()
        for rival, groups in rivals.items()
    ]
    heads = ["method", "minus", "mean of the pairs", "to URDU"]
    return f"Differences (inductive, paired over target speakers):\n\n{_table(heads, rows)}\n"


def _ablations(found: dict[str, Any]) -> str:
    rows = []
    for method, changes in found["ablations"].items():
        for title, told in changes.items():
            means = [_figure(told["mean"][group]["value"]) if group in told["mean"] else "-" for group in ("seen", "urdu")]
            losses = [_interval(told["loss"].get(group), True) for group in ("seen", "urdu")]
            rows.append([method, title, means[0], losses[0], means[1], losses[1]])
    heads = ["method", "change", "UAR", "difference", "to URDU", "difference"]
    return f"What changes if one part of the chosen configuration is taken out (inductive, three seeds):\n\n{_table(heads, rows)}\n"


def _rules(found: dict[str, Any]) -> str:
    rules = [name for name in next(iter(next(iter(found["pairs"].values())).values())) if name not in ("low", "high", "trials")]
    pairs = found["pairs"].values()
    rows = [[row, *(_figure(sum(pair[row][rule] for pair in pairs) / len(pairs)) for rule in rules)] for row in _rows(found)]
    told = ", ".join(f"{name} {value:+.2f}" for name, value in found["agreement"].items())
    return (
        "UAR that each rule of choice reaches on the same trials (one seed, mean of all pairs). The last column is an ensemble, not a "
        "trial:\n\n"
        f"{_table(['row', *rules], rows)}\n\n"
        "Spearman correlation of each criterion with the target's UAR, over the trials of a row (an analysis; no choice reads it): "
        f"{told}.\n"
    )


def _pairs(found: dict[str, Any]) -> str:
    parts = ["Each pair of corpora (inductive; the chosen trial as the search trained it, one seed):\n"]
    for source in dict.fromkeys(source for source, _ in PAIRS):
        targets = [target for one, target in PAIRS if one == source and f"{source}-{target}" in found["pairs"]]
        measured = {TITLES[target]: found["pairs"][f"{source}-{target}"] for target in targets}
        if measured:
            rows = [[row, *(_interval({**pair[row], "value": pair[row]["raysere"]}) for pair in measured.values())] for row in _rows(found)]
            parts += [f"### From {TITLES[source]}\n", _table(["row", *(f"to {title}" for title in measured)], rows) + "\n"]
    return "\n".join(parts)
