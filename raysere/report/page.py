"""``report.html``: one self-contained page of a run, from its files alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from raysere.base.bounds import read_parquet
from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.base.files import canonical_json, read_json, read_yaml
from raysere.corpora.manifest import Manifest
from raysere.ensemble.data.run_labels import check_tables
from raysere.ensemble.saved.check import checked_record
from raysere.report import charts
from raysere.report.importance import parameter_importance
from raysere.report.writing import write_template
from raysere.search.file_check import FileCheck
from raysere.search.leaderboard import leaderboard
from raysere.search.ledger import Ledger, Record

METRICS = {"uar": "UAR (mean recall of the classes)", "macro_f1": "Macro-F1", "accuracy": "Accuracy", "ccc": "CCC (mean of the attributes)"}
SPLITS = {
    "test": "the test split, read once at the end",
    "out_of_fold": "held-out folds (the ensemble is cross-fitted by the same folds)",
    "nested": "outer test folds, of which no choice of configuration or weight knew",
}
SYSTEMS = (
    ("ensemble", "ensemble", "c0"),
    ("best_single", "best single member", "c1"),
    ("average", "plain average", "c5"),
    ("majority_vote", "majority vote", "c5"),
    ("two_system_mean", "mean of two systems", "c5"),
    ("forest", "random-forest stack", "c5"),
    ("meta_soup", "linear meta-classifier", "c5"),
)
MODALITY_COLOUR = {"audio": "c0", "text": "c1"}
SHOWN_REJECTS = 200


def write_report(run: str | os.PathLike[str], check: FileCheck | None = None) -> Path:
    """Write ``report.html`` into a run folder; a run that is not finished shows what it has.

    Trials and a saved ensemble whose files changed since they were recorded are left out.

    Args:
        run: folder of the run.
        check: reads trials and warns of changed ones; default: a new one.

    Returns:
        The path of the page.

    Example:
        >>> raysere.write_report("runs/emodb")  # doctest: +SKIP
    """
    run = Path(run)
    return write_template(run / "report.html", "report/page.html.j2", collect(run, check or FileCheck()))


def collect(run: Path, check: FileCheck) -> dict[str, Any]:
    """Everything that the page shows, as values and finished charts."""
    experiment = read_yaml(run / "experiment.yaml")
    check_tables(run, experiment)
    manifest = Manifest.read(run / "manifest.parquet")
    records = check.trials(Ledger(run))
    board = leaderboard(run, records=records)
    evaluation, bundle = _figures(run, check)
    values: dict[str, Any] = {
        "name": experiment["name"],
        "synthetic": manifest.synthetic,
        "notes": manifest.notes,
        "corpus_line": _corpus_line(manifest, experiment),
        "evaluation": evaluation,
        "members": [],
        "by_speaker": None,
    }
    values |= _search(board, records)
    values |= _inputs(run, manifest, experiment)
    if evaluation:
        values |= _result(evaluation)
    if bundle:
        values |= _members(bundle)
    values["provenance"] = _provenance(experiment, bundle)
    present = [
        ("result", "Result", evaluation),
        ("classes", "Classes", evaluation),
        ("speakers", "Speakers", values["by_speaker"]),
        ("ensemble", "Ensemble", values["members"]),
        ("search", "Search", True),
        ("layers", "Layers", values["layer_charts"]),
        ("leaderboard", "Leaderboard", True),
        ("inputs", "Inputs", True),
        ("provenance", "Provenance", True),
    ]
    values["sections"] = [(key, label) for key, label, there in present if there]
    return values


def _figures(run: Path, check: FileCheck) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """evaluation.json and ensemble.yaml, each None where it is not there; both None where a file
    changed since they were saved.
    """
    try:
        bundle = checked_record(run) if (run / "ensemble" / "ensemble.yaml").is_file() else None
    except (ConfigError, DataError, MissingFileError) as error:
        check.tell(f"Left out of the report: the ensemble and its figures. {error}")
        return None, None
    return read_json(run / "evaluation.json") if (run / "evaluation.json").is_file() else None, bundle


def _corpus_line(manifest: Manifest, experiment: dict[str, Any]) -> str:
    table = manifest.table
    minutes = (table["duration_s"].sum() or 0) / 60
    return (
        f"{', '.join(sorted(table['corpus'].unique()))} · {table.height} utterances · {table['speaker'].n_unique()} speakers · "
        f"{minutes:.0f} minutes · "
        f"{', '.join(sorted(table['language'].unique()))} · {experiment['protocol']['kind'].replace('_', ' ')} · seed {experiment['seed']}"
    )


def _result(evaluation: dict[str, Any]) -> dict[str, Any]:
    metric = evaluation["metric"]
    systems, differences = [], []
    for key, label, colour in SYSTEMS:
        entry = evaluation.get(key)
        if not entry or entry.get("value") is None:
            continue
        systems.append((label, entry["value"], entry.get("low"), entry.get("high"), colour))
        if difference := evaluation["difference"].get(f"ensemble - {key}"):
            differences.append((f"minus {label}", difference["value"], difference.get("low"), difference.get("high"), colour))
    chance = evaluation.get("chance")
    chance = chance.get("value") if isinstance(chance, dict) else chance
    whole = evaluation["ensemble"]
    best, gain = evaluation.get("best_single") or {}, evaluation["difference"].get("ensemble - best_single")
    cards = [{"label": "ensemble", "value": f"{whole['value']:.3f}", "note": f"{metric}, 95 % [{whole['low']:.3f}, {whole['high']:.3f}]"}]
    if best.get("value") is not None:
        cards.append(
            {
                "label": "best single member",
                "value": f"{best['value']:.3f}",
                "note": _best_members(best) or f"95 % [{best['low']:.3f}, {best['high']:.3f}]",
            }
        )
    if gain:
        cards.append(
            {
                "label": "gain over the best single",
                "value": f"{gain['value']:+.3f}",
                "note": f"95 % [{gain['low']:+.3f}, {gain['high']:+.3f}]",
            }
        )
    cards.append(
        {"label": "scored on", "value": f"{evaluation['n_utterances']}", "note": f"utterances of {evaluation['n_speakers']} speakers"}
    )
    return {
        "cards": cards,
        "metric_name": METRICS.get(metric, metric),
        "units": f"{(evaluation.get('interval') or {}).get('unit', 'speaker')}s",
        "split_words": SPLITS.get(evaluation["split"], evaluation["split"]),
        "claim": _claim(evaluation, gain),
        "systems": charts.intervals(systems, title=f"{metric} of the systems", mark=chance, mark_label="chance", width=500)
        if systems
        else "",
        "differences": charts.intervals(differences, title="differences", mark=0.0, mark_label="no difference", width=500, signed=True)
        if differences
        else "",
        "other_metrics": ", ".join(
            f"{key} {value if isinstance(value, int | str) else format(_value(value), '.3f')}"
            for key, value in (evaluation.get("other_metrics") or {}).items()
            if _value(value) is not None
        ),
        **_class_charts(evaluation),
        **_calibration(evaluation),
        "by_speaker": _speakers(evaluation),
    }


def _best_members(best: dict[str, Any]) -> str:
    members = list(dict.fromkeys(best.get("members") or [])) or ([best["member"]] if best.get("member") else [])
    return members[0] if len(members) == 1 else f"{len(members)} members, one chosen in each fold" if members else ""


def _value(entry: Any) -> Any:
    if isinstance(entry, dict):
        return next((entry[key] for key in ("value", "recall", "ccc", "uar", "accuracy") if entry.get(key) is not None), None)
    return entry


def _claim(evaluation: dict[str, Any], gain: dict[str, Any] | None) -> str:
    where = SPLITS.get(evaluation["split"], evaluation["split"])
    text = f"Measured on {where}. "
    if evaluation.get("claim"):
        return text + "What may be claimed: " + evaluation["claim"]
    if gain:
        if gain["low"] > 0:
            text += "What may be claimed: the ensemble is ahead of the best single member; the interval of the difference lies above 0."
        elif gain["high"] < 0:
            text += "The ensemble is behind the best single member: serve that one."
        else:
            text += "The interval of the difference to the best single member holds 0: on these speakers the two cannot be told apart."
    return text


def _class_charts(evaluation: dict[str, Any]) -> dict[str, Any]:
    confusion = evaluation.get("confusion")
    rows = [(name, _value(value), "c0") for name, value in (evaluation.get("by_class") or {}).items() if _value(value) is not None]
    words = "Recall of each class." if confusion else "CCC of each attribute."
    return {
        "confusion": charts.matrix(confusion["counts"], confusion["classes"], title="confusion matrix") if confusion else None,
        "by_class": charts.bars(rows, title="by class", maximum=1.0, digits=3, width=460) if rows else None,
        "by_class_caption": words,
    }


def _calibration(evaluation: dict[str, Any]) -> dict[str, Any]:
    calibration = evaluation.get("calibration") or {}
    bins = [b for b in calibration.get("bins", []) if b.get("count")]
    if not bins:
        return {"calibration": None, "ece": None}
    chart = charts.scatter(
        [("ensemble", [b["confidence"] for b in bins], [b["accuracy"] for b in bins], "c0")],
        title="calibration curve",
        x_label="stated confidence",
        y_label="share right",
        diagonal=True,
        joined=True,
        x_range=(0, 1),
        y_range=(0, 1),
        width=460,
        height=320,
    )
    return {"calibration": chart, "ece": calibration.get("ece")}


def _speakers(evaluation: dict[str, Any]) -> Markup | None:
    rows = []
    for name, entry in (evaluation.get("by_speaker") or {}).items():
        value = _value(entry)
        if value is not None:
            count = entry.get("n") or entry.get("n_utterances") or entry.get("count") if isinstance(entry, dict) else None
            rows.append(
                (
                    name + (f" ({count})" if count else ""),
                    value,
                    entry.get("low") if isinstance(entry, dict) else None,
                    entry.get("high") if isinstance(entry, dict) else None,
                    "c0",
                )
            )
    if not rows:
        return None
    rows.sort(key=lambda row: -row[1])
    shown = rows if len(rows) <= 40 else rows[:20] + rows[-20:]
    return charts.intervals(shown, title="by speaker", mark=evaluation["ensemble"]["value"], mark_label="all", width=860)


def _members(bundle: dict[str, Any]) -> dict[str, Any]:
    members = sorted(bundle["members"], key=lambda member: -_weight(member))
    rows = [(f"{member['trial']}", _weight(member), MODALITY_COLOUR.get(member["modality"], "c2")) for member in members]
    shown = [
        {"trial": m["trial"], "modality": m["modality"], "weight": _weight(m), "params": canonical_json(m.get("params") or {})}
        for m in members
    ]
    shares = {
        kind: sum(_weight(member) for member in members if member["modality"] == kind)
        for kind in sorted({member["modality"] for member in members})
    }
    line = f"{len(members)} member{'s' if len(members) != 1 else ''}"
    if len(shares) > 1:
        line += "; of the weight, " + ", ".join(f"{100 * share:.0f} % {kind.replace('+', ' and ')}" for kind, share in shares.items())
    family = bundle.get("family") or ""
    return {
        "members": shown,
        "members_chart": charts.bars(rows[:25], title="member weights", digits=3, width=860),
        "ensemble_line": line + (f". Family: {family}." if family else "."),
    }


def _weight(member: dict[str, Any]) -> float:
    weight = member.get("weight")
    if isinstance(weight, dict):
        return float(sum(weight.values()) / max(len(weight), 1))
    if isinstance(weight, list):
        return float(sum(weight) / max(len(weight), 1))
    return float(weight or 0.0)


def _search(board: pl.DataFrame, records: list[Record]) -> dict[str, Any]:
    studies = sorted({record.study for record in records})
    series, importances, layer_charts = [], [], []
    for index, study in enumerate(studies):
        scored = sorted(
            (record for record in records if record.study == study and record.scored), key=lambda record: (record.outer, record.number)
        )
        if not scored:
            continue
        series.append(
            (study, [float(record.number) for record in scored], [float(record.score or 0) for record in scored], f"c{index % 6}")
        )
        rows = board.filter(pl.col("trial").is_in([record.trial for record in scored]))
        if found := parameter_importance(rows):
            importances.append(
                (
                    study,
                    charts.bars(
                        [(name, value, f"c{index % 6}") for name, value in sorted(found.items(), key=lambda pair: -pair[1])[:10]],
                        title=f"parameter importance of {study}",
                        width=460,
                    ),
                )
            )
        layer_charts += _layers(study, scored, f"c{index % 6}")
    counts = {status: sum(record.status == status for record in records) for status in ("done", "stopped", "infeasible", "error")}
    seconds = sum(record.seconds for record in records)
    line = (
        f"{len(records)} trials in {len(studies)} stud{'ies' if len(studies) != 1 else 'y'}: "
        + ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        + f"; {seconds / 60:.1f} minutes of training."
    )
    head = [name for name in ("trial", "method", "modality", "status", "score", "epochs", "seconds") if name in board.columns]
    shown = [{name: _cell(name, value) for name, value in row.items()} for row in board.select(head).iter_rows(named=True)]
    return {
        "search_line": line,
        "history": charts.scatter(series, title="search history", x_label="trial", y_label="development score", best=True, width=860)
        if series
        else "",
        "importances": importances,
        "layer_charts": layer_charts,
        "board": shown,
        "board_head": head,
        "numeric": {"score", "epochs", "seconds"},
    }


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if name == "score" else f"{value:.1f}" if isinstance(value, float) else str(value)


def _layers(study: str, scored: list[Record], colour: str) -> list[tuple[str, Markup, str]]:
    """Learned layer weights of the best trial that has them, else the best score reached with each
    single layer.
    """
    best = max((record for record in scored if _layer_weights(record)), key=lambda record: record.score or 0, default=None)
    found = []
    if best is not None:
        for stream, weights in _layer_weights(best).items():
            names, values = list(weights), [float(value) for value in weights.values()]
            if len(values) > 1:
                chart = charts.columns(
                    values, names, title=f"layer weights of {best.trial}", css=colour, width=460, reference=1 / len(values)
                )
                found.append(
                    (
                        study,
                        chart,
                        f"learned weights of the layers of {stream} in {best.trial} "
                        "(counted from the input; the dashed line is equal weight).",
                    )
                )
    by_layer: dict[int, float] = {}
    for record in scored:
        layer = record.params.get("layer")
        if isinstance(layer, int) and record.params.get("layers") == "one":
            by_layer[layer] = max(by_layer.get(layer, -1.0), record.score or 0.0)
    if len(by_layer) > 1:
        order = sorted(by_layer)
        chart = charts.columns(
            [by_layer[layer] for layer in order], [str(layer) for layer in order], title="best score by layer", css=colour, width=460
        )
        found.append((study, chart, "best development score of the trials that read one layer, by layer."))
    return found


def _layer_weights(record: Record) -> dict[str, dict[str, float]]:
    weights = record.describe.get("layer_weights") or {}
    return (
        {
            stream: values if isinstance(values, dict) else {str(i): value for i, value in enumerate(values)}
            for stream, values in weights.items()
        }
        if isinstance(weights, dict)
        else {}
    )


def _inputs(run: Path, manifest: Manifest, experiment: dict[str, Any]) -> dict[str, Any]:
    path = run / "quarantine.parquet"
    rejected = read_parquet(path).to_dicts() if path.is_file() else []
    dropped = experiment.get("dropped") or {}
    line = f"{len(manifest)} utterances are in the manifest."
    if dropped:
        line += " Left out by the class map: " + ", ".join(f"{count} × {label}" for label, count in sorted(dropped.items())) + "."
    if rejected:
        files = {row["path"] or row["utterance"] for row in rejected}
        line += f" {len(files)} input{'s were' if len(files) > 1 else ' was'} rejected:"
    return {"inputs_line": line, "quarantine": rejected[:SHOWN_REJECTS], "quarantine_more": max(0, len(rejected) - SHOWN_REJECTS)}


def _provenance(experiment: dict[str, Any], bundle: dict[str, Any] | None) -> list[tuple[str, str]]:
    rows = [
        ("manifest", experiment["manifest_fingerprint"]),
        ("protocol", canonical_json(experiment["protocol"])),
        ("task", canonical_json(experiment["task"])),
    ]
    rows += [
        (f"features {name}", f"{config['backbone']}, {config['granularity']}, key {config['spec_key']}")
        for name, config in experiment["features"].items()
    ]
    rows += [
        ("seed", str(experiment["seed"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in experiment["versions"].items())),
    ]
    if experiment.get("git_commit"):
        rows.append(("git commit", experiment["git_commit"]))
    return rows
