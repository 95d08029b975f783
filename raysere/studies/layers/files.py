"""What ``analyze layers`` writes: layers.json and the same numbers as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysere.base.files import atomic_write, write_json
from raysere.studies.estimate import Estimate

FORMAT = "raysere.layers/1"
_ESTIMATE = ("value", "low", "high", "null", "null_edge", "p", "reason")
_MEASURES = {
    "source": pl.String,
    "target": pl.String,
    "oracle": pl.Boolean,
    "measure": pl.String,
    "layer": pl.Int64,
    **dict.fromkeys(_ESTIMATE[:-1], pl.Float64),
    "reason": pl.String,
}
_MAPS = {"corpus": pl.String, "layer": pl.Int64, "other": pl.Int64, "cka": pl.Float64}
_ANCHORS = {"source": pl.String, "target": pl.String, "measure": pl.String, "kind": pl.String, "layers": pl.List(pl.Int64)}


def plain_json(value: Any) -> Any:
    """Estimates as objects, arrays as lists, numbers that are none as null."""
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_layers(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write layers.json, measures.parquet, cka.parquet and anchors.parquet; returns what stands in
    layers.json.

    Args:
        found: ``feature``, ``corpora``, ``pairs`` and so on, as
            :func:`raysere.studies.analyze_layers` makes it.
    """
    content = {"format": FORMAT, **plain_json(found)}
    json.dumps(content, allow_nan=False)  # before anything is written
    numbers = [layer["number"] for layer in content["feature"]["layers"]]
    _write(folder / "measures.parquet", _measures(content, numbers), _MEASURES)
    maps = [
        {"corpus": name, "layer": numbers[i], "other": numbers[j], "cka": value}
        for name, corpus in content["corpora"].items()
        for i, row in enumerate(corpus["cka"])
        for j, value in enumerate(row)
    ]
    _write(folder / "cka.parquet", maps, _MAPS)
    anchors = [
        {"source": pair["source"], "target": pair["target"], "measure": measure, "kind": kind, "layers": layers}
        for pair in content["pairs"]
        for measure, kinds in pair["anchors"].items()
        for kind, layers in kinds.items()
    ]
    _write(folder / "anchors.parquet", anchors, _ANCHORS)
    write_json(folder / "layers.json", content)
    return content


def _measures(content: Mapping[str, Any], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    for name, corpus in content["corpora"].items():
        if corpus["relevance"]:
            yield from _rows({"source": name, "target": None, "oracle": False}, "relevance", corpus["relevance"], numbers)
    for pair in content["pairs"]:
        ends = {"source": pair["source"], "target": pair["target"]}
        for measure, values in pair["measures"].items():
            yield from _rows({**ends, "oracle": False}, measure, values, numbers)
        read = pair.get("ORACLE")
        if read:
            for measure, values in [
                *read["measures"].items(),
                *((f"transfer.{norm}", values) for norm, values in read["transfer"].items()),
            ]:
                yield from _rows({**ends, "oracle": True}, measure, values, numbers)


def _rows(head: dict[str, Any], measure: str, values: Sequence[dict[str, Any]], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    for number, value in zip(numbers, values, strict=True):
        yield {**head, "measure": measure, "layer": number, **{key: value[key] for key in _ESTIMATE}}


def _write(path: Path, rows: Any, schema: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        pl.DataFrame(list(rows), schema=dict(schema)).write_parquet(temporary)
