"""The command line: arguments, messages and exit codes.

Exit codes: 0 done, 1 done but some inputs were rejected (they are listed), 2 wrong usage or
configuration, 3 environment (disk, memory, device, network), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from raysere.base.errors import RaysereError, machine_fault
from raysere.cli.analyze import analyze
from raysere.cli.options import EXPERIMENT, JSON, QUIET, RUN, SET, echo
from raysere.cli.serve import serve
from raysere.cli.submit import submit

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="raysere", prog_name="raysere")
def cli() -> None:
    """Search, fuse and honestly evaluate speech emotion recognition systems.

    \b
    A first run:   raysere demo demo && raysere run demo/experiment.yaml
    Your corpus:   raysere init my.yaml --corpus emodb --path ~/corpora/emodb && raysere run my.yaml
    """


cli.add_command(analyze)
cli.add_command(serve)
cli.add_command(submit)


def main() -> None:
    """Entry point: turns every expected error into one message and its exit code."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        echo(shown.getvalue().rstrip("\n"), err=True)
        code = error.exit_code if error.exit_code != 1 else 2
    except (click.Abort, KeyboardInterrupt):
        again = "raysere " + " ".join(sys.argv[1:])
        echo(f"\nInterrupted. Finished work is kept; go on with:\n  {again}", err=True)
        code = 130
    except RaysereError as error:
        from raysere.pipeline.job import job_hint

        echo(f"Error: {error}", err=True)
        if hint := job_hint(error):
            echo(hint, err=True)
        code = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except Exception as error:
        if fault := machine_fault(error):
            echo(f"Error: {fault}", err=True)
        else:
            import traceback

            echo(traceback.format_exc(), err=True)
            echo("Error: this is a fault of raysere, not of your input. Finished work is kept; the lines above tell where it is.", err=True)
        code = 3
    sys.exit(code or 0)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    from raysere.base.progress import Progress

    with Progress(quiet=quiet) as progress:
        yield progress


def _print_json(value: Any) -> None:
    echo(json.dumps(value, indent=2, ensure_ascii=False))


def _finish(outcome: Any, as_json: bool, allow_rejected: bool) -> int:
    from raysere.cli.text import outcome_json, outcome_text

    if as_json:
        _print_json(outcome_json(outcome))
    else:
        echo(outcome_text(outcome))
    return 1 if outcome.rejected and not allow_rejected else 0


@cli.command()
@EXPERIMENT
@click.option(
    "--corpus",
    required=True,
    help="Name of a corpus adapter (emodb, emovo, nemo, urdu, ravdess, crema-d, meld, msp-podcast, biic-podcast, table, audformat).",
)
@click.option("--path", "folder", required=True, type=click.Path(path_type=Path), help="Folder of the corpus, or the table file.")
@click.option("--classes", help="Class map; default: the corpus's own.")
@click.option(
    "--task",
    "kind",
    type=click.Choice(["categorical", "dimensional", "both"]),
    default="categorical",
    show_default=True,
    help="What is predicted: classes, attributes such as arousal and valence, or both.",
)
@click.option("--force", is_flag=True, help="Replace an experiment that is there.")
def init(experiment: Path, corpus: str, folder: Path, classes: str | None, kind: str, force: bool) -> int:
    """Write a commented EXPERIMENT.yaml for a corpus folder.

    \b
    Example: raysere init emodb.yaml --corpus emodb --path ~/corpora/emodb
    """
    from raysere.cli.init import write_experiment

    for line in write_experiment(experiment, corpus=corpus, folder=folder, classes=classes, kind=kind, force=force):
        echo(line)
    echo(f"Wrote {experiment}. Next: raysere plan {experiment}, then raysere run {experiment}")
    return 0


@cli.command()
@EXPERIMENT
@SET
@JSON
@click.option("--seconds", default=10.0, show_default=True, help="Measure the speed of each backbone for so many seconds; 0 skips it.")
@click.option("--nodes", type=click.IntRange(1), help="Price it on a cluster of that many nodes as well.")
@click.option("--gpu", "gpu", metavar="KIND", help="GPU of each node: none, t4, l4, a10g, a100, h100, h200.  [default: none]")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="GPUs of a node.")
@click.option("--cores", type=click.IntRange(1), help="Cores of a node.  [default: as many as here]")
@click.option(
    "--link",
    type=click.FloatRange(0, min_open=True),
    metavar="GBIT/S",
    default=10.0,
    show_default=True,
    help="Speed of the network between one node and the shared storage.",
)
@click.option(
    "--storage",
    type=click.FloatRange(0, min_open=True),
    metavar="GBIT/S",
    default=20.0,
    show_default=True,
    help="Speed of the shared storage, all nodes together. A number; it is `raysere submit` that is given the folder.",
)
@click.option(
    "--trial-seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="How long one trial takes, if you know it.  [default: the mean of the run's finished trials, or else a guess]",
)
def plan(
    experiment: Path,
    overrides: tuple[str, ...],
    as_json: bool,
    seconds: float,
    nodes: int | None,
    gpu: str | None,
    gpus: int,
    cores: int | None,
    link: float,
    storage: float,
    trial_seconds: float | None,
) -> int:
    """Price an experiment before it runs: bytes, time, trials.

    Durations of the audio and a short measurement tell what the features cost. With --nodes or --gpu it is priced on a cluster, too:
    hours, network, and beyond how many nodes one more does not pay; all options from --gpus to --trial-seconds are for that price alone.
    Trials that the run has finished already tell how long one takes, so a search of three trials makes a good price of three thousand.

    \b
    Example: raysere plan emodb.yaml --seconds 5
             raysere plan emodb.yaml --nodes 8 --gpu h100 --cores 16
    """
    from raysere.base.cluster import available_cores
    from raysere.cli.text import plan_text
    from raysere.pipeline.cluster_cost import Cluster
    from raysere.pipeline.cost import price
    from raysere.pipeline.experiment import load_experiment

    cluster = None
    if nodes or gpu:
        cluster = Cluster(nodes or 1, (gpu or "none").lower(), gpus, cores or available_cores(), link * 1e9 / 8, storage * 1e9 / 8)
    priced = price(load_experiment(experiment, overrides), seconds=seconds, cluster=cluster, trial_seconds=trial_seconds)
    _print_json(priced) if as_json else echo(plan_text(priced))
    return 0


_RETRY = click.option("--retry-errors", is_flag=True, help="Run those trials again that are recorded as failed by an unexpected error.")


def _stage(name: str, until: str, summary: str, example: str) -> None:
    @cli.command(name, help=f"{summary}\n\n\b\nExample: {example}")
    @EXPERIMENT
    @SET
    @JSON
    @QUIET
    @(_RETRY if until != "extract" else lambda command: command)
    @click.option(
        "--allow-rejected",
        is_flag=True,
        help="End with code 0, not 1, where inputs were rejected (they are listed all the same). "
        "For jobs on a cluster, where any code but 0 means failure.",
    )
    def command(
        experiment: Path, overrides: tuple[str, ...], as_json: bool, quiet: bool, allow_rejected: bool, retry_errors: bool = False
    ) -> int:
        from raysere.pipeline.experiment import load_experiment
        from raysere.pipeline.stages import run_experiment

        with _progress(quiet) as progress:
            outcome = run_experiment(load_experiment(experiment, overrides), until=until, progress=progress, retry_errors=retry_errors)
        return _finish(outcome, as_json, allow_rejected)


_stage(
    "extract",
    "extract",
    "Cache the features of an experiment. What is cached already is not computed again; nothing is trained.",
    "raysere extract emodb.yaml",
)
_stage(
    "tune",
    "tune",
    "Cache the features and search. Finished trials are never run again.",
    "raysere tune emodb.yaml --set search.0.trials=40",
)
_stage(
    "run",
    "report",
    "Do everything: features, search, ensemble, report. The ensemble is scored on held-out rows before that. What is done is skipped.",
    "raysere run emodb.yaml",
)


@cli.command()
@RUN
@JSON
@click.option("--top", default=20, show_default=True, help="Rows to print; 0 prints all.")
def leaderboard(run: Path, as_json: bool, top: int) -> int:
    """Print the trials of a RUN, best first.

    The run folder has the same table as leaderboard.parquet.

    \b
    Example: raysere leaderboard runs/emodb --top 10
    """
    from raysere.cli.text import leaderboard_text
    from raysere.pipeline.verbs import open_run
    from raysere.search.leaderboard import leaderboard as table_of

    table = table_of(open_run(run))
    if as_json:
        _print_json(table.to_dicts())
    else:
        echo(leaderboard_text(table, top))
    return 0


@cli.command()
@RUN
@JSON
def status(run: Path, as_json: bool) -> int:
    """Say how far a RUN is: its stage, the time left, its trials.

    It works from another shell while the run goes on, and on a run that was stopped.

    \b
    Example: raysere status runs/emodb
    """
    from raysere.cli.text import status_text
    from raysere.pipeline.status import run_status

    found = run_status(run)
    _print_json(found) if as_json else echo(status_text(found))
    return 0


@cli.command()
@RUN
@JSON
@click.option(
    "--ablation", is_flag=True, help="Only say what each part of the procedure is worth, by leaving it out; writes ablation.json."
)
def evaluate(run: Path, as_json: bool, ablation: bool) -> int:
    """Fit the ensemble of a RUN and score it on held-out rows.

    It takes the trials as they are and trains none. It writes the folder `ensemble` and evaluation.json, with
    95 % intervals over speakers (or over dialogues or sentences, where the splits are by these).

    \b
    Example: raysere evaluate runs/emodb
    """
    from raysere.cli.text import ablation_text, evaluation_text
    from raysere.pipeline.verbs import evaluate_run, open_run

    if ablation:
        from raysere.base.files import read_yaml, write_json
        from raysere.ensemble.evaluate.ablation import ablate

        folder = open_run(run)
        rows = ablate(folder)
        write_json(folder / "ablation.json", {"format": "raysere.ablation/1", "rows": rows})
        _print_json(rows) if as_json else echo(ablation_text(rows, read_yaml(folder / "experiment.yaml")["task"]["metric"]))
        return 0

    evaluation = evaluate_run(run)
    _print_json(evaluation) if as_json else echo(evaluation_text(evaluation))
    return 0


@cli.command()
@RUN
def report(run: Path) -> int:
    """Write report.html for a RUN: one page that needs no network.

    \b
    Example: raysere report runs/emodb
    """
    from raysere.pipeline.verbs import open_run
    from raysere.report.page import write_report

    echo(write_report(open_run(run)))
    return 0


@cli.command()
@RUN
@click.option("--port", default=6006, show_default=True, help="0 takes a free one; TensorBoard says which.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; beyond this machine anyone who reaches it can read the run."
)
def tensorboard(run: Path, port: int, host: str) -> int:
    """Watch the trials of a RUN in TensorBoard, also as it runs.

    There are scalars, hparams, confusion matrices, the weights of layers, and the resources of each trial.

    \b
    Example: raysere tensorboard runs/emodb --port 6007
    """
    from raysere.pipeline.verbs import open_run
    from raysere.serving.origin import on_loopback
    from raysere.serving.watching import watch

    logs = open_run(run) / "search"
    if not on_loopback(host):
        echo(f"TensorBoard asks for no token: whoever reaches {host} reads this run. `ssh -L` is safer.", err=True)
    return watch(logs, host, port)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the ensemble.")
@click.option(
    "--family",
    type=click.Choice(
        [
            "auto",
            "best_single",
            "average",
            "vote",
            "greedy_once",
            "greedy",
            "convex",
            "blend",
            "stack",
            "rank",
            "ccc_weighted",
            "nnls",
            "shrunk",
        ]
    ),
    metavar="FAMILY",
    help="How members are chosen and weighed: one of the families above.  [default: that of the first run's experiment]",
)
@JSON
def ensemble(runs: tuple[Path, ...], out: Path, family: str | None, as_json: bool) -> int:
    """Fuse finished trials of several RUNS into one ensemble.

    The runs must have the same classes. Nothing is trained but the weights of the ensemble.

    \b
    Families of weights:
      auto         chosen by inner folds of speakers: blend, unless another one is clearly better
      best_single  the one member that scores best by itself
      average      all members alike
      vote         each member has one vote for its class
      greedy_once  members are added one by one, while the score rises
      greedy       the mean of many greedy passes, over halves of the members
      convex       weights of the greatest likelihood, none negative
      blend        the mean of greedy and convex
      stack        a logistic regression on the answers of the members

    \b
    Families for arousal, valence and dominance alone:
      rank          the mean of the ranks that the members give
      ccc_weighted  weights by each member's own score
      nnls          least squares, no weight negative
      shrunk        least squares, drawn towards equal weights

    \b
    Example: raysere ensemble runs/emodb runs/emodb-text --out ensembles/both
    """
    from raysere.cli.text import evaluation_text
    from raysere.pipeline.verbs import fuse_runs

    evaluation = fuse_runs(list(runs), out, family=family)
    _print_json(evaluation) if as_json else echo(evaluation_text(evaluation) + f"\nSaved in {out}")
    return 0


@cli.command()
@click.argument("folder", metavar="ENSEMBLE", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--text", "texts", multiple=True, help="Transcript of a file, in the order of the files; repeatable. Without files: text only."
)
@click.option("--speaker", help="All files are of this one speaker (for members that normalise by speaker).")
@JSON
@click.option("--corpus", help="All files are recorded like this corpus of the training data (for members that normalise by corpus).")
def predict(folder: Path, files: tuple[Path, ...], texts: tuple[str, ...], speaker: str | None, corpus: str | None, as_json: bool) -> int:
    """Predict the emotion of audio FILES with a saved ENSEMBLE.

    \b
    Example: raysere predict runs/emodb/ensemble clip.wav --text "Das will sie am Mittwoch abgeben."
    """
    from raysere.cli.text import prediction_text
    from raysere.pipeline.verbs import predict_files

    rows = predict_files(folder, [str(file) for file in files], list(texts), speaker, corpus)
    _print_json(rows) if as_json else echo(prediction_text(rows))
    return 1 if any(row.get("error") for row in rows) else 0


@cli.command()
@click.argument("folder", default="demo", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Another seed makes another corpus.")
@QUIET
def demo(folder: Path, seed: int, quiet: bool) -> int:
    """Make the demo: synthetic speech, and an experiment for it.

    A synthesiser speaks English, Mandarin and Russian into FOLDER; what is learned from it says nothing about real speakers.

    \b
    Example: raysere demo demo && raysere run demo/experiment.yaml
    """
    from raysere.pipeline.verbs import write_demo

    with _progress(quiet) as progress:
        experiment = write_demo(folder, seed=seed, progress=progress)
    echo(f"Wrote {experiment}. Next: raysere run {experiment}")
    return 0


@cli.command()
@click.option("--fix", is_flag=True, help="Repair what can be repaired (a torchaudio wheel made for another build of torch).")
@click.option("--network", is_flag=True, help="Try to reach the model hub, too.")
@JSON
@QUIET
def doctor(fix: bool, network: bool, as_json: bool, quiet: bool) -> int:
    """Say what this machine has and what will not work on it.

    \b
    Example: raysere doctor --fix
    """
    from raysere.cli.doctor import as_json as findings_json
    from raysere.cli.doctor import examine

    if fix:
        from raysere.features.torchaudio_cpu import repair_torchaudio, torchaudio_fault

        if torchaudio_fault():
            echo(repair_torchaudio(), err=True)
    findings = examine(network=network)
    if as_json:
        _print_json(findings_json(findings))
    else:
        marks = {"ok": "  ok  ", "note": " note ", "fault": " FAULT"}
        for finding in findings:
            if not quiet or finding.level == "fault":
                echo(f"{marks[finding.level]} {finding.subject}: {finding.text}{'  -> ' + finding.cure if finding.cure else ''}")
    return 3 if any(finding.level == "fault" for finding in findings) else 0


@cli.command()
@click.argument("kind", type=click.Choice(["experiment", "space"]))
def schema(kind: str) -> int:
    """Print the JSON schema of experiments or of search spaces.

    \b
    Example: raysere schema experiment > experiment.schema.json
    """
    if kind == "experiment":
        from raysere.pipeline.experiment import Experiment

        _print_json(Experiment.model_json_schema())
    else:
        from raysere.search.space.grammar import space_schema

        _print_json(space_schema())
    return 0
