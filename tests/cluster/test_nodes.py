"""Several real Ray nodes on this machine, each a raylet process with a disk of its own for fetched features."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

COMMAND = [sys.executable, "-c", "from raysere.cli import main; main()"]
LIMIT_S = 240
CLASSES = ("low", "high")


def _experiment(folder, table, name, **changes):
    value = {
        "name": name,
        "corpora": [{"corpus": "table", "path": str(table)}],
        "task": {"classes": list(CLASSES)},
        "protocol": {"kind": "out_of_fold", "folds": "leave_one_speaker_out"},
        "features": {"acoustic": {"backbone": "acoustic"}},
        "search": [{"space": "pooled_quick", "features": "acoustic", "trials": 8, "fixed": {"hidden": 8, "epochs": 3, "batch": 16}}],
        "ensemble": {"family": "average", "draws": 100},
        "runs": str(folder / "runs"),
        "store": str(folder / "features"),
    } | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    import numpy as np
    import soundfile

    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for speaker in range(4):
        for take in range(12):
            label, draw = CLASSES[take % 2], np.random.default_rng([speaker, take])
            pitch = (130 if label == "low" else 240) + 6 * speaker + draw.normal()
            time_s = np.arange(9600) / 16000
            wave = 0.2 * np.sin(2 * np.pi * pitch * time_s) + 0.01 * draw.normal(size=9600)
            soundfile.write(folder / f"{speaker}-{take}.wav", wave, 16000)
            rows.append({"path": f"{speaker}-{take}.wav", "speaker": f"s{speaker}", "emotion": label})
    pl.DataFrame(rows).write_csv(folder / "table.csv")
    return folder / "table.csv"


@contextlib.contextmanager
def _cluster(folder, nodes):
    """A head without cores and ``nodes`` workers of one core each. Yields (Ray's cluster, the workers)."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_health_check_period_ms": "1000"}.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False})
        try:
            yield cluster, [_join(cluster, folder, number) for number in range(nodes)]
        finally:
            cluster.shutdown()


def _join(cluster, folder, number):
    return cluster.add_node(
        num_cpus=1, object_store_memory=80 << 20, env_vars={"RAYSERE_LOCAL_STORE": str(folder / f"disk-{number}"), "OMP_NUM_THREADS": "1"}
    )


def _start(cluster, *arguments):
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments), "-q"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def _finished(process):
    try:
        output = process.communicate(timeout=LIMIT_S)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def _records(run):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("trials/*/DONE"))}


def _until(condition, process):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _shards(store):
    return sorted(path.relative_to(store) for path in store.glob("*/shard-*"))


@pytest.mark.timeout(600)
def test_two_nodes_share_the_work_and_each_fetches_a_shard_once(tmp_path, table):
    with _cluster(tmp_path, 2) as (cluster, _):
        _finished(_start(cluster, "tune", _experiment(tmp_path, table, "two")))
        written = {path: path.stat().st_ctime_ns for disk in ("disk-0", "disk-1") for path in (tmp_path / disk).glob("*/shard-*")}
        _finished(_start(cluster, "tune", _experiment(tmp_path, table, "again", seed=1)))
        later = {path: path.stat().st_ctime_ns for disk in ("disk-0", "disk-1") for path in (tmp_path / disk).glob("*/shard-*")}
    assert len(_records(tmp_path / "runs" / "two")) == 8
    shards = _shards(tmp_path / "features")
    assert _shards(tmp_path / "disk-0") == _shards(tmp_path / "disk-1") == shards
    assert shards
    assert later == written, "no node fetched anything twice"


@pytest.mark.timeout(600)
def test_a_search_in_the_same_order_gives_the_same_on_one_node_and_on_two(tmp_path, table):
    one_at_a_time = {"trial": {"concurrent": 1}}
    alone = subprocess.run(
        [*COMMAND, "tune", str(_experiment(tmp_path, table, "alone", **one_at_a_time)), "-q"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    assert alone.returncode == 0, alone.stdout + alone.stderr
    with _cluster(tmp_path, 2) as (cluster, _):
        _finished(_start(cluster, "tune", _experiment(tmp_path, table, "both", **one_at_a_time)))
    boards = [pl.read_parquet(tmp_path / "runs" / name / "leaderboard.parquet").sort("trial") for name in ("alone", "both")]
    same = [name for name in boards[0].columns if name in ("trial", "status", "score", "epoch", "epochs", "config")]
    assert len(same) >= 4
    assert boards[0].select(same).equals(boards[1].select(same))


@pytest.mark.timeout(900)
def test_a_node_that_dies_costs_no_finished_work_and_one_that_joins_late_is_used(tmp_path, table):
    slow = {
        "space": "pooled_quick",
        "features": "acoustic",
        "trials": 14,
        "fixed": {"hidden": 64, "epochs": 120, "patience": 120, "batch": 4},
    }
    path = _experiment(tmp_path, table, "kill", search=[slow], halving=None)
    run = tmp_path / "runs" / "kill"
    with _cluster(tmp_path, 2) as (cluster, nodes):
        process = _start(cluster, "tune", path)
        _until(lambda: len(_shards(tmp_path / "features")) >= 1, process)
        cluster.remove_node(nodes[0], allow_graceful=False)  # in the middle of extraction, or of the start of the search
        _until(lambda: len(_records(run)) >= 3, process)
        os.kill(nodes[1].all_processes["raylet"][0].process.pid, signal.SIGKILL)  # in the middle of the search: nobody is left
        before = _records(run)
        stamps = {name: (run / "trials" / name / "DONE").stat().st_mtime_ns for name in before}
        _join(cluster, tmp_path, 2)
        _finished(process)
    after = _records(run)
    assert len(after) == 14
    assert {record["status"] for record in after.values()} <= {"done", "stopped"}
    assert {name: (run / "trials" / name / "DONE").stat().st_mtime_ns for name in before} == stamps, "no finished trial ran again"
    assert len(before) < 14
    assert _shards(tmp_path / "disk-2") == _shards(tmp_path / "features"), "the node that joined late did the rest"
    assert not [path for path in Path(run / "trials").iterdir() if path.name.startswith(".")]
