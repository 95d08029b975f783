"""Whether a finished trial is still what was recorded: SHA-256 hashes in its ``DONE``, checked once
a command.

``DONE`` has ``files``, the hash of every other file of the folder, and ``sha256``, the hash of its
own content without that key. They tell of a file that was changed, cut short or lost; not of
somebody who may write the folder, since who changes a file can change ``DONE`` too. A trial that
was recorded before there were hashes has neither key, and stays so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysere.base.files import digest, file_hash


def hash_folder(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of every file of a trial's folder but ``DONE``, by name."""
    return {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != "DONE"}


def sealed(done: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``DONE`` with the hash of itself; as it is where ``files`` is None (nobody
    knows what its files were).
    """
    if done["files"] is None:
        return {key: value for key, value in done.items() if key != "files"}
    return {**done, "sha256": _seal(json.loads(json.dumps(done, allow_nan=False)))}


def _seal(done: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in done.items() if key != "sha256"}, 64)


@dataclass(frozen=True)
class Fault:
    """A trial that is not as it was recorded: the ``path`` of one file, and ``what`` is wrong with
    it (``was changed ...``).
    """

    trial: str
    path: Path
    what: str

    @property
    def sentence(self) -> str:
        return f"The file {self.path} {self.what}."


def find_fault(folder: Path, done: Any) -> Fault | None:
    """The first file of a trial that differs from what its ``DONE`` says; None where all is as
    recorded, or was recorded without hashes.

    Raises OSError for a file that is there and cannot be read.
    """
    if not isinstance(done, dict):
        return Fault(folder.name, folder / "DONE", "holds no record of a trial")
    if "files" not in done and "sha256" not in done:
        return None
    files = done.get("files")
    try:
        as_written = isinstance(files, dict) and _seal(done) == done.get("sha256")
    except ValueError:  # a number that is none, a text that is none
        as_written = False
    if not isinstance(files, dict) or not as_written:
        return Fault(folder.name, folder / "DONE", "was changed since the trial was recorded")
    for name, sha256 in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            return Fault(folder.name, path, "is gone")
        if file_hash(path) != sha256:
            return Fault(folder.name, path, "was changed since the trial was recorded")
    return None
