"""Write requirements-image.txt: what the Dockerfile installs, at the versions of constraints.txt, with the SHA-256 of each wheel.

Run by `make image-requirements` in the environment of `make env`. torch is left out: its build differs by machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12")  # that of the image, and the other one that is supported; Linux on x86-64
APART = {"raysere", "torch", "setuptools"}  # the checkout; see above; a part of every Python
BACKEND = (
    "hatchling",
    "packaging",
    "pathspec",
    "pluggy",
    "trove-classifiers",
    "tomlkit",
)  # build raysere there; nothing else is fetched for it
HEADER = """\
# What the Dockerfile installs, at the versions of constraints.txt; written by `make image-requirements`, never by hand.
# The hashes are of the wheels for Linux on x86-64, Python {pythons}. torch is not here: its build differs by machine.
"""


def pinned() -> dict[str, str]:
    """Versions of constraints.txt by canonical name."""
    lines = re.findall(r"^([^#=\s]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    return {canonicalize_name(name): version for name, version in lines}


def needed() -> set[str]:
    """Canonical names of all that the image installs, by what the packages that are installed here say they need."""
    extras = re.search(r"^# extras: (.+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert extras is not None
    found: dict[str, set[str]] = {}
    to_do = [Requirement(f"raysere[{extras[1]}]"), *map(Requirement, BACKEND)]
    while to_do:
        one = to_do.pop()
        name = canonicalize_name(one.name)
        if name in found and one.extras <= found[name]:
            continue
        found.setdefault(name, set()).update(one.extras)
        if name in APART - {"raysere", "torch"} or name in BACKEND:
            continue
        for line in importlib.metadata.distribution(name).requires or []:
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in found[name] | {""}):
                to_do.append(child)
    return set(found) - APART


def hashes(requirements: dict[str, str], python: str) -> dict[str, str]:
    """SHA-256 of the wheel that pip takes for each requirement under a version of Python."""
    environment = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}  # no copies that lie here
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--only-binary=:all:", "--ignore-installed"]
        command += ["--python-version", python, "--target", folder, "--report", str(report)]
        subprocess.run([*command, *(f"{name}=={version}" for name, version in requirements.items())], env=environment, check=True)
        installs = json.loads(report.read_text())["install"]
    return {canonicalize_name(one["metadata"]["name"]): one["download_info"]["archive_info"]["hashes"]["sha256"] for one in installs}


def main() -> None:
    pins = pinned()
    requirements = {name: pins[name] for name in sorted(needed())}
    found = [hashes(requirements, python) for python in PYTHONS]
    lines = [HEADER.format(pythons=" and ".join(PYTHONS))]
    for name, version in requirements.items():
        each = sorted({one[name] for one in found})
        lines.append(f"{name}=={version} \\\n" + " \\\n".join(f"    --hash=sha256:{one}" for one in each) + "\n")
    (ROOT / "requirements-image.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
