"""Registries of plug-ins (methods, corpora, backbones): built-ins by name, other packages by entry
point.

Built-ins are named by ``module:attribute`` and imported on first use, so that listing them costs
nothing.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from raysere.base.errors import ConfigError, UnknownNameError


class Registry:
    """Names to objects.

    Args:
        kind: what the objects are, as a user would call it ("method").
        group: entry-point group in which other packages announce theirs ("raysere.methods").
        builtin: name to ``"module:attribute"``.
    """

    def __init__(self, kind: str, group: str, builtin: dict[str, str]) -> None:
        self.kind, self.group = kind, group
        self._targets = dict(builtin)
        self._objects: dict[str, Any] = {}
        self._scanned = False

    def register(self, name: str, value: Any) -> Any:
        """Add an object by hand (tests, notebooks).

        Raises ConfigError when the name is taken by another one.
        """
        if name in self.names() and self._objects.get(name) is not value:
            raise ConfigError(f"The {self.kind} {name!r} is registered already")
        self._objects[name] = value
        return value

    def names(self) -> list[str]:
        if not self._scanned:
            self._scanned = True
            for point in entry_points(group=self.group):
                if point.name in self._targets and self._targets[point.name] != point.value:
                    raise ConfigError(
                        f"Two packages offer the {self.kind} {point.name!r}", where=point.value, remedy="Uninstall one of them."
                    )
                self._targets[point.name] = point.value
        return sorted({*self._targets, *self._objects})

    def get(self, name: str, *, where: object = None) -> Any:
        """The object of that name. Raises UnknownNameError with the list of names."""
        if name not in self.names():
            raise UnknownNameError(self.kind, name, self.names(), where=where)
        if name not in self._objects:
            module, _, attribute = self._targets[name].partition(":")
            self._objects[name] = getattr(importlib.import_module(module), attribute)
        return self._objects[name]
