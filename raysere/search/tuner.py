"""The search itself: one Ray Tune run for all lanes, with reused actors; the ledger says what is
done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raysere.base.cluster import PRELOADED, check_shared, cluster_address
from raysere.base.errors import ConfigError, EnvironmentFault, machine_fault
from raysere.base.files import explain_write_errors
from raysere.base.progress import Progress, warn
from raysere.search.board import STAGE, Board, SearchSummary
from raysere.search.file_check import FileCheck
from raysere.search.leaderboard import leaderboard
from raysere.search.ledger import Ledger
from raysere.search.study import StudySpec, save_study
from raysere.search.watch.tensorboard import TrialEvents

_RESTARTS = 2  # of Tune itself, should it fall over between trials (an idle worker that dies can do that)
_SWITCHES = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_LOGGERS = ("ray.tune", "ray.train", "ray.air", "ray._private")


def run_search(
    run_dir: str | os.PathLike[str],
    studies: list[StudySpec],
    *,
    resources: Mapping[str, float] | None = None,
    max_concurrent: int | None = None,
    progress: Progress | None = None,
    retry_errors: bool = False,
    check: FileCheck | None = None,
) -> SearchSummary:
    """Run every trial of every study that the ledger of ``run_dir`` does not hold yet.

    Can be killed at any instant and called again: finished trials never run again, each number runs
    exactly once, and with one trial at a time the search goes on exactly as it would have without
    the interruption. Needs ``manifest.parquet`` and ``splits.parquet`` in ``run_dir``, the features
    in the store, and a connected Ray (``raysere.base.cluster.start_ray``).

    Args:
        run_dir: a folder that all workers reach under this path.
        studies: their lanes share the workers; lanes advance side by side.
        resources: of one trial, ``{"cpu": 1, "gpu": 0.25}``.
        max_concurrent: trials at once; default: as many as the machine holds, on a cluster as many
            as it holds at any time.
        retry_errors: run trials again that ended with an unexpected error.
        check: of the command that this is part of. A finished trial whose files changed is set
            aside, said, and trained anew.

    Raises:
        KeyboardInterrupt: after Ctrl-C, with a run that can be resumed.
        ConfigError: a study that differs from the one that the run was started with.
        EnvironmentFault: no room for one trial on this machine, a full disk.
        RaysereError: a worker cannot load the data, or all trials of a study failed.
    """
    run_dir = Path(run_dir).resolve()
    trial = {"cpu": float((resources or {}).get("cpu", 1)), "gpu": float((resources or {}).get("gpu", 0))}
    if twice := sorted({study.name for study in studies if sum(other.name == study.name for other in studies) > 1}):
        raise ConfigError(f"Two studies are called {twice[0]!r}")
    if not studies:
        raise ConfigError("The experiment has no search")
    slots = capacity(trial) if max_concurrent is None else max_concurrent
    growing = max_concurrent is None and cluster_address() is not None
    if slots < 1:
        raise EnvironmentFault(
            f"No machine here can hold one trial ({trial['cpu']:g} CPU, {trial['gpu']:g} GPU)",
            where=_machines(),
            remedy="Ask for less under `trial:` in the experiment, or name `concurrent` when the cluster is to grow.",
        )
    check_shared(run_dir)
    with explain_write_errors(run_dir):
        for study in studies:
            save_study(run_dir, study)
        shutil.rmtree(run_dir / "search" / "_tune", ignore_errors=True)
    progress = progress or Progress(quiet=True)
    check = check or FileCheck()
    check.set_aside(Ledger(run_dir))
    board = Board(run_dir, studies, progress, trial, check)
    board.ledger.sweep()
    if retry_errors and board.ledger.forget_errors({study.name for study in studies}):
        board.reload()
        board.rebuild()
    total = sum(study.trials * len(study.lanes) for study in studies)
    progress.start(STAGE, total=total, done=total - board.unfinished, at_once=max(1, min(slots, board.unfinished)))
    notes: list[str] = []
    try:
        board.catch_up()
        if board.unfinished:
            for restart in range(_RESTARTS + 1):
                try:
                    _tune(board, trial, min(slots, board.unfinished), growing=growing)
                    break
                except Exception as error:
                    if machine_fault(error) is not None:
                        board.fail(error)
                    if board.failure is not None:
                        break  # it is raised below
                    if restart == _RESTARTS:
                        raise
                    board.rebuild()
                    board.given_up.clear()
    finally:
        notes = board.close()
        board.ledger.sweep()
        try:
            leaderboard(run_dir)
        except EnvironmentFault as fault:
            board.fail(fault)
    if board.failure is not None:
        raise board.failure
    if board.unfinished:
        raise KeyboardInterrupt
    board.check_studies()
    return board.summary(notes)


def complete_search(run_dir: str | os.PathLike[str], studies: list[StudySpec]) -> None:
    """Write what a start that ended after its last trial did not come to write: TensorBoard events,
    the leaderboard. Needs no Ray.

    Raises EnvironmentFault where the run folder cannot be written.
    """
    run_dir = Path(run_dir)
    events, specs = TrialEvents(run_dir), {study.name: study for study in studies}
    for record in Ledger(run_dir).trials():
        if record.study in specs and not events.has(record):
            try:
                events.write(record, specs[record.study])
            except Exception as error:
                if fault := machine_fault(error):
                    raise fault from error
                warn(f"TensorBoard will not show the trial {record.trial}: {error}")  # as in a search: no fault of the run
    leaderboard(run_dir)


def capacity(trial: Mapping[str, float]) -> int:
    """How many trials of that shape the cluster holds now; a trial does not spread over nodes."""
    import ray

    total = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        rooms = [
            math.floor(node["Resources"].get(name, 0.0) / need + 1e-6)
            for name, need in (("CPU", trial["cpu"]), ("GPU", trial["gpu"]))
            if need > 0
        ]
        total += min(rooms, default=1)
    return total


def _machines() -> str:
    import ray

    return (
        "; ".join(
            f"{node['Resources'].get('CPU', 0):g} CPU, {node['Resources'].get('GPU', 0):g} GPU" for node in ray.nodes() if node["Alive"]
        )
        or "no machine"
    )


def _tune(board: Board, trial: Mapping[str, float], slots: int, *, growing: bool = False) -> None:
    """One run of Tune over what is still to do.

    Where the cluster may grow, as many trials as it holds now are proposed ahead and wait for a
    place: nodes that join find work, and an autoscaler sees that there is some. Tune gives a
    waiting trial to whichever worker is free first, so a node that joins is used where trials take
    longer than the start of a worker (some seconds).
    """
    with _quiet(), _signals_restored(), _environment({**_SWITCHES, "TUNE_MAX_PENDING_TRIALS_PG": str(slots)}), _idle_workers_taken():
        from ray import tune
        from ray.tune import TuneConfig, Tuner

        from raysere.search.actor import LedgerCallback, StopOnFailure, TrialActor
        from raysere.search.searcher import LaneHalving, LaneSearcher

        searcher = LaneSearcher(board, slots)
        callback = LedgerCallback(board, searcher)
        trainable = tune.with_resources(TrialActor, {name: amount for name, amount in trial.items() if amount > 0})
        tuner = Tuner(
            trainable,
            param_space={"run_dir": str(board.run_dir)},
            tune_config=TuneConfig(
                search_alg=searcher,
                scheduler=LaneHalving(searcher),
                num_samples=-1,
                reuse_actors=True,
                max_concurrent_trials=None if growing else slots,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_folder,
            ),
            run_config=tune.RunConfig(
                name="_tune",  # no study can be called so
                storage_path=str(board.run_dir / "search"),
                verbose=0,
                callbacks=[callback],
                stop=StopOnFailure(board),
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        finally:
            callback.flush()


def _trial_name(trial: Any) -> str:
    return json.loads(trial.config["job"])["trial"]


def _trial_folder(trial: Any) -> str:
    job = json.loads(trial.config["job"])
    return f"{job['trial']}.{job['attempt']}"


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _idle_workers_taken() -> Iterator[None]:
    """Let Tune's actors run in the workers that a local Ray has made ready.

    Tune gives every actor environment variables, and Ray starts a new process for an actor whose
    environment differs from that of its idle workers: several seconds of imports. The local Ray was
    started with the one variable that matters here (see :mod:`raysere.base.cluster`); on a cluster,
    and in a Ray that has no such tables, Tune does as it always does.
    """
    from ray.tune.execution import class_cache

    names = [name for name in ("DEFAULT_ENV_VARS", "ENV_VARS_TO_PROPAGATE") if hasattr(class_cache, name)]
    before = {name: getattr(class_cache, name) for name in names}
    if cluster_address() is None and os.environ.get(PRELOADED):
        for name in names:
            setattr(class_cache, name, type(before[name])())
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(class_cache, name, value)


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """Tune leaves its own handlers behind, and a later Ctrl-C would do nothing."""
    names = [name for name in ("SIGINT", "SIGUSR1") if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    before = {name: signal.getsignal(getattr(signal, name)) for name in names} if main else {}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tune's own banners and tables would break the one progress display; RAYSERE_DEBUG shows them."""
    if os.environ.get("RAYSERE_DEBUG"):
        yield
        return
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
