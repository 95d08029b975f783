"""Errors that a user can act on: what is wrong, where, and what to do about it.

Every error has the standard exception that it is as a second base, so that callers who do not know
raysere can still catch ``ValueError``, ``KeyError`` or ``OSError``. ``exit_code`` is what the
command line ends with.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
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
    """A configuration that cannot run on these features or this machine: recorded as such, never an
    error of the run.
    """


_DISK = "Free space there or name another folder"
_RIGHTS = "Give this user the right to read and write there, or name another folder"
_STORAGE = "Look at the disk or the network mount (`dmesg`, `mount`)"
_OPEN = "Raise the limit of open files (`ulimit -n`), or run fewer trials at once (`trial.concurrent`)"
_MEMORY = "Run fewer trials at once (`trial.concurrent`) or end other programs"
_THREADS = -1  # no error of the system: what Python says in words
#: What an error number says of the machine, and what helps. Numbers that are not here may be
#: anybody's fault.
_MACHINE = {
    errno.ENOSPC: ("The disk is full", _DISK),
    errno.EDQUOT: ("The disk quota is used up", _DISK),
    errno.EFBIG: ("A file is larger than may be written here", "Raise the limit (`ulimit -f`), or name another folder"),
    errno.EACCES: ("No permission to read or write", _RIGHTS),
    errno.EPERM: ("No permission to read or write", _RIGHTS),
    errno.EROFS: ("The file system is read-only", _RIGHTS),
    errno.EIO: ("The disk fails (input/output error)", _STORAGE),
    errno.ESTALE: ("The network mount lost this folder (stale file handle)", _STORAGE),
    errno.ENOTCONN: ("The network mount does not answer", _STORAGE),
    errno.ETIMEDOUT: ("The network mount does not answer", _STORAGE),
    errno.ENOLCK: ("The file system gives no locks", _STORAGE),
    errno.EMFILE: ("Too many files are open", _OPEN),
    errno.ENFILE: ("Too many files are open", _OPEN),
    errno.ENOMEM: ("The memory of this machine is used up", _MEMORY),
    _THREADS: ("No further thread or process can be started", "Raise the limit (`ulimit -u`), or run fewer trials at once"),
}
for _name, _what in (("EREMOTEIO", "The network mount fails (remote input/output error)"), ("EUCLEAN", "The file system is damaged")):
    if _name in vars(errno):  # Linux alone has them
        _MACHINE[getattr(errno, _name)] = (_what, _STORAGE)
_FILE = re.compile(r"\[Errno \d+\] [^:\n]+: '([^'\n]+)'")
_NUMBER = re.compile(r"(?:\[Errno |\[errno |os error )(\d+)")
MEMORY_IS_LOW = "node running low on memory"  # with these words Ray's memory monitor ends a worker
#: Texts of libraries that keep the number to themselves: numpy, SQLite, Ray (its disk, its object
#: store, its memory monitor).
_TEXTS = {
    errno.ENOSPC: re.compile(r"\d+ requested and \d+ written|database or disk is full|OutOfDiskError|[Ll]ocal disk is full"),
    errno.ENOMEM: re.compile(rf"ObjectStoreFullError|{MEMORY_IS_LOW}"),
    _THREADS: re.compile(r"can't start new thread"),
}
_BY_NUMBER = {errno.ENOTCONN, errno.ETIMEDOUT, _THREADS}  # their words stand in errors of the network, too


_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the card or off it: of Python and numpy (MemoryError) or of
    torch (RuntimeError).
    """
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None)


def machine_fault(error: BaseException | str, where: object = None) -> EnvironmentFault | None:
    """The one place that decides whether disk, memory or permission is at fault, and not the data
    or a configuration.

    Args:
        error: what was raised, by Python or by a library that tells the system's error in its text;
            or such a text.
        where: file or folder; default: :func:`named_file`.

    Returns:
        The error to raise instead; None where ``error`` tells of something else. A RaysereError is
        what it says it is.

    Examples:
        >>> machine_fault(RuntimeError("I/O error: No space left on device (os error 28)"), "runs/emodb").what
        'The disk is full'
    """
    if isinstance(error, EnvironmentFault):
        return error
    number = _machine_number(error)
    if number is None:
        return None
    what, remedy = _MACHINE[number]
    where = named_file(error) if where is None else where
    return EnvironmentFault(what, where=where, remedy=f"{remedy}, then run the same command again: finished work is kept.")


def named_file(error: BaseException | str) -> str | None:
    """The file that an error of the system names, in its attribute or in its text; None where it
    names none.
    """
    found = _FILE.search(str(error))
    return getattr(error, "filename", None) or (found[1] if found else None)


def _machine_number(error: BaseException | str | None) -> int | None:
    if error is None or isinstance(error, RaysereError):
        return None
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _MACHINE else None
    text = str(error)
    for number in (int(found) for found in _NUMBER.findall(text)):
        if number in _MACHINE:
            return number
    for number, pattern in _TEXTS.items():
        if pattern.search(text):
            return number
    for number in _MACHINE:
        if number not in _BY_NUMBER and os.strerror(number) in text:
            return number
    return _machine_number(error.__cause__) if isinstance(error, BaseException) else None
