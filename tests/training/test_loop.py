import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from raysere.base.errors import ConfigError, DataError, InfeasibleTrial
from raysere.methods.pooled import Pooled, PooledParams
from raysere.testing.toy import toy_data
from raysere.training import metrics, steps
from raysere.training.loop import Trainer, load_predictor
from raysere.training.method import Prediction, Shapes
from raysere.training.predictions import read_predictions

SMALL = {"hidden": 24, "batch": 16, "epochs": 4, "lr": 3e-3}


def trained(data, method=None, *, seed=0, stop=None, **options):
    trainer = Trainer(method or Pooled(), PooledParams(**{**SMALL, **options}), data, seed=seed)
    while not trainer.finished and len(trainer.rows) != stop:
        trainer.epoch()
    return trainer


class Scripted(Pooled):
    """A method whose development scores are given: predictions are right for a share of items that
    the epoch decides.
    """

    def __init__(self, shares, data):
        self.shares, self.data, self.epoch = shares, data, -1

    def losses(self, model, batch, step):
        self.epoch = step.epoch
        return super().losses(model, batch, step)

    def predict(self, model, batch):
        label = torch.from_numpy(self.data.labels.label)[batch.rows]
        right = (batch.rows * 7 % 100) < 100 * self.shares[self.epoch][0]
        answer = torch.where(right, label, (label + 1) % 3)
        return Prediction(torch.nn.functional.one_hot(answer, 3).float() * self.shares[self.epoch][1])


def test_score_is_pooled_over_folds_and_predictions_are_of_the_best_epoch():
    data = toy_data(noise=3.0)
    trainer = trained(data)
    frame = trainer.predictions()
    dev = read_predictions(frame, data.task, "dev")
    number = {utterance: row for row, utterance in enumerate(data.labels.utterances)}
    rows = np.array([number[utterance] for utterance in dev.utterances])
    assert sorted(rows) == sorted(np.concatenate([fold.dev for fold in data.folds]))
    for fold in data.folds:
        assert sorted(rows[dev.fold == fold.number]) == sorted(fold.dev)
    score = metrics.uar(data.labels.label[rows], dev.probabilities.argmax(1), 3)
    assert score == pytest.approx(trainer.best["score"]) == pytest.approx(max(row["score"] for row in trainer.rows))
    nll = -np.log(dev.probabilities[np.arange(len(rows)), data.labels.label[rows]]).mean()
    assert trainer.best["dev_loss"] == pytest.approx(nll, abs=1e-4)
    assert frame.filter(pl.col("split") == "test")["fold"].null_count() == len(data.test)
    assert frame.columns == ["utterance", "fold", "split", "p.anger", "p.neutral", "p.sadness"]


def test_test_rows_are_the_softmax_of_mean_logits_of_the_kept_weights():
    data = toy_data(noise=3.0)
    trainer = trained(data, epochs=12, patience=12, lr=0.02)
    assert trainer.best["epoch"] < len(trainer.rows) - 1  # else the last weights are the kept ones, and this shows nothing
    state, method, params = trainer.state(), Pooled(), trainer.params
    shapes = Shapes(data.task, {"audio": data.features["audio"].shape()})
    single = []
    for fold in range(3):
        own = {key: value for key, value in state.items() if key.startswith(f"fold{fold}.")}
        single.append(load_predictor(method, params, shapes, own).logits(data.features["audio"], data.test))
    expected = torch.softmax(torch.from_numpy(np.mean(single, axis=0)), -1).numpy()
    assert np.allclose(read_predictions(trainer.predictions(), data.task, "test").probabilities, expected, atol=1e-5)


def test_reading_predictions_in_between_does_not_change_training():
    data = toy_data(noise=2.0)
    plain, curious = trained(data), Trainer(Pooled(), PooledParams(**SMALL), data, seed=0)
    while not curious.finished:
        curious.epoch()
        curious.predictions(), curious.state(), curious.describe()
        torch.manual_seed(123)
    assert plain.rows == curious.rows
    assert plain.predictions().equals(curious.predictions())


def test_seeds():
    data = toy_data(noise=2.0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = trained(data, seed=1)
    assert torch.equal(before, torch.get_rng_state())  # the process's own generator is left alone
    assert first.predictions().equals(trained(data, seed=1).predictions())
    assert not first.predictions().equals(trained(data, seed=2).predictions())


def test_a_fold_does_not_depend_on_the_others():
    data = toy_data(noise=2.0)
    alone = trained(replace(data, folds=data.folds[1:2]), stop=1).predictions().filter(pl.col("split") == "dev")
    together = trained(data, stop=1).predictions().filter((pl.col("split") == "dev") & (pl.col("fold") == 1))
    for name in ("p.anger", "p.neutral"):
        assert np.allclose(alone[name], together[name], atol=1e-4)


def test_best_epoch_ties_go_to_the_lower_loss_and_patience_counts_scores():
    data = toy_data()
    #          (share right, sureness): score rises, falls, ties with higher loss, ties with lower
    # loss
    shares = [(0.5, 1.0), (0.8, 1.0), (0.6, 1.0), (0.8, 3.0), (0.8, 0.9), (0.8, 1.0), (0.7, 1.0)]
    losses = [-math.log(math.exp(s) / (math.exp(s) + 2)) for _, s in shares]
    assert losses[3] < losses[1] < losses[4]
    trainer = trained(data, Scripted(shares, data), epochs=7, patience=5)
    assert trainer.best["epoch"] in (1, 3)
    assert trainer.best["dev_loss"] == min(row["dev_loss"] for row in trainer.rows if row["score"] == trainer.best["score"])
    assert len(trainer.rows) == 7
    assert trainer.finished  # five epochs without a better score than epoch 1's
    again = trained(data, Scripted(shares, data), patience=2, epochs=7)
    assert len(again.rows) == 4


def test_rows_log_each_term():
    trainer = trained(toy_data("both"), gender_term=0.1, stop=1)
    row = trainer.rows[0]
    assert {
        "train.class",
        "train.attributes",
        "train.gender",
        "loss",
        "dev_loss",
        "score",
        "uar",
        "macro_f1",
        "accuracy",
        "ccc",
        "ccc.valence",
    } <= set(row)
    assert row["loss"] == pytest.approx(row["train.class"] + row["train.attributes"] + row["train.gender"])
    assert trainer.best["metrics"].keys() == {"uar", "macro_f1", "accuracy", "ccc", "ccc.arousal", "ccc.valence", "ccc.dominance"}


def test_attributes_come_out_on_the_scale_of_the_task():
    data = toy_data("dimensional")
    trainer = trained(data, stop=4)
    dev = read_predictions(trainer.predictions(), data.task, "dev")
    number = {utterance: row for row, utterance in enumerate(data.labels.utterances)}
    rows = [number[utterance] for utterance in dev.utterances]
    assert metrics.mean_ccc(dev.attributes, data.labels.attributes[rows]) == pytest.approx(trainer.best["score"], abs=1e-4)
    assert dev.attributes.min() >= 1
    assert dev.attributes.max() <= 7
    assert dev.attributes.max() > 3
    assert "effective_prior" not in trainer.describe()


def test_absent_features_are_neither_trained_on_nor_predicted():
    data = toy_data()
    view = data.features["audio"]
    gone = {int(data.folds[0].train[0]), int(data.folds[0].dev[0]), int(data.test[0])}
    arrays = {layer: [None if row in gone else view.matrix(layer, [row]) for row in range(len(view))] for layer in (0, 1)}
    less = replace(data, features={"audio": type(view).from_arrays(view.spec, view.utterances, arrays)})
    trainer = trained(less, stop=1)
    ids = set(trainer.predictions()["utterance"])
    assert len(ids) == len(view) - len(gone)
    assert not ids & {data.labels.utterances[row] for row in gone}
    with pytest.raises(DataError, match="without features"):
        load_predictor(Pooled(), trainer.params, Shapes(data.task, {"audio": view.shape()}), trainer.state()).predict(
            less.features, sorted(gone)
        )


def test_views_are_joined_by_utterance_id():
    data = toy_data()
    view = data.features["audio"]
    order = np.random.default_rng(0).permutation(len(view))
    arrays = {layer: [view.matrix(layer, [row]) for row in order] for layer in (0, 1)}
    other = type(view).from_arrays(view.spec, [view.utterances[row] for row in order], arrays)
    first, second = trained(data, stop=2), trained(replace(data, features={"audio": other}), stop=2)
    assert np.allclose(first.predictions()["p.anger"], second.predictions()["p.anger"], atol=1e-4)


@pytest.mark.parametrize("granularity", ["utterance", "frame"])
@pytest.mark.parametrize("normaliser", ["none", "corpus", "speaker"])
def test_little_memory_changes_nothing(granularity, normaliser):
    data = toy_data(granularity=granularity, noise=2.0)
    results = []
    for memory in (1 << 30, 100):
        trainer = Trainer(Pooled(), PooledParams(**SMALL, normalise=normaliser), data, seed=0, memory=memory)
        trainer.epoch()
        results.append(trainer.predictions()["p.anger"].to_numpy())
    assert np.allclose(*results, atol=1e-4)


def test_weights_of_layers_are_logged_by_epoch():
    trainer = trained(toy_data(), lr=0.05, stop=4, patience=20)
    logged = [row["layer_weights.audio"] for row in trainer.rows]
    kept = trainer.describe()["layer_weights"]["audio"]
    assert logged[trainer.best["epoch"]] == pytest.approx(list(kept.values()), abs=1e-6)
    assert all(sum(weights) == pytest.approx(1, abs=1e-5) for weights in logged)
    assert max(abs(logged[3][0] - logged[0][0]), abs(logged[1][0] - logged[0][0])) > 1e-3  # they move
    now = [fold.model.layer_weights()["audio"].values() for fold in trainer.folds]
    assert logged[-1] == pytest.approx(np.mean([list(weights) for weights in now], axis=0), abs=1e-6)
    single = trained(toy_data(), layers="one", stop=1)
    assert not any(name.startswith("layer_weights") for name in single.rows[0])


def test_description():
    data = toy_data()
    description = trained(data, normalise="speaker", class_weight=0, stop=1).describe()
    assert description["transductive"] is True
    assert description["normalise"] == {"audio": "speaker"}
    assert sum(description["layer_weights"]["audio"].values()) == pytest.approx(1)
    assert description["parameters"] == 16 * 24 + 24 + 2 * 24 + 24 * 3 + 3 + 2
    label = data.labels.label
    shares = np.mean([np.bincount(label[fold.train]) / len(fold.train) for fold in data.folds], axis=0)
    assert list(description["effective_prior"].values()) == pytest.approx(shares)
    assert trained(data, stop=1).describe()["transductive"] is False


def test_the_prior_of_weights_that_never_saw_a_balanced_epoch():
    trainer = trained(toy_data(), sampler="natural_then_balanced", class_weight=0, stop=2)
    assert len(set(trainer.describe()["effective_prior"].values())) > 1


def test_an_unknown_speakers_batch_takes_its_own_statistics():
    data = toy_data()
    trainer = trained(data, normalise="speaker", stop=4)
    predictor = load_predictor(Pooled(), trainer.params, Shapes(data.task, {"audio": data.features["audio"].shape()}), trainer.state())
    names = [data.labels.speakers[code] for code in data.labels.speaker[data.test]]
    own = predictor.logits(data.features, data.test, speakers=names)
    expected = read_predictions(trainer.predictions(), data.task, "test").probabilities
    assert np.allclose(torch.softmax(torch.from_numpy(own), -1).numpy(), expected, atol=1e-4)
    alone = predictor.logits(data.features, data.test[:1])  # one clip: the training statistics
    assert not np.allclose(alone, own[:1], atol=1e-3)
    assert np.allclose(alone, predictor.logits(data.features, data.test[:3])[:1], atol=1e-5)


def test_a_known_corpus_keeps_its_statistics_at_inference():
    data = toy_data()
    corpus = data.labels.speaker % 2
    labels = replace(data.labels, corpus=corpus, corpora=["quiet", "loud"])
    view = data.features["audio"]
    arrays = {layer: [view.matrix(layer, [row]) * (1 + 30 * corpus[row]) for row in range(len(view))] for layer in (0, 1)}
    data = replace(data, labels=labels, features={"audio": type(view).from_arrays(view.spec, view.utterances, arrays)})
    trainer = trained(data)
    predictor = load_predictor(Pooled(), trainer.params, trainer.shapes, trainer.state())
    expected = read_predictions(trainer.predictions(), data.task, "test").probabilities
    for names, same in (([labels.corpora[code] for code in corpus[data.test]], True), (None, False), (["unheard"] * len(data.test), False)):
        logits = predictor.logits(data.features, data.test, corpora=names, batch=7)
        assert np.allclose(torch.softmax(torch.from_numpy(logits), -1).numpy(), expected, atol=1e-4) is same


def test_schedule():
    factors = [steps.schedule(step, 100, 0.1, "cosine") for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] < 0.001
    assert steps.schedule(70, 100, 0.1, "constant") == 1


@pytest.mark.parametrize("limit", [0.1, 100.0])
def test_clipping_equals_torch(limit):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,))]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    expected = [parameter.grad.clone() for parameter in parameters]
    others = [torch.nn.Parameter(torch.zeros_like(g)) for g in expected]
    for other, gradient in zip(others, expected, strict=True):
        other.grad = gradient
    torch.nn.utils.clip_grad_norm_(others, limit)
    steps.clip(parameters, limit)
    for parameter, other in zip(parameters, others, strict=True):
        assert torch.allclose(parameter.grad, other.grad)


def test_a_diverging_or_too_large_trial_is_infeasible(monkeypatch):
    data = toy_data()
    with pytest.raises(InfeasibleTrial, match="not finite"):
        trained(data, type("Broken", (Pooled,), {"losses": lambda self, *args: {"class": args[0].classes.weight.sum() * float("nan")}})())
    for error in (
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):

        def full(self, *args, error=error):
            raise error

        with pytest.raises(InfeasibleTrial, match="not enough memory"):
            trained(data, type("Full", (Pooled,), {"losses": full})())
    with pytest.raises(RuntimeError, match="shape"):
        trained(data, type("Wrong", (Pooled,), {"losses": lambda self, *args: torch.zeros(2, 3) @ torch.zeros(2, 3)})())


def test_what_cannot_train_is_refused():
    data = toy_data()
    with pytest.raises(DataError, match="0 development"):
        trained(replace(data, folds=(replace(data.folds[0], dev=data.folds[0].dev[:0]),)))
    with pytest.raises(DataError, match="Call epoch"):
        Trainer(Pooled(), SMALL, data, seed=0).predictions()
    from raysere.training.method import Needs

    with pytest.raises(ConfigError, match="2 feature streams"):
        trained(data, type("Two", (Pooled,), {"needs": Needs(streams=2)})())
    with pytest.raises(ConfigError, match="granularity utterance"):
        trained(data, type("Frames", (Pooled,), {"needs": Needs(granularities=frozenset({"frame"}))})())
    with pytest.raises(ConfigError, match="audio features"):
        trained(data, type("Text", (Pooled,), {"needs": Needs(modalities=frozenset({"text"}))})())


def test_precision():
    data = toy_data(noise=2.0)
    exact, auto, low = (Trainer(Pooled(), PooledParams(**SMALL), data, seed=1, precision=p) for p in ("float32", "auto", "bfloat16"))
    for trainer in (exact, auto, low):
        trainer.epoch()
    assert auto.predictions().equals(exact.predictions())
    assert low.folds[0].streams["audio"].matrix.dtype == torch.bfloat16
    assert {value.dtype for name, value in low.state().items() if ".model." in name} == {torch.float32}
    values = [trainer.predictions()["p.anger"].to_numpy() for trainer in (exact, low)]
    assert not np.array_equal(*values)
    assert np.allclose(*values, atol=0.03)
    with pytest.raises(ConfigError, match="float16"):
        Trainer(Pooled(), PooledParams(**SMALL), data, seed=1, precision="float16")


def test_normalised_features_stay_for_the_next_trial():
    data = toy_data()
    first, second = (Trainer(Pooled(), PooledParams(**SMALL, dropout=rate), data, seed=1) for rate in (0.1, 0.2))
    other = Trainer(Pooled(), PooledParams(**SMALL, normalise="speaker"), data, seed=1)
    matrices = [[fold.streams["audio"].matrix for fold in trainer.folds] for trainer in (first, second, other)]
    assert all(one is two and one is not three for one, two, three in zip(*matrices, strict=True))
    assert matrices[0][0] is not matrices[0][1]  # by the training rows of the fold
