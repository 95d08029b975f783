"""Arguments and options that several commands share, and printing."""

from __future__ import annotations

from pathlib import Path

import click

from raysere.base.progress import printable

EXPERIMENT = click.argument("experiment", type=click.Path(path_type=Path))
RUN = click.argument("run", type=click.Path(path_type=Path))
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the experiment, such as search.0.trials=40. Repeatable.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of text.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress display.")


def echo(value: object, *, err: bool = False) -> None:
    """Print to standard output (or error).

    The one place where commands print: names in it cannot steer the terminal.
    """
    click.echo(printable(str(value)), err=err)
