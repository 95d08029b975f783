"""The state of a run, from its files alone."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysere.base.progress import Stage, read_stage
from raysere.pipeline.lock import is_held
from raysere.pipeline.verbs import open_run
from raysere.search.board import STAGE
from raysere.search.ledger import Ledger, Record
from raysere.search.study import read_study


def run_status(run: str | os.PathLike[str]) -> dict[str, Any]:
    """State of a run as plain values, from its files alone.

    Args:
        run: folder of the run, or its name below ``runs``.

    Returns:
        ``running``: whether a living process holds the run. ``stage`` (of a running one): ``name``,
        ``done``, ``total``, ``at_once``, ``seconds`` since it began, ``left_s``, the estimated seconds
        to its end. ``stopped_in`` (of another one): ``name``, ``done`` and ``total`` of the extraction
        in which the last start ended, if it did. ``finished`` and ``planned``: trials. ``studies``: the
        same for each study, with ``best`` and ``mean_seconds`` of a trial.

    Raises:
        MissingFileError: there is no such run.

    Example:
        >>> raysere.status("runs/emodb")["running"]  # doctest: +SKIP
    """
    folder = open_run(run)
    specs = [read_study(folder, path.parent.name) for path in sorted(folder.glob("search/*/study.json"))]
    planned = {spec.name: spec.trials * len(spec.lanes) for spec in specs}
    trials: defaultdict[str, list[Record]] = defaultdict(list)
    for record in Ledger(folder).trials():
        trials[record.study].append(record)
    running = is_held(folder)
    studies = {name: _study(trials[name], planned.get(name, 0)) for name in [*planned, *sorted(set(trials) - set(planned))]}
    return {
        "format": "raysere.pipeline.status/1",
        "run": str(folder),
        "running": running,
        "stage": _stage(folder, trials, planned) if running else None,
        "stopped_in": None if running else _stopped_in(folder),
        "finished": sum(map(len, trials.values())),
        "planned": sum(planned.values()),
        "studies": studies,
        "evaluated": (folder / "evaluation.json").is_file(),
        "report": str(folder / "report.html") if (folder / "report.html").is_file() else None,
    }


def _study(records: Sequence[Record], planned: int) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for record in records:
        counts[record.status] = counts.get(record.status, 0) + 1
    return {
        "planned": planned,
        "status": counts,
        "best": max((record.score for record in records if record.score is not None), default=None),
        "mean_seconds": sum(record.seconds for record in records) / len(records) if records else None,
    }


def _stage(folder: Path, trials: Mapping[str, Sequence[Record]], planned: Mapping[str, int]) -> dict[str, Any] | None:
    stage = read_stage(folder)
    if stage is None:
        return None
    left = stage.left_s
    if stage.name == STAGE:
        first = stage.started + (stage.since or 0.0)
        fresh = [record.seconds for records in trials.values() for record in records if _ended(record) > first]
        seconds = {study: [record.seconds for record in records] for study, records in trials.items()}
        left = search_left_s(seconds, planned, stage, fresh)
    return {
        "name": stage.name,
        "done": stage.done,
        "total": stage.total,
        "at_once": stage.at_once,
        "seconds": round(stage.elapsed, 1),
        "left_s": None if left is None else round(left, 1),
    }


def _stopped_in(folder: Path) -> dict[str, Any] | None:
    stage = read_stage(folder)
    if stage is None or stage.name == STAGE or not stage.total:  # trials tell how far a search is; the ensemble has no count
        return None
    return {"name": stage.name, "done": stage.done, "total": stage.total}


def _ended(record: Record) -> float:
    return (record.folder / "DONE").stat().st_mtime


def search_left_s(seconds: Mapping[str, Sequence[float]], planned: Mapping[str, int], stage: Stage, fresh: Sequence[float]) -> float | None:
    """Seconds to the end of a search: what is left of each study times its mean trial, over how
    many trials go on side by side.

    Args:
        seconds: of each finished trial, by study; a study without one is taken to be like the mean
            of all.
        planned: trials by study. fresh: seconds of the trials that ended after the first one of
            this start.

    Side by side is measured once every place has had two trials: the sum of ``fresh`` by the time
    in which they ended, which also knows what the driver and the sampler cost; before that it is
    ``stage.at_once``. None where nothing is left, or no trial took any time yet.
    """
    known = [value for values in seconds.values() for value in values]
    if not sum(known):
        return None
    overall = sum(known) / len(known)
    work = 0.0
    for study, count in planned.items():
        mine = seconds.get(study) or []
        work += max(0, count - len(mine)) * (sum(mine) / len(mine) if mine else overall)
    if not work:
        return None
    elapsed = stage.elapsed - (stage.since or 0.0)
    measured = sum(fresh) / elapsed if elapsed > 0 and len(fresh) >= 2 * stage.at_once else 0.0
    return work / (min(measured, stage.at_once) or stage.at_once)
