"""Small corpora of tones for the feature tests, and the plug-in folder of the toy backbone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import soundfile

from raysere.corpora.manifest import Manifest, rows_to_table

PLUGINS = Path(__file__).parent / "plugins"
if str(PLUGINS) not in sys.path:
    sys.path.insert(0, str(PLUGINS))


def use_toy() -> None:
    """Make the toy backbone known in this process, whenever its entry points were read."""
    from toy_backbone import Toy

    from raysere.features.backbones import BACKBONES

    BACKBONES.register("toy", BACKBONES.get("toy") if "toy" in BACKBONES.names() else Toy)


def tone(path: Path, seconds: float, seed: int, *, rate: int = 16000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate))
    soundfile.write(path, noise.astype(np.float32), rate, subtype="FLOAT")


def corpus(folder: Path, count: int = 12, *, seed: int = 0, seconds=(0.3, 1.5)) -> Manifest:
    """``count`` clips u000.wav ... of different lengths, with a short transcript each."""
    lengths = np.random.default_rng(seed).uniform(*seconds, count).round(3)
    for number, length in enumerate(lengths):
        tone(folder / f"u{number:03d}.wav", float(length), 1000 * seed + number)
    return manifest_of(folder)


def manifest_of(folder: Path, **columns) -> Manifest:
    rows = []
    for path in sorted(folder.glob("*.wav")):
        try:
            duration = soundfile.info(path).duration
        except soundfile.SoundFileError:
            duration = 1.0
        rows.append(
            {
                "utterance": f"toy/{path.stem}",
                "corpus": "toy",
                "language": "de",
                "path": path.name,
                "duration_s": duration,
                "sampling_rate": 16000,
                "speaker": "toy/1",
                "transcript": f"word {path.stem}",
                **columns,
            }
        )
    return Manifest(rows_to_table(rows), {"toy": str(folder)})


def subset(manifest: Manifest, keep) -> Manifest:
    return Manifest(manifest.table.filter(pl.Series([bool(flag) for flag in keep])), manifest.roots)
