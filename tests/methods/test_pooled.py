import pytest
import torch

from raysere.base.errors import ConfigError
from raysere.methods import METHODS
from raysere.methods.pooled import Pooled, PooledParams
from raysere.testing.method import check_losses, check_method, check_padding, check_predictions
from raysere.testing.toy import toy_batch, toy_data, toy_task
from raysere.training.method import Shapes, Step, StreamShape

SMALL = {"hidden": 32, "dropout": 0.1}
POOLED = Pooled()


def shapes(kind="categorical", granularity="utterance", layers=None, prior=(0.6, 0.3, 0.1), **more):
    stream = StreamShape("audio", layers or {0: 8, 1: 8, 2: 8}, 2, granularity, **more)
    return Shapes(toy_task(kind), {"audio": stream}, prior)


def test_is_registered():
    assert METHODS.get("pooled") is Pooled


def test_published_default():
    params = PooledParams()
    assert (params.layers, params.pooling, params.hidden, params.depth, params.dropout, params.loss, params.class_weight) == (
        "mix",
        "mean_std",
        1024,
        1,
        0.5,
        "ce",
        1.0,
    )


def test_conforms_at_utterance_granularity():
    assert len(check_method(POOLED, SMALL, granularities=["utterance"])) == 1 + 3 * 4


@pytest.mark.parametrize("granularity", ["chunk", "frame"])
def test_conforms_with_attention(granularity):
    check_method(POOLED, {**SMALL, "pooling": "attentive", "bottleneck": 8}, granularities=[granularity], kinds=["both"])


OPTIONS = [
    {"layers": "one", "layer": 1},
    {"layers": "concat", "depth": 2},
    {"layers": "top", "pooling": "mean", "depth": 0},
    {"loss": "kl", "rater_dropout": 0.2, "other": "soft", "label_smoothing": 0.1},
    {"loss": "vs", "focal": 2.0},
    {"loss": "logit_adjusted", "tau": 1.5, "sampler": "natural_then_balanced"},
    {"f1_term": 0.3, "gender_term": 0.1, "sampler": "balanced"},
    {"mixup": 1.0, "class_weight": 0.5, "normalise": "speaker"},
    {"mixup": 1.0, "depth": 0, "loss": "kl"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_conforms(options):
    params = PooledParams(**{**SMALL, **options})
    data = toy_data("both", granularity="frame")
    check_losses(POOLED, params, data)
    check_predictions(POOLED, params, data)
    check_padding(POOLED, params, data)


def test_two_streams_side_by_side():
    params = PooledParams(**SMALL)
    data = toy_data("both", modalities=("audio", "text"))
    check_losses(POOLED, params, data)
    check_padding(POOLED, params, data)
    model = POOLED.build(
        params, Shapes(data.task, {name: StreamShape(name, {0: 16, 1: 16}, 2, "utterance") for name in data.features}, (1 / 3,) * 3)
    )
    assert model.blocks[0][0].in_features == 32
    assert set(model.layer_weights()) == {"audio", "text"}


def test_attention_refuses_utterance_rows():
    with pytest.raises(ConfigError, match="granularity: chunk or frame"):
        POOLED.check(PooledParams(pooling="attentive"), shapes())


@pytest.mark.parametrize(
    ("options", "message"), [({"layers": "one", "layer": 7}, "no layer 7"), ({"layers": "top", "layer": 2}, "only 1 stand from layer 2")]
)
def test_layers_that_are_not_there(options, message):
    with pytest.raises(ConfigError, match=message):
        POOLED.check(PooledParams(**options), shapes())


def test_negative_layer_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        PooledParams(layers="one", layer=-1)


def test_chosen_layers():
    wide = shapes(layers=dict.fromkeys(range(9), 4))
    assert POOLED.layers(PooledParams(layers="one", layer=3), wide) == {"audio": [3]}
    assert POOLED.layers(PooledParams(layers="one"), wide) == {"audio": [8]}
    assert POOLED.layers(PooledParams(layers="top", layer=2), wide) == {"audio": [2, 3, 4, 5]}
    assert POOLED.layers(PooledParams(layers="top"), wide) == {"audio": [5, 6, 7, 8]}
    assert POOLED.layers(PooledParams(layers="one", layer=5), shapes(layers={0: 4})) == {"audio": [0]}  # one layer: no choice


def build(options, shape=None, **more):
    torch.manual_seed(0)
    return POOLED.build(PooledParams(**{**SMALL, **options}), shape or shapes(**more))


def stream_of(layers, mask=None):
    from raysere.features.views import Stream

    first = next(iter(layers.values()))
    return Stream(layers, torch.ones(first.shape[:2], dtype=torch.bool) if mask is None else mask, 2, "utterance")


def test_mean_of_utterance_rows_keeps_the_first_half():
    row = torch.arange(8.0).reshape(1, 1, 8)
    pool = build({"layers": "one", "pooling": "mean"}).pools[0]
    assert torch.equal(pool(stream_of({2: row})), row[0, :, :4])
    plain = build({"layers": "one", "pooling": "mean"}, layer_stats={0: 2, 1: 2, 2: 1}).pools[0]
    assert torch.equal(plain(stream_of({2: row})), row[0])


def test_mix_top_and_concat_combine_layers():
    x = {number: torch.full((2, 1, 8), float(number + 1)) for number in range(3)}
    mixed = build({})
    with torch.no_grad():
        mixed.pools[0].mix.weights.copy_(torch.tensor([0.0, 0.0, 1.0]))
    shares = mixed.pools[0].mix.shares()
    assert torch.allclose(mixed.pools[0](stream_of(x)), (shares * torch.tensor([1.0, 2.0, 3.0])).sum().expand(2, 8))
    assert mixed.layer_weights()["audio"] == {number: pytest.approx(share) for number, share in enumerate(shares.tolist())}
    assert torch.allclose(build({"layers": "top"}).pools[0](stream_of(x)), torch.full((2, 8), 2.0))
    assert build({"layers": "concat"}).pools[0](stream_of(x)).shape == (2, 24)


def test_unequal_layers_are_projected_before_they_are_mixed():
    model = build({}, layers={0: 8, 1: 6}, layer_stats={0: 2, 1: 1})
    assert model.pools[0].width == SMALL["hidden"]
    x = {0: torch.randn(2, 1, 8), 1: torch.randn(2, 1, 6)}
    assert model.pools[0](stream_of(x)).shape == (2, SMALL["hidden"])


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_mixup_blends_before_the_last_non_linearity(depth):
    model = build({"layers": "one", "depth": depth, "dropout": 0.0})
    streams = {"audio": stream_of({2: torch.randn(3, 1, 8)})}
    order = torch.tensor([2, 0, 1])
    x = streams["audio"].layers[2][:, 0]
    for number, block in enumerate(model.blocks):
        x = block(x)
        x = torch.relu(0.3 * x + 0.7 * x[order] if number == depth - 1 else x)
    expected = x if depth else 0.3 * x + 0.7 * x[order]
    assert torch.allclose(model(streams, (0.3, order)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"class_weight": 0}, (0.6, 0.3, 0.1)),
        ({"class_weight": 1}, (1 / 3, 1 / 3, 1 / 3)),
        ({"class_weight": 0.5}, (0.6**0.5, 0.3**0.5, 0.1**0.5)),
        ({"class_weight": 0, "loss": "logit_adjusted", "tau": 1}, (1, 1, 1)),
        ({"class_weight": 0, "loss": "vs", "tau": 1}, (1, 1, 1)),
        ({"class_weight": 0, "loss": "ce", "tau": 1}, (0.6, 0.3, 0.1)),
        ({"class_weight": 0, "sampler": "balanced"}, (1, 1, 1)),
    ],
)
def test_effective_prior(options, expected):
    total = sum(expected)
    assert POOLED.effective_prior(PooledParams(**options), (0.6, 0.3, 0.1)) == pytest.approx([value / total for value in expected])


def terms_at(epoch, options, data):
    params = PooledParams(**{**SMALL, **options, "dropout": 0})
    torch.manual_seed(0)
    own = Shapes(data.task, {"audio": StreamShape("audio", {0: 16, 1: 16}, 2, "utterance")}, (0.7, 0.2, 0.1))
    model = POOLED.build(params, own).train()
    batch = toy_batch(data, range(30), {"audio": [0, 1]})
    return POOLED.losses(model, batch, Step(0, 10, epoch, torch.Generator().manual_seed(1))), model, batch


def test_published_loss_is_weighted_cross_entropy():
    terms, model, batch = terms_at(0, {}, toy_data())
    prior = torch.tensor([0.7, 0.2, 0.1])
    weights = 1 / (3 * prior)
    logits = model.classes(model.eval()(batch.streams))
    assert torch.allclose(terms["class"], torch.nn.functional.cross_entropy(logits, batch.label, weights), atol=1e-6)


def test_the_fast_form_of_the_published_loss_equals_the_general_one():
    data = toy_data()
    fast, *_ = terms_at(0, {}, data)
    general, *_ = terms_at(0, {"focal": 1e-9}, data)
    assert torch.allclose(fast["class"], general["class"], atol=1e-5)


def test_a_balanced_epoch_drops_weights_and_priors():
    data = toy_data()
    plain, *_ = terms_at(9, {"class_weight": 0}, data)
    for options in ({"class_weight": 1}, {"class_weight": 1, "loss": "vs"}, {"loss": "logit_adjusted"}):
        late, *_ = terms_at(4, {**options, "sampler": "natural_then_balanced"}, data)
        early, *_ = terms_at(3, {**options, "sampler": "natural_then_balanced"}, data)
        assert torch.allclose(late["class"], plain["class"], atol=1e-6)
        assert not torch.allclose(early["class"], plain["class"], atol=1e-3)


def test_items_without_a_class_are_dropped_or_kept_by_their_votes():
    data = toy_data()
    data.labels.label[:10] = -1
    rows = data.folds[0].train
    dropped = POOLED.train_rows(PooledParams(), data.labels, rows, data.task)
    kept = POOLED.train_rows(PooledParams(other="soft"), data.labels, rows, data.task)
    voted = (data.labels.votes > 0) & (data.labels.label < 0)
    assert set(kept) - set(dropped) == set(rows) & set(voted.nonzero()[0])
    assert set(kept) - set(dropped)
    soft, *_ = terms_at(0, {"other": "soft", "class_weight": 0}, data)
    hard, *_ = terms_at(0, {"class_weight": 0}, data)
    assert not torch.allclose(soft["class"], hard["class"])


def test_terms_and_their_weights():
    data = toy_data("both")
    terms, *_ = terms_at(0, {"gender_term": 0.1, "f1_term": 0.2}, data)
    assert set(terms) == {"class", "f1", "attributes", "gender"}
    double, *_ = terms_at(0, {"gender_term": 0.2, "f1_term": 0.4, "attribute_term": 0.6}, data)
    for name in ("f1", "attributes", "gender"):
        assert torch.allclose(double[name], 2 * terms[name], rtol=1e-4)
    without, *_ = terms_at(0, {"attribute_term": 0}, data)
    assert "attributes" not in without


def test_attributes_by_squared_error_and_sigmoid_and_the_weight_of_the_class_term():
    data = toy_data("both")
    plain, *_ = terms_at(0, {"attribute_head": "sigmoid"}, data)
    squared, model, batch = terms_at(0, {"attribute_head": "sigmoid", "attribute_loss": "mse", "class_term": 1.5}, data)
    assert torch.allclose(squared["class"], 1.5 * plain["class"])
    values = torch.sigmoid(model.attributes(model.eval()(batch.streams)))
    known = torch.isfinite(batch.attributes)
    assert torch.allclose(squared["attributes"], 0.3 * 36 * ((values - batch.attributes)[known] ** 2).mean(), atol=1e-5)
    assert torch.allclose(POOLED.predict(model, batch).attributes, values, atol=1e-6)


def test_one_stream_with_rows_over_time_is_enough_for_attention():
    mixed = Shapes(
        toy_task(), {"audio": StreamShape("audio", {0: 8}, 2, "chunk"), "text": StreamShape("text", {0: 6}, 1, "utterance")}, (1 / 3,) * 3
    )
    model = build({"pooling": "attentive", "bottleneck": 8}, mixed)
    POOLED.check(model.params, mixed)
    assert [pool.width for pool in model.pools] == [16, 6]
    assert model.pools[1].attention is None
