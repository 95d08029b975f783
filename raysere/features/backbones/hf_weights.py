"""Weights of a Hugging Face model: read as safetensors, checked, and which of its layers are there."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysere.base.bounds import check_tensors
from raysere.base.errors import ConfigError, DataError, EnvironmentFault, MissingFileError
from raysere.features.backbone import Layer
from raysere.features.torchaudio_cpu import require_torchaudio

# model_type to how clips may share a batch: "mask" any lengths, with an attention mask; the others
# equal lengths; see hf_audio
AUDIO = {
    "wav2vec2": "mask",
    "hubert": "mask",
    "wavlm": "mask",
    "unispeech": "mask",
    "unispeech-sat": "mask",
    "data2vec-audio": "alone",
    "whisper": "window",
}
# parts of a checkpoint that no hidden layer depends on
_NEEDLESS = re.compile(
    r"(^|\.)(masked_spec_embed|pooler|lm_head|cls|decoder|proj_out|quantizer|project_q|project_hid|label_embeddings_concat|position_ids|embeddings\.position_ids)(\.|$)"
)


def load_weights(folder: Path, device: str) -> Any:
    """The model in float32, evaluation mode, on the device.

    Raises:
        MissingFileError: the folder has no safetensors.
        ConfigError: weights that a hidden layer needs are not in them (transformers would fill them
            at random).
    """
    guard_transformers()
    if not any(folder.glob("*.safetensors")):
        raise MissingFileError(
            "There are no safetensors weights in the model's folder",
            where=folder,
            remedy="Other weight files can run code when they are opened, so they are not "
            "read: choose a revision with model.safetensors, or convert the folder with transformers' save_pretrained.",
        )
    for file in folder.glob("*.safetensors"):
        check_tensors(file)
    with quiet():
        import torch
        from transformers import AutoModel

        try:
            model, report = AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise ConfigError(f"transformers cannot load this model: {str(error).splitlines()[0]}", where=folder) from error
    missing = sorted(key for key in report["missing_keys"] if not _NEEDLESS.search(key))
    if missing:
        raise ConfigError(
            f"{len(missing)} weights of the model are not in its file, such as {missing[0]!r}",
            where=folder,
            remedy="The file belongs to another kind of model than config.json says.",
        )
    return model.eval().requires_grad_(False).to(device)


def layers_of(config: Any, dim: int, count: int) -> tuple[Layer, ...]:
    """``input`` (what enters the first block) and the output of each block."""
    return (Layer("input", dim), *(Layer(f"block{number:02d}", dim) for number in range(1, count + 1)))


def check_layers(name: str, layers: Any, count: int) -> None:
    """Raises ConfigError for a layer that the model does not have."""
    for layer in layers:
        if not 0 <= layer < count:
            raise ConfigError(f"{name} has no layer {layer}", choices=range(count))


def finite(rows: Any, where: str) -> Any:
    """The array, C-contiguous. Raises DataError where a model returned NaN or infinity."""
    import numpy as np

    if not np.isfinite(rows).all():
        raise DataError("the model returned values that are not finite", where=where)
    return np.ascontiguousarray(rows)


def guard_transformers() -> None:
    """transformers imports torchaudio where it is installed; a torchaudio that cannot be loaded
    would break every speech model with it.
    """
    if importlib.util.find_spec("transformers") is None:
        raise EnvironmentFault(
            "The package transformers is not installed", remedy="Install it in the version that the constraints file names."
        )
    if importlib.util.find_spec("torchaudio") is not None:
        require_torchaudio()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no advice, no warnings from transformers and the hub; what matters is
    checked and raised here.
    """
    import huggingface_hub.utils as hub
    from transformers.utils import logging

    verbosity, bars, hub_bars = logging.get_verbosity(), logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if hub_bars:
            hub.disable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
            if hub_bars:
                hub.enable_progress_bars()
