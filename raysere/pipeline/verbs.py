"""Work on existing runs: open, evaluate and fuse them, predict files; and write the demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raysere.base.errors import ConfigError, MissingFileError
from raysere.base.files import atomic_write
from raysere.base.progress import Progress
from raysere.pipeline.experiment import storage
from raysere.pipeline.lock import only_driver
from raysere.pipeline.prepare import run_settings


def open_run(run: str | os.PathLike[str]) -> Path:
    """The folder of a run, given as a folder or as a name under ``runs``, here or in
    RAYSERE_STORAGE.

    Raises MissingFileError with the runs there are.
    """
    given = Path(run).expanduser()
    runs = storage() / "runs"
    for folder in (given, runs / given):
        if (folder / "experiment.yaml").is_file() and (folder / "manifest.parquet").is_file():
            run_settings(folder / "experiment.yaml")
            return folder
    there = sorted(str(path.parent) for path in runs.glob("*/experiment.yaml")) if runs.is_dir() else []
    raise MissingFileError(f"There is no run {str(run)!r}", choices=there or None, remedy="A run is a folder that `raysere run` wrote.")


def evaluate_run(run: str | os.PathLike[str]) -> dict[str, Any]:
    """Fit the ensemble of a run again and score it on held-out rows.

    Writes the folder ``ensemble`` and ``evaluation.json``; trains no trial.

    Args:
        run: folder of the run, or its name below ``runs``.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        MissingFileError: there is no such run. DataError: it has no finished trial.

    Example:
        >>> raysere.evaluate("runs/emodb")["ensemble"]["value"]  # doctest: +SKIP
    """
    from raysere.ensemble.evaluate.evaluation import evaluate

    folder = open_run(run)
    with only_driver(folder):
        return evaluate(folder)


def fuse_runs(runs: list[Path], out: Path, *, family: str | None = None) -> dict[str, Any]:
    """Fuse the finished trials of several runs into one ensemble, and evaluate it.

    Args:
        runs: folders of runs with the same classes, protocol and seed.
        out: new or empty folder for the ensemble.
        family: how members are weighted; default: as the first run's experiment says.

    Returns:
        The evaluation, as :func:`evaluate_run` gives it.

    Raises:
        ConfigError: ``out`` is not empty, or the family is unknown. DataError: the runs do not fit.

    Example:
        >>> raysere.fuse([Path("runs/voice"), Path("runs/words")], Path("fused"))  # doctest: +SKIP
    """
    from raysere.ensemble.evaluate.evaluation import evaluate_runs

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("This folder is not empty", where=out, remedy="Name a new one with --out.")
    return evaluate_runs([open_run(run) for run in runs], out, family=family)


def predict_files(
    folder: Path, files: list[str], texts: list[str], speaker: str | None = None, corpus: str | None = None
) -> list[dict[str, Any]]:
    """Rows of predictions, one for each file (or one for each text where there are no files); a file that
    cannot be used has ``error``.
    """
    from raysere.ensemble.saved.ensemble import Ensemble

    if not files and not texts:
        raise ConfigError("Nothing to predict", remedy="Name audio files, or give --text.")
    if files and texts and len(texts) != len(files):
        raise ConfigError(
            f"{len(texts)} texts for {len(files)} files", remedy="Give --text once for each file, in their order ('' for none)."
        )
    count = len(files) or len(texts)
    table = Ensemble.load(folder).predict(
        files or None,
        texts=texts or None,
        speakers=[speaker] * count if speaker else None,
        corpora=[corpus] * count if corpus else None,
    )
    return table.to_dicts()


def write_demo(folder: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """Synthesise the demo corpus into FOLDER/corpus and write FOLDER/experiment.yaml; returns the
    experiment's path.
    """
    from importlib.resources import files

    from raysere.demo.corpus import make_demo

    make_demo(folder / "corpus", seed=seed, progress=progress)
    packaged = Path(str(files("raysere"))) / "experiments" / "demo.yaml"
    source = packaged if packaged.is_file() else Path(__file__).resolve().parents[2] / "experiments" / "demo.yaml"
    with atomic_write(folder / "experiment.yaml") as temporary:
        temporary.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return folder / "experiment.yaml"
