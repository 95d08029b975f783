"""Which configuration comes next: Optuna's TPE, one study per lane, behind Ray Tune's Searcher and TrialScheduler interfaces.

A lane is one study on one outer fold. All lanes share one Tune run, so that actors are reused across them.

Optuna is asked and told directly (``Study.ask`` / ``Study.tell``), not through ``ray.tune.search.optuna.OptunaSearch``: that
class holds one study a Tune run, does not let a conditional (define-by-run) space be filled with earlier results, hides failed
trials from the sampler and restores itself from a pickle. Here the study of a lane is rebuilt from the ledger at each
start, and every trial number brings its own seeded TPE sampler: what trial n is depends on the finished trials and on n,
never on how often the search was interrupted.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from raysere.search.ledger import Record
from raysere.search.space import suggest
from raysere.search.startup import SpreadSampler
from raysere.search.study import StudySpec

if TYPE_CHECKING:
    from raysere.search.board import Board
    from raysere.search.gain import Gains

STARTUP = 10  # trials of a lane that are spread over the space before TPE models them, trial 0 included
NO_GAIN = -3.0  # told for a trial without predictions where gains are told: below any difference of two scores
ATTEMPTS = 3  # a trial whose process dies is tried so often


@dataclass
class Proposal:
    """A configuration to run: plain values only, since it travels to the workers as JSON."""

    lane: Lane
    number: int
    params: dict[str, Any]
    config: str
    asked: optuna.Trial
    failures: int = 0

    @property
    def trial(self) -> str:
        return self.lane.study.trial_id(self.lane.outer, self.number)


class Lane:
    """One study on one outer fold: its Optuna study, the numbers that are still free, and its successive halving.

    Args:
        finished: the lane's finished trials, from the ledger.
        gains: values of trials for ``objective: ensemble_gain``: then the Optuna study is made anew for each proposal, since what a
            trial adds to the ensemble depends on the others.
    """

    def __init__(self, study: StudySpec, outer: int, finished: list[Record], *, gains: Gains | None = None) -> None:
        self.study, self.outer, self.gains = study, outer, gains
        self.space = study.parsed_space()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner(), sampler=self._sampler(0))
        self.halving: Any = _halving(study)  # it is shown trials by their names only, see _Known
        self.by_config: dict[str, Record] = {}
        self.running: dict[int, Proposal] = {}
        self.ended: dict[int, dict[str, Any]] = {}  # configurations of finished trials
        for record in sorted(finished, key=lambda record: record.number):
            self._refill(record)
        taken = {record.number for record in finished}
        self.free = deque(number for number in range(study.trials) if number not in taken)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        if number < STARTUP:
            return SpreadSampler(self.study.sampler_seed(self.outer, -1), number, STARTUP)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate and group are marked experimental
            return optuna.samplers.TPESampler(
                multivariate=True,
                group=True,
                constant_liar=True,
                n_startup_trials=min(STARTUP, 4),  # beyond the start-up numbers TPE models what is there
                seed=self.study.sampler_seed(self.outer, number),
            )

    def _refill(self, record: Record) -> None:
        """Put a finished trial back into the Optuna study and into the rungs, as if it had just finished."""
        self.ended[record.number] = record.params
        if self.gains is None:
            self._add(record.params, value=record.value(self.study.penalty))
        self.remember(record)
        if self.halving is not None and record.scored and record.twin_of is None:
            scores = record.rows()["score"].to_list()
            trial = _Known(record.trial, self)
            self.halving.on_trial_add(None, trial)
            for rung in self.study.rungs(record.epochs + 1):
                so_far = [score for score in scores[:rung] if score is not None and math.isfinite(score)]
                self.halving.on_trial_result(None, trial, {"epoch": rung, "score": max(so_far, default=self.study.penalty)})

    def _add(self, params: dict[str, Any], **state: Any) -> None:
        dimensions = self.space.searched(params)
        self.optuna.add_trial(
            optuna.trial.create_trial(
                **state,
                params={name: dimension.to_optuna(params[name]) for name, dimension in dimensions.items()},
                distributions={name: dimension.distribution() for name, dimension in dimensions.items()},
            )
        )

    def _revalue(self, number: int, gains: Gains) -> None:
        """The Optuna study as proposal ``number`` sees it: finished trials by their gains, and those that run."""
        self.optuna = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner(), sampler=self._sampler(number))
        values = gains.values(number)
        for ended in sorted(self.ended):
            self._add(self.ended[ended], value=values.get(self.study.trial_id(self.outer, ended), NO_GAIN))
        for running in sorted(self.running):
            self._add(self.running[running].params, state=optuna.trial.TrialState.RUNNING)

    def remember(self, record: Record) -> None:
        """Keep the configuration of a finished trial: an equal one is copied, not trained."""
        if record.scored or record.status == "infeasible":
            self.by_config.setdefault(record.config, record)

    @property
    def started(self) -> float:
        """Share of the lane's trials that are finished or under way."""
        return 1.0 - len(self.free) / self.study.trials

    def propose(self) -> Proposal:
        """The trial of the smallest free number. Trial 0 is the default of the space."""
        number = self.free.popleft()
        if self.gains is not None:
            self._revalue(number, self.gains)
        if number == 0:
            default = self.space.default_config()
            self.optuna.enqueue_trial(
                {name: dimension.to_optuna(default[name]) for name, dimension in self.space.searched(default).items()}
            )
        self.optuna.sampler = self._sampler(number)
        asked = self.optuna.ask()
        params = suggest(asked, self.space)
        proposal = Proposal(self, number, params, self.study.config_hash(params), asked)
        self.running[number] = proposal
        return proposal

    def tell(self, proposal: Proposal, value: float) -> None:
        self.running.pop(proposal.number, None)
        self.ended[proposal.number] = proposal.params
        if self.gains is None:
            self.optuna.tell(proposal.asked, value)


def _halving(study: StudySpec) -> AsyncHyperBandScheduler | None:
    """Ray's asynchronous halving for one lane. ``max_t`` only bounds the rungs: trials end by themselves."""
    if study.asha is None:
        return None
    limit = study.max_epochs or 10_000
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=max(limit, study.asha.grace) + 1,
        grace_period=study.asha.grace,
        reduction_factor=study.asha.reduction,
        stop_last_trials=True,
    )


class LaneSearcher(Searcher):
    """Tune's view of all lanes: the next trial comes from the lane with the fewest running trials, then the smallest share started.

    So lanes advance side by side, and as long as there are at least as many lanes as workers no lane runs two trials at once.
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
        """Ask for the next configuration while all workers are busy, so that the next free one need not wait for the sampler.

        Only where several trials run at once: their sampler does not know the running ones in any case, and a search of one
        trial at a time must propose from all that is finished.
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
        """Tell the lane; a trial whose process died goes back to be tried again, and is given up after the last attempt."""
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


@dataclass
class _Known:
    """What a lane's halving knows a trial by: the same name in every attempt, so that a retried trial stands in a rung once."""

    trial_id: str
    lane: Lane = field(repr=False)


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
