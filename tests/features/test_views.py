from __future__ import annotations

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_corpus import use_toy

from raysere.base.errors import ConfigError, DataError
from raysere.features.device_cache import CACHE, DeviceCache, packed
from raysere.features.extract.pool_frames import chunk_bounds, chunk_count, pool_frames
from raysere.features.prefix import PrefixSums, as_pair, prefix_sums
from raysere.features.rows import MappedLayers, Placement, layer_path, shard_name
from raysere.features.spec import resolve
from raysere.features.store.shards import read_index, write_shard
from raysere.features.views import FeatureView

use_toy()
UTTERANCE = resolve({"backbone": "toy"})
FRAME = resolve({"backbone": "toy", "granularity": "frame"})


@pytest.fixture(autouse=True)
def fresh_residency():
    CACHE.clear()
    yield
    CACHE.clear()
    CACHE._budgets.clear()


def ragged(seed, counts, spec=FRAME):
    """Arrays per layer; a count of 0 is an absent utterance. Values are exact in float16."""
    random = np.random.default_rng(seed)

    def values(count, width):
        return random.integers(-64, 64, (count, width)) / 8 if count else None

    return {layer: [values(count, spec.width(layer)) for count in counts] for layer in spec.numbers}


def on_disk(folder, spec, arrays, shard_of):
    """The same utterances in shards on disk, in the given grouping, plus one row that no view asks
    for.
    """
    count = len(shard_of)
    names = [f"c{number}" for number in range(count)]
    for shard in sorted({value for value in shard_of if value is not None}):
        chosen = [number for number in range(count) if shard_of[number] == shard and arrays[spec.numbers[0]][number] is not None]
        extra = 2 if spec.granularity != "utterance" else 1
        other = {layer: np.full((extra, spec.width(layer)), 99, spec.dtype) for layer in spec.numbers}
        layers = {layer: [other[layer], *(arrays[layer][number].astype(spec.dtype) for number in chosen)] for layer in spec.numbers}
        write_shard(folder, spec, [f"other{shard}", *(names[number] for number in chosen)], layers)
    places = {name: (shard, first, rows) for name, shard, first, rows in read_index(folder).iter_rows()}
    columns = np.array([places.get(name, (-1, 0, 0)) for name in names])
    placement = Placement(columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 2])
    return FeatureView(spec, [f"u{number}" for number in range(count)], placement, MappedLayers(folder))


def expected(arrays, layer, rows, width):
    steps = max(1, max((0 if arrays[layer][row] is None else len(arrays[layer][row]) for row in rows), default=0))
    out, mask = np.zeros((len(rows), steps, width), np.float32), np.zeros((len(rows), steps), bool)
    for place, row in enumerate(rows):
        if arrays[layer][row] is not None:
            out[place, : len(arrays[layer][row])] = arrays[layer][row]
            mask[place, : len(arrays[layer][row])] = True
    return out, mask


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_batches_equal_the_arrays_however_they_are_sharded_and_kept(data, tmp_path_factory):
    counts = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=9))
    shards = data.draw(st.lists(st.integers(0, 2), min_size=len(counts), max_size=len(counts)))
    rows = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=12))
    arrays = ragged(data.draw(st.integers(0, 99)), counts)
    names = [f"u{number}" for number in range(len(counts))]
    views = [FeatureView.from_arrays(FRAME, names, arrays), on_disk(tmp_path_factory.mktemp("key"), FRAME, arrays, shards)]
    budget = data.draw(st.sampled_from([0, 100, 1 << 30]))  # 100: one layer fits only sometimes
    CACHE.clear()
    CACHE.set_budget("cpu", budget)
    for view in views:
        np.testing.assert_array_equal(view.present, np.array(counts) > 0)
        np.testing.assert_array_equal(view.lengths(rows), np.array(counts)[rows])
        for index in (np.array(rows), torch.tensor(rows)):
            stream = view.batch(index, [0, 1])
            for layer in (0, 1):
                values, mask = expected(arrays, layer, rows, FRAME.width(layer))
                np.testing.assert_array_equal(stream.layers[layer].numpy(), values)
                np.testing.assert_array_equal(stream.mask.numpy(), mask)
                assert stream.layers[layer].dtype == torch.float32
        assert (stream.granularity, stream.stats, stream.kind) == ("frame", 1, "dense")
        assert CACHE.used("cpu") <= budget


def test_batches_of_a_layer_that_is_packed_on_its_device(tmp_path, monkeypatch):
    """As a GPU keeps it; here the device is the CPU."""
    counts = [3, 0, 5, 1, 4]
    arrays = ragged(7, counts)
    view = on_disk(tmp_path, FRAME, arrays, [1, 0, 0, 2, 1])
    rows = [4, 1, 0, 3, 4]
    plain = view.batch(rows, [0, 1])

    def layer(source, token, layer, placement, width, dtype, device):
        kept = packed(source, layer, placement, width, dtype, "cpu")
        assert kept.bytes == 13 * width * 2
        return kept

    monkeypatch.setattr(CACHE, "layer", layer)
    stream = view.batch(torch.tensor(rows), [0, 1])
    assert torch.equal(stream.mask, plain.mask)
    for number in (0, 1):
        values, _ = expected(arrays, number, rows, FRAME.width(number))
        np.testing.assert_array_equal(stream.layers[number].numpy(), values)
        assert torch.equal(stream.layers[number], plain.layers[number])
    absent = FeatureView(
        FRAME, ["u1"], Placement(*(part[[1]] for part in (view.placement.shard, view.placement.first, view.placement.rows))), view.source
    )
    monkeypatch.setattr(CACHE, "layer", lambda *arguments: packed(*arguments[:1], *arguments[2:6], "cpu"))
    assert not absent.batch([0, 0], [1]).layers[1].any()


def test_matrix_of_utterance_rows_with_absent_ones(tmp_path):
    arrays = ragged(1, [1, 0, 1, 1, 1], UTTERANCE)
    view = on_disk(tmp_path, UTTERANCE, arrays, [1, 0, 0, 1, 0])
    matrix = view.matrix(1, [4, 1, 0])
    np.testing.assert_array_equal(matrix, np.stack([arrays[1][4][0], np.zeros(10), arrays[1][0][0]]).astype(np.float32))
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(view.matrix(2), view.batch(np.arange(5), [2]).layers[2][:, 0].numpy())
    assert view.batch([1], [0]).mask.tolist() == [[False]]
    stream = view.batch([0], [0, 2])
    assert stream.stats == 1  # layers of two kinds: opaque vectors
    assert view.batch([0], [0, 1]).stats == 2
    with pytest.raises(ConfigError, match="one row for each utterance"):
        on_disk(tmp_path / "frames", FRAME, ragged(0, [2]), [0]).matrix(0)
    with pytest.raises(ConfigError, match="Valid choices: 0, 1, 2"):
        view.batch([0], [7])


def test_float16_on_disk_is_float32_in_batches(tmp_path):
    arrays = {0: [np.full((2, 3), 0.1)], 1: [np.full((2, 5), 0.1)]}
    view = on_disk(tmp_path, FRAME, arrays, [0])
    assert np.load(layer_path(tmp_path / shard_name(0), 0)).dtype == np.float16
    assert view.batch([0], [0]).layers[0].unique().tolist() == [float(np.float16(0.1))]


@pytest.mark.parametrize("shards", [[0, 0, 0], [0, 1, 2]])
def test_a_stray_write_neither_crashes_nor_corrupts(tmp_path, shards):
    arrays = ragged(3, [2, 3, 4])
    view = on_disk(tmp_path, FRAME, arrays, shards)
    before = view.batch([0, 1, 2], [0]).layers[0].clone()
    view.batch([0, 1, 2], [0]).layers[0].mul_(0)  # on what batch returns
    view.source.array(0, 0)[:] = 77  # and on the mapped bytes themselves
    fresh = FeatureView(FRAME, view.utterances, view.placement, MappedLayers(tmp_path))
    CACHE.clear()
    assert torch.equal(fresh.batch([0, 1, 2], [0]).layers[0], before)


def test_layers_on_a_cpu_are_mapped_and_never_copied(tmp_path):
    for name, shards in (("one", [0, 0, 0]), ("many", [0, 1, 1])):
        view = on_disk(tmp_path / name, UTTERANCE, ragged(4, [1, 1, 1], UTTERANCE), shards)
        view.batch([0, 1, 2], [0, 1])
        assert CACHE.used("cpu") == 0
    with open("/proc/self/maps", encoding="utf-8") as lines:
        assert sum(str(tmp_path / "many") in line for line in lines) == 4  # two layers of two shards


def test_more_shards_than_files_may_be_open(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    view = on_disk(tmp_path, UTTERANCE, ragged(4, [1] * 80, UTTERANCE), list(range(80)))
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
    try:
        assert view.batch(np.arange(80), [0, 1]).mask.all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_torn_layer_is_said(tmp_path):
    view = on_disk(tmp_path, FRAME, ragged(4, [5, 6]), [0, 0])
    path = layer_path(tmp_path / shard_name(0), 1)
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:40], b""):
        path.write_bytes(torn)
        with pytest.raises(DataError, match="layer 1 cannot be opened"):
            view.batch([0], [1])
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(DataError, match="object values"):
        view.batch([0], [1])


def test_prefix_sums_stay_for_the_next_trial_within_the_budget(tmp_path):
    spec = resolve({"backbone": "toy", "granularity": "frame", "dtype": "float32"})
    view = on_disk(tmp_path, spec, ragged(6, [9, 0, 5], spec), [0, None, 1])
    sums = view.prefix(1)
    assert CACHE.used("cpu") == sums.bytes == 16 * 5 * (14 + 3)
    again = FeatureView(spec, view.utterances, view.placement, MappedLayers(tmp_path))  # another trial of this process
    assert again.prefix(1) is sums
    assert again.prefix(0) is not sums
    CACHE.set_budget("cpu", sums.bytes)  # layer 1 leaves, layer 0 stays
    assert CACHE.used("cpu") == 16 * 3 * (14 + 3)
    CACHE.set_budget("cpu", 100)
    assert view.prefix(1) is not view.prefix(1)
    assert CACHE.used("cpu") == 0
    assert torch.equal(view.prefix(1).sums[0], sums.sums[0])


def test_kept_entries_leave_in_the_order_of_their_last_use():
    cache = DeviceCache()
    cache.set_budget("cpu", 25)

    def hold(key, size=10):
        return cache.hold(key, "cpu", size, lambda: SimpleNamespace(bytes=size))

    a, b = hold("a"), hold("b")
    assert hold("a") is a
    hold("c")  # b leaves
    assert cache.used("cpu") == 20
    assert hold("a") is a
    assert hold("b") is not b
    assert hold("large", 26) is None
    assert hold("a") is a


def test_a_view_travels_as_paths(tmp_path):
    view = on_disk(tmp_path, FRAME, ragged(5, [200, 300]), [0, 0])
    expected_batch = view.batch([1, 0], [1])
    sent = pickle.dumps(view)
    assert len(sent) < 3000  # two layers of 500 frames are 8000 bytes
    assert torch.equal(pickle.loads(sent).batch([1, 0], [1]).layers[1], expected_batch.layers[1])  # noqa: S301


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(any), offset=st.sampled_from([0.0, 1e4]), seed=st.integers(0, 99))
def test_moments_are_those_of_all_valid_frames(counts, offset, seed):
    spec = resolve({"backbone": "toy", "granularity": "frame", "dtype": "float32"})
    arrays = {layer: [None if array is None else array + offset for array in rows] for layer, rows in ragged(seed, counts, spec).items()}
    view = FeatureView.from_arrays(spec, [f"u{number}" for number in range(len(counts))], arrays)
    everything = np.concatenate([array for array in arrays[1] if array is not None]).astype(np.float32).astype(np.float64)
    mean, std = view.moments(1)
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(std, everything.std(0), rtol=1e-9, atol=1e-9)
    assert mean.dtype == std.dtype == np.float64
    mean[:] = 0  # a consumer's own copy
    np.testing.assert_allclose(view.moments(1)[0], everything.mean(0), rtol=1e-12, atol=1e-12)
    absent = [number for number, count in enumerate(counts) if count == 0]
    if absent:
        with pytest.raises(DataError, match="None of the asked"):
            view.moments(1, absent)


def test_moments_have_the_same_bits_whatever_shards_hold_the_utterances(tmp_path, monkeypatch):
    random, counts = np.random.default_rng(3), [40, 0, 7, 90, 1, 33, 61, 20]
    arrays = {layer: [random.normal(5, 3, (count, FRAME.width(layer))) if count else None for count in counts] for layer in FRAME.numbers}
    layouts = [[0] * 8, [2, 0, 1, 0, 2, 1, 1, 0], [7, 6, 5, 4, 3, 2, 1, 0]]
    views = [on_disk(tmp_path / str(number), FRAME, arrays, layout) for number, layout in enumerate(layouts)]
    for block in (1 << 14, 50):
        monkeypatch.setattr("raysere.features.views._BLOCK", block)
        one, *others = [[part.tobytes() for part in view._moments(1, np.array([6, 0, 1, 3, 7, 2, 5]))] for view in views]
        assert [one] * 2 == others
        everything = np.concatenate([arrays[1][row] for row in (0, 2, 3, 5, 6, 7)]).astype(FRAME.dtype).astype(float)
        np.testing.assert_allclose(np.frombuffer(one[0]), everything.mean(0), rtol=1e-12)
        np.testing.assert_allclose(np.frombuffer(one[1]), everything.std(0), rtol=1e-12)


def test_from_arrays_refuses_what_does_not_fit():
    with pytest.raises(DataError, match=r"layer 1 are not \(rows, 5\)"):
        FeatureView.from_arrays(FRAME, ["a"], {0: [np.zeros((2, 3))], 1: [np.zeros((3, 5))]})
    with pytest.raises(DataError, match="layer 0"):
        FeatureView.from_arrays(FRAME, ["a"], {0: [np.zeros((2, 4))]})
    with pytest.raises(DataError, match="one row for each utterance"):
        FeatureView.from_arrays(UTTERANCE, ["a"], {0: [np.zeros((2, 6))]})
    with pytest.raises(DataError, match="joined"):
        FeatureView.from_arrays(FRAME, ["a", "a"], {0: [np.zeros((2, 3))] * 2})


def test_rows_by_utterance_id():
    view = FeatureView.from_arrays(FRAME, ["a", "b", "c"], ragged(0, [1, 2, 3]))
    assert view.rows_of(["c", "a"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="1 utterances are not in these features.*nobody"):
        view.rows_of(["a", "nobody"])


# --- chunks and prefix sums -----------------------------------------------------------------------


@given(frames=st.integers(1, 400), window=st.integers(1, 60), data=st.data())
def test_chunks_cover_every_frame_and_all_have_the_window(frames, window, data):
    hop = data.draw(st.integers(1, window))
    starts, ends = chunk_bounds(frames, window, hop)
    assert len(starts) == chunk_count(frames, window, hop)
    assert starts[0] == 0
    assert ends[-1] == frames
    assert set((ends - starts).tolist()) == {min(window, frames)}
    assert (np.diff(starts) > 0).all()
    assert (starts[1:] <= ends[:-1]).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_prefix_sums_equal_direct_slices(data):
    counts = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    offset = data.draw(st.sampled_from([0.0, 3.0, 1e3]))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = torch.zeros(len(counts), max(counts), 4)
    for row, count in enumerate(counts):
        values[row, :count] = torch.from_numpy(random.normal(offset, 1, (count, 4)))
    values[:, :, 3] = offset  # a constant dim: std is exactly where cancellation would show
    bounds = [sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count)))) for count in counts]
    starts, ends = torch.tensor([[low, 0] for low, _ in bounds]), torch.tensor([[high, count] for (_, high), count in zip(bounds, counts)])
    exact = prefix_sums((values[row, :count] for row, count in enumerate(counts)), np.array(counts), 4)
    assert exact.bytes == 16 * 4 * (sum(counts) + len(counts))  # no padding
    pair = PrefixSums(as_pair(exact.sums[0], "cpu"), exact.shift.float(), exact.first, exact.count)
    for sums, tolerance in ((exact, 1e-6), (pair, 2e-3)):
        mean, std = sums.chunk_stats(starts, ends)
        assert mean.dtype == std.dtype == torch.float32
        for row in range(len(counts)):
            for chunk in range(2):
                piece = values[row, starts[row, chunk] : ends[row, chunk]].double()
                want = (piece.mean(0), piece.std(0, correction=0)) if len(piece) else (torch.zeros(4), torch.zeros(4))
                np.testing.assert_allclose(mean[row, chunk], want[0], rtol=1e-6, atol=1e-6)
                np.testing.assert_allclose(std[row, chunk], want[1], rtol=1e-6, atol=tolerance)


def test_prefix_of_a_view_and_chunks_beyond_it():
    spec = resolve({"backbone": "toy", "granularity": "frame", "dtype": "float32"})
    arrays = ragged(6, [9, 0, 5], spec)
    view = FeatureView.from_arrays(spec, ["a", "b", "c"], arrays)
    mean, std = view.prefix(1).chunk_stats([[2, 3], [0, 0]], [[7, 9], [5, 1]], rows=[0, 2])
    np.testing.assert_allclose(mean[0, 0], arrays[1][0][2:7].mean(0), atol=1e-6)
    np.testing.assert_allclose(std[1, 0], arrays[1][2].std(0), atol=1e-6)
    np.testing.assert_allclose(std[1, 1], 0, atol=0)
    again = view.prefix(1).chunk_stats([[0, 9], [1, 1]], [[9, 9], [2, 5]], rows=[0, 2], out=(mean, std))
    assert (again[0] is mean, again[1] is std) == (True, True)
    np.testing.assert_allclose(mean[0, 0], arrays[1][0].mean(0), atol=1e-6)
    assert mean[0, 1].tolist() == std[0, 1].tolist() == [0] * 5  # empty: nothing of the earlier alignment is left
    with pytest.raises(DataError, match="out has the shapes"):
        view.prefix(1).chunk_stats([[0]], [[5]], rows=[0], out=(mean, std))
    sums = view.prefix(1, [2])
    for start, end in (([[0]], [[6]]), ([[3]], [[2]]), ([[-1]], [[2]])):
        with pytest.raises(DataError, match="beyond its utterance"):
            sums.chunk_stats(start, end)


# --- what is stored -------------------------------------------------------------------------------


def test_condensed_rows_are_mean_and_population_std():
    rows = np.random.default_rng(0).normal(size=(250, 3))
    stored = pool_frames(rows, 0, UTTERANCE)
    np.testing.assert_allclose(stored, np.concatenate([rows.mean(0), rows.std(0)])[None], rtol=1e-6)
    assert stored.dtype == np.float32
    chunks = pool_frames(
        rows, 0, resolve({"backbone": "toy", "granularity": "chunk", "chunk_s": 1.0, "chunk_hop_s": 0.6, "dtype": "float32"})
    )
    assert chunks.shape == (4, 6)  # 100 frames each, from 0, 60, 120 and 150
    np.testing.assert_allclose(chunks[-1], np.concatenate([rows[150:].mean(0), rows[150:].std(0)]), rtol=1e-6)
    np.testing.assert_array_equal(pool_frames(rows, 0, FRAME), rows.astype(np.float16))
    vector = np.arange(4.0)[None]
    np.testing.assert_array_equal(pool_frames(vector, 2, UTTERANCE), vector.astype(np.float32))


@pytest.mark.parametrize(
    ("rows", "layer", "message"),
    [
        (np.zeros((0, 3)), 0, "no frame"),
        (np.full((2, 3), np.nan), 0, "not finite"),
        (np.zeros((2, 4)), 0, "shape"),
        (np.zeros((2, 5)).astype(np.float32) + 70000, 1, "dtype: float32"),
    ],
)
def test_rows_that_cannot_be_stored(rows, layer, message):
    with pytest.raises(DataError, match=message):
        pool_frames(rows, layer, FRAME)
