"""A small disk of a test's own (a tmpfs), which it fills to the last page; and limits and rights
that a process gives up for a while.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raysere.base.errors import EnvironmentFault

PAGE = 4096
_FILLER = "filler"
LEVELS = [*range(13), *range(14, 40, 3), *range(44, 160, 16), *range(192, 2048, 128)]  # pages left free


class Disk:
    """A mounted tmpfs: ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def leave(self, pages: int) -> None:
        """Fill it, but for that many pages."""
        self.empty()
        left = shutil.disk_usage(self.folder).free - pages * PAGE
        assert left > 0, "the disk of this test is too small"
        (self.folder / _FILLER).write_bytes(bytes(left))

    def empty(self) -> None:
        (self.folder / _FILLER).unlink(missing_ok=True)

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)

    def files(self) -> dict[str, bytes]:
        """What lies there, hidden files included, but no locks."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in (_FILLER, "lock", ".driver.lock")
        }

    def hidden(self) -> set[str]:
        """The files among them whose name, or that of a folder above, begins with a dot: what
        writers have not finished.
        """
        return {name for name in self.files() if any(part.startswith(".") for part in Path(name).parts)}


@contextlib.contextmanager
def small_disk(folder: Path, options: str = "size=8m") -> Iterator[Disk]:
    """Mount one; tests that need it are skipped, and say so, where nobody may mount."""
    folder.mkdir(parents=True)
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False).returncode
    ):
        pytest.skip("FULL AND READ-ONLY DISKS NOT TESTED: mounting a tmpfs needs root")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fails_until_there_is_room(disk: Disk, write: Callable[[], object], whole: dict[str, bytes] | None = None) -> int:
    """Call ``write`` with ever more pages free until it succeeds; returns how often it failed.

    Each time it must say that the disk is full, leave nothing hidden, and no file that differs from
    that of an undisturbed writer, ``whole`` (by path; None: no comparison). In the end all of
    ``whole`` must be there.
    """
    hidden = disk.hidden()
    for failures, pages in enumerate(LEVELS):
        disk.leave(pages)
        fault = fault_of(write)
        found = disk.files()
        assert disk.hidden() == hidden
        if fault is None:
            disk.empty()
            assert whole is None or found == whole
            return failures
        assert "The disk is full. Where: " in str(fault)
        assert "Free space there or name another folder, then run the same command again" in str(fault)
        assert whole is None or found.items() <= whole.items()
    raise AssertionError("it never succeeded")


def fault_of(function: Callable[[], object]) -> EnvironmentFault | None:
    """The fault of the machine that ends a call; None where it succeeds."""
    try:
        function()
    except EnvironmentFault as fault:
        return fault
    return None


@contextlib.contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """A lower limit of this process, such as ``resource.RLIMIT_NOFILE``."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Not one more file can be opened."""
    probe = os.open("/", os.O_RDONLY)
    os.close(probe)
    with limited(resource.RLIMIT_NOFILE, probe):
        yield


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """As a user with no rights on what root owns."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
