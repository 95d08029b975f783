"""Corpora whose file names hold all labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from raysere.corpora.adapters.base import audio_files

_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 512


def named_files(root: Path, pattern: re.Pattern[str], note: Callable[[str], None], corpus: str) -> Iterator[tuple[Path, re.Match[str]]]:
    """Audio files below ``root`` whose stem is ``pattern``, as (path relative to ``root``, match).

    Others are counted in one note.
    """
    strangers: list[Path] = []
    for file in audio_files(root):
        match = pattern.fullmatch(file.stem)
        if match:
            yield file.relative_to(root), match
        else:
            strangers.append(file.relative_to(root))
    if strangers:
        note(
            f"{corpus}: {len(strangers)} audio files were left out because their names are not this corpus's (the first is {strangers[0]})."
        )


def is_pointer(file: Path) -> bool:
    """Whether this is what git leaves in place of a large file that was not fetched (a git-lfs
    pointer, about 130 bytes of text).
    """
    try:
        if file.stat().st_size > _POINTER_BYTES:
            return False
        with file.open("rb") as handle:
            return handle.read(len(_POINTER)) == _POINTER
    except OSError:
        return False
