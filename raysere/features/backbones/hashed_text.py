"""Text without a download: counts of hashed words, word pairs and character n-grams, in any
language.

The counts go out as they are; a trial learns their idf on its own training rows
(``kind="counts"``).
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from raysere.base.errors import ConfigError, DataError
from raysere.base.files import digest
from raysere.features.backbone import Backbone, BackboneInfo, Item, Layer
from raysere.features.backbones import no_argument

CODE_VERSION = 1  # raise it whenever a count would change: it is part of every feature key
BINS = 4096
CHARACTERS = (3, 4, 5)
# scripts that write no blanks between words: each character is a word, as a character of Chinese
# nearly is
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+(?:['’][^\W_{_UNSPACED}]+)*|\.\.\.|…|[!?！？]")


class HashedText(Backbone):
    """One row of ``bins`` counts (float32) an utterance: hashed 1- and 2-grams of words, 3- to
    5-grams of characters within words.

    Text is NFKC-normalised and case-folded; ``!``, ``?`` and ``...`` count as words. The hash is
    CRC-32 of the UTF-8 bytes, the same on every machine.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.info = self.describe(None, bins=bins)
        self.bins = self.info.layers[0].dim

    @staticmethod
    def describe(argument: str | None = None, *, bins: int | str = BINS) -> BackboneInfo:
        """Raises ConfigError: an argument, or ``bins`` that is no whole number from 16 to
        1,048,576.
        """
        no_argument("hashed", argument)
        if not str(bins).isdigit() or not 16 <= int(bins) <= 1 << 20:
            raise ConfigError(f"The option 'bins' must be a whole number from 16 to {1 << 20}, not {bins!r}", where="hashed")
        bins = int(bins)
        name = "hashed" if bins == BINS else f"hashed?bins={bins}"
        return BackboneInfo(
            name,
            "text",
            (Layer("counts", bins, "utterance"),),
            digest({"backbone": "hashed", "bins": bins, "code": CODE_VERSION}),
            sampling_rate=None,
            kind="counts",
            batching="padded",
            licence="Apache-2.0",
        )

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu", bins: int | str = BINS) -> HashedText:
        """Runs on the CPU whatever the device. Raises as :meth:`describe` does."""
        return HashedText(HashedText.describe(argument, bins=bins).layers[0].dim)

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        """See :meth:`Backbone.encode`.

        Raises DataError: no text, or none with a word in it. ConfigError: no such layer.
        """
        if any(layer != 0 for layer in layers):
            raise ConfigError("The backbone 'hashed' has one layer", choices=[0])
        rows = []
        for item in items:
            counts = self._count(item)
            rows.append([counts.copy() for _ in layers])
        return rows

    def _count(self, item: Item) -> np.ndarray:
        indices = [zlib.crc32(term.encode()) % self.bins for term in terms(item.text or "")]
        if not indices:
            raise DataError("no text for this utterance" if not (item.text or "").strip() else "no words in the text", where=item.utterance)
        return np.bincount(indices, minlength=self.bins).astype(np.float32)[None]


def tokens(text: str) -> list[str]:
    """Words in order.

    Examples:
        >>> tokens("Don't shout!")
        ["don't", 'shout', '!']
        >>> tokens("你好吗？")
        ['你', '好', '吗', '?']
    """
    return [word for run in _runs(text) for word in (run if _is_unspaced(run) else [run])]


def terms(text: str) -> Iterator[str]:
    """What is counted:

    ``w:`` words, ``p:`` pairs of words, ``c:`` characters within a word (blanks mark its ends).
    """
    words = tokens(text)
    yield from (f"w:{word}" for word in words)
    yield from (f"p:{first} {second}" for first, second in pairwise(words))
    for run in _runs(text):
        marked = f" {run} "
        for size in CHARACTERS:
            yield from (f"c:{marked[start : start + size]}" for start in range(len(marked) - size + 1))


def _runs(text: str) -> list[str]:
    """Words, and unbroken runs of a script that writes no blanks."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def _is_unspaced(run: str) -> bool:
    return re.match(f"[{_UNSPACED}]", run) is not None
