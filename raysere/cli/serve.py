"""``raysere serve``: arguments and messages; :mod:`raysere.serving` does the work."""

from __future__ import annotations

from pathlib import Path

import click

from raysere.cli.options import echo


@click.command()
@click.argument("folder", metavar="ENSEMBLE", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; beyond this machine a token is required.")
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
@click.option("--replicas", default=1, show_default=True, help="Processes that answer, each with its own copy of the backbones.")
@click.option("--cpus", default=1.0, show_default=True, help="Cores of each replica.")
@click.option("--gpus", default=0.0, show_default=True, help="GPUs of each replica, such as 0.5; the backbones run on them.")
@click.option("--token-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The bearer token that clients must send.")
@click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Such as body_mb=50 or audio_s=600; repeatable.")
def serve(
    folder: Path, host: str, port: int, replicas: int, cpus: float, gpus: float, token_file: Path | None, limits: tuple[str, ...]
) -> int:
    """Answer over HTTP with a saved ENSEMBLE: audio, text or both. A page to try it is at /, the API at /docs.

    \b
    Example: raysere serve runs/emodb/ensemble --port 8000
             curl -F file=@clip.wav -F text="what was said" http://127.0.0.1:8000/v1/predict

    When a newer ensemble is saved in the same folder, the server changes over to it without losing a request.
    """
    from raysere.base.errors import ConfigError, EnvironmentFault

    try:
        from raysere.serving.deployment import Options, read_token, serving, stop_signals, token_file_open_to, token_hash
    except ImportError as error:
        raise EnvironmentFault(f"Serving needs packages that are not here: {error.name}", remedy="pip install 'raysere[serve]'") from error
    given: dict[str, object] = {}
    for text in limits:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--limit {text!r} has no value", remedy="Write NAME=VALUE.")
        given[name] = value
    token = read_token(token_file, host)
    if token_file is not None and (told := token_file_open_to(token_file)):
        echo(told, err=True)
    options = Options(ensemble=str(folder), replicas=replicas, cpus=cpus, gpus=gpus, token_sha256=token_hash(token), limits=given)
    with serving(options, host=host, port=port) as server:
        with stop_signals() as stopped:
            echo(f"Serving ensemble {server.fingerprint} at {server.url} (API: {server.url}/docs). Stop with Ctrl-C.")
            name = stopped()
            echo(f"{name}: answering what was accepted, then ending.", err=True)
    return 0
