"""Greedy forward selection with replacement (Caruana et al., 2004, 2006), plain and bagged
(docs/methods.md 4.6).

The pooled answer is the arg-max of a running sum, so one step costs one addition, one arg-max and
one count for every candidate: O(members x items x classes), in blocks that stay in the cache. The
result depends on the set of members, the data and the seed alone, not on the order in which members
stand.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from raysere.base.errors import DataError
from raysere.ensemble.fit.exact_argmax import FixedPoint, Running, Workspace
from raysere.ensemble.fit.objective import Objective

_TIE = 1e-12


@dataclass(frozen=True)
class Candidates:
    """What the members of a library add to the pooled scores.

    Attributes:
        scores: float32 (K, M, N), the class first: contribution of member m to class k of item n, 0
            where it is missing; for a linear pool the probability times the ratio of decision to
            selection prior, for a log pool their logarithm.
        present: bool (M, N).
        label: int (N,).
        group: int (N,) speakers.
        item_weights: float64 (N,) weights of items in the likelihood that breaks ties.
        ids: M names; ties are parted by them, and their order is the order of everything.
        log_pool: scores are logarithms.
        prior: decision prior (K,), the prediction where nobody answers; None: uniform.
        fallback: the class that is answered there (see ``likeliest_class``).
    """

    scores: np.ndarray
    present: np.ndarray
    label: np.ndarray
    group: np.ndarray
    item_weights: np.ndarray
    ids: Sequence[str]
    log_pool: bool = False
    prior: np.ndarray | None = None
    fallback: int = 0


@dataclass(frozen=True)
class Path:
    """One greedy pass: the members in the order they were added, and objective and likelihood after
    each.
    """

    chosen: list[int]
    objective: list[float]
    nll: list[float]
    length: int

    def weights(self, members: int) -> np.ndarray:
        """Share of each member (M,) in the best prefix."""
        return np.bincount(self.chosen[: self.length], minlength=members) / self.length


@dataclass(frozen=True)
class GreedyParams:
    steps: int = 50
    start: int = 3
    patience: int = 10
    gain: float = 1e-4
    bags: int = 20
    prune: float = 0.01
    seed: int = 0


def contributions(logp: np.ndarray, present: np.ndarray, ratio: np.ndarray, *, log_pool: bool) -> np.ndarray:
    """The ``scores`` (K, M, N) of :class:`Candidates` from log-probabilities (M, N, K) and prior
    ratio (K,).
    """
    scores = np.empty((logp.shape[2], *logp.shape[:2]), np.float32)
    factor = (np.log(ratio) if log_pool else np.asarray(ratio)).astype(np.float32)
    for m, (one, here) in enumerate(zip(logp, present)):  # member by member: each is read once
        scores[:, m] = (one + factor if log_pool else np.exp(one) * factor).T
        scores[:, m, ~here] = 0.0
    return scores


def _nll(candidates: Candidates, running: Running, candidate: int | None, weights: np.ndarray) -> float:
    """Weighted negative log-likelihood of the running sum, or of its sum with a candidate;
    ``weights`` (n,) of its items.

    Items that nobody answered have the prior: leaving them out would favour members that answer few
    items.
    """
    sums, size = running.sums, running.size
    if candidate is not None:
        sums, size = sums + running.contribution(candidate), size + running.here(candidate)
    total = sums * running.library.unit
    if candidates.log_pool:
        total /= np.maximum(size, 1)
        total = np.exp(total - total.max(0))
    picked = running.picked(total) / np.maximum(total.sum(0), 1e-300)
    nobody = size == 0
    if nobody.any():
        classes = len(total)
        picked[nobody] = (np.full(classes, 1 / classes) if candidates.prior is None else candidates.prior)[running.label[nobody]]
    return float(np.average(-np.log(np.maximum(picked, 1e-30)), weights=weights))


def greedy_path(candidates: Candidates, objective: Objective, params: GreedyParams, repeats: np.ndarray | None = None) -> Path:
    """One pass over all candidates.

    Args:
        repeats: how often each item counts (N,), from a bootstrap; None: once.

    Returns:
        the Path; its ``length`` is the best prefix (by objective, then likelihood, then the
        shorter). Raises DataError for an empty library.
    """
    members, items = candidates.scores.shape[1:]
    if members == 0 or items == 0:
        raise DataError("There is nothing to select from: the library has no members or no items")
    everyone = np.arange(members)
    return _path(candidates, _library(candidates, everyone, params), everyone, everyone, objective, params, repeats, Workspace())


def _library(candidates: Candidates, members: np.ndarray, params: GreedyParams) -> FixedPoint:
    return FixedPoint.of(candidates.scores, members, candidates.present, candidates.fallback, params.steps + 1, wide=candidates.log_pool)


def _path(
    candidates: Candidates,
    library: FixedPoint,
    unique: np.ndarray,
    half: np.ndarray,
    objective: Objective,
    params: GreedyParams,
    repeats: np.ndarray | None,
    workspace: Workspace,
) -> Path:
    """One pass over the members ``unique[half]``, which stand at ``half`` in ``library``; the path
    numbers them within ``half``.
    """
    running = Running(library, half, candidates.label, repeats, candidates.fallback, workspace)
    weights = candidates.item_weights[running.items]
    weights = weights if repeats is None else weights * repeats[running.items]
    members = len(half)
    ids = [candidates.ids[m] for m in unique[half]]

    def best_of(values: np.ndarray) -> int:
        tied = np.flatnonzero(values >= values.max() - _TIE).tolist()
        return tied[0] if len(tied) == 1 else min(tied, key=lambda m: (_nll(candidates, running, m, weights), ids[m]))

    first = _first(
        objective(running.single_counts()), min(params.start, members), lambda m: (_nll(candidates, running, m, weights), ids[m])
    )
    path = Path([], [], [], 0)
    best, since = -np.inf, 0
    for step in range(params.steps):
        if step < len(first):
            member = first[step]
            running.add(member)
            value = float(objective(running.counts()))
        else:
            values = objective(running.candidate_counts())
            member = best_of(values)
            running.add(member)
            value = float(values[member])
        path.chosen.append(member)
        path.objective.append(value)
        path.nll.append(_nll(candidates, running, None, weights))
        since = 0 if value > best + params.gain else since + 1
        best = max(best, value)
        if since >= params.patience:
            break
    top = max(path.objective)
    prefix = min((i for i in range(len(path.chosen)) if path.objective[i] >= top - _TIE), key=lambda i: (path.nll[i], i))
    return Path(path.chosen, path.objective, path.nll, prefix + 1)


def _first(single: np.ndarray, count: int, tie: Callable[[int], tuple[float, str]]) -> list[int]:
    """The ``count`` best members by single objective; only those that tie are told apart by
    ``tie``, which costs a pass each.
    """
    steps = np.round(single / _TIE)
    chosen: list[int] = []
    for level in np.unique(steps)[::-1]:
        equal = np.flatnonzero(steps == level).tolist()
        chosen += sorted(equal, key=tie) if len(equal) > 1 else equal
        if len(chosen) >= count:
            break
    return chosen[:count]


def greedy_weights(candidates: Candidates, objective: Objective, params: GreedyParams, *, threads: int | None = None) -> np.ndarray:
    """Weights (M,) that sum to 1: of one pass, or the mean over bags, small ones pruned.

    Each bag is a random half of the library and a bootstrap of the speakers. Members whose
    contributions are equal to the bit count as one (the first id), so that copies in a library
    change nothing.

    Args:
        threads: bags that are computed side by side, which changes nothing in the result; None:
            ``thread_count()``.
    """
    unique = _without_copies(candidates)
    members = len(unique)
    library = _library(candidates, unique, params)
    if params.bags == 0 or members == 1:
        weights = _path(candidates, library, unique, np.arange(members), objective, params, None, Workspace()).weights(members)
    else:

        def share(bags: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
            workspace, found = Workspace(), []
            for bag in bags:
                half, repeats = draw_bag(params.seed, bag, members, candidates.group)
                path = _path(candidates, library, unique, half, objective, params, repeats, workspace)
                found.append((half, path.weights(len(half))))
            return found

        side_by_side = min(threads or thread_count(), params.bags)
        shares = [range(first, params.bags, side_by_side) for first in range(side_by_side)]
        with ThreadPoolExecutor(side_by_side) as pool:
            done = [share(shares[0])] if side_by_side == 1 else list(pool.map(share, shares))
        weights = np.zeros(members)
        for bag in range(params.bags):  # added in the order of the bags, so that rounding is that of one thread
            half, part = done[bag % side_by_side][bag // side_by_side]
            weights[half] += part
        weights /= params.bags
    weights = prune(weights, params.prune)
    result = np.zeros(len(candidates.ids))
    result[unique] = weights
    return result


def thread_count() -> int:
    """Threads that this process may use: its cores, or fewer where ``OMP_NUM_THREADS`` says so, as
    Ray does for its workers.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(told))) if told.isdigit() else cores


def _without_copies(candidates: Candidates) -> np.ndarray:
    """Members by id, of those that are equal to the bit only the first."""
    order = sorted(range(len(candidates.ids)), key=lambda m: candidates.ids[m])
    seen: dict[bytes, int] = {}
    return np.array([m for m in order if seen.setdefault(_fingerprint(candidates, m), m) == m], dtype=np.int64)


def draw_bag(seed: int, bag: int, members: int, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half of the members (sorted numbers), and how often each item counts (N,) in a bootstrap of
    the groups.
    """
    names, codes = np.unique(group, return_inverse=True)
    generator = np.random.default_rng([seed, bag])
    half = np.sort(generator.choice(members, (members + 1) // 2, replace=False))
    return half, generator.multinomial(len(names), np.full(len(names), 1 / len(names)))[codes]


def prune(weights: np.ndarray, threshold: float) -> np.ndarray:
    """Drop weights below the threshold and renormalise; of a library whose weights are all below
    it, the largest stay.
    """
    kept = np.where(weights >= min(threshold, weights.max()), weights, 0.0)
    return kept / kept.sum()


def _fingerprint(candidates: Candidates, member: int) -> bytes:
    value = hashlib.sha256(candidates.present[member].tobytes())
    for row in candidates.scores[:, member]:
        value.update(row.tobytes())
    return value.digest()
