"""Clients that mean harm, for a bounded time and on loopback alone, beside one that means well, a
prober of health, and a sampler.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import random
import re
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import soundfile

from benchmarks.serving.client import Tally, new_session, send, send_json

_HANGING, _FLOODING, _HALF_SENT = 2, 2, 1000  # clients of each kind at a time
_HANG_UP_S = (0.05, 1.5)  # after which a client hangs up: while its clip is decoded, or soon after
_AGAIN_S = 1.0  # until a client whose half-sent header the server gave up sends another
_PAUSE_S = 0.05  # between two requests of a client that floods or hangs up
_PROBE_S, _PROBE_LIMIT_S = 0.2, 30.0
_SAMPLE_S, _CALM_S = 2.0, 10.0  # between samples; from the end of the siege to the last one


async def besiege(url: str, clips: list[bytes], seconds: float, processes: Callable[[], list[int]], folder: Path) -> dict[str, Any]:
    """Everything at once for ``seconds``; what the server held before, at most, and some seconds
    after.

    Args:
        url: of a server on this machine.
        clips: audio files of the client that means well.
        seconds: of the siege.
        processes: ids of the server's processes, all of them.
        folder: of the server's temporary files.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    health, floods, good, half = Tally(), Tally(), Tally(), {"sent": 0, "given_up": 0, "at_most": 0}
    hung_up, samples = [0], []
    start = time.perf_counter()

    def lasting() -> bool:
        return time.perf_counter() - start < seconds

    async def sample() -> None:
        while lasting():
            samples.append(await asyncio.to_thread(held, processes(), folder))
            await asyncio.sleep(_SAMPLE_S)

    async with new_session() as session:
        for _ in range(4):
            await send(session, url, clips[0], Tally(), start)  # warm
        first = held(processes(), folder)
        start = time.perf_counter()
        bombs, wrong = packed(), [b'{"items":[' + one + b"]}" for one in (b"123," * 999_999 + b"123", b"{}," * 999_999 + b"{}")]
        attacks: list[Awaitable[None]] = [
            sample(),
            _probe(url, lasting, health, start),
            _send_clips(session, url, clips, lasting, good, start),
        ]
        attacks += [_hang_up(url, bombs, lasting, hung_up, random.Random(n)) for n in range(_HANGING)]
        attacks += [_flood(session, url, wrong, lasting, floods, start) for _ in range(_FLOODING)]
        attacks += [_half_send(url, lasting, half) for _ in range(_HALF_SENT)]
        await asyncio.gather(*attacks)
        wall = time.perf_counter() - start
    await asyncio.sleep(_CALM_S)
    end = held(processes(), folder)
    names = list(first)
    took = np.array(health.seconds)
    return {
        "seconds": round(wall, 1),
        "hang_ups": hung_up[0],
        "half_sent": half,
        "floods": floods.summary(wall),
        "clips": good.summary(wall),
        "health": {
            "probes": len(took),
            "failed": sum(status != 200 for status in health.status),
            **{
                name: round(1000 * float(np.quantile(took, share)), 1)
                for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0))
            },
        },
        "first": first,
        "most": {name: max(one[name] for one in [first, *samples, end]) for name in names},
        "end": end,
        "over_time": samples[:: max(1, len(samples) // 60)],
    }


def held(processes: list[int], folder: Path) -> dict[str, float]:
    """Memory (shared parts divided among who shares them:

    PSS; and RSS), disk, and descriptors of all processes together.
    """
    rss = pss = descriptors = 0
    disk = {(one.st_dev, one.st_ino): one.st_blocks for one in _status(folder.rglob("*"))}
    for number in processes:
        proc = Path(f"/proc/{number}")
        with contextlib.suppress(OSError):
            text = (proc / "smaps_rollup").read_text()
            rss += sum(map(int, re.findall(r"^Rss: +(\d+)", text, re.M)))
            pss += sum(map(int, re.findall(r"^Pss: +(\d+)", text, re.M)))
            opened = list((proc / "fd").iterdir())
            descriptors += len(opened)
            removed = [one for one in opened if _target(one).startswith(str(folder)) and _target(one).endswith("(deleted)")]
            disk |= {(one.st_dev, one.st_ino): one.st_blocks for one in _status(removed)}
    return {
        "rss_mb": round(rss / 1024, 1),
        "pss_mb": round(pss / 1024, 1),
        "disk_mb": round(sum(disk.values()) * 512 / (1 << 20), 1),
        "descriptors": descriptors,
        "processes": len(processes),
    }


def _status(paths: Any) -> list[os.stat_result]:
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append(path.stat())
    return found


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""


def packed() -> bytes:
    """A flac of a tone and two minutes of silence in eight channels:

    88 KB that are 184 MB once they are decoded.
    """
    wave = np.zeros((48_000 * 120, 8), np.float32)
    wave[:9600] = 0.3 * np.sin(np.arange(9600) / 9)[:, None]
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 48_000, format="FLAC")
    return buffer.getvalue()


async def _probe(url: str, lasting: Callable[[], bool], tally: Tally, start: float) -> None:
    """Ask ``/healthz`` on a new connection each time, as an orchestrator does.

    No answer counts with the time that it was waited for.
    """
    while lasting():
        began, status = time.perf_counter(), 0
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PROBE_LIMIT_S)) as session,
                session.get(f"{url}/healthz") as response,
            ):
                await response.read()
                status = response.status
        tally.sent.append(began - start)
        tally.seconds.append(time.perf_counter() - began)
        tally.status.append(status)
        await asyncio.sleep(_PROBE_S)


async def _send_clips(
    session: aiohttp.ClientSession, url: str, clips: list[bytes], lasting: Callable[[], bool], tally: Tally, start: float
) -> None:
    turn = 0
    while lasting():
        await send(session, url, clips[turn % len(clips)], tally, start)
        turn += 1
        await asyncio.sleep(0.5)


async def _hang_up(url: str, data: bytes, lasting: Callable[[], bool], done: list[int], draw: random.Random) -> None:
    address = urlsplit(url)
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + data + b"\r\n--b--\r\n"
    head = f"POST /v1/predict HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    while lasting():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            await asyncio.sleep(draw.uniform(*_HANG_UP_S))
            writer.close()
            done[0] += 1
        await asyncio.sleep(_PAUSE_S)


async def _flood(
    session: aiohttp.ClientSession, url: str, bodies: list[bytes], lasting: Callable[[], bool], tally: Tally, start: float
) -> None:
    turn = 0
    while lasting():
        await send_json(session, f"{url}/v1/predict/batch", bodies[turn % len(bodies)], tally, start)
        turn += 1
        await asyncio.sleep(_PAUSE_S)


async def _half_send(url: str, lasting: Callable[[], bool], counted: dict[str, int]) -> None:
    """Hold a connection on which half of a header was sent; when the server gives it up, another."""
    address = urlsplit(url)
    while lasting():
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(f"POST /v1/predict HTTP/1.1\r\nHost: {address.netloc}\r\nX-Half".encode())
            counted["sent"] += 1
            counted["at_most"] = max(counted["at_most"], counted["sent"] - counted["given_up"])
            ended = asyncio.ensure_future(reader.read())
            while not ended.done() and lasting():
                await asyncio.wait([ended], timeout=1.0)
            counted["given_up"] += ended.done()
            ended.cancel()
            writer.close()
        await asyncio.sleep(_AGAIN_S)
