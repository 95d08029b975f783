"""Data kept in memory between the trials of a process, by device and within a budget.

On a CPU layers are not kept: batches are copied out of the mapped shards, whose pages all processes
of the node share. Least recently used entries leave when the budget is reached; what is larger than
the budget is not kept at all.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raysere.features.rows import LayerSource, Placement, offsets, pack

_DEFAULT_CPU_BYTES = 2 << 30


class _Sized(Protocol):
    @property
    def bytes(self) -> int: ...


@dataclass(frozen=True)
class Packed:
    """``values`` (rows, width) in the store's dtype on the device; ``start`` and ``count`` int64
    (N,) there, 0 rows where absent.
    """

    values: Tensor
    start: Tensor
    count: Tensor

    @property
    def bytes(self) -> int:
        return self.values.numel() * self.values.element_size()


def packed(source: LayerSource, layer: int, placement: Placement, width: int, dtype: np.dtype, device: str) -> Packed:
    """The rows of all utterances of ``placement`` one after the other on the device."""
    values = torch.from_numpy(pack(source, layer, placement, width, dtype)).to(device)
    start, count = (torch.from_numpy(part.astype(np.int64)).to(device) for part in (offsets(placement.rows)[:-1], placement.rows))
    return Packed(values, start, count)


class DeviceCache:
    """A cache by (content, device) under a budget of bytes for each device."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Hashable, str], _Sized] = OrderedDict()
        self._budgets: dict[str, int] = {}
        self._lock = threading.RLock()
        self.memo: OrderedDict[Any, Any] = OrderedDict()  # small derived results (moments), by content

    def set_budget(self, device: str | torch.device, size: int) -> None:
        """Bytes that kept entries may take on ``device`` in this process; what is too much leaves
        at once.
        """
        with self._lock:
            name = _name(device)
            self._budgets[name] = int(size)
            self._make_room(name, 0)

    def budget(self, device: str | torch.device) -> int:
        name = _name(device)
        if name not in self._budgets:
            self._budgets[name] = _default_budget(name)
        return self._budgets[name]

    def used(self, device: str | torch.device) -> int:
        return sum(entry.bytes for key, entry in self._held.items() if key[1] == _name(device))

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self.memo.clear()

    def hold(self, key: Hashable, device: str | torch.device, need: int, make: Callable[[], Any]) -> Any | None:
        """The entry of a key (with its size as ``bytes``), made at need; None when its ``need``
        bytes do not fit the budget.
        """
        name = _name(device)
        with self._lock:
            if (key, name) in self._held:
                self._held.move_to_end((key, name))
                return self._held[key, name]
            if need > self.budget(name):
                return None
            self._make_room(name, need)
            try:
                self._held[key, name] = made = make()
            except torch.cuda.OutOfMemoryError:  # other processes on the card took the room
                return None
            return made

    def layer(
        self, source: LayerSource, token: str, layer: int, placement: Placement, width: int, dtype: np.dtype, device: str | torch.device
    ) -> Packed | None:
        """The layer packed on a device; None on a CPU, where it is mapped, and where it does not
        fit: read it batch by batch then.
        """
        name = _name(device)
        if name == "cpu":
            return None
        need = int(placement.rows.sum()) * width * dtype.itemsize
        return self.hold((token, layer), name, need, lambda: packed(source, layer, placement, width, dtype, name))

    def remember(self, key: Any, make: Any, limit: int = 4096) -> Any:
        """A small result by key, made once."""
        with self._lock:
            if key not in self.memo:
                self.memo[key] = make()
                while len(self.memo) > limit:
                    self.memo.popitem(last=False)
            self.memo.move_to_end(key)
            return self.memo[key]

    def _make_room(self, name: str, need: int) -> None:
        while self.used(name) + need > self.budget(name):
            oldest = next((key for key in self._held if key[1] == name), None)
            if oldest is None:
                return
            del self._held[oldest]


def _name(device: str | torch.device) -> str:
    device = torch.device(device)
    return f"cuda:{torch.cuda.current_device()}" if device.type == "cuda" and device.index is None else str(device)


def _default_budget(name: str) -> int:
    given = os.environ.get("RAYSERE_RESIDENT_GB")
    if given:
        return int(float(given) * (1 << 30))
    if name.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(name))[0] // 2
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return _DEFAULT_CPU_BYTES
    return min(_DEFAULT_CPU_BYTES, free // (2 * (os.cpu_count() or 1)))  # every worker process of the node has such a budget


CACHE = DeviceCache()
