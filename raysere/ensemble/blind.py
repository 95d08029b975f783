"""Choosing a trial for a target whose labels nobody reads (papers_crosslingual 0.4)."""

from __future__ import annotations

import numpy as np

from raysere.ensemble.library import Selection
from raysere.errors import DataError
from raysere.training.criteria import BETTER, ranked
from raysere.training.metrics import group_confusions, statistic_of
from raysere.training.task import Task

#: The default: among trials near the best on source speakers, the best mean rank over these. [OURS]
RULE = ("infomax", "dev", "snd", "class_ami")
_DRAWS = 500


def criteria_of_members(selection: Selection, task: Task) -> dict[str, dict[str, float]]:
    """By id of member: ``source_dev`` and what its trial says of the target without labels (``criterion.NAME`` in its metrics)."""
    scores = _source_scores(selection, task)[0]
    found = {}
    for member, score in zip(selection.predictions.members, scores, strict=True):
        told = member.record.metrics if member.record is not None else {}
        found[member.id] = {"source_dev": float(score)} | {
            name.removeprefix("criterion."): value for name, value in told.items() if name.removeprefix("criterion.") in BETTER
        }
    return found


def choose_member(selection: Selection, task: Task, rule: tuple[str, ...] = RULE) -> int:
    """The number of the member that the rule takes.

    Members whose source score is within one standard error (of the paired difference, over source speakers) of the best are ranked by each
    criterion of ``rule``; the best mean rank wins, of equals the one that was trained for fewer epochs. ``("source_dev",)`` takes the best
    on the source.

    Raises DataError for a criterion that does not exist.
    """
    if unknown := [name for name in rule if name not in BETTER]:
        raise DataError(f"There is no criterion {unknown[0]!r}", choices=list(BETTER))
    members = selection.predictions.members
    scores, sums = _source_scores(selection, task)
    best = int(scores.argmax())
    if rule == ("source_dev",):
        return best
    groups = sums.shape[1]
    draws = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=_DRAWS).astype(np.float64)
    statistic = statistic_of(task.metric)

    def drawn(m: int) -> np.ndarray:
        return statistic((draws @ sums[m].reshape(groups, -1)).reshape(_DRAWS, *sums.shape[2:]))

    top = drawn(best)
    near = [m for m in range(len(members)) if m == best or scores[best] - scores[m] <= np.nanstd(top - drawn(m))]
    told = criteria_of_members(selection, task)
    rank = ranked({members[m].id: told[members[m].id] for m in near}, rule)

    def order(m: int) -> tuple[float, int, int]:
        record = members[m].record
        return rank[members[m].id], record.epochs if record is not None else 0, m

    return min(near, key=order)


def _source_scores(selection: Selection, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The metric (M,) of each member on development rows, and its sums (M, G, K, K) by group."""
    rows = selection.part(selection.label >= 0)
    sums = np.stack([group_confusions(rows.label, logp.argmax(1), rows.group, len(task.classes)) for logp in rows.predictions.logp])
    return np.array([float(statistic_of(task.metric)(one.sum(0))) for one in sums]), sums.astype(np.float64)
