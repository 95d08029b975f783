"""Small models with random weights, saved as a user would have them: the parity of a batch does not
depend on what was learned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raysere.features.backbone import Item

WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 4, 16),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_model("wavlm", norm="group")``: folder of a model of that kind."""
    made: dict[tuple, Path] = {}

    def make(kind: str, norm: str = "layer") -> Path:
        if (kind, norm) not in made:
            made[kind, norm] = _save(kind, norm, tmp_path_factory.mktemp(f"{kind}-{norm}"))
        return made[kind, norm]

    return make


@pytest.fixture(scope="session")
def noises() -> list[Item]:
    """Clips of four lengths, two of them equal."""
    random = np.random.default_rng(0)
    return [
        Item(f"n/{i}", wave=0.1 * random.standard_normal(size).astype(np.float32)) for i, size in enumerate((16000, 9000, 12345, 16000))
    ]


def _save(kind: str, norm: str, folder: Path) -> Path:
    import torch
    import transformers as tf

    from raysere.features.backbones.hf_weights import quiet

    names = {
        "wav2vec2": "Wav2Vec2",
        "hubert": "Hubert",
        "wavlm": "WavLM",
        "unispeech": "UniSpeech",
        "unispeech-sat": "UniSpeechSat",
        "data2vec-audio": "Data2VecAudio",
    }
    torch.manual_seed(0)
    with quiet():
        if kind == "whisper":
            sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
            config = tf.WhisperConfig(
                **sizes,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                vocab_size=16,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=3,
                max_target_positions=8,
                max_source_positions=1500,
                num_mel_bins=80,
            )
            tf.WhisperModel(config).save_pretrained(folder)
            tf.WhisperFeatureExtractor().save_pretrained(folder)
            return folder
        extra = {} if kind == "data2vec-audio" else {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
        model = getattr(tf, f"{names[kind]}Model")(getattr(tf, f"{names[kind]}Config")(**WAVE, **extra))
        if norm == "group":  # a norm that scales and shifts, as a trained one does
            first = model.feature_extractor.conv_layers[0].layer_norm
            torch.nn.init.uniform_(first.weight, 0.5, 1.5)
            torch.nn.init.uniform_(first.bias, -0.5, 0.5)
        model.save_pretrained(folder)
        tf.Wav2Vec2FeatureExtractor(do_normalize=norm == "layer", return_attention_mask=norm == "layer").save_pretrained(folder)
    return folder
