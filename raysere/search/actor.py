"""What Tune holds: the worker's Trainable, and the driver's callback that puts finished trials into
the ledger.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback, Stopper, Trainable

from raysere.base.errors import MEMORY_IS_LOW, machine_fault, named_file
from raysere.base.memory import keep_memory
from raysere.search.trial import TrialRun

if TYPE_CHECKING:
    from raysere.search.board import Board
    from raysere.search.searcher import LaneSearcher


class TrialActor(Trainable):
    """Runs trials one after the other in one process; a step trains to the next rung or to the end,
    so few results travel.
    """

    def setup(self, config: dict[str, Any]) -> None:
        keep_memory()
        self.run = TrialRun(Path(config["run_dir"]), json.loads(config["job"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return self.run.advance()


class LedgerCallback(Callback):
    """Records a trial when Tune is done with it, whether it ended by itself, was stopped, or its
    process died for the last time.

    A record is written, and the next configuration asked for, one step of Tune after the trial's
    end: by then its worker has the next trial already, and does not wait for the disk or for the
    sampler.
    """

    def __init__(self, board: Board, searcher: LaneSearcher) -> None:
        self.board, self.searcher = board, searcher
        self._proposals: dict[str, Any] = {}
        self._fresh: list[tuple[Any, dict[str, Any]]] = []  # ended in this step of Tune
        self._waiting: list[tuple[Any, dict[str, Any]]] = []  # ended in the step before

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._proposals[trial.trial_id] = self.searcher.live.get(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        proposal = self._proposals.pop(trial.trial_id, None)
        if proposal is not None:
            self._fresh.append((proposal, trial.last_result))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._record(self._waiting)
        self._waiting, self._fresh = self._fresh, []
        self.searcher.ask_ahead()

    def flush(self) -> None:
        """Record what has ended; called when Tune is done or has failed."""
        self._record(self._waiting + self._fresh)
        self._waiting, self._fresh = [], []

    def _record(self, ended: list[tuple[Any, dict[str, Any]]]) -> None:
        for proposal, result in ended:
            if self.board.failure is not None:
                return
            try:
                self.board.record(proposal, result)
            except Exception as fault:  # Tune would take it for a fault of the trial and run it again
                self.board.fail(fault)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._proposals.pop(trial.trial_id, None)
        proposal = self.board.given_up.pop(trial.trial_id, None)
        reason = _reason(trial.error_file)
        fault = machine_fault(reason, named_file(reason) or self.board.run_dir)
        # Ray ends a worker where the memory of its machine runs low. That passes; and a trial that
        # runs alone is too large for the machine
        passes = MEMORY_IS_LOW in reason and (proposal is None or self.searcher.slots == 1)
        if fault is not None and not passes:
            self.board.fail(fault)
        if proposal is None or self.board.failure is not None:
            return
        try:
            self.board.give_up(proposal, f"The worker process died at each of {proposal.failures} attempts: {_last_lines(reason)}")
        except Exception as fault:
            self.board.fail(fault)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "") -> None:
        """Nothing: a search is rebuilt from the ledger."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its configuration; nothing of it is ever read back


def _reason(path: str | None) -> str:
    """Tune's error file."""
    try:
        return Path(path or "").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "no reason is known"


def _last_lines(text: str, count: int = 12) -> str:
    """The end of a text, in one line."""
    return " | ".join(line.strip() for line in text.splitlines()[-count:] if line.strip())


class StopOnFailure(Stopper):
    """Ends the whole run once something has failed for good."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.board.failure is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> StopOnFailure:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}
