"""What Serve's proxies answer themselves, in the form of the API."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from raysere.base import cluster
from raysere.serving import proxy
from raysere.serving.proxy import FULL, REFUSED, middlewares


def _behind(messages=None, response=None):
    """A client of a proxy with the middleware, where ``messages`` are Serve's own answer and
    ``response`` is a replica's.
    """

    async def serve(scope, receive, send):
        if response is not None:
            await response(scope, receive, send)
        for message in messages or ():
            await send(message)

    return TestClient(_stacked(serve))


def _stacked(app):
    for one in reversed(middlewares()):
        app = one.cls(app, *one.args, **one.kwargs)
    return app


@pytest.mark.parametrize(
    ("own", "status", "code"), [(404, 503, "not_ready"), (503, 503, "not_ready"), (408, 504, "timeout"), (500, 500, "internal")]
)
def test_serve_s_own_errors_have_the_form_of_the_api(own, status, code):
    client = _behind(convert_object_to_asgi_messages("ray.exceptions.ActorDiedError: /place/of/somebody/secret.py", status_code=own))
    answer = client.post("/v1/predict", json={"text": "a"})
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["status"]) == (status, code, status)
    assert int(answer.headers["retry-after"]) >= 1
    assert "secret" not in answer.text
    assert client.get("/-/healthz").status_code == own  # Kubernetes asks Serve itself


def test_answers_of_a_replica_pass_as_they_are():
    for status in (200, 404, 429, 503):
        answer = _behind(response=JSONResponse({"error": {"code": "of_the_replica"}}, status, {"Retry-After": "7"})).get("/v1/model")
        assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (status, "of_the_replica", "7")
    metrics = _behind(convert_object_to_asgi_messages("raysere_swaps 0", status_code=200)).get("/metrics")
    assert (metrics.status_code, metrics.text) == (200, "raysere_swaps 0")


def test_what_is_no_request_passes_too():
    seen = []

    async def serve(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(_stacked(serve)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


class _Replicas:
    """An application that refuses as ``says`` tells, one request after the other, and then answers;
    ``asked`` are those that came.
    """

    def __init__(self, *says):
        self.says, self.asked = list(says), []

    async def __call__(self, scope, receive, send):
        self.asked.append((scope["method"], scope["path"], scope.get(REFUSED)))
        says = self.says.pop(0) if self.says else None
        response = JSONResponse({}) if says is None else JSONResponse({}, 429, {"Retry-After": "3", **({FULL: says} if says else {})})
        await response(scope, receive, send)


@pytest.fixture
def clock(monkeypatch):
    now, slept = [50.0], []
    monkeypatch.setattr(proxy, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(proxy, "asyncio", SimpleNamespace(sleep=sleep))
    now.append(slept)
    return now


def _post(client, path="/v1/predict", **headers):
    answer = client.post(path, json={}, headers=headers)
    assert FULL not in answer.headers
    return answer.status_code


def test_a_full_replica_is_asked_again_when_it_has_room(clock):
    app = _Replicas("a 1 0.5")
    client = TestClient(_stacked(app))
    assert _post(client) == 429
    clock[0] += 0.49
    refused = client.post("/v1/predict", json={})
    assert (refused.status_code, refused.headers["retry-after"], refused.json()["error"]["code"]) == (429, "3", "overloaded")
    assert _post(client) == 429
    assert len(app.asked) == 1
    assert clock[1] == [0.1, 0.1]  # who comes back at once is slowed
    assert client.get("/v1/predict").status_code == _post(client, "/v1/other") == 200  # other routes are not meant
    clock[0] += 0.02
    assert [_post(client), _post(client, **{"raysere-refused": "999"})] == [200, 200]
    routes = [("POST", "/v1/predict", None), ("GET", "/v1/predict", None), ("POST", "/v1/other", None)]
    assert app.asked == [*routes, ("POST", "/v1/predict", 2), ("POST", "/v1/predict", None)]


def test_as_long_as_one_of_the_replicas_may_have_room_it_is_asked(clock):
    app = _Replicas("a 2 0.5", "a 2 0.5", "", "b 2 0.1")
    client = TestClient(_stacked(app))
    assert [_post(client) for _ in range(4)] == [429] * 4
    assert len(app.asked) == 4
    assert _post(client) == 429
    assert len(app.asked) == 4  # both are full
    clock[0] += 0.2
    assert _post(client) == 200


def test_the_name_that_ray_is_told_is_the_one_that_there_is():
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    name = cluster._LOCAL_SWITCHES["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert validate_http_proxy_callback_return(call_function_from_import_path(name))
