"""Search spaces: a short YAML file as a tree of dimensions.

A space names a method and, per parameter of its ``Params``, a distribution or a fixed value::

    method: pooled
    defaults: {pooling: stats, lr: 0.001}          # trial 0; what is not named here is the published default
    space:
      pooling: {choice: [mean, stats, attentive]}
      hidden: {int: [64, 1024], log: true}
      layer: {int: [0, last], when: {layers: one}}  # only sampled where `layers` is `one`
      lr: {float: [1.0e-5, 3.0e-3], log: true}
      batch: 64                                     # fixed

``last`` is the last layer of the features. A parameter whose ``when`` does not hold is left out of
the configuration; beside parameters, ``when`` may ask for the ``task`` (categorical, dimensional,
both), the ``granularity`` and the ``modality`` of the study. This file holds the grammar;
:mod:`raysere.search.space.checks` holds a space against a method and its features.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from raysere.base.bounds import refusal
from raysere.base.errors import ConfigError, UnknownNameError
from raysere.base.files import canonical_json, read_yaml
from raysere.search.space.dimensions import Dimension, Space, is_active, suggest

__all__ = ["Dimension", "Space", "is_active", "load_space", "parse_space", "space_names", "space_schema", "suggest", "with_fixed"]

TOP_KEYS = ("method", "description", "defaults", "space")
KINDS = ("choice", "int", "float")
DIMENSION_KEYS = (*KINDS, "log", "step", "when")
LAST = "last"
_MOST = 300  # parameters of a space
_LARGEST = 2**53  # whole numbers beyond are no numbers of a sampler
CONTEXT = ("task", "granularity", "modality")  # `when` may also ask these of the study: settled when the space is checked


def space_names() -> list[str]:
    """Names of the packaged spaces and of those in ``./search_spaces``."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def _folders() -> Iterator[Path]:
    yield Path("search_spaces")
    for folder in (Path(str(resources.files("raysere"))) / "search_spaces", Path(__file__).resolve().parents[3] / "search_spaces"):
        if folder.is_dir():
            yield folder


def load_space(path_or_name: str | os.PathLike[str]) -> Space:
    """Read a space: a file, or a name looked up in ``./search_spaces`` and then among the packaged
    ones.

    Raises UnknownNameError with the known names, MissingFileError, or ConfigError that lists every
    fault of the grammar.
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
    """Build a space from plain values.

    Raises ConfigError naming file and key of every problem at once.
    """
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
    for key, block in blocks.items():
        if len(block) > _MOST:
            raise refusal(f"parameters under `{key}`", len(block), _MOST, where=where or name, error=ConfigError)
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
    """The space with some parameters held at a value; a value outside of a searched dimension is
    allowed (the method's bounds decide).

    Branches that hang on another value of a held parameter are left out.
    """
    dims = dict(space.dims)
    for key, value in fixed.items():
        dims[key] = Dimension("fixed", choices=(value,), when=dims[key].when if key in dims else {})
    left_out: set[str] = set()
    for _ in range(len(dims)):  # a branch that goes takes its own branches with it
        gone = {
            name
            for name, dimension in dims.items()
            if name not in fixed
            and any(parent in left_out or (parent in fixed and fixed[parent] not in values) for parent, values in dimension.when.items())
        }
        if not gone:
            break
        left_out |= gone
        dims = {name: dimension for name, dimension in dims.items() if name not in gone}
    for name, dimension in dims.items():
        dims[name] = replace(dimension, when={parent: values for parent, values in dimension.when.items() if parent not in fixed})
    return replace(
        space, dims=dims, defaults={key: value for key, value in space.defaults.items() if key not in fixed and key not in left_out}
    )


def _number(value: Any, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


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
    """With a step, the high end becomes the last value that a whole number of steps reaches (Optuna
    asks for it).
    """
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
                known = ", ".join([*sorted(set(dims) - {name}), *CONTEXT])
                problems.append(f"space.{name}.when.{parent}: no such parameter in this space; valid choices: {known}")
            else:
                visit(parent)
        open_.pop()
        order.append(name)

    for name in dims:
        visit(name)
    return order


def space_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a search space file, for editors and ``raysere schema space``."""
    from raysere.methods import METHODS

    scalar = {"type": ["string", "number", "boolean", "null"]}
    value = {"anyOf": [scalar, {"type": "array", "items": scalar}]}
    integer = {"anyOf": [{"type": "integer"}, {"const": LAST}]}
    when = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"anyOf": [scalar, {"type": "array", "items": value}]},
        "description": "the parameter exists only where every named parameter has (one of) the given values",
    }

    def distribution(kind: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"type": "object", "required": [kind], "additionalProperties": False, "properties": {kind: content, "when": when, **more}}

    def ends(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": item, "minItems": 2, "maxItems": 2, "description": "low and high end, both included"}

    log = {"type": "boolean", "default": False, "description": "sample in the logarithm"}
    step = {"type": "number", "exclusiveMinimum": 0}
    dimension = {
        "anyOf": [
            value,
            distribution("choice", {"type": "array", "minItems": 1, "items": value}),
            distribution("int", ends(integer), log=log, step={**step, "type": "integer"}),
            distribution("float", ends({"type": "number"}), log=log, step=step),
        ]
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "raysere search space",
        "type": "object",
        "required": ["method"],
        "additionalProperties": False,
        "properties": {
            TOP_KEYS[0]: {"type": "string", "examples": METHODS.names()},
            TOP_KEYS[1]: {"type": "string"},
            TOP_KEYS[2]: {
                "type": "object",
                "additionalProperties": value,
                "description": "trial 0; unnamed parameters keep their published default",
            },
            TOP_KEYS[3]: {"type": "object", "additionalProperties": dimension},
        },
    }
