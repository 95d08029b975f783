"""The ``ensemble:`` block of an experiment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raysere.base.errors import ConfigError

if TYPE_CHECKING:
    from raysere.training.task import Task

#: The rule of ``auto`` moves towards the front: what is chosen least comes first. The blend is a
#: mean of two others, so that where the rows cannot tell families apart none is picked by luck. A
#: single member stands last: it has no weights, but is the largest of many scores on the rows by
#: which the search chose already, so that they flatter it more than any mean.
Family = Literal["blend", "average", "vote", "greedy_once", "greedy", "convex", "stack", "best_single"]
AttributeFamily = Literal["best_single", "average", "rank", "ccc_weighted", "nnls", "shrunk", "greedy"]
FAMILIES: tuple[str, ...] = get_args(Family)
ATTRIBUTE_FAMILIES: tuple[str, ...] = get_args(AttributeFamily)


class EnsembleConfig(BaseModel):
    """How members are calibrated, pooled and weighted. The defaults are a good start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["auto", Family] = Field(
        "auto",
        description="How members that predict classes are weighted. `average`: equal weights. `vote`: plurality. `best_single`: one "
        "member. `greedy_once`: one greedy pass. `greedy`: greedy passes over random halves of the members (`bags`). `convex`: weights "
        "of least likelihood loss. `blend`: mean of greedy and convex. `stack`: logistic regression drawn towards the mean. `auto`: "
        "chosen on inner folds of speakers; another family than the blend only where it is ahead by `margin`.",
        examples=["greedy"],
    )
    dimensional: Literal["auto", AttributeFamily] = Field(
        "auto", description="The same for arousal, valence and dominance, chosen for each attribute.", examples=["average"]
    )
    pool: Literal["auto", "linear", "log", "rank", "vote"] = Field(
        "auto",
        description="How answers are combined: `linear` (mean of probabilities), `log` (normalised product), `rank` (mean normal scores "
        "of ranks), `vote` (weighted plurality). `auto`: linear or log, by the same inner folds.",
        examples=["log"],
    )
    offsets: Literal["auto", "none", "scalar", "vector"] = Field(
        "auto",
        description="Offsets of the decision after the prior: one for all classes (`scalar`: `-tau log prior`) or one each (`vector`). "
        "`auto`: only for a gain of more than `margin`.",
        examples=["none"],
    )
    prior: Literal["auto", "same", "uniform", "estimate"] | tuple[float, ...] = Field(
        "auto",
        description="Class prior under which the ensemble decides: that of the development rows (`same`), `uniform`, or shares in class "
        "order. `auto`: uniform for the UAR, same for accuracy, halfway between for macro-F1. `estimate`: that of the rows to be "
        "answered, by expectation maximisation; an answer then depends on the others of its batch.",
        examples=["uniform"],
    )
    calibrate: bool = Field(
        True, description="Fit a temperature and class biases of each member before they are combined.", examples=[False]
    )
    ridge: float = Field(
        1.0,
        ge=0,
        description="How strongly each temperature is drawn to its prior.",
        examples=[0.0],
        json_schema_extra={"unit": "observations"},
    )
    bias_ridge: float = Field(
        10.0,
        ge=0,
        description="The same of the class biases. It is multiplied by the design effect of the rows, since clips of one speaker "
        "err together.",
        examples=[30.0],
        json_schema_extra={"unit": "observations"},
    )
    margin: float = Field(
        2.0,
        ge=0,
        description="How far another choice of `auto` must be ahead of the one that stands before it.",
        examples=[1.0],
        json_schema_extra={"unit": "standard errors"},
    )
    near: float | None = Field(
        None,
        ge=0,
        description="Use only members whose own score is within so many standard errors of the best. With `family: average` this is the "
        "ensemble for a target whose labels nobody reads.",
        examples=[2.0],
        json_schema_extra={"unit": "standard errors"},
    )
    top: int = Field(50, ge=1, description="Members kept of each search, by their own score on development rows.", examples=[20])
    bags: int = Field(
        20,
        ge=0,
        le=1000,
        description="Random halves of the members, with bootstrapped speakers; 0: one greedy pass over all.",
        examples=[0],
    )
    steps: int = Field(50, ge=1, le=1000, description="Steps of a greedy pass at most; each adds a member.", examples=[100])
    start: int = Field(3, ge=1, description="A greedy pass starts from so many best members.", examples=[1])
    patience: int = Field(10, ge=1, description="A greedy pass stops after so many steps without a `gain`.", examples=[5])
    gain: float = Field(1e-4, ge=0, description="What a step must add to the metric to count.", examples=[0.001])
    prune: float = Field(0.01, ge=0, lt=1, description="Weights below this are dropped.", examples=[0.0])
    stack_members: int = Field(24, ge=1, description="The stack reads so many members at most, the best by themselves.", examples=[12])
    inner_folds: int = Field(
        5, ge=2, description="Folds of speakers for the choices of `auto` and the penalty of the stack.", examples=[10]
    )
    recipes: Literal["auto"] | tuple[Literal["two_system_mean", "forest", "meta_soup"], ...] = Field(
        "auto",
        description="Published recipes that the evaluation compares with: `two_system_mean`, `forest` (needs `pip install "
        "raysere[baselines]`), `meta_soup`. `auto`: all that can run.",
        examples=[["two_system_mean"]],
    )
    draws: int = Field(2000, ge=100, description="Bootstrap draws of each interval.", examples=[10000])
    seed: int = Field(0, description="Seed of bags, folds and draws.", examples=[1])

    @field_validator("prior")
    @classmethod
    def _a_distribution(cls, value: object) -> object:
        if isinstance(value, tuple) and (any(not p > 0 for p in value) or not math.isclose(sum(value), 1.0, abs_tol=1e-3)):
            raise ValueError("a prior given as a list needs one positive number a class, and a sum of 1")
        return value

    @model_validator(mode="after")
    def _that_fit(self) -> EnsembleConfig:
        if self.family in ("convex", "blend") and self.pool in ("rank", "vote"):
            raise ValueError(f"{self.family} weights maximise a likelihood, and the pool {self.pool!r} has none; choose linear or log")
        return self


def with_family(config: EnsembleConfig, family: str, task: Task) -> EnsembleConfig:
    """``config`` with an explicit family, for classes and for attributes, for each where it is one
    of its choices.

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
