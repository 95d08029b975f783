"""A head and two workers with addresses, process tables and disks of their own, started by the
command lines of docs/cluster.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from network import missing, network
from ray_nodes import COMMAND, LIMIT_S, alone, experiment, finished, meeting, python_path, records, same_board, shards

RAY = str(Path(sys.executable).with_name("ray"))
ASK = "import ray; ray.init(log_to_driver=False, logging_level='ERROR'); print(sum(node['Alive'] for node in ray.nodes()))"


@pytest.fixture
def folder():
    """A folder with a short path: a socket's may have 107 letters, and Ray's lie deep."""
    path = Path(tempfile.mkdtemp(prefix="raysere-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def machines(folder):
    """A head without cores and two workers of one core, joined."""
    if reason := missing():
        pytest.skip(f"MACHINES NOT TESTED: {reason}")
    with network(folder) as net:
        common = ["--block", "--object-store-memory", str(80 << 20), "--disable-usage-stats"]
        environment = {
            "RAY_AUTH_MODE": "disabled",
            "RAYSERE_LOCAL_STORE": str(net.disk / "features"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": python_path(),
        }
        head = net.add(
            *[RAY, "start", "--head", "--port=6379", "--node-ip-address=10.77.0.1", "--num-cpus=0", "--include-dashboard=false"],
            *[f"--temp-dir={net.disk / 'ray'}", *common],
            **environment,
        )
        _until_joined(head, 1)
        for number in (2, 3):
            net.add(RAY, "start", "--address=10.77.0.1:6379", f"--node-ip-address=10.77.0.{number}", "--num-cpus=1", *common, **environment)
        _until_joined(head, 3)
        yield net.machines


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": "10.77.0.1:6379", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": python_path()}


def _until_joined(head, count):
    deadline, said = time.monotonic() + LIMIT_S, None
    while said is None or said.stdout.strip() != str(count):
        assert time.monotonic() < deadline, said
        assert head.process.poll() is None, head.log.read_text()
        said = subprocess.run(head.inside(sys.executable, "-c", ASK), env=_environment(), capture_output=True, text=True)


def _start(head, *arguments):
    command = head.inside(*COMMAND, *map(str, arguments), "-q")
    return subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(600)
def test_a_search_over_three_machines_gives_what_one_gives(folder, machines, table):
    """The first trials of a search follow from their numbers alone, so they are the same in
    whatever order they end.
    """
    head, *workers = machines
    path = meeting(folder, table, "machines", 2)
    finished(_start(head, "tune", path))
    assert len(list((folder / "place-machines").iterdir())) == 2, "both workers train"
    alone("tune", path, "--set", "name=one", "--set", f"store={folder / 'features-of-one'}")
    assert [record["status"] for record in records(folder / "runs" / "machines").values()] == ["done"] * 6
    assert same_board(folder / "runs" / "machines", folder / "runs" / "one")
    for worker in workers:
        assert shards(worker.disk / "features") == shards(folder / "features"), f"{worker.name} trained on a copy of its own"
    assert not (head.disk / "features").exists()


@pytest.mark.timeout(300)
def test_machines_that_do_not_share_the_storage_are_told_at_the_start(folder, machines, table):
    head, own = machines[0], folder / "disk"  # of each machine its own
    path = experiment(folder, table, "apart", runs=str(own / "runs"), store=str(own / "features"))
    process = _start(head, "tune", path)
    try:
        said = process.communicate(timeout=LIMIT_S)[0]
    finally:
        process.kill()
    assert process.returncode == 3, said
    assert "does not see this folder as the driver does" in said
    assert "10.77.0.2" in said or "10.77.0.3" in said
    assert not list(head.disk.rglob(".probe-*")), "nothing is left behind"
