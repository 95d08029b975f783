"""Backbones by name, one file for each family.

A name is ``FAMILY[:ARGUMENT][?OPTION=VALUE&...]``: ``acoustic``, ``hf:./wavlm?window=clip``,
``table:vectors.parquet``.

A family is one object with two functions, ``describe(argument, **options) -> BackboneInfo`` (reads
no weights) and ``open(argument, *, device, **options) -> Backbone``; a class with these as static
methods will do. Other packages announce theirs under the entry-point group ``raysere.backbones``.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, Protocol

from raysere.base.errors import ConfigError, EnvironmentFault
from raysere.base.registry import Registry
from raysere.features.backbone import Backbone, BackboneInfo

BACKBONES = Registry(
    "backbone",
    "raysere.backbones",
    {
        "acoustic": "raysere.features.backbones.acoustic:Acoustic",
        "hf": "raysere.features.backbones.hf:HuggingFace",
        "hashed": "raysere.features.backbones.hashed_text:HashedText",
        "opensmile": "raysere.features.backbones.opensmile:OpenSmile",
        "table": "raysere.features.backbones.table:Table",
    },
)

_OPTIONS = re.compile(r"\?(\w+=[^?&=]*(?:&\w+=[^?&=]*)*)$")


class Family(Protocol):
    """What a registered backbone family offers."""

    def describe(self, argument: str | None, **options: Any) -> BackboneInfo: ...

    def open(self, argument: str | None, *, device: str = "cpu", **options: Any) -> Backbone: ...


def describe_backbone(name: str, **options: Any) -> BackboneInfo:
    """What the named backbone is, without loading weights.

    Args:
        name: see the module's text; options behind ``?`` count as if given as keywords.
        options: options of the family; one that is None counts as not given.

    Raises:
        UnknownNameError: no such family. ConfigError: a wrong argument or option. MissingFileError:
            no such folder or file.
        EnvironmentFault: a model that is neither on this machine nor within reach, or a package
            that is not installed.
    """
    family, argument, options = _parse(name, options)
    return family.describe(argument, **options)


def open_backbone(name: str, *, device: str = "cpu", **options: Any) -> Backbone:
    """Open the named backbone on a device (``cpu``, ``cuda``, ``cuda:1``).

    Arguments and errors: see :func:`describe_backbone`.
    """
    family, argument, options = _parse(name, options)
    return family.open(argument, device=check_device(device), **options)


def check_device(device: str) -> str:
    """The device, if torch can use it.

    Raises ConfigError: not a device. EnvironmentFault: not on this machine.
    """
    if device == "cpu":
        return device
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"{device!r} is not a device", choices=["cpu", "cuda", "cuda:NUMBER", "mps"]) from error
    works = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, False)
    number = torch.device(device).index or 0
    if not works or (kind == "cuda" and number >= torch.cuda.device_count()):
        raise EnvironmentFault(f"The device {device!r} is not there", remedy="Name 'cpu', or check 'raysere doctor'.")
    return device


def _parse(name: str, options: dict[str, Any]) -> tuple[Family, str | None, dict[str, Any]]:
    given = {key: value for key, value in options.items() if value is not None}
    stem = name
    if match := _OPTIONS.search(name):
        stem = name[: match.start()]
        for part in match.group(1).split("&"):
            key, _, value = part.partition("=")
            if key in given and str(given[key]) != value:
                raise ConfigError(f"The option {key!r} is given twice: {value!r} and {given[key]!r}", where=name)
            given[key] = value
    head, colon, argument = stem.partition(":")
    family = BACKBONES.get(head, where=name if head != name else None)
    valid = [key for key, parameter in inspect.signature(family.describe).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for key in given:
        if key not in valid and not _takes_any(family):
            raise ConfigError(f"The backbone {head!r} has no option {key!r}", where=name, choices=valid)
    return family, (argument if colon else None), given


def _takes_any(family: Family) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(family.describe).parameters.values())


def no_argument(family: str, argument: str | None) -> None:
    """For families without an argument: ConfigError where one is given."""
    if argument:
        raise ConfigError(f"The backbone {family!r} takes no argument after a colon", where=f"{family}:{argument}")
