"""The one place that starts Ray: its switches are set here and nowhere else."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

from raysere.errors import EnvironmentFault

NAMESPACE = "raysere"
_ANSWER_S = 60.0
_SWITCHES = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # or workers run from a copied environment
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_UNPACKED = "runtime_resources"
PRELOADED = "RAY_preload_python_modules"
_LOCAL_SWITCHES = {
    # Ray would write a token into the home folder for a cluster that nobody else reaches; on a cluster its own setting and token count
    "RAY_AUTH_MODE": "disabled",
    # idle workers import what trials need while the driver reads its files, and are kept until there is a trial for them
    PRELOADED: "raysere.search.preload",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # for Tune's actors, which must share the environment of the idle workers
    # Serve's proxies answer for an application that is not there (yet, or any more) with plain text otherwise
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "raysere.serving.proxy:middlewares",
}


def start_ray(cpus: int | None = None, object_store_gb: float = 1.0, *, debug: bool | None = None) -> bool:
    """Connect to the cluster of ``RAY_ADDRESS``, or start Ray on this machine. Does nothing when this process is connected already.

    Args:
        cpus: cores that a local Ray may use; default: all that this process may run on.
        object_store_gb: size of a local object store. Features are mapped files, so little goes through it.
        debug: show what workers print; default: environment variable RAYSERE_DEBUG.

    Returns:
        Whether Ray was started or connected here (then :func:`stop_ray` is the caller's duty).

    Raises:
        EnvironmentFault: Ray does not start, or the cluster does not answer.
    """
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    debug = bool(os.environ.get("RAYSERE_DEBUG")) if debug is None else debug
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "log_to_driver": debug,
        "logging_level": logging.INFO if debug else logging.ERROR,
        "configure_logging": debug,
    }
    if address:
        options["address"] = address
    else:
        options |= {
            "address": "local",
            "num_cpus": cpus or available_cores(),
            "include_dashboard": False,
            "object_store_memory": int(object_store_gb * (1 << 30)),
        }
    before = os.environ.get("PYTHONPATH")
    if not address:
        os.environ["PYTHONPATH"] = _python_path(before)
        for name, value in _LOCAL_SWITCHES.items():
            os.environ.setdefault(name, value)
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises anything from ConnectionError to RuntimeError
        where = f"the cluster at {address}" if address else "this machine"
        raise EnvironmentFault(
            f"Ray does not start: {' '.join(str(error).split())[:300]}",
            where=where,
            remedy="Check RAY_ADDRESS." if address else "`raysere doctor` tells what the machine lacks (memory, /dev/shm, disk in /tmp).",
        ) from error
    else:
        _end_on_sigterm()
    finally:
        if not address:
            if before is None:
                os.environ.pop("PYTHONPATH", None)
            else:
                os.environ["PYTHONPATH"] = before
    return True


def check_shared(folder: Path) -> None:
    """Whether every node of a cluster sees and can write ``folder``: told before hours of work and not after.

    A file is written there and looked for on each node with cores or GPUs; nodes that do not answer within a minute are left out, as are
    those that join later. Does nothing without a cluster (RAY_ADDRESS).

    Raises:
        EnvironmentFault: names the node and the folder.
    """
    if not os.environ.get("RAY_ADDRESS"):
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    }
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe-{uuid.uuid4().hex}.tmp"
    probe.write_bytes(b"")
    look = ray.remote(num_cpus=0, max_retries=0)(_cannot_share)
    asked = {look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(probe)): node for node in nodes}
    try:
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
        for answer in ready:
            try:
                wrong = ray.get(answer)
            except ray.exceptions.RayError:  # the node died, which is no fault of the storage
                continue
            if wrong:
                raise EnvironmentFault(
                    f"The node {nodes[asked[answer]]} of the cluster {wrong}",
                    where=folder,
                    remedy="Runs and features lie on storage that all nodes mount under one path: see --storage and RAYSERE_STORAGE.",
                )
    finally:
        probe.unlink(missing_ok=True)


def _cannot_share(probe: str) -> str | None:
    """What is wrong with the folder of ``probe`` on the node that this runs on; None where all is well."""
    seen = Path(probe)
    if not seen.is_file():
        return "does not see this folder as the driver does"
    try:
        own = seen.with_name(f".probe-{uuid.uuid4().hex}.tmp")
        own.write_bytes(b"")
        own.unlink()
    except OSError as error:
        return f"cannot write to this folder ({error.strerror})"
    return None


def _end_on_sigterm() -> None:
    """SIGTERM (`ray job stop`, a scheduler, a container that ends) is as Ctrl-C: Ray's own handler prints a trace and no word."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def stop_ray() -> None:
    """Disconnect; a Ray that :func:`start_ray` started on this machine ends with it."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            ray.shutdown()


def in_job() -> bool:
    """Whether this process was started as a Ray job (``ray job submit``, a RayJob)."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def lasts(folder: Path) -> bool:
    """Whether what a job writes in ``folder`` is there when the job has ended.

    A job's working directory is a copy that the node unpacked below ``runtime_resources`` and removes again; of a relative folder nobody
    can say where it is. Outside of jobs every folder lasts.
    """
    return not in_job() or (folder.is_absolute() and _UNPACKED not in folder.resolve().parts)


def available_cores() -> int:
    """Cores that this process may run on (a container or `taskset` may allow fewer than the machine has)."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _python_path(before: str | None) -> str:
    """PYTHONPATH with which local workers import the same raysere as the driver, installed or not."""
    here = str(Path(__file__).resolve().parent.parent)
    parts = [part for part in (before or "").split(os.pathsep) if part]
    return os.pathsep.join(parts if here in parts else [here, *parts])
