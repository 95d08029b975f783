"""The HTTP API on a real ensemble: the numbers of ``Ensemble.predict``, and a status code for
everything that is wrong.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
import soundfile
from live import running

from raysere.ensemble.saved.ensemble import Ensemble


def _post(client, data, **fields):
    return client.post("/v1/predict", files={"file": ("../../etc/passwd\x00.wav", data)}, data=fields)


def _wav(samples, rate=16000, form="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def _tone(seconds=0.6, rate=16000, channels=1):
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(int(seconds * rate)) / rate)
    return tone if channels == 1 else np.stack([tone] * channels, 1)


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", None)])
def test_the_server_gives_the_numbers_of_the_library(client, real_run, tmp_path, form, subtype):
    data = _wav(_tone(0.9, 44100), 44100, form, subtype)
    path = tmp_path / "clip"
    path.write_bytes(data)
    row = Ensemble.load(real_run["folder"] / "ensemble").predict([path], ["what a morning"]).to_dicts()[0]
    answer = _post(client, data, text="what a morning").json()
    assert answer["predicted"] == row["predicted"]
    assert answer["confidence"] == max(answer["probabilities"].values()) == pytest.approx(row["confidence"], abs=1e-9)
    assert answer["probabilities"] == pytest.approx({"high": row["p.high"], "low": row["p.low"]}, abs=1e-9)
    assert answer["members"] == 3
    assert answer["audio"] == {"seconds": pytest.approx(0.9, abs=0.1), "sampling_rate": 44100, "channels": 1}
    assert sum(vote["share"] for vote in answer["votes"]) == pytest.approx(1)


def test_json_form_text_and_both(client, clips):
    data = clips[0].read_bytes()
    form = _post(client, data, text="grey and lost").json()
    both = client.post("/v1/predict", json={"audio": base64.b64encode(data).decode(), "text": "grey and lost"}).json()
    assert both == form
    text = client.post("/v1/predict", json={"text": "grey and lost", "votes": False}).json()
    assert text["members"] == 1
    assert text["audio"] is None
    assert text["votes"] is None
    assert "no audio" in text["note"]
    sound = _post(client, data).json()
    assert sound["members"] == 2


def test_a_trace_follows_the_clip(real_run, tmp_path, clips):
    high, low = (soundfile.read(clip)[0] for clip in clips[:2])
    wave = np.concatenate([high] * 4 + [low] * 4)
    with running(real_run["folder"] / "ensemble", tmp_path, segment_s=0.6, segments=9) as client:
        answer = _post(client, _wav(wave), trace="true").json()
    parts = answer["segments"]
    assert len(parts) == 9  # the step is longer than half a segment, as there would be 15
    assert parts[0]["start_s"] == 0
    assert parts[-1]["end_s"] == pytest.approx(4.8)
    assert all(part["end_s"] - part["start_s"] == pytest.approx(0.6) for part in parts)
    assert [parts[0]["predicted"], parts[-1]["predicted"]] == ["high", "low"]


def test_a_batch_answers_each_item_by_itself(client, clips):
    data = [clips[0].read_bytes(), b"not audio at all", clips[1].read_bytes()]
    files = [("file", ("a", one)) for one in data]
    answer = client.post("/v1/predict/batch", files=files).json()
    assert [("error" in one) for one in answer["results"]] == [False, True, False]
    assert answer["results"][1]["error"]["code"] == "not_audio"
    single = _post(client, data[2]).json()
    assert answer["results"][2]["probabilities"] == pytest.approx(single["probabilities"], abs=1e-6)
    items = [{"audio": base64.b64encode(data[0]).decode()}, {"text": "lost again"}, {"audio": "%%%"}, {}]
    mixed = client.post("/v1/predict/batch", json={"items": items, "votes": True}).json()["results"]
    assert [one.get("error", {}).get("code") for one in mixed] == [None, None, "not_base64", "nothing_to_predict"]
    assert mixed[0]["probabilities"] == pytest.approx(answer["results"][0]["probabilities"], abs=1e-6)
    texts = client.post("/v1/predict/batch", data={"text": ["lost again", "what a morning"]}, files=[("votes", (None, "true"))]).json()
    assert len(texts["results"]) == 2
    assert texts["results"][0]["probabilities"] == pytest.approx(mixed[1]["probabilities"], abs=1e-6)


def _nan():
    tone = _tone().astype(np.float32)
    tone[100] = np.nan
    return _wav(tone, subtype="FLOAT")


_BOMB = 7200 * 8000


@pytest.mark.parametrize(
    ("make", "status", "code"),
    [
        (lambda: b"", 422, "audio_empty"),
        (lambda: b"RIFF", 415, "not_audio"),
        (lambda: _wav(_tone())[:40], 422, "audio_truncated"),
        (lambda: b"<html>" * 99, 415, "not_audio"),
        (lambda: b"PK\x03\x04" + bytes(999), 415, "not_audio"),
        (lambda: _wav(_tone())[:9000], 422, "audio_truncated"),
        (lambda: _wav(_tone(), form="FLAC")[:2000], 422, "audio_truncated"),
        (lambda: _wav(np.zeros(16000)), 422, "audio_silent"),
        (_nan, 422, "audio_not_finite"),
        (lambda: _wav(_tone(0.01)), 422, "unanswerable"),
        (lambda: _wav(_tone(channels=9)), 422, "channels"),
        (lambda: _wav(_tone(rate=2000), 2000), 422, "sampling_rate"),
        (lambda: _wav(np.zeros(_BOMB, np.int16), 8000, "FLAC"), 413, "audio_too_long"),  # two hours in a few kilobytes
        (lambda: _wav(_tone(100, 192000, 3), 192000), 413, "body_too_large"),
    ],
)
def test_audio_that_cannot_be_used_has_its_own_status(client, make, status, code):
    response = _post(client, make())
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.json()["error"]["status"] == status


@pytest.mark.parametrize(
    ("request_of", "status", "code"),
    [
        ({"json": {}}, 422, "nothing_to_predict"),
        ({"json": {"text": " "}}, 422, "nothing_to_predict"),
        ({"json": {"text": 3}}, 422, "wrong_type"),
        ({"json": {"text": "a", "trace": "yes"}}, 422, "wrong_type"),
        ({"json": {"text": "a", "file": "x"}}, 422, "wrong_type"),
        ({"json": [1]}, 422, "wrong_type"),
        ({"json": {"audio": "data:audio/wav;base64,AAAA"}}, 422, "not_base64"),
        ({"json": {"text": "a" * 10_001}}, 413, "text_too_long"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 400, "malformed"),
        ({"content": b"\xff\xfe", "headers": {"content-type": "application/json; charset=none"}}, 400, "malformed"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "content_type"),
        ({"content": b"x"}, 415, "content_type"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "malformed"),
        ({"content": b"--a\r\nnonsense", "headers": {"content-type": "multipart/form-data; boundary=a"}}, 422, "nothing_to_predict"),
        ({"data": {"file": "text"}, "files": {"text": (None, "a")}}, 422, "wrong_type"),
        ({"files": {"sound": ("a", b"x")}}, 422, "unknown_field"),
        ({"files": [("file", ("a", b"x")), ("file", ("b", b"x"))]}, 413, "too_many_parts"),
        ({"data": {"text": "a", "votes": "perhaps"}, "files": {"language": (None, "de")}}, 422, "wrong_type"),
    ],
)
def test_a_request_that_is_wrong_has_its_own_status(client, request_of, status, code):
    response = client.post("/v1/predict", **request_of)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_body_is_counted_while_it_is_read(real_run, tmp_path):
    read = 0

    def endless():
        nonlocal read
        for _ in range(10_000):
            read += 1 << 16
            yield bytes(1 << 16)

    with running(real_run["folder"] / "ensemble", tmp_path, body_mb=1) as client:
        response = client.post("/v1/predict", content=endless(), headers={"content-type": "application/json"})
        declared = client.post("/v1/predict", content=b"", headers={"content-type": "application/json", "content-length": "9999999999"})
    assert "content-length" not in response.request.headers
    assert response.status_code == declared.status_code == 413
    assert declared.json()["error"]["code"] == "body_too_large"


def test_other_routes_answer_in_json_too(client):
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert client.get("/v1/predict").json()["error"]["code"] == "method_not_allowed"
    assert client.get("/docs/../page.html").status_code == 404


def test_a_token_guards_all_but_the_probes(real_run, tmp_path, clips):
    with running(real_run["folder"] / "ensemble", tmp_path, hashlib.sha256(b"secret").hexdigest()) as client:
        for path in ("/v1/model", "/openapi.json", "/metrics", "/v1/card"):
            assert client.get(path).status_code == 401, path
        for path in ("/healthz", "/readyz", "/", "/docs"):
            assert client.get(path).status_code == 200, path
        for wrong in ("Bearer other", "Basic secret", "secret", "Bearer", "Bearer sécret".encode("latin-1")):
            response = client.get("/v1/model", headers={"Authorization": wrong})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/model", headers={"Authorization": "Bearer secret"}).status_code == 200
        schemes = client.get("/openapi.json", headers={"Authorization": "bearer secret"}).json()["components"]["securitySchemes"]
        assert schemes == {"token": {"type": "http", "scheme": "bearer"}}


def test_the_model_says_what_it_is(client, real_run):
    ensemble = Ensemble.load(real_run["folder"] / "ensemble")
    found = client.get("/v1/model").json()
    assert found["model"] == ensemble.bundle.fingerprint == client.get("/healthz").json()["model"]
    assert found["classes"] == ["high", "low"]
    assert sum(member["weight"] for member in found["members"]) == pytest.approx(1)
    value = found["metrics"]["uar"]
    assert value["low"] <= value["value"] <= value["high"]
    assert found["training_data"] == ensemble.bundle.record["manifests"]
    assert {one["name"] for one in found["backbones"]} == {"acoustic", "hashed"}
    card = client.get("/v1/card")
    assert card.headers["content-type"].startswith("text/markdown")
    assert "## How well it does" in card.text


def test_the_pages_need_no_other_server(client):
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.status_code == 200
        assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", page.text)
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "script" not in policy  # by default: files of this server, no script in a page
        names = set(re.findall(r"(?:src|href)=\"(assets/[^\"]+)\"", page.text))
        assert names
        while names:
            asset = client.get(f"/{names.pop()}")
            assert asset.status_code == 200
            assert asset.headers["content-type"].split(";")[0] in ("text/javascript", "text/css")
            names |= {f"assets/{name}" for name in re.findall(r"from \"\./([^\"]+)\"", asset.text[:2000])}
    assert json.loads(client.get("/openapi.json").text)["info"]["title"] == "raysere"


def test_metrics_count_what_was_asked(real_run, tmp_path, clips):
    with running(real_run["folder"] / "ensemble", tmp_path) as client:
        for _ in range(3):
            assert _post(client, clips[0].read_bytes()).status_code == 200
        _post(client, b"nothing")
        text = client.get("/metrics").text
    assert 'raysere_requests_total{route="/v1/predict",status="200"} 3.0' in text
    assert 'raysere_requests_total{route="/v1/predict",status="415"} 1.0' in text
    assert re.search(r"raysere_audio_seconds_total 1\.79\d+|raysere_audio_seconds_total 1\.8", text)
    assert "raysere_batch_items_count 3.0" in text
