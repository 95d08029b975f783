"""Draws ``docs/performance.md`` from the results of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks._wrap import write_wrapped

_HEAD = """# Performance

Written by `python -m benchmarks` (`make bench`) from `benchmarks/results/*.json`; not edited by
hand.

Every figure compares raysere with the alternative in the same row, measured in the same run. It is
the median of the rounds; brackets hold the smallest and the largest round. `checked` says how both
sides were shown to do the same work.

Ray's words: a *trial* is the training of one configuration; the *driver* is the process of the
command; an *actor* is a worker process that Ray starts and that keeps its state between calls;
*Tune* is Ray's library for searches.
"""


def figure(row: dict[str, Any]) -> str:
    """Median, spread and whether the target is met, in words."""
    if "not_measured" in row:
        return f"not measured ({row['not_measured']})"
    low, high = min(row["rounds"]), max(row["rounds"])
    return f"{_number(row['median'])} {row['unit']} [{_number(low)}, {_number(high)}]"


def target(row: dict[str, Any]) -> str:
    if row["goal"] is None:
        return "-"
    words = f"{'at least' if row['higher'] else 'at most'} {row['goal']:g}"
    if "not_measured" in row:
        return words
    return f"{words}: {'met' if row['met'] else '**missed**'}"


def write_page(results: Path, page: Path) -> None:
    """The page of all results that are there, in the order of their names."""
    parts = [_HEAD]
    machines: dict[str, list[str]] = {}
    for path in sorted(results.glob("*.json")):
        outcome = json.loads(path.read_text(encoding="utf-8"))
        if outcome.get("format") != "raysere.benchmark/1":  # a study with a page of its own
            continue
        machines.setdefault(_machine(outcome["machine"]), []).append(outcome["benchmark"])
        parts.append(_section(outcome))
    alone = len(machines) == 1
    described = [f"Machine{'' if alone else ' of ' + ', '.join(names)}: {words}." for words, names in machines.items()]
    parts.insert(1, "\n\n".join(described) + "\n")
    write_wrapped(page, "\n".join(parts))


def _section(outcome: dict[str, Any]) -> str:
    lines = [f"## {outcome['title']}", "", "| what | against | figure | target |", "| --- | --- | --- | --- |"]
    for row in outcome["rows"]:
        lines.append(f"| {row['what']} | {row['against']} | {figure(row)} | {target(row)} |")
    lines.append("")
    for row in outcome["rows"]:
        notes = [f"{name} {_plain(value)}" for name, value in row.get("detail", {}).items()]
        if row.get("checked"):
            notes.append(f"checked: {row['checked']}")
        if notes:
            lines.append(f"- {row['what']}: {'; '.join(notes)}.")
    lines += ["", f"What limits it: {outcome['limits']}", "", f"`python -m benchmarks {outcome['benchmark']}` ({outcome['took_s']} s)", ""]
    return "\n".join(lines)


def _machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    gpu = found["gpu"] or "no GPU"
    return f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB, {gpu}; {versions}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(entry)}" for key, entry in value.items())
    return str(value)
