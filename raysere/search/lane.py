"""A lane: one study on one outer fold, with its Optuna study, its free trial numbers and its
successive halving.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler

from raysere.search.ledger import Record
from raysere.search.space.grammar import suggest
from raysere.search.startup import SpreadSampler
from raysere.search.study import StudySpec

if TYPE_CHECKING:
    from raysere.search.gain import Gains

STARTUP = 10  # trials of a lane that are spread over the space before TPE models them, trial 0 included
NO_GAIN = -3.0  # told for a trial without predictions where gains are told: below any difference of two scores


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
    """One study on one outer fold: its Optuna study, the numbers that are still free, and its
    successive halving.

    Args:
        finished: the lane's finished trials, from the ledger.
        gains: values of trials for ``objective: ensemble_gain``: then the Optuna study is made anew
            for each proposal, since what a trial adds to the ensemble depends on the others.
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
        """Put a finished trial back into the Optuna study and into the rungs, as if it had just
        finished.
        """
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
        """The Optuna study as proposal ``number`` sees it: finished trials by their gains, and
        those that run.
        """
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
    """Ray's asynchronous halving for one lane.

    ``max_t`` only bounds the rungs: trials end by themselves.
    """
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


@dataclass
class _Known:
    """What a lane's halving knows a trial by: the same name in every attempt, so that a retried
    trial stands in a rung once.
    """

    trial_id: str
    lane: Lane = field(repr=False)
