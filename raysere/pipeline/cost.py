"""The cost of an experiment before it runs (``raysere plan``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import polars as pl

from raysere.base.errors import ConfigError
from raysere.pipeline.cluster_cost import Cluster, Encoding, Load, Trials, guess_seconds
from raysere.pipeline.cluster_cost import priced as priced_on
from raysere.pipeline.experiment import Experiment
from raysere.pipeline.prepare import CheckedRun, prepare

_PRODUCT, _PRODUCTS = 1024, 30  # size and number of the matrix products that tell the rate of a core


def price(
    experiment: Experiment, *, seconds: float = 10.0, cluster: Cluster | None = None, trial_seconds: float | None = None
) -> dict[str, Any]:
    """What an experiment will cost: a JSON object with bytes, seconds and cached shares by feature,
    and trials by study.

    Args:
        seconds: how long each backbone is measured; 0 measures none.
        cluster: price it there, too (``cluster`` in the answer, see
            :func:`raysere.pipeline.cluster_cost.priced`; None without).
        trial_seconds: of a trial; default: the mean of the finished ones of its study, else a
            guess.

    Raises:
        ConfigError: a cluster is asked for and a backbone's speed is not measured (``seconds`` is
            0), or has no room for a trial.
    """
    from raysere.features.extract.cost import extraction_cost

    prepared = prepare(experiment)
    manifest = prepared.manifest.used_by(prepared.splits)
    features = {
        name: extraction_cost(manifest_of, spec, experiment.store_folder, seconds=seconds).to_json()
        for name, (spec, manifest_of) in prepared.features_to_extract().items()
    }
    lanes = prepared.splits["outer"].n_unique()
    studies = {study.name: {"trials": study.trials * lanes, "trials_of_each_fold": study.trials} for study in prepared.studies}
    return {
        "format": "raysere.plan/1",
        "utterances": len(manifest),
        "rejected": prepared.rejected.to_dicts(),
        "dropped": prepared.dropped,
        "features": features,
        "studies": studies,
        "cluster": None if cluster is None else priced_on(_load(prepared, features, len(manifest), trial_seconds, cluster), cluster),
    }


def _load(prepared: CheckedRun, features: dict[str, Any], utterances: int, trial_seconds: float | None, cluster: Cluster) -> Load:
    rate = core_rate() if cluster.has_gpu else 100e9
    encodings, fetch = [], 0.0
    for name, one in features.items():
        fetch += one["bytes_by"][one["granularity"]]
        if one["cached"] == one["items"] or not one["speech_s"]:
            continue
        if one["speed"] is None:
            raise ConfigError(
                f"How fast {one['backbone']} is on a core was not measured, so a cluster cannot be priced",
                where=f"feature {name}",
                remedy="Give --seconds 10, or check that its files can be read.",
            )
        reading = one["reading_speed"] or float("inf")
        encodings.append(
            Encoding(
                name=name,
                speech_s=one["speech_s"],
                items=one["items"] - one["cached"],
                longest_s=one["longest_s"],
                core_speed=one["speed"],
                reading_speed=reading,
                core_rate=rate,
                read=one["read_bytes"],
                write=one["bytes"],
                scales=one["backbone"].startswith("hf:"),
            )
        )
    experiment = prepared.experiment
    return Load(
        encodings=tuple(encodings),
        trials=tuple(_trials(prepared, trial_seconds)),
        fetch=fetch,
        utterances=utterances,
        cpu=experiment.trial.cpu,
        gpu=experiment.trial.gpu,
        concurrent=experiment.trial.concurrent,
        workers=experiment.extraction.actors,
    )


def _trials(prepared: CheckedRun, trial_seconds: float | None) -> list[Trials]:
    """What is left of each study, and how long one of its trials takes: as told, as the finished
    ones took, or guessed.
    """
    from raysere.search.ledger import Ledger

    folder = prepared.experiment.run_folder
    finished: dict[str, list[float]] = {}
    if folder.is_dir():
        for record in Ledger(folder).trials():
            finished.setdefault(record.study, []).append(record.seconds)
    pool = prepared.splits.filter(pl.col("role") == "pool")
    lanes = prepared.splits["outer"].n_unique()
    folds = max(1, pool.select("outer", "fold").drop_nulls().unique().height // lanes)
    result = []
    for study in prepared.studies:
        seen, planned = finished.get(study.name, []), study.trials * lanes
        if trial_seconds is not None:
            mean, source = trial_seconds, "as told"
        elif seen:
            mean, source = sum(seen) / len(seen), f"{len(seen)} finished trials"
        else:
            epochs = int(study.parsed_space().default_config().get("epochs", 30))
            mean, source = guess_seconds(pool.height // lanes, folds, epochs), "a guess, perhaps ten times wrong: run a few trials"
        if left := max(0, planned - len(seen)):
            result.append(Trials(study.name, left, mean, source))
    return result


def core_rate() -> float:
    """Float32 operations a second of large matrix products on one core of this machine."""
    import time

    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, other = torch.rand(2, _PRODUCT, _PRODUCT)
        call: Callable[[], Any]
        try:  # as layers multiply, with packed weights: other products are slower, and no measure of the processor
            packed = torch.ops.mkldnn._reorder_linear_weight(other, None)
            call = partial(torch.ops.mkldnn._linear_pointwise, one, packed, None, "none", [], "")
        except (AttributeError, RuntimeError):  # a build without oneDNN
            call = partial(torch.matmul, one, other)
        times = []
        for _ in range(_PRODUCTS):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return 2 * _PRODUCT**3 / min(times)  # the others shared the core
    finally:
        torch.set_num_threads(before)
