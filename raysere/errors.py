"""Errors that a user can act on: what is wrong, where, and what to do about it.

Every error has the standard exception that it is as a second base, so that callers who do not know raysere can still
catch ``ValueError``, ``KeyError`` or ``OSError``. ``exit_code`` is what the command line ends with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaysereError(Exception):
    """Base of all errors that raysere raises on purpose.

    Args:
        what: the fault, in one sentence.
        where: file, key, row or object in which it was found.
        remedy: what the user can do.
        choices: the valid choices, where there is a closed list of them.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None, choices: Iterable[object] | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        self.choices = None if choices is None else [str(choice) for choice in choices]
        super().__init__(self.message)

    @property
    def message(self) -> str:
        listing = "\n" in self.what.strip()  # several problems, a line each
        parts = [self.what.rstrip() + "\n" if listing else self.what.rstrip().rstrip(".") + "."]
        if self.where:
            parts.append(f"Where: {self.where}.")
        if self.choices is not None:
            parts.append("Valid choices: " + (", ".join(self.choices) if self.choices else "none are defined yet") + ".")
        if self.remedy:
            parts.append(self.remedy)
        return (parts[0] + " ".join(parts[1:])) if listing else " ".join(parts)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message

    def __reduce__(self):  # errors cross process borders in Ray; keyword arguments must survive
        return _rebuild, (type(self), self.what, self.where, self.remedy, self.choices)


def _rebuild(kind: type[RaysereError], what: str, where: str | None, remedy: str | None, choices: list[str] | None) -> RaysereError:
    error = kind.__new__(kind)
    RaysereError.__init__(error, what, where=where, remedy=remedy, choices=choices)
    return error


class ConfigError(RaysereError, ValueError):
    """An experiment, a search space or an option that cannot be right."""


class UnknownNameError(RaysereError, KeyError):
    """A name that is not in a closed list; the message lists the list and the nearest match.

    Examples:
        >>> str(UnknownNameError("method", "poled", ["pooled"]))
        "Unknown method 'poled'. Valid choices: pooled. Did you mean 'pooled'?"
    """

    def __init__(self, kind: str, name: object, choices: Iterable[object], *, where: object = None) -> None:
        names = [str(choice) for choice in choices]
        close = difflib.get_close_matches(str(name), names, n=1)
        super().__init__(
            f"Unknown {kind} {str(name)!r}", where=where, choices=names, remedy=f"Did you mean {close[0]!r}?" if close else None
        )


class DataError(RaysereError, ValueError):
    """Input data that cannot be used as it is (tables, audio, labels, splits)."""


class MissingFileError(RaysereError, FileNotFoundError):
    """A file or folder that should be there and is not."""


class EnvironmentFault(RaysereError, OSError):
    """Disk, memory, device, network or an installation that does not work."""

    exit_code = 3


class InfeasibleTrial(RaysereError, RuntimeError):
    """A configuration that cannot run on these features or this machine: recorded as such, never an error of the run."""
