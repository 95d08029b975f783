"""``raysere analyze``: the commands that study features instead of training on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from raysere.cli.options import EXPERIMENT, JSON, QUIET, SET, echo


@click.group()
def analyze() -> None:
    """Study features across corpora: alike layers, shared units.

    Both commands compare the corpora of one experiment, most often two languages.

    \b
    Example: raysere analyze layers emodb-emovo.yaml --source emodb --target emovo
    """


def _ends(out: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The options that every study has; ``out`` says where its answer goes by default."""
    options = (
        click.option(
            "--no-oracle",
            is_flag=True,
            help="Leave out the part marked ORACLE. It reads emotion labels that a transfer to a new language would not have.",
        ),
        click.option("--out", type=click.Path(path_type=Path), help=f"Folder of the answer; default: {out}."),
        SET,
        JSON,
        QUIET,
    )

    def add(command: Callable[..., int]) -> Callable[..., int]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@analyze.command()
@EXPERIMENT
@click.option("--feature", help="Which of the experiment's features; default: its first.")
@click.option("--source", help="The labelled corpus; default: every corpus in turn.")
@click.option("--target", help="The corpus to transfer to; default: every other one in turn.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "mean_std"]),
    default="mean",
    show_default=True,
    help="One vector an utterance: the mean of its frames, or mean and standard deviation.",
)
@click.option(
    "--similarity",
    metavar="MEASURE",
    default="covariance_gap",
    show_default=True,
    help="Measure of how alike a layer is in both corpora, by which anchor layers are chosen; an unknown name lists them all.",
)
@click.option(
    "--width", default=3, show_default=True, type=click.IntRange(1), help="How many neighbouring layers make up the group of anchor layers."
)
@click.option(
    "--gamma",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How much the likeness of a layer counts when anchors are chosen, beside how well it tells emotions in the source "
    "(which counts 1). At 0 only the latter counts.",
)
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    metavar="PARQUET",
    help="Compare pieces of speech that both languages have, such as vowels, too: a table with the columns utterance, cell (the name of "
    "the piece), layer and vector. No emotion label is needed.",
)
@click.option("--draws", default=1000, show_default=True, type=click.IntRange(50), help="Bootstrap draws of speakers, for the intervals.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of folds, draws and random choices.")
@_ends(out="`layers` in the run folder")
def layers(
    experiment: Path,
    feature: str | None,
    source: str | None,
    target: str | None,
    pooling: str,
    similarity: str,
    width: int,
    gamma: float,
    cells: Path | None,
    draws: int,
    seed: int,
    no_oracle: bool,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare the layers of one feature across corpora.

    All corpora of the EXPERIMENT are compared in pairs. It writes layers.json, tables and layers.html.

    \b
    Example: raysere analyze layers emodb-emovo.yaml --feature speech --source emodb --target emovo
    """
    import json

    from raysere.base.progress import Progress
    from raysere.cli.text import layers_text
    from raysere.pipeline.experiment import load_experiment
    from raysere.studies import analyze_layers
    from raysere.studies.layers.compare import Settings

    settings = Settings(draws=draws, similarity=similarity, width=width, gamma=gamma, seed=seed)
    with Progress(quiet=quiet) as progress:
        found = analyze_layers(
            load_experiment(experiment, overrides),
            settings,
            feature=feature,
            source=source,
            target=target,
            pooling=pooling,
            cells=cells,
            read_target_labels=not no_oracle,
            out=out,
            progress=progress,
        )
    echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else layers_text(found))
    return 1 if found["rejected"] else 0


@analyze.command()
@EXPERIMENT
@click.option("--feature", help="Which of the experiment's features; default: the only one of audio.")
@click.option("--layer", type=click.IntRange(0), help="Layer; default: the one whose units tell phones apart best.")
@click.option("--units", type=click.IntRange(2), help="Number of units; default: the largest usual one that the vowels have frames for.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A further setting, such as norm=speaker, seeds=3, permutations=500 or min_speakers=6. Repeatable.",
)
@_ends(out="NAME-units beside the run folder")
def units(
    experiment: Path,
    feature: str | None,
    layer: int | None,
    units: int | None,
    options: tuple[str, ...],
    no_oracle: bool,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Learn units of speech, and what corpora share of them.

    Discrete units are learned from all corpora of an EXPERIMENT; the answer says what languages, vowels and emotions share of them.

    Writes units.json, the codebook, tables as parquet, figures as SVG and units.html. A feature that the experiment has not by frames is
    cached by frames first, all its layers, or the one of --layer.

    \b
    Example: raysere analyze units emodb.yaml --feature speech --units 20
    """
    import json

    from raysere.base.bounds import parse_yaml
    from raysere.base.errors import ConfigError
    from raysere.base.progress import Progress
    from raysere.cli.text import units_text
    from raysere.pipeline.experiment import load_experiment
    from raysere.studies import analyze_units

    settings: dict[str, object] = {key: value for key, value in (("layer", layer), ("units", units)) if value is not None}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option takes key=value, not {option!r}", remedy="For example: --option norm=speaker")
        settings[key] = parse_yaml(value, where=f"--option {option[:200]}")
    if no_oracle:
        settings["oracle"] = False
    with Progress(quiet=quiet) as progress:
        folder, found = analyze_units(
            load_experiment(experiment, overrides), feature=feature, out=out, settings=settings, progress=progress
        )
    echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else units_text(found, folder))
    return 0
