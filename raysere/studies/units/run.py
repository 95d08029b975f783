"""``raysere analyze units``: from an experiment to the study of :mod:`raysere.studies.units.study`,
its files and its page.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.progress import Progress
from raysere.pipeline.experiment import Experiment
from raysere.pipeline.prepare import read_corpora
from raysere.studies.features import extracted, frame_feature


def analyze_units(
    experiment: Experiment,
    *,
    feature: str | None = None,
    out: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> tuple[Path, dict[str, Any]]:
    """The units study of an experiment's corpora: (its folder, the content of ``units.json``); what
    ``raysere analyze units`` does.

    All utterances of the corpora are used, whatever their split: this describes data. Emotions are
    those of the class map.

    Args:
        out: folder; default: ``NAME-units`` beside the run folder.
        settings: fields of :class:`raysere.studies.units.config.UnitsConfig`.

    Raises:
        RaysereError: a fault of the experiment, the data or the machine.
    """
    from raysere.corpora.ipa import ipa_phones
    from raysere.features.clock import frame_clock
    from raysere.studies.units.config import units_config
    from raysere.studies.units.files import summary, write_units
    from raysere.studies.units.formants import vowel_tokens
    from raysere.studies.units.page import write_units_page
    from raysere.studies.units.study import study_units, without_labels
    from raysere.studies.units.subsets import subset

    progress = progress or Progress(quiet=True)
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
    view, _ = extracted(experiment, spec, manifest, progress)
    phones, formants = ipa_phones(manifest.table), None
    if config.formant_tokens and phones.height:
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
    progress.say(f"page: {page}")
    return folder, summary(result, **about)
