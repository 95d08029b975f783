"""``raysere serve`` as a user starts it: a process of its own, Ray Serve within, and a signal that ends it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import soundfile

from raysere.errors import ConfigError, EnvironmentFault
from raysere.serving.deployment import free_port, on_loopback, read_token

COMMAND = [sys.executable, "-c", "from raysere.cli import main; main()", "serve"]


def _ask(url, body=None, token=None, timeout=60):
    """Status, headers and text of the answer."""
    request = urllib.request.Request(url, method="POST" if body is not None else "GET")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def _long_work():
    """A batch that the model works on for a second: 240 s of audio, in a few kilobytes."""
    wave = np.zeros(16000 * 60, np.float32)
    wave[:9600] = 0.3 * np.sin(np.arange(9600) / 9)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16000, format="FLAC")
    return {"items": [{"audio": base64.b64encode(buffer.getvalue()).decode()}] * 4}


@pytest.mark.timeout(300)
def test_it_serves_and_ends_without_losing_what_it_accepted(real_run, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    port = free_port("127.0.0.1")
    command = [*COMMAND, str(real_run["folder"] / "ensemble"), "--port", str(port), "--token-file", str(token)]
    command += ["--replicas", "2", "--cpus", "0.5", "--limit", "wait_s=1000"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"TMPDIR": str(temporary), "RAY_TMPDIR": tempfile.gettempdir()}  # Ray's sockets need a short path
    accepted, answers, done = [], [], threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, process.communicate(timeout=60)
        url = f"http://127.0.0.1:{port}"
        assert _ask(f"{url}/readyz")[0] == 200
        assert _ask(f"{url}/v1/predict", {"text": "lost again"})[0] == 401
        assert json.loads(_ask(f"{url}/v1/model", token="secret")[2])["limits"]["wait_s"] == 1000

        def batches():
            return float(re.search(r"^raysere_batch_items_count (\S+)", _ask(f"{url}/metrics", token="secret")[2], re.M)[1])

        assert _ask(f"{url}/v1/predict", {"text": "lost again"}, "secret")[0] == 200
        before = batches()

        def keep_asking():
            while not done.is_set():
                try:
                    answers.append(_ask(f"{url}/v1/predict", {"text": "lost again"}, "secret"))
                except OSError:  # the socket is closed by now
                    answers.append((None, {}, ""))
                    time.sleep(0.01)

        slow = threading.Thread(target=lambda: accepted.append(_ask(f"{url}/v1/predict/batch", _long_work(), "secret")))
        slow.start()
        while batches() == before:  # until the model works on it
            assert process.poll() is None
        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not answers:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=90)
        done.set()
        for thread in [slow, *threads]:
            thread.join(60)
    finally:
        done.set()
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "SIGTERM" in err
    ((status, _, text),) = accepted
    assert (status, ["error" in one for one in json.loads(text)["results"]]) == (200, [False] * 4)
    assert {status for status, _, _ in answers} <= {200, 503, None}
    shares = {json.dumps(json.loads(text)["probabilities"]) for status, _, text in answers if status == 200}
    assert len(shares) == 1
    refused = [(json.loads(text)["error"]["code"], headers["retry-after"]) for status, headers, text in answers if status == 503]
    assert set(refused) == {("not_ready", "1")}  # and none of Serve's own pages
    assert not list(temporary.glob("raysere-*")), "nothing is left behind"


def test_without_a_token_it_listens_here_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("RAYSERE_TOKEN", raising=False)
    assert read_token(None, "127.0.0.1") is None
    assert read_token(None, "::1") is None
    for host in ("0.0.0.0", "10.0.0.1", "example.org", "::"):
        assert not on_loopback(host)
        with pytest.raises(ConfigError, match="token"):
            read_token(None, host)
    monkeypatch.setenv("RAYSERE_TOKEN", "abc")
    assert read_token(None, "0.0.0.0") == "abc"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_token(tmp_path / "empty", "127.0.0.1")


def test_a_port_that_is_taken_is_said_before_anything_starts(real_run):
    import socket

    from raysere.serving.deployment import Options, serving

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EnvironmentFault, match="Nothing can listen"):
            with serving(Options(ensemble=str(real_run["folder"] / "ensemble")), port=taken.getsockname()[1]):
                pass
