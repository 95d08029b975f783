"""Controls without quantization: Fréchet distance and MMD of the same vowels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from raysere.studies.units.distances import frechet, mmd

FEWEST = 200  # frames on each side; covariances of 64 components of fewer say more of the sample than of the vowel
COMPONENTS = 64


class FrameSample:
    """Uniform samples of at most ``limit`` frames of every (language, phone), filled while the
    units are counted.

    Args:
        language: code of the language of each utterance, int64 (N,).
        wanted: phone codes to keep.
    """

    def __init__(self, language: np.ndarray, wanted: list[int], *, limit: int = 600, seed: int = 0) -> None:
        self.language, self.wanted, self.limit = language, np.array(wanted, dtype=np.int64), limit
        self.rng = np.random.default_rng(seed)
        self.frames: dict[tuple[int, int], np.ndarray] = {}
        self._keys: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, owner: np.ndarray, phone: np.ndarray, frames: Tensor) -> None:
        kept = np.flatnonzero(np.isin(phone, self.wanted))
        cells = np.stack([self.language[owner[kept]], phone[kept]], 1)
        values = frames.numpy()
        for cell in np.unique(cells, axis=0):
            name = (int(cell[0]), int(cell[1]))
            rows = kept[(cells == cell).all(1)]
            keys, sample = self.rng.random(len(rows)), values[rows]
            if name in self.frames:
                keys, sample = np.concatenate([self._keys[name], keys]), np.concatenate([self.frames[name], sample])
            best = np.argsort(keys)[: self.limit]
            self._keys[name], self.frames[name] = keys[best], sample[best]

    def control(self, one: int, other: int, vowels: list[int]) -> dict[str, Any]:
        """``frechet`` and ``mmd``: float64 (V, V) between vowels of two languages (rows: the
        first's), NaN below 200 frames.

        Frames go through the first 64 principal components of all of these vowels; all sides count
        the same number of frames.
        """
        enough = {
            (language, vowel): self.frames[language, vowel]
            for language in (one, other)
            for vowel in vowels
            if len(self.frames.get((language, vowel), ())) >= FEWEST
        }
        tables = {name: np.full((len(vowels), len(vowels)), np.nan) for name in ("frechet", "mmd")}
        if not enough:
            return tables
        count = min(map(len, enough.values()))
        together = np.concatenate([part[:count] for part in enough.values()]).astype(np.float64)
        centre = together.mean(0)
        _, vectors = np.linalg.eigh(np.cov(together - centre, rowvar=False).reshape(together.shape[1], -1))
        axes = vectors[:, ::-1][:, :COMPONENTS]
        reduced = {name: (part[:count] - centre) @ axes for name, part in enough.items()}
        for i, first in enumerate(vowels):
            for j, second in enumerate(vowels):
                if (one, first) in reduced and (other, second) in reduced:
                    tables["frechet"][i, j] = frechet(reduced[one, first], reduced[other, second])
                    if i == j:
                        tables["mmd"][i, j] = mmd(reduced[one, first], reduced[other, second])
        return tables
