"""``raysere submit``: arguments and messages; :mod:`raysere.pipeline.job` does the work."""

from __future__ import annotations

from pathlib import Path

import click

from raysere.cli.options import EXPERIMENT, SET, echo


@click.command()
@EXPERIMENT
@click.option(
    "--address", default="http://127.0.0.1:8265", envvar="RAY_API_SERVER_ADDRESS", show_default=True, help="URL of the cluster's dashboard."
)
@SET
@click.option(
    "--storage",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    envvar="RAYSERE_STORAGE",
    help="Folder that every node of the cluster mounts; relative folders of the experiment (runs, features) then lie in it.",
)
@click.option(
    "--working-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=".",
    show_default=True,
    help="The folder that is sent.",
)
@click.option("--no-wait", is_flag=True, help="Return when the cluster has taken the job.")
@click.option("--dry-run", is_flag=True, help="Print the line and what would be sent; submit nothing.")
def submit(
    experiment: Path, address: str, overrides: tuple[str, ...], storage: Path | None, working_dir: Path, no_wait: bool, dry_run: bool
) -> int:
    """Run an EXPERIMENT as a job on a Ray cluster.

    It prints the `ray job submit` line, and runs it.

    \b
    Example: raysere submit emodb.yaml --storage /shared/raysere
             raysere submit demo/experiment.yaml --working-dir demo --storage /shared/raysere --no-wait

    The same line again resumes a job that was stopped: finished trials are not run again. The exit code is that of `raysere run` in
    the job; 130 where the job was stopped. Rejected inputs are listed in the log and do not make the job fail.
    """
    from raysere.pipeline.job import prepare_submission
    from raysere.pipeline.job import submit as submit_job

    job = prepare_submission(experiment, address=address, overrides=overrides, storage=storage, working_dir=working_dir, no_wait=no_wait)
    for warning in job.warnings:
        echo(f"Warning: {warning}", err=True)
    size = sum(job.files.values()) / 2**20
    echo(f"Sends {len(job.files)} files, {size:.1f} MiB, of {job.working_dir}", err=True)
    if job.secrets:
        more = f" and {len(job.secrets) - 10} more" if len(job.secrets) > 10 else ""
        echo(f"Not sent, because it looks like a secret: {', '.join(job.secrets[:10])}{more}", err=True)
    echo(job.line)
    return 0 if dry_run else submit_job(job, address=address, say=echo)
