"""TCP ports on which processes of this machine listen (Linux only; from /proc)."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LISTENING = "0A"


@dataclass(frozen=True, order=True)
class Listener:
    """One listening socket.

    Attributes:
        process: what runs there, such as ``gcs_server`` or ``ray::ServeReplica``.
        address: IPv4 or IPv6 address that it is bound to; ``0.0.0.0`` and ``::`` are all addresses
            of the machine.
        port: TCP port.
        pid: process id.
    """

    process: str
    address: str
    port: int
    pid: int

    @property
    def beyond(self) -> bool:
        """Whether other machines reach it, as far as no firewall is between."""
        return not is_loopback(self.address)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an IP address; an IPv4 address in the form of IPv6 counts
    as what it is.

    Examples:
        >>> is_loopback("127.0.0.1"), is_loopback("::ffff:127.0.0.1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def process_tree(root: int) -> set[int]:
    """``root`` and all processes below it."""
    parents: dict[int, int] = {}
    for path in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
    tree = {root}
    while found := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= found
    return tree


def listeners(pids: Iterable[int]) -> list[Listener]:
    """The listening TCP sockets of processes, sorted; those that this user may not look into are
    left out.
    """
    found = set()
    sockets = _sockets()
    for pid in pids:
        with suppress(OSError):
            for descriptor in (_PROC / str(pid) / "fd").iterdir():
                with suppress(OSError):
                    if (bound := sockets.get(os.readlink(descriptor))) is not None:
                        found.add(Listener(_name(pid), *bound, pid))
    return sorted(found)


def _sockets() -> dict[str, tuple[str, int]]:
    """What /proc calls each listening socket, with its address and port."""
    found = {}
    for table, words in (("tcp", 1), ("tcp6", 4)):
        with suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING:
                    host, port = fields[1].split(":")
                    packed = struct.pack(f"={words}I", *(int(host[8 * word : 8 * word + 8], 16) for word in range(words)))
                    family = socket.AF_INET if words == 1 else socket.AF_INET6
                    found[f"socket:[{fields[9]}]"] = (socket.inet_ntop(family, packed), int(port, 16))
    return found


def _name(pid: int) -> str:
    words = (_PROC / str(pid) / "cmdline").read_text(errors="replace").replace("\0", " ").split()
    if not words:
        return "?"
    if words[0].startswith("ray::"):
        return words[0]
    if words[1:2] == ["-m"] and len(words) > 2:
        return words[2]
    return Path(next((word for word in words[1:] if word.endswith(".py")), words[0])).name
