"""What the commands of the studies share: the folders that must be there, and running an experiment
or going on with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def need_folders(*names: str, inside: str = "") -> None:
    """Leave with exit code 3 unless each environment variable names a folder (that holds the folder
    ``inside``).
    """
    missing = [name for name in names if not (Path(os.environ.get(name) or "-") / inside).is_dir()]
    if missing:
        print(f"Error: {' and '.join(missing)} must name a folder{f' that holds {inside}/' if inside else ''}", file=sys.stderr)
        sys.exit(3)


def run(experiment: dict[str, Any], until: str = "evaluate") -> Path:
    """Run an experiment, or go on with it; its run folder."""
    from raysere.base.progress import Progress
    from raysere.pipeline.experiment import Experiment
    from raysere.pipeline.stages import run_experiment

    with Progress() as progress:
        return run_experiment(Experiment.model_validate(experiment), until=until, progress=progress).run
