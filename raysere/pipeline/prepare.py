"""Load the data, check everything, and write what defines a run.

:func:`prepare` writes nothing; :func:`write_run` writes experiment.yaml last, so that a start that
was cut off leaves no run.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysere.base.bounds import read_parquet
from raysere.base.errors import ConfigError
from raysere.base.files import atomic_write, explain_write_errors, file_hash, read_yaml, write_yaml
from raysere.base.versions import versions
from raysere.corpora.adapters import load_corpus
from raysere.corpora.labels import ClassMap
from raysere.corpora.manifest import Manifest, concat
from raysere.corpora.splits import describe_splits, make_splits, verify_splits
from raysere.ensemble.data.run_labels import check_tables
from raysere.features.spec import FeatureSpec, copies, resolve
from raysere.pipeline.experiment import Experiment
from raysere.training.task import Task

RUN_FORMAT = "raysere.run/1"

REJECTED = {"path": pl.String, "utterance": pl.String, "reason": pl.String, "stage": pl.String}


@dataclass
class CheckedRun:
    """A checked experiment with its data in memory; nothing is written yet."""

    experiment: Experiment
    manifest: Manifest
    rejected: pl.DataFrame
    class_map: ClassMap | None
    task: Task
    dropped: dict[str, int]
    splits: pl.DataFrame
    specs: dict[str, FeatureSpec]
    studies: list[Any]

    def features_to_extract(self) -> dict[str, tuple[FeatureSpec, Manifest]]:
        """What is to be extracted, and of which clips: the features by name, and those of altered
        copies as ``name@0.9`` and so on.

        Nobody learns from a copy of a clip that is only tested.
        """
        everything = self.manifest.used_by(self.splits)
        taught = self.manifest.used_by(self.splits.filter(pl.col("role") == "pool"))
        result = {}
        for name, spec in self.specs.items():
            result[name] = (spec, everything)
            for change, copy in copies(spec, self.experiment.features[name]).items():
                result[f"{name}@{change}"] = (copy, taught)
        return result


def load_manifest(experiment: Experiment) -> tuple[Manifest, pl.DataFrame]:
    """The manifest of an experiment: that of its run where there is one (checked by its hash), else
    read from the corpora.
    """
    folder = experiment.run_folder
    if (folder / "manifest.parquet").is_file() and (folder / "experiment.yaml").is_file():
        check_tables(folder, run_settings(folder / "experiment.yaml"))
        rejected = (
            read_parquet(folder / "quarantine.parquet") if (folder / "quarantine.parquet").is_file() else pl.DataFrame(schema=REJECTED)
        )
        manifest = Manifest.read(folder / "manifest.parquet")
        moved = {entry.options.get("name") or entry.corpus: Path(entry.path) for entry in experiment.corpora}
        roots = {name: root if Path(root).is_dir() else _folder(moved.get(name), root) for name, root in manifest.roots.items()}
        return replace(manifest, roots=roots), rejected.filter(pl.col("stage") == "manifest")
    return read_corpora(experiment)


def read_corpora(experiment: Experiment) -> tuple[Manifest, pl.DataFrame]:
    """The manifest of an experiment's corpora as their folders are now, and what was turned away."""
    loaded = [load_corpus(entry.corpus, Path(entry.path), columns=entry.columns, options=entry.options) for entry in experiment.corpora]
    return concat([one.manifest for one in loaded]), pl.concat([one.rejected.select(list(REJECTED)) for one in loaded])


def prepare(experiment: Experiment) -> CheckedRun:
    """Load the data and check everything: labels, splits, features, spaces.

    Raises a RaysereError for the first kind of fault.
    """
    from raysere.ensemble.fit.priors import check_prior
    from raysere.pipeline.lanes import add_vote_rows, plan_studies
    from raysere.training.data import build_labels

    _check_same_run(experiment)
    specs = {name: resolve(config) for name, config in experiment.features.items()}
    manifest, rejected = load_manifest(experiment)
    scales = set(manifest.scales.values())
    if experiment.task.kind != "categorical" and len(scales) > 1 and experiment.task.scale is None:
        raise ConfigError(
            f"The corpora rate attributes on different scales: {sorted(scales)}",
            where="task.scale",
            remedy="Give task.scale, or take corpora of one scale.",
        )
    task = experiment.resolved_task(next(iter(scales), None))
    rules = experiment.class_map()
    check_prior(experiment.ensemble, task.classes)
    labels, dropped = build_labels(manifest, rules, task)
    if rules is not None and (empty := [name for code, name in enumerate(task.classes) if not (labels.label == code).any()]):
        raise ConfigError(
            f"No utterance is of the class {', '.join(empty)}",
            where="task.classes",
            remedy=f"Take another class map, or name the labels yourself; there are: {', '.join(sorted(set(table_labels(manifest))))}.",
        )
    _check_sources(manifest, task, labels, specs)
    names = [task.classes[code] if code >= 0 else None for code in labels.label.tolist()] if task.categorical else [None] * len(labels)
    kept = manifest.table.filter(pl.col("utterance").is_in(labels.utterances)).sort("utterance")
    order = pl.DataFrame({"utterance": labels.utterances, "label": pl.Series(names, dtype=pl.String)})
    table = kept.join(order, on="utterance", how="inner", validate="1:1", maintain_order="left")
    splits = make_splits(table, experiment.protocol, seed=experiment.seed, linked_speakers=manifest.linked_speakers)
    if experiment.protocol.by == "speaker" and task.categorical:
        splits = add_vote_rows(splits, table, labels.soft)
    group = {"speaker": "speaker", "dialogue": "dialogue", "sentence": "transcript"}[experiment.protocol.by]
    verify_splits(splits, dict(zip(table["utterance"], table[group], strict=True)), manifest.linked_speakers if group == "speaker" else ())
    manifest = replace(
        manifest,
        notes=[*manifest.notes, *(note for note in describe_splits(splits, table, experiment.protocol) if note not in manifest.notes)],
    )
    studies = plan_studies(experiment, task, rules, specs, splits)
    return CheckedRun(experiment, manifest, rejected, rules, task, dropped, splits, specs, studies)


def _folder(path: Path | None, otherwise: str) -> str:
    """Where a corpus lies now that its folder was moved."""
    if path is None or not path.exists():
        return otherwise
    return str(path if path.is_dir() else path.parent)


def _check_sources(manifest: Manifest, task: Task, labels: Any, specs: dict[str, FeatureSpec]) -> None:
    """What the corpora lack for this task and these features, before anything is computed."""
    if task.dimensional:
        rated = [] if labels.attributes is None else np.isfinite(labels.attributes).any(0)
        lacking = [name for name, there in zip(task.attributes, rated, strict=True) if not there] if len(rated) else list(task.attributes)
        if lacking:
            raise ConfigError(
                f"No utterance has a rating of {', '.join(lacking)}",
                where="task.attributes",
                remedy="Take the attributes that the corpus rates, or kind: categorical.",
            )
    for name, spec in specs.items():
        if spec.reads == "text" and manifest.table["transcript"].null_count() == len(manifest):
            raise ConfigError(
                f"The feature {name!r} reads transcripts, and the corpora have none",
                where=f"features.{name}",
                remedy="Leave this feature and its search out, or give transcripts (a table has a column `transcript`).",
            )


def table_labels(manifest: Manifest) -> list[str]:
    return manifest.table["emotion"].drop_nulls().unique().to_list()


def _check_same_run(experiment: Experiment) -> None:
    """A run folder belongs to one data set, task, protocol and seed: everything else may grow."""
    path = experiment.run_folder / "experiment.yaml"
    if path.is_file() and run_settings(path).get("frozen") != experiment.frozen_part():
        raise ConfigError(
            f"The run {experiment.name!r} was made with other corpora, task, protocol or seed",
            where=experiment.run_folder,
            remedy="Give this experiment another name (--set name=...), or remove that folder.",
        )


def run_settings(path: Path) -> dict[str, Any]:
    """A run's experiment.yaml. Raises ConfigError for a file that no run wrote."""
    settings = read_yaml(path)
    if not isinstance(settings, dict) or settings.get("format") != RUN_FORMAT:
        raise ConfigError("This experiment.yaml does not come from a run of this version", where=path, choices=[RUN_FORMAT])
    return settings


def write_run(prepared: CheckedRun) -> Path:
    """Write what defines the run: experiment.yaml, manifest.parquet, splits.parquet,
    quarantine.parquet.
    """
    experiment, folder = prepared.experiment, prepared.experiment.run_folder
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    tables = {"manifest.parquet", "splits.parquet"}
    files = run_settings(path).get("files") if path.is_file() else {}
    hashed = set() if files is None else set(files) or tables  # none: a run of a version without hashes; empty: see below
    if not path.is_file():  # written last: without it the other two may be those of another start
        prepared.manifest.write(folder / "manifest.parquet")
        with atomic_write(folder / "splits.parquet") as temporary:
            prepared.splits.write_parquet(temporary)
    elif pl.read_parquet(folder / "splits.parquet").equals(prepared.splits):
        if Manifest.read(folder / "manifest.parquet").roots != prepared.manifest.roots:  # the corpus was moved
            if files is not None:
                write_yaml(
                    path, {**run_settings(path), "files": {}}
                )  # a kill between the two writes must not leave the hash of another file
            prepared.manifest.write(folder / "manifest.parquet")
    else:
        raise ConfigError(
            "The splits of this run are not those that this experiment makes now",
            where=folder / "splits.parquet",
            remedy="Another version of raysere made them, or the file was changed: give this experiment another name (--set name=...).",
        )
    write_rejected(folder, prepared.rejected)
    rules = prepared.class_map
    write_yaml(
        path,
        {
            "format": RUN_FORMAT,
            "name": experiment.name,
            "frozen": experiment.frozen_part(),
            "corpora": [entry.model_dump(mode="json") for entry in experiment.corpora],
            "task": prepared.task.model_dump(mode="json"),
            "class_map": None if rules is None else rules.to_dict(),
            "dropped": prepared.dropped,
            "protocol": experiment.protocol.model_dump(mode="json"),
            "features": {
                name: {**config.model_dump(mode="json"), "spec_key": prepared.specs[name].key}
                for name, config in experiment.features.items()
            },
            "store": str(experiment.store_folder.resolve()),
            "search": [entry.model_dump(mode="json") for entry in experiment.search],
            "trial": experiment.trial.model_dump(mode="json"),
            "halving": experiment.halving.model_dump(mode="json") if experiment.halving else None,
            "ensemble": experiment.ensemble.model_dump(mode="json"),
            "seed": experiment.seed,
            "manifest_fingerprint": prepared.manifest.fingerprint,
            **({"files": {name: file_hash(folder / name) for name in sorted(hashed)}} if hashed else {}),
            "synthetic": prepared.manifest.synthetic,
            "notes": prepared.manifest.notes,
            "versions": versions(),
            "git_commit": _git_commit(),
        },
    )
    return folder


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def write_rejected(folder: Path, rejected: pl.DataFrame) -> None:
    with atomic_write(folder / "quarantine.parquet") as temporary:
        rejected.select(list(REJECTED)).unique(maintain_order=True).write_parquet(temporary)
