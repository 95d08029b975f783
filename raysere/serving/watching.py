"""TensorBoard with the server's rule against pages of other sites."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from raysere.serving.origin import is_address, on_loopback, refusal


def watch(logs: Path, host: str, port: int) -> int:
    """Become TensorBoard on the event files below ``logs``, until Ctrl-C or SIGTERM; its exit code."""
    from tensorboard import default, main_lib, program

    def listening(app: Any, flags: Any) -> Any:
        return program.create_port_scanning_werkzeug_server(guarded(app, names(host)), flags)

    class Board(program.TensorBoard):
        def _register_info(self, server: Any) -> None:
            """Leave no note for notebooks: it would follow a link that stands in a folder of /tmp
            where everybody may write.
            """

    main_lib.global_init()
    board = Board(plugins=default.get_plugins(), server_class=listening)
    board.configure(argv=["", "--logdir", str(logs), "--host", host, "--port", str(port)])
    return int(board.main())


def names(host: str) -> Callable[[str], bool]:
    """Whether a server that listens on ``host`` goes by a name: on loopback as this machine itself,
    beyond by any address and own name.
    """
    if on_loopback(host):
        return on_loopback
    own = {host.lower(), "localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    return lambda name: is_address(name) or name in own


def guarded(app: Any, named: Callable[[str], bool]) -> Any:
    """The WSGI application, which only gets requests to a name that ``named`` knows and from no
    page of another site.
    """

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        def header(name: str) -> str | None:
            return environ.get("HTTP_" + name.upper().replace("-", "_"))

        refused = refusal(environ["REQUEST_METHOD"], header, named)
        if refused is None:
            return app(environ, start)  # type: ignore[no-any-return]
        text = f"{refused.message}. {refused.remedy}\n".encode()
        start("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))])
        return [text]

    return application
