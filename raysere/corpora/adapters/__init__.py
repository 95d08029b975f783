"""Corpora by name, one file for each adapter.

Other packages add theirs under the entry-point group ``raysere.corpora``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysere.base.registry import Registry
from raysere.corpora.adapters.base import Adapter, Loaded

__all__ = ["CORPORA", "Adapter", "Loaded", "load_corpus"]

_HERE = "raysere.corpora.adapters"

CORPORA = Registry(
    "corpus",
    "raysere.corpora",
    {
        "audformat": f"{_HERE}.audformat:Audformat",
        "biic-podcast": f"{_HERE}.biic_podcast:BiicPodcast",
        "crema-d": f"{_HERE}.crema_d:CremaD",
        "demo": "raysere.demo.adapter:Demo",
        "emodb": f"{_HERE}.emodb:EmoDB",
        "emovo": f"{_HERE}.emovo:Emovo",
        "meld": f"{_HERE}.meld:Meld",
        "msp-podcast": f"{_HERE}.msp_podcast:MspPodcast",
        "nemo": f"{_HERE}.nemo:Nemo",
        "ravdess": f"{_HERE}.ravdess:Ravdess",
        "table": f"{_HERE}.table:Table",
        "urdu": f"{_HERE}.urdu:Urdu",
    },
)


def load_corpus(
    name: str, path: str | Path, *, columns: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None
) -> Loaded:
    """Load a corpus folder by the name of its adapter.

    Args:
        name: one of ``CORPORA.names()``.
        path: the folder (or, for ``table``, the file).
        columns: manifest column to the corpus's own column, for ``table`` and ``audformat``.
        options: what the adapter takes; ``name`` (the value of the ``corpus`` column) is taken by
            all.

    Raises:
        UnknownNameError, MissingFileError, ConfigError, DataError: see
        :meth:`raysere.corpora.adapters.base.Adapter.load`.
    """
    return CORPORA.get(name)().load(path, columns=columns, **(options or {}))
