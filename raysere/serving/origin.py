"""Refuse requests that pages of other sites caused, by ``Host``, ``Origin`` and ``Sec-Fetch-Site``.

A page of another site reaches a server on this machine in two ways: it posts to its address (the
browser adds ``Origin``), or its own name is made to resolve to this machine (DNS rebinding; then
``Host`` is that name). Programs that are no browsers send what they like, and are not meant here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import NamedTuple

from raysere.base.listeners import is_loopback

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:/@\s]+))(?::\d{0,5})?")
_READS = ("GET", "HEAD", "OPTIONS")


class Refusal(NamedTuple):
    """Why a request is refused: ``code`` for programs, a sentence, and what to do."""

    code: str
    message: str
    remedy: str


def is_address(name: str) -> bool:
    """Whether ``name`` is an IP address, which nobody can make resolve to another machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def on_loopback(host: str) -> bool:
    """Whether ``host``, a name or an IP address, is this machine's own and reached from it alone."""
    return host == "localhost" or (is_address(host) and is_loopback(host))


def refusal(method: str, get: Callable[[str], str | None], named: Callable[[str], bool] | None = None) -> Refusal | None:
    """Why the request is refused; None where it may go on.

    Args:
        method: of the request.
        get: a header by its name in lower case.
        named: whether the server goes by that name or address; None takes every ``Host``.
    """
    host = (get("host") or "").strip().lower()
    if named is not None and host:  # browsers always send it
        found = _HOST.fullmatch(host)
        if found is None or not named(found[1] or found[2]):
            return Refusal(
                "host",
                f"The server does not go by the name {host[:100]!r}",
                "Ask for it by its address, such as 127.0.0.1; a proxy in front of it must send that in Host.",
            )
    if method in _READS:
        return None
    site, origin = get("sec-fetch-site"), get("origin")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and origin.lower().partition("://")[2] != host
    if foreign:
        return Refusal("origin", "The request comes from a page of another site", "Send it from the server's own page, or from a program.")
    return None
