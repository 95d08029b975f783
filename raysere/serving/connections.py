"""Bounds on the connections of Ray Serve's HTTP proxies.

uvicorn, which listens in them, waits without limit for the rest of a request's head, and takes
heads of any size and any number of connections.

Each proxy calls :func:`bound_connections` when it starts, which puts a class of ours in the place
of the protocol that uvicorn would take.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from raysere.serving.faults import Fault, error_response

BOUNDED = "raysere.bounded"  # in the scope of every request that came over a bounded connection
HEAD_S = 10.0  # from the first byte of a request, or a new connection, to the end of the request's head
LINGER_S = 5.0  # that a client may go on sending a body which was answered already, or take to read the last answer
STALL_S = 30.0  # that a client may leave the answer unread
CONNECTIONS = 1000  # open at once; beyond, the one that has been waited for longest is closed
PIPELINED = 4  # requests of a connection that wait for the answer to an earlier one; browsers and proxies send none
HEAD_BYTES = 1 << 16
HEAD_FIELDS = 100

_SLOW = Fault(408, "head_too_slow", f"The head of the request did not arrive within {HEAD_S:g} s", remedy="Send it at once.")
_LARGE = Fault(431, "head_too_large", f"The request has more than {HEAD_FIELDS} headers, or more than {HEAD_BYTES >> 10} KiB of them")
_FULL = Fault(503, "too_many_connections", "Too many connections are open", remedy="Try again later.", retry_s=1.0)
_USED = """connection_made connection_lost data_received timeout_keep_alive_handler pause_writing
resume_writing on_message_begin on_header on_headers_complete
on_message_complete on_response_complete send_400_response pipeline transport loop connections cycle scope ws_protocol_class"""


def bound_connections() -> None:
    """Have uvicorn, in this process, bound the connections that it accepts from now on.

    Where this uvicorn is not what is expected, the log says so, and serving goes on without these
    bounds.
    """
    try:
        from uvicorn import Config
        from uvicorn.protocols.http import auto
        from uvicorn.server import ServerState

        if hasattr(auto.AutoHTTPProtocol, "_raysere_waiting"):
            return
        kind = _bounded(auto.AutoHTTPProtocol)
        loop = asyncio.new_event_loop()
        try:
            config = Config(_nothing, lifespan="off", log_config=None)
            made = kind(config=config, server_state=ServerState(), app_state={}, _loop=loop)
        finally:
            loop.close()
        if missing := [name for name in _USED.split() if not hasattr(made, name)]:
            raise TypeError(f"{auto.AutoHTTPProtocol.__name__} has no {', '.join(missing)}")
        auto.AutoHTTPProtocol = kind  # type: ignore[misc]
    except Exception as error:  # whatever another version does: an unbounded server is better than none
        warn(f"{type(error).__name__}: {error}")


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """An application to try the protocol with."""


def warn(reason: str) -> None:
    """Say in the proxy's log that its connections have no bounds."""
    text = "raysere: connections of this proxy are not bounded, half-sent requests stay open (this version of uvicorn or Ray: %s)"
    logging.getLogger("ray.serve").warning(text, reason)


def _answer(fault: Fault) -> bytes:
    response = error_response(fault)
    lines = [f"HTTP/1.1 {fault.status} {fault.code.replace('_', ' ')}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"connection: close", b"", bytes(response.body)])


def _bounded(base: Any) -> Any:
    """``base``, uvicorn's protocol over httptools, with the bounds of this module."""

    class Bounded(base):  # type: ignore[misc]
        _raysere_waiting: dict[Any, None] = {}  # connections that are waited for, the longest first

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.ws_protocol_class = None  # the API has none, and they would be bounded by nothing
            self._reading = ""  # "head" or "body" of a request; "" between two
            self._size = self._fields = 0  # of the head
            self._early = False  # whether more requests came than may wait
            self._timer: asyncio.TimerHandle | None = None
            self._stall: asyncio.TimerHandle | None = None

        # ---- what asyncio calls ------------------------------------------------------------------

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > CONNECTIONS:
                longest = next(iter(self._raysere_waiting), self)
                longest._end(_FULL)
                if longest is self:
                    return
                self._raysere_waiting.pop(longest, None)
            self._raysere_waiting[self] = None
            self._arm(HEAD_S)

        def connection_lost(self, exc: Exception | None) -> None:
            self._arm(None)
            self.resume_writing()
            self._raysere_waiting.pop(self, None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._reading == "" and self._timer is None:
                self._arm(HEAD_S)
            self._size += len(data)  # but for the first piece of a head, which `on_message_begin` takes out again
            super().data_received(data)
            if self._reading == "head" and self._size > HEAD_BYTES:
                self._end(_LARGE)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stall is None:
                self._stall = self.loop.call_later(STALL_S, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stall is not None:
                self._stall.cancel()
                self._stall = None

        # ---- what httptools calls ----------------------------------------------------------------

        def on_message_begin(self) -> None:
            self._reading, self._size, self._fields = "head", 0, 0
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            self._fields += 1
            if self._fields > HEAD_FIELDS:
                raise ValueError("too many headers")  # uvicorn then calls `send_400_response`
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if len(self.pipeline) >= PIPELINED:
                self._early = True
                raise ValueError("too many requests before the first was answered")  # uvicorn keeps as many as come
            if sum(len(name) + len(value) for name, value in self.scope["headers"]) > HEAD_BYTES:
                self._fields = HEAD_FIELDS + 1
                raise ValueError("too large")
            self._reading = "body"
            self._arm(None)
            self.scope[BOUNDED] = True
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._reading = ""
            self._raysere_waiting.pop(self, None)
            super().on_message_complete()

        # ---- what uvicorn calls ------------------------------------------------------------------

        def send_400_response(self, msg: str) -> None:
            if self._early:
                self.transport.abort()
            elif self._fields > HEAD_FIELDS:
                self._end(_LARGE)
            else:
                super().send_400_response(msg)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._close()
            elif self._reading == "body":
                self._arm(LINGER_S)
            else:
                self._raysere_waiting[self] = None

        def timeout_keep_alive_handler(self) -> None:
            self._close()

        # ---- ours --------------------------------------------------------------------------------

        def _arm(self, seconds: float | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None if seconds is None else self.loop.call_later(seconds, self._late)

        def _late(self) -> None:
            if self._reading != "body" and self.cycle is not None and not self.cycle.response_complete:
                self._arm(HEAD_S)  # stray bytes after a request that is still worked on
            else:
                self._end(_SLOW)

        def _end(self, fault: Fault) -> None:
            """Close the connection, with an answer where the client may expect one now."""
            if self.transport.is_closing():
                self.transport.abort()  # it had its time
                return
            cycle = self.cycle
            if cycle is None or cycle.response_complete:
                expected = self._reading == "head" or fault is _FULL
            else:
                expected = self._reading == "body" and not cycle.response_started
                cycle.disconnected = True
                cycle.message_event.set()
            if expected:
                self.transport.write(_answer(fault))
            self._close()

        def _close(self) -> None:
            """Close once the answer is sent; what of it nobody reads is given up, for closing alone
            would wait for ever.
            """
            self.transport.close()
            self.loop.call_later(LINGER_S, self.transport.abort)

    Bounded.__name__ = f"Bounded{base.__name__}"
    return Bounded
