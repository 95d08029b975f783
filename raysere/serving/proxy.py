"""Serve's HTTP proxies answer in the API's form where no replica does: while it starts, when it ends, when a replica is gone.

:func:`middlewares` is what RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names (``raysere/cluster.py`` and the image set it); every proxy of
the cluster calls it when it starts.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysere.serving.faults import Fault, error_response

_SERVES_OWN = "/-/"  # probes of Serve itself (/-/healthz, /-/routes), which Kubernetes asks
_NOT_READY = Fault(503, "not_ready", "The server is not ready, or is going down", remedy="Try again later.", retry_s=1.0)
_FAULTS = {
    404: _NOT_READY,  # no route: the application is not there yet, or not any more; its own 404 is JSON
    408: Fault(504, "timeout", "No answer in time", remedy="Send shorter audio, or try again later.", retry_s=1.0),
    503: _NOT_READY,
}
_LOST = Fault(500, "internal", "The replica that had the request is gone", remedy="Try again later.", retry_s=1.0)


class ErrorsAsJson:
    """ASGI middleware that replaces the proxy's own errors, plain text with traces of Ray's actors; those of a replica pass as they are.

    Serve answers 404 for an application that is deleted, while its replicas still work off what they accepted.
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


def middlewares() -> list[Middleware]:
    """For every HTTP proxy of Serve."""
    return [Middleware(ErrorsAsJson)]
