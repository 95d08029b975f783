"""``units.html`` and ``figures/*.svg`` of a units study, from the files of its folder alone."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import Markup

from raysere.base.bounds import read_parquet
from raysere.base.errors import MissingFileError
from raysere.base.files import atomic_write, canonical_json, read_json
from raysere.report import charts
from raysere.report.writing import write_template
from raysere.studies.units.vowel_chart import vowel_chart

VOWEL_HEAD = (
    *("vowel", "frames_a", "frames_b", "similarity", "corrected_similarity", "margin", "rank", "p_adjusted"),
    *("hellinger", "tv", "cosine", "kl", "emd", "frechet", "mmd"),
)
CHECK_HEAD = ("check", "of", "items", "accuracy", "mrr", "chance", "correlation", "p", "tau")


def write_units_page(folder: str | os.PathLike[str]) -> Path:
    """Write the page and its figures and return the page's path.

    Raises MissingFileError: no study is there.
    """
    folder = Path(folder)
    if not (folder / "units.json").is_file():
        raise MissingFileError("There is no units study in this folder", where=folder)
    found = read_json(folder / "units.json")
    tables = {name: read_parquet(folder / entry["file"]) for name, entry in found["tables"].items()}
    figures: dict[str, Markup] = {}
    values = _values(found, tables, figures)
    (folder / "figures").mkdir(exist_ok=True)
    for old in (folder / "figures").glob("*.svg"):
        old.unlink()
    for name, chart in figures.items():
        with atomic_write(folder / "figures" / f"{name}.svg") as temporary:
            temporary.write_text(charts.standalone(chart), encoding="utf-8")
    return write_template(folder / "units.html", "studies/units/page.html.j2", values)


def _values(found: dict[str, Any], tables: dict[str, pl.DataFrame], figures: dict[str, Markup]) -> dict[str, Any]:
    study, config = found["study"], found["config"]

    def figure(name: str, chart: Markup) -> Markup:
        figures[re.sub(r"[^\w.-]", "_", name)[:120]] = chart  # names hold languages, and tables may be somebody else's
        return chart

    values: dict[str, Any] = {
        "name": found.get("experiment", "units"),
        "synthetic": found.get("synthetic", False),
        "notes": found.get("notes", []),
        "messages": found["messages"],
        "line": f"{', '.join(found.get('corpora', []))} · {', '.join(study['languages'])} · {study['utterances']} utterances · "
        f"{study['speakers']} speakers · {study['frames']} frames of {study['backbone']}",
        "cards": _cards(found),
        **_frames(tables["frames"]),
        "quality": found["quality"],
        "inventories": tables["inventories"].to_dicts(),
        "validation": found["validation"],
        "check_head": CHECK_HEAD,
        "vowel_charts": _vowel_charts(tables, figure),
        "oracle": _oracle(found, figure),
        "vowel_head": VOWEL_HEAD,
        "layer": study["layer"],
        "units": study["units"],
        "layer_units": found["layers"][0]["units"] if found["layers"] else None,
        "needed": math.ceil(study["units"] * config["frames_per_unit"]),
        "per_unit": f"{config['frames_per_unit']:g}",
        "min_frames": max(config["min_frames"], math.ceil(study["units"] * config["frames_per_unit"])),
        "min_speakers": config["min_speakers"],
        "reference": config["reference"],
        "level": f"{config['level']:g}",
        "layer_chart": _layers(tables, figure),
        "overlap_chart": _overlaps(tables, figure),
        "pairs": _pairs(tables, figure),
        "shifts": _emotions(tables, "emotion_shifts", ("language",), "corrected_js", figure),
        "specific": _emotions(tables, "emotion_specific", ("language_a", "language_b"), "difference", figure),
        "provenance": [
            ("feature", found.get("feature")),
            ("features key", study["spec_key"]),
            ("manifest", found.get("manifest_fingerprint")),
            ("codebook", canonical_json(found["codebook"])),
            ("settings", canonical_json(config)),
            ("seconds", study["seconds"]),
        ],
    }
    sections = [("findings", "Findings", True), ("units", "Units", True), ("vowels", "Shared vowels", values["pairs"])]
    sections += [("shifts", "Vowels and emotions", values["shifts"]), ("specific", "Emotion-specific", values["specific"])]
    sections += [("validation", "Validation", values["validation"]), ("oracle", "ORACLE", values["oracle"]), ("how", "How", True)]
    return {**values, "sections": [(key, label) for key, label, there in sections if there]}


def _frames(table: pl.DataFrame) -> dict[str, Any]:
    """Languages in rows, emotions in columns."""
    cells = {(row["language"], row["emotion"]): row for row in table.iter_rows(named=True)}
    emotions = table["emotion"].unique(maintain_order=True).sort(nulls_last=True).to_list()
    languages = table["language"].unique().sort().to_list()
    return {"frame_emotions": emotions, "frames": [(name, [cells.get((name, emotion)) for emotion in emotions]) for name in languages]}


def _cards(found: dict[str, Any]) -> list[dict[str, str]]:
    study = found["study"]
    cards = [{"label": "units", "value": str(study["units"]), "note": f"of layer {study['layer']}"}]
    best = max((row["pnmi"] for row in found["layers"] if row["pnmi"] is not None), default=None)
    if best is not None:
        cards.append({"label": "PNMI of the best layer", "value": f"{best:.3f}", "note": f"with {found['layers'][0]['units']} units"})
    checks = {row["of"]: row for row in found["validation"] if row["check"].startswith("V1") and row["accuracy"] is not None}
    for language, row in list(checks.items())[:4]:
        cards.append(
            {
                "label": f"phones found again, {language}",
                "value": f"{100 * row['accuracy']:.0f} %",
                "note": f"of {row['items']}, by chance {100 * row['chance']:.0f} %",
            }
        )
    for pair, vowels in found["anchors"].items():
        cards.append({"label": f"anchors, {pair}", "value": " ".join(vowels) or "none", "note": "chosen without emotion labels"})
    return cards


def _layers(tables: dict[str, pl.DataFrame], figure: Any) -> Markup | None:
    if "layers" not in tables or tables["layers"]["layer"].n_unique() < 2:
        return None
    series = []
    for number, (name, part) in enumerate(_grouped(tables["layers"].filter(pl.col("pnmi").is_finite()), ("language",))):
        part = part.sort("layer")
        series.append((name[0] or "all", part["layer"].cast(pl.Float64).to_list(), part["pnmi"].to_list(), f"c{number % 6}"))
    return figure("layers", charts.scatter(series, title="PNMI by layer", x_label="layer", y_label="PNMI", joined=True, width=480))


def _overlaps(tables: dict[str, pl.DataFrame], figure: Any) -> Markup | None:
    if "overlaps" not in tables:
        return None
    rows = tables["overlaps"].filter(pl.col("overlap").is_finite()).sort("overlap", descending=True)
    bars = [
        (f"{row['a']} – {row['b']}", row["overlap"], "c0" if row["kind"] == "languages" else "c5") for row in rows.iter_rows(named=True)
    ]
    return figure("overlap", charts.bars(bars, title="overlap of inventories", maximum=1.0, width=560)) if bars else None


def _pairs(tables: dict[str, pl.DataFrame], figure: Any) -> list[dict[str, Any]]:
    pairs = []
    for (one, other), matrix in _grouped(tables.get("matrix", pl.DataFrame()), ("language_a", "language_b")):
        known = matrix.filter(pl.col("similarity").is_finite())
        rows, columns = (sorted(known[name].unique().to_list()) for name in ("phone_a", "phone_b"))
        values = {(row["phone_a"], row["phone_b"]): row["similarity"] for row in known.iter_rows(named=True)}
        mine = (pl.col("language_a") == one) & (pl.col("language_b") == other)
        chart = charts.heatmap(
            [[values.get((a, b)) for b in columns] for a in rows],
            rows,
            columns,
            title=f"similarity of vowels, {one} and {other}",
            row_label=str(one),
            column_label=str(other),
            outlined=[(i, columns.index(a)) for i, a in enumerate(rows) if a in columns],
        )
        found = tables["identification"].filter(mine).to_dicts()[0]
        caption = f"{found['vowels']} vowels are tested."
        if math.isfinite(found["mrr"]):
            caption += (
                f" Mean reciprocal rank of the right one {found['mrr']:.2f} (chance {found['mrr_chance']:.2f}), p = {found['p']:.4f}."
            )
        if math.isfinite(found["agreement_with_frechet"]):
            caption += f" Rank correlation with the Fréchet distance of the frames themselves: {found['agreement_with_frechet']:.2f}."
        anchors = [
            (row["vowel"], row["similarity"], row["bound"], row["similarity"], "c0" if row["eligible"] else "c5")
            for row in tables["anchors"].filter(mine).iter_rows(named=True)
            if math.isfinite(row["similarity"])
        ]
        anchors_chart = charts.intervals(anchors, title=f"anchors of {one} and {other}", width=460) if anchors else None
        pairs.append(
            {
                "title": f"{one} and {other}",
                "matrix": figure(f"vowels-{one}-{other}", chart) if known.height else "",
                "caption": caption,
                "anchors_chart": None if anchors_chart is None else figure(f"anchors-{one}-{other}", anchors_chart),
                "rows": tables["shared_vowels"].filter(mine).sort("similarity", descending=True, nulls_last=True).to_dicts(),
            }
        )
    return pairs


def _vowel_charts(tables: dict[str, pl.DataFrame], figure: Any) -> list[tuple[str, Markup]]:
    found = []
    for (language,), part in _grouped(tables.get("formants", pl.DataFrame()), ("language",)):
        rows = part.filter(pl.col("f1_bark").is_finite()).select("vowel", "f1_bark", "f2_bark").rows()
        if rows:
            found.append((str(language), figure(f"formants-{language}", vowel_chart(rows, title=f"vowels of {language} by formants"))))
    return found


def _oracle(found: dict[str, Any], figure: Any) -> list[dict[str, Any]]:
    """V5 for each direction: the correlation in words, and a chart of the vowels in the order of
    their similarity.
    """
    parts = []
    for answer in found.get("ORACLE", {}).get("utility", []):
        source, target = answer["source"], answer["target"]
        mine = [row for row in found["ORACLE"]["transfer"] if (row["source"], row["target"]) == (source, target)]
        known = sorted((row for row in mine if None not in (row["uar"], row["similarity"])), key=lambda row: -row["similarity"])
        bars = [(f"{row['vowel']} (S {row['similarity']:.2f})", row["uar"], row["low"], row["high"], "c1") for row in known]
        title = f"transfer of emotion by vowel, {source} to {target}"
        chart = charts.intervals(bars, title=title, mark=answer["chance"], mark_label="chance", width=520) if bars else None
        drawn = None if chart is None else figure(f"ORACLE-transfer-{source}-{target}", chart)
        parts.append(answer | {"chart": drawn, "vowels": len(mine)})
    return parts


def _emotions(tables: dict[str, pl.DataFrame], name: str, keys: tuple[str, ...], column: str, figure: Any) -> list[tuple[str, Markup]]:
    charts_of = []
    for group, part in _grouped(tables.get(name, pl.DataFrame()), keys):
        known = part.filter(pl.col(column).is_finite())
        if not known.height:
            continue
        vowels, emotions = sorted(known["vowel"].unique().to_list()), sorted(known["emotion"].unique().to_list())
        values = {(row["vowel"], row["emotion"]): row for row in known.iter_rows(named=True)}
        title = " and ".join(map(str, group))
        chart = charts.heatmap(
            [[values[v, e][column] if (v, e) in values else None for e in emotions] for v in vowels],
            vowels,
            emotions,
            title=f"{name.replace('_', ' ')}, {title}",
            low=min(0.0, float(known[column].cast(pl.Float64).to_numpy().min())) if column == "difference" else 0.0,
            outlined=[
                (i, j) for i, v in enumerate(vowels) for j, e in enumerate(emotions) if (v, e) in values and values[v, e]["significant"]
            ],
            css="c1",
            cell=70,
        )
        charts_of.append((title, figure(f"{name.replace('_', '-')}-{'-'.join(map(str, group))}", chart)))
    return charts_of


def _grouped(table: pl.DataFrame, keys: tuple[str, ...]) -> list[tuple[tuple[Any, ...], pl.DataFrame]]:
    if not table.height:
        return []
    return [(name, part) for name, part in table.group_by(*keys, maintain_order=True)]
