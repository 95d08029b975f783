"""Speech encoders: a batch equals single clips in every family, layers are the model's own, and
what cannot be loaded says why.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from raysere.base.errors import ConfigError, DataError, EnvironmentFault, MissingFileError
from raysere.features.backbone import Item
from raysere.features.backbones import describe_backbone, hf_weights, open_backbone
from raysere.testing.backbone import check_backbone

FAMILIES = [(kind, norm) for kind in ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat") for norm in ("group", "layer")] + [
    ("data2vec-audio", "layer")
]


@pytest.mark.parametrize(("kind", "norm"), FAMILIES)
def test_a_batch_equals_single_clips(tiny_model: Callable[..., Path], noises: list[Item], kind: str, norm: str) -> None:
    backbone = open_backbone(f"hf:{tiny_model(kind, norm)}")
    layers = list(range(4))
    together = backbone.encode(noises, layers)
    for item, rows in zip(noises, together, strict=True):
        alone = backbone.encode([item], layers)[0]
        for found, expected in zip(rows, alone, strict=True):
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "norm"), FAMILIES)
def test_rows_are_the_hidden_states_of_transformers(tiny_model: Callable[..., Path], noises: list[Item], kind: str, norm: str) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    folder = tiny_model(kind, norm)
    rows = open_backbone(f"hf:{folder}").encode(noises[:1], [0, 1, 2, 3])[0]
    model = AutoModel.from_pretrained(folder).eval()
    values = AutoFeatureExtractor.from_pretrained(folder)(noises[0].wave, sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        hidden = model(values, output_hidden_states=True).hidden_states
    assert len(hidden) == len(rows)
    for found, expected in zip(rows, hidden, strict=True):
        assert np.abs(found - expected[0].numpy()).max() < 1e-4


def test_padding_would_be_wrong_without_the_valid_group_norm(tiny_model: Callable[..., Path], noises: list[Item]) -> None:
    """The parity test above sees the fault that it is there for."""
    backbone = open_backbone(f"hf:{tiny_model('wavlm', 'group')}")
    backbone.model.feature_extractor.groups = False  # the norm is not told what is padding
    together, alone = backbone.encode(noises, [3])[1][0], backbone.encode([noises[1]], [3])[0][0]
    assert np.abs(together - alone).max() > 1e-2 * np.abs(alone).max()


@pytest.mark.parametrize("kind", ["wavlm", "data2vec-audio"])
def test_keeps_the_contract(tiny_model: Callable[..., Path], kind: str) -> None:
    check_backbone(open_backbone(f"hf:{tiny_model(kind)}"))


def test_description(tiny_model: Callable[..., Path]) -> None:
    info = describe_backbone(f"hf:{tiny_model('wav2vec2', 'group')}")
    assert [(layer.name, layer.dim, layer.rows) for layer in info.layers] == [
        (name, 32, "frame") for name in ("input", "block01", "block02", "block03")
    ]
    assert info.modality == "audio"
    assert info.sampling_rate == 16000
    assert info.frame_s == pytest.approx(0.02)
    assert info.batching == "padded"
    assert describe_backbone(f"hf:{tiny_model('data2vec-audio')}").batching == "single"
    assert open_backbone(f"hf:{tiny_model('wav2vec2', 'group')}").info.batching == "single"  # on a CPU single clips are fastest


def test_identity_follows_weights_and_settings_but_not_the_place(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_model("hubert")
    identity = describe_backbone(f"hf:{folder}").identity
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert describe_backbone(f"hf:{copy}").identity == identity
    (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    assert describe_backbone(f"hf:{copy}").identity == identity
    assert describe_backbone(f"hf:{copy}").licence == "mit"
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": False}))
    assert describe_backbone(f"hf:{copy}").identity != identity
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert describe_backbone(f"hf:{other}").identity != identity


def test_whisper_drops_the_padding_and_joins_windows(tiny_model: Callable[..., Path]) -> None:
    backbone = open_backbone(f"hf:{tiny_model('whisper')}")
    random = np.random.default_rng(0)
    long = 0.1 * random.standard_normal(31 * 16000).astype(np.float32)
    items = [Item("long", wave=long), Item("short", wave=long[:16001])]
    (long_rows,), (short_rows,) = backbone.encode(items, [2])
    assert long_rows.shape == (1550, 32)
    assert short_rows.shape == (51, 32)
    assert np.allclose(long_rows[:1500], backbone.encode([Item("a", wave=long[: 30 * 16000])], [2])[0][0], atol=1e-4)
    assert np.allclose(long_rows[1500:], backbone.encode([Item("b", wave=long[30 * 16000 :])], [2])[0][0], atol=1e-4)
    assert np.allclose(short_rows, backbone.encode(items[1:], [2])[0][0], atol=1e-4)


def test_whisper_window_of_the_clip(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("whisper")
    full, clip = open_backbone(f"hf:{folder}"), open_backbone(f"hf:{folder}?window=clip")
    assert full.info.identity != clip.info.identity
    assert full.info.identity == describe_backbone(f"hf:{folder}", window="full").identity
    assert clip.info == open_backbone(f"hf:{folder}", window="clip").info
    assert describe_backbone(f"hf:{folder}").batching == "padded"
    check_backbone(clip)
    wave = 0.1 * np.random.default_rng(0).standard_normal(30 * 16000).astype(np.float32)
    heard = clip.encode([Item("a", wave=wave)], [0, 2])[0]
    for found, expected in zip(heard, full.encode([Item("a", wave=wave)], [0, 2])[0], strict=True):
        assert np.allclose(found, expected, atol=1e-5)  # a clip of 30 s fills the window
    short = [backbone.encode([Item("a", wave=wave[:32000])], [0, 2])[0] for backbone in (full, clip)]
    assert np.allclose(short[0][0][:-1], short[1][0][:-1], atol=1e-5)  # the input is the same, what is attended to is not
    assert np.abs(short[0][1] - short[1][1]).max() > 1e-4
    assert len(backbone_positions(clip)) == 1500


def backbone_positions(backbone: object) -> torch.Tensor:
    return backbone.encoder.embed_positions.weight  # type: ignore[attr-defined]


def test_real_whisper_on_real_speech(models_root: Path, corpora_root: Path) -> None:
    """Against the folder's own recipe: hidden states of the encoder, cut to the clip."""
    from transformers import AutoFeatureExtractor, AutoModel

    folder = models_root / "whisper-base-encoder"
    backbone = open_backbone(f"hf:{folder}")
    wave, _ = sf.read(min((corpora_root / "emodb" / "wav").glob("*.flac")), dtype="float32")
    rows = backbone.encode([Item("a", wave=wave)], list(range(7)))[0]
    values = AutoFeatureExtractor.from_pretrained(folder)(wave, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        hidden = (
            AutoModel.from_pretrained(folder, dtype=torch.float32).get_encoder().eval()(values, output_hidden_states=True).hidden_states
        )
    assert len(hidden) == 7
    for found, expected in zip(rows, hidden, strict=True):
        assert found.shape == (-(-len(wave) // 320), 512)
        assert np.abs(found - expected[0, : len(found)].numpy()).max() < 1e-3


def test_names_that_cannot_be_opened(tiny_model: Callable[..., Path], tmp_path: Path, models_root: Path) -> None:
    with pytest.raises(ConfigError, match="no revision.*COMMIT"):
        describe_backbone("hf:facebook/wav2vec2-base")
    with pytest.raises(MissingFileError, match="no folder './nowhere'"):
        describe_backbone("hf:./nowhere")
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        describe_backbone(f"hf:{tmp_path}")
    with pytest.raises(ConfigError, match="needs a folder or a model name"):
        describe_backbone("hf")
    with pytest.raises(ConfigError, match="is not a window.*full, clip"):
        describe_backbone(f"hf:{tiny_model('whisper')}?window=short")
    with pytest.raises(ConfigError, match="for Whisper"):
        describe_backbone(f"hf:{tiny_model('hubert')}?window=clip")
    with pytest.raises(ConfigError, match="no option 'layers'.*window"):
        describe_backbone(f"hf:{tiny_model('hubert')}", layers=3)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match="'vit' are not supported.*wav2vec2"):
        describe_backbone(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ConfigError, match="This is not JSON"):
        describe_backbone(f"hf:{tmp_path}")


def test_without_a_network_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="hf download someone/model --revision 0123") as caught:
        describe_backbone("hf:someone/model@0123")
    assert str(tmp_path) in caught.value.message
    assert "HF_HUB_OFFLINE" in caught.value.message


def test_a_hub_model_is_a_folder_in_the_cache(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--someone--model" / "snapshots" / commit
    shutil.copytree(tiny_model("wavlm"), snapshot)
    asked = []

    def download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((name, revision, any("safetensors" in pattern for pattern in allow_patterns)))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    info = describe_backbone("hf:someone/model@main")
    assert info.name == f"hf:someone/model@{commit}"
    assert open_backbone(info.name).info.identity == info.identity
    assert asked == [("someone/model", "main", False), ("someone/model", commit, True)]


def test_weights_are_safetensors_and_complete(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    bare = Path(shutil.copytree(tiny_model("hubert"), tmp_path / "bare"))
    (bare / "model.safetensors").rename(bare / "pytorch_model.bin")
    with pytest.raises(MissingFileError, match="no safetensors"):
        open_backbone(f"hf:{bare}")
    from safetensors.torch import load_file, save_file

    partial = Path(shutil.copytree(tiny_model("hubert"), tmp_path / "partial"))
    weights = load_file(partial / "model.safetensors")
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 weights .* not in its file.*layers\.1\.attention\.k_proj"):
        open_backbone(f"hf:{partial}")


def test_bad_items(tiny_model: Callable[..., Path]) -> None:
    backbone = open_backbone(f"hf:{tiny_model('hubert')}")
    with pytest.raises(DataError, match="no audio"):
        backbone.encode([Item("a")], [0])
    with pytest.raises(DataError, match="too short"):
        backbone.encode([Item("a", wave=np.ones(30, np.float32))], [0])
    with pytest.raises(DataError, match="not finite"):
        backbone.encode([Item("a", wave=np.full(16000, np.nan, np.float32))], [0])
    with pytest.raises(ConfigError, match="no layer 9"):
        backbone.encode([Item("a", wave=np.ones(16000, np.float32))], [9])


def test_a_broken_torchaudio_is_named_before_transformers_fails(tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from raysere.features import torchaudio_cpu

    folder = tiny_model("hubert")
    monkeypatch.setattr(torchaudio_cpu, "torchaudio_fault", lambda: "libcudart.so.13: cannot open shared object file")
    with pytest.raises(EnvironmentFault, match="raysere doctor --fix"):
        open_backbone(f"hf:{folder}")


def test_loading_is_silent(tiny_model: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    folder = tiny_model("wavlm", "group")
    capfd.readouterr()
    backbone = open_backbone(f"hf:{folder}")
    backbone.encode([Item("a", wave=np.ones(16000, np.float32)), Item("b", wave=np.ones(9000, np.float32))], [0])
    output = capfd.readouterr()
    assert output.out == output.err == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert hf_weights.AUDIO["wavlm"] == "mask"
