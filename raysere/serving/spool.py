"""Temporary files of requests: in a folder of the replica, bounded, and removed with the request.

Files are made here and only opened elsewhere. So a process that works on after its request has
ended, because nobody can stop it, finds no file to write into, or one without a name that goes with
the process. The folder is locked (flock) while the replica lives, however it ends: a folder that
can be locked was left by one that died, and the next replica on the machine removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from raysere.base.errors import EnvironmentFault
from raysere.serving.faults import Fault

PREFIX = "raysere-spool-"
FULL = (errno.ENOSPC, errno.EDQUOT)

_LOG = logging.getLogger(__name__)
_KEPT_FREE, _KEPT_SHARE = 256 << 20, 0.05  # of the disk, for everybody else: bytes, or this share of it where that is less
_RETRY_S = 2.0
_TRIES = 8  # at a folder of its own, where others that start now take it for one that was left


def spool_full() -> Fault:
    """Why a request is not taken now that fits at another time."""
    return Fault(
        503, "spool_full", "The server has no room for more audio", remedy="Try again after the seconds of Retry-After.", retry_s=_RETRY_S
    )


class Spool:
    """A new folder among the temporary files that only this user reads; what replicas left that
    died is removed first.

    Args:
        limit: bytes of all requests together, as they will be once they are written; also of one
            request alone.

    Raises:
        EnvironmentFault: the folder of temporary files cannot be written, or its file system has no
            locks.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        _sweep()
        self.folder, self._lock_of_folder = _own_folder()
        self.lock = threading.RLock()  # of all below, and of what requests hold: processes tell of their work in threads
        self.sizes: dict[Path, int] = {}
        self._low = False

    @contextlib.contextmanager
    def request(self) -> Iterator[Kept]:
        """The files of one request, for the length of the block."""
        kept = Kept(self)
        try:
            yield kept
        finally:
            kept.end()

    def room(self, size: int) -> bool:
        """Whether ``size`` bytes more fit into the bound, and leave the disk some space."""
        if sum(self.sizes.values()) + size > self.limit:
            return False
        disk = os.statvfs(self.folder)
        spare = disk.f_bavail * disk.f_frsize - min(_KEPT_FREE, _KEPT_SHARE * disk.f_blocks * disk.f_frsize)
        low = spare - sum(promised - _on_disk(path) for path, promised in self.sizes.items()) < size
        if low and not self._low:
            _LOG.warning("the disk of %s is full: requests get 503 until there is space", self.folder)
        self._low = low
        return not low

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock_of_folder)


class Kept:
    """Files of one request; :meth:`Spool.request` makes it."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._paths: set[Path] = set()
        self._working = 0
        self._ended = False

    def files(self, sizes: Iterable[int]) -> list[Path]:
        """New empty files that will have these sizes in bytes. All are counted before the first is
        made.

        Raises Fault: 413 where this request alone needs more than the bound, 503 where there is no
        room for it now.
        """
        wanted, spool = list(sizes), self._spool
        with spool.lock:
            alone = sum(spool.sizes[path] for path in self._paths) + sum(wanted)
            if alone > spool.limit:
                raise Fault(
                    413,
                    "audio_too_large",
                    f"The audio needs {alone / (1 << 20):.0f} MiB once it is decoded, at most {spool.limit / (1 << 20):.0f} MiB are taken",
                    remedy="Send fewer clips at once, shorter ones, or with fewer channels.",
                )
            if wanted and not spool.room(sum(wanted)):
                raise spool_full()
            made = []
            for size in wanted:
                path = spool.folder / uuid.uuid4().hex
                with full_disk():
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o600))
                spool.sizes[path] = size
                self._paths.add(path)
                made.append(path)
        return made

    def until(self, work: Future[Any]) -> None:
        """The bytes of the request count until ``work`` is done, also where the request ends
        before: it may still be writing.
        """
        with self._spool.lock:
            self._working += 1
        work.add_done_callback(self._done)

    def drop(self, paths: Iterable[Path]) -> None:
        """Remove files that no work needs any more."""
        for path in paths:
            _remove(path)
            with self._spool.lock:
                self._paths.discard(path)
                self._spool.sizes.pop(path, None)

    def end(self) -> None:
        """Remove the files, whatever still works on them."""
        for path in self._paths:
            _remove(path)
        with self._spool.lock:
            self._ended = True
            self._settle()

    def _done(self, work: Future[Any]) -> None:
        with self._spool.lock:
            self._working -= 1
            self._settle()

    def _settle(self) -> None:
        if self._ended and not self._working:
            self.drop(list(self._paths))


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Within the block a full disk is Fault 503: no fault of the audio, and none of the server's
    code.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise spool_full() from error
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # where the disk fails, the bytes are given back all the same
        path.unlink()


def _on_disk(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _own_folder() -> tuple[Path, int]:
    """A new folder and the descriptor that locks it.

    No process started later has the descriptor: it closes when one is executed.
    """
    try:
        for _ in range(_TRIES):
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # new, mode 0700: no link, and nobody else's
            with contextlib.suppress(BlockingIOError, FileNotFoundError):  # another one that starts now is removing it
                return folder, _locked(folder)
    except OSError as error:
        raise EnvironmentFault(
            f"Uploads have no place: {error.strerror or error}",
            where=f"the folder of temporary files, {tempfile.gettempdir()}",
            remedy="Set TMPDIR to a folder on a disk of this machine that can be written.",
        ) from error
    raise EnvironmentFault("Uploads have no place: too many replicas start at once", where=tempfile.gettempdir(), remedy="Try again.")


def _sweep() -> None:
    """Remove the folders of replicas that have died.

    Those of other users and of the living are left alone.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            held = _locked(folder)
        except OSError:
            continue
        _LOG.warning("removing %s, left by a replica that died", folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _locked(folder: Path) -> int:
    """Descriptor of this user's folder, locked until it is closed. Raises OSError where it is not
    there, a link, held, or not this user's.

    It is the folder that is locked and not a file in it: services that tidy the temporary files
    leave such a folder alone, too.
    """
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(held)
        if not os.path.samestat(found, os.lstat(folder)) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "not a folder of this user", str(folder))
    except BaseException:
        os.close(held)
        raise
    return held
