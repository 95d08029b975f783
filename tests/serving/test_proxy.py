"""What Serve's proxies answer themselves, in the form of the API."""

from __future__ import annotations

import asyncio

import pytest
from ray.serve._private.http_util import convert_object_to_asgi_messages
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from raysere import cluster
from raysere.serving.proxy import middlewares


def _behind(messages=None, response=None):
    """A client of a proxy with the middleware, where ``messages`` are Serve's own answer and ``response`` is a replica's."""

    async def proxy(scope, receive, send):
        if response is not None:
            await response(scope, receive, send)
        for message in messages or ():
            await send(message)

    (only,) = middlewares()
    return TestClient(only.cls(proxy, *only.args, **only.kwargs))


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

    async def proxy(scope, receive, send):
        seen.append(scope["type"])

    (only,) = middlewares()
    asyncio.run(only.cls(proxy)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


def test_the_name_that_ray_is_told_is_the_one_that_there_is():
    from ray.serve._private.http_util import validate_http_proxy_callback_return
    from ray.serve._private.utils import call_function_from_import_path

    name = cluster._LOCAL_SWITCHES["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert validate_http_proxy_callback_return(call_function_from_import_path(name))
