"""A search space in memory: a tree of dimensions, and how Optuna samples it.
:mod:`raysere.search.space.grammar` reads it from a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raysere.base.errors import ConfigError
from raysere.base.files import canonical_json

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Dimension:
    """One parameter of a space.

    Attributes:
        kind: ``choice`` (of ``choices``), ``int`` or ``float`` in [low, high] (both ends included),
            or ``fixed`` (one choice).
        choices: plain YAML values.
        low, high: numbers; ``last`` stands for the last layer until the space is resolved.
        log: sampled in the logarithm. step: distance of neighbouring values from ``low``.
        when: parameter to the values for which this one exists; all must hold.
    """

    kind: Literal["choice", "int", "float", "fixed"]
    choices: tuple[Any, ...] = ()
    low: Any = None
    high: Any = None
    log: bool = False
    step: Any = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is one of this dimension (1, 1.0 and true are three different choices)."""
        if self.kind in ("choice", "fixed"):
            return canonical_json(value) in {canonical_json(choice) for choice in self.choices}
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "int" else (int, float)):
            return False
        if not self.low <= value <= self.high:
            return False
        return self.step is None or abs((value - self.low) / self.step - round((value - self.low) / self.step)) < 1e-9

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """The same in Optuna's terms.

        Choices travel as their JSON text, so that lists and mixed types are choices too.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "int":
            return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)
        if self.kind == "float":
            return FloatDistribution(float(self.low), float(self.high), log=self.log, step=self.step)
        return CategoricalDistribution(tuple(canonical_json(choice) for choice in self.choices))

    def to_optuna(self, value: Any) -> Any:
        return canonical_json(value) if self.kind == "choice" else float(value) if self.kind == "float" else value

    def text(self) -> str:
        """For messages: ``[1, 10]`` or the choices."""
        return f"[{self.low}, {self.high}]" if self.kind in ("int", "float") else ", ".join(str(choice) for choice in self.choices)

    def to_dict(self) -> Any:
        if self.kind == "fixed" and not self.when:
            value = self.choices[0]
            return {"choice": [value]} if isinstance(value, dict) else value
        result: dict[str, Any] = {"choice": list(self.choices)} if self.kind in ("choice", "fixed") else {self.kind: [self.low, self.high]}
        if self.log:
            result["log"] = True
        if self.step is not None:
            result["step"] = self.step
        if self.when:
            result["when"] = {parent: list(values) for parent, values in self.when.items()}
        return result


@dataclass(frozen=True)
class Space:
    """A search space: dimensions in an order in which every parameter comes after those that its
    ``when`` names.

    Attributes:
        name: stem of the file.
        method: name of a registered method.
        defaults: value of trial 0 for each parameter of ``dims`` that has one.
        dims: parameter to dimension, fixed ones included.
        where: file it was read from.
        notes: what was adapted to the features when it was checked, for the user to read.
    """

    name: str
    method: str
    defaults: Mapping[str, Any]
    dims: Mapping[str, Dimension]
    where: str = ""
    description: str = ""
    notes: tuple[str, ...] = ()

    def walk(self, pick: Callable[[str, Dimension], Any]) -> dict[str, Any]:
        """The configuration whose active parameters take ``pick(name, dimension)``; inactive ones
        are left out.
        """
        config: dict[str, Any] = {}
        for name, dimension in self.dims.items():
            if is_active(dimension, config):
                config[name] = dimension.choices[0] if dimension.kind == "fixed" else pick(name, dimension)
        return config

    def default_config(self) -> dict[str, Any]:
        """Trial 0.

        Raises ConfigError where a parameter has no default;
        :func:`raysere.search.space.checks.check` completes them.
        """

        def pick(name: str, _: Dimension) -> Any:
            if name not in self.defaults:
                raise ConfigError(f"The parameter {name!r} has no default", where=self.where or None, remedy="Name one under defaults.")
            return self.defaults[name]

        return self.walk(pick)

    def searched(self, config: Mapping[str, Any]) -> dict[str, Dimension]:
        """The dimensions that were sampled to give ``config``."""
        return {name: dimension for name, dimension in self.dims.items() if name in config and dimension.kind != "fixed"}

    def to_dict(self) -> dict[str, Any]:
        """Plain values that :func:`parse_space` reads back to an equal space."""
        return {
            "name": self.name,
            "method": self.method,
            "description": self.description,
            "defaults": dict(self.defaults),
            "space": {name: dimension.to_dict() for name, dimension in self.dims.items()},
        }


def is_active(dimension: Dimension, config: Mapping[str, Any]) -> bool:
    """Whether every condition of ``when`` holds in ``config`` (a parameter that is not there
    fulfils none).
    """
    return all(
        parent in config and canonical_json(config[parent]) in {canonical_json(value) for value in values}
        for parent, values in dimension.when.items()
    )


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Sample a configuration by Optuna's define-by-run calls, branch by branch."""

    def pick(name: str, dimension: Dimension) -> Any:
        if dimension.kind == "int":
            return trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step or 1)
        if dimension.kind == "float":
            return trial.suggest_float(name, float(dimension.low), float(dimension.high), log=dimension.log, step=dimension.step)
        return json.loads(trial.suggest_categorical(name, [canonical_json(choice) for choice in dimension.choices]))

    return space.walk(pick)
