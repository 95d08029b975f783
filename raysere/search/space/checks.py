"""Check a search space against its method and the features, before anything runs.

Everything that is wrong is said in one message. What merely does not apply to these features
(attentive pooling where there are no frames) is left out of the space, and said in its ``notes``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from raysere.base.errors import RaysereError
from raysere.base.files import canonical_json
from raysere.search.space.grammar import CONTEXT, LAST, Dimension, Space, space_error, trimmed

if TYPE_CHECKING:
    from raysere.training.method import Method, Shapes

_PROBES = 64  # an integer range of at most so many values is tried value by value, a longer one at its ends


def check(space: Space, Params: type[BaseModel], shapes: Shapes | None = None, *, method: Method | None = None) -> Space:
    """The space as it will be searched: ``last`` is a number, every default is there, choices that
    do not apply are gone.

    Args:
        Params: the method's parameters; they bound every value, and fill the defaults that the
            space does not name.
        shapes: the streams of the study; without them ``last`` must not occur.
        method: asked (``Method.check``) whether the default and each value one step from it can
            work on ``shapes``.

    Raises:
        ConfigError: unknown parameter, value or range outside of the bounds, default outside of the
            range, a layer that the backbone does not have; all of them, one line each, with the
            valid choices.
    """
    problems: list[str] = []
    fields = Params.model_fields
    for name in space.dims:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            problems.append(
                f"space.{name}: {space.method} has no such parameter; valid choices: {', '.join(sorted(fields))}"
                + (f" (did you mean {close[0]!r}?)" if close else "")
            )
    if problems:
        raise space_error(problems, space.where)
    space = _in_context(space, shapes)
    open_ended = {name for name, dimension in space.dims.items() if LAST in (dimension.low, dimension.high)}
    space = _without_last(space, fields, shapes, problems)
    if problems:
        raise space_error(problems, space.where)
    for name, dimension in space.dims.items():
        adapter = _adapter(fields[name])
        values = dimension.choices or (dimension.low, dimension.high)
        key = f"space.{name}" + ("" if dimension.kind == "fixed" else f".{dimension.kind}")
        problems.extend(
            f"{key}: {value!r} is outside of what {space.method} takes: {fault}" for value in values if (fault := _fault(adapter, value))
        )
        for parent, wanted in dimension.when.items():
            problems.extend(
                f"space.{name}.when.{parent}: {value!r} is not among the values of {parent}: {space.dims[parent].text()}"
                for value in wanted
                if not space.dims[parent].holds(value)
            )
    if not problems:
        space = _with_defaults(space, fields, problems)
    if problems:
        raise space_error(problems, space.where)
    try:
        Params.model_validate(space.default_config())
    except ValidationError as error:
        raise space_error(
            [f"defaults: {'.'.join(map(str, fault['loc'])) or 'together'}: {fault['msg']}" for fault in error.errors()], space.where
        ) from error
    return space if method is None or shapes is None else _applied(space, Params, shapes, method, open_ended)


def _in_context(space: Space, shapes: Shapes | None) -> Space:
    """Settle the conditions on task, granularity and modality: they hold (and go), or the parameter
    goes, and with it what hangs on it.
    """
    facts: dict[str, str] = {}
    if shapes is not None:
        facts = {"task": shapes.task.kind}
        for name in ("granularity", "modality"):
            facts[name] = "+".join(sorted({getattr(stream, name) for stream in shapes.streams.values()}))
    dims: dict[str, Dimension] = {}
    for name, dimension in space.dims.items():
        asked = {parent: values for parent, values in dimension.when.items() if parent in CONTEXT and parent not in space.dims}
        if shapes is not None and any(facts[parent] not in values for parent, values in asked.items()):
            continue
        rest = {parent: values for parent, values in dimension.when.items() if parent not in asked}
        if all(parent in dims for parent in rest):
            dims[name] = replace(dimension, when=rest)
    return replace(space, dims=dims, defaults={name: value for name, value in space.defaults.items() if name in dims})


def _adapter(field: FieldInfo) -> TypeAdapter:
    annotation: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(annotation)


def _fault(adapter: TypeAdapter, value: Any) -> str | None:
    """Why the parameter does not take the value, or None.

    Numbers are not made of texts or truth values.
    """
    try:
        adapter.validate_json(canonical_json(value), strict=True)
    except ValidationError as error:
        return "; ".join(dict.fromkeys(fault["msg"] for fault in error.errors()))
    return None


def _without_last(space: Space, fields: Mapping[str, FieldInfo], shapes: Shapes | None, problems: list[str]) -> Space:
    """Replace ``last`` by the number of the last layer that every stream has."""
    last = None if shapes is None else min(max(stream.layers) for stream in shapes.streams.values())
    used = False

    def number(name: str, value: Any) -> Any:
        nonlocal used
        if isinstance(value, list):
            return [number(name, item) for item in value]
        if value != LAST or (
            space.dims[name].kind != "int" and _fault(_adapter(fields[name]), LAST) is None
        ):  # an option may be called "last"
            return value
        used = True
        return 0 if last is None else last

    dims = {}
    for name, old in space.dims.items():
        new = replace(
            old,
            choices=tuple(number(name, value) for value in old.choices),
            low=number(name, old.low),
            high=number(name, old.high),
            when={parent: tuple(number(parent, value) for value in values) for parent, values in old.when.items()},
        )
        if new.kind == "int" and last is not None and new.low > new.high:
            problems.append(f"space.{name}.int: the low end {new.low} is above the last layer, {new.high}")
        dims[name] = trimmed(new) if new != old else old
    defaults = {name: number(name, value) for name, value in space.defaults.items()}
    if used and last is None:
        problems.append(f"space: {LAST!r} stands for the last layer of the features, and there are none here")
    return replace(space, dims=dims, defaults=defaults)


def _with_defaults(space: Space, fields: Mapping[str, FieldInfo], problems: list[str]) -> Space:
    """Complete the defaults by the published ones, and hold each against its dimension."""
    defaults = dict(space.defaults)
    for name, dimension in space.dims.items():
        if dimension.kind == "fixed":
            continue
        if name in defaults:
            if not dimension.holds(defaults[name]):
                problems.append(f"defaults.{name}: {defaults[name]!r} is not in the space: {dimension.text()}")
            continue
        published = fields[name].get_default(call_default_factory=True)
        if isinstance(published, tuple):
            published = list(published)
        if dimension.holds(published):
            defaults[name] = published
        elif published is None and not dimension.when and not dimension.choices:  # none of its own, as for a layer: the far end
            defaults[name] = dimension.high
        elif not dimension.when:
            problems.append(
                f"defaults.{name}: the published default {published!r} is not in the space ({dimension.text()}): name one under defaults"
            )
        else:  # a branch that trial 0 may never enter: any value of it serves
            defaults[name] = dimension.choices[0] if dimension.choices else dimension.low
    required = [name for name, field in fields.items() if field.is_required() and name not in space.dims]
    problems.extend(f"defaults.{name}: {space.method} needs it and has no default of its own" for name in required)
    return replace(space, defaults=defaults)


def _applied(space: Space, Params: type[BaseModel], shapes: Shapes, method: Method, open_ended: set[str]) -> Space:
    """Ask the method about the default and each single step from it.

    An option (a text) that it refuses leaves the space, and so does a number of a range that was
    written with ``last`` (features of some layers only); any other number that it refuses is a
    fault.
    """

    def refusal(config: Mapping[str, Any]) -> str | None:
        try:
            method.check(Params.model_validate(dict(config)), shapes)
        except (RaysereError, ValidationError) as error:
            return error.message if isinstance(error, RaysereError) else "; ".join(fault["msg"] for fault in error.errors())
        return None

    notes: list[str] = list(space.notes)
    fault = refusal(space.default_config())
    if fault:
        space, note = _repaired(space, refusal, fault)
        notes.append(note)
    problems: list[str] = []
    dims: dict[str, Dimension] = {}  # parents come first, so that a branch is entered by a value that is still there
    for name, old in space.dims.items():
        when = {
            parent: tuple(value for value in values if parent in dims and dims[parent].holds(value)) for parent, values in old.when.items()
        }
        if not all(when.values()):
            continue  # a branch that cannot be entered any more
        dimension = dims[name] = replace(old, when=when)
        if dimension.kind == "fixed":
            continue
        refused = {}
        for value in _probes(dimension):
            if (fault := refusal(_one_step(space, dims, name, value))) is not None:
                refused[canonical_json(value)] = (value, fault)
        if not refused:
            continue
        values, faults = zip(*refused.values(), strict=True)
        kept = tuple(value for value in _probes(dimension) if canonical_json(value) not in refused)
        adapts = kept and (name in open_ended or all(isinstance(value, str) for value in values))
        if not adapts:
            problems.append(f"space.{name}.{dimension.kind}: {', '.join(str(value) for value in values[:5])}: {faults[0]}")
            continue
        notes.append(f"{name}: {', '.join(str(value) for value in values)} left out: {faults[0]}")
        dims[name] = Dimension("choice" if len(kept) > 1 else "fixed", choices=kept, when=when)
    if problems:
        raise space_error(problems, space.where)
    defaults = {
        name: value if dims[name].holds(value) else dims[name].choices[0]
        for name, value in space.defaults.items()
        if name in dims and dims[name].kind != "fixed"
    }
    return replace(space, dims=dims, defaults=defaults, notes=tuple(notes))


def _probes(dimension: Dimension) -> list[Any]:
    if dimension.kind == "choice":
        return list(dimension.choices)
    if dimension.kind == "int" and (dimension.high - dimension.low) // (dimension.step or 1) < _PROBES:
        return list(range(dimension.low, dimension.high + 1, dimension.step or 1))
    return [dimension.low, dimension.high]


def _one_step(space: Space, dims: Mapping[str, Dimension], name: str, value: Any) -> dict[str, Any]:
    """The default configuration with one parameter set, and with the branch opened in which it
    exists.
    """
    forced = {name: value}

    def open_branch(child: str) -> None:
        for parent, values in dims[child].when.items():
            if parent not in forced:
                keeps = parent in space.defaults and canonical_json(space.defaults[parent]) in {canonical_json(item) for item in values}
                forced[parent] = space.defaults[parent] if keeps else values[0]
                open_branch(parent)

    open_branch(name)
    return space.walk(lambda key, _: forced.get(key, space.defaults[key]))


def _repaired(space: Space, refusal: Any, fault: str) -> tuple[Space, str]:
    """Where the default cannot work on these features, take the first single change of an option
    that does.
    """
    for name, dimension in space.dims.items():
        if dimension.kind != "choice":
            continue
        for choice in dimension.choices:
            if isinstance(choice, str) and choice != space.defaults[name] and refusal(_one_step(space, space.dims, name, choice)) is None:
                return replace(
                    space, defaults={**space.defaults, name: choice}
                ), f"trial 0 has {name} {choice} instead of {space.defaults[name]}: {fault}"
    raise space_error([f"defaults: trial 0 cannot work on these features: {fault}"], space.where)
