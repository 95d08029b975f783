"""Several real Ray nodes on this machine, each a raylet process with a disk of its own for fetched
features: the search.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from ray_nodes import Pace, alone, cluster_of, experiment, finished, join, kill, meeting, records, same_board, shards, start, until


@pytest.mark.slow  # three nodes, below, show the same and more
@pytest.mark.timeout(600)
def test_two_nodes_share_the_work_and_each_fetches_a_shard_once(tmp_path, table):
    with cluster_of(tmp_path, 2) as (cluster, _):
        finished(start(cluster, "tune", experiment(tmp_path, table, "two")))
        written = _fetched(tmp_path, 2)
        finished(start(cluster, "tune", experiment(tmp_path, table, "again", seed=1)))
        later = _fetched(tmp_path, 2)
    assert len(records(tmp_path / "runs" / "two")) == 8
    found = shards(tmp_path / "features")
    assert shards(tmp_path / "disk-0") == shards(tmp_path / "disk-1") == found
    assert found
    assert later == written, "no node fetched anything twice"


def _fetched(folder: Path, nodes: int) -> dict[Path, int]:
    """When each shard on the disks of the nodes came to be there."""
    return {path: path.stat().st_ctime_ns for number in range(nodes) for path in (folder / f"disk-{number}").glob("*/shard-*")}


@pytest.mark.timeout(600)
def test_three_nodes_all_extract_and_all_train(tmp_path, table):
    """No worker goes on before the others are there: it ends only where all three nodes extract,
    and all three train, side by side.
    """
    pace = Pace(tmp_path, items=4)
    with cluster_of(tmp_path, 3) as (cluster, nodes):
        names = {node.node_id for node in nodes}
        first = start(cluster, "tune", meeting(tmp_path, table, "three", 3, features=pace.features))
        until(lambda: pace.counts() == dict.fromkeys(names, 4), first)
        pace.open()
        finished(first)
        written = _fetched(tmp_path, 3)
        finished(start(cluster, "tune", meeting(tmp_path, table, "again", 3, features=pace.features, seed=1)))
        later = _fetched(tmp_path, 3)
    for name in ("three", "again"):
        assert {path.name for path in (tmp_path / f"place-{name}").iterdir()} == names
        assert [record["status"] for record in records(tmp_path / "runs" / name).values()] == ["done"] * 6
    encoded = [utterance for _, _, utterance in pace.lines()]
    assert len(encoded) == len(set(encoded)) == 48
    assert {shards(tmp_path / f"disk-{number}") == shards(tmp_path / "features") for number in range(3)} == {True}
    assert len(shards(tmp_path / "features")) >= 3
    assert later == written, "no node fetched anything twice"


@pytest.mark.timeout(600)
def test_a_search_in_the_same_order_gives_the_same_on_one_node_and_on_two(tmp_path, table):
    one_at_a_time = {"trial": {"concurrent": 1}}
    alone("tune", experiment(tmp_path, table, "alone", **one_at_a_time))
    with cluster_of(tmp_path, 2) as (cluster, _):
        finished(start(cluster, "tune", experiment(tmp_path, table, "both", **one_at_a_time)))
    assert same_board(tmp_path / "runs" / "alone", tmp_path / "runs" / "both")


@pytest.mark.timeout(900)
def test_a_node_that_dies_costs_no_finished_work_and_one_that_joins_late_is_used(tmp_path, table):
    slow = {
        "space": "pooled_quick",
        "features": "acoustic",
        "trials": 14,
        "fixed": {"hidden": 64, "epochs": 120, "patience": 120, "batch": 4},
    }
    path = experiment(tmp_path, table, "kill", search=[slow], halving=None)
    run = tmp_path / "runs" / "kill"
    with cluster_of(tmp_path, 2) as (cluster, nodes):
        process = start(cluster, "tune", path)
        until(lambda: len(shards(tmp_path / "features")) >= 1, process)
        cluster.remove_node(nodes[0], allow_graceful=False)  # in the middle of extraction, or of the start of the search
        until(lambda: len(records(run)) >= 3, process)
        kill(nodes[1])  # in the middle of the search: nobody is left
        before = records(run)
        stamps = {name: (run / "trials" / name / "DONE").stat().st_mtime_ns for name in before}
        join(cluster, tmp_path, 2)
        finished(process)
    after = records(run)
    assert len(after) == 14
    assert {record["status"] for record in after.values()} <= {"done", "stopped"}
    assert {name: (run / "trials" / name / "DONE").stat().st_mtime_ns for name in before} == stamps, "no finished trial ran again"
    assert len(before) < 14
    assert shards(tmp_path / "disk-2") == shards(tmp_path / "features"), "the node that joined late did the rest"
    assert not [path for path in Path(run / "trials").iterdir() if path.name.startswith(".")]
