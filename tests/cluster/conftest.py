"""What the tests on several nodes share: a corpus."""

from __future__ import annotations

import pytest
from ray_nodes import write_table


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("corpus"))
