"""Whatever is posted, the server goes on answering others, and its memory is bounded."""

from __future__ import annotations

import base64
import contextlib
import json
import resource
import socket
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live import listening
from starlette.testclient import TestClient

from raysere.serving.app import create_app
from raysere.serving.faults import Fault
from raysere.serving.intake import Held, _Outline
from raysere.serving.limits import Limits

_FORM = "multipart/form-data; boundary=b"


def _part(name, value, extra=b""):
    return b'--b\r\nContent-Disposition: form-data; name="' + name + b'"' + extra + b"\r\n\r\n" + value + b"\r\n"


_FLOODS = {
    "wrong items": ("/v1/predict/batch", lambda: b'{"items":[' + b"3," * 1_000_000 + b"3]}", "application/json", 413),
    "texts": ("/v1/predict/batch", lambda: b'{"items":[' + b'"",' * 3_000_000 + b'""]}', "application/json", 413),
    "unknown fields": ("/v1/predict", lambda: b"{" + b",".join(b'"%d":1' % n for n in range(500_000)) + b"}", "application/json", 413),
    "deep": ("/v1/predict", lambda: b'{"text":' * 1_000_000, "application/json", 400),
    "digits": ("/v1/predict", lambda: b"[" + b",".join([b"9" * 4000] * 3000) + b"]", "application/json", 413),
    "escapes": ("/v1/predict", lambda: b'{"text":"' + b'\\"' * 12_000_000 + b'"}', "application/json", 413),
    "base64": ("/v1/predict", lambda: b'{"audio":"' + base64.b64encode(bytes(18_000_000)) + b'"}', "application/json", 415),
    "parts": ("/v1/predict/batch", lambda: _part(b"x", b"1") * 400_000 + b"--b--\r\n", _FORM, 413),
    "files": ("/v1/predict/batch", lambda: _part(b"file", b"1", b'; filename="a"') * 300_000 + b"--b--\r\n", _FORM, 413),
    "headers of a part": ("/v1/predict", lambda: b"--b\r\n" + b"a: b\r\n" * 2_000_000, _FORM, 400),
    "encoding that takes long": (
        "/v1/predict",
        lambda: _part(b"text", ("ä" * 300_000).encode("punycode")) + b"--b--\r\n",
        _FORM + "; charset=punycode",
        413,
    ),
}


def _posted(url, body, kind):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:  # refused before all was sent
        return None


def _resident():
    """Bytes of memory that this process, and the server within, has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture(scope="module")
def served(real_run, tmp_path_factory):
    app = create_app(real_run["folder"] / "ensemble", Limits(), measures=tmp_path_factory.mktemp("floods") / "measures", threads=1)
    with listening(app) as url:
        yield url.rstrip("/")


@pytest.mark.parametrize("name", _FLOODS)
def test_health_is_answered_within_a_second_whatever_is_posted(served, name):
    route, make, kind, status = _FLOODS[name]
    body, statuses = make(), []
    before, most, slowest = _resident(), 0, 0.0
    posts = [threading.Thread(target=lambda: statuses.append(_posted(served + route, body, kind))) for _ in range(2)]
    for post in posts:
        post.start()
    while any(post.is_alive() for post in posts):
        began = time.monotonic()
        with urllib.request.urlopen(served + "/healthz", timeout=60) as answer:
            assert answer.status == 200
        slowest = max(slowest, time.monotonic() - began)
        most = max(most, _resident())
        time.sleep(0.01)
    assert set(statuses) <= {status, None}
    assert slowest < 1
    assert most - before < 500 << 20


_VALUES = st.recursive(
    st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(_VALUES, st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_json_in_pieces_is_counted_as_a_whole(value, sizes, ascii_alone):
    body = json.dumps({"items": [value]}, ensure_ascii=ascii_alone).encode()
    whole, pieces = _Outline(Limits()), _Outline(Limits())
    try:
        whole.add(body)
    except Fault:  # too many levels
        return
    at = 0
    while at < len(body):
        size = sizes[at % len(sizes)]
        pieces.add(body[at : at + size])
        at += size
    assert whole._depth == pieces._depth == 0
    assert (whole._in_text, pieces._in_text) == (False, False)
    structure = sum(character in '[]{}:,"' for character in _without_texts(value))
    assert whole._count == pieces._count >= structure


def _without_texts(value):
    if isinstance(value, str):
        return '""'
    if isinstance(value, list):
        return "[" + ",".join(map(_without_texts, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join('"":' + _without_texts(one) for one in value.values()) + "}"
    return ""


def test_as_many_items_as_are_taken_fit_with_all_their_fields_however_they_are_laid_out(client):
    item = {"audio": None, "text": 'a "quoted" \\ text', "language": "de", "corpus": None, "speaker": None}
    for indent in (None, 8):
        body = json.dumps({"items": [item] * 32, "votes": False}, indent=indent)
        answer = client.post("/v1/predict/batch", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, len(answer.json()["results"])) == (200, 32)
    answer = client.post("/v1/predict/batch", json={"items": [3] * 33})
    assert answer.json()["error"]["code"] == "too_many_items"  # they are counted before they are looked at


def test_json_in_another_encoding_is_not_guessed(client):
    body = '{"text": "lost again"}'
    for encoding, status in (("utf-8", 200), ("utf-8-sig", 200), ("utf-16", 400), ("utf-32-le", 400)):
        answer = client.post("/v1/predict", content=body.encode(encoding), headers={"content-type": "application/json"})
        assert answer.status_code == status, encoding


def test_base64_of_a_long_file_is_that_file_and_padding_stands_at_its_end(client):
    from raysere.serving.intake import _decoded

    data = bytes(range(256)) * 12_001
    assert _decoded(base64.b64encode(data).decode()) == data
    text = base64.b64encode(b"a" * 786_430).decode()  # its padding ends a piece
    for wrong in (text + "AAAA", "A", "AA=A", "ä"):
        with pytest.raises(ValueError):
            _decoded(wrong)


def test_a_body_that_trickles_is_told_and_forgotten(real_run, tmp_path):
    app = create_app(real_run["folder"] / "ensemble", Limits(request_s=1), measures=tmp_path / "measures", threads=1)
    with listening(app) as url:
        for kind, first in (("application/json", b" "), (_FORM, b'--b\r\nContent-Disposition: form-data; name="text"\r\n\r\n')):
            head = f"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n"
            with socket.create_connection(("127.0.0.1", urlsplit(url).port), timeout=0.1) as connection:
                connection.sendall(head.encode() + first)
                answer, began = b"", time.monotonic()
                while b"body_too_slow" not in answer and time.monotonic() - began < 10:
                    connection.sendall(b" ")
                    with contextlib.suppress(TimeoutError):
                        answer += connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 408 ")


def test_bodies_of_all_requests_together_are_bounded():
    held = Held(Limits(body_mb=1))
    with held.request() as first:
        first(16 << 20)
        with held.request() as second:
            with pytest.raises(Fault) as caught:
                second(1)
        assert (caught.value.status, caught.value.code) == (429, "overloaded")
    with held.request() as third:
        third(16 << 20)  # the first is answered


def test_nothing_of_an_upload_goes_to_the_disk(client, clips, monkeypatch):
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", None)
    large = clips[0].read_bytes() + bytes(4 << 20)
    assert client.post("/v1/predict", files={"file": ("a", large)}).status_code in (200, 422)


# --- pages of other sites -------------------------------------------------------------------------

_OWN = {"host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    ("method", "headers", "code"),
    [
        ("GET", _OWN, None),
        ("GET", {"host": "localhost"}, None),
        ("GET", {"host": "[::1]:8000"}, None),
        ("GET", {"host": "evil.example:8000"}, "host"),  # DNS rebinding
        ("GET", {"host": "127.0.0.1.evil.example"}, "host"),
        ("GET", {"host": "localhost@evil.example"}, "host"),
        ("GET", {"host": "0.0.0.0:8000"}, "host"),
        ("GET", {"host": "127.0.0.1:8000/healthz?"}, "host"),
        ("POST", {"host": "evil.example", "origin": "http://evil.example"}, "host"),
        ("GET", {**_OWN, "origin": "http://evil.example"}, None),  # what it reads no page of another site is given
        ("GET", {**_OWN, "sec-fetch-site": "cross-site"}, None),  # a link to the page
        ("POST", _OWN, None),  # a program
        ("POST", {**_OWN, "origin": "http://127.0.0.1:8000"}, None),
        ("POST", {**_OWN, "origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}, None),
        ("POST", {**_OWN, "origin": "https://models.example", "sec-fetch-site": "same-origin"}, None),  # behind a proxy with TLS
        ("POST", {**_OWN, "origin": "http://127.0.0.1:9000"}, "origin"),
        ("POST", {**_OWN, "origin": "http://evil.example"}, "origin"),
        ("POST", {**_OWN, "origin": "null"}, "origin"),
        ("POST", {**_OWN, "sec-fetch-site": "cross-site"}, "origin"),
        ("POST", {**_OWN, "sec-fetch-site": "same-site", "origin": "http://127.0.0.1:9000"}, "origin"),
        ("DELETE", {**_OWN, "origin": "http://evil.example"}, "origin"),
    ],
)
def test_pages_of_other_sites_are_refused_before_anything_is_read(real_run, tmp_path, method, headers, code):
    app = create_app(real_run["folder"] / "ensemble", Limits(), measures=tmp_path / "measures", loopback=True)
    client = TestClient(app)  # never opened: whatever is not refused is told that it is not ready
    for path in ("/v1/predict", "/metrics", "/v1/model", *(("/docs", "/") if code else ())):  # the pages are shown at once
        answer = client.request(method, path, headers=headers, content=b"{")
        found = answer.json()["error"]["code"]
        assert (answer.status_code, found) == ((403, code) if code else (503, "not_ready")), path


def test_beyond_loopback_the_server_goes_by_any_name(real_run, tmp_path):
    client = TestClient(create_app(real_run["folder"] / "ensemble", Limits(), measures=tmp_path / "measures"))
    assert client.get("/v1/model", headers={"host": "models.example"}).status_code == 503
    assert client.post("/v1/predict", headers={"host": "models.example", "origin": "https://models.example"}).status_code == 503
    assert client.post("/v1/predict", headers={"host": "models.example", "origin": "https://evil.example"}).status_code == 403


def test_a_host_cannot_make_one_route_look_like_another(real_run, tmp_path):
    client = TestClient(create_app(real_run["folder"] / "ensemble", Limits(), measures=tmp_path / "measures", token_sha256="0" * 64))
    assert client.get("/v1/model", headers={"host": "a/healthz?"}).status_code == 401
