"""Choose trials for a target without reading its labels (docs/methods.md 5.6)."""

from __future__ import annotations

import numpy as np

from raysere.base.errors import DataError
from raysere.ensemble.data.predictions import FitRows
from raysere.ensemble.fit.auto import near_best
from raysere.training.criteria import BETTER, ranked
from raysere.training.metrics import group_confusions, statistic_of
from raysere.training.task import Task

#: The default. Over trials on real speech the score on source speakers goes with the target's
#: (docs/transfer.md); no criterion that looks at the target's clips does as well.
RULE: tuple[str, ...] = ("source_dev",)
#: Of trials near the best on source speakers, the best mean rank over these: the rule drawn up
#: before anything was measured.
MIXED_RULE = ("infomax", "dev", "snd", "class_ami")


def criteria_of_members(selection: FitRows, task: Task) -> dict[str, dict[str, float]]:
    """By id of member:

    ``source_dev`` and what its trial says of the target without labels (``criterion.NAME`` in its
    metrics).
    """
    statistic, found = statistic_of(task.metric), {}
    sums = _source_sums(selection, task)
    for member in selection.predictions.members:
        told = member.record.metrics if member.record is not None else {}
        found[member.id] = {"source_dev": float(statistic(sums[member.id].sum(0)))} | {
            name.removeprefix("criterion."): value for name, value in told.items() if name.removeprefix("criterion.") in BETTER
        }
    return found


def choose_member(selection: FitRows, task: Task, rule: tuple[str, ...] = RULE) -> int:
    """The number of the member that the rule takes.

    ``("source_dev",)`` takes the best on the source. For another rule, members whose source score
    is within one standard error (of the paired difference, over source speakers) of the best are
    ranked by each of its criteria; the best mean rank wins, of equals the one that was trained for
    fewer epochs.

    Raises DataError for a criterion that does not exist.
    """
    if unknown := [name for name in rule if name not in BETTER]:
        raise DataError(f"There is no criterion {unknown[0]!r}", choices=list(BETTER))
    members = selection.predictions.members
    scores, close = near_best(_source_sums(selection, task), statistic_of(task.metric), 1.0, 0)
    if rule == ("source_dev",):
        return int(np.argmax([scores[member.id] for member in members]))
    near = [m for m, member in enumerate(members) if member.id in close]
    told = criteria_of_members(selection, task)
    rank = ranked({members[m].id: told[members[m].id] for m in near}, rule)

    def order(m: int) -> tuple[float, int, int]:
        record = members[m].record
        return rank[members[m].id], record.epochs if record is not None else 0, m

    return min(near, key=order)


def near_members(selection: FitRows, task: Task, errors: float = 1.0) -> list[int]:
    """Numbers of the members whose source score is within ``errors`` standard errors of the best:
    what a mean of them is an ensemble of.
    """
    _, close = near_best(_source_sums(selection, task), statistic_of(task.metric), errors, 0)
    return [number for number, member in enumerate(selection.predictions.members) if member.id in close]


def _source_sums(selection: FitRows, task: Task) -> dict[str, np.ndarray]:
    """By id of member its confusion counts (G, K, K) of development rows by group."""
    rows = selection.take_rows(selection.label >= 0)
    answers = zip(rows.predictions.members, rows.predictions.logp, strict=True)
    return {m.id: group_confusions(rows.label, logp.argmax(1), rows.group, len(task.classes)).astype(np.float64) for m, logp in answers}
