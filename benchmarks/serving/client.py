"""Clients of a server, in one process: closed loops (each waits for its answer) and open ones
(requests come whatever happens).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np


@dataclass
class Tally:
    """Of every request: when it was sent (s since the start), its seconds, its status (0: no
    answer), and ``Retry-After``.
    """

    sent: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    retry: list[str | None] = field(default_factory=list)

    def summary(self, wall_s: float) -> dict[str, float | int | dict[str, int]]:
        took, status = np.array(self.seconds), np.array(self.status)
        good = took[status == 200]
        return {
            "requests": len(took),
            "per_s": round(float((status == 200).sum() / wall_s), 2),
            "p50_ms": round(1000 * float(np.quantile(good, 0.5)), 1) if len(good) else -1.0,
            "p99_ms": round(1000 * float(np.quantile(good, 0.99)), 1) if len(good) else -1.0,
            "by_status": {str(code): int((status == code).sum()) for code in sorted(set(self.status))},
        }


async def send(session: aiohttp.ClientSession, url: str, data: bytes, tally: Tally, start: float) -> None:
    """Send one clip and take account of it; ``start`` is when the tally's time began."""
    form = aiohttp.FormData()
    form.add_field("file", data, filename="clip")
    form.add_field("votes", "false")
    await _post(session, f"{url}/v1/predict", tally, start, data=form)


async def send_json(session: aiohttp.ClientSession, url: str, body: bytes, tally: Tally, start: float) -> None:
    """As :func:`send`, for a body that says to be JSON; ``url`` with its route."""
    await _post(session, url, tally, start, data=body, headers={"Content-Type": "application/json"})


async def _post(session: aiohttp.ClientSession, url: str, tally: Tally, start: float, **content: Any) -> None:
    began = time.perf_counter()
    status, retry = 0, None
    try:
        async with session.post(url, **content) as response:
            await response.read()
            status, retry = response.status, response.headers.get("Retry-After")
    except (aiohttp.ClientError, TimeoutError, OSError):
        pass
    tally.sent.append(began - start)
    tally.seconds.append(time.perf_counter() - began)
    tally.status.append(status)
    tally.retry.append(retry)


def new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60))


async def closed(url: str, clips: Sequence[bytes], clients: int, seconds: float) -> tuple[Tally, float]:
    """``clients`` loops for ``seconds``; each sends its next clip when the last was answered.
    (tally, wall seconds)
    """
    tally, start = Tally(), time.perf_counter()

    async def loop(session: aiohttp.ClientSession, number: int) -> None:
        turn = number
        while time.perf_counter() - start < seconds:
            await send(session, url, clips[turn % len(clips)], tally, start)
            turn += clients

    async with new_session() as session:
        await asyncio.gather(*(loop(session, number) for number in range(clients)))
    return tally, time.perf_counter() - start


async def opened(url: str, clips: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> tuple[Tally, float]:
    """Requests at random times, ``rate`` a second, whether earlier ones were answered or not.
    (tally, wall seconds)
    """
    tally, generator = Tally(), np.random.default_rng(seed)
    times = np.cumsum(generator.exponential(1 / rate, int(rate * seconds)))
    start = time.perf_counter()
    async with new_session() as session:
        tasks = []
        for n, moment in enumerate(times):
            await asyncio.sleep(max(0.0, moment - (time.perf_counter() - start)))
            tasks.append(asyncio.create_task(send(session, url, clips[n % len(clips)], tally, start)))
        await asyncio.gather(*tasks)
    return tally, time.perf_counter() - start
