"""What requests keep on the disk: it goes with them however they end, it is bounded, and a disk
that is full is no fault of theirs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import psutil
import pytest
from live import packed, running

from raysere.base.errors import EnvironmentFault
from raysere.serving import spool as spooling
from raysere.serving.decoding import Decoder
from raysere.serving.deployment import free_port
from raysere.serving.limits import Limits
from raysere.serving.spool import PREFIX, Kept, Spool

MB = 1 << 20


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder of temporary files, of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def small_disk(temporary) -> Path:
    """As ``temporary``, on a disk of 64 MB with few inodes."""
    mounted = (
        os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=50", "none", temporary]).returncode == 0
    )
    if not mounted:
        warnings.warn("A FULL DISK IS NOT TESTED: only root can mount a small one", stacklevel=1)
        pytest.skip("a small disk can be mounted by root alone")
    yield temporary
    subprocess.run(["umount", "--lazy", temporary], check=True)


def _files(folder):
    """What requests have there, under whatever name."""
    others = ("raysere-measures-", "raysere-token-")
    places = [place for place in folder.glob("raysere-*") if not place.name.startswith(others)]
    return [path for place in places for path in place.rglob("*") if path.is_file()]


def _until(told, seconds=60):
    deadline = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


async def _soon(told):
    await asyncio.to_thread(_until, told)


# --- whatever ends the request --------------------------------------------------------------------


@pytest.mark.parametrize("files", [1, 2], ids=["while its header is read", "while it is decoded"])
def test_files_of_a_client_that_went_away_are_gone_at_once(temporary, files):
    data = packed(60, channels=8)
    spool = Spool(1 << 30)

    async def asked():
        with spool.request() as kept:
            await decoder.decode([data], kept)

    async def main():
        await decoder.warm(spool)
        (process,) = decoder._pool._processes
        if files == 1:
            os.kill(process, signal.SIGSTOP)
        task = asyncio.create_task(asked())
        while len(spool.sizes) < files or not any(item.future.running() for item in decoder._pool._pending_work_items.values()):
            await asyncio.sleep(0.001)
        os.kill(process, signal.SIGSTOP)
        try:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not list(spool.folder.iterdir())
            assert len(spool.sizes) == files, "what a process still writes into counts until it ends"
        finally:
            os.kill(process, signal.SIGCONT)
        await _soon(lambda: not spool.sizes)
        assert not list(spool.folder.iterdir())

    decoder = Decoder(Limits())
    try:
        asyncio.run(main())
    finally:
        decoder.close()
        spool.close()
    assert not list(temporary.glob("raysere-*"))


def test_files_of_a_decoder_that_is_ended_are_gone(real_run, tmp_path, temporary, clips):
    with running(real_run["folder"] / "ensemble", tmp_path, decoder_mb=512) as client:
        engine = client.app.state.engine

        def unusable(data):
            response = client.post("/v1/predict", files={"file": ("a", data)})
            assert (response.status_code, response.json()["error"]["code"]) == (422, "audio_unusable")
            assert not _files(temporary)
            assert not engine.spool.sizes

        unusable(packed(119, channels=8))  # by its bound of memory
        engine.decoder.limits = Limits(decode_s=1e-6)
        unusable(clips[0].read_bytes())  # by its alarm
    assert not list(temporary.glob("raysere-*"))


def test_folders_of_the_dead_are_removed_and_of_nobody_else(temporary, tmp_path):
    script = "import sys, time; from raysere.serving.spool import Spool; spool = Spool(99)\nwith spool.request() as kept:\n"
    script += "    print(kept.files([9])[0], flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
    try:
        file = Path(process.stdout.readline().strip())
        assert file.parent.parent == temporary
        assert (stat.S_IMODE(file.parent.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
        away, link, plain = tmp_path / "away", temporary / f"{PREFIX}link", temporary / f"{PREFIX}file"
        away.mkdir()
        (away / "kept").touch()
        link.symlink_to(away)
        plain.touch()
        others = [link, plain]
        if os.geteuid() == 0:
            others.append(temporary / f"{PREFIX}of-another")
            others[-1].mkdir()
            os.chown(others[-1], 65534, 65534)
        Spool(99).close()
        assert file.exists(), "its owner lives"
        process.kill()
        process.wait()
        Spool(99).close()
    finally:
        process.kill()
        process.wait()
    assert sorted(temporary.iterdir()) == sorted(others)
    assert (away / "kept").exists()


def test_a_folder_that_another_replica_takes_for_a_left_one_is_given_up(temporary, monkeypatch):
    make, made = tempfile.mkdtemp, []

    def contested(**options):
        made.append(Path(make(**options)))
        if len(made) == 1:
            held.append(spooling._locked(made[0]))
        if len(made) == 2:
            made[1].rmdir()
        return str(made[-1])

    held = []
    monkeypatch.setattr(tempfile, "mkdtemp", contested)
    spool = Spool(99)
    os.close(held[0])
    assert spool.folder == made[2]
    spool.close()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "missing"))
    with pytest.raises(EnvironmentFault, match="TMPDIR"):
        Spool(99)


# --- bounds ---------------------------------------------------------------------------------------


def _batch(data, count):
    return {"items": [{"audio": base64.b64encode(data).decode()}] * count}


def test_decoded_audio_is_bounded_for_a_request_and_for_all(real_run, tmp_path, temporary, monkeypatch):
    clip = packed(10)  # 1.83 MiB decoded
    made, make = [], Kept.files

    def noted(kept, sizes):
        found = make(kept, sizes)
        made.extend(found)
        return found

    monkeypatch.setattr(Kept, "files", noted)
    with running(real_run["folder"] / "ensemble", tmp_path, spool_mb=6) as client:
        spool = client.app.state.engine.spool
        assert client.post("/v1/predict/batch", json=_batch(clip, 3)).status_code == 200
        made.clear()
        response = client.post("/v1/predict/batch", json=_batch(clip, 4))  # each fits, all do not
        assert (response.status_code, response.json()["error"]["code"]) == (413, "audio_too_large")
        assert len(made) == 4, "uploads alone: all is counted before anything is decoded"
        response = client.post("/v1/predict", files={"file": ("a", packed(10, channels=4))})
        assert (response.status_code, response.json()["error"]["code"]) == (413, "audio_too_large")
        with spool.request() as kept:
            kept.files([3 * MB])
            assert client.post("/v1/predict", json=_batch(clip, 1)["items"][0]).status_code == 200
            for route, body in (("/v1/predict/batch", _batch(clip, 2)), ("/v1/predict/batch", _batch(clip, 3))):
                response = client.post(route, json=body)
                assert (response.status_code, response.json()["error"]["code"]) == (503, "spool_full")
                assert int(response.headers["retry-after"]) >= 1
        assert client.post("/v1/predict/batch", json=_batch(clip, 3)).status_code == 200
        assert not spool.sizes
        assert not _files(temporary)


def test_a_server_starts_where_there_is_no_room(temporary):
    spool, decoder = Spool(1), Decoder(Limits())
    asyncio.run(decoder.warm(spool))
    decoder.close()
    spool.close()


def _full(folder, leaving=0):
    with (folder / "full").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(MB))
            file.flush()
    os.truncate(folder / "full", (folder / "full").stat().st_size - leaving)


def _refused(response):
    assert (response.status_code, response.json()["error"]["code"]) == (503, "spool_full"), response.text
    assert int(response.headers["retry-after"]) >= 1


def test_a_full_disk_answers_503_and_then_goes_on(real_run, tmp_path, small_disk, clips, monkeypatch, caplog):
    small = {"file": ("a", clips[0].read_bytes())}
    with running(real_run["folder"] / "ensemble", tmp_path) as client:
        assert client.post("/v1/predict", files=small).status_code == 200
        _refused(client.post("/v1/predict", files={"file": ("a", packed(60, channels=8))}))  # 88 MB on a disk of 64
        _full(small_disk, leaving=2 * MB)  # less than is kept free
        _refused(client.post("/v1/predict", files=small))
        assert client.post("/v1/predict", json={"text": "lost again"}).status_code == 200  # needs no disk
        with monkeypatch.context() as patched:
            patched.setattr(Spool, "room", lambda spool, size: True)  # as when others fill the disk at that very moment
            _refused(client.post("/v1/predict", files={"file": ("a", packed(20, channels=2))}))  # while it is decoded
            _full(small_disk)
            _refused(client.post("/v1/predict", files=small))  # while the upload is written
        (small_disk / "full").unlink()
        assert client.post("/v1/predict", files=small).status_code == 200
        for n in range(60):  # no inodes
            with contextlib.suppress(OSError):
                (small_disk / f"file-{n}").touch()
        _refused(client.post("/v1/predict", files=small))
        for path in small_disk.glob("file-*"):
            path.unlink()
        assert client.post("/v1/predict", files=small).status_code == 200
        assert not _files(small_disk)
    assert caplog.text.count("is full: requests get 503") <= 3


# --- the server as it is started ------------------------------------------------------------------


def _sent(port, data):
    """A connection on which a clip has been sent."""
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + data + b"\r\n--b--\r\n"
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


def _ready(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.timeout(300)
def test_a_server_keeps_nothing_of_hang_ups_kills_and_crashes(real_run, tmp_path):
    temporary, port = tmp_path / "temporary", free_port("127.0.0.1")
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}  # Ray's sockets need a short path
    command = [sys.executable, "-c", "from raysere.cli.main import main; main()", "serve", str(real_run["folder"] / "ensemble")]
    process = subprocess.Popen([*command, "--port", str(port), "--cpus", "0.5"], stdout=subprocess.PIPE, text=True, env=environment)
    data = packed(100, channels=8)

    def replica():
        return [one for one in psutil.Process(process.pid).children(recursive=True) if "ServeReplica" in " ".join(one.cmdline())]

    try:
        assert str(port) in process.stdout.readline()
        for seconds in (0.1, 0.4, 0.8):
            with _sent(port, data):
                time.sleep(seconds)
        time.sleep(2)
        _until(lambda: not _files(temporary), 30)

        (first,) = replica()
        for stopped in first.children():
            stopped.suspend()  # so that the request is still there when they are killed
        with _sent(port, data):
            _until(lambda: _files(temporary))
            (folder,) = {path.parent for path in _files(temporary)}
            first.kill()
            assert _files(folder.parent), "nobody is left to remove them"
            _until(lambda: not folder.exists(), 120)
        _until(lambda: _ready(port), 60)
        assert not _files(temporary)

        (second,) = replica()
        with _sent(port, data):
            _until(lambda: _files(temporary))
            for ended in second.children():  # the model's process, and the decoder's
                ended.kill()
            _until(lambda: not _files(temporary), 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait()
    assert not list(temporary.glob(f"{PREFIX}*"))
