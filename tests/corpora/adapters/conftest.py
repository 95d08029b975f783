"""Tiny corpora in the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 8000


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    """``clip("wav/03a01Fa.wav", seconds=0.2, channels=1)`` writes a tone under ``tmp_path`` and
    returns the file.
    """

    def write(name: str, *, seconds: float = 0.2, channels: int = 1, rate: int = RATE) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
        soundfile.write(file, np.repeat(tone[:, None], channels, axis=1), rate)
        return file

    return write
