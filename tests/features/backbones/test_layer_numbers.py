"""Layer 0 is what goes into the first block, layer l what comes out of block l: a model whose
states are known (docs/methods.md 8.8).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raysere.features.backbone import Item
from raysere.features.backbones import open_backbone


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_each_block_adds_what_it_is_known_to_add(tiny_model: Callable[..., Path], noises: list[Item], kind: str, tmp_path: Path) -> None:
    """Blocks that add a constant of their own and nothing else; the norm after the last block is
    known, too.
    """
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / kind
    shutil.copytree(tiny_model(kind), folder)
    weights = load_file(folder / "model.safetensors")
    last = {"wav2vec2": "feed_forward.output_dense", "whisper": "fc2"}[kind]
    out = {"wav2vec2": "attention.out_proj", "whisper": "self_attn.out_proj"}[kind]
    blocks = {"wav2vec2": 3, "whisper": 2}[kind]
    names = [name for name in weights if "encoder.layers." in name and (out in name or last in name)]
    assert len(names) == 4 * blocks
    added = [torch.linspace(-1, 1, 32) * 10**block for block in range(blocks)]
    for name in names:
        block = int(name.split("encoder.layers.")[1].split(".")[0])
        weights[name] = added[block] if name.endswith(f"{last}.bias") else torch.zeros_like(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    rows = open_backbone(f"hf:{folder}").encode(noises[:1], list(range(blocks + 1)))[0]
    plain = open_backbone(f"hf:{tiny_model(kind)}").encode(noises[:1], [0])[0]
    assert np.abs(rows[0] - plain[0]).max() < 1e-5  # no block has touched it
    state = rows[0]
    for block in range(blocks - 1):
        state = state + added[block].numpy()
        assert np.abs(rows[block + 1] - state).max() < 1e-3 * 10**block
    state = state + added[-1].numpy()
    normed = (state - state.mean(-1, keepdims=True)) / np.sqrt(state.var(-1, keepdims=True) + 1e-5)
    # of a pre-norm wav2vec2, transformers gives the last state before or after the final norm, by
    # its version
    wanted = [normed] if kind == "whisper" else [normed, state]
    assert min(np.abs(rows[-1] - one).max() for one in wanted) < 1e-3 * 10 ** (blocks - 1)
