"""Files: canonical JSON, content hashes, and writes that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from raysere.base.bounds import JSON_BYTES, YAML_BYTES, parse_json, parse_yaml, read_bytes
from raysere.base.errors import ConfigError, EnvironmentFault, MissingFileError, machine_fault

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn what is the machine's fault (:func:`raysere.base.errors.machine_fault`) into an error
    that says so; other errors pass.
    """
    try:
        yield
    except Exception as error:
        fault = machine_fault(error, path)
        if fault is None and type(error).__module__.startswith(_SILENT) and _free_bytes(path) < _FULL:
            fault = machine_fault(OSError(errno.ENOSPC, ""), path)
        if fault is None or fault is error:
            raise
        raise fault from error


_SILENT = ("polars", "soundfile")  # some of their errors do not say why a file could not be written
_FULL = 1 << 20  # with less than this free, it was a full disk


def _free_bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        while not path.exists() and path != path.parent:
            path = path.parent
        return shutil.disk_usage(path).free
    return 0


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed over
    ``path``, on failure removed.
    """
    path = Path(path)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary folder; on success it is renamed to ``path`` (which must not exist), on
    failure removed.

    Its files are on the disk before it appears, unless ``flush`` is False (:func:`flush_folder`
    does that later).
    """
    path = Path(path)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir()
        try:
            yield temporary
            if flush:
                flush_folder(temporary)
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def flush_folder(path: Path) -> None:
    """Wait until all files under ``path`` are on the disk."""
    for file in path.rglob("*"):
        if file.is_file():
            _sync(file)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_lock(path: str | os.PathLike[str], *, make: bool = True) -> io.FileIO:
    """Open the file of a lock for ``fcntl.flock``, without a change to what stands in it.

    The folder may be shared, and somebody else may have put a link to a file of ours at this place:
    it is refused, not followed. Folders above may be links. A second name of a file (a hard link)
    cannot be told from the file: write into a lock only where it has one name.

    Args:
        path: of the file; its folder must be there.
        make: make it where it is missing, and open it for writing. False takes it as it is, to be
            read.

    Raises:
        EnvironmentFault: it is a link, a folder, or otherwise not a plain file. FileNotFoundError:
            it is missing and not to be made.
    """
    flags = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY
    kind = "not a plain file"
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # a pipe must not make it wait
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return io.FileIO(descriptor, "r+" if make else "r")
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        kind = "a symbolic link" if os.path.islink(path) else kind
    raise EnvironmentFault(
        f"The file that locks this folder is {kind}",
        where=path,
        remedy="Look who put it there, remove it and run the same command again: raysere makes a file of its own.",
    )


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks: the same value always gives the same text.

    Examples:
        >>> canonical_json({"b": 1, "a": [1.5, None]})
        '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any, length: int = 16) -> str:
    """Hex SHA-256 of bytes, of a text, or of the canonical JSON of anything else, cut to ``length``
    characters.
    """
    if isinstance(value, str):
        value = value.encode()
    elif not isinstance(value, (bytes, bytearray, memoryview)):
        value = canonical_json(value).encode()
    return hashlib.sha256(value).hexdigest()[:length]


def file_hash(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises MissingFileError; ConfigError for what is no JSON, and beyond the bounds of
    :mod:`raysere.base.bounds`.
    """
    return parse_json(read_bytes(path, JSON_BYTES, error=ConfigError), where=path)


def write_yaml(path: str | os.PathLike[str], value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(to_yaml(value), encoding="utf-8")


def to_yaml(value: Any) -> str:
    """YAML text of plain values, keys in their order."""
    return yaml.dump(value, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=120)


def as_yaml(text: str) -> str:
    """``text`` so that YAML reads it back as it is, also as one of ``[a, b]``: bare where that is
    the same, else quoted.
    """
    with contextlib.suppress(yaml.YAMLError, ValueError):
        if text.isprintable() and yaml.safe_load(text) == text and yaml.safe_load(f"[{text}]") == [text]:
            return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=text.isprintable(), width=1 << 20).strip()


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read YAML safely; a syntax error becomes a :class:`ConfigError` with line and column, as does
    what is too deep or too much.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file {path.name!r}", where=path.parent.resolve())
    try:
        text = read_bytes(path, YAML_BYTES, error=ConfigError).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"This is not YAML: {error}", where=path) from error
    return parse_yaml(text, where=path)
