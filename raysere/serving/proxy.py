"""Code in Ray Serve's HTTP proxies: errors in the form of the API, and refusals when all replicas
are full.

:func:`middlewares` is what RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names
(``raysere/base/cluster.py`` and the image set it); every proxy of the cluster calls it when it
starts.
"""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysere.serving.connections import BOUNDED, bound_connections, warn
from raysere.serving.faults import Fault, error_response

FULL = "raysere-full"  # in a replica's 429, `id replicas seconds`: this replica is full for `seconds`; no client sees it
# In the scope of a request to a replica, where no client can write: how many the proxy refused on
# that route since the last, to be counted.
REFUSED = "raysere.refused"
# Headers by which a client would steer Serve: its time-out, what it does where a client hangs up,
# and the choice of replica.
_STEER = ("x-request-timeout-seconds", "x-request-disconnect-disabled", "serve-multiplexed-model-id", "x-session-id")

_SLOWED_S = 0.1  # of a refusal in the proxy: clients that ignore Retry-After take no processor from the answers
_SERVES_OWN = "/-/"  # probes of Serve itself (/-/healthz, /-/routes), which Kubernetes asks
_NOT_READY = Fault(503, "not_ready", "The server is not ready, or is going down", remedy="Try again later.", retry_s=1.0)
_FAULTS = {
    404: _NOT_READY,  # no route: the application is not there yet, or not any more; its own 404 is JSON
    408: Fault(504, "timeout", "No answer in time", remedy="Send shorter audio, or try again later.", retry_s=1.0),
    503: _NOT_READY,
}
_LOST = Fault(500, "internal", "The replica that had the request has died", remedy="Try again later.", retry_s=1.0)


class ErrorsAsJson:
    """ASGI middleware that replaces the proxy's own errors, plain text with traces of Ray's actors;
    those of a replica pass as they are.

    Serve answers 404 for an application that is deleted, while its replicas still answer what they
    accepted.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        replaced = False

        async def passed(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and _of_the_proxy(message):
                replaced = True
                await error_response(_FAULTS.get(message["status"], _LOST))(scope, receive, send)
            elif not replaced:
                await send(message)

        await self._app(scope, receive, passed)


def _of_the_proxy(start: Message) -> bool:
    """Replicas answer every error as JSON, the proxy as text."""
    return start["status"] >= 400 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")


class Door:
    """What a proxy knows of one route: which replicas are full, and until when."""

    def __init__(self) -> None:
        self.refused = 0  # that no replica was told of yet
        self.retry_s = 1.0
        self._replicas = 0
        self._until: dict[str, float] = {}

    @property
    def closed(self) -> bool:
        """Whether every replica is full now."""
        now = time.monotonic()
        return 0 < self._replicas <= sum(until > now for until in self._until.values())

    def told(self, full: str, retry_s: float) -> None:
        """Take account of what a replica said in :data:`FULL`."""
        replica, replicas, seconds = full.split()
        now = time.monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        self._until[replica] = now + float(seconds)
        self._replicas, self.retry_s = int(replicas), retry_s


class RefusalsAtTheDoor:
    """ASGI middleware that refuses what every replica would refuse: a refusal there costs as much
    as a small answer does.

    It holds until the first replica expects to have room again, half a second at the most.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._doors: dict[str, Door] = {}  # by route, of which a replica has been full

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        door = self._doors.get(path)
        if door is not None and door.closed:
            door.refused += 1
            await asyncio.sleep(_SLOWED_S)
            message, remedy = "Every replica is full", "Try again after the seconds of Retry-After, or start more replicas."
            await error_response(Fault(429, "overloaded", message, remedy=remedy, retry_s=door.retry_s))(scope, receive, send)
            return
        if door is not None and door.refused:
            scope, door.refused = {**scope, REFUSED: door.refused}, 0

        async def passed(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 429:
                found = MutableHeaders(raw=list(message["headers"]))
                if FULL in found:
                    self._doors.setdefault(path, Door()).told(found[FULL], float(found["retry-after"]))
                    del found[FULL]
                    message = {**message, "headers": found.raw}
            await send(message)

        await self._app(scope, receive, passed)


class OnlyRequests:
    """ASGI middleware that lets HTTP requests through, without the headers by which a client would
    steer Serve, and no WebSockets.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._warned = app, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        if scope["type"] == "http":
            if not scope.pop(BOUNDED, False) and not self._warned:
                self._warned = True
                warn("it does not take the protocol that it is given")
            scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if not _steers(name, value)]}
        await self._app(scope, receive, send)


def _steers(name: bytes, value: bytes) -> bool:
    known = name.decode("latin-1").lower().replace("_", "-")
    return known in _STEER or (known == "x-request-id" and not (value.isascii() and len(value) <= 128))  # which goes into Serve's logs


def middlewares() -> list[Middleware]:
    """For every HTTP proxy of Serve, which calls this when it starts; the last is the outermost."""
    bound_connections()
    return [Middleware(RefusalsAtTheDoor), Middleware(ErrorsAsJson), Middleware(OnlyRequests)]
