"""What a user installs is the wheel: it must hold the search spaces, the experiments and the
report's page, and run the demo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Environment variables with which the installed wheel, and not the source tree, is imported."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=300
    )
    wheel = next(folder.glob("raysere-*.whl"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site"), str(wheel)],
        check=True,
        timeout=300,
    )
    return {**os.environ, "PYTHONPATH": str(folder / "site")}, folder


def test_the_installed_wheel_runs_the_demo(installed):
    environment, folder = installed

    def raysere(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-P", "-m", "raysere", *arguments],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    where = subprocess.run(
        [sys.executable, "-P", "-c", "import raysere; print(raysere.__file__)"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(folder / "site") in where.stdout
    done = raysere("demo", "demo", "--quiet")
    assert done.returncode == 0, done.stderr
    few = [f"--set=search.{number}.trials=2" for number in range(3)]
    done = raysere("run", "demo/experiment.yaml", "--quiet", *few)
    assert done.returncode == 0, done.stderr
    assert "Report: runs/demo/report.html" in done.stdout
    report = (folder / "runs/demo/report.html").read_text()
    assert "Synthetic speech." in report
    assert "http" not in report.replace("http-equiv", "")  # nothing is fetched
    assert "src=" not in report
    evaluation = json.loads((folder / "runs/demo/evaluation.json").read_text())
    assert evaluation["split"] == "test"
    assert evaluation["synthetic"] is True
    clip = next((folder / "demo/corpus/audio").rglob("*.flac"))
    answer = raysere("predict", "runs/demo/ensemble", str(clip), "--text", "leave me alone", "--json")
    assert answer.returncode == 0, answer.stderr
    row = json.loads(answer.stdout)[0]
    assert abs(sum(value for key, value in row.items() if key.startswith("p.")) - 1) < 1e-5
    assert not (folder / "site" / "tests").exists()
