"""Batches of waiting requests: requests that arrive while the model works are answered together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from raysere.serving.faults import Fault
from raysere.serving.latency import Latency
from raysere.serving.limits import Limits

_LOG = logging.getLogger(__name__)
_BASE = 1.0  # units of an item without audio; each second of audio is one more
_USUAL, _FORGET = 4.0, 0.1  # units of an item, until some were seen; weight of the latest request in them
_FRESH_S = 2.0  # that an admitted request may take until it counts no more
_ROOM, _ROOM_S = 0.75, 0.5  # of `wait_s`: when the wait is down to it, there is room again; seconds until that is looked at again
_FEW = 4  # items that may wait however slow the model is


@dataclass(eq=False)  # told apart by identity: equality would compare the audio of what waits
class Job:
    """The items of one request, answered together.

    ``units`` is the expected work: items and seconds of audio.
    """

    items: list[Any]
    units: float
    future: asyncio.Future[list[Any]]


@dataclass(eq=False)
class Place:
    """An admitted request whose items are still on their way to the queue (read, decoded), where
    they count already.

    It counts for :data:`_FRESH_S` alone: clients that send slowly keep nobody out.
    """

    count: int
    since: float = field(default_factory=lambda: time.monotonic())

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self.since < _FRESH_S


def units(count: int, audio_s: float) -> float:
    return _BASE * count + audio_s


class Batcher:
    """One thread that works through what waits.

    Args:
        work: called in the thread with the items of several requests; returns as many answers, each
            of which may be an exception. What it raises is the fate of the whole batch, so each
            request is then tried by itself.
        limits: queue, waiting and batch bounds.
    """

    def __init__(self, work: Callable[[list[Any]], Sequence[Any]], limits: Limits) -> None:
        self._work, self.limits = work, limits
        self._coming: set[Place] = set()
        self._waiting: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raysere-model")
        self._task: asyncio.Task[None] | None = None
        self.latency = Latency()
        self._item_units = _USUAL  # of recent items
        self._running_units = 0.0
        self.running_since: float | None = None
        self.sizes: Callable[[int], None] = lambda size: None  # told of each batch

    @property
    def waiting(self) -> int:
        """Items that wait, or are about to."""
        return sum(len(job.items) for job in self._waiting) + sum(place.count for place in self._coming if place.fresh)

    def expected_wait(self) -> float:
        """Seconds until all is done that is here now, from the pace of earlier batches."""
        seconds, here = 0.0, [(len(job.items), job.units) for job in self._waiting]
        here += [(place.count, place.count * self._item_units) for place in self._coming if place.fresh]
        while here:
            taken = self._fitting(here)
            seconds += self.latency.seconds(sum(work for _, work in here[:taken]))
            here = here[taken:]
        if self.running_since is not None:
            # What takes longer than it should is taken to need as long again: behind a model that
            # hangs, the wait grows.
            seconds += abs(self.latency.seconds(self._running_units) - (time.monotonic() - self.running_since))
        return seconds

    def admit(self, count: int) -> None:
        """Raises Fault 429 where ``count`` more items would have to wait too long; cheap, so that a
        refusal is quick.
        """
        waiting, expected = self.waiting, self.expected_wait()
        if waiting + count > self.limits.queue or (expected > self.limits.wait_s and waiting >= _FEW):
            raise Fault(
                429,
                "overloaded",
                f"{waiting} clips or texts are waiting, for about {expected:.1f} s",
                remedy="Try again after the seconds of Retry-After, or start more replicas.",
                retry_s=max(1.0, expected - self.limits.wait_s / 2),
                full_s=min(_ROOM_S, expected - _ROOM * self.limits.wait_s) if expected > self.limits.wait_s else 0.0,
            )

    @contextlib.contextmanager
    def place(self, count: int) -> Iterator[Place]:
        """Hold a place for a request of ``count`` items while it is read and decoded, so that it is
        not refused after that.

        Raises Fault 429 (see :meth:`admit`).
        """
        self.admit(count)
        place = Place(count)
        self._coming.add(place)
        try:
            yield place
        finally:
            self._coming.discard(place)

    def enlarge(self, place: Place, count: int) -> None:
        """The request has ``count`` items, as it turns out.

        Raises Fault 429 where so many more do not fit.
        """
        if count > place.count:
            self.admit(count - place.count)
        place.count = count

    async def submit(self, items: list[Any], audio_s: float, place: Place) -> list[Any]:
        """Answers of the items, which take their place.

        Raises Fault 504 after ``request_s``, and what the work raises.
        """
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        job = Job(items, units(len(items), audio_s), asyncio.get_running_loop().create_future())
        self._item_units += _FORGET * (job.units / len(items) - self._item_units)
        self._coming.discard(place)
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
        return [self._waiting.popleft() for _ in range(self._fitting([(len(job.items), job.units) for job in self._waiting]))]

    def _fitting(self, requests: Sequence[tuple[int, float]]) -> int:
        """How many of the requests, (items, units) each, make the next batch; at least one where
        there is any.
        """
        count, total = 0, 0.0
        for taken, (items, work) in enumerate(requests):
            too_many = count + items > self.limits.batch_items or self.latency.calm(total + work) > self.limits.batch_s
            if taken and too_many:
                return taken
            count, total = count + items, total + work
        return len(requests)

    async def _answer(self, jobs: list[Job]) -> None:
        items = [item for job in jobs for item in job.items]
        work, began = sum(job.units for job in jobs), time.monotonic()
        self._running_units, self.running_since = work, began
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
        else:
            self.latency.learn(work, time.monotonic() - began)  # how quickly work fails tells nothing of it
        finally:
            self._running_units, self.running_since = 0.0, None
        begin = 0
        for job in jobs:
            if not job.future.done():
                job.future.set_result(list(answers[begin : begin + len(job.items)]))
            begin += len(job.items)

    async def close(self) -> None:
        """Answer what waits, then end the thread."""
        while self._waiting or self.running_since is not None or any(place.fresh for place in self._coming):
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown(wait=True)
