"""The built-in backbone: pitch, energy, spectrum and voice quality; nothing to download.

Three layers of meaning: ``frames`` (a row each 10 ms), ``modulation`` and ``functionals`` (a row an
utterance). Only columns named ``level_db`` depend on the gain of the recording.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raysere.base.errors import ConfigError, DataError
from raysere.base.files import digest
from raysere.features.backbone import Backbone, BackboneInfo, Item, Layer
from raysere.features.backbones import no_argument

CODE_VERSION = 2  # raise it whenever an output changes: it is part of every feature key
FRAMES, MODULATION, FUNCTIONALS = 0, 1, 2
_DELTAS = 5  # frames on either side that a delta is fitted to
_GROUP_S = 60.0  # seconds of audio analysed at once: more only costs memory


class Acoustic(Backbone):
    """See the module's text.

    Float32 on the device; the number of threads is the caller's (``torch.set_num_threads``).
    """

    def __init__(self, device: str = "cpu") -> None:
        import torch

        self.device = torch.device(device)
        self.info = self.describe(None)

    @staticmethod
    def describe(argument: str | None = None) -> BackboneInfo:
        """Raises ConfigError: the name has an argument."""
        from raysere.features.backbones.acoustic_functionals import functional_names, modulation_names

        no_argument("acoustic", argument)
        layers = (
            Layer("frames", len(frame_names()), "frame"),
            Layer("modulation", len(modulation_names()), "utterance"),
            Layer("functionals", len(functional_names()), "utterance"),
        )
        return BackboneInfo(
            "acoustic",
            "audio",
            layers,
            digest({"backbone": "acoustic", "code": CODE_VERSION}),
            sampling_rate=16000,
            frame_s=0.01,
            batching="padded",
            min_s=0.1,
            max_s=600.0,
            licence="Apache-2.0",
        )

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu") -> Acoustic:
        no_argument("acoustic", argument)
        return Acoustic(device)

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        """See :meth:`Backbone.encode`; batches of any lengths.

        Raises DataError: no wave or an empty one. ConfigError: no such layer.
        """
        import torch

        unknown = [layer for layer in layers if layer not in (FRAMES, MODULATION, FUNCTIONALS)]
        if unknown:
            raise ConfigError(f"The backbone 'acoustic' has no layer {unknown[0]}", choices=[0, 1, 2])
        rows: list[list[np.ndarray]] = [[] for _ in items]
        with torch.inference_mode():
            for group in _groups(items):
                waves = [torch.from_numpy(_wave(items[i])).to(self.device) for i in group]
                for i, row in zip(group, self._analyse(waves, layers), strict=True):
                    rows[i] = row
        return rows

    def _analyse(self, waves: list, layers: Sequence[int]) -> list[list[np.ndarray]]:
        from raysere.features.backbones import acoustic_frames, acoustic_functionals

        frames = acoustic_frames.analyse(waves)
        counts = frames.mask.sum(dim=1).tolist()
        tables = {}
        for layer in set(layers):
            if layer == FRAMES:
                tables[layer] = _frame_rows(frames).cpu().numpy()
            else:
                function = acoustic_functionals.modulation if layer == MODULATION else acoustic_functionals.functionals
                tables[layer] = function(frames)[:, None].cpu().numpy()
        # copies, so that one clip does not keep the batch in memory
        return [[tables[layer][i, : counts[i] if layer == FRAMES else 1].copy() for layer in layers] for i in range(len(waves))]


def frame_names() -> tuple[str, ...]:
    """Columns of the layer ``frames``."""
    from raysere.features.backbones.acoustic_frames import CEPSTRA, MELS, SHAPE
    from raysere.features.backbones.acoustic_pitch import HARMONICS

    moving = ("loudness_db", *(f"mfcc{i}" for i in range(1, CEPSTRA + 1)), HARMONICS[0])
    return (
        "level_db",
        *(f"mel{i:02d}" for i in range(1, MELS + 1)),
        *moving,
        *SHAPE[1:],
        *HARMONICS[1:],
        *(f"{name}.delta" for name in moving),
        *(f"{name}.delta2" for name in moving),
    )


def _frame_rows(frames):
    """(B, T, len(frame_names()))."""
    import torch

    moving = torch.cat([frames.loudness_db[..., None], frames.cepstra, frames.pitch.f0[..., None]], dim=-1)
    delta = _delta(moving, frames.mask)
    level = frames.level_db[:, None] + frames.loudness_db
    return torch.cat(
        [level[..., None], frames.mel, moving, frames.shape[..., 1:], frames.pitch.tracks[..., 1:], delta, _delta(delta, frames.mask)],
        dim=-1,
    )


def _delta(track, mask):
    """Least-squares slope a frame of (B, T, D) over 11 frames; each clip is continued by its own
    first and last frame.
    """
    import torch

    last = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    time = torch.arange(-_DELTAS, mask.shape[1] + _DELTAS, device=mask.device)
    index = torch.minimum(time.clamp(min=0).expand(len(mask), -1), last)
    padded = track.gather(1, index[..., None].expand(-1, -1, track.shape[2]))
    norm = 2 * sum(k * k for k in range(1, _DELTAS + 1))
    length = mask.shape[1]
    return (
        sum(
            k * (padded[:, _DELTAS + k : _DELTAS + k + length] - padded[:, _DELTAS - k : _DELTAS - k + length])
            for k in range(1, _DELTAS + 1)
        )
        / norm
    )


def _wave(item: Item) -> np.ndarray:
    if item.wave is None or len(item.wave) == 0:
        raise DataError("no audio for this utterance", where=item.utterance)
    wave = np.ascontiguousarray(item.wave, dtype=np.float32)
    return wave if wave.flags.writeable else wave.copy()


def _groups(items: Sequence[Item]) -> list[list[int]]:
    """Indices in groups of up to a minute of similar lengths."""
    sizes = [0 if item.wave is None else len(item.wave) for item in items]
    groups: list[list[int]] = []
    for i in sorted(range(len(items)), key=sizes.__getitem__):
        if groups and (len(groups[-1]) + 1) * sizes[i] <= _GROUP_S * 16000:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
