"""The fusion members: what they learn, what padding and a missing stream do, and that they are what
their modules say.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import NAMES, interaction, padded, unlabelled, without

from raysere.base.errors import ConfigError, DataError
from raysere.methods import METHODS
from raysere.methods.parts.fusion import others, without_a_stream
from raysere.methods.pooled import Pooled
from raysere.nn.attention import Attention, sinusoids
from raysere.search.space.checks import check
from raysere.search.space.grammar import load_space
from raysere.testing.method import check_method
from raysere.testing.toy import toy_batch, toy_data, toy_task
from raysere.training.loop import Trainer
from raysere.training.method import Shapes, Step, StreamShape
from raysere.training.predictions import read_predictions
from raysere.training.predictor import load_predictor

METHODS_HERE = ("concat", "xattn", "xattn_std", "deepser")
SEQUENCES = METHODS_HERE[1:]
SMALL = {"hidden": 16, "dropout": 0.1, "epochs": 15, "patience": 15, "batch": 16, "lr": 3e-3}
NARROW = {**SMALL, "width": 16, "heads": 2, "bottleneck": 8}
NEVER_MISSING = ("missing",)  # a row that only incomplete utterances and modality dropout teach


def small(name: str, **more):
    return METHODS.get(name).Params(**{**(SMALL if name == "concat" else NARROW), **more})


def model_of(name, data, **options):
    method, params = METHODS.get(name)(), small(name, **options)
    shapes = Shapes(data.task, {key: view.shape() for key, view in data.features.items()}, (0.5,) * len(data.task.classes))
    method.check(params, shapes)
    torch.manual_seed(0)
    return method, method.build(params, shapes), method.layers(params, shapes)


def streams_of(data, rows, layers):
    return toy_batch(data, rows, layers).streams


# ---- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS_HERE)
def test_conforms(name):
    method = METHODS.get(name)()
    sampler = {"sampler": "natural"}  # the published one of deepser needs classes
    options = {**(SMALL if name == "concat" else NARROW), **sampler, "epochs": 25, "patience": 25, "modality_dropout": 0.1}
    assert len(check_method(method, options, granularities=["chunk"], kinds=["both"])) == 1 + 4


@pytest.mark.parametrize("name", METHODS_HERE)
@pytest.mark.parametrize("granularities", [("frame", "utterance"), ("utterance", "utterance")], ids="+".join)
def test_learns_what_only_both_streams_tell(name, granularities):
    data = interaction(granularities=granularities)
    trainer = Trainer(METHODS.get(name)(), small(name, modality_dropout=0.0), data, seed=1)
    while not trainer.finished and trainer.best.get("score", 0) < 0.9:
        trainer.epoch()
    assert trainer.best["score"] >= 0.9
    labels, found = data.labels.label[data.test], read_predictions(trainer.predictions(), data.task, "test").probabilities
    assert float((found.argmax(1) == labels).mean()) >= 0.85


@pytest.mark.parametrize("stream", NAMES)
def test_one_stream_by_itself_tells_nothing(stream):
    data = interaction()
    alone = replace(data, features={stream: data.features[stream]})
    trainer = Trainer(Pooled(), {"hidden": 32, "epochs": 15, "lr": 3e-3}, alone, seed=1)
    while not trainer.finished:
        trainer.epoch()
    found = read_predictions(trainer.predictions(), data.task, "test").probabilities
    assert float((found.argmax(1) == data.labels.label[data.test]).mean()) == pytest.approx(0.5, abs=0.2)  # 60 clips


@pytest.mark.parametrize("name", METHODS_HERE)
def test_the_same_seed_gives_the_same_and_saved_tensors_predict_the_same(name):
    data = interaction(120, missing=0.2)
    trainers = [Trainer(METHODS.get(name)(), small(name, epochs=3), data, seed=seed) for seed in (1, 1, 2)]
    for trainer in trainers:
        while not trainer.finished:
            trainer.epoch()
    first, second, third = (trainer.predictions() for trainer in trainers)
    assert first.equals(second)
    assert not first.equals(third)
    shapes = Shapes(data.task, {key: view.shape() for key, view in reversed(data.features.items())})  # in another order
    again = load_predictor(METHODS.get(name)(), small(name), shapes, trainers[0].state()).predict(data.features, data.test)
    expected = read_predictions(first, data.task, "test").probabilities
    assert np.allclose(torch.softmax(again.logits, -1).numpy(), expected, atol=1e-5)


# ---- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS_HERE)
@pytest.mark.parametrize("pooling", ["attention", "mean_std", "attentive"])
def test_neither_padding_nor_the_rest_of_the_batch_changes_a_prediction(name, pooling):
    data = toy_data(granularity="frame", modalities=("audio", "text"), dim=6)
    method, model, layers = model_of(name, data, pooling=pooling)
    model.eval()
    streams = streams_of(data, np.arange(10), layers)
    streams["text"] = without(streams["text"], [3])
    with torch.inference_mode():
        together = method.predict(model, unlabelled(streams)).logits
        for more, junk in ((0, float("nan")), (1, 1e4), (9, float("inf"))):
            soiled = {key: padded(stream, more * (2 if key == "text" else 1), junk) for key, stream in streams.items()}
            assert torch.allclose(method.predict(model, unlabelled(soiled)).logits, together, rtol=0, atol=1e-6)
        for items in ([3], [0, 3, 7]):
            some = streams_of(data, np.array(items), layers)
            some["text"] = without(some["text"], [items.index(3)])
            assert torch.allclose(method.predict(model, unlabelled(some)).logits, together[items], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_every_valid_row_of_every_stream_counts(name):
    data = toy_data(granularity="frame", modalities=("audio", "text"), dim=6)
    method, model, layers = model_of(name, data)
    model.eval()
    streams = streams_of(data, np.arange(4), layers)
    with torch.inference_mode():
        before = method.predict(model, unlabelled(streams)).logits
        for key, stream in streams.items():
            last = int(stream.mask[0].sum()) - 1
            changed = {number: x.clone() for number, x in stream.layers.items()}
            for x in changed.values():
                x[0, last] += 3
            after = method.predict(model, unlabelled({**streams, key: replace(stream, layers=changed)})).logits
            assert not torch.allclose(after[0], before[0], atol=1e-5)
            assert torch.allclose(after[1:], before[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_gradients_reach_both_streams(name):
    data = toy_data(granularity="frame", modalities=("audio", "text"), dim=6)
    method, model, layers = model_of(name, data, modality_dropout=0.0)
    batch = toy_batch(data, np.arange(16), layers)
    for stream in batch.streams.values():
        for x in stream.layers.values():
            x.requires_grad_()
    terms = method.losses(model.train(), batch, Step(0, 1, 0, torch.Generator().manual_seed(0)))
    torch.stack(list(terms.values())).sum().backward()
    for stream in batch.streams.values():
        for x in stream.layers.values():
            reached = (x.grad.abs().sum(-1) > 0) == stream.mask
            assert bool(reached.all())  # all valid rows, and nothing else


# ---- a missing stream ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS_HERE)
@pytest.mark.parametrize("granularities", [("frame", "frame"), ("utterance", "utterance")], ids="+".join)
def test_a_missing_stream_is_its_learned_row_and_its_content_is_not_read(name, granularities):
    data = interaction(60, granularities=granularities)
    method, model, layers = model_of(name, data)
    model.eval()
    streams = streams_of(data, np.arange(6), layers)
    gone = {**streams, "words": without(streams["words"], [1])}
    other = {number: x.clone().index_fill_(0, torch.tensor([1]), 9.0) for number, x in gone["words"].layers.items()}
    with torch.inference_mode():
        whole, partial = (method.predict(model, unlabelled(batch)).logits for batch in (streams, gone))
        again = method.predict(model, unlabelled({**gone, "words": replace(gone["words"], layers=other)})).logits
        assert torch.equal(partial, again)
        assert not torch.allclose(whole[1], partial[1], atol=1e-4)
        assert torch.allclose(whole[[0, 2, 3, 4, 5]], partial[[0, 2, 3, 4, 5]], rtol=0, atol=1e-6)
        rows = [parameter for key, parameter in model.named_parameters() if "missing" in key]
        assert len(rows) == 2
        assert all(bool((row == 0).all()) for row in rows)
        rows[1].add_(torch.linspace(-1, 1, len(rows[1])))
        assert not torch.allclose(method.predict(model, unlabelled(gone)).logits[1], partial[1], atol=1e-4)


@pytest.mark.parametrize("memory", [None, 0])  # matrices on the device, and rows read batch by batch
@pytest.mark.parametrize("granularity", ["utterance", "frame"])
def test_the_loop_trains_and_predicts_utterances_that_lack_a_stream(memory, granularity):
    data = interaction(90, granularities=(granularity, granularity), missing=0.2)
    present = np.stack([data.features[key].present for key in NAMES])
    assert 0 < (~present).any(0).sum() < 90
    trainer = Trainer(METHODS.get("concat")(), small("concat", epochs=2, modality_dropout=0.0), data, seed=0, memory=memory)
    while not trainer.finished:
        trainer.epoch()
    table = trainer.predictions()
    assert table.height == len(data.folds[0].dev) + len(data.test)
    state = trainer.state()
    assert all(bool((value != 0).any()) for key, value in state.items() if "missing" in key)  # taught by the incomplete ones
    predictor = load_predictor(METHODS.get("concat")(), small("concat"), trainer.shapes, state)
    again = predictor.predict(data.features, data.test).logits
    assert np.allclose(torch.softmax(again, -1).numpy(), read_predictions(table, data.task, "test").probabilities, atol=1e-5)
    for key in NAMES:
        assert data.features[key].present.sum() < 90


def test_an_utterance_without_any_stream_is_left_out_and_others_need_all_streams():
    data = interaction(60, missing=0.1)
    empty = replace(data, features={name: replace_rows(view, [0]) for name, view in data.features.items()})
    for method, kept in ((METHODS.get("concat")(), "any"), (Pooled(), "all")):
        params = small("concat", epochs=1) if kept == "any" else {"hidden": 8, "epochs": 1}
        trainer = Trainer(method, params, empty, seed=0)
        trainer.epoch()
        present = getattr(np, kept)([view.present for view in empty.features.values()], axis=0)
        rows = np.concatenate([empty.folds[0].dev, empty.test])
        assert trainer.predictions()["utterance"].to_list() == [empty.labels.utterances[row] for row in rows if present[row]]
        predictor = load_predictor(method, params, trainer.shapes, trainer.state())
        with pytest.raises(DataError, match="cannot be predicted"):
            predictor.predict(empty.features, [0, 1])


def replace_rows(view, gone):
    """The view without these utterances."""
    from raysere.features.views import FeatureView

    stream = view.batch(np.arange(len(view)), view.spec.numbers)
    layers = {
        number: [x[row][stream.mask[row]].numpy() if view.present[row] and row not in gone else None for row in range(len(view))]
        for number, x in stream.layers.items()
    }
    return FeatureView.from_arrays(view.spec, view.utterances, layers)


def test_modality_dropout_hides_one_stream_of_some_utterances_and_never_the_only_one():
    data = interaction(240, missing=0.2)
    streams = streams_of(data, np.arange(240), {name: [0] for name in NAMES})
    before = torch.stack([streams[name].mask.any(1) for name in NAMES])
    hidden = without_a_stream(streams, 0.5, torch.Generator().manual_seed(0))
    after = torch.stack([hidden[name].mask.any(1) for name in NAMES])
    assert bool(after.any(0).all())
    assert not bool((after & ~before).any())
    both = before.all(0)
    assert torch.equal(after[:, ~both], before[:, ~both])
    share = 1 - after[:, both].all(0).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.12)
    assert float((~after[:, both]).float().sum(1).min()) > 20  # either of them
    assert without_a_stream(streams, 0.0, torch.Generator()) is streams


# ---- the architectures ---------------------------------------------------------------------------


def test_attention_follows_the_formula():
    torch.manual_seed(0)
    module = Attention(8, 2, 0.0).eval()
    x, other = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    mask = torch.tensor([[True, True, True, False, False]])
    query = module.query(x)[0]
    keys, values = module.keys_values(other[0, :3]).chunk(2, dim=-1)
    parts = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(query[:, head] @ keys[:, head].T / 4**0.5, dim=-1)
        parts.append(weights @ values[:, head])
    assert torch.allclose(module(x, other, mask)[0], module.result(torch.cat(parts, -1)), atol=1e-6)


def test_sinusoids():
    table = sinusoids(4, 6, torch.device("cpu"))
    for t in range(4):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert float(table[t, i]) == pytest.approx(np.sin(angle), abs=1e-6)
            assert float(table[t, 3 + i]) == pytest.approx(np.cos(angle), abs=1e-6)


def test_each_of_three_streams_attends_to_both_others():
    x = [torch.full((1, n, 2), float(n)) for n in (1, 2, 3)]
    masks = [torch.ones(1, n, dtype=torch.bool) for n in (1, 2, 3)]
    rows, mask = others(x, masks, 1)
    assert rows[0, :, 0].tolist() == [1, 3, 3, 3]
    assert mask.shape == (1, 4)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_three_streams_work(name):
    data = toy_data(granularity="frame", modalities=("audio", "text"), dim=6)
    data = replace(data, features={**data.features, "second": data.features["audio"]})
    method, model, layers = model_of(name, data, layers="one")
    logits = method.predict(model.eval(), unlabelled(streams_of(data, np.arange(5), layers))).logits
    assert logits.shape == (5, 3)


def test_xattn_by_hand():
    data = toy_data(granularity="frame", modalities=("audio", "text"), dim=6)
    _, model, layers = model_of("xattn", data, layers="one", dropout=0.0)
    model.eval()
    streams = streams_of(data, np.array([4]), layers)
    h = []
    for reader, recurrent, name in zip(model.readers, model.recurrent, model.names):
        rows = streams[name].layers[1]
        h.append(recurrent.gru(reader.project(rows))[0])
    crossed = [h[n] + model.crossing[n](h[n], h[1 - n], torch.ones(1, h[1 - n].shape[1], dtype=torch.bool)) for n in range(2)]
    pooled = []
    for pooling, rows in zip(model.pools, crossed):
        weights = torch.softmax(pooling.attention.score(torch.tanh(pooling.attention.project(rows))), dim=1)
        pooled.append((weights * rows).sum(1))
    x = torch.relu(model.blocks[0](model.norm(torch.cat(pooled, -1))))
    assert torch.allclose(model(streams), x, atol=1e-5)


def test_deepser_by_hand():
    data = toy_data("both", granularity="frame", modalities=("audio", "text"), dim=6)
    method, model, layers = model_of("deepser", data, layers="one", dropout=0.0, heads=1)
    model.eval()
    streams = streams_of(data, np.array([4]), layers)

    def ones(rows):
        return torch.ones(rows.shape[:2], dtype=torch.bool)

    h1, h2 = [], []
    for reader, tower, name in zip(model.readers, model.towers, model.names):
        rows = reader.project(streams[name].layers[1])
        h1.append(tower.first(rows, ones(rows)))
        h2.append(tower.second(h1[-1], ones(rows)))
    a1 = model.leg_a.first(torch.cat(h1, 1), ones(torch.cat(h1, 1)))
    a2 = model.leg_a.second(a1, ones(a1))
    whole = torch.cat([*h2, a2], 1)
    b = model.leg_b.second(model.leg_b.first(whole, ones(whole)), ones(whole)).mean(1)
    hidden = torch.relu(model.blocks[0](torch.cat([*(rows.mean(1) for rows in h2), b], -1)))
    assert torch.allclose(model(streams), hidden, atol=1e-5)
    found = method.predict(model, unlabelled(streams))
    assert torch.allclose(found.attributes, torch.sigmoid(model.attributes(hidden)), atol=1e-6)


def test_published_defaults():
    deep = METHODS.get("deepser").Params()
    assert (deep.width, deep.heads, deep.hidden, deep.class_term, deep.attribute_term, deep.class_weight) == (512, 1, 512, 1.5, 0.4, 0.5)
    assert (deep.mixup, deep.mixup_alpha, deep.patience, deep.sampler, deep.loss, deep.other) == (
        0.3,
        0.2,
        8,
        "natural_then_balanced",
        "kl",
        "soft",
    )
    assert (METHODS.get("xattn").Params().width, METHODS.get("xattn").Params().pooling) == (512, "attention")
    assert (METHODS.get("xattn_std").Params().width, METHODS.get("xattn_std").Params().blocks) == (512, 2)


def test_faults_of_a_configuration():
    with pytest.raises(ValueError, match="even multiple of heads"):
        METHODS.get("xattn").Params(width=36, heads=8)
    data = interaction(60, granularities=("utterance", "utterance"))
    with pytest.raises(ConfigError, match="rows over time"):
        model_of("concat", data, pooling="attentive")
    with pytest.raises(ConfigError, match="2 feature streams"):
        Trainer(METHODS.get("xattn")(), small("xattn"), replace(data, features={"words": data.features["words"]}), seed=0)
    with pytest.raises(ConfigError, match="needs classes"):
        model_of("deepser", toy_data("dimensional", granularity="frame", modalities=("audio", "text")))


@pytest.mark.parametrize("name", SEQUENCES)
def test_bfloat16_products_give_nearly_the_same(name):
    data = interaction(60)
    exact, low = (
        Trainer(METHODS.get(name)(), small(name, epochs=2), data, seed=1, precision=precision) for precision in ("float32", "bfloat16")
    )
    rows = [trainer.epoch() for trainer in (exact, low)]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=0.05)


@pytest.mark.parametrize("name", METHODS_HERE)
@pytest.mark.parametrize("kind", ["categorical", "dimensional", "both"])
def test_trial_0_of_the_shipped_space_is_the_default_on_any_task(name, kind):
    streams = {"speech": StreamShape("audio", {0: 16, 1: 16}, 2, "chunk"), "words": StreamShape("text", {0: 12}, 1, "utterance")}
    method = METHODS.get(name)()
    space = check(load_space(name), method.Params, Shapes(toy_task(kind), streams), method=method)
    params, published = method.Params(**space.default_config()).model_dump(), method.Params().model_dump()
    changed = {key: value for key, value in params.items() if value != published[key]}
    assert changed == ({"sampler": "natural"} if (name, kind) == ("deepser", "dimensional") else {})
