"""The lock of a run folder, and cleaning after a killed driver."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raysere.base.errors import ConfigError
from raysere.base.files import explain_write_errors, open_lock

_LOCK_TRIES = 3


@contextmanager
def only_driver(folder: Path) -> Iterator[None]:
    """Hold the run: a second driver on one run folder is refused.

    The lock goes with its process, however that ends.
    """
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = open_lock(folder / ".driver.lock")
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.1)  # `raysere status` may be looking
    else:
        handle.close()
        raise ConfigError(
            "Another raysere works on this run already",
            where=folder,
            remedy=f"Wait for it; `raysere status {folder}` says how far it is.",
        )
    try:
        _sweep(folder)
        yield
    finally:
        _sweep(folder)  # workers of a killed start may have outlived the first
        handle.close()


def is_held(folder: Path) -> bool:
    """Whether a living process holds the run."""
    try:
        with open_lock(folder / ".driver.lock", make=False) as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


def _sweep(folder: Path) -> None:
    """Remove what a killed start left half written. Only for the one driver of a run folder."""
    for pattern in (".*.tmp", "search/*/.*.tmp", "search/*/*/.*.tmp", "ensemble/.*.tmp"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
