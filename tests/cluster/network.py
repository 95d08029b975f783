"""Machines in one: each with an address on a network of its own, its own process table, host name,
shared memory and disk.

A machine is a set of Linux namespaces that ``unshare`` makes, joined to a bridge by a virtual
cable; the bridge lies in a namespace, too, so that nothing of this machine's own network changes.
It needs root and the commands of util-linux and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TOOLS = ("unshare", "nsenter", "ip", "mount")
WAIT_S = 60
_BEGIN = """
set -e
mount --bind "$1" "$2"
mount -t tmpfs tmpfs /dev/shm
hostname "$3"
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip addr add "$4/24" dev eth0
ip link set eth0 up
shift 4
exec "$@"
"""


def missing() -> str | None:
    """Why machines cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no command {', '.join(absent)}"
    trial = "mount -t tmpfs tmpfs /dev/shm && ip link add name try0 type bridge && ip link add one type veth peer name two"
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "sh", "-c", trial], capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"namespaces cannot be made: {done.stderr.strip()}"


class Machine:
    """One machine: ``address``, and ``disk``, the folder that it sees at :attr:`Network.disk`."""

    def __init__(self, network: Network, number: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.network, self.name, self.address = network, f"node{number}", f"10.77.0.{number + 1}"
        self.disk = network.folder / self.name
        self.disk.mkdir()
        parts = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child"]
        begin = ["sh", "-c", _BEGIN, "sh", str(self.disk), str(network.disk), self.name, self.address]
        self.log = self.disk.with_suffix(".log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*parts, *begin, *command], stdout=log, stderr=log, env={**os.environ, **environment})
        self.first = self._first()  # the process that is number 1 there
        network.run("ip", "link", "add", "name", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(self.first))
        network.run("ip", "link", "set", self.name, "master", "bridge", "up")

    def _first(self) -> int:
        children, deadline = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"), time.monotonic() + WAIT_S
        while not (found := children.read_text().split()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return int(found[0])

    def inside(self, *command: str) -> list[str]:
        """The command line that runs ``command`` on this machine."""
        return ["nsenter", "--target", str(self.first), "--net", "--mount", "--uts", "--ipc", "--pid", *command]

    def end(self) -> None:
        """All its processes, as ``--kill-child`` takes number 1 along, and with that go the others
        and the namespaces.
        """
        self.process.kill()
        self.process.wait()


class Network:
    """Machines on one bridge, from 10.77.0.1 on.

    ``disk`` is the path at which each of them has its own folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, folder / "disk"
        self.disk.mkdir()
        self.machines: list[Machine] = []
        self._bridge = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link add name bridge type bridge && echo && read line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._bridge.stdout is not None
        self._bridge.stdout.readline()
        self.run("ip", "link", "set", "bridge", "up")

    def run(self, *command: str) -> None:
        subprocess.run(["nsenter", "--target", str(self._bridge.pid), "--net", *command], check=True, capture_output=True, text=True)

    def add(self, *command: str, **environment: str) -> Machine:
        """A machine on which ``command`` is process number 1."""
        self.machines.append(Machine(self, len(self.machines), command, environment))
        return self.machines[-1]

    def end(self) -> None:
        for machine in self.machines:
            machine.end()
        self._bridge.kill()
        self._bridge.communicate()


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    made = Network(folder)
    try:
        yield made
    finally:
        made.end()
