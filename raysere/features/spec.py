"""The specification of a feature: what a user writes (:class:`FeatureConfig`) and what it resolves
to (:class:`FeatureSpec`).

The key of a spec names its folder in the store. It covers all that shapes the bytes: weights and
code of the backbone (``identity``), layers, granularity, pooling, dtype, sampling rate and level.
It is a hash of the canonical JSON without the fields that stand at their default, so that a field
added later leaves old keys as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from raysere.base.errors import ConfigError
from raysere.base.files import canonical_json, digest
from raysere.features.backbone import BackboneInfo, Layer

FORMAT = "raysere.features/1"
Granularity = Literal["utterance", "chunk", "frame"]
Statistics = Literal["mean_std", "order"]
PERCENTILES = (10, 50, 90)
_STATISTICS = {"mean_std": ("mean", "std"), "order": ("mean", "std", *(f"p{share}" for share in PERCENTILES))}
READER = 1  # version of how features/audio.py turns a file into samples; a change there that moves samples raises it
LEVEL_RMS = 0.05  # target of level="rms": -26 dB below full scale, the usual active speech level


class FeatureConfig(BaseModel):
    """One feature: which backbone, which of its layers, and how much of its time axis is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(
        min_length=1,
        description="`acoustic`; `hf:NAME@REVISION` or `hf:FOLDER` (a speech or text model in the Hugging Face format); `hashed` (words "
        "and characters of the transcript); `opensmile:SET`; `table:FILE` (vectors of your own); or the name of a plug-in.",
        examples=["hf:microsoft/wavlm-large@REVISION"],
    )
    granularity: Granularity = Field(
        "utterance",
        description="What is kept: `utterance` (statistics over all frames), `chunk` (statistics of each chunk), `frame` (every frame).",
        examples=["chunk"],
    )
    layers: Literal["all"] | tuple[StrictInt | str, ...] = Field(
        "all", description="Layers by number or name; 0 is what enters the first block.", examples=[[6, 12, 18, 24]]
    )
    dtype: Literal["float32", "float16"] | None = Field(
        None,
        description="Type of the stored numbers. Default: float32 for utterances, float16 for chunks and frames.",
        examples=["float16"],
    )
    chunk_s: float = Field(
        1.0, gt=0, le=60, description="Length of a chunk, for `granularity: chunk`.", examples=[2.0], json_schema_extra={"unit": "s"}
    )
    chunk_hop_s: float = Field(
        0.5,
        gt=0,
        le=60,
        description="From the start of a chunk to the start of the next one; at most `chunk_s`.",
        examples=[1.0],
        json_schema_extra={"unit": "s"},
    )
    modality: Literal["audio", "text"] | None = Field(
        None, description="What the vectors of a `table:` stand for; other backbones know it.", examples=["text"]
    )
    channel: Literal["mix"] | Annotated[int, Field(ge=0, le=63)] | None = Field(
        None,
        description="Channel of the audio, from 0, or `mix` for the mean of all. Default: a channel that the corpus names, else the mean.",
        examples=[0],
    )
    level: Literal["none", "rms"] = Field(
        "none", description="`rms` scales each clip to the same root mean square first.", examples=["rms"]
    )
    statistics: Statistics = Field(
        "mean_std",
        description="Of the frames of an utterance or chunk: mean and standard deviation, or these and the 10th, 50th and 90th "
        "percentile (`order`).",
        examples=["order"],
    )
    silence_db: float | None = Field(
        None,
        gt=0,
        le=120,
        description="Leave frames that are so much softer than the loudest frame out of the statistics of an utterance.",
        examples=[30],
        json_schema_extra={"unit": "dB"},
    )
    phones: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="Keep only frames whose centre lies in one of these phones (IPA), for corpora with phone labels. An utterance without "
        "such a frame has no features. `raysere analyze units` finds phones that two languages share.",
        examples=[["a", "i"]],
    )
    speeds: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] = Field(
        (),
        description="Train on each training clip once more at these speeds: 1.1 is a tenth faster and higher, as from another speaker.",
        examples=[[0.9, 1.1]],
    )
    noises: tuple[Annotated[float, Field(ge=-20, le=80)], ...] = Field(
        (),
        description="Train on each training clip once more in pink noise, at these signal-to-noise ratios.",
        examples=[[20]],
        json_schema_extra={"unit": "dB"},
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Options of the backbone.", examples=[{"window": "clip"}]
    )

    @model_validator(mode="after")
    def _no_gaps(self) -> FeatureConfig:
        if self.chunk_hop_s > self.chunk_s:
            raise ValueError(
                f"chunk_hop_s = {self.chunk_hop_s:g} is longer than chunk_s = {self.chunk_s:g}: what lies between two chunks would be lost"
            )
        if len(set(self.speeds)) < len(self.speeds) or any(speed == 1 or round(speed, 2) != speed for speed in self.speeds):
            raise ValueError(f"speeds are different factors of two decimals other than 1, not {list(self.speeds)}")
        if len(set(self.noises)) < len(self.noises):
            raise ValueError(f"noises are different ratios in dB, not {list(self.noises)}")
        return self

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Options for ``open_backbone``; a ``table:`` gets its modality, which its file does not
        say.
        """
        return {**self.options, **({"modality": self.modality} if self.modality and self.backbone.startswith("table:") else {})}


@dataclass(frozen=True)
class StreamShape:
    """Shape of one feature stream: width of a row by layer number (dim times statistics).

    ``stats`` is how many statistics of the frames stand side by side in every row, the mean first
    (2 for [mean; std]), or 1; ``layer_stats`` tells it layer by layer.
    """

    modality: Literal["audio", "text"]
    layers: dict[int, int]
    stats: int
    granularity: Granularity
    kind: Literal["dense", "counts"] = "dense"
    layer_stats: dict[int, int] = field(default_factory=dict)

    def stats_of(self, layer: int) -> int:
        """Parts of a row of that layer:

        2 for [mean; std], 5 with percentiles, 1 for a vector that is no statistic of frames.
        """
        return self.layer_stats.get(layer, self.stats)


class LayerSpec(BaseModel):
    """One cached layer: its number in the backbone, name, dim of a backbone row, and what a
    backbone row is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(ge=0)
    name: str
    dim: int = Field(gt=0)
    rows: Literal["frame", "utterance"]


class FeatureSpec(BaseModel):
    """A resolved, hashable description of cached features. Make it with :func:`resolve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    identity: str
    modality: Literal["audio", "text"]
    granularity: Granularity
    layers: tuple[LayerSpec, ...] = Field(min_length=1)
    dtype: Literal["float32", "float16"]
    sampling_rate: int | None
    frame_s: float | None
    kind: Literal["dense", "counts"] = "dense"
    chunk_s: float | None = None
    chunk_hop_s: float | None = None
    channel: Literal["mix"] | int | None = None
    level: Literal["none", "rms"] = "none"
    statistics: Statistics = "mean_std"
    silence_db: float | None = None
    phones: tuple[str, ...] = ()
    speed: float = 1.0
    noise_db: float | None = None
    reader: int = 0  # version of the audio reader; 0 where no audio is read

    @property
    def key(self) -> str:
        """16 hex digits: the name of the folder in a store.

        A model folder or table that moves keeps it: ``identity`` holds its content.
        """
        family = self.backbone.partition(":")[0]
        name = {"backbone": family} if family in ("hf", "table") else {}
        return digest({**self.model_dump(mode="json", exclude_defaults=True), **name})

    @property
    def numbers(self) -> list[int]:
        """Layer numbers, ascending."""
        return [layer.number for layer in self.layers]

    @property
    def reads(self) -> Literal["wave", "text", "id"]:
        """What an item must bring: audio, a transcript, or only its utterance id (tables of ready
        features).
        """
        if self.backbone.startswith("table:"):
            return "id"
        return "text" if self.modality == "text" else "wave"

    def layer(self, number: int) -> LayerSpec:
        """The layer of that number. Raises ConfigError with the list of cached layers."""
        for layer in self.layers:
            if layer.number == number:
                return layer
        raise ConfigError(f"Layer {number!r} is not among the cached layers of {self.backbone}", choices=self.numbers)

    def stats(self, number: int) -> tuple[str, ...]:
        """What a stored row of the layer consists of, each part ``dim`` wide: "mean", "std", ...
        where frames were pooled, else "value".
        """
        pooled = self.granularity != "frame" and self.layer(number).rows == "frame"
        return _STATISTICS[self.statistics] if pooled else ("value",)

    def width(self, number: int) -> int:
        """Width of a stored row: dim times the number of statistics."""
        return self.layer(number).dim * len(self.stats(number))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all layers in the store."""
        return sum(self.width(number) for number in self.numbers) * (4 if self.dtype == "float32" else 2)

    def shape(self) -> StreamShape:
        """What a method needs to know of a view of these features before there is one."""
        widths = {number: self.width(number) for number in self.numbers}
        stats = {number: len(self.stats(number)) for number in self.numbers}
        return StreamShape(self.modality, widths, common_stats(self, self.numbers), self.granularity, self.kind, stats)

    def chunk_frames(self) -> tuple[int, int]:
        """(window, hop) of ``chunk`` granularity in frames, at least one each."""
        if self.frame_s is None or self.chunk_s is None or self.chunk_hop_s is None:
            raise ConfigError(f"{self.backbone} has no time axis, or the features are not chunks")
        return max(1, round(self.chunk_s / self.frame_s)), max(1, round(self.chunk_hop_s / self.frame_s))

    def to_json(self) -> dict[str, Any]:
        """A JSON object (``format`` included) for :meth:`from_json`."""
        return {"format": FORMAT, **self.model_dump(mode="json")}

    @classmethod
    def from_json(cls, value: dict[str, Any] | str, *, where: object = None) -> FeatureSpec:
        """Read what :meth:`to_json` wrote (the object or its text).

        Raises ConfigError for another format.
        """
        try:
            value = json.loads(value) if isinstance(value, str) else dict(value)
            written = value.pop("format", None)
            if written != FORMAT:
                raise ConfigError(
                    f"The format of this feature spec is {written!r}, not {FORMAT!r}",
                    where=where,
                    remedy="It was written by another version of raysere.",
                )
            return cls.model_validate(value)
        except (ValidationError, TypeError, json.JSONDecodeError) as error:
            raise ConfigError(f"This is not a feature spec: {error}", where=where) from error

    def __hash__(self) -> int:
        return hash(canonical_json(self.model_dump(mode="json")))


def copies(spec: FeatureSpec, config: FeatureConfig) -> dict[str, FeatureSpec]:
    """The same features of altered clips, by the name of what was done: each of the config's
    ``speeds`` (``0.9``) and ``noises`` (``noise20``).
    """
    altered: dict[str, dict[str, float]] = {f"{speed:g}": {"speed": speed} for speed in sorted(config.speeds)}
    altered |= {f"noise{ratio:g}": {"noise_db": ratio} for ratio in sorted(config.noises)}
    return {name: spec.model_copy(update=change) for name, change in altered.items()}


def common_stats(spec: FeatureSpec, layers: Iterable[int]) -> int:
    """How many statistics stand side by side in a row of all these layers; 1 (one opaque vector)
    where they differ.
    """
    values = {len(spec.stats(layer)) for layer in layers}
    return values.pop() if len(values) == 1 else 1


def resolve(config: FeatureConfig | dict[str, Any]) -> FeatureSpec:
    """The spec of a config, from the backbone's description alone (no weights are loaded).

    Raises ConfigError for a layer that the backbone does not have (valid ones listed), for chunks
    or frames of layers without a time axis that are asked for by name (with ``all`` they are left
    out), for another modality than the backbone's; UnknownNameError for an unknown backbone.
    """
    if not isinstance(config, FeatureConfig):
        try:
            config = FeatureConfig.model_validate(config)
        except ValidationError as error:
            raise ConfigError(f"These features cannot be right: {_first(error)}", choices=list(FeatureConfig.model_fields)) from error
    from raysere.features.backbones import describe_backbone

    info = describe_backbone(config.backbone, **config.backbone_options)
    if config.modality is not None and config.modality != info.modality:
        raise ConfigError(f"The backbone {info.name!r} is of modality {info.modality!r}, not {config.modality!r}", where="modality")
    if config.level != "none" and info.modality == "text":
        raise ConfigError("A text backbone has no level to normalise", where="level", choices=["none"])
    if config.silence_db is not None and (info.frame_s is None or info.modality == "text"):
        raise ConfigError(f"The rows of {info.name!r} are not steps of time, so silence cannot be left out", where="silence_db")
    if config.silence_db is not None and config.granularity != "utterance":
        raise ConfigError("silence_db is for the statistics of whole utterances", where="silence_db", choices=["granularity: utterance"])
    if config.phones and (info.frame_s is None or info.sampling_rate is None):
        raise ConfigError(f"The rows of {info.name!r} are not steps of time, so no phone can be chosen", where="phones")
    if config.phones and config.granularity != "utterance":
        raise ConfigError("phones is for the statistics of whole utterances", where="phones", choices=["granularity: utterance"])
    if config.statistics != "mean_std" and config.granularity == "frame":
        raise ConfigError("Frames are stored as they are: they have no statistics", where="statistics", choices=["mean_std"])
    if (config.speeds or config.noises) and (info.sampling_rate is None or info.name.startswith("table:")):
        raise ConfigError(f"{info.name!r} hears no recording that could be altered", where="speeds" if config.speeds else "noises")
    layers = _layers(config, info)
    if config.granularity == "chunk" and info.frame_s is None:
        raise ConfigError(
            f"The rows of {info.name!r} are not steps of time, so there are no chunks in seconds",
            where="granularity",
            choices=["utterance", "frame"],
        )
    chunk = config.granularity == "chunk"
    spec = FeatureSpec(
        backbone=info.name,
        options=config.backbone_options,
        identity=info.identity,
        modality=info.modality,
        granularity=config.granularity,
        layers=layers,
        dtype=config.dtype or ("float32" if config.granularity == "utterance" else "float16"),
        sampling_rate=info.sampling_rate,
        frame_s=info.frame_s,
        kind=info.kind,
        chunk_s=config.chunk_s if chunk else None,
        chunk_hop_s=config.chunk_hop_s if chunk else None,
        level=config.level,
        statistics=config.statistics,
        silence_db=config.silence_db,
        phones=tuple(sorted(set(config.phones))),
    )
    return spec.model_copy(update={"reader": READER, "channel": config.channel}) if spec.reads == "wave" else spec


def _layers(config: FeatureConfig, info: BackboneInfo) -> tuple[LayerSpec, ...]:
    timed = config.granularity != "utterance"
    usable = [number for number, layer in enumerate(info.layers) if not timed or layer.rows == "frame"]
    described = [f"{number} ({info.layers[number].name})" for number in usable]
    if not usable:
        raise ConfigError(
            f"The backbone {info.name!r} gives one row for each utterance, so it has no {config.granularity}s",
            where="granularity",
            choices=["utterance"],
        )
    if config.layers == "all":
        numbers = usable
    else:
        names = {layer.name: number for number, layer in enumerate(info.layers)}
        numbers = []
        for wanted in config.layers:
            number = names.get(wanted, -1) if isinstance(wanted, str) else wanted
            if not 0 <= number < len(info.layers):
                raise ConfigError(f"The backbone {info.name!r} has no layer {wanted!r}", where="layers", choices=described)
            if number not in usable:
                raise ConfigError(
                    f"Layer {wanted!r} of {info.name!r} has one row for each utterance, so it has no {config.granularity}s",
                    where="layers",
                    choices=described,
                    remedy="Ask for granularity utterance, or leave the layer out.",
                )
            numbers.append(number)
        if not numbers:
            raise ConfigError("`layers` is empty", where="layers", choices=["all", *described])
    return tuple(_layer(number, info.layers[number]) for number in sorted(set(numbers)))


def _layer(number: int, layer: Layer) -> LayerSpec:
    return LayerSpec(number=number, name=layer.name, dim=layer.dim, rows=layer.rows)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'features'}: {first['msg']}"
