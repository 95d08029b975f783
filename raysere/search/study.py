"""A study: one space on one set of features, searched in one lane for each outer fold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysere.base.errors import ConfigError
from raysere.base.files import digest, read_json, write_json
from raysere.search.space.grammar import Space, parse_space
from raysere.training.task import Task

MAY_CHANGE = frozenset({"format", "trials", "threads", "device", "store"})  # between two starts of one run


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StudyFeature(_Model):
    """A feature stream of the study: its name in the experiment, its key in the store, what it is."""

    name: str
    spec_key: str
    modality: Literal["audio", "text"] = "audio"
    copies: dict[str, str] = Field(default_factory=dict)  # name of an altered copy of the clips to its key


class Asha(_Model):
    """Successive halving (Li et al.

    2018, arXiv:1810.05934): rungs at ``grace`` epochs, each next ``reduction`` times later.
    """

    grace: int = Field(5, ge=1)
    reduction: int = Field(3, ge=2)


class StudySpec(_Model):
    """A study, as it stands in ``search/NAME/study.json``.

    Attributes:
        name: such as ``pooled-speech``; it begins the id of every trial.
        space: :meth:`raysere.search.space.grammar.Space.to_dict` of the checked space.
        store: folder of the feature store; relative to the run directory unless absolute.
        class_map: name, list or mapping, as :func:`raysere.corpora.labels.class_map` takes it; None
            for attributes only.
        by: what never crosses a split. transductive: a transfer adapts to its test rows, too.
        outer: outer folds, each one a lane of its own; None where the protocol has none (lane 0).
        trials: trials of each lane.
        max_epochs: upper limit of every trial's epochs.
        threads: torch threads of a worker; None takes the CPUs of a trial.
        objective: what the sampler learns from: a trial's own ``score``, or its ``ensemble_gain``
            (see :mod:`raysere.search.gain`).
        precision: of matrix products, see :class:`raysere.training.loop.Trainer`.
    """

    format: Literal["raysere.study/1"] = "raysere.study/1"
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    space: dict[str, Any]
    method: str
    features: tuple[StudyFeature, ...] = Field(min_length=1)
    store: str
    task: Task
    class_map: Any = None
    by: Literal["speaker", "dialogue", "sentence"] = "speaker"
    transductive: bool = False
    outer: tuple[int, ...] | None = None
    trials: int = Field(20, ge=1)
    seed: int = Field(0, ge=0)
    max_epochs: int | None = Field(None, ge=1)
    asha: Asha | None = None
    threads: int | None = Field(None, ge=1)
    device: str = "cpu"
    objective: Literal["score", "ensemble_gain"] = "score"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def parsed_space(self) -> Space:
        return parse_space(self.space, where=f"study {self.name}")

    @property
    def lanes(self) -> tuple[int, ...]:
        """Outer fold of each lane."""
        return (0,) if self.outer is None else self.outer

    @property
    def modality(self) -> str:
        """``audio``, ``text`` or ``audio+text``."""
        return "+".join(sorted({feature.modality for feature in self.features}))

    @property
    def penalty(self) -> float:
        """Told to the sampler for a trial without a score: the worst that the metric can be."""
        return -1.0 if self.task.metric == "ccc" else 0.0

    def trial_id(self, outer: int, number: int) -> str:
        return f"{self.name}-{number:04d}" if self.outer is None else f"{self.name}-o{outer:02d}-{number:04d}"

    def config_hash(self, params: dict[str, Any]) -> str:
        """Equal for configurations that train the same model on the same features (the fold is not
        part of it).
        """
        return digest(
            {
                "method": self.method,
                "features": [
                    [feature.spec_key, *feature.copies.values()] if feature.copies else feature.spec_key for feature in self.features
                ],
                "params": params,
                "max_epochs": self.max_epochs,
            }
        )

    def trial_seed(self, outer: int, config: str) -> int:
        """Seed of a trial, from its configuration alone: neither the order of the search nor a
        restart can change it.
        """
        return int(digest({"seed": self.seed, "outer": outer, "config": config}, 8), 16) % (2**31)

    def sampler_seed(self, outer: int, number: int) -> int:
        """Seed of the sampler for the trial of that number, so that a resumed search proposes what
        the uninterrupted one would.
        """
        return int(digest({"seed": self.seed, "study": self.name, "outer": outer, "number": number}, 8), 16)

    def rungs(self, epochs: int) -> list[int]:
        """Epochs at which successive halving looks at a trial of that many epochs, without its end."""
        if self.asha is None:
            return []
        count = 1 + max(0, math.ceil(math.log(max(epochs, 1)) / math.log(self.asha.reduction)))
        return [rung for k in range(count) if (rung := self.asha.grace * self.asha.reduction**k) < epochs]


def study_path(run_dir: Path, name: str) -> Path:
    return Path(run_dir) / "search" / name / "study.json"


def save_study(run_dir: Path, study: StudySpec) -> None:
    """Write ``study.json``; a study that the run holds already may only grow.

    Raises ConfigError that names what differs, since its finished trials would not be comparable
    with the new ones.
    """
    path = study_path(run_dir, study.name)
    new = study.model_dump(mode="json")
    if path.is_file():
        old = read_study(run_dir, study.name).model_dump(mode="json")
        different = sorted(key for key in new if key not in MAY_CHANGE and old.get(key) != new[key])
        if different:
            raise ConfigError(
                f"The study {study.name!r} of this run was started with another {', '.join(different)}",
                where=path,
                remedy="Give the search or the experiment another `name`; only trials, threads, device and store may change.",
            )
        if old == new:
            return
    write_json(path, new)


def read_study(run_dir: Path, name: str) -> StudySpec:
    """Read ``study.json``. Raises MissingFileError or ConfigError."""
    path = study_path(run_dir, name)
    try:
        return StudySpec.model_validate(read_json(path))
    except ValidationError as error:
        raise ConfigError(f"This is not a study: {error.errors()[0]['msg']}", where=path) from error
