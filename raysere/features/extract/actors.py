"""Extraction by Ray actors: longest tasks first; dead workers are replaced; a file that kills
workers is found by halving.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysere.base.cluster import check_shared, start_ray
from raysere.base.errors import EnvironmentFault, RaysereError, machine_fault
from raysere.base.memory import keep_memory
from raysere.features.extract.encoder import SHARD_ITEMS, SHARD_S, Encoded, Encoder
from raysere.features.spec import FeatureSpec
from raysere.features.store.content import Failure, Work
from raysere.features.store.shards import read_index

DEATHS = 3  # of a worker, alone with one file, until the file is held to be the cause
_LOOK_S, _SAY_S = 2.0, 30.0  # seconds between checks for new nodes; seconds of waiting before it is reported
_BARREN = 20  # deaths in a row without one finished task: the machine is at fault


class Tasks:
    """Work in tasks of about ``SHARD_S`` seconds, sized by the speed seen so far.

    They get smaller towards the end, so that workers end together, but no smaller than a second, as
    every task makes a shard.
    """

    def __init__(self, works: list[Work], workers: int) -> None:
        self.fresh = deque(sorted(works, key=lambda work: (-work.seconds, work.content)))
        self.again: deque[list[Work]] = deque()
        self.workers = max(1, workers)
        self.left = sum(work.seconds for work in self.fresh)
        self.deaths: dict[str, list[str]] = {}  # by content, the nodes whose workers died over it alone
        self.speed: float | None = None  # seconds of speech a second of one worker
        self._seen = [0.0, 0.0]

    def __bool__(self) -> bool:
        return bool(self.fresh or self.again)

    def next(self) -> list[Work] | None:
        if self.again:
            return self.again.popleft()
        if not self.fresh:
            return None
        share = self.left / (2 * self.workers)
        limit = min(20.0, share) if self.speed is None else self.speed * max(1.0, min(SHARD_S, share / self.speed))
        task = [self.fresh.popleft()]
        total = task[0].seconds
        while self.fresh and len(task) < SHARD_ITEMS and total + self.fresh[0].seconds <= limit:
            task.append(self.fresh.popleft())
            total += task[-1].seconds
        self.left -= total
        return task

    def finished(self, outcome: Encoded) -> None:
        self._seen[0] += outcome.speech_s
        self._seen[1] += outcome.wall_s
        if self._seen[0] and self._seen[1]:
            self.speed = self._seen[0] / self._seen[1]

    def died(self, task: list[Work], standing: set[str], node: str, gone: set[str]) -> tuple[list[str], Failure | None]:
        """A worker died over ``task``: (contents that its finished shards hold, the failure where
        one file has killed often enough).

        A file is not to blame for workers that went with their ``node``. Ray sees that a node is
        gone seconds after its workers are, so whether it is among the nodes ``gone`` is asked again
        at each later death.
        """
        done = [work.content for work in task if work.content in standing]
        rest = [work for work in task if work.content not in standing]
        if len(rest) > 1:
            middle = math.ceil(len(rest) / 2)
            self.again += [rest[:middle], rest[middle:]]
        elif rest:
            work = rest[0]
            nodes = self.deaths[work.content] = [*self.deaths.get(work.content, []), node]
            if sum(name not in gone for name in nodes) >= DEATHS:
                return done, Failure(
                    work.utterance, work.content, work.path, f"killed its worker {DEATHS} times (out of memory, or a fault in native code)"
                )
            self.again.append(rest)
        return done, None


class _Worker(Encoder):
    """The encoder of an actor."""

    def begin(self) -> str:
        """Open the backbone, and return the node that this is."""
        import ray

        if self.device == "cpu":
            keep_memory()
        self.open()
        return ray.get_runtime_context().get_node_id()


def run_actors(
    spec: FeatureSpec,
    folder: Path,
    works: list[Work],
    take: Callable[[Encoded], None],
    *,
    actors: int | None = None,
    device: str = "auto",
    batch_s: float | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Extract ``works`` into shards under ``folder``, calling ``take`` with the outcome of every
    task in this process.

    Raises what ``take`` raises; EnvironmentFault when workers die again and again; RaysereErrors of
    the workers as they are.
    """
    start_ray()
    check_shared(folder)
    import ray
    from ray.exceptions import RayError, RayTaskError

    total = ray.cluster_resources()
    device = ("cuda" if total.get("GPU", 0) >= 1 else "cpu") if device == "auto" else device
    on_gpu = device.startswith("cuda")

    def places() -> int:
        """Workers that the cluster has room for now: nodes may join."""
        return min(actors or max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1))), len(works))

    count = places()
    remote: Any = ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_restarts=0, scheduling_strategy="SPREAD")(_Worker)

    opening: dict[Any, Any] = {}
    running: dict[Any, tuple[Any, str, list[Work]]] = {}  # actor, its node, its task
    idle: list[tuple[Any, str]] = []
    tasks = Tasks(works, count)
    barren: list[str] = []  # nodes of the deaths since a task was last finished
    looked, silent = time.monotonic(), 0.0

    def hire() -> None:
        actor = remote.remote(spec, folder.resolve(), device=device, threads=None if on_gpu else 1, batch_s=batch_s)
        opening[actor.begin.remote()] = actor

    try:
        for _ in range(count):
            hire()
        while tasks or running:
            while idle and tasks:
                (actor, node), task = idle.pop(), tasks.next()
                assert task is not None
                running[actor.run.remote(task)] = (actor, node, task)
            if not running and not tasks:
                break
            if tasks and time.monotonic() - looked > _LOOK_S:
                looked = time.monotonic()
                for _ in range(places() - len(idle) - len(running) - len(opening)):
                    hire()
            ready, _ = ray.wait([*running, *opening], num_returns=1, timeout=min(30.0, _LOOK_S))
            silent = 0.0 if ready else silent + _LOOK_S
            if silent >= _SAY_S and not running and say:
                silent = 0.0
                say(f"extract {spec.backbone}: waiting for a free {'GPU' if on_gpu else 'core'} in the Ray cluster")
            for reference in ready:
                actor, node, task = running.pop(reference, None) or (opening.pop(reference), "", None)
                try:
                    outcome = ray.get(reference)
                except RayTaskError as error:
                    if isinstance(error.cause, RaysereError):
                        raise error.cause from None
                    if fault := machine_fault(error.cause, folder):
                        raise fault from error
                    raise
                except RayError as error:  # the worker is gone: killed, out of memory, a fault in native code, its node lost
                    ray.kill(actor, no_restart=True)  # or one that only could not be reached would keep its core
                    barren.append(node)
                    gone = {entry["NodeID"] for entry in ray.nodes() if not entry["Alive"]}
                    if sum(name not in gone for name in barren) >= _BARREN:
                        raise EnvironmentFault(
                            f"{len(barren)} extraction workers died one after the other: {' '.join(str(error).split())[:300]}",
                            where=spec.backbone,
                            remedy="Most often memory: use fewer actors. Then run the same command again: finished work is kept.",
                        ) from error
                    if task is not None:
                        done, failure = tasks.died(task, set(read_index(folder)["content"].to_list()), node, gone)
                        take(Encoded(done=done, failures=[failure] if failure else []))
                    hire()
                    continue
                if task is None:
                    idle.append((actor, outcome))  # it has begun, and told its node
                else:
                    idle.append((actor, node))
                    barren.clear()
                    tasks.finished(outcome)
                    take(outcome)
    finally:
        for actor in [*(actor for actor, _ in idle), *opening.values(), *(actor for actor, _, _ in running.values())]:
            ray.kill(actor, no_restart=True)
