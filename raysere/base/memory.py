"""Memory of a worker process: settings of the allocator, and the peak resident size."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path


def keep_memory() -> bool:
    """Keep what this process frees instead of handing it back to the system; returns whether the C
    library can be told so.

    Else every batch pays again for the pages of every intermediate array: a tenth of the time of a
    WavLM, a quarter of an epoch with attention over chunks. For worker processes only: what the
    largest batch took stays taken.
    """
    trim_threshold, mmap_threshold = -1, -3  # of glibc's mallopt
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(mmap_threshold, 1 << 30)) and bool(mallopt(trim_threshold, (1 << 31) - 1))


def forget_peak() -> None:
    """Let :func:`peak_bytes` count from now on, where the kernel can be told so."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """The most that this process has had in memory (its resident set, shared pages included); None
    where the system does not say.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return None
