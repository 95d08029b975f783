"""Speech encoders: wav2vec2, HuBERT, WavLM, UniSpeech, data2vec and the encoder of Whisper, every
hidden layer.

Padding must not change a feature. What may share a batch was measured per family:

* extractors with layer norm (the large models): exact with an attention mask;
* extractors with group norm (the base models): the norm runs over time, so its statistics would
  include the padding; here they are taken over each clip's own steps
  (``hf_kernels.ValidGroupNorm``), which makes a batch exact as well;
* data2vec: its stacked positional convolutions see the padding; only clips of one length share a
  batch;
* Whisper: hears windows of one length and knows no mask; windows of one length share a batch, and
  frames beyond the clip are dropped.

On a CPU clips go one at a time, which was measured fastest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from raysere.base.errors import DataError
from raysere.features.backbone import Backbone, BackboneInfo, Item
from raysere.features.backbones.hf_kernels import replace_parts
from raysere.features.backbones.hf_weights import AUDIO, check_layers, finite, layers_of, load_weights, quiet

CODE_VERSION = 1  # raise it whenever an output changes: it is part of every feature key
WHISPER_FRAME = 320  # samples of a Whisper frame
WHISPER_TAIL_S = 0.5  # silence after the clip in the window "clip": the encoder expects speech to end
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ATTENTION_LIMIT_S = 120.0  # memory of attention grows with the square; longer recordings are better cut


def describe_audio(
    config: Any, preprocessor: dict[str, Any], name: str, identity: str, licence: str, *, window: str | None = None
) -> BackboneInfo:
    """See :meth:`HuggingFace.describe`.

    ``batching`` says what is exact; an opened backbone on a CPU asks for single clips.
    """
    rate = int(preprocessor.get("sampling_rate", 16000))
    kind = AUDIO[config.model_type]
    if kind == "window":
        layers, stride, longest = layers_of(config, config.d_model, config.encoder_layers), WHISPER_FRAME, 600.0
        centre = 0.0  # frame t is centred on spectrum 2 t, and that on sample 320 t
    else:
        layers, stride, longest = (
            layers_of(config, config.hidden_size, config.num_hidden_layers),
            math.prod(config.conv_stride),
            _ATTENTION_LIMIT_S,
        )
        centre = receptive_field(config.conv_kernel, config.conv_stride) / 2
    batching: Literal["single", "padded"] = "single" if kind == "alone" or window == "clip" else "padded"
    return BackboneInfo(
        name,
        "audio",
        layers,
        identity,
        sampling_rate=rate,
        frame_s=stride / rate,
        centre_s=centre / rate,
        batching=batching,
        min_s=0.1,
        max_s=longest,
        licence=licence,
    )


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one frame of a stack of convolutions sees: 400 for the published wav2vec2
    family.

    Examples:
        >>> receptive_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
        400
    """
    field, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field, step = field + (kernel - 1) * step, step * stride
    return field


def open_audio(folder: Path, info: BackboneInfo, *, device: str = "cpu", window: str = "full", precision: str = "float32") -> Backbone:
    """Load the weights of a folder.

    Raises as :func:`raysere.features.backbones.hf.load_weights` does.
    """
    from transformers import AutoFeatureExtractor

    model = load_weights(folder, device)
    with quiet():
        extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    if device == "cpu":
        info = dataclasses.replace(info, batching="single")
    if model.config.model_type == "whisper":
        return WhisperAudio(model.get_encoder(), extractor, info, window=window, precision=precision)
    return WaveAudio(model, bool(extractor.do_normalize), info, precision=precision)


class WaveAudio(Backbone):
    """Encoders that hear the waveform.

    Args:
        model: a transformers model of the wav2vec2 kind, float32, in evaluation mode.
        normalise: whether it expects zero mean and unit variance of each clip (``do_normalize``).
        precision: of products and convolutions, see :meth:`HuggingFace.describe`.
    """

    def __init__(self, model: Any, normalise: bool, info: BackboneInfo, *, precision: str = "float32") -> None:
        self.model, self.normalise, self.info = model, normalise, info
        self.device = next(model.parameters()).device
        self._mixed = AUDIO[model.config.model_type] == "mask"
        replace_parts(model, PRECISIONS[precision])

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        """See :meth:`Backbone.encode`; takes any list of clips, exactly.

        Raises DataError: no audio, or too short for one frame.
        """
        check_layers(self.info.name, layers, len(self.info.layers))
        waves = [_wave(item, self.normalise) for item in items]
        frames = [int(self.model._get_feat_extract_output_lengths(len(wave))) for wave in waves]
        for item, count in zip(items, frames, strict=True):
            if count < 1:
                raise DataError("too short for one frame of the model", where=item.utterance)
        result: list[list[np.ndarray]] = [[] for _ in items]
        lengths = [len(wave) for wave in waves]
        for group in [list(range(len(items)))] if self._mixed and items else by_value(lengths):
            hidden = self._forward([waves[i] for i in group], max(layers, default=0))
            for row, i in enumerate(group):
                result[i] = [finite(hidden[layer][row, : frames[i]].cpu().numpy().copy(), items[i].utterance) for layer in layers]
        return result

    def _forward(self, waves: list[np.ndarray], last: int) -> Sequence[Tensor]:
        lengths = torch.tensor([len(wave) for wave in waves], device=self.device)
        longest = int(lengths.max())
        batch = torch.from_numpy(np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves])).to(self.device)
        mask = None if bool((lengths == longest).all()) else (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        extractor = self.model.feature_extractor
        if mask is not None and extractor.groups:
            extractor.valid = torch.div(lengths - extractor.kernel, extractor.stride, rounding_mode="floor") + 1
        try:
            with torch.inference_mode(), hidden_states(self.model.encoder, last) as states, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # WavLM's own mix of mask types
                self.model(batch, attention_mask=mask)
        finally:
            extractor.valid = None
        return states


class WhisperAudio(Backbone):
    """The encoder of a Whisper model.

    Args:
        encoder: ``model.get_encoder()``. extractor: its WhisperFeatureExtractor.
        window: ``full`` or ``clip``; precision: of products and convolutions; see
            :meth:`HuggingFace.describe`.
    """

    def __init__(self, encoder: Any, extractor: Any, info: BackboneInfo, *, window: str = "full", precision: str = "float32") -> None:
        self.encoder, self.extractor, self.info, self.window = encoder, extractor, info, window
        self.device = next(encoder.parameters()).device
        self.positions = encoder.embed_positions.weight
        self.longest = len(self.positions) * WHISPER_FRAME
        replace_parts(encoder, PRECISIONS[precision])

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        """See :meth:`Backbone.encode`; any list of clips; one over 30 s is heard in windows laid
        end to end. Raises DataError: no audio.
        """
        check_layers(self.info.name, layers, len(self.info.layers))
        pieces = [
            (i, wave[start : start + self.longest])
            for i, item in enumerate(items)
            for wave in [_wave(item, False)]
            for start in range(0, len(wave), self.longest)
        ]
        parts: list[list[list[np.ndarray]]] = [[] for _ in items]
        encoded: list[list[np.ndarray]] = [[] for _ in pieces]
        for group in by_value([self._window(len(wave)) for _, wave in pieces]):
            hidden = self._forward([pieces[p][1] for p in group], self._window(len(pieces[group[0]][1])), max(layers, default=0))
            for row, p in enumerate(group):
                frames = -(-len(pieces[p][1]) // WHISPER_FRAME)
                encoded[p] = [hidden[layer][row, :frames].cpu().numpy() for layer in layers]
        for (i, _), rows in zip(pieces, encoded, strict=True):
            parts[i].append(rows)
        return [
            [finite(np.concatenate([rows[k] for rows in parts[i]]), items[i].utterance) for k in range(len(layers))]
            for i in range(len(items))
        ]

    def _window(self, samples: int) -> int:
        """Frames of the window in which a piece of that many samples is heard."""
        full = len(self.positions)
        return full if self.window == "full" else min(full, -(-(samples + int(WHISPER_TAIL_S * 16000)) // WHISPER_FRAME))

    def _forward(self, waves: list[np.ndarray], frames: int, last: int) -> Sequence[Tensor]:
        # one at a time: the extractor clips each spectrogram at 80 dB below its own peak
        mel = torch.cat(
            [
                self.extractor(
                    wave, sampling_rate=self.info.sampling_rate, max_length=frames * WHISPER_FRAME, return_tensors="pt"
                ).input_features
                for wave in waves
            ]
        )
        with torch.inference_mode(), self._shortened(frames), hidden_states(self.encoder, last) as states:
            output = self.encoder(mel.to(self.device))
        if last == self.encoder.config.encoder_layers:
            states[-1] = output.last_hidden_state  # the published last state is the normalised one
        return states

    @contextlib.contextmanager
    def _shortened(self, frames: int) -> Iterator[None]:
        """The encoder refuses any length but its own: give it the first ``frames`` positions
        (sinusoids) for one forward pass.
        """
        full = self.encoder.embed_positions
        if frames == len(self.positions):
            yield
            return
        self.encoder.embed_positions = nn.Embedding.from_pretrained(self.positions[:frames])
        self.encoder.config.max_source_positions = frames
        try:
            yield
        finally:
            self.encoder.embed_positions = full
            self.encoder.config.max_source_positions = len(self.positions)


@contextlib.contextmanager
def hidden_states(encoder: Any, last: int) -> Iterator[list[Tensor]]:
    """For one forward pass: run the blocks up to layer ``last`` and no others; the list gets the
    first one's input and every output.
    """
    states: list[Tensor] = []
    blocks = encoder.layers
    encoder.layers = blocks[: max(1, last)]
    hooks = [encoder.layers[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
    for block in encoder.layers:
        hooks.append(block.register_forward_hook(lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)))
    try:
        yield states
    finally:
        encoder.layers = blocks
        for hook in hooks:
            hook.remove()


def by_value(values: Sequence[int]) -> list[list[int]]:
    """Indices grouped by equal value, in order of first appearance.

    Examples:
        >>> by_value([3, 5, 3])
        [[0, 2], [1]]
    """
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        groups.setdefault(value, []).append(index)
    return list(groups.values())


def _wave(item: Item, normalise: bool) -> np.ndarray:
    if item.wave is None or len(item.wave) == 0:
        raise DataError("no audio for this utterance", where=item.utterance)
    wave = np.ascontiguousarray(item.wave, dtype=np.float32)
    return (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7) if normalise else wave
