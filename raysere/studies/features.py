"""The feature that a study reads, extracted first where the store lacks it."""

from __future__ import annotations

from raysere.base.errors import ConfigError, UnknownNameError
from raysere.base.progress import Progress
from raysere.corpora.manifest import Manifest
from raysere.features.spec import FeatureConfig, FeatureSpec, resolve
from raysere.features.views import FeatureView
from raysere.pipeline.experiment import Experiment
from raysere.pipeline.stages import extract_feature, own_ray


def utterance_feature(experiment: Experiment, feature: str | None) -> tuple[str, FeatureSpec]:
    """A feature of the experiment (default: its first) at utterance granularity, with all its
    layers.

    Raises UnknownNameError, ConfigError: no such feature, or one that counts words.
    """
    name = feature or next(iter(experiment.features))
    if name not in experiment.features:
        raise UnknownNameError("feature", name, experiment.features)
    spec = resolve(experiment.features[name].model_copy(update={"granularity": "utterance", "layers": "all"}))
    if spec.kind != "dense":
        raise ConfigError(f"The feature {name!r} has counts of words, not vectors", where=f"features.{name}")
    return name, spec


def frame_feature(experiment: Experiment, feature: str | None, layer: int | None) -> tuple[str, FeatureSpec]:
    """A feature of the experiment by frames: as it stands there, or else the same backbone with
    ``granularity: frame``.

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


def extracted(
    experiment: Experiment, spec: FeatureSpec, manifest: Manifest, progress: Progress
) -> tuple[FeatureView, list[dict[str, str]]]:
    """The features of all utterances of a manifest, and ``path, utterance, reason, stage`` of those
    that cannot have them.
    """
    from raysere.features.store.store import FeatureStore

    if spec.frame_s:
        gigabytes = spec.row_bytes * float(manifest.table["duration_s"].sum() or 0) / spec.frame_s / 1e9
        progress.say(f"frames of {len(spec.layers)} layer{'s' if len(spec.layers) > 1 else ''} take {gigabytes:.2f} GB in the store")
    with own_ray():
        done = extract_feature(experiment, spec, manifest, progress)
    refused = done.quarantined.select("path", "utterance", "reason", "stage").to_dicts()
    return FeatureStore(experiment.store_folder).open(spec, manifest), refused
