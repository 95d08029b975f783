"""The next configuration: Optuna's TPE, a study for each lane, behind Ray Tune's Searcher and
TrialScheduler.

A lane is one study on one outer fold. All lanes share one Tune run, so that actors are reused
across them.

Optuna is asked and told directly (``Study.ask`` / ``Study.tell``), not through
``ray.tune.search.optuna.OptunaSearch``: that class holds one study a Tune run, does not let a
conditional (define-by-run) space be filled with earlier results, hides failed trials from the
sampler and restores itself from a pickle. Here the study of a lane is rebuilt from the ledger at
each start, and every trial number brings its own seeded TPE sampler: what trial n is depends on the
finished trials and on n, never on how often the search was interrupted.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raysere.search.lane import Proposal, _Known

if TYPE_CHECKING:
    from raysere.search.board import Board

ATTEMPTS = 3  # a trial whose process dies is tried so often


class LaneSearcher(Searcher):
    """Tune's view of all lanes: the next trial comes from the lane with the fewest running trials,
    then the smallest share started.

    So lanes advance side by side, and as long as there are at least as many lanes as workers no
    lane runs two trials at once.
    """

    def __init__(self, board: Board, slots: int = 1) -> None:
        super().__init__(metric="score", mode="max")
        self.board, self.slots = board, slots
        self.again: deque[Proposal] = deque()
        self.live: dict[str, Proposal] = {}
        self._ahead: Proposal | None = None

    def suggest(self, trial_id: str) -> Any:
        if self.board.failure is not None:
            return Searcher.FINISHED
        try:
            if self.again:
                proposal: Proposal | None = self.again.popleft()
            else:
                proposal, self._ahead = (self._ahead, None) if self._ahead is not None else (self._next(), None)
        except Exception as fault:  # Tune would take it for a fault of the trial
            self.board.fail(fault)
            return Searcher.FINISHED
        if proposal is None:
            return None if self.live else Searcher.FINISHED
        self.live[trial_id] = proposal
        return {"job": json.dumps(self.board.job(proposal))}

    def ask_ahead(self) -> None:
        """Ask for the next configuration while all workers are busy, so that the next free one need
        not wait for the sampler.

        Only where several trials run at once: their sampler does not know the running ones in any
        case, and a search of one trial at a time must propose from all that is finished.
        """
        if self._ahead is None and not self.again and len(self.live) >= self.slots > 1 and self.board.failure is None:
            try:
                self._ahead = self._next()
            except Exception as fault:
                self.board.fail(fault)

    def _next(self) -> Proposal | None:
        while True:
            lanes = [lane for lane in self.board.lanes if lane.free]
            if not lanes:
                return None
            lane = min(lanes, key=lambda lane: (len(lane.running), lane.started))
            proposal = lane.propose()
            twin = lane.by_config.get(proposal.config)
            if twin is None:
                return proposal
            record = self.board.copy(proposal, twin)
            self.board.finished(record.trial, record.outer, record.folder if record.scored else None)
            lane.tell(proposal, record.value(lane.study.penalty))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the lane; a trial whose process died goes back to be tried again, and is given up
        after the last attempt.
        """
        proposal = self.live.pop(trial_id, None)
        if proposal is None or self.board.failure is not None:
            return
        if error or not result:
            proposal.failures += 1
            if proposal.failures < ATTEMPTS:
                self.again.append(proposal)
                return
            self.board.given_up[trial_id] = proposal
            proposal.lane.tell(proposal, proposal.lane.study.penalty)
        elif result["status"] != "fatal":
            if result["status"] in ("running", "done"):  # running: stopped by halving
                self.board.finished(proposal.trial, proposal.lane.outer, Path(result["staged"]))
            proposal.lane.tell(proposal, result["score"])

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its configuration; nothing of it is ever read back

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: a search is rebuilt from the ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is rebuilt from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is rebuilt from the ledger."""


class LaneHalving(FIFOScheduler):
    """Successive halving of each lane by itself; first come, first run."""

    def __init__(self, searcher: LaneSearcher) -> None:
        super().__init__()
        self.searcher = searcher
        self._known: dict[str, _Known] = {}

    def _of(self, trial: Any) -> _Known | None:
        if trial.trial_id not in self._known:
            proposal = self.searcher.live.get(trial.trial_id)
            if proposal is None or proposal.lane.halving is None:
                return None
            self._known[trial.trial_id] = _Known(proposal.trial, proposal.lane)
        return self._known[trial.trial_id]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if (known := self._of(trial)) is not None:
            known.lane.halving.on_trial_add(tune_controller, known)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result["status"] != "running":  # the trial has come to its own end
            return FIFOScheduler.STOP
        known = self._of(trial)
        return FIFOScheduler.CONTINUE if known is None else known.lane.halving.on_trial_result(tune_controller, known, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        known = self._known.pop(trial.trial_id, None)
        if known is None:
            return
        if result.get("status") in ("running", "done"):
            known.lane.halving.on_trial_complete(tune_controller, known, result)
        else:
            known.lane.halving.on_trial_remove(tune_controller, known)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        if (known := self._known.pop(trial.trial_id, None)) is not None:
            known.lane.halving.on_trial_remove(tune_controller, known)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the rungs are rebuilt from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the rungs are rebuilt from the ledger."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def debug_string(self) -> str:
        return "successive halving of each lane"
