"""Streamed k-means, balanced pools, and codebooks as files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.features.spec import FeatureSpec, LayerSpec
from raysere.features.views import FeatureView
from raysere.nn.frame_units import FrameUnits, even_shares, frame_norm, frame_pool, unit_histograms
from raysere.nn.kmeans import kmeans, kmeans_plus_plus, nearest, squared_distances


def _batches(data: np.ndarray, size: int):
    def passes(number: int):
        order = np.random.default_rng(number).permutation(len(data))
        return (torch.from_numpy(data[order[at : at + size]]) for at in range(0, len(data), size))

    return passes


def _blobs(count: int, clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 8, (clusters, 6))
    owner = rng.integers(0, clusters, count)
    return (centres[owner] + rng.normal(0, 0.5, (count, 6))).astype(np.float32), owner


def test_distances_are_brute_force() -> None:
    frames, centres = torch.randn(30, 5), torch.randn(4, 5)
    brute = ((frames[:, None] - centres[None]) ** 2).sum(-1)
    assert torch.allclose(squared_distances(frames, centres), brute, atol=1e-4)
    assert torch.equal(nearest(frames, centres)[0], brute.argmin(1))
    assert squared_distances(frames.half(), centres.half()).dtype == torch.float32


def test_planted_clusters_are_found_in_every_seed() -> None:
    data, owner = _blobs(3000, 7)
    for found in kmeans(_batches(data, 256), 7, seeds=range(3)):
        units = nearest(torch.from_numpy(data), found.centres)[0].numpy()
        pairs = Counter(zip(units.tolist(), owner.tolist(), strict=True))
        assert sum(sorted(pairs.values())[-7:]) == 3000
        assert int(found.counts.sum()) == 3000


def test_it_ends_at_a_fixed_point_with_the_inertia_that_it_states() -> None:
    data = np.random.default_rng(1).normal(size=(800, 3)).astype(np.float32)
    (found,) = kmeans(_batches(data, 100), 5, lloyd=200, tolerance=0.0)
    units, distance = nearest(torch.from_numpy(data), found.centres)
    assert found.inertia == pytest.approx(float(distance.mean()), rel=1e-5)
    means = torch.stack([torch.from_numpy(data)[units == unit].mean(0) for unit in range(5)])
    assert torch.allclose(means, found.centres, atol=2e-3)


def test_not_worse_than_the_library() -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    data = np.random.default_rng(2).normal(size=(4000, 8)).astype(np.float32)
    ours = min(found.inertia for found in kmeans(_batches(data, 512), 40, seeds=range(3)))
    theirs = sklearn.MiniBatchKMeans(40, batch_size=512, n_init=3, random_state=0).fit(data).inertia_ / len(data)
    assert ours <= 1.02 * theirs


def test_an_empty_cluster_takes_half_of_the_largest() -> None:
    """Two far points make k-means++ start there; all else is one heap, which must be divided."""
    heap = np.random.default_rng(3).normal(0, 1, (1000, 2)).astype(np.float32)
    data = np.concatenate([np.repeat([[1e4, 0.0]], 30, 0), np.repeat([[0.0, 1e4]], 30, 0), heap]).astype(np.float32)
    (found,) = kmeans(_batches(data, 300), 6)
    assert int((found.counts > 0).sum()) == 6


def test_clusters_that_empty_in_mini_batches_are_filled_again() -> None:
    """The start sees two points only; the rest of the passes see a heap that is nearest to one of
    them.
    """
    heap = torch.from_numpy(np.random.default_rng(4).normal(0, 1, (900, 2)).astype(np.float32))
    first = torch.cat([torch.zeros(50, 2), torch.full((50, 2), 500.0)])
    (found,) = kmeans(lambda number: iter([first]) if number == 0 else iter(heap.split(300)), 4, lloyd=0)
    assert int((found.counts > 0).sum()) == 4
    assert found.inertia < 1.5  # one centre for all of them would leave 2


def test_duplicates_do_not_divide_and_too_few_frames_are_refused() -> None:
    data = np.repeat(np.eye(3, dtype=np.float32), 50, 0)
    (found,) = kmeans(_batches(data, 64), 5)
    assert found.inertia == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match="cannot make 200 clusters"):
        kmeans(_batches(data, 64), 200)


def test_the_start_prefers_what_is_far() -> None:
    sample = torch.cat([torch.zeros(999, 2), torch.full((1, 2), 100.0)])
    chosen = kmeans_plus_plus(sample, 2, torch.Generator().manual_seed(0))
    assert sorted(chosen[:, 0].tolist()) == [0.0, 100.0]


def test_shares_are_even_within_their_room() -> None:
    assert even_shares([10, 2, 10], 12) == [5, 2, 5]
    assert even_shares([1, 1], 9) == [1, 1]
    assert sum(even_shares([7, 7, 7], 20)) == 20
    assert max(even_shares([7, 7, 7], 20)) == 7


def spec_of(dim: int) -> FeatureSpec:
    return FeatureSpec(
        backbone="acoustic",
        identity="test",
        modality="audio",
        granularity="frame",
        layers=(LayerSpec(number=0, name="frames", dim=dim, rows="frame"),),
        dtype="float32",
        sampling_rate=16000,
        frame_s=0.01,
    )


def view_of(arrays: list[np.ndarray | None], dim: int) -> FeatureView:
    return FeatureView.from_arrays(spec_of(dim), [f"u{number}" for number in range(len(arrays))], {0: arrays})


def test_pools_are_equal_over_languages_and_emotions_and_bound_by_speaker() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (language, speaker, emotion, int(frames))
        for language, speakers, frames in (("en", 3, 400), ("de", 5, 100))
        for speaker in range(speakers)
        for emotion in ("anger", "neutral")
        for _ in range(2)
    ]
    rows += [("en", 0, None, 500)]
    view = view_of([rng.normal(size=(frames, 3)).astype(np.float32) for *_, frames in rows], 3)
    language, speaker = [row[0] for row in rows], [f"{row[0]}{row[1]}" for row in rows]
    norm = frame_norm(view, 0, "corpus", language, speaker)
    pool = frame_pool(view, 0, norm, language=language, speaker=speaker, emotion=[row[2] for row in rows], per_speaker=300, seed=1)
    drawn = Counter()
    by_speaker = Counter()
    for row, chosen in zip(pool.rows.tolist(), pool.chosen, strict=True):
        drawn[language[row], rows[row][2]] += len(chosen)
        by_speaker[speaker[row]] += len(chosen)
        assert len(set(chosen.tolist())) == len(chosen)
        assert chosen.max() < rows[row][3]
    assert set(drawn.values()) == {450}  # 3 speakers of at most 150 frames an emotion
    assert ("en", None) not in drawn
    assert max(by_speaker.values()) <= 300
    streamed = torch.cat(list(pool(0)))
    assert len(streamed) == len(pool) == 1800
    again = torch.cat(list(pool(1)))
    assert not torch.equal(streamed, again)
    assert torch.allclose(streamed.sort(0).values, again.sort(0).values)


def test_norms() -> None:
    rng = np.random.default_rng(0)
    corpus, speaker = ["a", "a", "b", "b"], ["1", "2", "3", "3"]
    arrays = [(rng.normal(size=(200, 2)) * (1 + place) + 10 * place).astype(np.float32) for place in range(4)]
    view = view_of(arrays, 2)
    lengths = view.lengths(np.arange(4))
    for kind, groups in (("corpus", corpus), ("speaker", speaker)):
        norm = frame_norm(view, 0, kind, corpus, speaker)
        out = norm.apply(view.packed(0, np.arange(4)), np.arange(4), lengths).numpy()
        owner = np.repeat(groups, lengths)
        for group in set(groups):
            assert np.abs(out[owner == group].mean(0)).max() < 1e-4
            if kind == "corpus":
                assert np.abs(out[owner == group].std(0) - 1).max() < 1e-4
    plain = frame_norm(view, 0, "none", corpus, speaker).apply(view.packed(0, np.array([2])), np.array([2]), lengths[2:3])
    assert np.allclose(plain.numpy(), arrays[2])
    with pytest.raises(ConfigError, match="not a way to normalise"):
        frame_norm(view, 0, "all", corpus, speaker)  # type: ignore[arg-type]


def test_a_codebook_is_a_file_and_gives_histograms_without_labels(tmp_path: Path) -> None:
    data, _ = _blobs(900, 4)
    view = view_of([data[:300], None, data[300:700], data[700:]], 6)
    corpus, speaker = ["c"] * 4, list("abcd")
    norm = frame_norm(view, 0, "none", corpus, speaker)
    pool = frame_pool(view, 0, norm, language=corpus, speaker=speaker)
    codebook = FrameUnits.of(kmeans(pool, 4)[0], pool, note="x")
    codebook.save(tmp_path / "codebook.safetensors")
    again = FrameUnits.load(tmp_path / "codebook.safetensors")
    assert np.array_equal(again.centres, codebook.centres)
    assert (again.layer, again.norm, again.spec_key, again.meta) == (0, "none", view.spec.key, codebook.meta)
    histograms = unit_histograms(view, again, corpus, speaker)
    assert histograms.dtype == np.int64
    assert histograms.sum(1).tolist() == [300, 0, 400, 200]
    brute = np.bincount(((data[:300, None] - again.centres[None]) ** 2).sum(-1).argmin(1), minlength=4)
    assert histograms[0].tolist() == brute.tolist()


def test_wrong_codebooks_say_so(tmp_path: Path) -> None:
    view = view_of([np.zeros((5, 2), np.float32)], 2)
    with pytest.raises(DataError, match="other features"):
        unit_histograms(view, FrameUnits(np.zeros((2, 2), np.float32), 0, "none", "another"), ["c"], ["s"])
    with pytest.raises(MissingFileError):
        FrameUnits.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(ConfigError, match="not a codebook|no codebook"):
        FrameUnits.load(tmp_path / "text.safetensors")
