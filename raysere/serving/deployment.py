"""The ensemble as a Ray Serve application:

``raysere serve`` runs it, and a ``RayService`` imports :func:`build`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from raysere.base.cluster import cluster_address, start_ray, stop_ray, tell_open_ports
from raysere.base.errors import ConfigError, EnvironmentFault
from raysere.base.listeners import listeners, process_tree
from raysere.ensemble.saved.read import load_ensemble
from raysere.serving.limits import Limits, read_limits
from raysere.serving.origin import on_loopback

APP = "raysere"
TOKEN_VARIABLE = "RAYSERE_TOKEN"
_TOKEN_SHORTEST, _TOKEN_LONGEST = 16, 4096
_MOST_AT_ONCE = 4096  # requests that a replica holds; its own limits refuse long before


class Options(BaseModel):
    """What :func:`build` takes, as JSON.

    Attributes:
        ensemble: folder of a saved ensemble that every node of the cluster can read.
        replicas: processes that answer, each with one copy of every backbone.
        cpus, gpus: of the cluster, for each replica; with ``gpus`` the backbones run on ``cuda``.
        threads: of torch in each replica; None: as many as its cpus.
        token_sha256: hex SHA-256 of the token to ask for. Where it is None and RAYSERE_TOKEN is set
            in the replica, its hash is taken.
        loopback: whether the proxies listen on this machine alone: requests must then name it so.
            :func:`serving` knows.
        limits: see :class:`~raysere.serving.limits.Limits`.
    """

    model_config = ConfigDict(extra="forbid")

    ensemble: str
    replicas: int = Field(1, ge=1)
    cpus: float = Field(1, gt=0)
    gpus: float = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)
    token_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    loopback: bool = False
    limits: dict[str, Any] = Field(default_factory=dict)


def build(options: dict[str, Any], measures: Path | None = None) -> Any:
    """The Serve application for ``Options``. Raises ConfigError for a limit that cannot be.

    ``measures`` is the folder in which the replicas of a node share their counters; default: one of
    its own among the temporary files.
    """
    from ray import serve

    asked = Options.model_validate(options)
    limits = read_limits(asked.limits)
    shared = measures or Path(tempfile.gettempdir()) / f"raysere-measures-{secrets.token_hex(8)}"

    class Replica:
        async def check_health(self) -> None:
            self.app.state.engine.check()  # type: ignore[attr-defined]

    deployment: Any = serve.deployment(
        serve.ingress(lambda: replica_app(asked, limits, shared))(Replica),
        name="ensemble",
        num_replicas=asked.replicas,
        max_ongoing_requests=_MOST_AT_ONCE,
        ray_actor_options={"num_cpus": asked.cpus, "num_gpus": asked.gpus},
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=limits.request_s + 5,
    )
    return deployment.bind()


def replica_app(asked: Options, limits: Limits, measures: Path) -> Any:
    """The application of one replica, made where it runs: the token may be in that node's
    environment alone.
    """
    from raysere.serving.app import create_app

    logging.getLogger("raysere").setLevel(logging.INFO)
    _keep_calls_of_deployments_on_loopback()
    return create_app(
        Path(asked.ensemble),
        limits,
        measures=measures,
        token_sha256=asked.token_sha256 or token_hash(_token_of_environment()),
        device="cuda" if asked.gpus else "cpu",
        threads=asked.threads or max(1, int(asked.cpus)),
        apart=True,
        replicas=asked.replicas,
        loopback=asked.loopback,
    )


def _keep_calls_of_deployments_on_loopback() -> None:
    """Bind the gRPC server that Serve opens in every replica to loopback: by itself it listens on
    all addresses, and on a cluster without tokens it unpickles what anybody sends. It is for calls
    from other deployments, which raysere has none of; its port is opened later.
    """
    from ray.serve._private import constants, replica

    if getattr(constants, "RAY_SERVE_USE_GRPC_BY_DEFAULT", False) or getattr(constants, "RAY_SERVE_PROXY_USE_GRPC", False):
        return  # the owner of the cluster wants requests to come that way
    bind = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None:  # another version of Ray
        logging.getLogger("raysere").warning("a port of this replica for other deployments may listen on all addresses: block it")
        return
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))


def token_hash(token: str | None) -> str | None:
    return hashlib.sha256(token.encode()).hexdigest() if token else None


def read_token(file: Path | None, host: str) -> str | None:
    """The bearer token from ``file`` or RAYSERE_TOKEN.

    Raises ConfigError where there is none and ``host`` is not loopback, and for one that can be
    guessed or that no header can carry.
    """
    if file is not None:
        with file.open("rb") as opened:
            raw = opened.read(_TOKEN_LONGEST + 1)
        token = _checked_token(raw.decode("utf-8", "replace").strip(), file) if raw.strip() else None
    else:
        token = _token_of_environment()
    if file is not None and not token:
        raise ConfigError("The token file is empty", where=file)
    if not token and not on_loopback(host):
        raise ConfigError(
            f"Without a token the server answers this machine alone, not {host}",
            where="--host",
            remedy=f"Put a token into a file (`openssl rand -hex 32 > token`) and give --token-file, or set {TOKEN_VARIABLE}.",
        )
    return token or None


def _token_of_environment() -> str | None:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    return _checked_token(token, TOKEN_VARIABLE) if token else None


def _checked_token(token: str, where: object) -> str:
    new = "Make one with `openssl rand -hex 32`."
    if len(token) < _TOKEN_SHORTEST:
        raise ConfigError(f"The token has {len(token)} characters; fewer than {_TOKEN_SHORTEST} can be guessed", where=where, remedy=new)
    if len(token) > _TOKEN_LONGEST or not re.fullmatch("[!-~]+", token):
        what = f"The token is not one word of at most {_TOKEN_LONGEST} letters, digits and signs of ASCII, which a header can carry"
        raise ConfigError(what, where=where, remedy=new)
    return token


def token_file_open_to(file: Path) -> str | None:
    """What to tell of a token file that others on this machine may read; None where they may not."""
    mode = stat.S_IMODE(file.stat().st_mode)
    if not mode & 0o077:
        return None
    return f"Others on this machine may read or change the token file {file} (mode {mode:04o}): `chmod 600 {file}`."


def free_port(host: str) -> int:
    """A port that nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


@dataclass
class Server:
    """A running server: where it listens, and which ensemble answered first."""

    url: str
    fingerprint: str


@contextlib.contextmanager
def serving(options: Options, *, host: str = "127.0.0.1", port: int = 8000, ready_s: float = 120) -> Iterator[Server]:
    """Serve an ensemble for the length of the block; on leaving it what was accepted is answered
    first.

    Args:
        options: see :class:`Options`.
        host, port: where to listen; port 0 takes a free one.
        ready_s: seconds within which all replicas must be ready.

    Raises:
        MissingFileError, DataError: no sound ensemble there. EnvironmentFault: the port is taken,
            or the replicas do not start.
    """
    options = options.model_copy(update={"ensemble": str(Path(options.ensemble).resolve()), "loopback": on_loopback(host)})
    limits: Limits = read_limits(options.limits)
    fingerprint = load_ensemble(options.ensemble).fingerprint
    port = port or free_port(host)
    _check_port(host, port)
    address = cluster_address()
    open_before = listeners(process_tree(os.getpid()))
    started = start_ray(object_store_gb=0.25, cpus=None if address else _cores(options))
    measures = Path(tempfile.mkdtemp(prefix="raysere-measures-"))
    try:
        from ray import serve
        from ray.serve.config import HTTPOptions

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options=HTTPOptions(host=host, port=port, request_timeout_s=limits.request_s + limits.decode_s + 5))
        _check_listens_there(host, port)
        try:
            serve.run(build(options.model_dump(), measures), name=APP, route_prefix="/", blocking=False)
            _await_ready(ready_s)
            if started and address is None:
                tell_open_ports(open_before, wanted=port)
            yield Server(f"http://{'[' + host + ']' if ':' in host else host}:{port}", fingerprint)
        finally:
            serve.delete(APP, _blocking=True)  # replicas answer what they accepted
            if address and not serve.status().applications:
                serve.shutdown()  # on this machine it ends with Ray
    finally:
        if started:
            stop_ray()
        shutil.rmtree(measures, ignore_errors=True)


def _check_listens_there(host: str, port: int) -> None:
    """Raise EnvironmentFault where Serve ran on the cluster already: it keeps the address of its
    start, which may be open to everybody.
    """
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    found = client.http_config
    if (found.host, found.port) != (host, port):
        raise EnvironmentFault(
            f"Ray Serve runs on this cluster already and listens on {found.host} port {found.port}, not on {host} port {port}",
            where="--host, --port",
            remedy="End it (`serve shutdown`), or give the same address and, where it is not loopback, a token.",
        )


def _cores(options: Options) -> int:
    """Cores that a local Ray is told of: what the replicas ask for, also where the machine has
    fewer (they share then).
    """
    from raysere.base.cluster import available_cores

    return max(available_cores(), -(-int(options.cpus * options.replicas * 1000) // 1000)) + 1


def _await_ready(ready_s: float) -> None:
    from ray import serve

    deadline = time.monotonic() + ready_s
    while True:
        status = serve.status().applications[APP]
        if status.status == "RUNNING":
            return
        message = " ".join(str(status.message).split())
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY") or time.monotonic() > deadline:
            raise EnvironmentFault(f"The replicas do not start: {message[-600:]}", where=f"serve application {APP}, {status.status}")
        time.sleep(0.2)


def _check_port(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
    except OSError as error:
        raise EnvironmentFault(
            f"Nothing can listen on {host} port {port}: {error.strerror or error}",
            where="--host, --port",
            remedy="--port 0 takes a free one.",
        ) from error


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], str]]:
    """Within the block SIGINT and SIGTERM raise nothing: the function that is given waits for one
    and names it.

    To be entered once Ray runs, which puts handlers of its own in their place (its SIGTERM ends the
    process with a trace).
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda got, frame: came.append(got)) for number in (signal.SIGINT, signal.SIGTERM)}

    def wait() -> str:
        while not came:
            time.sleep(0.2)
        return signal.Signals(came[0]).name

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
