"""What a run costs on a cluster: the model in closed form, where another node stops paying, and the
command.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import soundfile
import yaml
from click.testing import CliRunner

from raysere.base.errors import ConfigError
from raysere.cli.main import cli
from raysere.pipeline import cluster_cost as scale
from raysere.pipeline.cluster_cost import Cluster, Encoding, Load, Trials, paying, priced, slots, wall

SPEECH = Encoding(
    "speech", speech_s=36_000, items=7200, longest_s=10, core_speed=5, reading_speed=400, core_rate=100e9, read=1e9, write=2e9
)
LOAD = Load((SPEECH,), (Trials("pooled", 120, 30.0, "told"),), fetch=5e9, utterances=7200)


def test_seconds_of_every_stage_in_closed_form():
    cluster = Cluster(2, cores=4, link=1e9, storage=1.5e9)
    found = wall(LOAD, cluster)
    assert found["extract"] == pytest.approx(scale.OPEN_S + 36_000 / (5 * 8) + 10 / 5)
    assert found["fetch"] == pytest.approx(5e9 / 0.75e9)
    assert found["search"] == pytest.approx(scale.BEGIN_S + 120 * (30 + scale.HANDOVER_S) / 8 + 30 * (1 - 1 / 8) / 2)
    assert found["ensemble"] == pytest.approx(scale.SELECT_S * 120 * 7200)
    assert found["total"] == pytest.approx(scale.START_S + sum(found[stage] for stage in ("extract", "fetch", "search", "ensemble")))


def test_the_network_bounds_extraction_and_the_driver_bounds_a_search_of_short_trials():
    slow = Cluster(3, cores=400, link=1e6, storage=2e6)
    assert wall(LOAD, slow)["extract"] == pytest.approx(scale.OPEN_S + 3e9 / 2e6 + 2)
    narrow = Cluster(3, cores=400, link=1e6, storage=9e9)
    assert wall(LOAD, narrow)["extract"] == pytest.approx(scale.OPEN_S + 3e9 / 3e6 + 2), "the links of three nodes"
    short = replace(LOAD, trials=(Trials("pooled", 10_000, 0.5, "told"),))
    assert wall(short, Cluster(50, cores=100))["search"] == pytest.approx(scale.BEGIN_S + 10_000 * scale.DRIVER_S)


def test_no_more_workers_than_clips_actors_trials_or_what_the_experiment_allows():
    few = replace(LOAD, encodings=(replace(SPEECH, items=3),))
    assert wall(few, Cluster(4, cores=8))["extract"] == pytest.approx(scale.OPEN_S + 36_000 / 15 + 2)
    assert wall(replace(LOAD, workers=2), Cluster(4, cores=8))["extract"] == pytest.approx(scale.OPEN_S + 36_000 / 10 + 2)
    one = wall(replace(LOAD, concurrent=1), Cluster(4, cores=8))["search"]
    assert one == pytest.approx(scale.BEGIN_S + 120 * (30 + scale.HANDOVER_S))


def test_a_gpu_is_as_fast_as_its_products_until_its_readers_are_not():
    with_gpu = Cluster(1, "t4", 2, 8)
    expected = 5 * 65e12 * scale.GPU_SHARE / (100e9 * scale.CORE_SHARE)
    assert SPEECH.speed(with_gpu) == pytest.approx(expected)
    assert expected < 4 * 400
    assert SPEECH.speed(Cluster(1, "h100")) == 4 * 400, "four threads read at 400"
    assert replace(SPEECH, scales=False).speed(with_gpu) == 5, "what is no encoder is taken for a core"
    assert wall(LOAD, with_gpu)["extract"] == pytest.approx(scale.OPEN_S + 36_000 / (expected * 2) + 10 / expected)


def test_places_for_trials_on_a_node():
    assert slots(replace(LOAD, cpu=3), Cluster(1, cores=8)) == 2
    assert slots(replace(LOAD, gpu=0.25), Cluster(1, "h100", 2, 16)) == 8
    assert slots(replace(LOAD, gpu=0.25), Cluster(1, "h100", 2, 6)) == 6
    with pytest.raises(ConfigError, match="No room for a trial of 1 CPU and 0.25 GPU on a node of 8 cores and 0 GPUs"):
        slots(replace(LOAD, gpu=0.25), Cluster(1, cores=8))


@pytest.mark.parametrize(("trials", "seconds"), [(120, 30.0), (5, 600.0), (2000, 1.0), (0, 1.0)])
def test_the_node_beyond_which_none_pays_is_found_as_by_trying_all(trials, seconds):
    load = replace(LOAD, trials=(Trials("pooled", trials, seconds, "told"),) if trials else ())
    cluster = Cluster(1, cores=4)
    alone = wall(load, cluster)["total"]
    worth = [alone / (nodes * wall(load, replace(cluster, nodes=nodes))["total"]) for nodes in range(1, 400)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(worth)), "it falls with the nodes"
    assert paying(load, cluster) == max(nodes for nodes, share in enumerate(worth, 1) if share > 0.5) < 399


def test_nothing_left_to_do_pays_no_second_node():
    assert paying(Load((), (), 0.0, 10), Cluster(1)) == 1


def test_the_price_counts_hours_bytes_and_what_runs_at_once():
    found = priced(replace(LOAD, gpu=0.25), Cluster(5, "a100", 1, 16))
    assert [row["nodes"] for row in found["rows"]] == [1, 2, 4, 5]
    last = found["rows"][-1]
    assert last["gpu_hours"] == last["node_hours"] == pytest.approx(5 * last["seconds"]["total"] / 3600)
    assert last["gpu_hours_busy"] == pytest.approx((36_000 / found["speeds"]["speech"] + 0.25 * 120 * 30) / 3600)
    assert last["network_bytes"] == 3e9 + 5 * 5e9
    assert last["speedup"] == pytest.approx(found["rows"][0]["seconds"]["total"] / last["seconds"]["total"])
    assert found["trials_at_once"] == 20
    assert priced(LOAD, Cluster(1))["rows"][0]["gpu_hours"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"nodes": 0}, "at least 1 nodes"), ({"nodes": 5000}, "At most 4096"), ({"gpu": "h1000"}, "h1000"), ({"link": 0.0}, "link")],
)
def test_a_wrong_cluster_is_told(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Cluster(**{"nodes": 1, **wrong})


@pytest.fixture
def experiment(tmp_path):
    rows = []
    for number in range(24):
        speaker, label = f"s{number // 6}", ("high", "low")[number % 2]
        time = np.arange(8000) / 16000
        soundfile.write(tmp_path / f"{number}.wav", 0.2 * np.sin(2 * np.pi * (120 if label == "low" else 260) * time), 16000)
        rows.append({"path": f"{number}.wav", "speaker": speaker, "emotion": label})
    pl.DataFrame(rows).write_csv(tmp_path / "table.csv")
    value = {
        "name": "toy",
        "corpora": [{"corpus": "table", "path": str(tmp_path / "table.csv")}],
        "task": {"classes": ["low", "high"]},
        "protocol": {"kind": "out_of_fold", "folds": 2},
        "features": {"acoustic": {"backbone": "acoustic"}},
        "search": [{"space": "pooled_quick", "features": "acoustic", "trials": 400}],
        "runs": str(tmp_path / "runs"),
        "store": str(tmp_path / "features"),
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def _plan(*arguments):
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)], standalone_mode=False)


def test_the_command_prices_what_is_left_on_a_cluster(experiment):
    done = _plan(experiment, "--nodes", "3", "--cores", "4", "--seconds", "0.3", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    feature, cluster = found["features"]["acoustic"], found["cluster"]
    assert feature["read_bytes"] == 24 * (16000 + 44)
    assert feature["longest_s"] == pytest.approx(0.5)
    assert feature["reading_speed"] > 10 * feature["speed"] > 0, "reading alone is faster than reading and encoding"
    assert [row["nodes"] for row in cluster["rows"]] == [1, 2, 3]
    assert cluster["rows"][0]["network_bytes"] == feature["read_bytes"] + 2 * feature["bytes"], "written, then read by a node"
    (left,) = cluster["trials"]
    assert (left["count"], left["seconds"]) == (400, pytest.approx(scale.TRIAL_S * 24 * 2 * 20))
    assert "guess" in left["source"]


def test_what_is_cached_is_not_priced_again(experiment):
    from raysere.features.extract.run import extract_local
    from raysere.pipeline.experiment import load_experiment
    from raysere.pipeline.prepare import prepare

    prepared = prepare(load_experiment(experiment))
    ((spec, manifest),) = prepared.features_to_extract().values()
    extract_local(manifest, spec, prepared.experiment.store_folder)
    cluster = json.loads(_plan(experiment, "--nodes", "2", "--seconds", "0", "--json").stdout)["cluster"]
    assert [row["seconds"]["extract"] for row in cluster["rows"]] == [0, 0]
    assert cluster["rows"][0]["seconds"]["fetch"] > 0


def test_finished_trials_tell_how_long_one_takes(experiment):
    for number, seconds in enumerate((2.0, 5.0)):
        trial = experiment.parent / "runs" / "toy" / "trials" / f"pooled_quick-acoustic-{number:04d}"
        trial.mkdir(parents=True)
        head = {"format": "raysere.trial/1", "trial": trial.name, "study": "pooled_quick-acoustic", "space": "pooled_quick"}
        head |= {"method": "pooled", "features": ["acoustic"], "modality": "audio", "outer": 0, "number": number, "seed": 0}
        (trial / "params.yaml").write_text(yaml.safe_dump({**head, "config": "c", "params": {}}))
        (trial / "DONE").write_text(json.dumps({"status": "done", "score": 0.5, "seconds": seconds}))
    shown = _plan(experiment, "--nodes", "2", "--seconds", "0.3").output
    assert "398  3.5 s          2 finished trials" in shown
    told = _plan(experiment, "--nodes", "2", "--seconds", "0.3", "--trial-seconds", "7").output
    assert "398  7 s            as told" in told
    assert "nodes pay: beyond it" in told
    assert "Assumed, not measured: link, storage" in told


def test_a_backbone_that_was_not_measured_cannot_be_priced_on_a_cluster(experiment):
    with pytest.raises(ConfigError, match="was not measured"):
        CliRunner().invoke(cli, ["plan", str(experiment), "--nodes", "2", "--seconds", "0"], standalone_mode=False, catch_exceptions=False)
