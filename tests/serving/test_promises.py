"""What docs/serving.md promises of answers, refusals and bounds, where it takes a look inside to
see it kept.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time

import polars as pl
import pytest
from live import running
from starlette.requests import Request
from starlette.testclient import TestClient

from raysere.base.errors import DataError
from raysere.serving import deployment
from raysere.serving.app import create_app
from raysere.serving.decoding import Clip
from raysere.serving.deployment import Options, replica_app, token_hash
from raysere.serving.faults import Fault, clip_fault, error_response
from raysere.serving.intake import read_batch, read_single
from raysere.serving.limits import Limits
from raysere.serving.model import Asked, Given, Model
from raysere.serving.proxy import FULL, REFUSED
from raysere.training.task import Task


@pytest.fixture
def engine(client):
    return client.app.state.engine


def _code(response):
    return response.status_code, response.json()["error"]["code"]


# --- refusals -------------------------------------------------------------------------------------


def test_overload_is_refused_before_the_body_is_read(client, engine, monkeypatch):
    wait_s = engine.limits.wait_s
    monkeypatch.setattr(engine.batcher, "expected_wait", lambda: wait_s / 2 + 8.4)
    with engine.batcher.place(4):
        for route in ("/v1/predict", "/v1/predict/batch"):
            response = client.post(route, content=b"{ no json", headers={"content-type": "application/json"})
            assert _code(response) == (429, "overloaded")
            assert response.headers["retry-after"] == "9"
            replica, replicas, seconds = response.headers[FULL].split()  # which Serve's proxy keeps to itself
            assert (len(replica), replicas, float(seconds)) == (8, "1", 0.5)


def test_what_the_proxy_refused_is_counted(client):
    def refused():
        counted = re.findall(r'raysere_requests_total\{[^}]*route="/v1/predict",status="429"\} ([0-9.]+)', client.get("/metrics").text)
        return sum(map(float, counted))

    async def proxied(scope, receive, send):  # as Serve's proxy hands it over
        await client.app({**scope, REFUSED: 17}, receive, send)

    before = refused()
    assert TestClient(proxied).post("/v1/predict", json={"text": "a"}).status_code == 200
    assert refused() == before + 17
    for method, route in (
        ("POST", "/v1/predict"),
        ("GET", "/v1/predict"),
        ("GET", "/v1/model"),
        ("GET", "/"),
        ("PUT", "/v1/predict/batch"),
    ):
        sent = {"raysere-refused": "999", REFUSED: "999"}  # by whoever likes to write into the counters
        assert client.request(method, route, headers=sent).status_code < 500
    assert refused() == before + 17


def test_nothing_is_decoded_that_would_not_fit_into_the_queue(real_run, tmp_path, clips, monkeypatch):
    with running(real_run["folder"] / "ensemble", tmp_path, queue=2) as client:
        monkeypatch.setattr(client.app.state.engine.decoder, "decode", None)
        data = clips[0].read_bytes()
        response = client.post("/v1/predict/batch", files=[("file", ("a", data))] * 3)
        assert _code(response) == (429, "overloaded")


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (2.0, "2"), (2.1, "3")])
def test_retry_after_is_whole_seconds_and_never_none(seconds, header):
    assert error_response(Fault(429, "overloaded", "", retry_s=seconds)).headers["retry-after"] == header
    assert "retry-after" not in error_response(Fault(413, "body_too_large", "")).headers


def test_a_fault_of_the_server_tells_the_log_and_not_the_client(client, engine, monkeypatch, caplog):
    async def broken(given, place, **options):
        raise RuntimeError("/place/of/somebody/secret")

    monkeypatch.setattr(engine, "predict", broken)
    with caplog.at_level(logging.ERROR):
        response = client.post("/v1/predict", json={"text": "a"})
    assert _code(response) == (500, "internal")
    assert "secret" not in response.text
    assert "secret" in caplog.text


def test_a_server_that_is_not_open_says_so(real_run, tmp_path):
    app = create_app(real_run["folder"] / "ensemble", Limits(), measures=tmp_path / "measures")
    client = TestClient(app)  # its lifespan has not begun
    for answer in (client.post("/v1/predict", json={"text": "a"}), client.get("/readyz"), client.get("/v1/model")):
        assert _code(answer) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/healthz").json() == {"status": "alive", "model": ""}


def test_a_replica_whose_model_hangs_is_not_ready(client, engine, monkeypatch):
    monkeypatch.setattr(engine.batcher, "running_since", time.monotonic() - 3.9 * engine.limits.request_s)
    assert client.get("/readyz").status_code == 200
    monkeypatch.setattr(engine.batcher, "running_since", time.monotonic() - 4.1 * engine.limits.request_s)
    assert _code(client.get("/readyz")) == (503, "not_ready")
    with pytest.raises(RuntimeError, match="come back"):  # by which Serve replaces the replica
        engine.check()


def test_routes_say_what_they_take_and_what_is_not_there(client, engine, monkeypatch):
    assert client.get("/v1/predict").headers["allow"] == "POST"
    assert client.get("/assets/redoc.standalone.js").status_code == 404  # only what the page loads
    monkeypatch.delitem(engine.bundle.record, "card")
    assert _code(client.get("/v1/card")) == (404, "no_card")


def test_the_token_guards_all_but_the_pages_and_their_files(real_run, tmp_path):
    with running(real_run["folder"] / "ensemble", tmp_path, token_hash("secret")) as client:
        for path in ("/assets/redoc.standalone.js", "/assets/../app.py", "/docs/", "/healthz/", "//v1/model", "/v1/nothing"):
            assert client.get(path, follow_redirects=False).status_code == 401, path
        assert client.post("/v1/predict", json={"text": "a"}).status_code == 401
        assert client.post("/v1/predict", json={"text": "a"}, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_a_replica_takes_the_token_of_its_node(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr("raysere.serving.app.create_app", lambda folder, limits, **options: made.append(options))
    monkeypatch.setenv(deployment.TOKEN_VARIABLE, "0123456789abcdef\n")
    replica_app(Options(ensemble="e"), Limits(), tmp_path)
    replica_app(Options(ensemble="e", token_sha256="0" * 64, gpus=0.5, cpus=3), Limits(), tmp_path)
    monkeypatch.delenv(deployment.TOKEN_VARIABLE)
    replica_app(Options(ensemble="e", cpus=3, threads=2), Limits(), tmp_path)
    assert [one["token_sha256"] for one in made] == [token_hash("0123456789abcdef"), "0" * 64, None]
    assert [(one["device"], one["threads"]) for one in made] == [("cpu", 1), ("cuda", 3), ("cpu", 2)]


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("not audio: x", 415, "not_audio"),
        ("unknown length", 415, "not_audio"),
        ("too long: x", 413, "audio_too_long"),
        ("too short: x", 422, "audio_too_short"),
        ("truncated: x", 422, "audio_truncated"),
        ("silent", 422, "audio_silent"),
        ("not finite: x", 422, "audio_not_finite"),
        ("empty file", 422, "audio_empty"),
        ("no samples", 422, "audio_empty"),
        ("segment is empty", 422, "audio_too_short"),
        ("anything else", 422, "audio_unusable"),
    ],
)
def test_reasons_of_the_reader_have_codes(reason, status, code):
    fault = clip_fault(DataError(reason))
    assert (fault.status, fault.code) == (status, code)


# --- what is read ---------------------------------------------------------------------------------


def _request(chunks, kind):
    """A request whose body is read in chunks; the second value tells how many were asked for."""
    asked = []

    async def receive():
        asked.append(1)
        if len(asked) > len(chunks):
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunks[len(asked) - 1], "more_body": len(asked) < len(chunks)}

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [(b"content-type", kind.encode())]}
    return Request(scope, receive), asked


def _json(body, limits, read=read_single):
    return asyncio.run(read(_request([body], "application/json")[0], limits))


def _form(fields, limits, read=read_batch):
    parts = []
    for name, value in fields:
        file = '; filename="a"\r\nContent-Type: audio/wav' if isinstance(value, bytes) else ""
        data = value if isinstance(value, bytes) else value.encode()
        parts.append(f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n")
    return asyncio.run(read(_request([b"".join(parts) + b"--b--\r\n"], "multipart/form-data; boundary=b")[0], limits))


def _refused(read, *arguments, **options):
    with pytest.raises(Fault) as caught:
        read(*arguments, **options)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_no_more_of_a_body_is_read_than_is_taken(kind):
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' if "form" in kind else b'{"audio": "'
    request, asked = _request([head, *[b"A" * (1 << 18)] * 100], kind)
    assert _refused(asyncio.run, read_single(request, Limits(body_mb=1))) == (413, "body_too_large")
    assert len(asked) == 5  # up to the chunk that does not fit any more, of 101


def test_a_body_may_be_as_large_as_the_limit():
    text = b'{"text": "a"}'
    whole = text + b" " * ((1 << 20) - len(text))
    assert _json(whole, Limits(body_mb=1))[0].text == "a"
    assert _refused(_json, whole + b" ", Limits(body_mb=1)) == (413, "body_too_large")


def test_a_client_that_goes_away_is_no_fault_of_the_server():
    async def read():
        request, _ = _request([b'{"te'], "application/json")
        await request.receive()  # what is left is that it is gone
        return await read_single(request, Limits())

    assert _refused(asyncio.run, read()) == (400, "disconnected")


def test_counts_and_lengths_are_taken_up_to_their_limit():
    limits = Limits(items=2, text=3)
    assert _json(b'{"text": "abc"}', limits)[0].text == "abc"
    assert _refused(_json, b'{"text": "abcd"}', limits) == (413, "text_too_long")
    assert len(_json(b'{"items": [{"text": "a"}, {"text": "b"}]}', limits, read_batch)[0]) == 2
    assert _refused(_json, b'{"items": [{"text": "a"}, {"text": "b"}, {"text": "c"}]}', limits, read_batch) == (413, "too_many_items")
    assert _refused(_json, b'{"items": []}', limits, read_batch) == (422, "wrong_type")
    assert len(_form([("text", "a"), ("text", "b")], limits)[0]) == 2
    assert _refused(_form, [("text", "a")] * 3, limits) == (413, "too_many_items")
    assert _refused(_form, [("file", b"a")] * 3, limits) == (413, "too_many_parts")
    assert _refused(_form, [("file", b"a"), ("text", "a"), ("text", "b")], limits) == (422, "counts_differ")
    assert _refused(_form, [], limits) == (422, "nothing_to_predict")


def test_fields_are_known_and_given_once():
    assert _refused(_form, [("text", "a"), ("langauge", "de")], Limits()) == (422, "unknown_field")
    assert _refused(_form, [("text", "a"), ("language", "de"), ("language", "en")], Limits()) == (422, "repeated_field")
    assert _refused(_form, [("text", "a"), ("speaker", b"x")], Limits()) == (422, "wrong_type")


def test_every_field_arrives():
    rest = {"language": "pt-BR", "corpus": "emodb", "speaker": "me"}
    wanted = Given(b"x", "a", **rest)
    fields = [("file", b"x"), ("text", "a"), *rest.items()]
    given, asked = _form([*fields, ("votes", "0"), ("trace", "True")], Limits(), read_single)
    assert (given, asked.votes, asked.trace) == (wanted, False, True)
    item = {"audio": base64.b64encode(b"x").decode(), "text": "a", **rest}
    given, asked = _json(str({**item, "trace": 1}).replace("'", '"').replace("1}", "true}").encode(), Limits())
    assert (given, asked.votes, asked.trace) == (wanted, True, True)
    two = [("file", b"y"), ("file", b"x"), ("text", "b"), ("text", "a"), *rest.items()]
    assert _form(two, Limits()) == ([Given(b"y", "b", **rest), wanted], False)
    assert _form([*two, ("votes", "true")], Limits())[1] is True
    assert _json(str({"items": [item]}).replace("'", '"').encode(), Limits(), read_batch) == ([wanted], False)


# --- what is answered -----------------------------------------------------------------------------


def test_answers_of_a_batch_keep_their_places(client, clips):
    texts = [client.post("/v1/predict", json={"text": text}).json()["probabilities"] for text in ("what a morning", "lost again")]
    items = [{"audio": "%%%"}, {"text": "what a morning"}, {"audio": base64.b64encode(b"none").decode()}, {}, {"text": "lost again"}]
    found = client.post("/v1/predict/batch", json={"items": items}).json()["results"]
    codes = [one.get("error", {}).get("code") for one in found]
    assert codes == ["not_base64", None, "not_audio", "nothing_to_predict", None]
    assert texts[0] != texts[1]
    assert [found[1]["probabilities"], found[4]["probabilities"]] == [pytest.approx(one, abs=1e-6) for one in texts]


def test_what_was_sent_does_not_stay(real_run, tmp_path, clips):
    with running(real_run["folder"] / "ensemble", tmp_path) as client:
        spool = client.app.state.engine.spool.folder
        assert client.post("/v1/predict", files={"file": ("a", clips[0].read_bytes())}).status_code == 200
        assert client.post("/v1/predict", files={"file": ("a", b"none")}).status_code == 415
        assert spool.is_dir()
        assert not list(spool.iterdir())
        assert client.get("/metrics").status_code == 200
        assert list((tmp_path / "measures").glob("gauge_live*"))
    assert not spool.exists()
    assert not list((tmp_path / "measures").glob("gauge_live*"))  # what waits in a replica that is gone counts for nothing


def _rows(engine, monkeypatch, model="m"):
    """What the batcher is asked for, instead of doing it."""
    seen = []
    answer = {"predicted": "high", "confidence": 1.0, "probabilities": {"high": 1.0}, "attributes": {}}

    async def submit(asked, seconds, place):
        seen.append((asked, seconds))
        return [{"model": model, "answer": answer, "members": 1, "note": None, "error": None, "votes": None} for _ in asked]

    monkeypatch.setattr(engine.batcher, "submit", submit)
    return seen


def test_a_speaker_is_of_one_request_and_work_is_told_in_seconds(client, engine, monkeypatch, clips):
    seen = _rows(engine, monkeypatch, model="of the batch")
    batch = [("file", ("a", clip.read_bytes())) for clip in clips[:2]]
    for _ in range(2):
        assert client.post("/v1/predict/batch", files=batch, data={"speaker": "s"}).json()["model"] == "of the batch"
    client.post("/v1/predict", files=batch[:1], data={"trace": "true"})
    client.post("/v1/predict", json={"text": "a"})
    ((first, _), (_, seconds), (_, traced), (_, none)) = seen
    assert first[0].speaker == first[1].speaker != "s"
    assert first[0].speaker.endswith(".s")
    assert seconds == pytest.approx(1.2)
    assert traced == pytest.approx(1.2)  # the clip, and its one segment
    assert none == 0


class _FakeEnsemble:
    """Answers with a class and an attribute for all that is asked; the second row has no attribute."""

    task = Task(kind="both", classes=("high", "low"), attributes=("arousal", "valence"), scale=(1, 5))

    def __init__(self, fingerprint, during=lambda: None):
        self.bundle = type("Bundle", (), {"fingerprint": fingerprint})()
        self.during, self.asked = during, {}

    def predict(self, paths, texts, speakers, **options):
        self.asked = {"paths": paths, "texts": texts, "speakers": speakers, **options}
        self.during()
        votes = [{"member": "a", "modality": "text", "share": 1.0, "p": [0.7, 0.3]}]
        rows = [
            {"predicted": "high", "confidence": 0.7, "p.high": 0.7, "p.low": 0.3, "arousal": 4.5, "valence": 2.0 if n == 0 else None,
             "members": 1, "note": None, "error": None, "contributions": votes}
            for n in range(len(paths))
        ]  # fmt: skip
        return pl.DataFrame(rows)


def _model_of(ensemble):
    model = object.__new__(Model)
    model.ensemble = ensemble
    return model


def test_the_model_is_asked_all_and_each_answer_is_of_the_ensemble_that_gave_it():
    new = _FakeEnsemble("new")
    old = _FakeEnsemble("old", during=lambda: setattr(model, "ensemble", new))
    model = _model_of(old)
    given = Given(text="a", language="de", corpus="emodb", speaker="s")
    clip = Clip("x.wav", 2.0, 16000, 1)
    rows = model.answer([Asked(clip, given, "1.s", (0.0, 1.0), False), Asked(None, given, None, None, True)])
    assert old.asked == {
        "paths": ["x.wav", None],
        "texts": ["a", "a"],
        "speakers": ["1.s", None],
        "corpora": ["emodb"] * 2,
        "languages": ["de"] * 2,
        "segments": [(0.0, 1.0), None],
        "contributions": True,
    }
    assert [row["model"] for row in rows] == ["old", "old"]
    assert rows[0]["answer"]["attributes"] == {"arousal": {"value": 4.5, "scale": [1, 5]}, "valence": {"value": 2.0, "scale": [1, 5]}}
    assert rows[1]["answer"]["attributes"] == {"arousal": {"value": 4.5, "scale": [1, 5]}}
    assert [row["votes"] for row in rows] == [
        None,
        [{"member": "a", "modality": "text", "share": 1.0, "probabilities": {"high": 0.7, "low": 0.3}}],
    ]
    model.answer([Asked(None, given, None, None, False)])
    assert new.asked["contributions"] is False


def test_the_model_tells_its_limits_and_no_folder_of_this_machine(real_run, tmp_path, monkeypatch):
    monkeypatch.setattr("raysere.serving.engine.short_name", lambda name: "short")
    with running(real_run["folder"] / "ensemble", tmp_path, text=77) as client:
        found = client.get("/v1/model").json()
        record = client.app.state.engine.bundle.record
    assert found["limits"] == Limits(text=77).model_dump()
    named = [*(one["name"] for one in found["backbones"]), *(name for one in found["members"] for name in one["backbones"])]
    named += [name for entries in found["licences"].values() for name in entries]
    assert set(named) == {"short"}
    assert [one["temperature"] for one in found["calibration"]] == [part["temperature"] for part in record["parts"]]
    assert str(real_run["folder"].parent) not in str(found)


def test_metrics_tell_what_waits_and_count_few_routes(real_run, tmp_path, monkeypatch):
    with running(real_run["folder"] / "ensemble", tmp_path) as client:
        engine = client.app.state.engine
        client.post("/v1/predict/batch", json={"items": [{"text": "a"}, {"text": "b"}, {"text": "c"}]})
        client.get("/v1/a-route-that-is-not-there")
        monkeypatch.setattr(engine, "swaps", 3)
        monkeypatch.setattr(type(engine.batcher), "waiting", property(lambda batcher: 5))
        text = client.get("/metrics").text
    assert "raysere_batch_items_sum 3.0" in text
    assert 'raysere_request_seconds_count{route="/v1/predict/batch"} 1.0' in text
    assert 'raysere_requests_total{route="other",status="404"} 1.0' in text
    assert "not-there" not in text  # whoever asks cannot fill the memory with names
    assert re.search(r"^raysere_swaps(\{.*\})? 3.0", text, re.M)
    assert re.search(r"^raysere_waiting_items(\{.*\})? 5.0", text, re.M)
