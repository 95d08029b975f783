"""``layers.html``: one self-contained page of ``raysere analyze layers``, from layers.json alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raysere.base.files import read_json
from raysere.report import charts
from raysere.report.writing import write_template

WORDS = {
    "covariance_gap": ("covariance gap", "normalised squared distance of the covariances, each corpus z-scored; lower is more alike"),
    "mean_gap": ("mean gap", "mean squared difference of the means in standard deviations; lower is more alike"),
    "mmd": ("squared MMD", "Gaussian kernel, median heuristic, in standard deviations; lower is more alike"),
    "proxy_a_distance": ("proxy A-distance", "linear domain classifier on held-out speakers, 2 is perfectly apart; lower is more alike"),
    "centred_cosine": ("centred cosine", "of the centroids of the cells; higher is more alike"),
    "procrustes": ("Procrustes similarity", "of the centroids after the best rotation; higher is more alike, read it beside its null"),
    "debiased_cka": ("debiased CKA", "of the centroids; higher is more alike"),
}
KINDS = {
    "final": "final layer",
    "single": "single best",
    "group": "best group",
    "topk": "best layers",
    "all": "all layers",
    "random_group": "random group (control)",
    "least_similar": "least similar group (control)",
}


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Write ``layers.html`` beside the layers.json of a folder and return its path."""
    folder = Path(folder)
    return write_template(folder / "layers.html", "studies/layers/page.html.j2", collect(read_json(folder / "layers.json")))


def collect(found: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the page shows, as values and finished charts."""
    feature = found["feature"]
    labels = [str(layer["number"]) for layer in feature["layers"]]
    corpora = [
        f"{name} ({corpus['language']}): {corpus['utterances']} utterances, {corpus['speakers']} speakers"
        for name, corpus in found["corpora"].items()
    ]
    return {
        "name": found["experiment"],
        "feature": f"{feature['name']}: {feature['backbone']}, {feature['pooling'].replace('_', ' and ')} over each utterance",
        "corpora": corpora,
        "classes": ", ".join(found["classes"]),
        "synthetic": found["synthetic"],
        "layer_names": ", ".join(f"{layer['number']} {layer['name']}" for layer in feature["layers"]),
        "maps": [
            (
                name,
                charts.heatmap(corpus["cka"], labels, labels, title=f"CKA between layers on {name}", low=0.0, high=1.0, css=f"c{at % 6}"),
            )
            for at, (name, corpus) in enumerate(found["corpora"].items())
        ],
        "relevance": _relevance(found, labels),
        "pairs": [_pair(pair, found, labels, number) for number, pair in enumerate(found["pairs"])],
        "settings": found["settings"],
        "rejected": len(found["rejected"]),
        "left_out": ", ".join(f"{count} × {label}" for label, count in found["left_out_by_class_map"].items()),
        "key": feature["key"],
        "fingerprint": found["manifest_fingerprint"],
    }


def _parts(values: Sequence[Mapping[str, Any]], *keys: str) -> list[list[Any]]:
    return [[value[key] for value in values] for key in keys]


def _relevance(found: Mapping[str, Any], labels: Sequence[str]) -> Markup | None:
    known = [(name, corpus["relevance"]) for name, corpus in found["corpora"].items() if corpus["relevance"]]
    if not known:
        return None
    series = [(name, *_parts(values, "value", "low", "high"), f"c{at % 6}") for at, (name, values) in enumerate(known)]
    chance = [1 / len(found["classes"])] * len(labels)
    return charts.curves(
        series,  # type: ignore[arg-type]
        labels,
        title="relevance by layer",
        x_label="layer",
        y_label="UAR",
        null=chance,
        null_label="chance",
        width=680,
        height=270,
    )


def _chart(name: str, values: Sequence[Mapping[str, Any]], labels: Sequence[str], css: str, places: Sequence[int] = ()) -> dict[str, Any]:
    title, words = WORDS.get(name.split(".")[-1], (name, ""))
    reasons = sorted({value["reason"] for value in values if value["reason"]})
    curve = (title, *_parts(values, "value", "low", "high"), css)
    nulls = [value["null"] for value in values]
    drawn = charts.curves(
        [curve],  # type: ignore[list-item]
        labels,
        title=f"{title} by layer",
        x_label="layer",
        y_label=title,
        null=nulls,
        null_label="if there were nothing" if any(null is not None for null in nulls) else "",
        marked=places,
    )
    found = sorted({f"{value['p']:.3f}" for value in values if value["p"] is not None})
    return {
        "chart": drawn,
        "title": title,
        "words": words,
        "reasons": reasons,
        "p": f"Permutation p {found[0]}{f' to {found[-1]}' if len(found) > 1 else ''}" if found else "",
    }


def _pair(pair: Mapping[str, Any], found: Mapping[str, Any], labels: Sequence[str], number: int) -> dict[str, Any]:
    chosen = found["settings"]["similarity"]
    places = {str(label): at for at, label in enumerate(labels)}
    anchors = pair["anchors"]
    group = [places[str(layer)] for layer in (anchors.get(chosen) or {}).get("group", [])]
    read = pair.get("ORACLE")
    reached = (read or {}).get("anchors", {})
    rows = [
        {
            "kind": KINDS[kind],
            "layers": [_runs_of(anchors[measure].get(kind, [])) for measure in anchors if anchors[measure]],
            "oracle": _interval(reached.get(kind)),
        }
        for kind in KINDS
        if anchors.get(chosen)
    ]
    return {
        "id": f"pair{number}",
        "title": f"{pair['source']} → {pair['target']}",
        "charts": [_chart(name, values, labels, "c0", group) for name, values in pair["measures"].items()],
        "second": _interval(pair["second_order"]),
        "second_p": pair["second_order"]["p"],
        "group": _runs_of((anchors.get(chosen) or {}).get("group", [])),
        "anchor_measures": [WORDS.get(name.split(".")[-1], (name,))[0] for name in anchors if anchors[name]],
        "anchor_rows": rows,
        "oracle": _oracle(read, labels, group, found) if read else None,
    }


def _oracle(read: Mapping[str, Any], labels: Sequence[str], group: Sequence[int], found: Mapping[str, Any]) -> dict[str, Any]:
    names = {"corpus": "each corpus z-scored", "source": "z-scored by the source"}
    series = [
        (names[norm], *_parts(values, "value", "low", "high"), css)
        for (norm, values), css in zip(read["transfer"].items(), ("c1", "c5"), strict=False)
    ]
    chance = [1 / len(found["classes"])] * len(labels)
    correlations = [
        {
            "name": ("emotion cells: " if name.startswith("emotion.") else "") + WORDS.get(name.split(".")[-1], (name,))[0],
            "value": f"{value['value']:+.2f}",
            "p": f"{value['p']:.3f}",
        }
        for name, value in read["correlation"].items()
        if value["value"] is not None
    ]
    windows = [(_runs_of(layers), value["value"]) for layers, value in read["windows"]]
    return {
        "transfer": charts.curves(
            series,  # type: ignore[arg-type]
            labels,
            title="transfer by layer",
            x_label="layer",
            y_label="UAR",
            null=chance,
            null_label="chance",
            marked=group,
            width=680,
            height=270,
        ),
        "charts": [_chart(name, values, labels, "c1", group) for name, values in read["measures"].items()],
        "cells": ", ".join(read["cells"]),
        "correlations": correlations,
        "windows": ", ".join(f"{name}: {value:.3f}" for name, value in windows),
        "by_relevance": (_runs_of(read["by_relevance"][0]), _interval(read["by_relevance"][1])),
        "window_mean": sum(value for _, value in windows) / len(windows),
    }


def _interval(value: Mapping[str, Any] | None) -> str:
    if not value or value["value"] is None:
        return "–"
    bounds = f" [{value['low']:.3f}, {value['high']:.3f}]" if value["low"] is not None else ""
    return f"{value['value']:.3f}{bounds}"


def _runs_of(layers: Sequence[int]) -> str:
    """Layer numbers as text, neighbours joined: 2–4, 6."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "–"
