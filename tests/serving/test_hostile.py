"""Whatever comes in: requests made from the OpenAPI document, and audio files with broken headers
and bodies.
"""

from __future__ import annotations

import random

import hypothesis
import pytest
import schemathesis
from live import listening, running

from raysere.serving.app import create_app
from raysere.serving.limits import Limits
from raysere.testing.uploads import mutated, seeds, wrong_body


def test_broken_audio_is_refused_or_answered_and_never_a_fault_of_the_server(real_run, tmp_path):
    draw = random.Random(3)
    originals = list(seeds().values())
    statuses = {}
    with running(real_run["folder"] / "ensemble", tmp_path) as client:
        for _ in range(300):
            response = client.post("/v1/predict", files={"file": ("a", mutated(draw.choice(originals), draw))})
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
            assert "model" in response.json() or response.json()["error"]["status"] == response.status_code
        assert client.post("/v1/predict", files={"file": ("a", originals[0])}).status_code == 200
    assert set(statuses) <= {200, 413, 415, 422}
    assert statuses[200] > 10
    assert statuses[415] + statuses[422] > 100


_FEW = hypothesis.settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
)


@pytest.mark.timeout(300)
def test_no_request_that_the_document_allows_or_forbids_is_a_fault_of_the_server(real_run, tmp_path):
    app = create_app(real_run["folder"] / "ensemble", Limits(), measures=tmp_path / "measures", threads=1)
    with listening(app) as url:
        schema = schemathesis.openapi.from_url(url + "openapi.json")
        checks = [
            schemathesis.checks.not_a_server_error,
            schemathesis.specs.openapi.checks.status_code_conformance,
            schemathesis.specs.openapi.checks.content_type_conformance,
            schemathesis.specs.openapi.checks.response_schema_conformance,
        ]
        called = []
        for operation in schema.get_all_operations():
            asked = operation.ok()

            @_FEW
            @hypothesis.given(case=asked.as_strategy() | asked.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
            def call(case):
                case.call_and_validate(checks=checks)

            call()
            called.append(asked.label)
    assert {"POST /v1/predict", "POST /v1/predict/batch", "GET /v1/model"} <= set(called)


def test_wrong_json_is_refused_and_never_a_fault_of_the_server(real_run, tmp_path):
    draw = random.Random(5)
    half = (b'{"text": "\\ud800"}', b'{"\\ud800": 1}', b'{"text": "a", "language": "\\ud800"}', b'{"text": "a", "speaker": "\\ud800"}')
    bodies = [*half, *(b'{"items": [' + one + b"]}" for one in half), *(wrong_body(draw) for _ in range(200))]
    statuses = {}
    with running(real_run["folder"] / "ensemble", tmp_path) as client:
        for body in bodies:
            for route in ("/v1/predict", "/v1/predict/batch"):
                response = client.post(route, content=body, headers={"content-type": "application/json"})
                assert response.status_code < 500, body[:1000]
                statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
    assert set(statuses) <= {200, 400, 413, 415, 422}
    assert min(statuses[code] for code in (200, 400, 422)) > 10
