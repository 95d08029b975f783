"""``python -m benchmarks.accuracy.library [--only library|shuffled|ablation|gain|page] [--corpus
NAME ...] [--workers N]``: the ensembler.

Four studies on real speech: a library of 64 members against what people do with one, labels
shuffled, what each part is worth and costs, and searching for the ensemble instead of for single
members. What is done is kept under RAYSERE_BENCH_CACHE; a second start goes on. Needs
RAYSERE_CORPORA, RAYSERE_MODELS and scikit-learn. Draws ``docs/accuracy_library.md``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._wrap import write_wrapped
from benchmarks.accuracy import running

HERE = Path(__file__).resolve().parent.parent
STUDIES = ("library", "shuffled", "ablation", "gain")
SHUFFLES = 4  # of each library, in one outer fold after the other
ABLATED = (
    "without calibration",
    "without offsets",
    "without bags",
    "always the average",
    "always one greedy pass",
    "always bagged greedy",
    "always convex weights",
    "always the stack",
)


def main() -> int:
    from benchmarks.accuracy.library_runs import LIBRARIES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.library", description=__doc__)
    parser.add_argument("--only", choices=[*STUDIES, "page"])
    parser.add_argument("--corpus", nargs="+", choices=LIBRARIES, default=list(LIBRARIES), help="libraries of these alone")
    parser.add_argument("--workers", type=int, default=1, help="trials at once")
    asked = parser.parse_args()
    running.need_folders("RAYSERE_CORPORA", "RAYSERE_MODELS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for study in STUDIES:
        if asked.only in (None, study):
            if study == "gain":
                gains(asked.workers)
            else:
                for corpus in asked.corpus:
                    {"library": library, "shuffled": shuffled, "ablation": ablation}[study](corpus, asked.workers)
    _write()
    return 0


# ---- the studies; each keeps what it found -------------------------------------------------------


def library(corpus: str, workers: int) -> None:
    """Search and evaluate a library; everything that is compared runs on the same members and is
    chosen on the same rows.
    """
    from benchmarks.accuracy import library_runs
    from raysere.base.files import read_json
    from raysere.ensemble.data.predictions import usable_trials
    from raysere.ensemble.data.run_labels import Run

    folder = running.run(library_runs.library(corpus, workers))
    run, evaluation = Run.open(folder), read_json(folder / "evaluation.json")
    trials = usable_trials(run)
    _keep(
        f"library-{corpus}",
        {
            "inputs": evaluation["inputs"],
            "members": [sum(trial.outer == outer for trial in trials) for outer in run.outers],
            "stopped": sum(trial.status == "stopped" for trial in trials),
            "trial_seconds": round(sum(trial.seconds for trial in trials)),
            "studies": {name: _study([trial for trial in trials if trial.study == name]) for name in sorted({t.study for t in trials})},
            **{name: evaluation[name] for name in ("n_utterances", "n_speakers", "difference", "optimism", "claim", "chance")},
            "systems": {name: evaluation[name] for name in _systems(evaluation)},
            "chosen": [part["classes"]["chosen"] for part in evaluation["families"]],
            "tried": _mean_of([part["classes"]["tried"] for part in evaluation["families"]]),
        },
    )


def _study(trials: Sequence[Any]) -> dict[str, Any]:
    """Quartiles of the development scores of a study's trials, and their mean seconds."""
    scores = np.quantile([trial.score for trial in trials], [0, 0.25, 0.5, 0.75, 1])
    return {"scores": scores.round(3).tolist(), "seconds": round(float(np.mean([trial.seconds for trial in trials])), 2)}


def _systems(evaluation: dict[str, Any]) -> list[str]:
    return ["ensemble", *(name.removeprefix("ensemble - ") for name in evaluation["difference"])]


def _mean_of(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of what stands in all tables."""
    common = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: round(float(np.mean([table[name] for table in tables])), 4) for name in common}


def shuffled(corpus: str, workers: int) -> None:
    """The procedure on shuffled labels: outer folds take turns, every shuffle has a seed of its
    own.
    """
    from benchmarks.accuracy import library_runs
    from raysere.ensemble.data.predictions import load_fit_rows
    from raysere.ensemble.data.run_labels import Run
    from raysere.ensemble.evaluate.ablation import shuffled_control
    from raysere.ensemble.evaluate.evaluation import fingerprint

    run = Run.open(running.run(library_runs.library(corpus, workers)))
    inputs = fingerprint([run], run.config)
    for number in range(SHUFFLES):
        outer = run.outers[number % len(run.outers)]

        def control(seed: int = number, outer: int = outer) -> dict[str, Any]:
            found, seconds = _timed(lambda: shuffled_control(load_fit_rows([run], outer), run.task, run.config, seed=seed))
            return {"outer": outer, **found, "seconds": seconds}

        _once(f"shuffled-{corpus}-{number}", inputs, control)


def ablation(corpus: str, workers: int) -> None:
    """What is lost without each part of the procedure, and with fewer or less different members;
    with processor seconds.
    """
    from benchmarks.accuracy import library_runs
    from raysere.ensemble.data.run_labels import Run
    from raysere.ensemble.evaluate.ablation import VARIANTS, ablate
    from raysere.ensemble.evaluate.evaluation import fingerprint

    run = Run.open(running.run(library_runs.library(corpus, workers)))
    _once(
        f"ablation-{corpus}",
        fingerprint([run], run.config),
        lambda: {"rows": ablate(run.folder, {name: VARIANTS[name] for name in ABLATED})},
    )


def gains(workers: int) -> None:
    """The same search under both objectives, for several seeds."""
    from benchmarks.accuracy import library_runs
    from raysere.base.files import read_json
    from raysere.ensemble.data.predictions import usable_trials
    from raysere.ensemble.data.run_labels import Run

    for seed in library_runs.GAIN_SEEDS:
        for objective in library_runs.OBJECTIVES:
            folder = running.run(library_runs.gain(objective, seed, workers))
            evaluation, trials = read_json(folder / "evaluation.json"), usable_trials(Run.open(folder))
            _keep(
                f"gain-{objective}-{seed}",
                {
                    "inputs": evaluation["inputs"],
                    **{name: evaluation[name]["value"] for name in ("ensemble", "best_single", "average")},
                    "members": len(trials),
                    "score_of_members": round(float(np.mean([trial.score for trial in trials])), 4),
                    "trial_seconds": round(sum(trial.seconds for trial in trials)),
                },
            )


# ---- keeping -------------------------------------------------------------------------------------


def _place(name: str) -> Path:
    from benchmarks.accuracy.data import folder

    return folder("library") / f"{name}.json"


def _keep(name: str, found: dict[str, Any]) -> dict[str, Any]:
    from raysere.base.files import write_json

    write_json(_place(name), found)
    print(f"{name}: done", flush=True)
    return found


def _once(name: str, inputs: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is kept under ``name``; made anew where it is of other trials, settings or an older
    procedure (``inputs``).
    """
    kept = _read(name)
    return kept if kept is not None and kept["inputs"] == inputs else _keep(name, {"inputs": inputs, **make()})


def _read(name: str) -> dict[str, Any] | None:
    from raysere.base.files import read_json

    return read_json(_place(name)) if _place(name).is_file() else None


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its processor seconds."""
    import time

    start = time.process_time()
    found = call()
    return found, round(time.process_time() - start, 2)


# ---- from pieces to figures ----------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and 95 % t interval of the mean of two or more values."""
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    mean, sd = float(array.mean()), float(array.std(ddof=1))
    half = float(t.ppf(0.975, len(array) - 1)) * sd / np.sqrt(len(array))
    return {"value": mean, "sd": sd, "low": mean - half, "high": mean + half}


def summarise() -> dict[str, Any]:
    """All that is done, by study."""
    from benchmarks.accuracy.data import CORPORA
    from benchmarks.accuracy.library_runs import GAIN_SEEDS, LIBRARIES, OBJECTIVES

    result: dict[str, Any] = {"format": "raysere.accuracy_library/1", "corpora": {}}
    for corpus in LIBRARIES:
        controls = [one for number in range(SHUFFLES) if (one := _read(f"shuffled-{corpus}-{number}")) is not None]
        result["corpora"][corpus] = {
            "title": CORPORA[corpus].title,
            "library": _read(f"library-{corpus}"),
            "shuffled": _control(controls) if len(controls) > 1 else None,
            "ablation": _read(f"ablation-{corpus}"),
        }
    pairs = [[_read(f"gain-{objective}-{seed}") for objective in OBJECTIVES] for seed in GAIN_SEEDS]
    done = [pair for pair in pairs if None not in pair]
    result["gain"] = _gain(done) if len(done) > 1 else None
    return result


def _control(controls: list[dict[str, Any]]) -> dict[str, Any]:
    """Several shuffles together."""
    return {
        "chance": controls[0]["chance"],
        "held_out": spread([one["held_out"] for one in controls]),
        "in_sample": spread([one["in_sample"] for one in controls]),
        "within": sum(one["low"] <= one["chance"] <= one["high"] for one in controls),
        "seconds": round(sum(one["seconds"] for one in controls), 1),
        "shuffles": controls,
    }


def _gain(pairs: list[list[Any]]) -> dict[str, Any]:
    """Gain minus score of each seed, and their spread."""
    names = ("ensemble", "best_single", "average", "score_of_members")
    return {
        "seeds": [{"score": score, "ensemble_gain": gain} for score, gain in pairs],
        "difference": {name: spread([gain[name] - score[name] for score, gain in pairs]) for name in names},
    }


def _write() -> None:
    from benchmarks.__main__ import machine
    from benchmarks.accuracy.library_page import draw
    from raysere.base.files import write_json
    from raysere.base.versions import versions

    result = {**summarise(), "machine": {**machine(), "versions": versions()}}
    write_json(HERE / "results" / "accuracy_library.json", result)
    write_wrapped((HERE.parent / "docs" / "accuracy_library.md"), draw(result))


if __name__ == "__main__":
    sys.exit(main())
