"""What is installed by whom: `make`, the hashes of the image, and the licences that are told."""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from raysere.cli import doctor

ROOT = Path(__file__).resolve().parent.parent
PYTHON = """#!/bin/sh
[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/raysere"
echo "$(basename "$0") $*" >> log
"""


@pytest.fixture
def make(tmp_path):
    """`make` in a bare checkout, with a Python that notes what it is called with; gives what a
    target installed and ran.
    """
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python3").write_text(PYTHON)
    (tmp_path / "python3").chmod(0o755)

    def run(*targets: str) -> list[str]:
        log = tmp_path / "log"
        log.write_text("")
        command = ["make", f"PYTHON={tmp_path / 'python3'}", *targets]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return re.findall(r"-m venv|\.\[\w+\]|^raysere run", log.read_text(), re.M)

    return run


def test_the_demo_installs_what_the_demo_needs(make):
    assert make("demo") == ["-m venv", ".[demo]", "raysere run"]
    assert make("demo") == ["raysere run"]
    assert make("env") == [".[test]"]  # the rest comes when it is asked for
    assert make("env") == []


def test_the_demo_installs_nothing_after_env(make):
    assert make("env") == ["-m venv", ".[test]"]
    assert make("demo") == ["raysere run"]
    assert make("env") == []


def test_two_targets_at_once_install_one_after_the_other(make, tmp_path):
    assert make("-j2", "demo", "env") == ["-m venv", ".[demo]", "raysere run", ".[test]"]
    for stamp in (tmp_path / ".venv").glob(".installed*"):
        os.utime(stamp, (1, 1))  # older than constraints.txt
    assert make("-j2", "env", "demo") == [".[test]", "raysere run"]


def test_the_demo_brings_no_licence_against_commercial_use():
    extras = re.search(r"^demo = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert not {"opensmile", "test"} & set(re.findall(r"\w+", extras))


def test_each_package_of_the_image_has_hashes_of_its_pinned_version():
    script = runpy.run_path(str(ROOT / ".ci/image_requirements.py"))
    pins, needed = script["pinned"](), script["needed"]()
    assert {"ray", "fastapi", "torchaudio", "transformers", "opensmile", "hatchling"} <= needed
    text = (ROOT / "requirements-image.txt").read_text()
    entries = re.findall(r"^(\S+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", text, re.M)
    assert {name: version for name, version, _ in entries} == {name: pins[name] for name in needed}  # `make image-requirements`
    assert len(entries) == len([line for line in text.splitlines() if "==" in line])
    assert not re.search(r"^torch==|://|--index|--find-links", text, re.M)


def test_the_doctor_and_the_readme_name_the_licences_of_what_is_there(monkeypatch):
    there = {"espeakng-loader": "1", "opensmile": "2", "av": "3"}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    told = " ".join(finding.text for finding in doctor._licences())
    assert all(word in told for word in ("espeak-ng", "GPL-3", "openSMILE", "not for commercial use", "FFmpeg", "LGPL"))
    readme = (ROOT / "README.md").read_text()
    assert all(part.split(",")[0] in readme for part, _ in doctor.LICENCES.values())
    there.pop("opensmile")
    assert [finding.text.split()[0] for finding in doctor._licences()] == ["espeak-ng", "FFmpeg,"]
    there.clear()
    assert doctor._licences() == []
