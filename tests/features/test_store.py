from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from toy_corpus import corpus, manifest_of, subset, tone, use_toy

from raysere.base.errors import ConfigError, DataError, EnvironmentFault, MissingFileError
from raysere.corpora.manifest import Manifest
from raysere.features.extract.run import extract_local
from raysere.features.rows import layer_path, shard_name
from raysere.features.spec import resolve
from raysere.features.store import shards as shards_module
from raysere.features.store.content import FileHashes, contents
from raysere.features.store.remote import resident
from raysere.features.store.shards import check_shard, read_index, rebuild_index, remove_leftovers, shard_numbers, write_shard
from raysere.features.store.store import FeatureStore

use_toy()
SPEC = resolve({"backbone": "toy"})


def rows(count, seed=0):
    random = np.random.default_rng(seed)
    return {number: [random.normal(size=(1, SPEC.width(number))).astype(np.float32) for _ in range(count)] for number in SPEC.numbers}


# --- shards ---------------------------------------------------------------------------------------


def test_a_shard_is_layer_major_numpy_files_with_an_index_and_hashes(tmp_path):
    layers = rows(3)
    assert write_shard(tmp_path, SPEC, ["a", "b", "c"], layers) == 0
    folder = tmp_path / "shard-00000"
    assert sorted(path.name for path in folder.iterdir()) == ["index.parquet", "layer-00.npy", "layer-01.npy", "layer-02.npy", "meta.json"]
    np.testing.assert_array_equal(np.load(folder / "layer-01.npy"), np.concatenate(layers[1]))
    assert pl.read_parquet(folder / "index.parquet").rows() == [("a", 0, 1), ("b", 1, 1), ("c", 2, 1)]
    check_shard(folder)
    data = bytearray((folder / "layer-01.npy").read_bytes())
    data[-1] ^= 1
    (folder / "layer-01.npy").write_bytes(bytes(data))
    check_shard(folder, contents=False)
    with pytest.raises(DataError, match=r"layer-01.npy does not match the hash"):
        check_shard(folder)
    (folder / "layer-01.npy").write_bytes(bytes(data[:-4]))
    with pytest.raises(DataError, match="bytes"):
        check_shard(folder, contents=False)


def test_writers_at_once_never_share_a_number(tmp_path):
    barrier, numbers = threading.Barrier(8), []

    def write(name):
        barrier.wait()
        numbers.append(write_shard(tmp_path, SPEC, [name], rows(1)))

    threads = [threading.Thread(target=write, args=(f"t{number}",)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(numbers) == list(range(8)) == shard_numbers(tmp_path)
    assert sorted(read_index(tmp_path)["content"]) == [f"t{number}" for number in range(8)]
    assert not list(tmp_path.glob(".*"))


def test_a_number_that_is_taken_at_the_last_moment_is_passed_over(tmp_path, monkeypatch):
    write_shard(tmp_path, SPEC, ["a"], rows(1))
    monkeypatch.setattr(shards_module, "shard_numbers", lambda folder: [])  # as a slower writer saw it
    assert write_shard(tmp_path, SPEC, ["b"], rows(1)) == 1


def test_layers_that_do_not_share_rows_are_refused_and_nothing_is_left(tmp_path):
    layers = rows(1)
    layers[1] = [np.zeros((2, 10), np.float32)]
    with pytest.raises(DataError, match="do not share their rows"):
        write_shard(tmp_path, SPEC, ["a"], layers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError("4096 requested and 12 written")])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(shards_module.np, "save", full)
    with pytest.raises(EnvironmentFault, match="disk is full"):
        write_shard(tmp_path, SPEC, ["a"], rows(1))
    assert not list(tmp_path.iterdir())


def test_the_index_is_a_cache_and_the_shards_are_the_truth(tmp_path):
    write_shard(tmp_path, SPEC, ["a", "b"], rows(2))
    merged = rebuild_index(tmp_path)
    write_shard(tmp_path, SPEC, ["b", "c"], rows(2))  # b twice: without the lock two processes may do the same work
    index = read_index(tmp_path)
    assert index.rows() == [("a", 0, 0, 1), ("b", 0, 1, 1), ("c", 1, 1, 1)]
    assert merged.height == 2
    (tmp_path / "index.parquet").write_bytes(b"nonsense")
    assert read_index(tmp_path).equals(index)
    assert rebuild_index(tmp_path).equals(index)
    assert pl.read_parquet(tmp_path / "index.parquet").equals(index)


def test_a_shard_removed_by_hand_leaves_no_stale_places(tmp_path):
    write_shard(tmp_path, SPEC, ["a"], rows(1))
    write_shard(tmp_path, SPEC, ["b"], rows(1))
    rebuild_index(tmp_path)
    shutil.rmtree(tmp_path / shard_name(1))
    assert read_index(tmp_path)["content"].to_list() == ["a"]
    rebuild_index(tmp_path)  # as every extraction does first
    assert write_shard(tmp_path, SPEC, ["c"], rows(1)) == 1
    assert read_index(tmp_path).rows() == [("a", 0, 0, 1), ("c", 1, 0, 1)]


def test_leftovers_of_dead_writers_go_and_shards_stay(tmp_path):
    write_shard(tmp_path, SPEC, ["a"], rows(1))
    (tmp_path / ".shard.123.abc.tmp").mkdir()
    (tmp_path / ".shard.123.abc.tmp" / "layer-00.npy").write_bytes(b"half")
    (tmp_path / ".index.parquet.1.tmp").write_bytes(b"half")
    assert remove_leftovers(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000"]


# --- the store ------------------------------------------------------------------------------------


def test_rows_are_joined_by_content_in_any_order_and_by_any_name(tmp_path):
    manifest = corpus(tmp_path / "audio", 6)
    store = FeatureStore(tmp_path / "store")
    extract_local(manifest, SPEC, store.root)
    view = store.open(SPEC, manifest)
    assert view.present.all()
    shuffled = manifest.table.sample(fraction=1.0, shuffle=True, seed=1)
    other = store.open(SPEC.key, shuffled)
    assert other.utterances == shuffled["utterance"].to_list() != view.utterances
    np.testing.assert_array_equal(other.matrix(0), view.matrix(0, view.rows_of(other.utterances)))
    # an independent look: mean of the 10 ms means is the mean of the clip (its whole frames)
    for utterance, row in zip(view.utterances, view.matrix(0), strict=True):
        wave = soundfile.read(tmp_path / "audio" / f"{utterance[4:]}.wav", dtype="float32")[0]
        assert row[0] == pytest.approx(wave[: len(wave) // 160 * 160].mean(), abs=1e-6)
    # the same clips under other names, in another folder: nothing to extract
    shutil.copytree(tmp_path / "audio", tmp_path / "moved")
    for path in list((tmp_path / "moved").iterdir()):
        path.rename(path.with_name(f"other{path.name}"))
    moved = manifest_of(tmp_path / "moved")
    assert (extract_local(moved, SPEC, store.root).done, extract_local(moved, SPEC, store.root).cached) == (0, 6)
    np.testing.assert_array_equal(store.open(SPEC, moved.table).matrix(1), view.matrix(1))


def test_what_was_never_extracted_is_an_error_and_with_partial_absent(tmp_path):
    manifest = corpus(tmp_path / "audio", 4)
    store = FeatureStore(tmp_path / "store")
    extract_local(subset(manifest, [1, 1, 0, 0]), SPEC, store.root)
    for table in (manifest, manifest.table):
        with pytest.raises(DataError, match="2 of 4 utterances have no features"):
            store.open(SPEC, table)
        assert store.open(SPEC, table, partial=True).present.tolist() == [True, True, False, False]
    with pytest.raises(MissingFileError, match=f"Valid choices: {SPEC.key}"):
        store.open("0" * 16, manifest)
    with pytest.raises(ConfigError, match="resident"):
        FeatureStore("s3://bucket/features")


def two_corpora(folder: Path) -> list[Manifest]:
    """Two corpora with the same name, paths and utterance ids, and different audio."""
    return [corpus(folder / name, 2, seed=seed) for seed, name in enumerate("AB")]


def test_two_corpora_of_one_name_keep_their_own_features(tmp_path):
    first, second = two_corpora(tmp_path)
    store = FeatureStore(tmp_path / "store")
    for manifest in (first, second):
        extract_local(manifest, SPEC, store.root)
    assert first.table["utterance"].to_list() == second.table["utterance"].to_list()
    means = []
    for manifest in (first, second):
        views = [store.open(SPEC, manifest), store.open(SPEC.key, manifest.table, roots=manifest.roots)]
        np.testing.assert_array_equal(views[0].matrix(0), views[1].matrix(0))
        for row, name in enumerate(manifest.table["path"]):
            wave = soundfile.read(Path(manifest.roots["toy"]) / name, dtype="float32")[0]
            assert views[0].matrix(0)[row][0] == pytest.approx(wave[: len(wave) // 160 * 160].mean(), abs=1e-6)
        means.append(views[0].matrix(0))
    assert not np.allclose(*means)
    with pytest.raises(DataError, match="2 of 2 utterances were extracted from several corpora with the same name"):
        store.open(SPEC, first.table)
    with pytest.raises(DataError, match="2 of 2 utterances have no features"):
        store.open(SPEC, first.table, roots={"toy": str(tmp_path / "C")})
    shutil.rmtree(tmp_path / "A")  # a worker needs no audio
    np.testing.assert_array_equal(store.open(SPEC, first).matrix(0), means[0])
    assert extract_local(second, SPEC, store.root).cached == 2
    np.testing.assert_array_equal(store.open(SPEC, first).matrix(0), means[0])


def test_one_folder_by_two_names_and_one_audio_in_two_folders_are_no_conflict(tmp_path):
    first = corpus(tmp_path / "A", 2)
    store = FeatureStore(tmp_path / "store")
    extract_local(first, SPEC, store.root)
    (tmp_path / "link").symlink_to(tmp_path / "A")
    linked = Manifest(first.table, {"toy": str(tmp_path / "link")})
    np.testing.assert_array_equal(
        store.open(SPEC, linked.table, roots=linked.roots).matrix(0), store.open(SPEC, first.table, roots=first.roots).matrix(0)
    )
    shutil.copytree(tmp_path / "A", tmp_path / "copy")
    copy = manifest_of(tmp_path / "copy")
    assert store.open(SPEC, copy).present.all()  # never extracted from there: its audio is looked at
    assert extract_local(copy, SPEC, store.root).cached == 2
    assert pl.read_parquet(store.folder(SPEC) / "utterances.parquet").height == 4
    assert store.open(SPEC, first.table).present.all()


def test_a_map_of_before_roots_were_kept_serves_where_it_is_clear(tmp_path):
    first, second = two_corpora(tmp_path)
    store = FeatureStore(tmp_path / "store")
    path = store.folder(SPEC) / "utterances.parquet"
    extract_local(first, SPEC, store.root)
    expected = store.open(SPEC, first).matrix(0)
    before = pl.read_parquet(path).drop("root")
    before.write_parquet(path)
    for table in (first, first.table):
        np.testing.assert_array_equal(store.open(SPEC, table).matrix(0), expected)
    np.testing.assert_array_equal(store.open(SPEC, first.table, roots=first.roots).matrix(0), expected)
    with pytest.raises(DataError, match="have no features"):  # its audio says that it is another one
        store.open(SPEC, second)
    extract_local(second, SPEC, store.root)
    for arguments in ((first.table, None), (first.table, first.roots)):
        with pytest.raises(DataError, match="several corpora"):
            store.open(SPEC, arguments[0], roots=arguments[1])
    np.testing.assert_array_equal(store.open(SPEC, first).matrix(0), expected)
    assert not np.allclose(store.open(SPEC, second).matrix(0), expected)
    extract_local(first, SPEC, store.root)  # now all of it has a root
    assert pl.read_parquet(path)["root"].null_count() == 0
    shutil.rmtree(tmp_path / "A")
    np.testing.assert_array_equal(store.open(SPEC, first).matrix(0), expected)
    before.write_parquet(path)
    np.testing.assert_array_equal(store.open(SPEC, first).matrix(0), expected)


def test_a_manifest_whose_audio_is_gone_and_was_never_extracted_is_an_error(tmp_path):
    manifest = corpus(tmp_path / "audio", 3)
    store = FeatureStore(tmp_path / "store")
    extract_local(subset(manifest, [1, 1, 0]), SPEC, store.root)
    shutil.rmtree(tmp_path / "audio")
    with pytest.raises(DataError, match="1 of 3 utterances have no features"):
        store.open(SPEC, manifest)
    assert store.open(SPEC, manifest, partial=True).present.tolist() == [True, True, False]


def test_file_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    from raysere.features import audio

    tone(tmp_path / "a.wav", 0.2, 1)
    read = []
    real = audio.content_hash
    monkeypatch.setattr(audio, "content_hash", lambda path: read.append(path) or real(path))
    hashes = FileHashes(tmp_path)
    first = hashes.of(tmp_path / "a.wav")
    hashes.save()
    again = FileHashes(tmp_path)
    assert again.of(tmp_path / "a.wav") == again.known(tmp_path / "a.wav") == first
    assert len(read) == 1
    stat = os.stat(tmp_path / "a.wav")
    tone(tmp_path / "a.wav", 0.2, 2)  # same size
    os.utime(tmp_path / "a.wav", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert again.known(tmp_path / "a.wav") is None
    assert again.of(tmp_path / "a.wav") != first
    assert isinstance(again.of(tmp_path / "none.wav"), DataError)
    (tmp_path / "hashes.parquet").write_bytes(b"nonsense")
    assert FileHashes(tmp_path).known(tmp_path / "a.wav") is None


def test_contents_tell_segments_channels_words_and_languages_apart(tmp_path):
    tone(tmp_path / "a.wav", 1.0, 1)
    base = manifest_of(tmp_path)

    def names(spec, **columns):
        table = base.table.with_columns(**{name: pl.lit(value).cast(base.table.schema[name]) for name, value in columns.items()})
        return contents(type(base)(table, base.roots), spec, FileHashes(tmp_path)).content[0]

    one, mix = (resolve({"backbone": "toy", "channel": channel}) for channel in (1, "mix"))
    audio = [names(SPEC), names(SPEC, start_s=0.1), names(SPEC, end_s=0.5), names(SPEC, start_s=0.1, end_s=0.5), names(one), names(mix)]
    assert len(set(audio)) == 6
    assert names(SPEC, transcript="something else") == audio[0]
    text = resolve({"backbone": "toy", "options": {"modality": "text"}})
    words = [names(text), names(text, transcript="other"), names(text, language="it")]
    assert len(set(words)) == 3
    assert names(text, transcript="  ") is None


@pytest.mark.parametrize("kind", ["file", "under a file"])
def test_a_store_that_cannot_be_is_an_environment_fault(tmp_path, kind):
    (tmp_path / "store").write_text("I am a file")
    root = tmp_path / "store" if kind == "file" else tmp_path / "store" / "inner"
    with pytest.raises(EnvironmentFault, match="not a folder"):
        extract_local(corpus(tmp_path / "audio", 1), SPEC, root)


def test_another_spec_in_the_folder_is_refused(tmp_path):
    store = FeatureStore(tmp_path)
    shutil.move(store.prepare(resolve({"backbone": "toy", "layers": [0]})), tmp_path / SPEC.key)
    with pytest.raises(DataError, match="belongs to other features"):
        store.prepare(SPEC)


def test_the_lock_is_waited_for_and_ends_with_its_process(tmp_path):
    store = FeatureStore(tmp_path)
    store.prepare(SPEC)
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent / "plugins")]!r}
from raysere.features.spec import resolve
from raysere.features.store.store import FeatureStore
with FeatureStore({str(tmp_path)!r}).lock(resolve({{"backbone": "toy"}})):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        said = []

        def say(line):
            said.append(line)
            holder.kill()  # SIGKILL: nobody tidies up

        with store.lock(SPEC, say):
            pass
        assert len(said) == 1
        assert f"process {holder.pid}" in said[0]
    finally:
        holder.kill()
        holder.communicate()


# --- residence on a node --------------------------------------------------------------------------


def test_a_folder_is_its_own_residence_and_an_address_is_fetched_once(tmp_path, monkeypatch):
    manifest = corpus(tmp_path / "audio", 5)
    store = FeatureStore(tmp_path / "store")
    extract_local(subset(manifest, [1, 1, 1, 0, 0]), SPEC, store.root)
    assert resident(str(store.root), SPEC.key) == str(store.root)
    address, local = f"file://{store.root}", tmp_path / "local"
    assert resident(address, SPEC.key, local) == str(local)
    views = [place.open(SPEC, manifest.table, partial=True) for place in (FeatureStore(local), store)]
    np.testing.assert_array_equal(views[0].matrix(0), views[1].matrix(0))
    stamp = (local / SPEC.key / shard_name(0) / "layer-00.npy").stat().st_ino
    extract_local(manifest, SPEC, store.root)  # the store grows: only the new shard travels
    resident(address, SPEC.key, local)
    assert (local / SPEC.key / shard_name(0) / "layer-00.npy").stat().st_ino == stamp
    np.testing.assert_array_equal(FeatureStore(local).open(SPEC, manifest.table).matrix(0), store.open(SPEC, manifest.table).matrix(0))
    with pytest.raises(MissingFileError, match="no features"):
        resident(address, "0" * 16, local)
    with pytest.raises(EnvironmentFault, match="does not answer"):
        resident("nowhere://bucket/features", SPEC.key, local)


def test_a_shard_that_arrives_damaged_is_refused_and_not_kept(tmp_path):
    store = FeatureStore(tmp_path / "store")
    extract_local(corpus(tmp_path / "audio", 2), SPEC, store.root)
    path = layer_path(store.folder(SPEC) / shard_name(0), 1)
    data = bytearray(path.read_bytes())
    data[-2] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="arrives damaged: layer-01.npy"):
        resident(f"file://{store.root}", SPEC.key, tmp_path / "local")
    assert shard_numbers(tmp_path / "local" / SPEC.key) == []
    assert not list((tmp_path / "local" / SPEC.key).glob(".shard*"))
