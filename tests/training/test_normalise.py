import numpy as np
import pytest
import torch

from raysere.base.errors import DataError
from raysere.features.spec import FeatureSpec, LayerSpec
from raysere.features.views import FeatureView
from raysere.training import normalise
from raysere.training.inputs import TrialStream

N = 60
SPEAKER = np.arange(N) % 5
CORPUS = (np.arange(N) % 5 >= 3).astype(np.int64)
TRAIN = np.flatnonzero(SPEAKER < 4)


def view_of(arrays, granularity="utterance", kind="dense"):
    layers = tuple(
        LayerSpec(number=number, name=str(number), dim=rows[0].shape[1], rows="utterance" if granularity == "utterance" else "frame")
        for number, rows in arrays.items()
    )
    spec = FeatureSpec(
        backbone="toy",
        identity="x",
        modality="audio",
        granularity=granularity,
        layers=layers,
        dtype="float32",
        sampling_rate=16000,
        frame_s=0.02,
        kind=kind,
    )
    return FeatureView.from_arrays(spec, [f"u{number}" for number in range(len(next(iter(arrays.values()))))], arrays)


def dense(granularity="utterance"):
    random = np.random.default_rng(0)
    lengths = np.ones(N, int) if granularity == "utterance" else random.integers(2, 6, N)
    return {
        layer: [
            (random.normal(size=(lengths[row], 3)) * (layer + 1) + SPEAKER[row] * 5 + 50 * CORPUS[row]).astype(np.float32)
            for row in range(N)
        ]
        for layer in (0, 2)
    }


def fitted(kind, arrays, *, train=TRAIN, granularity="utterance", corpora=("a", "b"), speaker=SPEAKER, corpus=CORPUS, view=None, at=None):
    view = view or view_of(arrays, granularity)
    columns = normalise.columns_of({layer: view.spec.width(layer) for layer in arrays})
    at = np.arange(N) if at is None else at
    return view, columns, normalise.fit(kind, view, columns, at, train, np.arange(N), corpus=corpus, corpora=list(corpora), speaker=speaker)


def stacked(arrays):
    return torch.from_numpy(np.concatenate([np.concatenate(rows) for rows in arrays.values()], axis=1))


def test_corpus_uses_training_rows_of_each_corpus():
    arrays = dense()
    _, _, norm = fitted("corpus", arrays)
    x = stacked(arrays)
    out = norm.apply_(x.clone(), norm.group)
    for code in (0, 1):
        own = torch.from_numpy(TRAIN[CORPUS[TRAIN] == code])
        assert torch.allclose(out[own].mean(0), torch.zeros(6), atol=1e-4)
        assert torch.allclose(out[own].std(0, correction=0), torch.ones(6), atol=1e-4)
    assert float(out[SPEAKER == 4].mean()) > 0.5  # a held-out speaker keeps what sets it apart
    changed = {layer: [rows[row] + (1000 if SPEAKER[row] == 4 else 0) for row in range(N)] for layer, rows in arrays.items()}
    assert torch.equal(fitted("corpus", changed)[2].mean, norm.mean)


def test_a_corpus_without_training_rows_takes_those_of_all():
    arrays = dense()
    train = TRAIN[CORPUS[TRAIN] == 0]
    _, _, norm = fitted("corpus", arrays, train=train)
    assert torch.equal(norm.mean[1], norm.mean[2])
    assert torch.allclose(norm.mean[2], stacked(arrays)[torch.from_numpy(train)].mean(0), atol=1e-4)


def test_speaker_uses_each_speakers_own_rows():
    arrays = dense()
    _, _, norm = fitted("speaker", arrays)
    out = norm.apply_(stacked(arrays), norm.group)
    for who in range(5):
        assert torch.allclose(out[who == SPEAKER].mean(0), torch.zeros(6), atol=1e-4)
        assert torch.allclose(out[who == SPEAKER].std(0, correction=0), torch.ones(6), atol=1e-4)
    assert norm.shared
    assert norm.transductive


def test_a_speaker_with_few_rows_takes_the_training_statistics():
    arrays = dense()
    speaker = SPEAKER.copy()
    speaker[:3] = 5
    _, _, norm = fitted("speaker", arrays, speaker=speaker)
    assert not norm.shared
    assert norm.group[:3].tolist() == [5] * 3
    assert torch.allclose(norm.mean[-1], stacked(arrays)[torch.from_numpy(TRAIN)].mean(0), atol=1e-3)


@pytest.mark.parametrize("kind", ["corpus", "speaker"])
def test_frames_are_normalised_over_valid_frames(kind):
    arrays = dense("frame")
    view, _, norm = fitted(kind, arrays, granularity="frame")
    source = TrialStream(view, [0, 2], labels_of(view), np.arange(N), device=torch.device("cpu"), folds=1, budget=1 << 30)
    stream = source.fold(norm).batch(torch.arange(N))
    for layer in (0, 2):
        assert not bool(stream.layers[layer][~stream.mask].any())
        for who in range(5):
            group = torch.from_numpy(TRAIN[CORPUS[TRAIN] == CORPUS[who]] if kind == "corpus" else np.flatnonzero(who == SPEAKER))
            values = stream.layers[layer][group][stream.mask[group]]
            assert torch.allclose(values.mean(0), torch.zeros(3), atol=1e-3)
            assert torch.allclose(values.std(0, correction=0), torch.ones(3), atol=1e-3)


def labels_of(view):
    from raysere.training.task import Labels

    return Labels(
        list(view.utterances),
        np.zeros(N, np.int64),
        None,
        None,
        SPEAKER,
        list("abcde"),
        CORPUS,
        ["a", "b"],
        np.zeros(N, np.int64),
        np.ones(N),
    )


@pytest.mark.parametrize("kind", ["none", "corpus", "speaker"])
def test_matrix_copies_and_batches_agree(kind):
    arrays = dense()
    view, _, _ = fitted(kind, arrays)
    rows = torch.tensor([7, 3, 44, 3])
    results = []
    for folds, budget in ((1, 1 << 30), (3, 1 << 30), (3, 4 * 6 * N + 1), (3, 10)):  # in place, a copy a fold, one raw matrix, no matrix
        norm = fitted(kind, arrays, view=view)[2]
        source = TrialStream(view, [0, 2], labels_of(view), np.arange(N), device=torch.device("cpu"), folds=folds, budget=budget)
        for _ in range(folds):
            fold = source.fold(norm)
        results.append(fold.batch(rows))
    for other in results[1:]:
        for layer in (0, 2):
            assert torch.allclose(results[0].layers[layer], other.layers[layer], atol=1e-5)
            assert other.layers[layer].shape == (4, 1, 3)
    expected = fitted(kind, arrays)[2]
    assert torch.allclose(
        torch.cat([results[0].layers[0], results[0].layers[2]], -1)[:, 0],
        expected.apply_(stacked(arrays)[rows].clone(), None if expected.group is None else expected.group[rows]),
        atol=1e-5,
    )


def test_constant_values_become_zero_and_far_ones_are_held():
    arrays = {0: [np.array([[1e6, row % 7]], dtype=np.float32) for row in range(N)]}
    _, _, norm = fitted("corpus", arrays, corpora=("a",), corpus=np.zeros(N, np.int64))
    out = norm.apply_(torch.tensor([[1e6, 1e9], [5.0, 3.0]]), None)
    assert out[:, 0].tolist() == [0, 0]
    assert float(out[0, 1]) == normalise.LIMIT


def test_tfidf_by_hand():
    random = np.random.default_rng(0)
    counts = random.integers(0, 3, (N, 4)).astype(np.float32)
    counts[:, 3] = 0
    arrays = {0: [row[None] for row in counts]}
    view = view_of(arrays, kind="counts")
    _, _, norm = fitted("corpus", arrays, view=view)
    df = (counts[TRAIN] > 0).sum(0)
    idf = np.log((1 + len(TRAIN)) / (1 + df)) + 1
    assert np.allclose(norm.idf.numpy(), idf, atol=1e-6)
    expected = counts * idf
    expected *= normalise.TFIDF_LENGTH / np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    assert np.allclose(norm.apply_(torch.from_numpy(counts.copy()), None).numpy(), expected, atol=1e-5)
    assert not norm.transductive


def test_state_round_trip():
    arrays = dense()
    _, columns, norm = fitted("corpus", arrays)
    again = normalise.Normaliser.from_state("corpus", columns, norm.state())
    assert again.names == ["a", "b"]
    group = again.groups_of(["b", "unheard", "a"], 3)
    assert group.tolist() == [1, 2, 0]
    x = stacked(arrays)[:3]
    assert torch.equal(again.apply_(x.clone(), group), norm.apply_(x.clone(), torch.tensor([1, 2, 0])))
    assert again.groups_of(None, 2).tolist() == [2, 2]
    speaker = fitted("speaker", arrays)[2].state()
    assert speaker["mean"].shape == (1, 6)  # no training speaker's statistics are saved


def test_no_training_features():
    with pytest.raises(DataError, match="No training utterance"):
        fitted("corpus", dense(), at=np.full(N, -1))
