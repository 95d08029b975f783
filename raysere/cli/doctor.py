"""What this machine has and lacks, and how to repair it (``raysere doctor``)."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from raysere.base.cluster import cluster_address
from raysere.base.versions import PACKAGES, versions

EXTRAS = {
    "demo": "espeakng_loader",
    "opensmile": "opensmile",
    "audformat": "audformat",
    "cluster": "aiohttp",
    "serve": "fastapi",
    "video": "av",
    "notebooks": "nbclient",
}
# Parts that come with an extra and whose licences ask more than raysere's of whoever passes them
# on, or earns with them.
LICENCES = {
    "espeakng-loader": ("espeak-ng", "GPL-3"),
    "opensmile": ("openSMILE", "free for private, research and educational use, not for commercial use"),
    "av": ("FFmpeg, in the wheels of PyAV", "LGPL and GPL"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor:

    ``ok``, ``note`` (worth knowing), ``fault`` (something will not work).
    """

    level: Literal["ok", "note", "fault"]
    subject: str
    text: str
    cure: str = ""


def examine(*, store: Path = Path("."), network: bool = False) -> list[Finding]:
    """Look at everything once. ``network`` tries to reach the model hub (two seconds at most)."""
    return [*_packages(), *_torch(), *_machine(), *_cluster(), *_disk(store), *_hub(network), *_extras(), *_licences()]


def as_json(findings: list[Finding]) -> dict[str, Any]:
    return {"format": "raysere.cli.doctor/1", "versions": versions(), "findings": [asdict(finding) for finding in findings]}


def _packages() -> list[Finding]:
    found = versions()
    lines = [Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in PACKAGES:
        if name not in found:
            lines.append(Finding("fault", name, "is not installed", f"pip install {name}"))
    lines.append(Finding("ok", "packages", ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)))
    from packaging.version import Version

    if "ray" in found and Version(found["ray"]) < Version("2.52"):
        lines.append(Finding("fault", "ray", f"{found['ray']} has a known and exploited hole", "pip install 'ray[tune]>=2.52'"))
    return lines


def _torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from raysere.features.torchaudio_cpu import torchaudio_fault

    lines = []
    if fault := torchaudio_fault():
        lines.append(Finding("fault", "torchaudio", fault, "Run `raysere doctor --fix`."))
    else:
        lines.append(Finding("ok", "torchaudio", "imports beside this build of torch"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            lines.append(Finding("ok", f"gpu {index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB"))
    else:
        lines.append(Finding("note", "gpu", "none that torch can use: everything runs on the processor"))
    return lines


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lines = [Finding("ok", "cores", f"{cores} usable")]
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        lines.append(Finding("ok" if pages * size > 4 * 2**30 else "note", "memory", f"{pages * size / 2**30:.1f} GiB"))
    except (ValueError, OSError):
        lines.append(Finding("note", "memory", "cannot be read on this system"))
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free / 2**30
        if free < 1:
            lines.append(
                Finding(
                    "note", "/dev/shm", f"{free:.1f} GiB free: Ray falls back to slower files", "In a container: --shm-size=2g or more."
                )
            )
        else:
            lines.append(Finding("ok", "/dev/shm", f"{free:.1f} GiB free"))
    return lines


def _cluster() -> list[Finding]:
    """The cluster that commands would connect to, and Ray's doors on this machine that others can
    reach: whoever does can run code.
    """
    lines = []
    remedy = (
        "Set RAY_AUTH_MODE=token on every node and here (`ray get-auth-token --generate` makes the token), or listen on 127.0.0.1 alone."
    )
    if address := cluster_address():
        lines.append(Finding("ok", "ray cluster", f"RAY_ADDRESS is {address}"))
        if not _has_token(os.environ) and not address.startswith(("127.", "localhost", "auto", "http://127.", "http://localhost")):
            lines.append(Finding("note", "ray cluster", "no token authentication: whoever reaches the cluster can run code on it", remedy))
    for part, host, environment in _doors():
        if host not in ("127.0.0.1", "localhost", "::1") and not _has_token(environment):
            lines.append(
                Finding("note", part, f"listens on {host} without a token: whoever reaches it can run code on this machine", remedy)
            )
    return lines


def _has_token(environment: Mapping[str, str]) -> bool:
    """Whether a Ray with this environment asks for, or sends, a token: where nothing is said, Ray
    does as soon as it finds one.
    """
    if mode := environment.get("RAY_AUTH_MODE"):
        return mode.lower() == "token"
    named = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path(environment.get("HOME", "~")).expanduser() / ".ray" / "auth_token").is_file()


_DOORS = {  # the end of a word of its command line, and the option that says where it listens
    "dashboard/dashboard.py": ("ray dashboard", "--host="),
    "gcs/gcs_server": ("ray head", "--node-ip-address="),
}


def _doors(processes: Path = Path("/proc")) -> list[tuple[str, str, dict[str, str]]]:
    """Each Ray dashboard and head on this machine, its address and its environment, as far as this
    user may see them (Linux).
    """
    found = []
    for line in processes.glob("[0-9]*/cmdline"):
        try:
            words = line.read_text(errors="replace").split("\0")
            end = next((end for end in _DOORS if any(word.endswith(end) for word in words)), None)
            if end is None:
                continue
            part, option = _DOORS[end]
            host = next((word.partition("=")[2] for word in words if word.startswith(option)), "127.0.0.1")
            pairs = (line.parent / "environ").read_text(errors="replace").split("\0")
        except OSError:  # it ended, or is somebody else's
            continue
        found.append((part, host, dict(pair.split("=", 1) for pair in pairs if "=" in pair)))
    return found


def _disk(store: Path) -> list[Finding]:
    folder = store.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    lines = []
    free = shutil.disk_usage(folder).free / 2**30
    lines.append(Finding("ok" if free > 5 else "note", "disk", f"{free:.0f} GiB free at {folder}"))
    if not os.access(folder, os.W_OK):
        lines.append(
            Finding(
                "fault", "disk", f"no permission to write in {folder}", "Run elsewhere, or name other folders with `store:` and `runs:`."
            )
        )
    return lines


def _hub(network: bool) -> list[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return [Finding("note", "model hub", "HF_HUB_OFFLINE is set: `hf:` backbones load from folders and the local cache only")]
    if not network:
        return [Finding("ok", "model hub", "not tried (--network tries it); folders and the local cache work without it")]
    try:
        socket.create_connection(("huggingface.co", 443), timeout=2).close()
        return [Finding("ok", "model hub", "can be reached")]
    except OSError as error:
        return [
            Finding(
                "note",
                "model hub",
                f"cannot be reached ({error}): `hf:` backbones load from folders and the local cache only",
                "Download a model elsewhere and name its folder: hf:FOLDER.",
            )
        ]


def _extras() -> list[Finding]:
    lines = []
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        lines.append(
            Finding(
                "ok" if there else "note",
                f"extra {extra}",
                "installed" if there else "not installed",
                "" if there else f"pip install 'raysere[{extra}]'",
            )
        )
    return lines


def _licences() -> list[Finding]:
    """Licences that bind more than raysere's own, of what is installed here."""
    lines = []
    for package, (part, licence) in LICENCES.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            lines.append(Finding("note", "licence", f"{part} ({package} {importlib.metadata.version(package)}): {licence}"))
    return lines
