"""One small Ray for the tests of the search that need it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    from raysere.base.cluster import start_ray, stop_ray

    started = start_ray(cpus=2, object_store_gb=0.3)
    yield
    if started:
        stop_ray()
