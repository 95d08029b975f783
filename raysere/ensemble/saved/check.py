"""Check the files of a saved ensemble against the hashes in ``ensemble.yaml``.

The last line of ``ensemble.yaml`` is a comment with the hash of all that stands above it; without
that line it is not checked itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysere.base.errors import DataError, MissingFileError
from raysere.base.files import digest, file_hash, read_yaml, to_yaml

_AGAIN = "Save the ensemble again: `raysere evaluate RUN`."


def write_description(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``ensemble.yaml`` with the hashes of the other files, which are there already, and of
    itself.
    """
    named = {key: {"file": name, "sha256": file_hash(folder / name)} for key, name in (("card", "card.md"), ("figures", "evaluation.json"))}
    text = to_yaml({**record, **named})
    (folder / "ensemble.yaml").write_text(f"{text}# sha256 of the lines above: {digest(text, 64)}\n", encoding="utf-8")


def read_description(folder: Path) -> Any:
    """The content of ``ensemble.yaml``.

    Raises DataError for one that was changed since it was written, ConfigError for no YAML.
    """
    path = folder / "ensemble.yaml"
    record = read_yaml(path)
    text, _, last = path.read_text(encoding="utf-8").rpartition("# sha256 of the lines above: ")
    if re.fullmatch(r"[0-9a-f]{64}\n?", last) and digest(text, 64) != last.strip():
        raise DataError(
            "This file was changed since the ensemble was saved",
            where=path,
            remedy=f"{_AGAIN} Or, if you changed it: take its last line out.",
        )
    return record


def checked_files(folder: Path, record: Mapping[str, Any]) -> dict[str, Path]:
    """Member id to the path of its tensors, where all files that ``record`` (the content of
    ensemble.yaml) names are as they were saved.

    Raises:
        MissingFileError: one is gone. DataError: one was changed, or lies outside the folder.
        KeyError, TypeError, ValueError: ``record`` is damaged.
    """
    weights = {entry["id"]: checked_path(folder, entry["weights"], entry["sha256"], (".safetensors",)) for entry in record["members"]}
    for key, suffix in (("card", ".md"), ("figures", ".json")):  # an ensemble of an earlier version lacks them
        if key in record:
            checked_path(folder, record[key]["file"], record[key]["sha256"], (suffix,))
    return weights


def checked_path(folder: Path, name: str, sha256: str, suffixes: tuple[str, ...]) -> Path:
    """The file ``name`` inside ``folder``.

    Raises DataError when it lies outside or was changed, MissingFileError when it is gone.
    """
    root = folder.resolve()
    path = (root / str(name)).resolve()
    if not path.is_relative_to(root) or path.suffix not in suffixes:
        raise DataError(
            f"The ensemble names a file outside its folder: {name}",
            where=folder / "ensemble.yaml",
            remedy="Do not use this ensemble: it was tampered with.",
        )
    if not path.is_file():
        raise MissingFileError(f"A file of the ensemble is missing: {name}", where=folder)
    if file_hash(path) != sha256:
        raise DataError(
            f"A file of the ensemble was changed since it was saved: {name}",
            where=folder,
            remedy=_AGAIN,
        )
    return path


def checked_record(run: Path) -> dict[str, Any]:
    """``ensemble/ensemble.yaml`` of a run, where its files and the run's evaluation.json are as
    they were saved.

    Raises MissingFileError, ConfigError or DataError where one is not.
    """
    folder = run / "ensemble"
    record = read_description(folder)
    try:
        checked_files(folder, record)
        figures = run / "evaluation.json"
        changed = "figures" in record and figures.is_file() and file_hash(figures) != record["figures"]["sha256"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("This ensemble.yaml is damaged", where=folder / "ensemble.yaml", remedy=_AGAIN) from error
    if changed:
        raise DataError(
            "This file was changed since the ensemble was saved, or is of another ensemble",
            where=figures,
            remedy="Evaluate again: `raysere evaluate RUN`.",
        )
    return record
