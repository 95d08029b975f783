"""The folder of a units study:

``units.json``, the codebook, ``counts.parquet`` and a parquet for every table.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.bounds import read_parquet
from raysere.base.errors import ConfigError, DataError
from raysere.base.files import atomic_write, explain_write_errors, read_json, write_json
from raysere.nn.frame_units import FrameUnits
from raysere.studies.units.config import units_config
from raysere.studies.units.study import TABLES, UnitsResult, anchor_vowels

FORMAT = "raysere.units/1"


def write_units(result: UnitsResult, folder: str | os.PathLike[str], **about: Any) -> Path:
    """Write a result; ``units.json`` last, so that a folder without it is no study.

    ``about``: further plain values for it.
    """
    folder = Path(folder)
    with explain_write_errors(folder):
        (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "units.json").unlink(missing_ok=True)
    result.codebook.save(folder / "codebook.safetensors")
    _write_table(folder / "counts.parquet", result.counts)
    for name in TABLES:
        (folder / "tables" / f"{name}.parquet").unlink(missing_ok=True)
        if name in result.tables and result.tables[name].width:
            _write_table(folder / "tables" / f"{name}.parquet", result.tables[name])
    write_json(folder / "units.json", summary(result, **about))
    return folder


def read_units(folder: str | os.PathLike[str]) -> UnitsResult:
    """Read what :func:`write_units` wrote.

    Raises MissingFileError; ConfigError for a folder of another version.
    """
    folder = Path(folder)
    found = read_json(folder / "units.json")
    if found.get("format") != FORMAT:
        raise ConfigError(f"The format of this study is {found.get('format')!r}", where=folder / "units.json", choices=[FORMAT])
    tables = {
        name: read_parquet(folder / "tables" / f"{name}.parquet") if (folder / "tables" / f"{name}.parquet").is_file() else pl.DataFrame()
        for name in TABLES
    }
    return UnitsResult(
        units_config(found["config"]),
        FrameUnits.load(folder / "codebook.safetensors"),
        read_parquet(folder / "counts.parquet"),
        tables,
        found["messages"],
        found["study"],
    )


def summary(result: UnitsResult, **about: Any) -> dict[str, Any]:
    """``units.json``: what was asked, the findings in short, and where the tables are.

    NaN becomes null.
    """
    tables = {name: table for name, table in result.tables.items() if table.width}
    pairs = tables["anchors"].select("language_a", "language_b").unique(maintain_order=True).rows() if "anchors" in tables else []
    chosen = {}
    for one, other in pairs:
        try:
            chosen[f"{one}-{other}"] = anchor_vowels(result, one, other)
        except DataError:
            chosen[f"{one}-{other}"] = []
    return _plain(
        {
            "format": FORMAT,
            **about,
            "study": result.meta,
            "messages": result.messages,
            "anchors": chosen,
            "identification": tables["identification"].to_dicts() if "identification" in tables else [],
            "validation": tables["validation"].to_dicts() if "validation" in tables else [],
            **(
                {"ORACLE": {"utility": tables["ORACLE_utility"].to_dicts(), "transfer": tables["ORACLE_transfer"].to_dicts()}}
                if "ORACLE_utility" in tables
                else {}
            ),
            "quality": tables["quality"].to_dicts() if "quality" in tables else [],
            "layers": tables["layers"].filter(pl.col("language").is_null()).to_dicts() if "layers" in tables else [],
            "overlaps": tables["overlaps"].to_dicts() if "overlaps" in tables else [],
            "tests": {
                name: {"tested": int(table["p"].is_finite().sum()), "significant": int(table["significant"].sum())}
                for name, table in tables.items()
                if "significant" in table.columns
            },
            "config": result.config.model_dump(mode="json"),
            "codebook": {key: value for key, value in asdict(result.codebook).items() if key != "centres"},
            "tables": {
                name: {"file": f"tables/{name}.parquet", "rows": table.height, "what": TABLES[name]} for name, table in tables.items()
            },
        }
    )


def _write_table(path: Path, table: pl.DataFrame) -> None:
    with atomic_write(path) as temporary:
        table.write_parquet(temporary)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
