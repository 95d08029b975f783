"""Whatever comes in: requests made from the OpenAPI document, and audio files with broken headers and bodies."""

from __future__ import annotations

import io
import random

import hypothesis
import numpy as np
import pytest
import schemathesis
import soundfile
from live import listening, running

from raysere.serving.app import create_app
from raysere.serving.limits import Limits

FORMATS = {"wav": ("WAV", "PCM_16"), "float": ("WAV", "FLOAT"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", None)}


def seeds():
    """A short clip in each format."""
    time = np.arange(8000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 180 * time)
    found = {}
    for name, (form, subtype) in FORMATS.items():
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 16000, format=form, subtype=subtype)
        found[name] = buffer.getvalue()
    return found


def mutated(data, draw):
    """A file with some of its bytes changed, cut out, doubled, or put in front; headers are hit as often as bodies."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        where = draw.randrange(min(64, len(found))) if draw.random() < 0.5 else draw.randrange(len(found))
        kind = draw.randrange(6)
        if kind == 0:
            found[where] = draw.randrange(256)
        elif kind == 1:
            found[where] ^= 1 << draw.randrange(8)
        elif kind == 2:
            found[where : where + 4] = draw.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00"))
        elif kind == 3:
            del found[where : where + draw.randrange(1, 64)]
        elif kind == 4:
            found[where:where] = found[where : where + draw.randrange(1, 64)]
        else:
            del found[max(1, where) :]
        if not found:
            found = bytearray(b"\x00")
    return bytes(found)


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
