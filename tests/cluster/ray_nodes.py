"""Ray nodes on this machine, each a raylet process with a folder of its own as its disk, and
raysere commands that run on them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

HERE = Path(__file__).resolve().parent
PLUGINS = [HERE / "plugins", HERE.parent / "features" / "plugins"]
sys.path.append(str(PLUGINS[1]))  # the toy backbone, for this process too
COMMAND = [sys.executable, "-c", "from raysere.cli.main import main; main()"]
LIMIT_S = 240
CLASSES = ("low", "high")
SPEAKERS, CLIP_S = 4, 0.6


def write_table(folder: Path, takes: int = 12, first_s: float = CLIP_S) -> Path:
    """A corpus of tones, of four speakers, ``takes`` of each and two classes of pitch; the first
    lasts ``first_s``.
    """
    import numpy as np
    import soundfile

    rows = []
    for speaker in range(SPEAKERS):
        for take in range(takes):
            label, draw = CLASSES[take % 2], np.random.default_rng([speaker, take])
            pitch = (130 if label == "low" else 240) + 6 * speaker + draw.normal()
            seconds = CLIP_S if speaker or take else first_s
            time_s = np.arange(round(seconds * 16000)) / 16000
            wave = 0.2 * np.sin(2 * np.pi * pitch * time_s) + 0.01 * draw.normal(size=len(time_s))
            soundfile.write(folder / f"{speaker}-{take}.wav", wave, 16000)
            rows.append({"path": f"{speaker}-{take}.wav", "speaker": f"s{speaker}", "emotion": label})
    pl.DataFrame(rows).write_csv(folder / "table.csv")
    return folder / "table.csv"


def experiment(folder: Path, table: Path, name: str, **changes: Any) -> Path:
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


def meeting(folder: Path, table: Path, name: str, nodes: int, **changes: Any) -> Path:
    """An experiment that trains when ``nodes`` nodes have a trial; ``place-NAME`` gets a file
    called after each of them.
    """
    place, space = folder / f"place-{name}", folder / "meeting.yaml"
    place.mkdir()
    space.write_text(yaml.safe_dump({"method": "meeting", "space": {"lr": {"float": [1e-4, 1e-2], "log": True}}}))
    held = {"place": str(place), "nodes": nodes, "hidden": 8, "epochs": 3, "batch": 16}
    search = [{"space": str(space), "features": "acoustic", "trials": 6, "fixed": held}]
    return experiment(folder, table, name, search=search, halving=None, **changes)


class Pace:
    """The experiment part that names the paced backbone, and what its workers wrote down."""

    def __init__(self, folder: Path, items: int) -> None:
        self.gate, self.log = folder / "gate", folder / "log"
        self.log.touch()
        options = {"gate": str(self.gate), "log": str(self.log), "items": items}
        self.features = {"acoustic": {"backbone": "paced", "options": options}}

    def open(self) -> None:
        self.gate.touch()

    def lines(self) -> list[tuple[str, int, str]]:
        """(node, process, utterance) of each item that was begun, in that order."""
        split = (line.split() for line in self.log.read_text().splitlines())
        return [(node, int(process), utterance) for node, process, utterance in split]

    def counts(self) -> dict[str, int]:
        """Items begun so far, by node."""
        nodes = [node for node, _, _ in self.lines()]
        return {node: nodes.count(node) for node in nodes}


def python_path() -> str:
    """This raysere and the plug-ins of the tests, for workers and drivers."""
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(HERE.parents[1]), *map(str, PLUGINS), *([before] if before else [])])


@contextlib.contextmanager
def cluster_of(folder: Path, nodes: int) -> Iterator[tuple[Any, list[Any]]]:
    """A head without cores and ``nodes`` workers of one core each.

    Yields (Ray's cluster, the workers).
    """
    from ray.cluster_utils import Cluster

    settings = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "1000",
        "PYTHONPATH": python_path(),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False})
        try:
            yield cluster, [join(cluster, folder, number) for number in range(nodes)]
        finally:
            cluster.shutdown()


def join(cluster: Any, folder: Path, number: int) -> Any:
    return cluster.add_node(
        num_cpus=1, object_store_memory=80 << 20, env_vars={"RAYSERE_LOCAL_STORE": str(folder / f"disk-{number}"), "OMP_NUM_THREADS": "1"}
    )


def kill(node: Any) -> None:
    """The raylet of a node, by SIGKILL.

    A worker that is at work goes on until it has done what it was given.
    """
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)


def cut_power(node: Any) -> None:
    """All processes of a node at once, by SIGKILL."""
    raylet = node.all_processes["raylet"][0].process.pid
    for process in [raylet, *map(int, Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split())]:
        os.kill(process, signal.SIGKILL)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start(cluster: Any, *arguments: Any, quiet: bool = True) -> subprocess.Popen:
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
    command = [*COMMAND, *map(str, arguments), *(["-q"] if quiet else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def alone(*arguments: Any) -> None:
    """A command on a Ray of this machine alone."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": python_path()}
    command = [*COMMAND, *map(str, arguments), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def finished(process: subprocess.Popen) -> str:
    try:
        output = process.communicate(timeout=LIMIT_S)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def until(condition: Callable[[], bool], *processes: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def records(run: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("trials/*/DONE"))}


def shards(store: Path) -> list[Path]:
    return sorted(path.relative_to(store) for path in store.glob("*/shard-*"))


def same_board(one: Path, two: Path) -> bool:
    """Whether two runs have the same trials, scores and configurations, in the same order."""
    boards = [pl.read_parquet(run / "leaderboard.parquet").sort("trial") for run in (one, two)]
    same = [name for name in boards[0].columns if name in ("trial", "status", "score", "epoch", "epochs", "config")]
    assert len(same) >= 4
    return boards[0].select(same).equals(boards[1].select(same))
