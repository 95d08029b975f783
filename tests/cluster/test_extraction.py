"""Extraction on several real Ray nodes that die and join while it is under way, and by two drivers
at once.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ray_nodes import Pace, cluster_of, cut_power, experiment, finished, is_alive, join, kill, records, shards, start, until, write_table
from toy_backbone import Toy

from raysere.corpora.manifest import Manifest
from raysere.features.extract.actors import DEATHS
from raysere.features.extract.run import extract_local
from raysere.features.spec import FeatureSpec
from raysere.features.store.shards import check_shard
from raysere.features.store.store import FeatureStore


def _stored(folder: Path, run: str) -> tuple[FeatureStore, FeatureSpec, Manifest]:
    store, manifest = FeatureStore(folder / "features"), Manifest.read(folder / "runs" / run / "manifest.parquet")
    (key,) = store.keys()
    return store, store.spec(key), manifest


def _standing(folder: Path, run: str) -> set[str]:
    """Utterances that stand in finished shards."""
    store, spec, manifest = _stored(folder, run)
    present = store.open(spec, manifest, partial=True).present
    return {utterance for utterance, is_there in zip(manifest.table["utterance"], present, strict=True) if is_there}


def _as_in_one_process(folder: Path, run: str) -> None:
    """The store holds each utterance once, bit for bit as one process extracts it without Ray, and
    nothing else.
    """
    store, spec, manifest = _stored(folder, run)
    extract_local(manifest, spec, folder / "local", backbone=Toy.open())
    there, here = (each.open(spec, manifest) for each in (store, FeatureStore(folder / "local")))
    assert there.present.all()
    for layer in spec.numbers:
        np.testing.assert_array_equal(there.matrix(layer), here.matrix(layer))
    key = store.folder(spec)
    for shard in key.glob("shard-*"):
        check_shard(shard)
    assert not (key / "quarantine.parquet").exists()
    assert not list(key.glob(".*"))


@pytest.mark.parametrize("how", [cut_power, kill])
@pytest.mark.timeout(600)
def test_a_node_that_dies_in_the_middle_of_extraction_costs_only_what_it_had_in_hand(tmp_path, table, how):
    pace = Pace(tmp_path, items=14)  # of the 48: one task at least and a part of another
    path = experiment(tmp_path, table, "kill", features=pace.features)
    with cluster_of(tmp_path, 2) as (cluster, nodes):
        dead, other = (node.node_id for node in nodes)
        process = start(cluster, "extract", path)
        until(lambda: pace.counts() == {dead: 14, other: 14}, process)
        before = pace.lines()
        (worker,) = {worker for node, worker, _ in before if node == dead}
        standing = _standing(tmp_path, "kill")
        of_dead = {utterance for node, _, utterance in before if node == dead}
        assert 0 < len(standing) < 28
        assert of_dead & standing, "it has finished a task"
        assert of_dead - standing, "and has another in hand"
        assert is_alive(worker)
        how(nodes[0])
        if how is cut_power:
            until(lambda: not is_alive(worker), process)
        pace.open()
        finished(process)
    until(lambda: not is_alive(worker))  # without its raylet it may go on for a while, and write what others have written by now
    later = pace.lines()[len(before) :]
    times = Counter(utterance for _, _, utterance in pace.lines())
    assert len(times) == 48
    assert {times[utterance] for utterance in standing} == {1}, "what stands in a shard is not encoded again"
    assert max(times.values()) <= 2
    if how is cut_power:
        assert {utterance for utterance in times if times[utterance] == 2} == of_dead - standing, "what the dead node had in hand is"
        assert {node for node, _, _ in later} == {other}
    _as_in_one_process(tmp_path, "kill")


@pytest.mark.timeout(600)
def test_a_clip_is_not_to_blame_for_the_nodes_that_died_over_it(tmp_path):
    (tmp_path / "corpus").mkdir()
    table = write_table(tmp_path / "corpus", takes=2, first_s=8.0)  # longer than all others together: a task of its own
    pace = Pace(tmp_path, items=1)
    path = experiment(tmp_path, table, "blame", features=pace.features)
    with cluster_of(tmp_path, 1) as (cluster, (node,)):
        process = start(cluster, "extract", path)
        for number in range(DEATHS):
            until(lambda node=node: node.node_id in pace.counts(), process)
            cut_power(node)
            node = join(cluster, tmp_path, number + 1)
        pace.open()
        finished(process)
    assert max(Counter(utterance for _, _, utterance in pace.lines()).values()) == DEATHS + 1, "they all died over one clip"
    _as_in_one_process(tmp_path, "blame")


@pytest.mark.timeout(600)
def test_a_node_that_joins_during_extraction_extracts(tmp_path, table):
    pace = Pace(tmp_path, items=4)
    path = experiment(tmp_path, table, "late", features=pace.features)
    with cluster_of(tmp_path, 1) as (cluster, (first,)):
        process = start(cluster, "extract", path)
        until(lambda: pace.counts() == {first.node_id: 4}, process)
        late = join(cluster, tmp_path, 1)
        until(lambda: pace.counts() == {first.node_id: 4, late.node_id: 4}, process)
        pace.open()
        finished(process)
    encoded = [utterance for _, _, utterance in pace.lines()]
    assert len(encoded) == len(set(encoded)) == 48
    _as_in_one_process(tmp_path, "late")


@pytest.mark.timeout(600)
def test_two_drivers_on_one_cluster_and_one_store_extract_once_and_both_search(tmp_path, table):
    pace = Pace(tmp_path, items=4)
    search = [{"space": "pooled_quick", "features": "acoustic", "trials": 4, "fixed": {"hidden": 8, "epochs": 3, "batch": 16}}]
    one, two = (experiment(tmp_path, table, name, features=pace.features, search=search) for name in ("one", "two"))
    with cluster_of(tmp_path, 2) as (cluster, nodes):
        first = start(cluster, "tune", one)
        until(lambda: pace.counts() == {node.node_id: 4 for node in nodes}, first)
        second = start(cluster, "tune", two, quiet=False)
        said = []
        for line in second.stdout:
            said.append(line)
            if "waiting for it" in line:
                break
        assert f"process {first.pid} on {os.uname().nodename}" in said[-1], said
        pace.open()
        finished(first)
        finished(second)
    encoded = [utterance for _, _, utterance in pace.lines()]
    assert len(encoded) == len(set(encoded)) == 48
    assert shards(tmp_path / "disk-0") == shards(tmp_path / "disk-1") == shards(tmp_path / "features")
    for name in ("one", "two"):
        assert [record["status"] for record in records(tmp_path / "runs" / name).values()] == ["done"] * 4
    _as_in_one_process(tmp_path, "one")
