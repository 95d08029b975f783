"""Results as text for people and as plain values for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from raysere.base.progress import duration, printable
from raysere.ensemble.evaluate.claims import LABELS


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """A text table: numbers right, text left, two blanks between columns."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [all(isinstance(row[i], int | float) or row[i] is None for row in rows) and bool(rows) for i in range(len(header))]

    def draw(line: Sequence[str]) -> str:
        return "  ".join(text.rjust(width) if flag else text.ljust(width) for text, width, flag in zip(line, widths, right)).rstrip()

    return "\n".join([draw(list(header)), "  ".join("-" * width for width in widths), *(draw(line) for line in cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
    return printable(str(value), lines=False)


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def interval(entry: dict[str, Any]) -> str:
    low, high = entry.get("low"), entry.get("high")
    return f"{entry['value']:.4f}" + (f"  [{low:.4f}, {high:.4f}]" if low is not None and high is not None else "")


def evaluation_text(evaluation: dict[str, Any]) -> str:
    """The table a reviewer checks: each system, its interval (over speakers, or what else the
    splits are by), and the differences of the ensemble to them.
    """
    metric = evaluation["metric"]
    where = {"test": "the test split", "out_of_fold": "held-out folds (cross-fitted)", "nested": "outer test folds (nested)"}.get(
        evaluation["split"], evaluation["split"]
    )
    unit = (evaluation.get("interval") or {}).get("unit", "speaker")
    counts = f"{evaluation['n_utterances']} utterances, {evaluation['n_speakers']} speakers"
    counts += f", {evaluation['n_units']} {unit}s" if unit != "speaker" else ""
    lines = [f"{metric} on {where}: {counts}; 95 % intervals over {unit}s"]
    rows = []
    for key, label in LABELS.items():
        entry = evaluation.get(key)
        if not entry or entry.get("value") is None:
            continue
        difference = evaluation["difference"].get(f"ensemble - {key}")
        rows.append(
            [
                label,
                interval(entry),
                "" if difference is None else signed_interval(difference),
            ]
        )
    lines.append(table(rows, ["system", f"{metric}  [95 %]", "ensemble minus this  [95 %]"]))
    lines += _choices(evaluation)
    if evaluation.get("by_class"):
        lines.append(
            "by class: "
            + ", ".join(
                f"{name} {_class_value(value):.3f}" for name, value in evaluation["by_class"].items() if _class_value(value) is not None
            )
        )
    for name, groups in (evaluation.get("by_group") or {}).items():
        shown = ", ".join(
            f"{group} {entry['value']:.3f} ({entry['n']})" for group, entry in groups.items() if entry.get("value") is not None
        )
        lines.append(f"by {name.replace('_', ' ')}: {shown}")
    optimism = evaluation.get("optimism") or {}
    if optimism.get("value") is not None:
        lines.append(f"optimism: {optimism['in_sample']:.4f} on the rows that it was fitted on, held out {-optimism['value']:+.4f}")
    lines += [f"Note: {note}" for note in evaluation.get("notes", [])]
    if evaluation.get("claim"):
        lines.append(f"May be claimed: {evaluation['claim']}")
    return "\n".join(lines)


def signed_interval(entry: dict[str, Any]) -> str:
    low, high = entry.get("low"), entry.get("high")
    return f"{entry['value']:+.4f}" + (f"  [{low:+.4f}, {high:+.4f}]" if low is not None and high is not None else "")


def _choices(evaluation: dict[str, Any]) -> list[str]:
    """What was chosen in each fold: the best single member, the family with its pool and offsets."""
    lines = []
    best = evaluation.get("best_single") or {}
    members = best.get("members") or ([best["member"]] if best.get("member") else [])
    if members:
        lines.append("best single member" + (" by fold: " if len(members) > 1 else ": ") + ", ".join(members))
    chosen = [part["classes"]["chosen"] for part in evaluation.get("families") or [] if "classes" in part]
    if chosen:
        lines.append("chosen" + (" by fold: " if len(chosen) > 1 else ": ") + ", ".join(chosen))
    return lines


def ablation_text(rows: list[dict[str, Any]], metric: str) -> str:
    """The table of :func:`raysere.ensemble.evaluate.ablation.ablate`."""
    shown = [
        [row["variant"], interval(row), signed_interval(row["worth"]) if "worth" in row else "", f"{row['seconds']:.1f}"] for row in rows
    ]
    return table(shown, ["procedure", f"{metric}  [95 %]", "full minus this  [95 %]", "s of processor time"])


def _class_value(value: Any) -> Any:
    return value.get("recall", value.get("value")) if isinstance(value, dict) else value


def outcome_json(outcome: Any) -> dict[str, Any]:
    return {
        "format": "raysere.outcome/1",
        "run": str(outcome.run),
        "stage": outcome.stage,
        "trials": outcome.trials,
        "rejected": outcome.rejected,
        "evaluation": outcome.evaluation,
        "report": None if outcome.report is None else str(outcome.report),
    }


def outcome_text(outcome: Any) -> str:
    lines = []
    if outcome.evaluation is not None:
        lines.append(evaluation_text(outcome.evaluation))
    if outcome.rejected:
        lines.append(rejected_text(outcome.rejected))
    if outcome.report is not None:
        lines.append(f"Report: {outcome.report}")
    else:
        lines.append(f"Run: {outcome.run}" + (f" ({outcome.trials} trials; raysere leaderboard {outcome.run})" if outcome.trials else ""))
    return "\n\n".join(lines)


def rejected_text(rejected: list[dict[str, Any]], shown: int = 30) -> str:
    files = Counter(row["path"] or row["utterance"] for row in rejected)
    lines = [f"{len(files)} input{'s were' if len(files) > 1 else ' was'} rejected (all are in quarantine.parquet and in the report):"]
    lines += ["  " + printable(f"{row['path'] or row['utterance']}: {row['reason']}", lines=False) for row in rejected[:shown]]
    if len(rejected) > shown:
        lines.append(f"  ... and {len(rejected) - shown} more")
    return "\n".join(lines)


def plan_text(plan: dict[str, Any]) -> str:
    """The price of an experiment: features by granularity, time, trials."""
    lines = [f"{plan['utterances']} utterances" + (f", {len(plan['rejected'])} rejected" if plan["rejected"] else "")]
    rows = [
        [
            name,
            one["backbone"],
            one["granularity"],
            f"{one['cached']} of {one['items']}",
            size(one["bytes"]),
            "-" if one["seconds"] is None else duration(one["seconds"]),
            ", ".join(f"{key} {size(value)}" for key, value in one["bytes_by"].items()),
        ]
        for name, one in plan["features"].items()
    ]
    lines.append(table(rows, ["feature", "backbone", "granularity", "cached", "to write", "time", "whole corpus by granularity"]))
    lines.append(table([[name, study["trials"]] for name, study in plan["studies"].items()], ["study", "trials"]))
    if plan["cluster"]:
        lines += _cluster_lines(plan["cluster"])
    return "\n\n".join(lines)


def _cluster_lines(price: dict[str, Any]) -> list[str]:
    """Of the price on a cluster: what a node is, what each number of nodes costs, and what it rests
    on.
    """
    cluster = price["cluster"]
    cards = f" and {cluster['gpus']} x {cluster['gpu']}" if cluster["gpu"] != "none" else ""
    rates = f"{cluster['link'] * 8 / 1e9:g} Gbit/s to a storage of {cluster['storage'] * 8 / 1e9:g} Gbit/s"
    stages = ("extract", "fetch", "search", "ensemble")
    rows = [
        [
            str(row["nodes"]),
            duration(row["seconds"]["total"]),
            *(duration(row["seconds"][stage]) for stage in stages),
            f"{row['speedup']:.1f}",
            f"{row['node_hours']:.2f}",
            f"{row['gpu_hours']:.2f} ({row['gpu_hours_busy']:.2f})" if cards else "-",
            size(row["network_bytes"]),
        ]
        for row in price["rows"]
    ]
    header = ["nodes", "wall", *stages, "times as fast", "node hours", "GPU hours (busy)", "network"]
    known = [[one["name"], one["count"], f"{one['seconds']:.3g} s", one["source"]] for one in price["trials"]]
    limit = price["pays_up_to"]
    return [
        f"On nodes of {cluster['cores']} cores{cards}, {rates}:",
        table(rows, header),
        *([table(known, ["study", "trials left", "a trial takes", "known from"])] if known else []),
        (f"Up to {limit} nodes pay" if limit > 1 else "A second node does not pay")
        + ": beyond it a node is worth less than half of a lone one."
        + (
            f" At {cluster['nodes']} nodes {price['trials_at_once']} trials run at once, and none of them learns from the others."
            if known
            else ""
        ),
        f"Assumed, not measured: {', '.join(price['assumed'])}.",
    ]


def leaderboard_text(board: pl.DataFrame, top: int) -> str:
    if not board.height:
        return "No trial has finished yet."
    shown = board.head(top) if top else board
    names = [name for name in ("trial", "method", "modality", "status", "score", "epochs", "seconds") if name in shown.columns]
    text = table([list(row) for row in shown.select(names).iter_rows()], names)
    return text + (f"\n... and {board.height - shown.height} more (--top 0 shows all)" if shown.height < board.height else "")


def status_text(status: dict[str, Any]) -> str:
    """The state in one line, then what is left, the studies, and what is written."""
    lines = [f"{status['run']}: {_state(status)}"]
    rows = []
    for name, study in status["studies"].items():
        finished = ", ".join(f"{count} {key}" for key, count in sorted(study["status"].items()))
        seconds = "-" if study["mean_seconds"] is None else duration(study["mean_seconds"])
        rows.append([name, sum(study["status"].values()), study["planned"], finished or "-", seconds, study["best"]])
    if rows:
        lines.append(table(rows, ["study", "finished", "planned", "of these", "a trial takes", "best"]))
    lines.append(f"report: {status['report']}" if status["report"] else ("evaluated" if status["evaluated"] else "not evaluated yet"))
    return "\n".join(lines)


def _state(status: dict[str, Any]) -> str:
    """What is under way and how long it will take; of a run at which nobody works, what is missing."""
    finished, planned = status["finished"], status["planned"]
    if not status["running"]:
        if finished < planned or not planned:
            stage = status["stopped_in"]
            where = f" in {stage['name']} at {stage['done']} of {stage['total']}" if stage else ""
            trials = f"{finished} of {planned} trials are finished" if planned or finished else "no trial has begun"
            if stage and stage["done"] >= stage["total"]:  # as `raysere extract` ends
                return f"stopped after {stage['name']}, {trials}; `raysere tune` or `raysere run` goes on from there"
            return f"stopped{where}, {trials}; the command that started it goes on where it was"
        return "finished" if status["report"] else "all trials are finished; nobody works on it"
    stage = status["stage"]
    if stage is None:
        return "running"
    parts = [f"running, {stage['name']}"]
    if stage["total"]:
        parts[0] += f" {stage['done']} of {stage['total']}"
        parts[0] += f" ({stage['at_once']} at once)" if stage["at_once"] > 1 else ""
    parts.append(f"for {duration(stage['seconds'])}")
    if stage["left_s"] is not None:
        parts.append(f"about {duration(stage['left_s'])} left")
    return ", ".join(parts)


def prediction_text(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        name = printable(row.get("file") or (f"text {row['text']!r}" if row.get("text") else "input"), lines=False)
        if row.get("error"):
            lines.append(f"{name}: REJECTED, {row['error']}")
            continue
        shares = sorted(
            ((key[2:], value) for key, value in row.items() if key.startswith("p.") and value is not None), key=lambda pair: -pair[1]
        )
        attributes = [f"{key} {row[key]:.2f}" for key in ("arousal", "valence", "dominance") if row.get(key) is not None]
        text = f"{name}: " + (f"{row.get('predicted')} ({', '.join(f'{key} {value:.2f}' for key, value in shares)})" if shares else "")
        lines.append(
            text + ("; " if shares and attributes else "") + ", ".join(attributes) + (f"  [{row['note']}]" if row.get("note") else "")
        )
    return "\n".join(lines)


def layers_text(found: dict[str, Any]) -> str:
    """The tables of :func:`raysere.studies.analyze_layers`: one a pair, with what read labels of
    the target in columns of their own.
    """
    names = [f"{layer['number']} {layer['name']}" for layer in found["feature"]["layers"]]
    blocks = []
    for pair in found["pairs"]:
        relevance, read = found["corpora"][pair["source"]]["relevance"], pair.get("ORACLE")
        columns = {"relevance": relevance} if relevance else {}
        columns |= pair["measures"]
        if read:
            columns |= {f"ORACLE {name}": values for name, values in [*read["measures"].items(), ("transfer", read["transfer"]["corpus"])]}
        rows = [[name, *(values[at]["value"] for values in columns.values())] for at, name in enumerate(names)]
        lines = [f"{pair['source']} -> {pair['target']}", table(rows, ["layer", *columns])]
        second = pair["second_order"]
        if second["value"] is not None:
            lines.append(f"second-order similarity of the two CKA maps: {interval(second)}")
        kinds = pair["anchors"].get(found["settings"]["similarity"]) or {}
        reached = (read or {}).get("anchors", {})
        lines += [
            f"anchors, {kind}: {', '.join(map(str, layers))}"
            + (f"  (ORACLE transfer {interval(reached[kind])})" if kind in reached else "")
            for kind, layers in kinds.items()
        ]
        if read:
            shown = [
                f"{name} {value['value']:+.2f} (p {value['p']:.3f})"
                for name, value in read["correlation"].items()
                if value["p"] is not None
            ]
            lines.append("ORACLE Spearman with transfer by layer: " + ", ".join(shown))
        blocks.append("\n".join(lines))
    if found["rejected"]:
        blocks.append(rejected_text(found["rejected"]))
    return "\n\n".join([*blocks, f"Written to {found['folder']}; page: {found['page']}"])


def units_text(found: dict[str, Any], folder: Any) -> str:
    """The findings of a units study in a screenful."""
    study = found["study"]
    lines = [
        f"{study['units']} units of layer {study['layer']} of {study['backbone']}: {study['frames']} frames, "
        f"{study['speakers']} speakers, {', '.join(study['languages'])}; {duration(study['seconds'])}"
    ]
    if found["layers"]:
        lines += [
            "",
            table([[row["layer"], row["pnmi"], row["phone_purity"]] for row in found["layers"]], ("layer", "PNMI", "phone purity")),
        ]
    if found["validation"]:
        keys = ("check", "of", "items", "accuracy", "mrr", "chance", "correlation", "tau", "p")
        lines += ["", table([[row.get(key) for key in keys] for row in found["validation"]], keys)]
    if "ORACLE" in found:
        lines += [
            f"ORACLE (reads the target's emotions): transfer by vowel, {row['source']} to {row['target']}: "
            f"mean UAR {row['mean_uar']:.3f} over {row['items']} vowels (chance {row['chance']:.3f})"
            + (
                f", rank correlation with the similarity {row['correlation']:.2f}, p = {row['p']:.3f}"
                if row["correlation"] is not None
                else ""
            )
            for row in found["ORACLE"]["utility"]
            if row["items"]
        ]
    lines += ["", *(f"Anchors of {pair}: {', '.join(vowels) or 'none is eligible'}" for pair, vowels in found["anchors"].items())]
    if vowels := sorted({vowel for chosen in found["anchors"].values() for vowel in chosen}):
        lines.append(f"To learn from them alone, add to a feature of the experiment: phones: [{', '.join(vowels)}]")
    lines += [
        f"{name.replace('_', ' ')}: {counts['significant']} of {counts['tested']} tests significant (FDR {found['config']['level']:g})"
        for name, counts in found["tests"].items()
    ]
    return "\n".join([*lines, *found["messages"], f"Written to {folder}; look at {folder}/units.html"])
