"""Prometheus metrics of all replicas of a machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Measures:
    """Counters of one replica, in files that the others read.

    Args:
        folder: shared by the replicas of one server on one machine.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        import prometheus_client
        from prometheus_client import values

        values.ValueClass = values.get_value_class()  # the library reads the variable on import, which may be long past
        self.folder = folder
        self.requests = prometheus_client.Counter("raysere_requests", "Requests by route and status", ["route", "status"], registry=None)
        self.seconds = prometheus_client.Histogram(
            "raysere_request_seconds", "Time to the answer", ["route"], buckets=_SECONDS, registry=None
        )
        self.batch = prometheus_client.Histogram(
            "raysere_batch_items", "Items answered together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=None
        )
        self.audio = prometheus_client.Counter("raysere_audio_seconds", "Seconds of audio heard", registry=None)
        self.waiting = prometheus_client.Gauge("raysere_waiting_items", "Items that wait", multiprocess_mode="livesum", registry=None)
        self.swaps = prometheus_client.Gauge("raysere_swaps", "Changes of the ensemble", multiprocess_mode="livesum", registry=None)

    def text(self) -> bytes:
        """The exposition of all replicas."""
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess

        registry = CollectorRegistry()
        collector: Any = multiprocess.MultiProcessCollector(registry, path=str(self.folder))
        assert collector
        return generate_latest(registry)

    def close(self) -> None:
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(os.getpid(), path=str(self.folder))
