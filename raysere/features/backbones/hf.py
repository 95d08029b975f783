"""Pretrained encoders in the Hugging Face format: ``hf:FOLDER`` or ``hf:NAME@REVISION``, routed by ``model_type`` to speech or text.

Every hidden layer comes out. Weights are safetensors only, no code from a model repository is run, a hub model is pinned to a
commit. Folders and hub models take the same path: a hub model is a folder in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from raysere.bounds import check_tensors, refusal
from raysere.errors import ConfigError, DataError, EnvironmentFault, MissingFileError
from raysere.features.backbone import Backbone, BackboneInfo, Layer
from raysere.features.torchaudio_cpu import require_torchaudio
from raysere.files import digest, read_json

# model_type to how clips may share a batch: "mask" any lengths, with an attention mask; the others equal lengths; see hf_audio
AUDIO = {
    "wav2vec2": "mask",
    "hubert": "mask",
    "wavlm": "mask",
    "unispeech": "mask",
    "unispeech-sat": "mask",
    "data2vec-audio": "alone",
    "whisper": "window",
}
_LAYERS, _LARGEST = 512, 10_000_000  # of a model: blocks; any other number in its configuration
_CONFIG_FILES = ["config.json", "preprocessor_config.json"]
_MODEL_FILES = [
    *_CONFIG_FILES,
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece*",
    "spiece.model",
]
_HASHED = re.compile(
    r"(config|preprocessor_config|tokenizer.*|vocab.*|special_tokens_map|added_tokens)\.(json|txt)|merges\.txt|.*\.safetensors|.*\.model"
)
# parts of a checkpoint that no hidden layer depends on
_NEEDLESS = re.compile(
    r"(^|\.)(masked_spec_embed|pooler|lm_head|cls|decoder|proj_out|quantizer|project_q|project_hid|label_embeddings_concat|position_ids|embeddings\.position_ids)(\.|$)"
)


@dataclass(frozen=True)
class Source:
    """Where a model is: its ``folder``, the canonical ``name`` behind ``hf:``, and ``commit`` (None for a local folder)."""

    folder: Path
    name: str
    commit: str | None = None


class HuggingFace:
    """The family ``hf``."""

    @staticmethod
    def describe(argument: str | None = None, *, window: str | None = None, precision: str | None = None) -> BackboneInfo:
        """Read the configuration (and hash the weights of a local folder); no weights are loaded.

        Args:
            argument: folder, or NAME@REVISION on the hub; a branch or tag is resolved to its commit.
            window: Whisper only: ``full`` (default) hears 30 s whatever the clip holds, as published; ``clip`` hears the clip and half a
                second of silence, far cheaper on short clips. Their features differ and have different identities.
            precision: speech only: ``float32`` (default), or ``bfloat16`` for products and convolutions, faster where the processor
                has instructions for it; norms and softmax stay in float32. Their identities differ.

        Raises:
            ConfigError: no revision, an unknown window or precision, a kind of model that is not supported.
            MissingFileError: no such folder or no configuration in it.
            EnvironmentFault: not in the cache and no network.
        """
        return _describe(locate(argument, _CONFIG_FILES), window, precision)

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu", window: str | None = None, precision: str | None = None) -> Backbone:
        """Load the model in evaluation mode. Raises as :meth:`describe`; EnvironmentFault: torchaudio breaks transformers."""
        source = locate(argument, _MODEL_FILES)
        info = _describe(source, window, precision)
        if info.modality == "audio":
            from raysere.features.backbones.hf_audio import open_audio

            return open_audio(source.folder, info, device=device, window=window or "full", precision=precision or "float32")
        from raysere.features.backbones.hf_text import HFText

        return HFText(source.folder, info, device=device)


def locate(argument: str | None, files: list[str]) -> Source:
    """Find the folder; for a hub model, in the cache or by download of ``files``. Raises as :meth:`HuggingFace.describe` does."""
    if not argument:
        raise ConfigError(
            "The backbone 'hf' needs a folder or a model name after the colon", remedy="For instance hf:./wavlm-large or hf:NAME@REVISION."
        )
    folder = Path(argument).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MissingFileError("There is no config.json in the model's folder", where=folder.resolve())
        return Source(folder.resolve(), argument)
    name, at, revision = argument.partition("@")
    if argument[0] in "./~\\" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise MissingFileError(
            f"There is no folder {argument!r}",
            where=f"hf:{argument}",
            remedy="Name a folder with config.json and safetensors, or a hub model as NAME@REVISION.",
        )
    if not at or not revision:
        raise ConfigError(
            f"The hub model {name!r} has no revision, so its features could change without notice",
            where=f"hf:{argument}",
            remedy=f"Write hf:{name}@COMMIT (the commit stands on the model's page under 'Files'), or the path of a local folder; "
            f"there is no folder {argument!r} here.",
        )
    snapshot = _fetch(name, revision, files)
    return Source(snapshot, f"{name}@{snapshot.name}", snapshot.name)


def _fetch(name: str, revision: str, files: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    cache = huggingface_hub.constants.HF_HUB_CACHE
    remedy = (
        f"Where there is a network run 'hf download {name} --revision {revision}' and copy the folder here, into the cache {cache} "
        "or to any place that you then name as hf:FOLDER."
        + (" HF_HUB_OFFLINE is set: unset it to download." if huggingface_hub.constants.HF_HUB_OFFLINE else "")
    )
    try:
        with quiet():
            folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ConfigError(
            f"The hub has no model {name!r} at revision {revision!r}, or it needs a login", where=f"hf:{name}@{revision}"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as error:
        raise EnvironmentFault(
            f"The model {name!r} at revision {revision!r} is not in the cache and the hub cannot be reached", where=cache, remedy=remedy
        ) from error
    if not (folder / "config.json").is_file():
        raise EnvironmentFault(
            f"The model {name!r} at revision {revision!r} lies in the cache without its config.json", where=folder, remedy=remedy
        )
    return folder


def _describe(source: Source, window: str | None, precision: str | None) -> BackboneInfo:
    config = read_config(source.folder)
    kind = config.model_type
    if window not in (None, "full", "clip"):
        raise ConfigError(f"{window!r} is not a window", where=f"hf:{source.name}", choices=["full", "clip"])
    if window is not None and kind != "whisper":
        raise ConfigError(f"The option 'window' is for Whisper; this model is {kind!r}", where=f"hf:{source.name}")
    if precision not in (None, "float32", "bfloat16"):
        raise ConfigError(f"{precision!r} is not a precision", where=f"hf:{source.name}", choices=["float32", "bfloat16"])
    if precision is not None and kind not in AUDIO:
        raise ConfigError(f"The option 'precision' is for speech encoders; this model is {kind!r}", where=f"hf:{source.name}")
    options = {"window": window if window == "clip" else None, "precision": precision if precision == "bfloat16" else None}
    named = "&".join(f"{option}={value}" for option, value in options.items() if value)
    name = f"hf:{source.name}" + (f"?{named}" if named else "")
    identity = {"weights": source.commit or folder_hash(source.folder), "window": options["window"]}
    if options["precision"]:  # left out where it is the default: keys from before there was a choice stay as they are
        identity["precision"] = options["precision"]
    if kind in AUDIO:
        from raysere.features.backbones import hf_audio

        return hf_audio.describe_audio(
            config,
            _preprocessor(source.folder),
            name,
            digest({**identity, "code": hf_audio.CODE_VERSION}),
            licence(source.folder),
            window=window,
        )
    if not hasattr(config, "vocab_size") or config.is_encoder_decoder or hasattr(config, "conv_dim") or hasattr(config, "num_mel_bins"):
        raise ConfigError(
            f"Models of type {kind!r} are not supported",
            where=f"hf:{source.name}",
            choices=[*AUDIO, "text encoders with a tokeniser (bert, roberta, ...)"],
        )
    from raysere.features.backbones import hf_text

    return hf_text.describe_text(config, name, digest({**identity, "code": hf_text.CODE_VERSION}), licence(source.folder))


def read_config(folder: Path) -> Any:
    """The transformers configuration of a folder. Raises ConfigError: not one, or of a model that nobody has. EnvironmentFault: torchaudio
    breaks transformers here."""
    guard_transformers()
    given = read_json(folder / "config.json")
    for name, value in given.items() if isinstance(given, dict) else ():
        most = _LAYERS if name.endswith("layers") else _LARGEST
        if isinstance(value, int) and value > most:  # transformers would make as many before it sees that no weight is there
            raise refusal(f"for {name} of this model", value, most, where=folder / "config.json", error=ConfigError)
    with quiet():
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigError(
                f"transformers cannot read this model's configuration: {str(error).splitlines()[0]}", where=folder / "config.json"
            ) from error


def load_weights(folder: Path, device: str) -> Any:
    """The model in float32, evaluation mode, on the device.

    Raises:
        MissingFileError: the folder has no safetensors.
        ConfigError: weights that a hidden layer needs are not in them (transformers would fill them at random).
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
    """transformers imports torchaudio where it is installed; a torchaudio that cannot be loaded would break every speech model with it."""
    if importlib.util.find_spec("transformers") is None:
        raise EnvironmentFault(
            "The package transformers is not installed", remedy="Install it in the version that the constraints file names."
        )
    if importlib.util.find_spec("torchaudio") is not None:
        require_torchaudio()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no advice, no warnings from transformers and the hub; what matters is checked and raised here."""
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


def folder_hash(folder: Path) -> str:
    """Hex SHA-256 over names and bytes of the configuration, the tokeniser and the weights. Kept per process while no file changes."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and _HASHED.fullmatch(file.name))
    value = hashlib.sha256()
    for file in files:
        stat = file.stat()
        value.update(f"{file.name}:{_file_hash(os.fspath(file), stat.st_size, stat.st_mtime_ns)};".encode())
    return value.hexdigest()


@lru_cache(maxsize=256)
def _file_hash(path: str, size: int, changed_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _preprocessor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise MissingFileError(
            "There is no preprocessor_config.json in the speech model's folder",
            where=folder,
            remedy="Without it the sampling rate and normalisation are unknown.",
        )
    given = read_json(path)
    rate = given.get("sampling_rate", 16_000) if isinstance(given, dict) else None
    if not isinstance(rate, int) or not 1000 <= rate <= 384_000:
        raise ConfigError(f"The sampling rate of this model is {rate!r}, not a number of Hz between 1,000 and 384,000", where=path)
    return given


def licence(folder: Path) -> str:
    """What the model card beside the weights says; ``unknown`` where it says nothing."""
    card = folder / "README.md"
    if not card.is_file():
        return "unknown"
    with card.open("rb") as file:
        text = file.read(1 << 16).decode("utf-8", errors="replace")  # the header comes first
    header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    match = re.search(r"^licen[sc]e:\s*([\w.\-]+)", header.group(1), re.MULTILINE) if header else None
    return match.group(1) if match else "unknown"
