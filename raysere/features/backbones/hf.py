"""Pretrained encoders in the Hugging Face format: ``hf:FOLDER`` or ``hf:NAME@REVISION``, routed by
``model_type`` to speech or text.

Every hidden layer comes out. Weights are safetensors only, no code from a model repository is run,
a hub model is pinned to a commit. Folders and hub models take the same path: a hub model is a
folder in the cache.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from raysere.base.bounds import refusal
from raysere.base.errors import ConfigError, EnvironmentFault, MissingFileError
from raysere.base.files import digest, read_json
from raysere.features.backbone import Backbone, BackboneInfo
from raysere.features.backbones.hf_weights import AUDIO, guard_transformers, quiet

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


@dataclass(frozen=True)
class Source:
    """Where a model is: its ``folder``, the canonical ``name`` behind ``hf:``, and ``commit`` (None
    for a local folder).
    """

    folder: Path
    name: str
    commit: str | None = None


class HuggingFace:
    """The family ``hf``."""

    @staticmethod
    def describe(argument: str | None = None, *, window: str | None = None, precision: str | None = None) -> BackboneInfo:
        """Read the configuration (and hash the weights of a local folder); no weights are loaded.

        Args:
            argument: folder, or NAME@REVISION on the hub; a branch or tag is resolved to its
                commit.
            window: Whisper only: ``full`` (default) hears 30 s whatever the clip holds, as
                published; ``clip`` hears the clip and half a second of silence, far cheaper on
                short clips. Their features differ and have different identities.
            precision: speech only: ``float32`` (default), or ``bfloat16`` for products and
                convolutions, faster where the processor has instructions for it; norms and softmax
                stay in float32. Their identities differ.

        Raises:
            ConfigError: no revision, an unknown window or precision, a kind of model that is not
                supported.
            MissingFileError: no such folder or no configuration in it.
            EnvironmentFault: not in the cache and no network.
        """
        return _describe(locate(argument, _CONFIG_FILES), window, precision)

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu", window: str | None = None, precision: str | None = None) -> Backbone:
        """Load the model in evaluation mode.

        Raises as :meth:`describe`; EnvironmentFault: torchaudio breaks transformers.
        """
        source = locate(argument, _MODEL_FILES)
        info = _describe(source, window, precision)
        if info.modality == "audio":
            from raysere.features.backbones.hf_audio import open_audio

            return open_audio(source.folder, info, device=device, window=window or "full", precision=precision or "float32")
        from raysere.features.backbones.hf_text import HFText

        return HFText(source.folder, info, device=device)


def locate(argument: str | None, files: list[str]) -> Source:
    """Find the folder; for a hub model, in the cache or by download of ``files``.

    Raises as :meth:`HuggingFace.describe` does.
    """
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
            remedy=f"Write hf:{name}@COMMIT (the model's page shows the commit under 'Files'), or the path of a local folder; "
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
    """The transformers configuration of a folder. Raises ConfigError: not one, or of a model that
    nobody has. EnvironmentFault: torchaudio breaks transformers here.
    """
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


def folder_hash(folder: Path) -> str:
    """Hex SHA-256 over names and bytes of the configuration, the tokeniser and the weights.

    Kept per process while no file changes.
    """
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
