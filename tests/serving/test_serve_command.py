"""``raysere serve`` as a user starts it: a process of its own, Ray Serve within, and a signal that ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from raysere.errors import ConfigError, EnvironmentFault
from raysere.serving.deployment import free_port, on_loopback, read_token

COMMAND = [sys.executable, "-c", "from raysere.cli import main; main()", "serve"]


def _ask(url, body=None, token=None, timeout=30):
    request = urllib.request.Request(url, method="POST" if body is not None else "GET")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        body = error.read()
        return error.code, json.loads(body) if body.startswith(b"{") else None


@pytest.mark.timeout(300)
def test_it_serves_and_ends_without_losing_what_it_accepted(real_run, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    port = free_port("127.0.0.1")
    command = [
        *COMMAND,
        str(real_run["folder"] / "ensemble"),
        "--port",
        str(port),
        "--token-file",
        str(token),
        "--replicas",
        "2",
        "--cpus",
        "0.5",
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, process.communicate(timeout=60)
        url = f"http://127.0.0.1:{port}"
        assert _ask(f"{url}/readyz")[0] == 200
        assert _ask(f"{url}/v1/predict", {"text": "lost again"})[0] == 401
        answers, done = [], threading.Event()

        def keep_asking():
            while not done.is_set():
                try:
                    answers.append(_ask(f"{url}/v1/predict", {"text": "lost again"}, "secret"))
                except OSError:  # the socket is closed by now
                    answers.append((None, None))

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(answers) < 40 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=90)
        done.set()
        for thread in threads:
            thread.join(30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "SIGTERM" in err
    statuses = [status for status, _ in answers]
    first_end = next(n for n, status in enumerate(statuses) if status != 200)
    assert first_end >= 40
    assert set(statuses[first_end:]) <= {200, 404, 503, None}  # never half an answer: what was accepted is answered
    shares = {json.dumps(body["probabilities"]) for status, body in answers if status == 200}
    assert len(shares) == 1


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
