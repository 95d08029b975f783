"""The application in this process, without Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from raysere.serving.app import create_app
from raysere.serving.limits import Limits


@contextlib.contextmanager
def running(folder: Path, scratch: Path, token: str | None = None, **limits: Any) -> Iterator[TestClient]:
    app = create_app(folder, Limits(**limits), measures=scratch / "measures", token_sha256=token, threads=1)
    with TestClient(app) as client:
        yield client
