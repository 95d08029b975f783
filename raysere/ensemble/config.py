"""What a user may say of the ensemble: the ``ensemble:`` block of an experiment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raysere.errors import ConfigError

if TYPE_CHECKING:
    from raysere.training.task import Task

#: The rule of ``auto`` moves towards the front: what is chosen least comes first [OURS]. The blend is a mean of two
#: others, so that where the rows cannot tell families apart none is picked by luck. A single member stands last: it has no weights, but is
#: the largest of many scores on the rows by which the search chose already, so that they flatter it more than any mean.
Family = Literal["blend", "average", "vote", "greedy_once", "greedy", "convex", "stack", "best_single"]
AttributeFamily = Literal["best_single", "average", "rank", "ccc_weighted", "nnls", "shrunk", "greedy"]
FAMILIES: tuple[str, ...] = get_args(Family)
ATTRIBUTE_FAMILIES: tuple[str, ...] = get_args(AttributeFamily)


class EnsembleConfig(BaseModel):
    """How members are calibrated, pooled and weighed. Defaults are those of the procedure; ``ensemble: {}`` is a good start.

    Attributes:
        family: how class members are weighed. ``blend`` (the mean of the weights of bagged greedy and convex);
            ``best_single``; ``average``; ``vote`` (plurality); ``greedy_once`` (one greedy pass);
            ``greedy`` (bagged); ``convex`` (least target-weighted likelihood loss over the simplex); ``stack`` (logistic regression
            drawn towards the mean). ``auto`` chooses by inner speaker folds, and leaves the blend only for what is ahead by ``margin``
            standard errors; a library too large for that goes to greedy.
        dimensional: the same for attributes (arousal, valence, dominance), chosen for each attribute separately.
        pool: ``linear`` (mean of probabilities), ``log`` (normalised product), ``rank`` (mean normal scores of ranks), ``vote``
            (weighted plurality); ``auto`` chooses between linear and log by the same folds.
        prior: class prior under which the ensemble decides. ``same``: that of the selection rows; ``uniform``; a list in class
            order; ``auto``: uniform for the UAR, same for accuracy, halfway (proportional to the square root of the
            selection prior) for macro-F1; ``estimate``: that of the rows to be answered, by expectation maximisation over all of
            them (it reads test inputs, and an answer then depends on the others of its batch).
        offsets: decision offsets after the prior: ``none``; ``scalar`` (``-tau log pi``); ``vector``; ``auto`` moves up that ladder only
            for a gain of more than ``margin`` standard errors on inner folds.
        calibrate: joint temperature and class biases for each member before pooling. Without it a member is only moved from the prior
            of its training to that of the selection rows, where its training prior is known.
        ridge: strength of the pull of each temperature, in prior observations (0: maximum likelihood).
        bias_ridge: the same of the class biases, in independent observations: it is multiplied by the design effect of the rows, so
            that where one speaker's clips err together, few speakers move no bias far.
        near: only class members whose score by themselves, on the selection rows, is within so many standard errors of the best (over
            groups) take part; None: all. With ``family: average`` it is the ensemble for a target whose labels nobody reads.
        top: members kept for each study, by their score on the selection rows alone.
        bags: random half libraries with bootstrapped speakers (0: one greedy pass over everything).
        steps, start, patience, gain: greedy members at most, started from the best few, stopped after so many steps without
            a gain larger than this.
        prune: a smaller final weight is dropped.
        stack_members: the stack reads only so many members, the best by themselves.
        margin: standard errors by which another choice of ``auto`` must be ahead of one that stands before it.
        inner_folds: speaker folds of ``auto``, of the stack's penalty and of the variance matching.
        recipes: published recipes that the evaluation runs on the same library beside best single, mean and vote: ``two_system_mean``,
            ``forest`` (needs scikit-learn: ``pip install raysere[baselines]``), ``meta_soup``. ``auto``: all that can run.
        draws: bootstrap draws of the intervals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["auto", Family] = "auto"
    dimensional: Literal["auto", AttributeFamily] = "auto"
    pool: Literal["auto", "linear", "log", "rank", "vote"] = "auto"
    offsets: Literal["auto", "none", "scalar", "vector"] = "auto"
    prior: Literal["auto", "same", "uniform", "estimate"] | tuple[float, ...] = "auto"
    calibrate: bool = True
    ridge: float = Field(1.0, ge=0)
    bias_ridge: float = Field(10.0, ge=0)
    margin: float = Field(2.0, ge=0)
    near: float | None = Field(None, ge=0)
    top: int = Field(50, ge=1)
    bags: int = Field(20, ge=0, le=1000)
    steps: int = Field(50, ge=1, le=1000)
    start: int = Field(3, ge=1)
    patience: int = Field(10, ge=1)
    gain: float = Field(1e-4, ge=0)
    prune: float = Field(0.01, ge=0, lt=1)
    stack_members: int = Field(24, ge=1)
    inner_folds: int = Field(5, ge=2)
    recipes: Literal["auto"] | tuple[Literal["two_system_mean", "forest", "meta_soup"], ...] = "auto"
    draws: int = Field(2000, ge=100)
    seed: int = 0

    @field_validator("prior")
    @classmethod
    def _a_distribution(cls, value: object) -> object:
        if isinstance(value, tuple) and (any(not p > 0 for p in value) or not math.isclose(sum(value), 1.0, abs_tol=1e-3)):
            raise ValueError("a prior given as a list needs one positive number a class, and a sum of 1")
        return value

    @model_validator(mode="after")
    def _that_fit(self) -> EnsembleConfig:
        if self.family in ("convex", "blend") and self.pool in ("rank", "vote"):
            raise ValueError(f"{self.family} weights maximise a likelihood, which the pool {self.pool!r} has not; take linear or log")
        return self


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
