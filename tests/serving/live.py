"""The application in this process, without Ray."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import uvicorn
from starlette.testclient import TestClient

from raysere.serving.app import create_app
from raysere.serving.batching import Batcher
from raysere.serving.deployment import free_port
from raysere.serving.limits import Limits


@contextlib.contextmanager
def running(folder: Path, scratch: Path, token: str | None = None, **limits: Any) -> Iterator[TestClient]:
    app = create_app(folder, Limits(**limits), measures=scratch / "measures", token_sha256=token, threads=1)
    with TestClient(app) as client:
        yield client


async def submitted(batcher: Batcher, items: list[Any], audio_s: float = 0.0) -> list[Any]:
    """Answers of items that are there already."""
    with batcher.place(len(items)) as place:
        return await batcher.submit(items, audio_s, place)


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """The application on a free loopback port; the URL."""
    port = free_port("127.0.0.1")
    with started(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")):
        yield f"http://127.0.0.1:{port}/"


@contextlib.contextmanager
def started(config: uvicorn.Config) -> Iterator[None]:
    """uvicorn in a thread."""
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.started
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)


def packed(seconds: float, channels: int = 1, rate: int = 48000) -> bytes:
    """A flac of a tone and then silence: a few kilobytes that are ``4 * seconds * channels * rate``
    bytes once they are decoded.
    """
    wave = np.zeros((int(seconds * rate), channels), np.float32)
    wave[:9600] = 0.3 * np.sin(np.arange(9600) / 9)[:, None]
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="FLAC")
    return buffer.getvalue()
