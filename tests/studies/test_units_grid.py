"""When a frame is: the published grid of the wav2vec2 family, that of Whisper and of the acoustic
frames, on real models.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysere.base.errors import ConfigError, DataError
from raysere.features.backbone import BackboneInfo, Item, Layer
from raysere.features.backbones import describe_backbone, open_backbone
from raysere.features.clock import frame_centres, frame_clock, interval_of
from raysere.features.spec import resolve

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": (8,) * 7}


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the published kernels and strides, and a layer norm that leaves the
    extractor local in time.
    """
    import torch
    import transformers as tf

    folder = tmp_path_factory.mktemp("wavlm")
    torch.manual_seed(0)
    config = tf.WavLMConfig(
        **SIZES,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
    )
    tf.WavLMModel(config).save_pretrained(folder)
    tf.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    return folder


def test_the_clock_of_the_wav2vec2_family(wavlm: Path) -> None:
    assert frame_clock(describe_backbone(f"hf:{wavlm}")) == pytest.approx((0.0125, 0.02))
    assert frame_clock(resolve({"backbone": f"hf:{wavlm}", "granularity": "frame"})) == pytest.approx((0.0125, 0.02))


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (719, 1), (720, 2), (16000, 49)])
def test_the_number_of_frames(wavlm: Path, samples: int, frames: int) -> None:
    wave = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    assert len(open_backbone(f"hf:{wavlm}").encode([Item("u", wave)], [0])[0][0]) == frames == (samples - 400) // 320 + 1


def test_too_short_for_a_frame(wavlm: Path) -> None:
    with pytest.raises(DataError, match="too short"):
        open_backbone(f"hf:{wavlm}").encode([Item("u", np.zeros(399, np.float32))], [0])


def test_a_frame_hears_what_lies_around_its_centre(wavlm: Path) -> None:
    """Row t of the extractor hears samples 320 t to 320 t + 399 and no others, and their middle is
    what the clock names.
    """
    import torch

    extractor = open_backbone(f"hf:{wavlm}").model.feature_extractor
    t, wave = 5, torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([320 * t - 1, 320 * t, 320 * t + 399, 320 * t + 400])
    changed = wave.repeat(4, 1)
    changed[torch.arange(4), places] += 3.0
    with torch.inference_mode():
        moved = (extractor(changed)[:, :, t] - extractor(wave)[:, :, t]).abs().amax(1) > 0
    assert moved.tolist() == [False, True, True, False]
    middle = float(places[1:3].sum() + 1) / 2 / 16000
    assert middle == pytest.approx(frame_centres(frame_clock(describe_backbone(f"hf:{wavlm}")), t + 1)[t])


def test_a_phone_holding_the_middle_sample_receives_the_frame(wavlm: Path) -> None:
    clock = frame_clock(describe_backbone(f"hf:{wavlm}"))
    for t in range(6):
        sample = 320 * t + 200
        found = interval_of(frame_centres(clock, 6), np.array([sample / 16000]), np.array([(sample + 1) / 16000]))
        assert found.tolist() == [0 if frame == t else -1 for frame in range(6)]


def test_padding_changes_no_valid_frame(wavlm: Path) -> None:
    backbone = open_backbone(f"hf:{wavlm}")
    waves = [np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (8000, 5000)]
    together = backbone.encode([Item(str(len(wave)), wave) for wave in waves], [1])
    alone = backbone.encode([Item("u", waves[1])], [1])[0][0]
    assert together[1][0].shape == alone.shape
    assert np.abs(together[1][0] - alone).max() < 1e-4 * np.abs(alone).max()


def test_the_acoustic_frames_are_centred_on_their_ten_milliseconds() -> None:
    clock = frame_clock(describe_backbone("acoustic"))
    assert clock == (0.005, 0.01)
    backbone = open_backbone("acoustic")
    noise = 1e-2 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    click = noise.copy()
    click[8078:8083] += 0.3  # at 0.505 s, the middle of frame 50
    change = np.subtract(*(backbone.encode([Item("u", wave)], [0])[0][0] for wave in (click, noise)))
    change = np.abs(change - np.median(change, 0)).sum(1)  # the click moves the level that all frames are relative to
    heard = np.flatnonzero(change > 0.5 * change.max())
    assert frame_centres(clock, len(change))[heard].mean() == pytest.approx(8080 / 16000, abs=0.004)


def test_whisper_centres_are_multiples_of_its_step() -> None:
    info = BackboneInfo("w", "audio", (Layer("input", 4),), "x", frame_s=0.02, centre_s=0.0)
    assert frame_centres(frame_clock(info), 3).tolist() == [0, 0.02, 0.04]


def test_a_click_lies_in_the_whisper_frame_of_its_time(tmp_path: Path) -> None:
    import torch
    import transformers as tf

    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    more = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 16, "max_target_positions": 8, "max_source_positions": 1500}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    tf.WhisperModel(tf.WhisperConfig(**sizes, **more, **tokens)).save_pretrained(tmp_path)
    tf.WhisperFeatureExtractor().save_pretrained(tmp_path)
    clock = frame_clock(describe_backbone(f"hf:{tmp_path}"))
    assert clock == pytest.approx((0.0, 0.02))
    backbone = open_backbone(f"hf:{tmp_path}")
    noise = 0.05 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    click = noise.copy()
    click[8000:8003] += 0.5
    change = np.abs(np.subtract(*(backbone.encode([Item("u", wave)], [0])[0][0] for wave in (click, noise)))).sum(1)
    assert len(change) == 50
    assert int(change.argmax()) == 25  # 8001 samples are 0.5 s


def test_intervals_leave_gaps_and_margins() -> None:
    starts, ends = np.array([0.1, 0.3, 0.5]), np.array([0.3, 0.4, 0.9])
    centres = np.array([0.0, 0.1, 0.2, 0.3, 0.39, 0.4, 0.45, 0.5, 0.89, 0.9])
    assert interval_of(centres, starts, ends).tolist() == [-1, 0, 0, 1, 1, -1, -1, 2, 2, -1]
    assert interval_of(centres, starts, ends, 0.05).tolist() == [-1, -1, 0, -1, -1, -1, -1, -1, -1, -1]
    assert interval_of(centres, np.zeros(0), np.zeros(0)).tolist() == [-1] * 10


def test_rows_that_are_no_steps_of_time_are_refused() -> None:
    with pytest.raises(ConfigError, match="granularity: frame"):
        frame_clock(resolve({"backbone": "acoustic"}))
    with pytest.raises(ConfigError, match="not steps of time"):
        frame_clock(describe_backbone("hashed"))
