"""Divide groups into parts so that each part has its share of each class: a greedy start and a
local search.
"""

from __future__ import annotations

import numpy as np

_VIOLATION = 1e3  # a broken requirement outweighs any imbalance
_MOVABLE = 300  # groups that the local search may move: those that hold most of a class
_SWAPPABLE = 60
_CELLS = 4_000_000  # bounds the memory of one sweep over all moves
_STARTS = 4


def assign(counts: np.ndarray, shares: np.ndarray, training: np.ndarray, rng: np.random.Generator, *, carriers: int = 1) -> np.ndarray:
    """Assign G groups to K parts.

    Args:
        counts: int (G, C), items of each class in each group; every class has items.
        shares: float (K,), the wanted share of each part; sums to 1.
        training: 0/1 (R, K): row r names the parts that are trained on together. Each such union
            should hold every class.
        rng: source of all random choices; the same state gives the same answer.
        carriers: how many groups of each class a training union should hold at least (2 where it is
            divided again).

    Returns:
        int64 (G,), the part of each group. No part is empty where G >= K. Requirements that cannot
        be met are left broken: check the result.
    """
    problem = _Problem(counts, shares, training, carriers)
    best, lowest = None, np.inf
    for _ in range(_STARTS):
        parts = problem.improve(problem.start(rng))
        cost = float(problem.cost(*problem.state(parts)))
        if cost < lowest - 1e-12:
            best, lowest = parts, cost
    assert best is not None
    return best


class _Problem:
    def __init__(self, counts: np.ndarray, shares: np.ndarray, training: np.ndarray, carriers: int) -> None:
        self.groups, self.parts, self.training, self.carriers = len(counts), len(shares), training.astype(np.float64), carriers
        size = counts.sum(1, keepdims=True)
        # one more column weighs a group by its size, so that parts are equally long whatever the
        # classes
        self.weights = np.concatenate([counts / counts.sum(0), size / size.sum()], 1)
        self.presence = np.concatenate([counts > 0, np.ones((self.groups, 1), bool)], 1).astype(np.float64)
        self.target = shares[:, None] * np.ones(self.weights.shape[1])

    def start(self, rng: np.random.Generator) -> np.ndarray:
        """Heaviest groups first (with some noise, so that seeds differ), each to the part that
        lacks most of what it has.
        """
        parts = np.zeros(self.groups, np.int64)
        lacking = self.target.copy()
        preference = rng.permutation(self.parts)
        for group in np.argsort(-self.weights.max(1) * rng.uniform(0.8, 1.25, self.groups), kind="stable"):
            gain = (lacking * self.weights[group]).sum(1)  # the drop of the squared distance to the target, up to what all parts share
            part = preference[np.argmax(gain[preference])]
            parts[group] = part
            lacking[part] -= self.weights[group]
        return parts

    def state(self, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.eye(self.parts)[parts].T
        return chosen @ self.weights, chosen @ self.presence

    def cost(self, weights: np.ndarray, presence: np.ndarray) -> np.ndarray:
        """Cost of (..., K, C + 1) states: squared distance to the target, and the requirements that
        are broken.
        """
        distance = np.square(weights - self.target).sum((-2, -1))
        empty = (presence[..., -1] < 0.5).sum(-1)
        short = np.clip(self.carriers - self.training @ presence[..., :-1], 0, None).sum((-2, -1))
        return distance + _VIOLATION * (empty + short)

    def improve(self, parts: np.ndarray) -> np.ndarray:
        """The best single move or swap, again and again, until none helps."""
        parts = parts.copy()
        most = max(2, min(_MOVABLE, _CELLS // (self.parts * self.weights.shape[1] * self.parts)))
        movable = np.sort(np.argsort(-self.weights.max(1), kind="stable")[:most])
        moves = [(group, part) for group in movable for part in range(self.parts)]
        group_of, part_of = np.array(moves).T
        some = movable[:_SWAPPABLE] if len(movable) > _SWAPPABLE else movable
        left, right = (some[index] for index in np.triu_indices(len(some), 1))
        weights, presence = self.state(parts)
        cost = float(self.cost(weights, presence))
        for _ in range(10 * len(movable)):
            best, change = cost - 1e-9, None
            for first, to, second, back in ((group_of, part_of, None, None), (left, parts[right], right, parts[left])):
                costs = self._try(weights, presence, parts, first, to, second, back)
                if len(costs) and costs.min() < best:
                    index = int(costs.argmin())
                    best = float(costs[index])
                    change = [(first[index], to[index])] + ([] if second is None or back is None else [(second[index], back[index])])
            if change is None:
                break
            for group, part in change:
                parts[group] = part
            weights, presence = self.state(parts)
            cost = float(self.cost(weights, presence))
        return parts

    def _try(
        self,
        weights: np.ndarray,
        presence: np.ndarray,
        parts: np.ndarray,
        first: np.ndarray,
        to: np.ndarray,
        second: np.ndarray | None,
        back: np.ndarray | None,
    ) -> np.ndarray:
        """Costs of moving group ``first[i]`` to part ``to[i]`` (and ``second[i]`` to ``back[i]``),
        each change alone.
        """
        index = np.arange(len(first))
        states = []
        for now, values in ((weights, self.weights), (presence, self.presence)):
            state = np.broadcast_to(now, (len(first), *now.shape)).copy()
            for group, part in ((first, to), (second, back)):
                if group is not None:
                    state[index, parts[group]] -= values[group]
                    state[index, part] += values[group]
            states.append(state)
        return self.cost(*states)
