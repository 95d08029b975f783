"""Layers kept on a device: one packed copy per process and device, shared by all trials that the process runs.

A layer of one shard on a CPU is mapped, not copied. Least recently used layers leave when the budget is reached; a layer
larger than the budget is not kept at all, and its rows are read from the mapped shards batch by batch.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysere.features.rows import LayerSource, Placement, offsets, pack

_DEFAULT_CPU_BYTES = 2 << 30


@dataclass(frozen=True)
class Packed:
    """``values`` (rows, width) in the store's dtype on the device; ``start`` and ``count`` int64 (N,) there, 0 rows where absent."""

    values: Tensor
    start: Tensor
    count: Tensor
    mapped: bool

    @property
    def bytes(self) -> int:
        return 0 if self.mapped else self.values.numel() * self.values.element_size()


class Residency:
    """A cache of packed layers by (content, layer, device) under a budget of bytes for each device."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, int, str], Packed] = OrderedDict()
        self._budgets: dict[str, int] = {}
        self._lock = threading.RLock()
        self.memo: OrderedDict[Any, Any] = OrderedDict()  # small derived results (moments), by content

    def set_budget(self, device: str | torch.device, size: int) -> None:
        """Bytes that packed layers may take on ``device`` in this process; what is too much leaves at once."""
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
        return sum(packed.bytes for key, packed in self._held.items() if key[2] == _name(device))

    def clear(self) -> None:
        with self._lock:
            self._held.clear()
            self.memo.clear()

    def get(
        self, source: LayerSource, token: str, layer: int, placement: Placement, width: int, dtype: np.dtype, device: str | torch.device
    ) -> Packed | None:
        """The packed layer, built at need; None when it does not fit the budget."""
        name = _name(device)
        key = (token, layer, name)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            shards = np.unique(placement.shard[placement.present])
            single = name == "cpu" and len(shards) == 1
            need = 0 if single else int(placement.rows.sum()) * width * dtype.itemsize
            if need > self.budget(name):
                return None
            self._make_room(name, need)
            if single:
                values, start = torch.from_numpy(source.array(int(shards[0]), layer)), np.where(placement.present, placement.first, 0)
            else:
                values, start = torch.from_numpy(pack(source, layer, placement, width, dtype)), offsets(placement.rows)[:-1]
            try:
                packed = Packed(
                    values.to(name),
                    torch.from_numpy(np.ascontiguousarray(start)).to(name),
                    torch.from_numpy(placement.rows.astype(np.int64)).to(name),
                    single,
                )
            except torch.cuda.OutOfMemoryError:  # other processes on the card took the room: read batch by batch
                return None
            self._held[key] = packed
            return packed

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
            oldest = next((key for key, packed in self._held.items() if key[2] == name and packed.bytes), None)
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


RESIDENT = Residency()
