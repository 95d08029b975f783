"""What a user may say of the ensemble: the ``ensemble:`` block of an experiment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysere.errors import ConfigError

if TYPE_CHECKING:
    from raysere.training.task import Task

#: From simple to complex; the one-standard-error rule of ``auto`` moves towards the front.
FAMILIES = ("best_single", "average", "greedy")
ATTRIBUTE_FAMILIES = ("best_single", "average", "ccc_weighted", "nnls", "shrunk", "greedy")


class EnsembleConfig(BaseModel):
    """How members are calibrated, pooled and weighed. Defaults are those of the procedure; ``ensemble: {}`` is a good start.

    Attributes:
        family: how class members are weighed. ``auto`` chooses among best_single, average and greedy by inner speaker folds,
            by the one-standard-error rule towards the simpler; a library too large for that goes to greedy.
        dimensional: the same for attributes (arousal, valence, dominance), chosen for each attribute separately.
        pool: ``linear`` (mean of probabilities) or ``log`` (normalised product).
        prior: class prior under which the ensemble decides. ``same``: that of the selection rows; ``uniform``; a list in class
            order; ``auto``: uniform for the UAR, same for accuracy, halfway (proportional to the square root of the
            selection prior) for macro-F1.
        calibrate: joint temperature and class biases for each member before pooling.
        ridge: strength of the pull of each calibration, in prior observations (0: maximum likelihood).
        top: members kept for each study, by their score on the selection rows alone.
        bags: random half libraries with bootstrapped speakers (0: one greedy pass over everything).
        steps, start, patience, gain: greedy members at most, started from the best few, stopped after so many steps without
            a gain larger than this.
        prune: a smaller final weight is dropped.
        inner_folds: speaker folds of ``auto`` and of the variance matching.
        draws: bootstrap draws of the intervals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["auto", "best_single", "average", "greedy"] = "auto"
    dimensional: Literal["auto", "best_single", "average", "ccc_weighted", "nnls", "shrunk", "greedy"] = "auto"
    pool: Literal["linear", "log"] = "linear"
    prior: Literal["auto", "same", "uniform"] | tuple[float, ...] = "auto"
    calibrate: bool = True
    ridge: float = Field(1.0, ge=0)
    top: int = Field(50, ge=1)
    bags: int = Field(20, ge=0, le=1000)
    steps: int = Field(50, ge=1, le=1000)
    start: int = Field(3, ge=1)
    patience: int = Field(10, ge=1)
    gain: float = Field(1e-4, ge=0)
    prune: float = Field(0.01, ge=0, lt=1)
    inner_folds: int = Field(5, ge=2)
    draws: int = Field(2000, ge=100)
    seed: int = 0

    @field_validator("prior")
    @classmethod
    def _a_distribution(cls, value: object) -> object:
        if isinstance(value, tuple) and (any(not p > 0 for p in value) or not math.isclose(sum(value), 1.0, abs_tol=1e-3)):
            raise ValueError("a prior given as a list needs one positive number a class, and a sum of 1")
        return value


def with_family(config: EnsembleConfig, family: str, task: Task) -> EnsembleConfig:
    """``config`` with an explicit family, for classes and for attributes, for each where it is one of its choices.

    Raises ConfigError for a family that none of the task's parts has.
    """
    classes, attributes = ("auto", *FAMILIES), ("auto", *ATTRIBUTE_FAMILIES)
    choices = [*classes] if task.categorical else []
    choices += [name for name in attributes if name not in choices] if task.dimensional else []
    if family not in choices:
        raise ConfigError(f"There is no family {family!r} for this task", where="ensemble.family", choices=choices)
    changed = {"family": family} if family in classes else {}
    if family in attributes:
        changed["dimensional"] = family
    return config.model_copy(update=changed)
