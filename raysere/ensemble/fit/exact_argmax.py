"""Exact answers of many candidate sums, computed only for classes that can still win.

Contributions are whole numbers of a unit of about 2^-21 of the largest, so sums are exact and do
not depend on their order. The low bits of a sum hold its class, the first class highest: the
largest of the sums of an item is then the answer and names it, with equal sums parted as everywhere
else.

A class that trails the leading one by more than any candidate could make up cannot be the answer,
whichever candidate is added. Such classes are left out, and so are items that only one class is
left for; the larger the ensemble, the fewer are left. Nothing is approximated. Items are stored by
how close their best classes are, and the classes of an item by their mean contribution, so that
what is still looked at lies close together in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_BLOCK = 1 << 15  # sums of one pass: what stays in the cache


@dataclass(frozen=True)
class FixedPoint:
    """Contributions of M members as whole numbers, items and their classes in an order of their
    own.

    Attributes:
        values: int32 or int64 (M, K, N), multiples of ``1 << bits``. unit: what 1 is worth. bits:
            low bits that are free for a class.
        order: the item (N,) at each place. classes: (K, N), the class that stands there.
        low, high: (K, N), the least and the largest contribution of any member.
        present: bool (M, N). alone: (M, N), the code of each member's own answer. A code is
            ``(1 << bits) - 1 - class``.
    """

    values: np.ndarray
    unit: float
    bits: int
    order: np.ndarray
    classes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    present: np.ndarray
    alone: np.ndarray

    @classmethod
    def of(
        cls, scores: np.ndarray, members: np.ndarray, present: np.ndarray, fallback: int, terms: int, *, wide: bool = False
    ) -> FixedPoint:
        """Round float32 ``scores`` (K, M, N) of some ``members``; sums of ``terms`` of them fit.

        ``wide``: 64 bits in any case.
        """
        count, _, items = scores.shape
        bits = max(count - 1, 1).bit_length()
        last = (1 << bits) - 1
        largest = max(float(scores.max()), -float(scores.min()), 1e-30)
        room = math.frexp(largest * terms * (1 + 2.0**-16))[1]  # largest * terms < 2 ** room, with what rounding may add
        narrow = not wide and 31 - bits - room + math.log2(largest) >= 20
        kind, digits = (np.int32, 31 - bits - room) if narrow else (np.int64, min(63 - bits - room, 40))
        factor = (np.float32 if narrow else np.float64)(2.0**digits)

        mean = scores.sum(1)
        classes = np.argsort(-mean, axis=0, kind="stable")
        best = np.sort(mean, axis=0)
        order = np.argsort(best[-1] - best[-2] if count > 1 else best[-1], kind="stable")
        classes = classes[:, order]
        index = classes * items + order
        codes = (last - classes).astype(kind)
        values = np.empty((len(members), count, items), kind)
        alone = np.empty((len(members), items), np.min_scalar_type(last))
        low, high = np.full((count, items), np.iinfo(kind).max, kind), np.full((count, items), np.iinfo(kind).min, kind)
        present = present[np.ix_(members, order)]
        for place, member in enumerate(members):
            whole = np.rint(scores[:, member] * factor).astype(kind) << bits
            value = np.take(whole, index, out=values[place], mode="clip")
            np.minimum(low, value, out=low)
            np.maximum(high, value, out=high)
            answer = (value + codes).max(0) & last
            alone[place] = np.where(present[place], answer, last - fallback)
        return cls(values, 2.0 ** -(digits + bits), bits, order, classes, low, high, present, alone)


class Workspace:
    """Memory that is used again by one bag after the other: fresh pages for each would cost as much
    as the sums.
    """

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
        count = math.prod(shape)
        flat = self._kept.get(name)
        if flat is None or flat.size < count or flat.dtype != kind:
            flat = self._kept[name] = np.empty(count, kind)
        return flat[:count].reshape(shape)


@dataclass(frozen=True)
class _Group:
    """``items`` (n,) that have L contenders each; ``place`` (L, n) is where these stand in the flat
    sums; ``late``: nobody has answered.
    """

    items: np.ndarray
    place: np.ndarray
    late: bool


class Running:
    """The sum of the members chosen so far, over some items, and the answers of its sum with every
    candidate.

    Args:
        library: all members; ``members`` numbers those that are candidates.
        label: int (N,) of all items, in the order of the predictions. repeats: int (N,), how often
            each counts; None: once.
        fallback: the class that is answered where nobody answers.
    """

    def __init__(
        self, library: FixedPoint, members: np.ndarray, label: np.ndarray, repeats: np.ndarray | None, fallback: int, workspace: Workspace
    ) -> None:
        self.library, self.members, self.workspace = library, members, workspace
        places = np.arange(len(library.order)) if repeats is None else np.flatnonzero(repeats[library.order])
        self.places = places
        self.items = library.order[places]
        self.label = label[self.items]
        kind, count = library.values.dtype, len(places)
        self.last, self.fallback = (1 << library.bits) - 1, fallback
        classes = library.classes[:, places]
        self.codes = (self.last - classes).astype(kind)
        self._along = np.arange(count)
        self._slots = np.argsort(classes, axis=0) * count + self._along  # where the class (K,) of an item stands in the flat sums
        self._picked = self._slots[self.label, self._along]
        self.low, self.high = library.low[:, places], library.high[:, places]
        self.sums = np.zeros(classes.shape, kind)
        self.size = np.zeros(count, np.int64)
        # items that count alike are counted together: the cell of an item is its level of repeats,
        # its label, and its code
        self._levels, level = np.unique(np.ones(count) if repeats is None else repeats[self.items], return_inverse=True)
        self._cells = (level * len(classes) + self.label) << library.bits
        self._bins = (len(self._levels) * len(classes)) << library.bits

    def contribution(self, number: int) -> np.ndarray:
        """(K, n) of candidate ``number``."""
        return np.take(self.library.values[self.members[number]], self.places, axis=1)

    def here(self, number: int) -> np.ndarray:
        """Whether candidate ``number`` answers (n,)."""
        return self.library.present[self.members[number], self.places]

    def add(self, number: int) -> None:
        self.sums += self.contribution(number)
        self.size += self.here(number)

    def picked(self, table: np.ndarray) -> np.ndarray:
        """The entries (n,) of the label in ``table`` (K, n)."""
        return np.take(table, self._picked)

    def counts(self) -> np.ndarray:
        """Confusion counts (K, K) of the running sum itself."""
        codes = (self.sums + self.codes).max(0) & self.last
        codes[self.size == 0] = self.last - self.fallback
        return self._table(np.bincount(self._cells + codes, minlength=self._bins)[None])[0]

    def single_counts(self) -> np.ndarray:
        """Confusion counts (M, K, K) of every candidate alone."""
        cells = (self._cells + self.library.alone[member, self.places] for member in self.members)
        return self._table(np.stack([np.bincount(cell, minlength=self._bins) for cell in cells]))

    def candidate_counts(self) -> np.ndarray:
        """Confusion counts (M, K, K) of the sum with every candidate."""
        top = (self.sums + self.codes).max(0)
        lead = top & self.last
        reach = self.high - np.take(self.low, self._slots[self.last - lead, self._along])
        contends = (top - lead) - self.sums <= reach
        nobody = self.size == 0
        width = contends.sum(0)
        settled = (width == 1) & ~nobody
        total = np.repeat(np.bincount((self._cells + lead)[settled], minlength=self._bins)[None], len(self.members), axis=0)
        groups = [
            self._group(np.flatnonzero((width == number) & (nobody == late)), contends, int(number), late)
            for late in (False, True)
            for number in np.unique(width[nobody == late])
            if number > 1 or late
        ]
        if groups:
            gathered, start = self._gather(np.concatenate([group.place.ravel() for group in groups])), 0
            for group in groups:
                self._count(group, gathered[:, start : start + group.place.size], total)
                start += group.place.size
        return self._table(total)

    def _group(self, items: np.ndarray, contends: np.ndarray, width: int, late: bool) -> _Group:
        slots = np.nonzero(contends[:, items].T)[1].reshape(len(items), width).T
        return _Group(items, slots * len(self.places) + items, late)

    def _gather(self, place: np.ndarray) -> np.ndarray:
        """The candidates' contributions (M, p) at places (p,) of the flat sums."""
        slot, item = np.divmod(place, len(self.places))
        index = slot * self.library.values.shape[2] + self.places[item]
        gathered = self.workspace.array("gathered", (len(self.members), len(index)), self.sums.dtype)
        for row, member in zip(gathered, self.members):
            np.take(self.library.values[member], index, out=row, mode="clip")
        return gathered

    def _count(self, group: _Group, gathered: np.ndarray, total: np.ndarray) -> None:
        """Add the answers to the items of a group to ``total`` (M, bins); ``gathered`` (M, L * n)
        contributions to its contenders.
        """
        width, count = group.place.shape
        running = np.take(self.sums, group.place) + np.take(self.codes, group.place)
        kind = self.sums.dtype
        block = max(1, _BLOCK // count)
        cells = self._cells[group.items] + np.arange(min(block, len(total)))[:, None] * self._bins
        for first in range(0, len(total), block):
            columns = gathered[first : first + block]
            shape = (len(columns), count)
            best, other = self.workspace.array("best", shape, kind), self.workspace.array("other", shape, kind)
            np.add(columns[:, :count], running[0], out=best)
            for slot in range(1, width):
                np.add(columns[:, slot * count : (slot + 1) * count], running[slot], out=other)
                np.maximum(best, other, out=best)
            best &= self.last
            if group.late:
                answers = self.library.present[np.ix_(self.members[first : first + block], self.places[group.items])]
                np.copyto(best, self.last - self.fallback, where=~answers)
            found = np.bincount((best + cells[: len(columns)]).ravel(), minlength=len(columns) * self._bins)
            total[first : first + block] += found.reshape(len(columns), self._bins)

    def _table(self, counts: np.ndarray) -> np.ndarray:
        """From cells (M, bins) to weighted counts of classes (M, K, K) float64."""
        classes = len(self.codes)
        table = counts.reshape(len(counts), len(self._levels), classes, self.last + 1)[..., ::-1][..., :classes]
        return np.tensordot(table.astype(np.float64), self._levels.astype(np.float64), axes=(1, 0))
