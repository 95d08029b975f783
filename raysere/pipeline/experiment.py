"""The YAML file of an experiment: typed, and checked before anything runs."""

from __future__ import annotations

import difflib
import math
import os
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raysere.base.bounds import DEPTH, parse_yaml, refusal
from raysere.base.cluster import lasts
from raysere.base.errors import ConfigError
from raysere.base.files import digest, read_yaml
from raysere.corpora.labels import ClassMap, class_map
from raysere.corpora.splits import Protocol
from raysere.ensemble.config import EnsembleConfig
from raysere.features.spec import FeatureConfig
from raysere.training.task import ATTRIBUTES, Task

STORAGE = "RAYSERE_STORAGE"  # the folder that relative `runs` and `store` are taken from
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")  # no "{" in a default: each search ends at the next one
_SECRET = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY)S?(_|$)|(^|_)(KEYS?|PASS|PW|AUTH)(_|$)", re.IGNORECASE)
_MANY = 1000  # corpora, features and searches of one experiment
_SHOWN = 100  # problems of one experiment
_EXPANDED = 1_000_000  # characters that variables may come to in one file


def _plain_name(value: str) -> str:
    if not _NAME.match(value):
        raise ValueError(f"{value!r}: letters, digits, '.', '_' and '-' only, at most 64, since it names a folder")
    return value


def storage() -> Path:
    """Where relative ``runs`` and ``store`` lie: the folder that RAYSERE_STORAGE names, else the
    current one. Raises ConfigError.
    """
    named = Path(os.environ.get(STORAGE, "")).expanduser()
    if named != Path() and not named.is_absolute():
        raise ConfigError(f"{STORAGE} names a folder from its root on, not {str(named)!r}", where="the environment")
    return named


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusEntry(_Model):
    """A corpus: which adapter reads it, and where it lies."""

    corpus: str = Field(description="Name of a corpus adapter, such as `emodb`, `ravdess` or `table`.", examples=["emodb"])
    path: str = Field(
        description="Folder of the corpus, or the table file. `~` and `${VARIABLE:-default}` are expanded.", examples=["~/corpora/emodb"]
    )
    columns: dict[str, str] | None = Field(
        None, description="Of a table: column of the manifest to column of the file.", examples=[{"emotion": "label", "path": "wav"}]
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the adapter.", examples=[{"scale": [1, 7]}])


class TaskConfig(_Model):
    """What is predicted."""

    kind: Literal["categorical", "dimensional", "both"] = Field(
        "categorical", description="Classes, attributes (arousal, valence, dominance), or both by one model.", examples=["dimensional"]
    )
    classes: str | list[str] | dict[str, Any] | None = Field(
        None,
        description="Name of a class map, a list of labels, or a mapping of label to class (`null` leaves a label out). A categorical task "
        "needs it.",
        examples=["emodb4", ["angry", "sad"], {"W": "anger", "L": None}],
    )
    attributes: Annotated[tuple[Literal["arousal", "valence", "dominance"], ...], Field(min_length=1)] = Field(
        ATTRIBUTES, description="Attributes of a dimensional task.", examples=[["arousal", "valence"]]
    )
    scale: tuple[float, float] | None = Field(
        None, description="Lowest and highest value of the attributes. Default: the corpus's own.", examples=[[1, 5]]
    )
    metric: Literal["uar", "macro_f1", "accuracy", "ccc"] | None = Field(
        None, description="What is optimised and reported first. Default: `uar`, and `ccc` of a dimensional task.", examples=["macro_f1"]
    )

    @model_validator(mode="after")
    def _whole(self) -> TaskConfig:
        if self.scale is not None and not (math.isfinite(self.scale[0]) and self.scale[0] < self.scale[1] < math.inf):
            raise ValueError(f"scale is [low, high] with low below high, not {list(self.scale)}")
        if self.kind != "dimensional" and self.classes is None:
            raise ValueError("a categorical task needs `classes`: the name of a class map, a list of labels, or label: class")
        if self.kind == "dimensional" and self.classes is not None:
            raise ValueError("a dimensional task has no `classes`")
        if self.kind == "dimensional" and self.metric not in (None, "ccc"):
            raise ValueError("the metric of a dimensional task is ccc")
        if self.kind == "categorical" and self.metric == "ccc":
            raise ValueError("the metric of a categorical task is uar, macro_f1 or accuracy")
        return self


class SearchEntry(_Model):
    """One search: a space, the features it reads, and how many trials."""

    space: str = Field(min_length=1, description="Name of a shipped search space, or a file.", examples=["pooled"])
    features: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="Name of a feature, or several for a method that fuses them.", examples=["speech", ["speech", "words"]]
    )
    trials: int = Field(20, ge=1, le=100_000, description="Trials in each outer fold.", examples=[60])
    objective: Literal["score", "ensemble_gain"] = Field(
        "score",
        description="What the sampler learns from: a trial's own score, or what it adds to an ensemble of the finished trials.",
        examples=["ensemble_gain"],
    )
    name: str | None = Field(None, description="Name of the search. Default: `SPACE-FEATURES`.", examples=["wavlm"])
    fixed: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters held at a value instead of searched.",
        examples=[{"epochs": 10, "normalise": "domain"}],
    )

    @field_validator("fixed")
    @classmethod
    def _plain_values(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, held in value.items():
            if not isinstance(held, str | int | float | bool | None) or (isinstance(held, float) and not math.isfinite(held)):
                raise ValueError(f"{name} takes one finite number, text or boolean, not {held!r}")
        return value

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        return None if value is None else _plain_name(value)

    @property
    def streams(self) -> list[str]:
        return [self.features] if isinstance(self.features, str) else list(self.features)

    @property
    def study(self) -> str:
        return self.name or f"{Path(self.space).stem}-{'+'.join(self.streams)}"


class TrialResources(_Model):
    """What one trial occupies."""

    cpu: int = Field(1, ge=1, description="Cores of a trial, and its threads.", examples=[2], json_schema_extra={"unit": "cores"})
    gpu: float = Field(
        0.0,
        ge=0,
        description="Share of a GPU, 1/k, or a whole number of GPUs; 0.25 lets four trials share a card.",
        examples=[0.25],
        json_schema_extra={"unit": "GPUs"},
    )
    concurrent: int | None = Field(None, ge=1, description="Trials at once. Default: as many as cores and GPUs hold.", examples=[8])
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of matrix products. `auto`: bfloat16 on a GPU, float32 elsewhere. bfloat16 is faster on processors that have it.",
        examples=["bfloat16"],
    )

    @field_validator("gpu")
    @classmethod
    def _whole_share(cls, value: float) -> float:
        if (0 < value < 1 and abs(1 / value - round(1 / value)) > 1e-6) or (value > 1 and value != int(value)):
            raise ValueError("a share of a GPU is 1/k (0.5, 0.25, ...), or a whole number of GPUs")
        return value


class Halving(_Model):
    """Asynchronous successive halving: a trial below the best 1/`reduction` at a rung stops.

    `halving: null` lets every trial end.
    """

    grace: int = Field(5, ge=1, description="First rung.", examples=[10], json_schema_extra={"unit": "epochs"})
    reduction: int = Field(3, ge=2, description="Each rung is so many times as far, and keeps one in so many trials.", examples=[4])


class ExtractionConfig(_Model):
    """How features are extracted."""

    actors: int | None = Field(
        None, ge=1, description="Processes (Ray actors) that extract. Default: one for each core or GPU.", examples=[4]
    )
    fail_threshold: float = Field(0.5, ge=0, le=1, description="Share of failing files beyond which the run stops.", examples=[0.05])


class Experiment(_Model):
    """A whole experiment; `raysere init` writes a commented one.

    ``${NAME}`` and ``${NAME:-default}`` in any text are expanded from the environment, and what
    they stand for is written to the run, the ensemble and the report. An experiment holds no
    secrets: a variable whose name says that it is one (``..._TOKEN``, ``..._PASSWORD``, ``..._KEY``
    and the like) is refused, by name.
    """

    name: str = Field(description="Name of the run and of its folder. Default: the file's name.", examples=["emodb"])
    corpora: list[CorpusEntry] = Field(min_length=1, max_length=_MANY, description="One corpus or more.")
    task: TaskConfig = Field(description="What is predicted.")
    protocol: Protocol = Field(default_factory=Protocol, description="How utterances are divided.")
    features: dict[str, FeatureConfig] = Field(min_length=1, max_length=_MANY, description="Features by names of your own.")
    search: list[SearchEntry] = Field(min_length=1, max_length=_MANY, description="One search or more.")
    trial: TrialResources = Field(TrialResources(), description="What one trial occupies.")
    halving: Halving | None = Field(Halving(), description="Stops bad trials early; `null` does not.")
    ensemble: EnsembleConfig = Field(EnsembleConfig(), description="How the ensemble is fitted.")
    extraction: ExtractionConfig = Field(ExtractionConfig(), description="How features are extracted.")
    seed: int = Field(0, ge=0, description="Seed of splits, samplers and models.", examples=[1])
    runs: str = Field(
        "runs",
        min_length=1,
        description="Folder of run folders. A relative one is below RAYSERE_STORAGE, if that is set.",
        examples=["/data/runs"],
    )
    store: str = Field(
        "features",
        min_length=1,
        description="Folder of the feature store, shared by all runs; relative as `runs`.",
        examples=["/data/features"],
    )

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        return _plain_name(value)

    @model_validator(mode="after")
    def _joined(self) -> Experiment:
        for name in self.features:
            _plain_name(name)
        for number, entry in enumerate(self.search):
            for stream in entry.streams:
                if stream not in self.features:
                    raise ValueError(
                        f"search.{number}.features: unknown feature {stream!r}; valid choices: {', '.join(sorted(self.features))}"
                    )
        names = [entry.study for entry in self.search]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two searches are both called {twice[0]!r}: give one of them a `name`")
        return self

    @property
    def run_folder(self) -> Path:
        return storage() / Path(self.runs).expanduser() / self.name

    @property
    def store_folder(self) -> Path:
        return storage() / Path(self.store).expanduser()

    def class_map(self) -> ClassMap | None:
        return None if self.task.classes is None else class_map(self.task.classes)

    def resolved_task(self, scale: tuple[float, float] | None) -> Task:
        """The task with its class names in order; ``scale`` is the corpora's own interval of the
        attributes.
        """
        rules = self.class_map()
        dimensional = self.task.kind != "categorical"
        return Task(
            kind=self.task.kind,
            classes=() if rules is None else tuple(rules.classes),
            attributes=self.task.attributes if dimensional else (),
            scale=self.task.scale or scale or (1.0, 7.0),
            metric=self.task.metric or ("ccc" if self.task.kind == "dimensional" else "uar"),
        )

    def frozen_part(self) -> str:
        """Hash of what may not change between two starts of one run: data, task, protocol and seed."""
        fields = self.model_dump(mode="json", include={"corpora", "task", "protocol", "seed"})
        for corpus in fields["corpora"]:
            corpus["path"] = Path(corpus["path"]).name
        for name in ("always_train", "leave_out"):  # what says nothing is left out, so that older runs keep their hash
            if not fields["protocol"][name]:
                del fields["protocol"][name]
        return digest(fields)


def load_experiment(path: str | os.PathLike[str], overrides: tuple[str, ...] | list[str] = ()) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: the YAML file.
        overrides: ``key.sub.0=value`` with the value as YAML, applied before the check.

    Returns:
        The experiment, with the paths of its corpora made absolute.

    Raises:
        ConfigError: lists every problem with its key and, where the choices are few, the choices.
        MissingFileError: there is no such file.

    Example:
        >>> raysere.load_experiment("emodb.yaml", ["seed=1"]).protocol.kind  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    raw = read_experiment(path, overrides)
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(
            f"This experiment cannot be right:\n{_explain(error, Experiment)}\n",
            where=path,
            remedy="`raysere schema experiment` prints every key.",
        ) from error
    _check_lasting(experiment, path)
    entries = []
    for entry in experiment.corpora:
        root = Path(entry.path).expanduser()
        if not root.is_absolute() and (path.parent / root).exists():
            root = path.parent / root
        entries.append(entry.model_copy(update={"path": str(root.resolve())}))
    features = {
        name: config.model_copy(update={"backbone": re.sub(r"^(\w+):~(?=/)", lambda found: f"{found[1]}:{Path.home()}", config.backbone)})
        for name, config in experiment.features.items()
    }
    return experiment.model_copy(update={"corpora": entries, "features": features})


def read_experiment(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> dict[str, Any]:
    """The keys of an experiment file with overrides and variables put in, not yet checked.

    Raises ConfigError, MissingFileError.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError("An experiment is a mapping of keys to values", where=path, remedy="`raysere init` writes one to start from.")
    for override in overrides:
        _override(raw, override)
    raw = _expand(raw, path, [0])
    raw.setdefault("name", path.stem)
    return raw


def _check_lasting(experiment: Experiment, path: Path) -> None:
    """In a Ray job: runs and store must be on storage that outlives the job, or everything would be
    lost without a word.
    """
    for key, folder in (("runs", experiment.run_folder), ("store", experiment.store_folder)):
        if not lasts(folder):
            raise ConfigError(
                f"`{key}: {getattr(experiment, key)}` is a folder of the job, and everything in it is lost when the job ends",
                where=f"{path}, which would write to {folder.absolute()}",
                remedy="Name storage that every node mounts: `raysere submit --storage /FOLDER`, "
                f"or --set {key}=/FOLDER/{key}, or set {STORAGE} on all nodes of the cluster.",
            )


def _expand(value: Any, path: Path, expanded: list[int]) -> Any:
    """Expand ``${NAME}`` and ``${NAME:-default}`` in every text. Raises ConfigError where a name
    says that it stands for a secret.

    What is expanded is written to the run folder, ensembles and reports, and is part of messages;
    so no secret is. ``expanded`` counts the characters that this gave.
    """
    if isinstance(value, dict):
        return {key: _expand(item, path, expanded) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path, expanded) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        if _SECRET.search(name):
            raise ConfigError(
                f"An experiment must not hold secrets, and the name of the variable {name} says that it is one",
                where=path,
                remedy="The content of an experiment is written to its run, ensemble and report. Leave the secret out: code of your "
                f"own that needs it reads {name} from the environment. If it is no secret, give the variable another name.",
            )
        found = os.environ.get(name, default)
        if found is None:
            raise ConfigError(
                f"The environment variable {name} is not set",
                where=f"{path}: {value}",
                remedy=f"Set {name}, or write a default: ${{{name}:-value}}.",
            )
        expanded[0] += len(found)
        if expanded[0] > _EXPANDED:
            raise refusal("characters of variables", f"more than {_EXPANDED:,}", _EXPANDED, where=f"{path}: ${{{name}}}", error=ConfigError)
        return found

    return _VARIABLE.sub(replace, value)


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes key=value, not {override!r}", remedy="For example: --set search.0.trials=40")
    value = parse_yaml(text, where=f"--set {override[:200]}")
    *parents, last = key.split(".")
    if len(parents) > DEPTH:
        raise ConfigError(f"--set takes a key of at most {DEPTH} parts, not {len(parents)}")
    node: Any = raw
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"--set {override}: this experiment has no key {key!r}") from error


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems[:_SHOWN]:
        place = [
            part for part in problem["loc"] if not (isinstance(part, str) and ("[" in part or part in {"str", "int", "float", "bool"}))
        ]
        key = ".".join(str(part) for part in place)
        if problem["type"] == "extra_forbidden":
            names = sorted(_fields_at(model, place[:-1]))
            close = difflib.get_close_matches(str(place[-1]), names, n=1)
            text = f"unknown key; valid choices: {', '.join(names)}" + (f" (did you mean {close[0]!r}?)" if close else "")
        elif problem["type"] == "missing":
            text = "is missing"
        else:
            text = problem["msg"].removeprefix("Value error, ")
            if problem["type"] not in {"value_error", "literal_error"} and isinstance(problem["input"], str | int | float):
                text += f" (it is {problem['input']!r})"
        line = f"  {key}: {text}" if key else f"  {text}"
        if line not in lines:
            lines.append(line)
    return "\n".join(lines) + (f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")


def _fields_at(model: type[BaseModel], place: list[Any]) -> list[str]:
    """Field names of the model that stands at ``place`` inside ``model``."""
    current: Any = model
    for part in place:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
        current = _inner_model(current)
        if current is None:
            return []
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, dict, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            if (found := _inner_model(argument)) is not None:
                return found
    return None
