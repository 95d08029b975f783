"""Search spaces: what a method may be, written as a short YAML file, as a tree of dimensions that Optuna samples.

A space names a method and, per parameter of its ``Params``, a distribution or a fixed value::

    method: pooled
    defaults: {pooling: stats, lr: 0.001}          # trial 0; what is not named here is the published default
    space:
      pooling: {choice: [mean, stats, attentive]}
      hidden: {int: [64, 1024], log: true}
      layer: {int: [0, last], when: {layers: one}}  # only sampled where `layers` is `one`
      lr: {float: [1.0e-5, 3.0e-3], log: true}
      batch: 64                                     # fixed

``last`` is the last layer of the features. A parameter whose ``when`` does not hold is left out of the configuration; beside parameters,
``when`` may ask for the ``task`` (categorical, dimensional, both), the ``granularity`` and the ``modality`` of the study.
This file holds the grammar; :mod:`raysere.search.checks` holds a space against a method and its features.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raysere.errors import ConfigError, UnknownNameError
from raysere.files import canonical_json, read_yaml

if TYPE_CHECKING:
    import optuna

TOP_KEYS = ("method", "description", "defaults", "space")
KINDS = ("choice", "int", "float")
DIMENSION_KEYS = (*KINDS, "log", "step", "when")
LAST = "last"
CONTEXT = ("task", "granularity", "modality")  # `when` may also ask these of the study: settled when the space is checked


@dataclass(frozen=True)
class Dimension:
    """One parameter of a space.

    Attributes:
        kind: ``choice`` (of ``choices``), ``int`` or ``float`` in [low, high] (both ends included), or ``fixed`` (one choice).
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
        """The same in Optuna's terms. Choices travel as their JSON text, so that lists and mixed types are choices too."""
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
    """A search space: dimensions in an order in which every parameter comes after those that its ``when`` names.

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

    def walk(self, pick: Any) -> dict[str, Any]:
        """The configuration whose active parameters take ``pick(name, dimension)``; inactive ones are left out."""
        config: dict[str, Any] = {}
        for name, dimension in self.dims.items():
            if is_active(dimension, config):
                config[name] = dimension.choices[0] if dimension.kind == "fixed" else pick(name, dimension)
        return config

    def default_config(self) -> dict[str, Any]:
        """Trial 0. Raises ConfigError where a parameter has no default; :func:`raysere.search.checks.check` completes them."""

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
    """Whether every condition of ``when`` holds in ``config`` (a parameter that is not there fulfils none)."""
    return all(
        parent in config and canonical_json(config[parent]) in {canonical_json(value) for value in values}
        for parent, values in dimension.when.items()
    )


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Sample a configuration by Optuna's define-by-run calls, branch by branch."""
    import json

    def pick(name: str, dimension: Dimension) -> Any:
        if dimension.kind == "int":
            return trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step or 1)
        if dimension.kind == "float":
            return trial.suggest_float(name, float(dimension.low), float(dimension.high), log=dimension.log, step=dimension.step)
        return json.loads(trial.suggest_categorical(name, [canonical_json(choice) for choice in dimension.choices]))

    return space.walk(pick)


def space_names() -> list[str]:
    """Names of the packaged spaces and of those in ``./search_spaces``."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def _folders() -> Iterator[Path]:
    yield Path("search_spaces")
    for folder in (Path(str(resources.files("raysere"))) / "search_spaces", Path(__file__).resolve().parents[2] / "search_spaces"):
        if folder.is_dir():
            yield folder


def load_space(path_or_name: str | os.PathLike[str]) -> Space:
    """Read a space: a file, or a name looked up in ``./search_spaces`` and then among the packaged ones.

    Raises UnknownNameError with the known names, MissingFileError, or ConfigError that lists every fault of the grammar.
    """
    text = str(path_or_name)
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        path = Path(text).expanduser()
    else:
        found = [folder / f"{text}.yaml" for folder in _folders() if (folder / f"{text}.yaml").is_file()]
        if not found:
            raise UnknownNameError("search space", text, space_names(), where=Path("search_spaces").resolve())
        path = found[0]
    return parse_space(read_yaml(path), name=path.stem, where=str(path))


def parse_space(raw: Any, *, name: str | None = None, where: str = "") -> Space:
    """Build a space from plain values. Raises ConfigError naming file and key of every problem at once."""
    problems: list[str] = []
    if not isinstance(raw, Mapping):
        raise ConfigError("A search space is a mapping with the keys method, defaults and space", where=where or None)
    for key in raw:
        if key not in (*TOP_KEYS, "name"):
            problems.append(f"{key}: unknown key; valid choices: {', '.join(TOP_KEYS)}")
    method = raw.get("method")
    if not isinstance(method, str):
        problems.append("method: is missing; it names a method")
    blocks = {}
    for key in ("defaults", "space"):
        blocks[key] = raw.get(key) or {}
        if not isinstance(blocks[key], Mapping):
            problems.append(f"{key}: a mapping of parameters is expected, not {blocks[key]!r}")
            blocks[key] = {}
    dims: dict[str, Dimension] = {}
    for key, value in blocks["space"].items():
        dimension = _dimension(str(key), value, problems)
        if dimension is not None:
            dims[str(key)] = dimension
    defaults = {str(key): value for key, value in blocks["defaults"].items()}
    for key, value in defaults.items():  # a default that is not searched is a fixed value
        dims.setdefault(key, Dimension("fixed", choices=(value,)))
    order = _ordered(dims, problems)
    if problems:
        raise space_error(problems, where)
    kept = {key: value for key, value in defaults.items() if dims[key].kind != "fixed"}
    return Space(
        name=name or str(raw.get("name", "space")),
        method=str(method),
        defaults=kept,
        dims={key: dims[key] for key in order},
        where=where,
        description=str(raw.get("description", "")),
    )


def space_error(problems: Iterable[str], where: str) -> ConfigError:
    """One error for all problems, one line each."""
    return ConfigError(
        "This search space cannot be right:\n  " + "\n  ".join(dict.fromkeys(problems)) + "\n",
        where=where or None,
        remedy="`raysere schema space` prints the grammar.",
    )


def with_fixed(space: Space, fixed: Mapping[str, Any]) -> Space:
    """The space with some parameters held at a value; a value outside of a searched dimension is allowed (the method's bounds decide)."""
    dims = dict(space.dims)
    for key, value in fixed.items():
        dims[key] = Dimension("fixed", choices=(value,), when=dims[key].when if key in dims else {})
    return replace(space, dims=dims, defaults={key: value for key, value in space.defaults.items() if key not in fixed})


def _number(value: Any, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def _dimension(name: str, value: Any, problems: list[str]) -> Dimension | None:
    here = f"space.{name}"
    if not isinstance(value, Mapping):
        return Dimension("fixed", choices=(value,))
    before = len(problems)
    for key in value:
        if key not in DIMENSION_KEYS:
            problems.append(f"{here}.{key}: unknown key; valid choices: {', '.join(DIMENSION_KEYS)}")
    kinds = [kind for kind in KINDS if kind in value]
    if len(kinds) != 1:
        problems.append(f"{here}: exactly one of {', '.join(KINDS)} is expected" + (f", not {' and '.join(kinds)}" if kinds else ""))
        return None
    kind, log, step = kinds[0], value.get("log", False), value.get("step")
    when = _when(here, value.get("when"), problems)
    if not isinstance(log, bool):
        problems.append(f"{here}.log: true or false, not {log!r}")
    if kind == "choice":
        choices = value["choice"]
        if not isinstance(choices, list) or not choices:
            problems.append(f"{here}.choice: a list of at least one value is expected")
        elif len({canonical_json(choice) for choice in choices}) < len(choices):
            problems.append(f"{here}.choice: a value stands there twice")
        problems.extend(f"{here}.{key}: only int and float have it" for key in ("log", "step") if key in value)
        fixed = isinstance(choices, list) and len(choices) == 1
        return None if len(problems) > before else Dimension("fixed" if fixed else "choice", choices=tuple(choices), when=when)
    ends = value[kind]
    whole = kind == "int"
    if not isinstance(ends, list) or len(ends) != 2:
        problems.append(f"{here}.{kind}: two ends are expected, [low, high]")
        return None
    problems.extend(
        f"{here}.{kind}: {end!r} is not {'a whole number' if whole else 'a number'}"
        + (f" or {LAST!r}" if whole else "")
        + (" (YAML 1.1 reads 1e-5 as text: write 1.0e-5)" if isinstance(end, str) and "e" in end.lower() and not whole else "")
        for end in ends
        if not _number(end, whole) and not (whole and end == LAST)
    )
    low, high = ends
    numbers = _number(low, whole) and _number(high, whole)
    if numbers and low > high:
        problems.append(f"{here}.{kind}: the low end {low} is above the high end {high}")
    if log is True and _number(low, False) and low <= 0:
        problems.append(f"{here}.{kind}: with log the low end must be above 0")
    if step is not None and (not _number(step, whole) or step <= 0):
        problems.append(f"{here}.step: {'a whole number' if whole else 'a number'} above 0 is expected, not {step!r}")
    if step is not None and log is True:
        problems.append(f"{here}: log and step exclude each other")
    if len(problems) > before:
        return None
    dimension = Dimension(kind, low=low, high=high, log=log, step=step, when=when)  # type: ignore[arg-type]
    return trimmed(dimension) if numbers else dimension


def trimmed(dimension: Dimension) -> Dimension:
    """With a step, the high end becomes the last value that a whole number of steps reaches (Optuna asks for it)."""
    if dimension.step is None:
        return dimension
    count = int((dimension.high - dimension.low) / dimension.step + 1e-9)
    high = dimension.low + count * dimension.step
    return replace(dimension, high=high if dimension.kind == "int" else float(f"{high:.12g}"))


def _when(here: str, raw: Any, problems: list[str]) -> dict[str, tuple[Any, ...]]:
    if raw is None:
        return {}
    if not isinstance(raw, Mapping) or not raw:
        problems.append(f"{here}.when: a mapping of parameter to value (or list of values) is expected")
        return {}
    return {str(parent): tuple(values) if isinstance(values, list) else (values,) for parent, values in raw.items()}


def _ordered(dims: Mapping[str, Dimension], problems: list[str]) -> list[str]:
    """Parents before children, otherwise in the order of the file."""
    order: list[str] = []
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in open_:
            problems.append(f"space.{name}.when: the conditions go round in a circle ({' > '.join([*open_[open_.index(name) :], name])})")
            return
        open_.append(name)
        for parent in dims[name].when:
            if parent in CONTEXT and parent not in dims:
                continue
            if parent not in dims:
                problems.append(
                    f"space.{name}.when.{parent}: no such parameter in this space; valid choices: {', '.join([*sorted(set(dims) - {name}), *CONTEXT])}"
                )
            else:
                visit(parent)
        open_.pop()
        order.append(name)

    for name in dims:
        visit(name)
    return order
