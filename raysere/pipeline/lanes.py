"""From a checked experiment to studies and lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from raysere.base.errors import ConfigError
from raysere.corpora.labels import ClassMap
from raysere.features.spec import FeatureSpec, copies
from raysere.pipeline.experiment import Experiment, SearchEntry
from raysere.training.task import Task

if TYPE_CHECKING:
    from raysere.search.study import StudySpec


def plan_studies(
    experiment: Experiment, task: Task, rules: ClassMap | None, specs: Mapping[str, FeatureSpec], splits: pl.DataFrame
) -> list[StudySpec]:
    """One study for each search entry, its space checked against the method and the features.

    Raises ConfigError for an unknown method or space, a parameter or range that the method does not
    take, and a layer that the backbone does not have.
    """
    from raysere.search.study import Asha, StudyFeature, StudySpec

    outers = sorted(splits["outer"].unique().to_list())
    studies = []
    for entry in experiment.search:
        space = _checked_space(entry, task, specs, experiment.protocol.kind)
        streams = tuple(
            StudyFeature(
                name=name,
                spec_key=specs[name].key,
                modality=specs[name].modality,
                copies={change: spec.key for change, spec in copies(specs[name], experiment.features[name]).items()},
            )
            for name in entry.streams
        )
        halving = experiment.halving
        studies.append(
            StudySpec(
                name=entry.study,
                space=space.to_dict(),
                method=space.method,
                features=streams,
                store=str(experiment.store_folder.resolve()),
                task=task,
                class_map=None if rules is None else rules.to_dict(),
                by=experiment.protocol.by,
                transductive=experiment.protocol.transductive,
                outer=tuple(outers) if experiment.protocol.kind in ("nested", "transfer") else None,
                trials=entry.trials,
                seed=experiment.seed,
                objective=entry.objective,
                asha=Asha(grace=halving.grace, reduction=halving.reduction) if halving else None,
                threads=experiment.trial.cpu,
                device="cuda" if experiment.trial.gpu else "cpu",
                precision=experiment.trial.precision,
            )
        )
    return studies


def add_vote_rows(splits: pl.DataFrame, table: pl.DataFrame, soft: np.ndarray | None) -> pl.DataFrame:
    """Splits with the utterances that have votes but no agreed class (docs/methods.md 1.5), each in
    the fold of its speaker.

    They are trained on where a configuration keeps them (``other: soft``), never scored, and never
    trained on while their speaker is held out. Those of test speakers, and of speakers who have
    nothing else, stay out.

    Args:
        table: manifest columns and ``label``, in the order of the rows of ``soft`` (N, C).
    """
    if soft is None:
        return splits
    voted = table.with_columns(votes=pl.Series(soft.sum(1))).filter(
        pl.col("label").is_null() & (pl.col("votes") > 0) & ~pl.col("split").cast(pl.String).fill_null("").is_in(["test", "unlabelled"])
    )
    places = splits.join(table.select("utterance", "speaker"), on="utterance").select("outer", "speaker", "role", "fold").unique()
    extra = voted.select("utterance", "speaker").join(places.filter(pl.col("role") == "pool"), on="speaker").select(splits.columns)
    return pl.concat([splits, extra]).sort("outer", "utterance")


def _checked_space(entry: SearchEntry, task: Task, specs: Mapping[str, FeatureSpec], protocol: str) -> Any:
    from raysere.methods import METHODS
    from raysere.search.space.checks import check
    from raysere.search.space.grammar import load_space, with_fixed
    from raysere.training.method import Shapes

    space = with_fixed(load_space(entry.space), entry.fixed)
    method = METHODS.get(space.method, where=f"search space {entry.space}")()
    shapes = Shapes(task=task, streams={name: specs[name].shape() for name in entry.streams})
    if method.needs.target_domain and protocol != "transfer":
        raise ConfigError(
            f"The method {space.method!r} learns from unlabelled clips of a target, and the protocol is {protocol}",
            where=f"search {entry.study}",
            remedy="Write protocol: {kind: transfer, source: [...], target: [...]}, or take another method.",
        )
    if len(shapes.streams) < method.needs.streams:
        raise ConfigError(
            f"The method {space.method!r} needs {method.needs.streams} feature streams, and this search names {len(shapes.streams)}",
            where=f"search {entry.study}",
            remedy=f"Write features: [{', '.join([*shapes.streams, '...'])}], with others of the experiment's features.",
            choices=list(specs),
        )
    for name, stream in shapes.streams.items():
        if stream.modality not in method.needs.modalities or stream.granularity not in method.needs.granularities:
            raise ConfigError(
                f"The method {space.method!r} cannot read the feature {name!r} ({stream.modality}, {stream.granularity})",
                where=f"search {entry.study}",
                choices=[f"{m} {g}" for m in sorted(method.needs.modalities) for g in sorted(method.needs.granularities)],
            )
    return check(space, method.Params, shapes, method=method)
