"""Greedy forward selection with replacement (Caruana et al., 2004, 2006), plain and bagged (papers 3.7 step 5).

The pooled answer is the arg-max of a running sum, so one step costs one addition, one arg-max and one count for every
candidate: O(members x items x classes), in blocks that stay in the cache. The result depends on the set of members, the data
and the seed alone, not on the order in which members stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysere.ensemble.objective import Objective, confusion_counts
from raysere.errors import DataError

_BLOCK = 1 << 18  # candidates x items of one pass: 1 MB of float32 for each class
_TIE = 1e-12


@dataclass(frozen=True)
class Candidates:
    """What the members of a library add to the pooled scores.

    Attributes:
        scores: float32 (K, M, N), the class first: contribution of member m to class k of item n, 0 where it is missing;
            for a linear pool the probability times the ratio of decision to selection prior, for a log pool their logarithm.
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

    def part(self, members: np.ndarray, items: np.ndarray) -> Candidates:
        return Candidates(
            np.ascontiguousarray(self.scores[:, members][:, :, items]),
            self.present[np.ix_(members, items)],
            self.label[items],
            self.group[items],
            self.item_weights[items],
            [self.ids[m] for m in members],
            self.log_pool,
            self.prior,
            self.fallback,
        )


@dataclass(frozen=True)
class Path:
    """One greedy pass: the members in the order they were added, and objective and likelihood after each."""

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
    """The ``scores`` (K, M, N) of :class:`Candidates` from log-probabilities (M, N, K) and prior ratio (K,)."""
    scores = np.empty((logp.shape[2], *logp.shape[:2]), np.float32)
    for k, factor in enumerate(ratio):
        values = logp[:, :, k] + np.float32(np.log(factor)) if log_pool else np.exp(logp[:, :, k]) * np.float32(factor)
        scores[k] = np.where(present, values, 0.0)
    return scores


def answers(scores: np.ndarray, running: np.ndarray, answered: np.ndarray, fallback: int) -> np.ndarray:
    """Class (C, N) of each candidate's sum with the running scores (K, N); the first of equal classes.

    ``answered`` bool (C, N): whether the candidate or one of those chosen before it has a prediction; else ``fallback``.
    """
    best = scores[0] + running[0]
    answer = np.zeros(best.shape, np.uint8)
    for k in range(1, len(scores)):
        value = scores[k] + running[k]
        np.copyto(answer, np.uint8(k), where=value > best)
        np.maximum(best, value, out=best)
    np.copyto(answer, np.uint8(fallback), where=~answered)
    return answer


def score_candidates(
    candidates: Candidates, running: np.ndarray, size: np.ndarray, objective: Objective, repeats: np.ndarray | None
) -> np.ndarray:
    """Objective (M,), over all items, of adding each member to ``running`` (K, N), to which ``size`` (N,) members have answered."""
    classes, members, items = candidates.scores.shape
    block = max(1, _BLOCK // max(items, 1))
    result = np.empty(members)
    for first in range(0, members, block):
        here = slice(first, first + block)
        answer = answers(candidates.scores[:, here], running, candidates.present[here] | (size > 0), candidates.fallback)
        result[first : first + block] = objective(confusion_counts(candidates.label, answer, classes, repeats))
    return result


def _nll(candidates: Candidates, running: np.ndarray, size: np.ndarray, weights: np.ndarray) -> float:
    """Weighted negative log-likelihood of the pooled scores (K, N); ``size`` (N,) is how many members answered each item.

    Items that nobody answered have the prior: leaving them out would favour members that answer few items.
    """
    answered = size > 0
    total = running.astype(np.float64)
    if candidates.log_pool:
        total = total / np.maximum(size, 1)
        total = total - total.max(0)
        total = np.exp(total)
    if not answered.all():
        classes = len(running)
        total[:, ~answered] = (np.full(classes, 1 / classes) if candidates.prior is None else candidates.prior)[:, None]
    picked = total[candidates.label, np.arange(total.shape[1])] / np.maximum(total.sum(0), 1e-300)
    return float(np.average(-np.log(np.maximum(picked, 1e-30)), weights=weights))


def greedy_path(candidates: Candidates, objective: Objective, params: GreedyParams, repeats: np.ndarray | None = None) -> Path:
    """One pass over all candidates.

    Args:
        repeats: how often each item counts (N,), from a bootstrap; None: once.

    Returns:
        the Path; its ``length`` is the best prefix (by objective, then likelihood, then the shorter). Raises DataError for
        an empty library.
    """
    classes, members, items = candidates.scores.shape
    if members == 0 or items == 0:
        raise DataError("There is nothing to select from: the library has no members or no items")
    weights = candidates.item_weights if repeats is None else candidates.item_weights * repeats
    running, size = np.zeros((classes, items), np.float32), np.zeros(items, np.int64)

    def best_of(values: np.ndarray, allowed: Sequence[int]) -> int:
        top = max(values[m] for m in allowed)
        tied = [m for m in allowed if values[m] >= top - _TIE]
        if len(tied) == 1:
            return tied[0]
        return min(
            tied,
            key=lambda m: (_nll(candidates, running + candidates.scores[:, m], size + candidates.present[m], weights), candidates.ids[m]),
        )

    nothing, none_yet = np.zeros_like(running), np.zeros_like(size)
    single = score_candidates(candidates, nothing, none_yet, objective, repeats)
    single_nll = [_nll(candidates, nothing + candidates.scores[:, m], none_yet + candidates.present[m], weights) for m in range(members)]
    order = sorted(range(members), key=lambda m: (-round(float(single[m]) / _TIE), single_nll[m], candidates.ids[m]))
    path = Path([], [], [], 0)
    best, since = -np.inf, 0
    for step in range(params.steps):
        if step < min(params.start, members):
            member = order[step]
            value = (
                score_candidates(candidates.part(np.array([member]), np.arange(items)), running, size, objective, repeats)[0]
                if step
                else single[member]
            )
        else:
            values = score_candidates(candidates, running, size, objective, repeats)
            member = best_of(values, range(members))
            value = values[member]
        running += candidates.scores[:, member]
        size += candidates.present[member]
        path.chosen.append(member)
        path.objective.append(float(value))
        path.nll.append(_nll(candidates, running, size, weights))
        since = 0 if value > best + params.gain else since + 1
        best = max(best, float(value))
        if since >= params.patience:
            break
    top = max(path.objective)
    prefix = min((i for i in range(len(path.chosen)) if path.objective[i] >= top - _TIE), key=lambda i: (path.nll[i], i))
    return Path(path.chosen, path.objective, path.nll, prefix + 1)


def greedy_weights(candidates: Candidates, objective: Objective, params: GreedyParams) -> np.ndarray:
    """Weights (M,) that sum to 1: of one pass, or the mean over bags, small ones pruned.

    Each bag is a random half of the library and a bootstrap of the speakers. Members whose contributions are equal to the bit
    count as one (the first id), so that copies in a library change nothing.
    """
    order = np.array(sorted(range(len(candidates.ids)), key=lambda m: candidates.ids[m]), dtype=np.int64)
    seen: dict[bytes, int] = {}
    unique = np.array([m for m in order if seen.setdefault(_fingerprint(candidates, m), int(m)) == m], dtype=np.int64)
    everything = np.arange(candidates.scores.shape[2])
    library = candidates.part(unique, everything)
    members = len(unique)
    if params.bags == 0 or members == 1:
        weights = greedy_path(library, objective, params).weights(members)
    else:
        weights = np.zeros(members)
        names, group = np.unique(candidates.group, return_inverse=True)
        for bag in range(params.bags):
            generator = np.random.default_rng([params.seed, bag])
            half = np.sort(generator.choice(members, (members + 1) // 2, replace=False))
            repeats = generator.multinomial(len(names), np.full(len(names), 1 / len(names)))[group]
            rows = np.flatnonzero(repeats)
            path = greedy_path(library.part(half, rows), objective, params, repeats[rows].astype(np.float64))
            weights[half] += path.weights(len(half))
        weights /= params.bags
    weights = prune(weights, params.prune)
    result = np.zeros(len(candidates.ids))
    result[unique] = weights
    return result


def prune(weights: np.ndarray, threshold: float) -> np.ndarray:
    """Drop weights below the threshold and renormalise; of a library whose weights are all below it, the largest stay."""
    kept = np.where(weights >= min(threshold, weights.max()), weights, 0.0)
    return kept / kept.sum()


def _fingerprint(candidates: Candidates, member: int) -> bytes:
    import hashlib

    value = hashlib.sha256(np.ascontiguousarray(candidates.scores[:, member]).tobytes())
    value.update(candidates.present[member].tobytes())
    return value.digest()
