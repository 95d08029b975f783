"""Studies of the features of an experiment: what a study needs is read and extracted, then it runs, then its page is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from raysere.errors import ConfigError
from raysere.experiment import Experiment
from raysere.features.spec import FeatureConfig, FeatureSpec, resolve
from raysere.features.views import FeatureView
from raysere.pipeline import extract_feature, own_ray
from raysere.preparation import read_corpora
from raysere.progress import Progress


def frame_feature(experiment: Experiment, feature: str | None, layer: int | None) -> tuple[str, FeatureSpec]:
    """A feature of the experiment by frames: as it stands there, or else the same backbone with ``granularity: frame``.

    Args:
        feature: its name; None takes the only one of audio, or the only one at frame granularity.
        layer: where the feature is not cached by frames yet, only this layer is.

    Raises:
        ConfigError: no such feature, or several that may be meant.
    """
    if feature is not None and feature not in experiment.features:
        raise ConfigError(f"The experiment has no feature {feature!r}", where="features", choices=sorted(experiment.features))
    names = [feature] if feature is not None else sorted(experiment.features)
    specs: dict[str, FeatureSpec] = {}
    refused: ConfigError | None = None
    for name in names:
        try:
            spec = resolve(by_frames(experiment.features[name], layer))
        except ConfigError as error:
            refused = error
            continue
        if spec.modality == "audio" and spec.frame_s is not None:
            specs[name] = spec
    framed = [name for name in specs if experiment.features[name].granularity == "frame"]
    chosen = list(specs) if len(specs) == 1 else framed
    if not specs and feature is not None and refused is not None:
        raise refused
    if len(chosen) != 1:
        raise ConfigError(
            f"{'Several features' if specs else 'None of the features'} of this experiment could be studied by frames",
            where="features",
            choices=sorted(specs) or None,
            remedy="Name one with --feature." if specs else "Add one of audio, such as {backbone: acoustic, granularity: frame}.",
        )
    return chosen[0], specs[chosen[0]]


def by_frames(config: FeatureConfig, layer: int | None) -> FeatureConfig:
    """The same backbone and options by frames, without copies and statistics."""
    if config.granularity == "frame":
        return config.model_copy(update={"speeds": (), "noises": ()})
    plain = {"granularity": "frame", "speeds": (), "noises": (), "statistics": "mean_std", "silence_db": None, "dtype": None}
    return config.model_copy(update={**plain, **({} if layer is None else {"layers": [layer]})})


def extracted(experiment: Experiment, spec: FeatureSpec, manifest: Any, progress: Progress | None) -> FeatureView:
    """The features of all utterances of a manifest, extracted first where the store lacks them."""
    from raysere.features.store import FeatureStore

    if progress and spec.frame_s:
        gigabytes = spec.row_bytes * (manifest.table["duration_s"].sum() or 0) / spec.frame_s / 1e9
        progress.say(f"frames of {len(spec.layers)} layer{'s' if len(spec.layers) > 1 else ''} take {gigabytes:.2f} GB in the store")
    with own_ray():
        extract_feature(experiment, spec, manifest, progress)
    return FeatureStore(experiment.store_folder).open(spec, manifest)


def analyze_units(
    experiment: Experiment,
    *,
    feature: str | None = None,
    out: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """The units study of an experiment's corpora: (its folder, the content of ``units.json``); what ``raysere analyze units`` does.

    All utterances of the corpora are used, whatever their split: this describes data. Emotions are those of the class map.

    Args:
        out: folder; default: ``NAME-units`` beside the run folder.
        settings: fields of :class:`raysere.analysis.units_config.UnitsConfig`.

    Raises:
        RaysereError: a fault of the experiment, the data or the machine.
    """
    from raysere.analysis.formants import vowel_tokens
    from raysere.analysis.unit_subsets import subset
    from raysere.analysis.units import study_units, without_labels
    from raysere.analysis.units_config import units_config
    from raysere.analysis.units_files import summary, write_units
    from raysere.corpora.ipa import ipa_phones
    from raysere.features.grid import frame_clock
    from raysere.report.units_page import write_units_page

    config = units_config(dict(settings or {}))
    name, spec = frame_feature(experiment, feature, config.layer)
    if config.layer is not None:
        spec.layer(config.layer)
    manifest, rejected = read_corpora(experiment)
    rules = experiment.class_map()
    emotions = [None] * len(manifest) if rules is None else rules.apply(manifest.table)[0]
    columns = ["utterance", "corpus", "language", "speaker", "sex", "transcript"]
    labelled = manifest.table.select(columns).with_columns(emotion=pl.Series(emotions, dtype=pl.String))
    table = subset(without_labels(labelled, config.unlabelled), config)
    if table.height < len(manifest):
        manifest = manifest.with_rows(manifest.table.filter(pl.col("utterance").is_in(table["utterance"].implode())))
    view = extracted(experiment, spec, manifest, progress)
    phones, formants = ipa_phones(manifest.table), None
    if config.formant_tokens and phones.height:
        if progress:
            progress.say("units: formants of the vowels")
        formants = vowel_tokens(manifest, phones, config.formant_tokens, config.seed)
    result = study_units(view, table, phones, frame_clock(spec), config, progress, formants)
    about = {
        "experiment": experiment.name,
        "feature": name,
        "corpora": sorted(manifest.table["corpus"].unique().to_list()),
        "synthetic": manifest.synthetic,
        "rejected": rejected.height,
        "manifest_fingerprint": manifest.fingerprint,
        "notes": manifest.notes,
    }
    folder = write_units(result, Path(out) if out is not None else Path(f"{experiment.run_folder}-units"), **about)
    page = write_units_page(folder)
    if progress:
        progress.say(f"page: {page}")
    return folder, summary(result, **about)
