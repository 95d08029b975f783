"""What the C library does with memory that a worker frees."""

from __future__ import annotations

import ctypes


def keep_memory() -> bool:
    """Keep what this process frees instead of handing it back to the system; returns whether the C library can be told so.

    Else every batch pays again for the pages of every intermediate array: a tenth of the time of a WavLM, a quarter of an epoch with
    attention over chunks. For worker processes only: what the largest batch took stays taken.
    """
    trim_threshold, mmap_threshold = -1, -3  # of glibc's mallopt
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(mmap_threshold, 1 << 30)) and bool(mallopt(trim_threshold, (1 << 31) - 1))
