"""The chosen configurations once more: other seeds, the transductive protocol, and with one thing
taken out.

Each training is one line of ``again/PAIR-FEATURE.jsonl`` in the benchmark's folder; what is there
is not trained again. No line is read before a configuration has been chosen, and the choice reads
no target label.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.transfer.systems import BY_SPEAKER, METHODS, ROWS, study

SEEDS = (0, 1, 2)
Change = Callable[[dict[str, Any]], dict[str, Any]]


def _codeless(params: dict[str, Any], codebook: str) -> dict[str, Any]:
    """Without common codes their use is not compared: what aligned by codes aligns by means and
    centroids.
    """
    other = {"alignment": "mmd", "classes": "centroid"}
    return {"codebook": codebook, **{name: value for name, value in other.items() if params[name] == "code_js"}}


#: What is taken out of a method's chosen configuration.
ABLATIONS: dict[str, dict[str, Change]] = {
    "quantized codebook": {
        "without InfoLoss": lambda p: {"info": 0.0},
        "without codebook": lambda p: _codeless(p, "none"),
        "without class alignment": lambda p: {"classes": "none"},
        "without global alignment": lambda p: {"alignment": "none"},
        "without confusion": lambda p: {"confusion": 0.0},
        "separate codebooks": lambda p: _codeless(p, "separate"),
        "one group of codes": lambda p: {"groups": 1},
        "without even answers": lambda p: {"balance": 0.0},
    },
    "layer anchoring": {
        "lambda = 0, same anchors": lambda p: {"weight": 0.0},
        "random group": lambda p: {"anchors": "random_group", "start": None},
        "least similar group": lambda p: {"anchors": "least_similar", "start": None},
        "last layer": lambda p: {"anchors": "final", "start": None},
        "without even answers": lambda p: {"balance": 0.0},
    },
}
#: Rows that are shown transductively as well, as the figures of others are.
TRANSDUCTIVE = ("source only", "per domain", *BY_SPEAKER, *(row for row in METHODS if row not in BY_SPEAKER))


def jobs(run_folder: Path, rows: list[str]) -> Iterator[dict[str, Any]]:
    """Every training of a finished pair: row, variant, protocol, seed, outer, study and params."""
    from raysere.ensemble.data.predictions import load_fit_rows
    from raysere.ensemble.data.run_labels import Run
    from raysere.ensemble.fit.unlabelled_target import RULE, choose_member

    run = Run.open(run_folder)
    names = {study(row): row for row in rows}
    for outer in run.outers:
        selection = load_fit_rows([run], outer)
        members = selection.predictions.members
        for name, row in names.items():
            own = [number for number, member in enumerate(members) if member.study == name]
            if not own:
                continue
            part = selection.take_members(own)
            record = part.predictions.members[choose_member(part, run.task, RULE)].record
            head = {"row": row, "outer": outer, "study": name, "method": record.method}
            variants: list[tuple[str, bool, dict[str, Any]]] = [("chosen", False, {})]
            variants += [("chosen", True, {})] if row in TRANSDUCTIVE else []
            variants += [(title, False, change(record.resolved)) for title, change in ABLATIONS.get(row, {}).items()]
            for seed in SEEDS:
                for variant, transductive, changed in variants:
                    params = {**record.resolved, **changed}
                    yield {**head, "variant": variant, "transductive": transductive, "seed": seed, "params": params}


def key(job: dict[str, Any]) -> str:
    """What makes a training the same one."""
    from raysere.base.files import digest

    return digest({name: job[name] for name in ("row", "outer", "transductive", "seed", "params")})


def train(run_folder: str, job: dict[str, Any]) -> list[int]:
    """Answers (class numbers) for the test rows of the outer split, in their order of id."""
    import polars as pl
    import torch

    from raysere.methods import METHODS as REGISTRY
    from raysere.search.trial import WORKSHOP
    from raysere.training.loop import Trainer

    torch.set_num_threads(1)
    folder = Path(run_folder)
    spec = WORKSHOP.study(folder, job["study"], "")
    data = WORKSHOP.data(folder, spec.model_copy(update={"transductive": job["transductive"]}), job["outer"])
    trainer = Trainer(REGISTRY.get(job["method"])(), job["params"], data, seed=job["seed"], threads=1)
    while not trainer.finished:
        trainer.epoch()
    table = trainer.predictions().filter(pl.col("split") == "test").sort("utterance")
    return table.select([f"p.{name}" for name in data.task.classes]).to_numpy().argmax(1).tolist()


def run_again(run_folder: Path, kept: Path, rows: list[str] | None = None, workers: int = 2) -> None:
    """Train what is not in ``kept`` yet; Ray must be there."""
    import ray

    done = set(read(kept))
    waiting = [(name, job) for job in jobs(run_folder, rows or list(ROWS)) if ((name := key(job)), job["variant"]) not in done]
    remote = ray.remote(num_cpus=1)(train)
    running: dict[Any, tuple[str, dict[str, Any]]] = {}
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a", encoding="utf-8") as out:
        if out.tell() and not kept.read_bytes().endswith(b"\n"):
            out.write("\n")  # of a line that was cut off
        while waiting or running:
            while waiting and len(running) < workers:
                name, job = waiting.pop(0)
                running[remote.remote(str(run_folder), job)] = (name, job)
            (ready,), _ = ray.wait(list(running), num_returns=1)
            name, job = running.pop(ready)
            told = {part: job[part] for part in ("row", "variant", "transductive", "seed", "outer")}
            out.write(json.dumps({"key": name, **told, "answers": ray.get(ready)}) + "\n")
            out.flush()


def read(kept: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Finished trainings by key and variant, as a change may change nothing; a line that was cut
    off is none.
    """
    found = {}
    for line in kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[entry["key"], entry["variant"]] = entry
    return found
