"""Real runs on one, two and three Ray nodes on this machine, and what the model of
:mod:`raysere.pipeline.cluster_cost` says of them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from raysere.pipeline.cluster_cost import Cluster, Encoding, Load, Trials, wall

PLUGINS = Path(__file__).resolve().parent / "plugins"
ROOT = PLUGINS.parent.parent.parent
COMMAND = [sys.executable, "-c", "from raysere.cli.main import main; main()"]
LIMIT_S = 600
TRIALS = 36
SPACE = {
    "method": "waiting",
    "defaults": {"hidden": 8, "epochs": 2, "patience": 2, "pooling": "mean"},
    "space": {"lr": {"float": [1e-4, 1e-2], "log": True}, "dropout": {"float": [0.0, 0.6]}},
}


def measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of nodes, stage, measured and predicted seconds; every round starts from empty stores on
    a new cluster.

    The mean trial is told by the run on one node, as ``raysere plan`` would take it from finished
    trials.
    """
    from raysere.pipeline.verbs import write_demo

    corpus = folder / "demo"
    write_demo(corpus)
    rows, mean = [], None
    for number in range(rounds):
        for nodes in (1, 2, 3):
            place = folder / f"{number}-{nodes}"
            place.mkdir()
            experiment = _experiment(corpus, place)
            with _cluster(place, nodes) as address:
                seconds = {stage: _timed(address, stage, experiment) for stage in ("extract", "tune")}
            if mean is None:
                mean = _mean_trial(place / "runs" / "scale")
            expected = _expected(experiment, nodes, mean)
            for stage in ("extract", "tune"):
                rows.append({"round": number, "nodes": nodes, "stage": stage, "measured": seconds[stage], "predicted": expected[stage]})
                print(rows[-1], flush=True)
    return rows


def _experiment(corpus: Path, place: Path) -> Path:
    import raysere.pipeline.experiment

    given = raysere.pipeline.experiment.load_experiment(corpus / "experiment.yaml")
    space = place / "waiting.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    value = {
        "name": "scale",
        "corpora": [entry.model_dump(exclude_none=True) for entry in given.corpora],
        "task": given.task.model_dump(exclude_none=True),
        "protocol": {"kind": "out_of_fold", "folds": 3},
        "features": {"waiting": {"backbone": "waiting"}},
        "search": [{"space": str(space), "features": "waiting", "trials": TRIALS, "name": "waiting"}],
        "halving": None,
        "runs": str(place / "runs"),
        "store": str(place / "features"),
    }
    path = place / "scale.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


def _environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), str(PLUGINS), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(part for part in paths if part), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", **more}


@contextlib.contextmanager
def _cluster(place: Path, nodes: int) -> Iterator[str]:
    """A head without cores and nodes of one core, each with a disk of its own for what it fetches.

    Yields the address.
    """
    from ray.cluster_utils import Cluster as Nodes

    before = dict(os.environ)
    os.environ.update(_environment(RAY_USAGE_STATS_ENABLED="0"))
    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False})
    try:
        for number in range(nodes):
            local = str(place / f"disk-{number}")
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20, env_vars=_environment(RAYSERE_LOCAL_STORE=local))
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _timed(address: str, stage: str, experiment: Path) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        [*COMMAND, stage, str(experiment), "-q"],
        env={**os.environ, **_environment(RAY_ADDRESS=address)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return round(time.perf_counter() - began, 2)


def _mean_trial(run: Path) -> float:
    from raysere.search.ledger import Ledger

    seconds = [record.seconds for record in Ledger(run).trials()]
    return sum(seconds) / len(seconds)


def _expected(experiment: Path, nodes: int, mean: float) -> dict[str, float]:
    sys.path.insert(0, str(PLUGINS))
    from raysere_waiting import SPEED

    from raysere.pipeline.experiment import load_experiment
    from raysere.pipeline.prepare import prepare

    ((_, heard),) = prepare(load_experiment(experiment)).features_to_extract().values()
    lengths = heard.table["duration_s"].to_list()
    encoding = Encoding("waiting", sum(lengths), len(lengths), max(lengths), SPEED)
    cluster = Cluster(nodes, cores=1)
    extract = wall(Load((encoding,), (), 0.0, len(lengths)), cluster)["total"]
    tune = wall(Load((), (Trials("waiting", TRIALS, mean, "measured"),), 300.0 * len(lengths), 0), cluster)["total"]
    return {"extract": round(extract, 2), "tune": round(tune, 2)}
