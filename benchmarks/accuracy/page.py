"""Draws ``docs/accuracy.md`` from ``benchmarks/results/accuracy.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.pieces import NORMALISED, SYSTEMS
from benchmarks.accuracy.summary import FUSED
from benchmarks.accuracy.systems import ROWS, searches

NAMES = {**SYSTEMS, **FUSED, **ROWS}
_HEAD = """# Accuracy

Written by `python -m benchmarks.accuracy` (`make accuracy`) from `benchmarks/results/accuracy.json`; not edited by hand.

Every figure is the unweighted average recall (UAR) over all test speakers of a nested protocol.
Each outer fold tests speakers that nothing was trained or chosen on. Inner speaker folds of the
other speakers make every choice: layer, pooling, C, gamma, configurations, members, temperatures.
All systems share these folds. Brackets hold the 95 % interval over speakers (percentile bootstrap,
2,000 draws). There are few speakers: look at the intervals before the means.

With speaker normalisation, the mean and standard deviation of each speaker's features come from
that speaker's own clips, without labels. This needs several clips of each speaker, test speakers
included, so its figures are always kept apart. The encoder is the multilingual Whisper base
encoder, in its published window for all systems.

raysere's rows are experiments as a user would write them (`benchmarks/accuracy/systems.py`): for
each outer fold a search of {acoustic} trials for the acoustic row and {speech} for the row with the
encoder, then `ensemble: {{family: auto}}`. Nothing differs between corpora. raysere's features are
not those of the baselines: frames of silence are left out, percentiles are used beside mean and
deviation, and training also uses copies of the clips at 90 and 110 % of their speed (acoustic
features only).

Methods, features and search spaces were designed while looking at cross-validation over the
speakers of these same corpora, by a handful of choices that are in `docs/log.md`. No fold's test
speakers chose anything in these runs, but a fifth corpus would be the harder judge. Two settings
were made while looking at the test figures of EmoDB and EMOVO, but not at those of RAVDESS and
nEMO: how far class biases are pulled to their prior, and by how much another choice must be ahead.
"""


def draw(result: dict[str, Any]) -> str:
    """The page as Markdown."""
    corpora = result["corpora"]
    trials = {row: sum(entry["trials"] for entry in searches(row, "none")) for row in ROWS}
    parts = [_HEAD.format(**trials), "## UAR\n", _corpora_line(corpora)]
    for normalise in NORMALISED:
        parts += [f"\n### {'Without' if normalise == 'none' else 'With'} speaker normalisation\n", _table(corpora, normalise)]
    parts += ["\n## raysere against the best baseline of each corpus\n", _RIVALS]
    for row, title in ROWS.items():
        parts.append(_comparison(corpora, row, title))
    return "\n".join(part for part in parts if part) + "\n"


_RIVALS = """The rival is the baseline that is best on the test speakers themselves, which no honest choice could
know. It reads the same features: the openSMILE systems for the acoustic row, all systems for the
row with the encoder. Error reduction is the share of the rival's 1 - UAR that is gone. The
difference is paired over speakers.
"""


def _corpora_line(corpora: dict[str, Any]) -> str:
    about = [
        f"{one['title']} ({one['utterances']} clips, {one['speakers']} speakers, {len(one['classes'])} classes)" for one in corpora.values()
    ]
    return "Corpora: " + ", ".join(about) + "."


def _table(corpora: dict[str, Any], normalise: str) -> str:
    titles = [one["title"] for one in corpora.values()]
    lines = [f"| system | {' | '.join(titles)} | mean |", "| --- |" + " --- |" * (len(titles) + 1)]
    for system, name in NAMES.items():
        rows = [_find(one, system, normalise) for one in corpora.values()]
        if any(rows):
            whole = [row["value"] for row in rows if row]
            mean = three(sum(whole) / len(whole)) if len(whole) == len(rows) else "-"
            lines.append(f"| {name} | {' | '.join(interval(row) for row in rows)} | {mean} |")
    return "\n".join(lines)


def _comparison(corpora: dict[str, Any], system: str, title: str) -> str:
    lines = [
        f"\n### {title}\n",
        "| speaker normalisation | rival's normalisation | corpus | best baseline | difference | error reduction |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for normalise in NORMALISED:
        for kind in ("same normalisation", "any normalisation"):
            found = [(one, (_find(one, system, normalise) or {}).get("against", {}).get(kind)) for one in corpora.values()]
            for one, pair in found:
                if pair:
                    rival = f"{NAMES[pair['system']]} ({pair['normalise']})"
                    cells = [normalise, kind, one["title"], rival, interval(pair, sign=True), f"{pair['error_reduction']:.0%}"]
                    lines.append(f"| {' | '.join(cells)} |")
            pairs = [pair for _, pair in found if pair]
            if len(pairs) == len(corpora):
                mean, gone = (sum(pair[key] for pair in pairs) / len(pairs) for key in ("value", "error_reduction"))
                lines.append(f"| {normalise} | {kind} | **mean** | | **{three(mean, sign=True)}** | **{gone:.0%}** |")
    return "\n".join(lines) if len(lines) > 3 else ""


def _find(corpus: dict[str, Any], system: str, normalise: str) -> dict[str, Any] | None:
    return next((row for row in corpus["rows"] if (row["system"], row["normalise"]) == (system, normalise)), None)


def interval(row: dict[str, Any] | None, *, sign: bool = False) -> str:
    """``.712 [.650, .770]``, a dash for None; ``sign`` shows a plus."""
    if row is None:
        return "-"
    return f"{three(row['value'], sign=sign)} [{three(row['low'], sign=sign)}, {three(row['high'], sign=sign)}]"


def three(value: float, *, sign: bool = False) -> str:
    """Three digits without the leading zero."""
    text = f"{abs(value):.3f}"
    text = text.removeprefix("0") if abs(value) < 1 else text
    return ("-" if value < 0 else "+" if sign else "") + text
