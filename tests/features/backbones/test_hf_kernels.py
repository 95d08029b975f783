"""The faster parts of a speech encoder against the parts of torch and transformers that they stand
for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raysere.base.errors import ConfigError
from raysere.features.backbone import Item
from raysere.features.backbones import describe_backbone, open_backbone
from raysere.features.backbones.hf_kernels import Convolution, GatedAttention, Product, WaveExtractor, replace_parts
from raysere.testing.backbone import check_backbone

HALF_ULP = 2.0**-8  # of bfloat16, relative


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("steps", [1, 7, 200])
def test_product_is_the_linear_layer(packed: bool, steps: int) -> None:
    linear, x = nn.Linear(48, 96), torch.randn(2, steps, 48)
    product, fused = Product(linear, torch.float32), Product(linear, torch.float32, gelu=True)
    if not packed:  # as on a GPU
        for part in (product, fused):
            part.packed, part.weight = False, linear.weight
    assert torch.allclose(product(x), linear(x), atol=1e-5)
    assert torch.allclose(fused(x), F.gelu(linear(x)), atol=1e-5)
    strided = torch.randn(2, 48, steps).transpose(1, 2)
    assert torch.allclose(product(strided), linear(strided), atol=1e-5)


def test_bfloat16_rounds_the_factors_and_the_result_and_nothing_else() -> None:
    linear, x = nn.Linear(512, 32), torch.randn(1, 50, 512)
    exact = F.linear(x.bfloat16().double(), linear.weight.bfloat16().double(), linear.bias.bfloat16().double())
    found = Product(linear, torch.bfloat16)(x)
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= 1.01 * HALF_ULP * exact.abs() + 1e-5).all()
    assert Product(linear, torch.bfloat16, gelu=True)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 4, "groups": 4}, {"stride": 3, "padding": 1, "bias": False}])
def test_convolution_is_the_convolution(packed: bool, options: dict) -> None:
    conv, x = nn.Conv1d(16, 32, 8, **options), torch.randn(3, 16, 61)
    conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
    for gelu in (False, True):
        part = Convolution(conv, torch.float32, gelu=gelu)
        part.packed = packed
        expected = conv(x)
        assert torch.allclose(part(x), F.gelu(expected) if gelu else expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_extractor_is_transformers(tiny_model: Callable[..., Path], norm: str) -> None:
    from transformers import AutoModel

    extractor = AutoModel.from_pretrained(tiny_model("wavlm", norm)).eval().feature_extractor
    wave = torch.randn(2, 9001)
    expected = extractor(wave)
    assert torch.allclose(WaveExtractor(extractor, torch.float32)(wave), expected, atol=1e-5)
    rounded = WaveExtractor(extractor, torch.bfloat16)(wave)
    assert 1e-5 < (rounded - expected).norm() / expected.norm() < 0.02


def test_gated_attention_is_wavlms_eager_attention() -> None:
    """With gates and a bias that matter, over more positions than buckets are exact, with and
    without a mask, first and later blocks.
    """
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    def made(first: bool) -> WavLMAttention:
        attention = WavLMAttention(64, 4, num_buckets=32, max_distance=60, has_relative_position_bias=first).eval()
        nn.init.normal_(attention.gru_rel_pos_const, 1.0, 0.5)
        nn.init.normal_(attention.gru_rel_pos_linear.weight, 0.0, 0.3)
        if first:
            nn.init.normal_(attention.rel_attn_embed.weight, 0.0, 2.0)
        return attention

    x = torch.randn(2, 90, 64)
    first, later = made(True), made(False)
    for mask in (None, torch.arange(90) < torch.tensor([[90], [40]])):
        expected, _, bias = first(x, attention_mask=mask)
        expected_later, _, _ = later(x, attention_mask=mask, position_bias=bias)
        ours_first, ours_later = (GatedAttention(_copy(one), torch.float32) for one in (first, later))
        found, weights, ours = ours_first(x, attention_mask=mask)
        found_later, _, _ = ours_later(x, attention_mask=mask, position_bias=ours)
        assert weights is None
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.allclose(found_later, expected_later, atol=1e-5)
        flat = ours_later(x, attention_mask=mask, position_bias=torch.zeros_like(ours))[0]
        assert (flat - expected_later).abs().max() > 1e-2  # the bias matters in this test


def _copy(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module)


@pytest.mark.parametrize(("kind", "norm"), [("wavlm", "group"), ("wavlm", "layer"), ("hubert", "group"), ("wav2vec2", "layer")])
def test_every_costly_part_is_replaced(tiny_model: Callable[..., Path], kind: str, norm: str) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_model(kind, norm)).eval()
    replace_parts(model)
    assert not [name for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv1d | nn.MultiheadAttention)]


@pytest.mark.parametrize("kind", ["wavlm", "hubert", "data2vec-audio", "whisper"])
def test_blocks_above_the_highest_asked_layer_do_not_run(tiny_model: Callable[..., Path], kind: str) -> None:
    backbone = open_backbone(f"hf:{tiny_model(kind)}")
    count = len(backbone.info.layers)
    item = Item("a", wave=0.1 * np.random.default_rng(0).standard_normal(9000).astype(np.float32))
    everything = backbone.encode([item], list(range(count)))[0]
    ran: list[int] = []
    blocks = (backbone.encoder if kind == "whisper" else backbone.model.encoder).layers
    for number, block in enumerate(blocks, 1):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    for layer in range(count):
        ran.clear()
        rows = backbone.encode([item], [layer])[0][0]
        assert ran == list(range(1, max(1, layer) + 1))
        assert np.array_equal(rows, everything[layer])


@pytest.mark.parametrize(("kind", "norm"), [("wavlm", "group"), ("hubert", "layer"), ("whisper", "layer")])
def test_bfloat16_is_near_and_has_its_own_identity(tiny_model: Callable[..., Path], kind: str, norm: str) -> None:
    name = f"hf:{tiny_model(kind, norm)}"
    exact, rounded = open_backbone(name), open_backbone(name, precision="bfloat16")
    assert rounded.info.identity != exact.info.identity
    assert describe_backbone(name, precision="float32") == describe_backbone(name)
    assert rounded.info.name == f"{name}?precision=bfloat16"
    assert open_backbone(rounded.info.name, precision="bfloat16").info == rounded.info
    check_backbone(rounded)
    item = Item("a", wave=0.1 * np.random.default_rng(0).standard_normal(20000).astype(np.float32))
    layers = list(range(len(exact.info.layers)))
    for expected, found in zip(exact.encode([item], layers)[0], rounded.encode([item], layers)[0], strict=True):
        assert found.dtype == np.float32
        assert 1e-6 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.03


def test_precision_is_checked(tiny_model: Callable[..., Path], models_root: Path) -> None:
    with pytest.raises(ConfigError, match="is not a precision.*float32, bfloat16"):
        describe_backbone(f"hf:{tiny_model('hubert')}", precision="int8")
    with pytest.raises(ConfigError, match="is for speech encoders"):
        describe_backbone(f"hf:{models_root / 'glove-static-48d'}", precision="bfloat16")
    both = describe_backbone(f"hf:{tiny_model('whisper')}?precision=bfloat16&window=clip")
    assert both.name.endswith("?window=clip&precision=bfloat16")
    assert both.batching == "single"
