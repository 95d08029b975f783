"""The synthetic demo corpus, as ``raysere demo`` or :func:`raysere.demo.corpus.make_demo` writes
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysere.base.errors import DataError
from raysere.corpora.adapters.base import Adapter
from raysere.corpora.manifest import Manifest
from raysere.demo.prosody import NOTE, SCALE


class Demo(Adapter):
    """Synthetic speech in English, Mandarin and Russian, four emotions, own speaker-disjoint split.

    Args (of :meth:`load`):
        passages: False leaves out the long passages, which have traces and no emotion.
    """

    name = "demo"
    language = "mul"
    licence = "made on this machine by espeak-ng; nobody's speech"
    homepage = "https://github.com/espeak-ng/espeak-ng"
    classes = "demo4"
    layout = "a finished demo folder with manifest.parquet and audio/; make one with `raysere demo`"
    scale = SCALE
    notes = (NOTE,)
    synthetic = True

    def read(self, path: Path, *, passages: bool = True) -> Iterator[dict[str, Any]]:
        """Yield the rows of the folder's manifest.

        Raises:
            DataError: no manifest there: nothing was made, or the synthesis was cut off.
        """
        file = path / "manifest.parquet" if path.is_dir() else path
        if not file.is_file():
            raise DataError("This is not a finished demo corpus", where=path, remedy=f"Expected: {self.layout}.")
        if not path.is_dir():
            self.audio_root = path.parent
        for row in Manifest.read(file).table.iter_rows(named=True):
            if row["emotion"] is None and not passages:
                continue
            for column in ("utterance", "speaker", "dialogue"):
                if row[column] is not None:
                    row[column] = row[column].split("/", 1)[1]
            yield {**row, "corpus": None}
