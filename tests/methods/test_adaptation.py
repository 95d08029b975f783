"""The baselines of cross-domain learning, in the frame that all methods share."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from raysere.base.errors import ConfigError
from raysere.methods.adaptation import Adaptation, AdaptationParams
from raysere.nn import alignment
from raysere.testing.method import check_method
from raysere.testing.toy import toy_batch, toy_data, unlabelled, with_target
from raysere.training.loop import Trainer, load_predictor
from raysere.training.method import Step
from raysere.training.predictions import read_predictions

METHOD = Adaptation()
KINDS = ["source_only", "coral_closed", "coral_deep", "dann", "cdan", "cdan_e", "mcc", "entropy", "infomax"]
SMALL = {"pooling": "mean_std", "hidden": 16, "dropout": 0.1, "epochs": 15, "batch": 16, "lr": 3e-3}


@pytest.mark.parametrize("kind", KINDS)
def test_conforms(kind):
    check_method(METHOD, {**SMALL, "kind": kind}, kinds=["categorical"], granularities=["utterance"])


def test_conforms_on_rows_over_time():
    check_method(METHOD, {**SMALL, "kind": "mcc"}, kinds=["categorical"], granularities=["chunk"])


def gaussians(change, seed=0, count=1200, prior=(0.25, 0.25, 0.25, 0.25)):
    """Four classes at (+-3, +-1.5) with unit noise; the target is ``change`` of fresh draws.

    Rows of the trial, as one utterance each.
    """
    from raysere.features.spec import FeatureSpec, LayerSpec
    from raysere.features.views import FeatureView
    from raysere.training.task import Fold, Labels, Task, TrialData

    random = np.random.default_rng(seed)
    means = np.array([[3, 1.5], [3, -1.5], [-3, 1.5], [-3, -1.5]])
    label = np.r_[random.integers(0, 4, count), random.choice(4, count, p=prior), random.choice(4, count, p=prior)]
    x = means[label] + random.normal(size=(3 * count, 2))
    x[count:] = change(x[count:])
    ids = [f"g/{number:05d}" for number in range(3 * count)]
    spec = FeatureSpec(
        backbone="toy", identity="toy", modality="audio", granularity="utterance", dtype="float32", sampling_rate=16000, frame_s=0.02,
        layers=(LayerSpec(number=0, name="x", dim=1, rows="frame"),),
    )  # fmt: skip
    view = FeatureView.from_arrays(spec, ids, {0: [row[None].astype(np.float32) for row in x]})
    speaker = np.arange(3 * count) // 20
    corpus = np.repeat([0, 1, 1], count)
    hidden = np.where(corpus == 0, label, -1)
    labels = Labels(
        ids, hidden, None, None, speaker, [f"s{n}" for n in range(speaker.max() + 1)], corpus, ["a", "b"],
        np.zeros(3 * count, int), np.ones(3 * count),
    )  # fmt: skip
    rows = np.arange(3 * count)
    task = Task(classes=("anger", "happiness", "neutral", "sadness"))
    folds = (Fold(0, rows[: count * 4 // 5], rows[count * 4 // 5 : count]),)
    return TrialData(task, labels, folds, rows[2 * count :], {"audio": view}, unlabelled=rows[count : 2 * count]), label


def reached(data, label, **params):
    trainer = Trainer(
        METHOD, {"pooling": "mean_std", "hidden": 32, "dropout": 0.0, "epochs": 12, "batch": 64, "lr": 3e-3, **params}, data, seed=0
    )
    while not trainer.finished:
        trainer.epoch()
    table = trainer.predictions().filter(pl.col("split") == "test")
    place = {name: row for row, name in enumerate(data.labels.utterances)}
    truth = label[[place[name] for name in table["utterance"]]]
    said = table.select([f"p.{name}" for name in data.task.classes]).to_numpy().argmax(1)
    return np.mean([(said[truth == k] == k).mean() for k in range(4)]), trainer


def stretched(x):
    return x * [3, 1 / 3] + [4, -2]


def test_a_stretch_of_axes_is_undone_by_statistics():
    data, label = gaussians(stretched)
    source = reached(data, label, normalise="corpus")[0]
    assert source < 0.7
    assert reached(data, label, normalise="domain")[0] > 0.88
    assert reached(data, label, normalise="corpus", kind="coral_closed", ridge=1e-3, epochs=30)[0] > 0.88


def test_recolouring_does_not_undo_a_turn():
    turn = np.array([[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]])
    data, label = gaussians(lambda x: x @ turn.T + [4, -2])
    closed = reached(data, label, normalise="corpus", kind="coral_closed", ridge=1e-3, epochs=30)[0]
    assert reached(data, label, normalise="corpus")[0] < closed - 0.1
    assert closed < 0.88


def test_the_source_is_recoloured_to_the_moments_of_what_is_adapted_to():
    data, label = gaussians(lambda x: x @ np.array([[0.9, -0.5], [0.4, 2.0]]) + [4, -2], count=300)
    trainer = reached(data, label, normalise="corpus", kind="coral_closed", ridge=0.0, epochs=1)[1]
    fold = trainer.folds[0]
    source, target = (
        fold.model.vector({name: stream.batch(rows) for name, stream in fold.streams.items()}).detach()
        for rows in (fold.index, fold.unlabelled)
    )
    moved = source @ fold.model.turn + fold.model.shift
    assert torch.allclose(alignment.covariance(moved), alignment.covariance(target), atol=1e-3)
    assert torch.allclose(moved.mean(0), target.mean(0), atol=1e-3)
    assert not torch.allclose(alignment.covariance(source), alignment.covariance(target), atol=0.3)


def test_other_class_shares_spoil_the_alignment_of_moments():
    same, label = gaussians(stretched)
    moved, moved_label = gaussians(stretched, prior=(0.7, 0.1, 0.1, 0.1))
    scores = [
        reached(d, y, normalise="corpus", kind="coral_closed", ridge=1e-3, epochs=30)[0] for d, y in ((same, label), (moved, moved_label))
    ]
    assert scores[1] < scores[0] - 0.04


def test_target_labels_change_no_byte_and_the_last_epoch_is_kept():
    data, _ = gaussians(stretched, count=200)
    is_target_domain = np.concatenate([data.unlabelled, data.test])
    label = data.labels.label.copy()
    label[is_target_domain] = (
        np.arange(len(is_target_domain)) % 4
    )  # should one reach a trial all the same, no loss and no criterion may look
    other = replace(data, labels=replace(data.labels, label=label))
    states = []
    for one in (data, other):
        trainer = Trainer(METHOD, {**SMALL, "kind": "cdan_e", "epochs": 3}, one, seed=0)
        while not trainer.finished:
            trainer.epoch()
        assert trainer.best["epoch"] == 2
        states.append(trainer.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_items_of_the_target_come_without_any_label():
    data, seen = with_target(toy_data(granularity="utterance")), []

    class Watched(Adaptation):
        def begin_epoch(self, model, feed, epoch, seed):
            seen.extend(feed.target())
            super().begin_epoch(model, feed, epoch, seed)

        def losses(self, model, batch, step):
            seen.append(batch.unlabelled)
            return super().losses(model, batch, step)

    Trainer(Watched(), {**SMALL, "kind": "mcc"}, data, seed=0).epoch()
    assert (data.labels.label[data.unlabelled] >= 0).all(), "they are there to be read"
    assert len(seen) > 2
    for batch in seen:
        assert set(batch.rows.tolist()) <= set(data.unlabelled.tolist())
        assert set(batch.label.tolist()) == {-1}
        assert batch.soft is batch.attributes is batch.votes is None
        assert batch.is_target_domain.all()


def test_new_clips_of_the_target_are_normalised_as_it_was():
    data, label = gaussians(stretched, count=300)
    _, trainer = reached(data, label, normalise="domain")
    predictor = load_predictor(METHOD, trainer.params, trainer.shapes, trainer.state())
    table = read_predictions(trainer.predictions(), data.task, "test")
    known, unknown = (predictor.logits(data.features, data.test, corpora=[name] * len(data.test)) for name in ("b", "elsewhere"))
    assert np.abs(torch.softmax(torch.from_numpy(known), 1).numpy() - table.probabilities).max() < 1e-4
    assert np.abs(known - unknown).max() > 0.1


def test_criteria_stand_beside_the_scores_of_the_last_epoch():
    data, label = gaussians(stretched, count=300)
    _, trainer = reached(data, label, kind="infomax")
    found = {name for name in trainer.best["metrics"] if name.startswith("criterion.")}
    assert {"criterion.infomax", "criterion.bnm", "criterion.class_ami", "criterion.weights_effective"} <= found


def test_strength_of_adaptation_rises_from_nothing():
    data = with_target(toy_data(granularity="utterance"))
    trainer = Trainer(METHOD, {**SMALL, "kind": "mcc", "weight": 5.0}, data, seed=0)
    model = trainer.folds[0].model
    batch = toy_batch(data, data.folds[0].train[:16], METHOD.layers(trainer.params, trainer.shapes))
    batch.unlabelled = unlabelled(toy_batch(data, data.unlabelled[:16], METHOD.layers(trainer.params, trainer.shapes)))
    model.eval()
    values = [float(METHOD.losses(model, batch, Step(step, 11, 0, torch.Generator()))["mcc"].detach()) for step in (0, 1, 10)]
    assert values[0] == 0
    assert values[1] / values[2] == pytest.approx((2 / (1 + np.exp(-1)) - 1) / np.tanh(5), rel=1e-5)


def test_a_wide_product_of_features_and_classes_is_mapped_at_random():
    shapes = Trainer(METHOD, SMALL, with_target(toy_data(granularity="utterance")), seed=0).shapes
    narrow, wide = (METHOD.build(AdaptationParams(kind="cdan", hidden=hidden), shapes) for hidden in (64, 2048))
    assert narrow.critic[0].in_features == 64 * 3
    assert wide.critic[0].in_features == 1024


def critic_of(kind):
    data = with_target(toy_data(granularity="utterance"))
    shapes = Trainer(METHOD, SMALL, data, seed=0).shapes
    params = AdaptationParams(**{**SMALL, "kind": kind, "critic": 8})
    torch.manual_seed(0)
    model = METHOD.build(params, shapes).eval()
    with torch.no_grad():  # answers of which some are sure, and a critic that tells items apart
        model.trunk.classes.weight.mul_(20)
        model.critic[-1].weight.mul_(20)
    layers = METHOD.layers(params, shapes)
    batch = toy_batch(data, data.folds[0].train[:24], layers)
    batch.unlabelled = unlabelled(toy_batch(data, data.unlabelled, layers))
    return model, batch


def test_a_critic_reads_answers_that_it_does_not_teach():
    model, batch = critic_of("cdan")
    f, logits = (x.detach().requires_grad_() for x in model(batch))
    model.domain_logits(f, logits, 0.7).sum().backward()
    plain = f.detach().clone().requires_grad_()
    model.critic(alignment.outer_map(plain, torch.softmax(logits.detach(), 1))).sum().backward()
    assert logits.grad is None
    assert torch.allclose(f.grad, -0.7 * plain.grad, atol=1e-7)
    assert float(plain.grad.abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["cdan", "cdan_e"])
def test_sure_items_weigh_more_where_the_kind_says_so(kind):
    model, batch = critic_of(kind)
    found = METHOD.losses(model, batch, Step(5, 11, 0, torch.Generator()))[kind]
    parts = []
    for items, sign in ((batch, -1), (batch.unlabelled, 1)):
        f, logits = model(items)
        p = torch.softmax(logits, 1)
        w = 1 + torch.exp((p * p.log()).sum(1)) if kind == "cdan_e" else torch.ones(len(p))
        parts.append((w / w.mean() * torch.nn.functional.softplus(sign * model.domain_logits(f, logits, 1.0))).mean())
    assert float(found.detach()) == pytest.approx(float((parts[0] + parts[1]).detach()) / 2, abs=1e-6)


def test_what_cannot_be():
    with pytest.raises(ConfigError, match="transfer"):
        Trainer(METHOD, SMALL, toy_data(granularity="utterance"), seed=0)
    with pytest.raises(ConfigError, match="recolours"):
        Trainer(METHOD, {**SMALL, "kind": "coral_closed", "layers": "mix"}, with_target(toy_data(granularity="utterance")), seed=0)
    with pytest.raises(ConfigError, match="classes"):
        Trainer(METHOD, SMALL, with_target(toy_data("dimensional", granularity="utterance")), seed=0)


def test_even_answers_reach_the_target_alone():
    data, _ = gaussians(stretched, count=300)
    answers = {}
    for balance in (0.0, 1.0):
        trainer = Trainer(METHOD, {**SMALL, "hidden": 32, "epochs": 2, "normalise": "corpus", "balance": balance}, data, seed=0)
        while not trainer.finished:
            trainer.epoch()
        answers[balance] = trainer.predictions()
        offset = trainer.state()["fold0.model.offset"]
        assert bool(offset.abs().max() > 0.05) == (balance > 0)
    dev = pl.col("split") == "dev"
    assert answers[0.0].filter(dev).equals(answers[1.0].filter(dev)), "clips of the source keep their answers"
    uneven = [
        float(np.abs(answers[balance].filter(~dev).select(pl.col("^p\\..*$")).mean().to_numpy() - 0.25).max()) for balance in (0.0, 1.0)
    ]
    assert uneven[1] < 0.05 < uneven[0]
