"""Start and stop Ray. No other file sets switches of Ray."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raysere.base.errors import EnvironmentFault
from raysere.base.listeners import Listener, listeners, process_tree
from raysere.base.progress import warn

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
    # idle workers import what trials need while the driver reads its files, and are kept until
    # there is a trial for them
    PRELOADED: "raysere.search.preload",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # for Tune's actors, which must share the environment of the idle workers
    # Serve's proxies answer for an application that is not there (yet, or any more) with plain text
    # otherwise
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "raysere.serving.proxy:middlewares",
}


_LOOPBACK = "127.0.0.1"


def start_ray(cpus: int | None = None, object_store_gb: float = 1.0, *, debug: bool | None = None) -> bool:
    """Connect to the cluster of ``RAY_ADDRESS``, or start Ray on this machine. Does nothing when
    this process is connected already.

    A Ray that is started here listens on loopback alone and asks for a token that only this user
    can read; a cluster keeps its own authentication.

    Args:
        cpus: cores that a local Ray may use; default: all that this process may run on.
        object_store_gb: size of a local object store. Features are mapped files, so little goes
            through it.
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
    _PRIVACY.leave()  # of a Ray that was started here and ended by `ray.shutdown`
    debug = bool(os.environ.get("RAYSERE_DEBUG")) if debug is None else debug
    address = cluster_address()
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
            "_node_ip_address": _LOOPBACK,
            "num_cpus": cpus or available_cores(),
            "include_dashboard": False,
            "object_store_memory": int(object_store_gb * (1 << 30)),
        }
    before = os.environ.get("PYTHONPATH")
    open_before = set() if address else set(listeners(process_tree(os.getpid())))
    try:
        if not address:
            os.environ["PYTHONPATH"] = _python_path(before)
            for name, value in _LOCAL_SWITCHES.items():
                os.environ.setdefault(name, value)
            _PRIVACY.enter()
        ray.init(**options)
    except BaseException as error:
        _PRIVACY.leave()
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        # Ray raises anything from ConnectionError to RuntimeError
        where = f"the cluster at {address}" if address else "this machine"
        raise EnvironmentFault(
            f"Ray does not start: {' '.join(str(error).split())[:300]}",
            where=where,
            remedy="Check RAY_ADDRESS." if address else "`raysere doctor` tells what the machine lacks (memory, /dev/shm, disk in /tmp).",
        ) from error
    else:
        _end_on_sigterm()
        if not address:
            tell_open_ports(open_before)
    finally:
        if not address:
            if before is None:
                os.environ.pop("PYTHONPATH", None)
            else:
                os.environ["PYTHONPATH"] = before
    return True


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names; None where Ray is to be started on this machine (not set,
    empty, or ``local``).
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def check_shared(folder: Path) -> None:
    """Whether every node of a cluster sees and can write ``folder``: told before hours of work and
    not after.

    A file is written there and looked for on each node with cores or GPUs; nodes that do not answer
    within a minute are left out, as are those that join later. Does nothing without a cluster
    (RAY_ADDRESS).

    Raises:
        EnvironmentFault: names the node and the folder.
    """
    if cluster_address() is None:
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
    """What is wrong with the folder of ``probe`` on the node that this runs on; None where all is
    well.
    """
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
    """SIGTERM (`ray job stop`, a scheduler, a container that ends) is as Ctrl-C:

    Ray's own handler prints a trace and no word.
    """
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
    _PRIVACY.leave()


class _Privacy:
    """What makes a local Ray private, for as long as it runs: a token of this process, and loopback
    as the address of the node.

    Ray reads both from the environment when it starts its processes, and its C++ part keeps what it
    has read: hence the resets. Afterwards the environment is as before, so that a cluster to which
    this process connects next sees its own token.
    """

    def __init__(self) -> None:
        self._before: dict[str, str | None] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # removed at the latest when this process ends
        self._lock = -1  # held on the folder, which services that tidy temporary files then leave alone

    def enter(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="raysere-token-", ignore_cleanup_errors=True)  # mode 0700
        token = Path(self._folder.name) / "token"
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        self._lock = os.open(self._folder.name, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        wanted = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": None,  # it would count before the file
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes have the loopback address, as Ray does by itself on macOS
        }
        self._before = {name: os.environ.get(name) for name in wanted}
        self._set(wanted, clustered=False)

    def leave(self) -> None:
        if self._before is not None and self._folder is not None:
            self._set(self._before, clustered=self._before["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] not in ("0", "false"))
            os.close(self._lock)
            self._folder.cleanup()
            self._before = self._folder = None

    @staticmethod
    def _set(values: dict[str, str | None], *, clustered: bool) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        with contextlib.suppress(ImportError, AttributeError):  # private parts of Ray that another version may not have
            constants: Any = importlib.import_module("ray._private.ray_constants")
            constants.ENABLE_RAY_CLUSTER = clustered and not constants.IS_WINDOWS_OR_OSX
            core = importlib.import_module("ray._raylet")
            core.Config.initialize("")
            core.AuthenticationTokenLoader.instance().reset_cache()


_PRIVACY = _Privacy()


def tell_open_ports(known: Iterable[Listener] = (), *, wanted: int | None = None) -> None:
    """Say on the console which ports of the local Ray other machines reach: none, unless this
    version of Ray cannot be bound.

    Args:
        known: what was open before Ray was started, which is not of Ray.
        wanted: a port that the user has asked for, which is left out.
    """
    for one in sorted(set(listeners(process_tree(os.getpid()))) - set(known)):
        if one.beyond and one.port != wanted:
            warn(
                f"Warning: {one.process} listens on {one.address} port {one.port}, which other machines may reach: this version of Ray "
                "does not keep it on this machine. Block the port, or install the Ray of constraints.txt."
            )


def in_job() -> bool:
    """Whether this process was started as a Ray job (``ray job submit``, a RayJob)."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def lasts(folder: Path) -> bool:
    """Whether what a job writes in ``folder`` is there when the job has ended.

    A job's working directory is a copy that the node unpacked below ``runtime_resources`` and
    removes again; of a relative folder nobody can say where it is. Outside of jobs every folder
    lasts.
    """
    return not in_job() or (folder.is_absolute() and _UNPACKED not in folder.resolve().parts)


def available_cores() -> int:
    """Cores that this process may run on (a container or `taskset` may allow fewer than the machine
    has).
    """
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _python_path(before: str | None) -> str:
    """PYTHONPATH with which local workers import the same raysere as the driver, installed or not."""
    here = str(Path(__file__).resolve().parents[2])
    parts = [part for part in (before or "").split(os.pathsep) if part]
    return os.pathsep.join(parts if here in parts else [here, *parts])
