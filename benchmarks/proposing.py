"""The next configuration when 1,000 trials are finished: a lane of the search against Optuna alone."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import ROUNDS, result, speed
from benchmarks._runs import make_study

TITLE = "Proposing the next configuration"
FINISHED, ASKED = 1000, 10


def run() -> dict[str, Any]:
    import optuna

    from raysere.search.lane import Lane
    from raysere.search.ledger import Record

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = make_study(64, FINISHED + 1000, space=_space())
    records = _finished(study, Record)
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        lane, alone = Lane(study, 0, records), _alone(records)
        pairs = ((0, lambda lane=lane: _ask_lane(lane)), (1, lambda alone=alone: _ask_alone(*alone)))
        for side, ask in pairs if number % 2 else reversed(pairs):
            start = time.perf_counter()
            ask()
            if number:  # the first round warms up
                spent[side].append(time.perf_counter() - start)
    row = speed(
        f"{ASKED} proposals (told at once) after {FINISHED} finished trials, 12 parameters, two branches",
        "Optuna's ask and tell with the same TPE settings",
        spent,
        goal=0.9,
        checked=_agreement(study, records),
        detail={"ms a proposal": 1e3 * float(np.median(spent[0])) / ASKED},
    )
    return result(
        [row],
        """Both sides are Optuna's multivariate, grouped TPE, whose time grows with the number of
        finished trials. raysere adds reading the space, a sampler seeded by the trial's number,
        and the hash of the configuration.""",
    )


def _space() -> dict[str, Any]:
    space: dict[str, Any] = {
        "hidden": {"choice": [128, 256, 1024]},
        "depth": {"choice": [0, 1, 2]},
        "dropout": {"float": [0.0, 0.6]},
        "loss": {"choice": ["ce", "vs"]},
        "class_weight": {"float": [0.0, 1.0], "when": {"loss": "ce"}},
        "label_smoothing": {"float": [0.0, 0.2], "when": {"loss": "ce"}},
        "vs_gamma": {"float": [0.0, 0.5], "when": {"loss": "vs"}},
        "f1_term": {"float": [0.0, 0.5]},
        "mixup": {"choice": [0.0, 0.3]},
        "normalise": {"choice": ["none", "corpus", "speaker"]},
        "lr": {"float": [1e-5, 3e-3], "log": True},
        "weight_decay": {"float": [1e-6, 1e-1], "log": True},
    }
    return {"name": "bench", "method": "pooled", "defaults": {}, "space": space}


def _finished(study: Any, record: Any) -> list[Any]:
    """Finished trials with random configurations of the space."""
    import optuna

    from raysere.search.space.grammar import suggest

    space, rng = study.parsed_space(), np.random.default_rng(0)
    source = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for number in range(FINISHED):
        params = suggest(source.ask(), space)
        found.append(
            record(
                Path("."),
                study.trial_id(0, number),
                study.name,
                "bench",
                "pooled",
                ("speech",),
                "audio",
                0,
                number,
                0,
                study.config_hash(params),
                params,
                "done",
                float(rng.uniform(0.3, 0.8)),
            )
        )
    return found


def _sampler(seed: int) -> Any:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.samplers.TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=4, seed=seed)


def _distribution(entry: dict[str, Any]) -> Any:
    import optuna

    if "choice" in entry:
        return optuna.distributions.CategoricalDistribution(entry["choice"])
    return optuna.distributions.FloatDistribution(*entry["float"], log=entry.get("log", False))


def _alone(records: list[Any], seed: int = 0) -> tuple[Any, Any]:
    """An Optuna study that holds the same trials, and the space as a define-by-run function of
    plain suggest calls.
    """
    import optuna

    alone = optuna.create_study(direction="maximize", sampler=_sampler(seed))
    known = {name: _distribution(entry) for name, entry in _space()["space"].items()}
    for record in records:
        params = {name: record.params[name] for name in known if name in record.params}
        own = {name: known[name] for name in params}
        alone.add_trial(optuna.trial.create_trial(value=record.score, params=params, distributions=own))

    def suggest_all(trial: Any) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for name, entry in _space()["space"].items():
            if "when" in entry and any(params.get(key) != value for key, value in entry["when"].items()):
                continue
            if "choice" in entry:
                params[name] = trial.suggest_categorical(name, entry["choice"])
            else:
                params[name] = trial.suggest_float(name, *entry["float"], log=entry.get("log", False))
        return params

    return alone, suggest_all


def _ask_lane(lane: Any) -> list[dict[str, Any]]:
    asked = []
    for _ in range(ASKED):
        proposal = lane.propose()
        asked.append(proposal.params)
        lane.tell(proposal, 0.5)
    return asked


def _ask_alone(alone: Any, suggest_all: Any) -> list[dict[str, Any]]:
    asked = []
    for _ in range(ASKED):
        trial = alone.ask()
        asked.append(suggest_all(trial))
        alone.tell(trial, 0.5)
    return asked


def _agreement(study: Any, records: list[Any]) -> str:
    """Given the same seed, both propose the same values."""
    from raysere.search.lane import Lane

    lane, (alone, suggest_all) = Lane(study, 0, records), _alone(records, study.sampler_seed(0, FINISHED))
    ours, theirs = lane.propose().params, suggest_all(alone.ask())
    assert all(theirs[name] == ours[name] for name in theirs), (ours, theirs)
    return f"with the same seed both propose the same {len(theirs)} values"
