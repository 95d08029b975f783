"""Bounds on the connections of a proxy, on uvicorn itself: half-sent requests, heads without end,
answers that nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import uvicorn
from live import started
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from raysere.serving import connections
from raysere.serving.connections import BOUNDED, _bounded, bound_connections
from raysere.serving.deployment import free_port

HEAD_S = 0.5
_IDLE = {"timeout_keep_alive": 2}
_COUNTED: list[str] = []  # requests that reached the application
_BODIES = {"/big": 64 << 20, "/some": 40 << 10}
_ASK = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


async def _app(scope, receive, send):
    assert scope["type"] == "http"
    assert scope[BOUNDED]
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * HEAD_S)
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/count":
        _COUNTED.append(scope["path"])
    body = b"x" * _BODIES.get(scope["path"], 0) or b"answered"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch):
    bounds = {"HEAD_S": HEAD_S, "LINGER_S": HEAD_S, "STALL_S": HEAD_S, "CONNECTIONS": 20}
    for name, value in bounds.items():
        monkeypatch.setattr(connections, name, value)
    port = free_port("127.0.0.1")
    with started(uvicorn.Config(_app, host="127.0.0.1", port=port, http=_bounded(HttpToolsProtocol), log_level="critical", **_IDLE)):
        yield port


@contextmanager
def _opened(port, first=b""):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(first)
        yield connection


def _until_closed(connection):
    """All that comes until the server closes; fails where it does not within ten seconds."""
    parts, end = [], time.monotonic() + 10
    while time.monotonic() < end:
        try:
            part = connection.recv(1 << 16)
        except ConnectionError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise AssertionError("the connection stays open")


@pytest.mark.parametrize("sent", [b"GET /v1", b"POST /read HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_request_that_is_half_sent_is_told_and_closed(port, sent):
    with _opened(port, sent) as connection:
        answer = _until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"head_too_slow"' in answer


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_connection_without_a_request_is_closed(port, sent):
    with _opened(port) as connection:
        connection.settimeout(10)
        threading.Thread(target=_trickle, args=(connection, sent), daemon=True).start()
        assert _until_closed(connection) == b""


@pytest.mark.parametrize(("sent", "answer"), [(b"\r\n", b""), (b"GET /v1", b"HTTP/1.1 408 ")])
def test_a_connection_that_was_answered_and_then_sends_half_a_request_is_closed(port, sent, answer):
    with _opened(port, _ASK % b"") as connection:
        assert connection.recv(1 << 16).endswith(b"answered")
        began = time.monotonic()
        connection.sendall(sent)
        assert _until_closed(connection)[: len(answer) or None] == answer
        assert time.monotonic() - began < 1.9  # not by uvicorn's time-out for idle connections


def _trickle(connection, piece):
    for _ in range(200):
        try:
            connection.sendall(piece)
        except OSError:
            return
        time.sleep(HEAD_S / 10)


def test_stray_bytes_do_not_cut_off_a_slow_answer(port):
    with _opened(port, _ASK % b"slow" + b"\r\n") as connection:
        assert _until_closed(connection).endswith(b"answered")


def test_a_body_that_goes_on_after_its_answer_is_cut_off(port):
    with _opened(port, b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n") as connection:
        threading.Thread(target=_trickle, args=(connection, b"x"), daemon=True).start()
        assert b"answered" in _until_closed(connection)


def test_an_answer_that_nobody_reads_is_given_up(port):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(_ASK % b"big")
        time.sleep(4 * HEAD_S)
        assert len(_until_closed(connection)) < 64 << 20


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"], ids=["kept alive", "closed"])
def test_the_end_of_an_answer_that_nobody_reads_is_given_up(monkeypatch, more):
    """What is left when the answer is complete pauses no writing; closing alone would wait for the
    client for ever.
    """
    monkeypatch.setattr(connections, "LINGER_S", HEAD_S)
    config = uvicorn.Config(_app, lifespan="off", log_level="critical", timeout_keep_alive=1)
    config.load()
    state = ServerState()

    async def ask() -> int:
        made = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: _bounded(HttpToolsProtocol)(config=config, server_state=state, app_state={}), accepted
        )
        client.sendall(b"GET /some HTTP/1.1\r\nHost: a\r\n" + more + b"\r\n")
        await asyncio.sleep(HEAD_S / 2)
        left = made[0].get_write_buffer_size()
        async with asyncio.timeout(10):
            while state.connections:
                await asyncio.sleep(0.05)
        return left

    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        assert 0 < asyncio.run(ask()) < 64 << 10


def test_many_requests_before_the_first_was_answered_end_the_connection(port):
    _COUNTED.clear()
    with _opened(port, _ASK % b"count" * 5000) as connection:
        _until_closed(connection)
    assert len(_COUNTED) <= 1 + connections.PIPELINED


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n",
        b"X-Long: " + b"a" * (100 << 10) + b"\r\n\r\n",
        b"X-Long: " + b"a" * (1 << 20),
        b"".join(b"X-%d: a\r\n" % n for n in range(200_000)),
    ],
    ids=["many", "long", "long and no end", "many and no end"],
)
def test_a_head_that_is_too_large_is_refused(port, head):
    with _opened(port) as connection:
        try:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + head)
            answer = _until_closed(connection)
        except ConnectionError:  # it did not read on
            return
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"answered" not in answer


def test_beyond_the_bound_the_connection_that_is_waited_for_longest_makes_room(port, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 60.0)
    held = []
    try:
        for _ in range(30):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=10))
            held[-1].sendall(b"GET / HTTP")
        with _opened(port, _ASK % b"") as connection:
            assert connection.recv(1 << 16).endswith(b"answered")
        oldest = _until_closed(held[0])
        assert oldest.startswith(b"HTTP/1.1 503 ")
        held[-1].sendall(b"/1.1\r\nHost: a\r\n\r\n")
        assert held[-1].recv(1 << 16).endswith(b"answered")
    finally:
        for connection in held:
            connection.close()


def test_requests_one_after_the_other_and_none_of_them_is_cut_off(port):
    with _opened(port) as connection:
        for _ in range(3):
            time.sleep(HEAD_S / 2)
            connection.sendall(_ASK % b"")
            assert connection.recv(1 << 16).endswith(b"answered")
        time.sleep(2 * HEAD_S)  # uvicorn's own time-out for idle connections is longer
        connection.sendall(b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na")
        time.sleep(2 * HEAD_S)  # the time of a body is the application's to bound
        connection.sendall(b"bc" + _ASK % b"" + _ASK % b"")
        time.sleep(HEAD_S)
        assert connection.recv(1 << 16).count(b"answered") == 3


def test_a_uvicorn_that_is_another_is_said_in_the_log_and_left_as_it_is(monkeypatch, caplog):
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)  # put back afterwards
    for other in (asyncio.Protocol, type("Other", (HttpToolsProtocol,), {"__init__": lambda self, **options: None}), None):
        auto.AutoHTTPProtocol = other
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            bound_connections()
        assert auto.AutoHTTPProtocol is other
        assert "not bounded" in caplog.text
    auto.AutoHTTPProtocol = HttpToolsProtocol
    caplog.clear()
    bound_connections()
    bound_connections()
    assert auto.AutoHTTPProtocol.__mro__[1] is HttpToolsProtocol
    assert caplog.text == ""


def test_a_proxy_that_takes_another_protocol_is_told_once(caplog):
    from raysere.serving.proxy import OnlyRequests

    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    door = OnlyRequests(app)
    steering = [
        (b"X-Request-Timeout-Seconds", b"-1"),
        (b"serve_multiplexed_model_id", b"m"),
        (b"x-request-id", b"\xff"),
        (b"accept", b"*/*"),
    ]
    for bounded in (True, False, False):
        asyncio.run(door({"type": "http", "headers": steering, BOUNDED: bounded}, None, None))
    assert [one["headers"] for one in seen] == [[(b"accept", b"*/*")]] * 3
    assert caplog.text.count("not bounded") == 1
    sent = SimpleNamespace(messages=[])

    async def send(message):
        sent.messages.append(message["type"])

    asyncio.run(door({"type": "websocket", "headers": []}, None, send))
    assert (sent.messages, len(seen)) == (["websocket.close"], 3)
