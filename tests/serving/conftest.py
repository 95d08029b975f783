"""A server of the small run's ensemble, in this process and without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import running
from starlette.testclient import TestClient

from raysere.serving.spool import Kept, Spool


@pytest.fixture(scope="module")
def client(real_run, tmp_path_factory) -> Iterator[TestClient]:
    with running(real_run["folder"] / "ensemble", tmp_path_factory.mktemp("serving")) as found:
        yield found


@pytest.fixture(scope="module")
def clips(real_run) -> list[Path]:
    return sorted(real_run["audio"].glob("*.wav"))


@pytest.fixture
def ensemble_copy(real_run, tmp_path) -> Path:
    return Path(shutil.copytree(real_run["folder"] / "ensemble", tmp_path / "ensemble"))


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Files of one request, in a spool of its own."""
    spool = Spool(1 << 30)
    with spool.request() as found:
        yield found
    spool.close()
