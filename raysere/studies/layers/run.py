"""``raysere analyze layers``: from an experiment to the analysis of
:mod:`raysere.studies.layers.compare`, its files and its page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from raysere.base.bounds import read_parquet
from raysere.base.errors import ConfigError, DataError, MissingFileError, UnknownNameError
from raysere.base.progress import Progress
from raysere.pipeline.experiment import Experiment
from raysere.pipeline.prepare import load_manifest
from raysere.studies.features import extracted, utterance_feature

if TYPE_CHECKING:
    from raysere.corpora.manifest import Manifest
    from raysere.features.spec import FeatureSpec
    from raysere.features.views import FeatureView
    from raysere.studies.layers.cells import Cells
    from raysere.studies.layers.compare import CorpusLayers, Description, Settings


def analyze_layers(
    experiment: Experiment,
    settings: Settings,
    *,
    feature: str | None = None,
    source: str | None = None,
    target: str | None = None,
    pooling: str = "mean",
    cells: Path | None = None,
    read_target_labels: bool = True,
    out: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Analyse every ordered pair of the experiment's corpora (or those of one source, to one
    target), and write the answer.

    Features are cached at utterance granularity, all layers, as a run caches them. Utterances that
    the class map leaves out take no part; those without any label do, as target.

    Args:
        feature: one of the experiment's features; default its first.
        pooling: ``mean`` or ``mean_std``, what a vector holds of the frames of an utterance.
        cells: parquet of label-free cells (``utterance, cell, layer, vector``), such as vowels.
        read_target_labels: whether to add the ORACLE part.
        out: folder of the answer; default ``layers`` in the run folder.

    Returns:
        What stands in layers.json, and ``folder``, ``page``.

    Raises:
        ConfigError, UnknownNameError: no classes, fewer than two corpora, an unknown feature or
        corpus. DataError: features or folds that cannot be made.
    """
    from raysere.studies.layers.compare import CELL_MEASURES, DISTANCES, compare, describe, distances
    from raysere.studies.layers.files import write_layers
    from raysere.studies.layers.oracle import oracle
    from raysere.studies.layers.page import write_page

    progress = progress or Progress(quiet=True)
    settings.check((*DISTANCES, *(() if cells is None else CELL_MEASURES)))
    name, spec = utterance_feature(experiment, feature)
    rules = experiment.class_map()
    if rules is None:
        raise ConfigError("The analysis of layers needs classes: relevance is the UAR of a probe", where="task.classes")
    manifest, rejected = load_manifest(experiment)
    pairs = _pairs(sorted(manifest.table["corpus"].unique().to_list()), source, target)
    used = sorted({corpus for pair in pairs for corpus in pair})
    manifest = manifest.with_rows(manifest.table.filter(pl.col("corpus").is_in(used)))
    mapped, dropped = rules.apply(manifest.table)
    codes = {label: code for code, label in enumerate(rules.classes)}
    table = manifest.table.with_columns(label=pl.Series([codes.get(label or "", -1) for label in mapped], dtype=pl.Int64))
    table = table.filter((pl.col("label") >= 0) | pl.col("emotion").is_null())
    manifest = manifest.with_rows(table.drop("label"))
    view, refused = extracted(experiment, spec, manifest, progress)
    corpora, labels = _corpora(view, manifest, spec, table, pooling)
    ready = None if cells is None else _cells(cells, corpora)

    progress.start("analyze layers", total=len(corpora) + len(pairs))
    described: dict[str, Description] = {}
    for one, corpus in corpora.items():
        labelled = (labels[one] >= 0).any() and any(one == first for first, _ in pairs)
        if labelled and (lacking := [label for code, label in enumerate(rules.classes) if not (labels[one] == code).any()]):
            raise DataError(
                f"The source {one!r} has no utterance of the class {', '.join(lacking)}",
                where="task.classes",
                remedy="Take classes that all sources have, or name the pair with --source and --target.",
            )
        described[one] = describe(corpus, labels[one] if labelled else None, len(rules.classes), settings)
        progress.advance("analyze layers")
    measured: dict[frozenset[str], Any] = {}
    answers = []
    for first, second in pairs:
        both = frozenset((first, second))
        if both not in measured:
            measured[both] = distances(corpora[first], corpora[second], settings)
        a, b = described[first], described[second]
        found = compare(a, b, measured[both][0], settings, cells=None if ready is None else (ready[first], ready[second]))
        answer = {"source": first, "target": second, **found, "plain": measured[both][1]}
        if read_target_labels and a.relevance is not None and (labels[second] >= 0).any():
            answer["ORACLE"] = oracle(a, b, (labels[first], labels[second]), rules.classes, found, settings)
        answers.append(answer)
        progress.advance("analyze layers")
    folder = out or experiment.run_folder / "layers"
    content = write_layers(
        folder,
        {
            "experiment": experiment.name,
            "feature": {
                "name": name,
                "backbone": spec.backbone,
                "key": spec.key,
                "pooling": pooling,
                "layers": [{"number": layer.number, "name": layer.name, "dim": layer.dim} for layer in spec.layers],
            },
            "classes": list(rules.classes),
            "class_map": rules.name,
            "left_out_by_class_map": dropped,
            "settings": asdict(settings),
            "synthetic": manifest.synthetic,
            "manifest_fingerprint": manifest.fingerprint,
            "rejected": [*rejected.to_dicts(), *refused],
            "corpora": {one: _corpus_json(described[one], labels[one], rules.classes) for one in corpora},
            "pairs": answers,
        },
    )
    return {**content, "folder": str(folder), "page": str(write_page(folder))}


def _pairs(names: list[str], source: str | None, target: str | None) -> list[tuple[str, str]]:
    for wanted in (source, target):
        if wanted is not None and wanted not in names:
            raise UnknownNameError("corpus", wanted, names)
    pairs = [(a, b) for a in names for b in names if a != b and source in (None, a) and target in (None, b)]
    if not pairs:
        raise ConfigError("The layers of two corpora are compared, and this names one", where="corpora", choices=names)
    return pairs


def _corpora(
    view: FeatureView, manifest: Manifest, spec: FeatureSpec, table: pl.DataFrame, pooling: str
) -> tuple[dict[str, CorpusLayers], dict[str, np.ndarray]]:
    """The vectors of each corpus, and apart from them its labels (n,); utterances without features
    are left out.
    """
    from raysere.studies.layers.compare import CorpusLayers

    corpora, labels = {}, {}
    for name in sorted(table["corpus"].unique().to_list()):
        part = table.filter(pl.col("corpus") == name)
        rows = view.rows_of(part["utterance"].to_list())
        here = view.present[rows]
        if not here.any():
            raise DataError(f"No utterance of {name} has features of {spec.backbone}")
        width = {n: spec.layer(n).dim if pooling == "mean" else spec.width(n) for n in spec.numbers}
        layers = {n: view.matrix(n, rows[here])[:, : width[n]].astype(np.float64) for n in spec.numbers}
        part = part.filter(pl.Series(here))
        corpora[name] = CorpusLayers(
            name,
            ", ".join(sorted(part["language"].unique().to_list())),
            part["utterance"].to_list(),
            part["speaker"].to_list(),
            layers,
            tuple(tuple(group) for group in manifest.linked_speakers),
        )
        labels[name] = part["label"].to_numpy()
    return corpora, labels


def _cells(path: Path, corpora: Mapping[str, CorpusLayers]) -> dict[str, dict[int, Cells]]:
    from raysere.studies.layers.cells import cells_from_table

    if not path.is_file():
        raise MissingFileError("This folder has no table of cells", where=path)
    table = read_parquet(path)
    return {name: cells_from_table(table, dict(zip(corpus.utterances, corpus.speakers, strict=True))) for name, corpus in corpora.items()}


def _corpus_json(described: Description, label: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    corpus = described.corpus
    return {
        "language": corpus.language,
        "utterances": len(corpus.utterances),
        "speakers": len(set(corpus.speakers)),
        "classes": {name: int((label == code).sum()) for code, name in enumerate(classes)},
        "relevance": described.relevance,
        "cka": described.map,
    }
