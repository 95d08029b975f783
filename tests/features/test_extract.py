"""Extraction, alone and by Ray actors, undisturbed and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from toy_corpus import PLUGINS, corpus, manifest_of, subset, tone, use_toy

from raysere.base.cluster import start_ray, stop_ray
from raysere.base.errors import ConfigError, DataError, EnvironmentFault
from raysere.base.progress import Progress
from raysere.features.extract import encoder as encoder_module
from raysere.features.extract.actors import DEATHS, Tasks
from raysere.features.extract.encoder import Encoder, buckets
from raysere.features.extract.run import encode_view, extract, extract_local, item
from raysere.features.spec import resolve
from raysere.features.store.content import Work
from raysere.features.store.shards import read_index, shard_numbers
from raysere.features.store.store import FeatureStore

use_toy()
SPEC = resolve({"backbone": "toy"})


def toy(**options):
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    return resolve({"backbone": "toy", "options": plain})


def encoded(log: Path) -> Counter:
    """Utterance to how often it was encoded, by all workers of all runs."""
    return Counter(line.split()[1] for line in log.read_text().splitlines()) if log.exists() else Counter()


@pytest.fixture(scope="module")
def ray_here():
    """A local Ray of this file's own, whose workers find the toy backbone."""
    stop_ray()
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGINS), *([before] if before else [])])
    try:
        assert start_ray(cpus=2, object_store_gb=0.1)
        assert not start_ray()  # once is enough
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    yield
    stop_ray()


# --- in this process ------------------------------------------------------------------------------


def test_a_grown_corpus_extracts_only_what_is_new(tmp_path):
    manifest, log = corpus(tmp_path / "audio", 8), tmp_path / "log"
    spec = toy(log=log)
    first = extract_local(subset(manifest, [1] * 5 + [0] * 3), spec, tmp_path / "store")
    assert (first.done, first.cached, first.quarantined.height, first.without_text) == (5, 0, 0, 0)
    second = extract_local(manifest, spec, tmp_path / "store")
    assert (second.done, second.cached) == (3, 5)
    third = extract_local(manifest, spec, tmp_path / "store")
    assert (third.done, third.cached) == (0, 8)
    assert set(encoded(log).values()) == {1}
    assert len(encoded(log)) == 8


def test_one_content_under_two_names_is_encoded_once(tmp_path):
    tone(tmp_path / "audio" / "a.wav", 0.5, 1)
    (tmp_path / "audio" / "b.wav").write_bytes((tmp_path / "audio" / "a.wav").read_bytes())
    manifest, log = manifest_of(tmp_path / "audio"), tmp_path / "log"
    spec = toy(log=log)
    assert extract_local(manifest, spec, tmp_path / "store").done == 2
    assert sum(encoded(log).values()) == 1
    matrix = FeatureStore(tmp_path / "store").open(spec, manifest).matrix(0)
    np.testing.assert_array_equal(matrix[0], matrix[1])


def bad_corpus(folder: Path):
    """Ten good clips and one of every kind of bad one."""
    corpus(folder, 10)
    (folder / "v_empty.wav").write_bytes(b"")
    (folder / "v_text.wav").write_text("not audio at all")
    tone(folder / "v_short.wav", 0.05, 1)
    soundfile.write(folder / "v_silent.wav", np.zeros(8000), 16000)
    soundfile.write(folder / "v_nan.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    tone(folder / "v_cut.wav", 1.0, 2)
    data = (folder / "v_cut.wav").read_bytes()
    (folder / "v_cut.wav").write_bytes(data[: len(data) // 2])
    tone(folder / "v_missing.wav", 1.0, 3)
    manifest = manifest_of(folder)
    (folder / "v_missing.wav").unlink()
    return manifest


BAD = ["v_cut", "v_empty", "v_missing", "v_nan", "v_short", "v_silent", "v_text"]


def test_bad_files_are_listed_remembered_and_tried_again_when_they_change(tmp_path):
    manifest, log = bad_corpus(tmp_path / "audio"), tmp_path / "log"
    spec = toy(log=log)
    first = extract_local(manifest, spec, tmp_path / "store")
    assert first.done == 10
    table = first.quarantined
    assert table.columns == ["utterance", "path", "reason", "stage"]
    assert table["utterance"].to_list() == [f"toy/{name}" for name in BAD]
    assert table["stage"].unique().to_list() == ["features"]
    reasons = dict(zip(BAD, table["reason"], strict=True))
    words = {"v_short": "too short", "v_silent": "silent", "v_nan": "not finite", "v_missing": "missing", "v_cut": "truncated"}
    for name, word in words.items():
        assert word in reasons[name]
    view = FeatureStore(tmp_path / "store").open(spec, manifest)
    assert view.present.tolist() == [True] * 10 + [False] * 7
    remembered = pl.read_parquet(tmp_path / "store" / spec.key / "quarantine.parquet")
    assert remembered.columns == ["utterance", "content", "path", "reason"]
    assert set(remembered["utterance"]) == {f"toy/{name}" for name in BAD if name != "v_missing"}

    tone(tmp_path / "audio" / "v_short.wav", 0.7, 9)
    tone(tmp_path / "audio" / "v_missing.wav", 0.7, 10)
    second = extract_local(manifest, spec, tmp_path / "store")
    assert (second.done, second.cached, second.quarantined.height) == (2, 10, 5)
    assert pl.read_parquet(tmp_path / "store" / spec.key / "quarantine.parquet").height == 5  # the short one is good now
    assert FeatureStore(tmp_path / "store").open(spec, manifest).present.sum() == 12


def test_remembered_failures_are_not_tried_again_and_passing_ones_are(tmp_path):
    manifest, log = corpus(tmp_path / "audio", 6), tmp_path / "log"
    spec = toy(log=log, refuses="u001", breaks="u002")
    for _ in range(2):
        result = extract_local(manifest, spec, tmp_path / "store")
        assert result.quarantined["reason"].to_list() == ["refused by the toy", "RuntimeError: a fault that may pass"]
    assert (encoded(log)["toy/u001"], encoded(log)["toy/u002"], encoded(log)["toy/u003"]) == (1, 2, 1)


def test_too_many_failures_end_it_with_the_reasons_and_lose_nothing(tmp_path):
    manifest, log = corpus(tmp_path / "audio", 10), tmp_path / "log"
    spec = toy(log=log, refuses="u00")
    with pytest.raises(DataError, match=r"more than 50%.*refused by the toy"):
        extract_local(manifest, spec, tmp_path / "store")
    assert pl.read_parquet(tmp_path / "store" / spec.key / "quarantine.parquet").height >= 6
    spec = toy(log=tmp_path / "log2", refuses="u000")
    with pytest.raises(DataError, match="1 of 10"):
        extract_local(manifest, spec, tmp_path / "store", fail_threshold=0.05)
    assert read_index(tmp_path / "store" / spec.key).height == 9
    assert extract_local(manifest, spec, tmp_path / "store", fail_threshold=0.2).cached == 9
    assert set(encoded(tmp_path / "log2").values()) == {1}


def test_no_transcript_is_a_missing_modality_unless_there_is_none_at_all(tmp_path):
    manifest = corpus(tmp_path / "audio", 4)
    spec = toy(modality="text")
    some = type(manifest)(manifest.table.with_columns(transcript=pl.Series([None, None, None, "words"])), manifest.roots)
    result = extract_local(some, spec, tmp_path / "store")
    assert (result.done, result.without_text, result.quarantined["reason"].to_list()) == (1, 3, ["no transcript"] * 3)
    assert result.quarantined["stage"].to_list() == ["no transcript"] * 3
    assert FeatureStore(tmp_path / "store").open(spec, some.table).present.tolist() == [False, False, False, True]
    none = type(manifest)(manifest.table.with_columns(transcript=pl.lit(None, dtype=pl.String)), manifest.roots)
    with pytest.raises(DataError, match=r"The corpus has no transcripts: toy reads words, and none of the 4 .*Where: toy\.") as caught:
        extract_local(none, spec, tmp_path / "store")
    assert "these files" not in str(caught.value)


def test_no_row_in_a_table_is_a_missing_modality_unless_it_has_none_at_all(tmp_path):
    manifest = corpus(tmp_path / "audio", 10)
    np.savez(tmp_path / "some.npz", utterance=np.array(["u003", "u007"]), vectors=np.ones((2, 4), np.float32))
    spec = resolve({"backbone": f"table:{tmp_path / 'some.npz'}"})
    result = extract_local(manifest, spec, tmp_path / "store", fail_threshold=0.0)
    assert (result.done, result.quarantined["stage"].to_list()) == (2, ["no row"] * 8)
    assert np.flatnonzero(FeatureStore(tmp_path / "store").open(spec, manifest).present).tolist() == [3, 7]
    np.savez(tmp_path / "none.npz", utterance=np.array(["a", "b"]), vectors=np.ones((2, 4), np.float32))
    with pytest.raises(DataError, match="10 of 10 utterances give no features of table:.*no row for this utterance"):
        extract_local(manifest, resolve({"backbone": f"table:{tmp_path / 'none.npz'}"}), tmp_path / "store", fail_threshold=1.0)
    np.savez(tmp_path / "bad.npz", utterance=np.array(["u003", "u007"]), vectors=np.full((2, 4), np.nan, np.float32))
    with pytest.raises(DataError, match="2 of 10 .*more than 10%"):
        extract_local(manifest, resolve({"backbone": f"table:{tmp_path / 'bad.npz'}"}), tmp_path / "store", fail_threshold=0.1)


def test_bad_files_of_two_corpora_of_one_name_are_both_remembered(tmp_path):
    store, log = tmp_path / "store", tmp_path / "log"
    spec, manifests = toy(log=log, refuses="u001"), []
    for number, name in enumerate("AB"):
        manifests.append(corpus(tmp_path / name, 3, seed=number))
        extract_local(manifests[-1], spec, store)
    for manifest in manifests:  # what the second refused does not make the first one's bad file a new one
        assert FeatureStore(store).open(spec, manifest).present.tolist() == [True, False, True]
    assert [extract_local(manifest, spec, store).cached for manifest in manifests] == [2, 2]
    assert encoded(log)["toy/u001"] == 2


def test_shards_are_bounded_in_items_bytes_and_seconds(tmp_path, monkeypatch):
    manifest = corpus(tmp_path / "audio", 12)
    monkeypatch.setattr(encoder_module, "SHARD_ITEMS", 5)
    extract_local(manifest, SPEC, tmp_path / "items")
    assert read_index(tmp_path / "items" / SPEC.key)["shard"].value_counts().sort("shard")["count"].to_list() == [5, 5, 2]
    monkeypatch.setattr(encoder_module, "SHARD_ITEMS", 256)
    monkeypatch.setattr(encoder_module, "SHARD_BYTES", 3 * 20 * 4)
    extract_local(manifest, SPEC, tmp_path / "bytes")
    assert len(shard_numbers(tmp_path / "bytes" / SPEC.key)) == 4
    monkeypatch.setattr(encoder_module, "SHARD_BYTES", 1 << 30)
    monkeypatch.setattr(encoder_module, "SHARD_S", 0.0)
    extract_local(manifest, SPEC, tmp_path / "seconds")
    assert len(shard_numbers(tmp_path / "seconds" / SPEC.key)) == 12


def test_padded_batches_give_the_same_rows_and_a_bad_item_costs_only_itself(tmp_path):
    manifest = corpus(tmp_path / "audio", 12, seconds=(0.98, 1.0))
    padded = toy(batching="padded", refuses="u003")
    extract_local(manifest, SPEC, tmp_path / "store")
    result = extract_local(manifest, padded, tmp_path / "store", batch_s=6.0)
    assert result.quarantined["utterance"].to_list() == ["toy/u003"]
    store = FeatureStore(tmp_path / "store")
    rows = [row for row in range(12) if row != 3]
    np.testing.assert_array_equal(store.open(padded, manifest).matrix(1, rows), store.open(SPEC, manifest).matrix(1, rows))


def test_buckets_keep_padding_under_three_percent_and_the_budget():
    lengths = np.random.default_rng(0).gamma(3.0, 1.2, 2000) + 0.3
    works = [Work(str(number), str(number), float(length)) for number, length in enumerate(lengths)]
    batches = buckets(works, 60.0)
    assert sorted(work.content for batch in batches for work in batch) == sorted(work.content for work in works)
    for batch in batches:
        longest, total = max(work.seconds for work in batch), sum(work.seconds for work in batch)
        assert longest * len(batch) <= 60 or len(batch) == 1
        assert 1 - total / (longest * len(batch)) <= 0.03 + 1e-12
    assert len(batches) < 2000 * lengths.mean() / 60 * 1.3  # and the batches are well filled
    assert batches[0][0].seconds == lengths.max()
    assert all(len(batch) == 1 for batch in buckets(works, 0.0))


def test_level_normalisation_gives_every_clip_one_rms(tmp_path):
    for number, gain in enumerate((0.01, 0.1, 1.0)):
        wave = gain * np.random.default_rng(number).uniform(-0.5, 0.5, 16000)
        (tmp_path / "audio").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "audio" / f"u{number}.wav", wave, 16000, subtype="FLOAT")
    manifest = manifest_of(tmp_path / "audio")
    spec = resolve({"backbone": "toy", "level": "rms", "granularity": "frame", "dtype": "float32"})
    extract_local(manifest, spec, tmp_path / "store")
    stream = FeatureStore(tmp_path / "store").open(spec, manifest).batch(np.arange(3), [0])
    power = (stream.layers[0][:, :, 0] ** 2 + stream.layers[0][:, :, 2] ** 2).mean(1)  # mean^2 + std^2 of every 10 ms
    np.testing.assert_allclose(power.sqrt(), 0.05, rtol=1e-4)


def test_items_in_memory_for_prediction(tmp_path):
    manifest = corpus(tmp_path / "audio", 3)
    paths = [manifest.path(row) for row in manifest.table.iter_rows(named=True)]
    (tmp_path / "bad.wav").write_text("no audio")
    view, failed = encode_view(SPEC, [item(str(path), path=path) for path in [*paths, tmp_path / "bad.wav"]])
    assert view.present.tolist() == [True, True, True, False]
    assert failed.height == 1
    extract_local(manifest, SPEC, tmp_path / "store")
    np.testing.assert_array_equal(view.matrix(0, [0, 1, 2]), FeatureStore(tmp_path / "store").open(SPEC, manifest).matrix(0))
    words, _ = encode_view(toy(modality="text"), [item("a", text="some words")])
    assert words.present.all()


def test_a_backbone_that_changed_since_is_refused(tmp_path):
    other = SPEC.model_copy(update={"identity": "toy-0"})
    with pytest.raises(ConfigError, match="not the one"):
        Encoder(other, tmp_path).open()


def test_a_full_disk_loses_no_finished_shard_and_leaves_none_half_written(tmp_path, monkeypatch):
    manifest = corpus(tmp_path / "audio", 6)
    monkeypatch.setattr(encoder_module, "SHARD_ITEMS", 2)
    real, calls = np.save, []

    def save(path, array):
        calls.append(path)
        if len(calls) > 4:
            raise OSError("100 requested and 3 written")
        real(path, array)

    monkeypatch.setattr("raysere.features.store.shards.np.save", save)
    with pytest.raises(EnvironmentFault, match="disk is full"):
        extract_local(manifest, SPEC, tmp_path / "store")
    monkeypatch.undo()
    folder = tmp_path / "store" / SPEC.key
    assert read_index(folder).height == 2
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    assert extract_local(manifest, SPEC, tmp_path / "store").cached == 2


# --- tasks ----------------------------------------------------------------------------------------


def test_tasks_go_longest_first_and_get_smaller_towards_the_end():
    works = [Work(str(number), str(number), 1.0 + number / 100) for number in range(300)]
    tasks = Tasks(works, 2)
    sizes, seen = [], []
    while tasks:
        task = tasks.next()
        sizes.append(len(task))
        seen += task
    assert [work.seconds for work in seen] == sorted((work.seconds for work in works), reverse=True)
    assert sum(work.seconds for work in seen[: sizes[0]]) <= 20  # the first ones are small: the speed is not known yet
    assert sizes[-1] == 1


def test_halving_finds_the_one_file_that_kills():
    works = [Work(str(number), str(number), 1.0) for number in range(100)]
    tasks, failures, deaths = Tasks(works, 1), [], 0
    tasks.speed = 1e9
    finished = set()
    while tasks:
        task = tasks.next()
        if any(work.content == "42" for work in task):
            deaths += 1
            _, failure = tasks.died(task, finished, "here", set())
            failures += [failure] if failure else []
        else:
            finished |= {work.content for work in task}
    assert [failure.content for failure in failures] == ["42"]
    assert f"killed its worker {DEATHS} times" in failures[0].reason
    assert len(finished) == 99
    assert deaths <= 7 + DEATHS


def test_a_file_is_not_to_blame_for_nodes_that_go():
    """Two nodes go; the first is seen to be gone only when the second worker has died.

    Then the file kills as often as it takes.
    """
    tasks = Tasks([Work("long", "long", 9.0)], 1)
    answers = []
    for node, gone in (("a", set()), ("b", {"a"}), ("c", {"a", "b"}), ("c", {"a", "b"}), ("c", {"a", "b"})):
        answers.append(tasks.died(tasks.next(), set(), node, gone)[1])
    assert answers[:-1] == [None] * 4
    assert answers[-1].content == "long"


# --- by Ray ---------------------------------------------------------------------------------------


def test_actors_give_the_same_bytes_as_this_process(tmp_path, ray_here, capsys):
    manifest = bad_corpus(tmp_path / "audio")
    local = extract_local(manifest, SPEC, tmp_path / "local")
    with Progress(every_s=0) as progress:
        remote = extract(manifest, SPEC, tmp_path / "remote", progress=progress)
    assert (remote.done, remote.cached) == (10, 0)
    assert remote.quarantined.equals(local.quarantined)
    views = [FeatureStore(tmp_path / name).open(SPEC, manifest.table) for name in ("local", "remote")]
    for layer in SPEC.numbers:
        np.testing.assert_array_equal(views[0].matrix(layer), views[1].matrix(layer))
    assert "16 of 16" in capsys.readouterr().err
    assert extract(manifest, SPEC, tmp_path / "remote").cached == 10


def test_a_killed_worker_is_replaced_and_its_task_done_by_another(tmp_path, ray_here):
    manifest, log = corpus(tmp_path / "audio", 16), tmp_path / "log"
    (tmp_path / "once").touch()
    spec = toy(log=log, kills_once=tmp_path / "once")
    result = extract(manifest, spec, tmp_path / "store")
    assert (result.done, result.quarantined.height) == (16, 0)
    assert not (tmp_path / "once").exists()
    assert len({line.split()[0] for line in log.read_text().splitlines()}) >= 2
    assert FeatureStore(tmp_path / "store").open(spec, manifest.table).present.all()


@pytest.mark.parametrize(("looks", "deaths"), [(0, 2), (2, 3)])
def test_workers_that_die_and_finish_nothing_are_the_machines_fault_unless_their_nodes_went(tmp_path, ray_here, monkeypatch, looks, deaths):
    """Ray is made to say that the node is gone, the first times that it is asked after a death."""
    import ray

    alive, asked = ray.nodes, []

    def nodes():
        asked.append(None)
        return [{**node, "Alive": node["Alive"] and len(asked) > looks} for node in alive()]

    manifest = corpus(tmp_path / "audio", 2)
    monkeypatch.setattr("raysere.features.extract.actors._BARREN", 2)
    monkeypatch.setattr(ray, "nodes", nodes)
    with pytest.raises(EnvironmentFault, match=f"{deaths} extraction workers died one after the other"):
        extract(manifest, toy(kills="u"), tmp_path / "store", actors=1)


def test_a_file_that_kills_its_worker_goes_to_quarantine(tmp_path, ray_here):
    manifest = corpus(tmp_path / "audio", 4)
    spec = toy(kills="u002")
    result = extract(manifest, spec, tmp_path / "store")
    assert result.done == 3
    assert result.quarantined["utterance"].to_list() == ["toy/u002"]
    assert "killed its worker 3 times" in result.quarantined["reason"][0]
    assert extract(manifest, spec, tmp_path / "store").cached == 3  # remembered: no worker dies again


def test_faults_of_workers_arrive_as_they_are(tmp_path, ray_here):
    manifest = corpus(tmp_path / "audio", 3)
    with pytest.raises(ConfigError, match="not the one that these features"):
        extract(manifest, SPEC.model_copy(update={"identity": "toy-0"}), tmp_path / "store")
    with pytest.raises(DataError, match="of 3 utterances.*refused by the toy"):
        extract(manifest, toy(refuses="u"), tmp_path / "store")


def test_the_store_actor_of_the_node(tmp_path, ray_here):
    import ray

    from raysere.features.store.remote import locate, node_store

    manifest = corpus(tmp_path / "audio", 3)
    extract_local(manifest, SPEC, tmp_path / "store")
    actor = node_store(str(tmp_path / "here"))
    assert ray.get(actor.resident.remote(str(tmp_path / "store"), SPEC.key)) == str(tmp_path / "here")
    same = node_store()  # by name
    assert ray.get(same.resident.remote(f"file://{tmp_path / 'store'}", SPEC.key)) == str(tmp_path / "here")
    ray.kill(actor)
    assert locate(f"file://{tmp_path / 'store'}", SPEC.key, str(tmp_path / "here")) == str(tmp_path / "here")
    with pytest.raises(OSError, match="no features"):
        locate(str(tmp_path / "store"), "0" * 16)


# --- two processes, and a killed one --------------------------------------------------------------

DRIVER = """
import sys
sys.path[:0] = [{here!r}, {plugins!r}]
from pathlib import Path
from toy_corpus import manifest_of
from raysere.base.cluster import start_ray, stop_ray
from raysere.features.extract.run import extract
from raysere.features.spec import resolve
from raysere.base.progress import Progress
start_ray(cpus=2, object_store_gb=0.1)
with Progress(every_s=0) as progress:
    result = extract(manifest_of(Path({audio!r})), resolve({{"backbone": "toy", "options": {options!r}}}), {store!r}, progress=progress)
print(result.done, result.cached, flush=True)
stop_ray()
"""


def driver(folder: Path, options: dict) -> subprocess.Popen:
    here, audio, store = str(Path(__file__).parent), str(folder / "audio"), str(folder / "store")
    code = DRIVER.format(here=here, plugins=str(PLUGINS), audio=audio, store=store, options=options)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGINS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(condition, process: subprocess.Popen, what: str) -> None:
    for _ in range(3000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(what)


def test_two_extractions_at_once_share_the_work(tmp_path):
    manifest, log, gate = corpus(tmp_path / "audio", 12), tmp_path / "log", tmp_path / "gate"
    options = {"log": str(log), "gate": str(gate), "before_gate": 4}
    log.touch()
    first = driver(tmp_path, options)
    wait_until(lambda: sum(encoded(log).values()) >= 4, first, "the first driver encodes")
    second = driver(tmp_path, options)
    lines = []
    for line in second.stderr:  # it says that it waits, and for whom
        lines.append(line)
        if "waiting for it" in line:
            break
    assert f"process {first.pid}" in lines[-1]
    gate.touch()
    outputs = [process.communicate(timeout=120)[0].split() for process in (first, second)]
    assert outputs == [["12", "0"], ["0", "12"]]
    assert set(encoded(log).values()) == {1}
    assert FeatureStore(tmp_path / "store").open(toy(**options), manifest.table).present.all()


def test_a_killed_driver_loses_only_what_was_in_flight(tmp_path):
    manifest, log, gate = corpus(tmp_path / "audio", 40), tmp_path / "log", tmp_path / "gate"
    options = {"log": str(log), "gate": str(gate), "before_gate": 30}
    log.touch()
    spec = toy(**options)
    folder = tmp_path / "store" / spec.key
    first = driver(tmp_path, options)
    wait_until(lambda: sum(encoded(log).values()) >= 30, first, "the driver encodes")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    workers = {int(line.split()[0]) for line in log.read_text().splitlines()}
    for _ in range(1200):  # the workers end with their driver; until then one of them may still finish a shard
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("workers outlive their driver")
    finished = set(read_index(folder)["content"])
    assert 0 < len(finished) < 40
    (folder / ".shard.1.dead.tmp").mkdir()  # as a worker killed while writing leaves it
    before = encoded(log)
    gate.touch()
    second = driver(tmp_path, options)
    out, error = second.communicate(timeout=120)
    assert out.split() == [str(40 - len(finished)), str(len(finished))], error
    names = dict(zip(FeatureStore(tmp_path / "store")._contents(spec, manifest.table)[0], manifest.table["utterance"], strict=True))
    again = {utterance for utterance, count in encoded(log).items() if count > before[utterance] and before[utterance]}
    assert not again & {names[content] for content in finished}  # what stood in a finished shard was not encoded again
    assert FeatureStore(tmp_path / "store").open(spec, manifest.table).present.all()
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_a_worker_keeps_the_memory_that_it_frees() -> None:
    """In a process of its own, as the setting lasts: arrays that are made again take no new pages."""
    program = """
import resource, sys
import numpy as np
from raysere.base.memory import keep_memory
kept = keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(8 << 20, np.uint8), np.ones(48 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
sys.exit(0 if not kept or faults() < 1000 else 1)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
