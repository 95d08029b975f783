"""Requests that wait while the model works are answered together: the batch grows with the load, and nobody waits for company."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from raysere.serving.faults import Fault
from raysere.serving.limits import Limits

_LOG = logging.getLogger(__name__)
_FIRST_RATE = 0.1  # seconds of work a unit, before anything was measured
_BASE = 1.0  # units of an item without audio; each second of audio is one more
_FORGET = 0.2  # weight of the latest batch in the rate


@dataclass(eq=False)  # told apart by identity: equality would compare the audio of what waits
class Job:
    """The items of one request, answered together. ``units`` is the expected work: items and seconds of audio."""

    items: list[Any]
    units: float
    future: asyncio.Future[list[Any]]
    since: float = field(default_factory=time.monotonic)


def units(count: int, audio_s: float) -> float:
    return _BASE * count + audio_s


class Batcher:
    """One thread that works through what waits.

    Args:
        work: called in the thread with the items of several requests; returns as many answers, each of which may be an exception. What it
            raises is the fate of the whole batch, so each request is then tried by itself.
        limits: queue, waiting and batch bounds.
    """

    def __init__(self, work: Callable[[list[Any]], Sequence[Any]], limits: Limits) -> None:
        self._work, self.limits = work, limits
        self._waiting: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raysere-model")
        self._task: asyncio.Task[None] | None = None
        self._rate = _FIRST_RATE
        self._running_units = 0.0
        self.running_since: float | None = None
        self.sizes: Callable[[int], None] = lambda size: None  # told of each batch

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return sum(len(job.items) for job in self._waiting)

    def expected_wait(self) -> float:
        """Seconds until a new request's turn, from the rate of earlier batches."""
        return self._rate * (self._running_units + sum(job.units for job in self._waiting))

    def admit(self, count: int) -> None:
        """Raises Fault 429 where ``count`` more items would have to wait too long; cheap, so that a refusal is quick."""
        expected = self.expected_wait()
        if self.waiting + count > self.limits.queue or expected > self.limits.wait_s:
            raise Fault(
                429,
                "overloaded",
                f"{self.waiting} clips or texts are waiting, for about {expected:.1f} s",
                remedy="Try again after the seconds of Retry-After, or start more replicas.",
                retry_s=max(1.0, expected - self.limits.wait_s / 2),
            )

    async def submit(self, items: list[Any], audio_s: float) -> list[Any]:
        """Answers of the items. Raises Fault 429 (see :meth:`admit`) or 504 after ``request_s``, and what the work raises."""
        self.admit(len(items))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        job = Job(items, units(len(items), audio_s), asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._wake.set()
        try:
            return await asyncio.wait_for(job.future, self.limits.request_s)
        except TimeoutError:
            message = f"No answer within {self.limits.request_s:g} s"
            raise Fault(504, "timeout", message, remedy="Send shorter audio, or try again later.", retry_s=1.0) from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)  # timed out, or the client went away

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while jobs := self._next():
                await self._answer(jobs)

    def _next(self) -> list[Job]:
        jobs: list[Job] = []
        count, total = 0, 0.0
        while self._waiting:
            job = self._waiting[0]
            too_many = count + len(job.items) > self.limits.batch_items or self._rate * (total + job.units) > self.limits.batch_s
            if jobs and too_many:
                break
            jobs.append(self._waiting.popleft())
            count, total = count + len(job.items), total + job.units
        return jobs

    async def _answer(self, jobs: list[Job]) -> None:
        items = [item for job in jobs for item in job.items]
        self._running_units, self.running_since = sum(job.units for job in jobs), time.monotonic()
        self.sizes(len(items))
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    await self._answer([job])
                return
            _LOG.exception("a request could not be answered")
            if not jobs[0].future.done():
                jobs[0].future.set_exception(error)
            return
        finally:
            if self.running_since is not None:
                took = time.monotonic() - self.running_since
                self._rate += _FORGET * (took / self._running_units - self._rate)
            self._running_units, self.running_since = 0.0, None
        begin = 0
        for job in jobs:
            if not job.future.done():
                job.future.set_result(list(answers[begin : begin + len(job.items)]))
            begin += len(job.items)

    async def close(self) -> None:
        """Answer what waits, then end the thread."""
        while self._waiting or self.running_since is not None:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True)
