"""Bagged greedy selection and a whole ensemble fit at the size of a challenge: 200 members, 25,000
utterances, 8 classes.

The alternative is the published algorithm of AutoGluon and auto-sklearn (greedy selection with
replacement) written plainly in numpy: at each step the averaged prediction with every candidate is
formed and scored. Both get the same members, the same bootstrap rows, the same metric, the same
start, stop and rules for ties.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._measure import ROUNDS, Row, result, speed

TITLE = "The ensemble"
MEMBERS, ITEMS, CLASSES, SPEAKERS = 200, 25_000, 8, 500


def library(members: int = MEMBERS, items: int = ITEMS, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities float32 (M, N, K), labels and speakers (N,) of made-up members whose errors
    are correlated.

    Utterances are hard for everybody or for nobody, four families of members err alike, and classes
    are of unequal size; the UAR of single members is .25 to .4, as in naturalistic speech.
    """
    generator = np.random.default_rng(0)
    share = np.arange(1, classes + 1) ** -0.8
    share /= share.sum()
    label = generator.choice(classes, items, p=share)
    truth, prior = np.eye(classes, dtype=np.float32)[label], np.log(share).astype(np.float32)
    shared = generator.standard_normal((items, classes), dtype=np.float32)
    families = generator.standard_normal((4, items, classes), dtype=np.float32)
    logp = np.empty((members, items, classes), np.float32)
    for m in range(members):
        own = generator.standard_normal((items, classes), dtype=np.float32)
        z = generator.uniform(0.7, 1.3) * truth + shared + 0.4 * families[m % 4] + generator.uniform(0.4, 0.8) * own + prior
        logp[m] = z - np.log(np.exp(z).sum(1, keepdims=True))
    return logp, label, generator.integers(0, SPEAKERS, items)


def plain_path(predictions: np.ndarray, label: np.ndarray, params, metric, weights: np.ndarray) -> tuple[list[int], int]:
    """The published algorithm: predictions (M, N, K) float64 and ``label`` (N,) of the rows of a
    bag.

    The first ``params.start`` are those with the best scores of their own; equal scores are parted
    by the likelihood under item ``weights``, then by the number of the member; it stops after
    ``params.patience`` steps without a gain.

    Returns:
        the members in the order chosen, and the length of the best prefix.
    """
    members, count, classes = predictions.shape
    rows = np.arange(count)

    def score(mean: np.ndarray) -> float:
        return metric(np.bincount(label * classes + mean.argmax(1), minlength=classes**2).reshape(classes, classes))

    def loss(mean: np.ndarray) -> float:
        return float(np.average(-np.log(mean[rows, label] / mean.sum(1)), weights=weights))

    single = [score(prediction) for prediction in predictions]
    bar = sorted(single)[-params.start] - 1e-12
    first = sorted((m for m in range(members) if single[m] >= bar), key=lambda m: (-round(single[m] * 1e12), loss(predictions[m]), m))
    chosen: list[int] = []
    told: list[tuple[float, float]] = []
    total, best, since = np.zeros((count, classes)), -np.inf, 0
    for step in range(params.steps):
        if step < params.start:
            member = first[step]
        else:
            scores = [score((total + prediction) / (step + 1)) for prediction in predictions]
            tied = [m for m in range(members) if scores[m] >= max(scores) - 1e-12]
            member = tied[0] if len(tied) == 1 else min(tied, key=lambda m: (loss((total + predictions[m]) / (step + 1)), m))
        total += predictions[member]
        chosen.append(member)
        told.append((score(total / (step + 1)), loss(total / (step + 1))))
        since = 0 if told[-1][0] > best + params.gain else since + 1
        best = max(best, told[-1][0])
        if since >= params.patience:
            break
    return chosen, 1 + min((i for i in range(len(told)) if told[i][0] >= best - 1e-12), key=lambda i: (told[i][1], i))


def plain_weights(library, objective, params, bags: int) -> tuple[np.ndarray, list[list[int]]]:
    """Weights (M,) and the members in the order chosen, of each bag, by the published algorithm
    over the same bags.
    """
    from raysere.ensemble.fit.greedy import draw_bag, prune

    members, items = library.scores.shape[1:]
    weights, paths = np.zeros(members), []
    for bag in range(bags):
        half, repeats = draw_bag(params.seed, bag, members, library.group)
        rows = np.repeat(np.arange(items), repeats)
        # float64 and rows that repeat, as a caller of the published one passes them
        predictions = library.scores[:, half][:, :, rows].transpose(1, 2, 0).astype(np.float64, order="C")
        label, item_weights = library.label[rows], library.item_weights[rows]
        chosen, length = plain_path(predictions, label, params, lambda counts: float(objective(counts)), item_weights)
        weights += np.bincount(half[chosen[:length]], minlength=members) / length
        paths.append(half[chosen].tolist())
    return prune(weights / bags, params.prune), paths


def our_paths(library, objective, params, bags: int) -> list[list[int]]:
    """The members that ours chooses, in order, for each bag."""
    from dataclasses import replace

    from raysere.ensemble.fit.greedy import draw_bag, greedy_path

    paths = []
    for bag in range(bags):
        half, repeats = draw_bag(params.seed, bag, len(library.ids), library.group)
        part = replace(library, scores=library.scores[:, half], present=library.present[half], ids=[library.ids[m] for m in half])
        paths.append(half[greedy_path(part, objective, params, repeats).chosen].tolist())
    return paths


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run() -> dict[str, Any]:
    import os
    import resource
    from functools import partial

    from raysere.ensemble.config import EnsembleConfig
    from raysere.ensemble.data.predictions import FitRows, MemberInfo, StackedPredictions
    from raysere.ensemble.fit.greedy import Candidates, GreedyParams, contributions, greedy_weights
    from raysere.ensemble.fit.objective import Objective
    from raysere.ensemble.fit.part import fit_part
    from raysere.training.task import Task

    cores = len(os.sched_getaffinity(0))
    logp, label, speaker = library()
    present = np.ones((MEMBERS, ITEMS), bool)
    ratio = 1 / (CLASSES * np.bincount(label, minlength=CLASSES) / ITEMS)
    names = [f"m{m:03d}" for m in range(MEMBERS)]
    scores = contributions(logp, present, ratio, log_pool=False)
    candidates = Candidates(scores, present, label, speaker, ratio[label], names)
    objective, params = Objective("uar"), GreedyParams()
    bags = params.bags
    expected, paths = plain_weights(candidates, objective, params, bags)
    found, chosen = greedy_weights(candidates, objective, params, threads=1), our_paths(candidates, objective, params, bags)
    same = sum(ours == theirs for ours, theirs in zip(chosen, paths, strict=True))
    checked = (
        f"{same} of {bags} bags choose the same members in the same order ({sum(map(len, paths))} steps); "
        f"largest difference of a final weight {np.abs(found - expected).max():.1g}"
    )
    steps = sum(map(len, paths))
    threads = sorted({1, cores})
    sides = {
        f"{number} thread" + "s" * (number > 1): partial(greedy_weights, candidates, objective, params, threads=number)
        for number in threads
    }
    sides["plain"] = lambda: plain_weights(candidates, objective, params, bags)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            seconds[name].append(timed(sides[name]))
    rows = [
        speed(
            f"bagged greedy selection over {MEMBERS} members x {ITEMS:,} utterances x {CLASSES} classes, {bags} bags, {name}",
            "AutoGluon's published algorithm written plainly in numpy, 1 thread",
            (seconds[name], seconds["plain"]),
            goal=10,
            checked=checked,
            detail={"steps of both": steps},
        )
        for name in sides
        if name != "plain"
    ]

    classes = tuple(f"c{k}" for k in range(CLASSES))
    members = tuple(MemberInfo(name, "run", "audio", "pooled", f"study{m % 4}") for m, name in enumerate(names))
    utterances, nothing = tuple(f"u{n:05d}" for n in range(ITEMS)), np.zeros((MEMBERS, ITEMS, 0), np.float32)
    predictions = StackedPredictions(members, utterances, classes, (), logp, nothing, present, "dev")
    selection = FitRows(predictions, label, np.zeros((ITEMS, 0)), np.char.add("s", speaker.astype(str)), speaker % 5)
    task = Task(kind="categorical", classes=classes, metric="uar")

    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(cores)  # read at each call: the bags of the whole fit use all cores, as they do for a user
    try:
        spent = [timed(lambda: fit_part(selection, task, EnsembleConfig())) for _ in range(ROUNDS)]
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    rows.append(
        Row(
            f"the full ensemble fit (calibration, all bags, pool temperature), {cores} threads",
            "a minute",
            [one / 60 for one in spent],
            unit="of the limit",
            goal=0.5,
            higher=False,
            checked=f"{MEMBERS} members, uncut",
            detail={"seconds": float(np.median(spent))},
        )
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limits = f"""Each step of the selection reads, for every candidate, its contributions to the
        classes that can still win; its time goes to fetching scattered cache lines. The first
        steps, when most classes can still win, cost three times as much as the last. Two threads
        share the memory bus, so the second adds less than the first. The full fit adds some
        seconds of calibration. The peak memory of this process, with the float64 copies of the
        numpy side, was {peak / 1e9:.1f} GB; a library of this size takes {logp.nbytes / 1e9:.2f}
        GB."""
    return result(rows, limits)
