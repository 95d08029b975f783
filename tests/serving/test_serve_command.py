"""``raysere serve`` as a user starts it: a process of its own, Ray Serve within, and a signal that
ends it.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
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

from raysere.base.errors import ConfigError, EnvironmentFault
from raysere.serving.deployment import free_port, on_loopback, read_token, token_file_open_to

SECRET = "0123456789abcdef"
COMMAND = [sys.executable, "-c", "from raysere.cli.main import main; main()", "serve"]


def _ask(url, body=None, token=None, timeout=60, headers=None):
    """Status, headers and text of the answer."""
    request = urllib.request.Request(url, method="POST" if body is not None else "GET", headers=headers or {})
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
    token.write_text(f"{SECRET}\n")
    token.chmod(0o644)
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
        assert json.loads(_ask(f"{url}/v1/model", token=SECRET)[2])["limits"]["wait_s"] == 1000

        half = socket.create_connection(("127.0.0.1", port), timeout=60)
        half.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert _ask(f"{url}/v1/predict", {"text": "lost again"}, SECRET, headers=headers)[0] == 403, headers
        steering = {"X-Request-Timeout-Seconds": "ä", "Raysere-Refused": "999999", "X-Request-Id": "ü"}
        assert _ask(f"{url}/v1/model", token=SECRET, headers=steering)[0] == 200
        assert "999999" not in _ask(f"{url}/metrics", token=SECRET)[2]

        def batches():
            return float(re.search(r"^raysere_batch_items_count (\S+)", _ask(f"{url}/metrics", token=SECRET)[2], re.M)[1])

        assert _ask(f"{url}/v1/predict", {"text": "lost again"}, SECRET)[0] == 200
        before = batches()

        def keep_asking():
            while not done.is_set():
                try:
                    answers.append(_ask(f"{url}/v1/predict", {"text": "lost again"}, SECRET))
                except (OSError, http.client.HTTPException):  # the socket is closed by now
                    answers.append((None, {}, ""))
                    time.sleep(0.01)

        slow = threading.Thread(target=lambda: accepted.append(_ask(f"{url}/v1/predict/batch", _long_work(), SECRET)))
        slow.start()
        while batches() == before:  # until the model works on it
            assert process.poll() is None
        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not answers:
            time.sleep(0.01)
        assert half.recv(1 << 16).startswith(b"HTTP/1.1 408 ")  # after ten seconds
        half.close()
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
    assert "chmod 600" in err
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
    monkeypatch.setenv("RAYSERE_TOKEN", f" {SECRET}\n")
    assert read_token(None, "0.0.0.0") == SECRET
    for wrong, words in (
        ("short", "guessed"),
        ("sécret-sécret-sécret", "header"),
        ("two words two words", "header"),
        ("a" * 5000, "header"),
    ):
        monkeypatch.setenv("RAYSERE_TOKEN", wrong)
        (tmp_path / "token").write_text(wrong)
        for file in (None, tmp_path / "token"):
            with pytest.raises(ConfigError, match=words) as caught:
                read_token(file, "127.0.0.1")
            assert wrong not in str(caught.value)
    (tmp_path / "token").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(ConfigError, match="header"):
        read_token(tmp_path / "token", "127.0.0.1")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_token(tmp_path / "empty", "127.0.0.1")


def test_a_token_file_that_others_may_read_is_told(tmp_path):
    file, link = tmp_path / "token", tmp_path / "link"
    file.write_text(f"{SECRET}\n")
    link.symlink_to(file)
    for mode, told in ((0o600, False), (0o400, False), (0o640, True), (0o644, True), (0o602, True)):
        file.chmod(mode)
        for one in (file, link):
            said = token_file_open_to(one)
            assert bool(said) is told
            assert not told or (f"{mode:04o}" in said and f"chmod 600 {one}" in said)
    assert read_token(link, "0.0.0.0") == SECRET


def test_a_port_that_is_taken_is_said_before_anything_starts(real_run):
    from raysere.serving.deployment import Options, serving

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EnvironmentFault, match="Nothing can listen"):
            with serving(Options(ensemble=str(real_run["folder"] / "ensemble")), port=taken.getsockname()[1]):
                pass
