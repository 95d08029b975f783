"""Each command that starts Ray is started as a user does: what it opens is on loopback, and nobody
without its token runs a task in it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ports import OWNER, Watched, watch
from raysere.base.listeners import is_loopback, listeners, process_tree
from tests.end_to_end import toy

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"gcs_server", "ray::DashboardAgent", "ray::RuntimeEnvAgent"}  # of every local Ray


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ports")
    toy.experiment(folder, toy.make_corpus(folder / "corpus"))
    return folder


def watched(folder: Path, *arguments: str, ready: str | None = None) -> Watched:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "raysere", *arguments]
    return watch(command, environment, folder, until=None if ready is None else lambda text: ready in text)


def check(seen: Watched) -> None:
    assert seen.code == 0, seen.output
    assert {one.process for one in seen.open} >= PARTS  # they were looked at
    assert not seen.beyond, "\n".join(map(str, seen.beyond))
    assert seen.ran == [OWNER], seen.ran  # a task would have run, and did for the owner alone
    assert "Warning" not in seen.output


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "arguments", [("extract", "toy.yaml"), ("tune", "toy.yaml"), ("run", "toy.yaml", "--set", "name=other")], ids=lambda a: a[0]
)
def test_a_command_opens_nothing_to_the_network(place, arguments):
    check(watched(place, *arguments))


@pytest.mark.timeout(900)
def test_a_server_without_a_token_opens_nothing_to_the_network(place):
    ensemble = place / "runs" / "other" / "ensemble"
    if not ensemble.is_dir():
        check(watched(place, "run", "toy.yaml", "--set", "name=other"))
    seen = watched(place, "serve", str(ensemble), "--port", "0", ready="Serving ensemble")
    check(seen)
    assert "ray::ProxyActor" in {one.process.split(".")[0] for one in seen.open}


def test_sockets_are_found_with_their_addresses():
    """The watcher itself: a socket on all addresses is seen as such, in this process and in one
    below it.
    """
    with socket.socket() as one, socket.socket(socket.AF_INET6) as two:
        one.bind(("0.0.0.0", 0))
        two.bind(("::1", 0))
        for found in (one, two):
            found.listen()
        seen = {(found.address, found.port): found.beyond for found in listeners({os.getpid()})}
        assert seen[("0.0.0.0", one.getsockname()[1])] is True
        assert seen[("::1", two.getsockname()[1])] is False
    code = "import socket, sys; s = socket.create_server(('0.0.0.0', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        port = int(child.stdout.readline())
        tree = process_tree(os.getpid())
        assert child.pid in tree
        assert [found.pid for found in listeners(tree) if found.beyond and found.port == port] == [child.pid]
        child.stdin.close()


@pytest.mark.parametrize(
    ("address", "loopback"), [("::ffff:127.0.0.1", True), ("::ffff:10.0.0.1", False), ("::", False), ("127.9.9.9", True)]
)
def test_loopback_in_all_its_forms(address, loopback):
    assert is_loopback(address) is loopback


def test_what_cannot_be_bound_is_said(capsys):
    """As on a Ray whose parts listen on all addresses."""
    from raysere.base.cluster import tell_open_ports

    tell_open_ports()
    assert capsys.readouterr().err == ""
    with socket.create_server(("0.0.0.0", 0)) as found:
        tell_open_ports()
        assert f"0.0.0.0 port {found.getsockname()[1]}" in capsys.readouterr().err
