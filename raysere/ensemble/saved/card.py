"""``card.md`` of a saved ensemble: training data, scores, limits and licences."""

from __future__ import annotations

from typing import Any

from raysere.base.files import to_yaml


def write_card(record: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """The card of an ensemble as Markdown with a YAML header, from its ``ensemble.yaml`` and
    ``evaluation.json`` alone.
    """
    task = record["task"]
    header = {
        "library_name": "raysere",
        "pipeline_tag": "audio-classification",
        "language": record["languages"],
        "license": "other",
        "tags": ["speech-emotion-recognition", "ensemble", *(["synthetic-data"] if record["synthetic"] else [])],
    }
    lines = ["", f"# Ensemble of {', '.join(record['runs'])}", ""]
    if record["synthetic"]:
        lines += ["**Trained on synthetic speech: its answers say nothing about real speakers.**", ""]
    if task["classes"]:
        lines.append(f"Classes: {', '.join(task['classes'])}.")
    if task["attributes"]:
        lines.append(f"Attributes: {', '.join(task['attributes'])}, from {task['scale'][0]:g} to {task['scale'][1]:g}.")
    modalities = sorted({part for entry in record["members"] for part in entry["modality"].split("+")})
    lines += [
        f"Hears or reads: {', '.join(modalities)}. Members: {len(record['members'])}. Languages: {', '.join(record['languages'])}.",
        "",
    ]
    unit = (evaluation.get("interval") or {}).get("unit", "speaker")
    lines += ["## How well it does", "", f"On the {evaluation['split']} rows: {_count(evaluation)}; 95 % intervals by {unit}.", ""]
    lines += ["| | " + evaluation["metric"].upper() + " | 95 % |", "| --- | --- | --- |"]
    named = {name: value for name, value in evaluation.items() if isinstance(value, dict) and {"value", "low", "high"} <= value.keys()}
    lines += [
        f"| {name.replace('_', ' ')} | {_one(value['value'])} | {_one(value['low'])} to {_one(value['high'])} |"
        for name, value in named.items()
    ]
    notes = list(evaluation.get("notes") or [])
    lines += ["", *(f"- {note}" for note in notes), *([""] if notes else [])]
    lines += ["## Data and licences", "", f"Fingerprints of the manifests: {', '.join(record['manifests'])}.", ""]
    for kind, entries in record["licences"].items():
        lines += [f"- {kind}: " + "; ".join(f"{short_name(name)} ({licence})" for name, licence in sorted(entries.items()))]
    lines += [
        "",
        "## What it is not for",
        "",
        "It names how an utterance sounds (and reads) to raters like those of its training data; it does not read minds, and it was not "
        "tested on other languages, microphones, ages or situations than those above. Do not use it to judge persons.",
        "",
    ]
    return "\n".join(["---", to_yaml(header).rstrip(), "---", *map(_shown, lines)])


def _shown(line: str) -> str:
    """A line in which names cannot become elements, links or lines of their own: they come from
    data, and Markdown may hold HTML.
    """
    return " ".join(line.replace("&", "&amp;").replace("<", "&lt;").replace("[", "\\[").splitlines())


def short_name(backbone: str) -> str:
    """The name of a backbone without the folders above a local model, which concern nobody else."""
    family, colon, argument = backbone.partition(":")
    return f"{family}:{argument.rsplit('/', 1)[-1]}" if colon and argument.startswith(("/", ".", "~")) else backbone


def _count(evaluation: dict[str, Any]) -> str:
    return f"{evaluation.get('n_utterances', '?')} utterances of {evaluation.get('n_speakers', '?')} speakers"


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
