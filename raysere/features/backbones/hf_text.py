"""Text encoders (BERT, RoBERTa, multilingual ones, static word vectors): a row a token, every
hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.features.backbone import Backbone, BackboneInfo, Item
from raysere.features.backbones.hf_weights import check_layers, finite, layers_of, load_weights, quiet

CODE_VERSION = 1  # raise it whenever an output changes: it is part of every feature key
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "bpe.codes")
_TOGETHER = 64  # texts a forward pass
# position numbers of these start after the padding index, so the table holds fewer tokens than rows
_OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "data2vec-text",
    "roberta-prelayernorm",
    "mpnet",
    "ibert",
    "longformer",
}


def describe_text(config: Any, name: str, identity: str, licence: str) -> BackboneInfo:
    """See :meth:`HuggingFace.describe`."""
    return BackboneInfo(
        name,
        "text",
        layers_of(config, config.hidden_size, config.num_hidden_layers),
        identity,
        sampling_rate=None,
        frame_s=None,
        batching="padded",
        licence=licence,
    )


class HFText(Backbone):
    """A tokeniser and an encoder from one folder.

    ``truncated`` counts the texts, ``truncated_tokens`` the tokens that did not fit the model's
    longest input and were left out so far. Special tokens take part in the encoding and are no
    rows.
    """

    def __init__(self, folder: Path, info: BackboneInfo, *, device: str = "cpu") -> None:
        self.info = info
        self.model = load_weights(folder, device)
        self.device = torch.device(device)
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            # transformers would make a tokeniser with an empty vocabulary, to which every word is
            # unknown
            raise MissingFileError(
                "There is no tokeniser in the text model's folder",
                where=folder,
                remedy=f"One of these is needed: {', '.join(_VOCABULARIES)}.",
            )
        with quiet():
            from transformers import AutoTokenizer

            try:
                self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            except (ValueError, OSError, ImportError) as error:
                raise ConfigError(f"transformers cannot load this model's tokeniser: {str(error).splitlines()[0]}", where=folder) from error
        self.longest = self._longest()
        self.truncated = 0
        self.truncated_tokens = 0

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        """See :meth:`Backbone.encode`.

        Raises DataError: no text, or none of which the tokeniser makes a token.
        """
        check_layers(self.info.name, layers, len(self.info.layers))
        tokens = [self._tokens(item) for item in items]
        result: list[list[np.ndarray]] = []
        for start in range(0, len(items), _TOGETHER):
            result += self._forward(items[start : start + _TOGETHER], tokens[start : start + _TOGETHER], layers)
        for _, _, lost in tokens:
            self.truncated += lost > 0
            self.truncated_tokens += lost
        return result

    def _tokens(self, item: Item) -> tuple[list[int], list[int], int]:
        """Ids, flags of special tokens, and how many tokens did not fit."""
        text = (item.text or "").strip()
        if not text:
            raise DataError("no text for this utterance", where=item.utterance)
        with quiet():
            whole = self.tokenizer(text, return_special_tokens_mask=True, truncation=False, verbose=False)
            lost = max(0, len(whole["input_ids"]) - self.longest)
            encoded = self.tokenizer(text, return_special_tokens_mask=True, truncation=True, max_length=self.longest) if lost else whole
        if all(encoded["special_tokens_mask"]):
            raise DataError("the tokeniser finds no token in the text", where=item.utterance)
        return encoded["input_ids"], encoded["special_tokens_mask"], lost

    def _forward(
        self, items: Sequence[Item], tokens: list[tuple[list[int], list[int], int]], layers: Sequence[int]
    ) -> list[list[np.ndarray]]:
        width = max(len(ids) for ids, _, _ in tokens)
        padding = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [padding] * (width - len(row)) for row, _, _ in tokens], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _, _ in tokens], device=self.device)
        with torch.inference_mode():
            output = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        hidden = output.hidden_states or (
            output.last_hidden_state,
        )  # a model of embeddings alone has no block whose input could be recorded
        keep = [torch.tensor([i for i, special in enumerate(flags) if not special], device=self.device) for _, flags, _ in tokens]
        return [
            [finite(hidden[layer][row, keep[row]].float().cpu().numpy().copy(), item.utterance) for layer in layers]
            for row, item in enumerate(items)
        ]

    def _longest(self) -> int:
        """Tokens that tokeniser and position table both hold, special ones included."""
        config = self.model.config
        table = getattr(config, "max_position_embeddings", None)
        if table is not None and config.model_type in _OFFSET_POSITIONS:
            table -= (config.pad_token_id or 0) + 1
        limits = [limit for limit in (self.tokenizer.model_max_length, table) if limit and limit < 1_000_000]
        return min(limits, default=512)
