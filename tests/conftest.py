"""Fixtures shared by all tests: where real corpora and models are, and one local Ray for the tests
that need it.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parent.parent
ALONE = (
    "studies/test_hostile_pages.py",
    "cluster",
    "end_to_end/test_kill_resume.py",
    "end_to_end/test_ports.py",
    "features/test_extract.py",
    "search/test_search_run.py",
    "serving",
    "test_jobs.py",
)


@pytest.hookimpl(tryfirst=True)  # before markers choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(REPOSITORY / "tests")
        if any(place.is_relative_to(one) for one in ALONE):
            item.add_marker("alone")


def _folder(variable: str, default: str, what: str) -> Path:
    folder = Path(os.environ.get(variable, REPOSITORY.parent / "shared" / default)).expanduser()
    if not folder.is_dir():
        warnings.warn(f"{what} NOT TESTED: no folder {folder}; set {variable}", stacklevel=2)
        pytest.skip(f"no {what}: set {variable} to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def corpora_root() -> Path:
    """Folder of real corpora (``emodb``, ``emovo``, ``nemo``, ``ravdess``, ``urdu``, ``meld``)."""
    return _folder("RAYSERE_CORPORA", "corpora", "real corpora")


@pytest.fixture(scope="session")
def models_root() -> Path:
    """Folder of real pretrained encoders (``whisper-base-encoder``, ``glove-static-48d``)."""
    return _folder("RAYSERE_MODELS", "models", "pretrained models")


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small run with a saved ensemble (see ``real_run.py``). Tests copy what they change."""
    from real_run import make_run

    return make_run(tmp_path_factory.mktemp("real"))
