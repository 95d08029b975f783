"""An experiment as a Ray job: the files that are sent, the command, and how the job ended.

Only files of the working folder are sent (Ray's ``working_dir``), never packages: those are in the
cluster's image, the same on every node.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raysere.base.cluster import in_job
from raysere.base.errors import ConfigError, EnvironmentFault, MissingFileError, RaysereError
from raysere.base.files import as_yaml
from raysere.pipeline.experiment import STORAGE, Experiment, load_experiment, read_experiment

ADDRESS = "http://127.0.0.1:8265"
LIMIT_BYTES = 512 << 20  # Ray takes no more in one package
_ALWAYS_OUT = (".git", ".venv", "venv", "__pycache__")  # what Ray leaves out without being told
_IGNORE_FILES = (".gitignore", ".rayignore")
# Never sent, as .gitignore would name it. Ordinary data and code have other names; what was left
# out is told.
SECRETS = (
    ".env", ".env.*", "*.env", ".envrc", "*token", "*token.txt",
    "secret.*", "secrets.*", "client_secret*.json", "credentials", "credentials.*", "kubeconfig",
    "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa", "id_ecdsa", "id_ed25519",
    ".netrc", ".pypirc", ".npmrc", ".git-credentials", ".ssh", ".aws", ".kube",
)  # fmt: skip
_TOKEN = re.compile(rb"[A-Za-z0-9+/=_.-]{16,4096}\s*")  # a file that holds one such word and nothing else, whatever its name
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY")
_SMALL_BYTES = 1 << 16  # no token or key is larger
_SUBMITTED = re.compile(r"'(raysubmit_\w+)' submitted")
_STATUS_CODES = {"SUCCEEDED": 0, "STOPPED": 130}


@dataclass(frozen=True)
class Submission:
    """A job that is ready to be submitted.

    Attributes:
        command: the ``ray job submit`` line, a word each.
        working_dir: the folder that is sent.
        files: what of it is sent, relative, with sizes in bytes.
        secrets: what of it is not sent because it looks like a token, a key or a password,
            relative.
        warnings: what will probably not be as the user thinks.
    """

    command: list[str]
    working_dir: Path
    files: dict[str, int]
    secrets: list[str]
    warnings: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """The command as it can be pasted into a shell, in the folder that ``raysere submit`` was
        called in.
        """
        return shlex.join(self.command)


def prepare_submission(
    experiment: Path,
    *,
    address: str = ADDRESS,
    overrides: Sequence[str] = (),
    storage: Path | None = None,
    working_dir: Path = Path("."),
    no_wait: bool = False,
) -> Submission:
    """Check an experiment as far as this machine can, and say how it is submitted.

    Args:
        experiment: the file, inside of ``working_dir``.
        address: URL of the cluster's dashboard.
        overrides: ``key=value``, handed on to ``raysere run``.
        storage: folder on the cluster that all its nodes mount; relative ``runs`` and ``store`` of
            the experiment are put there.
        working_dir: the folder that is sent; paths of the experiment are relative to it there.
        no_wait: return when the job is accepted.

    Raises:
        ConfigError: the experiment cannot be right, lies outside of what is sent, or would write
            where nothing lasts.
        MissingFileError: there is no such experiment.
    """
    root, file = working_dir.expanduser().resolve(), experiment.expanduser().resolve()
    if not file.is_file():
        raise MissingFileError("This experiment does not exist", where=experiment)
    if not file.is_relative_to(root):
        raise ConfigError(
            "The experiment lies outside of the folder that is sent",
            where=f"{file}, --working-dir {root}",
            remedy=f"Send the experiment's own folder: --working-dir {shlex.quote(str(experiment.parent))}",
        )
    with contextlib.chdir(root):  # as the job will see it
        found = load_experiment(file.relative_to(root), tuple(overrides))
        raw = read_experiment(file.relative_to(root), tuple(overrides))
    moved = _folders(found, storage)
    own = _own_output(found, root)
    excludes = [*own, *SECRETS]
    files = upload(root, excludes)
    for hidden in [name for name in files if _holds_secret(root / name)]:
        excludes.append("/" + re.sub(r"([\\\[\]*?!# ])", r"\\\1", hidden))
        del files[hidden]
    secrets = sorted({path.relative_to(root).as_posix() for path in _sent(root, own)} - set(files))
    name = file.relative_to(root).as_posix()
    if name not in files:
        raise ConfigError(
            "The ignore files leave the experiment itself out of what is sent",
            where=f"{name}, which looks like a secret"
            if name in secrets
            else f"{' or '.join(_IGNORE_FILES)} in {root} (or a folder below it), which names {name}",
            remedy="Give it another name."
            if name in secrets
            else f"Send the experiment's own folder: --working-dir {shlex.quote(str(experiment.parent))}",
        )
    command = ["ray", "job", "submit", "--address", address, "--working-dir", str(working_dir)]
    command += ["--runtime-env-json", json.dumps({"excludes": excludes})]
    command += ["--no-wait"] if no_wait else []
    command += ["--", "raysere", "run", name, "--allow-rejected"]
    for override in [*overrides, *moved]:
        command += ["--set", override]
    return Submission(command, root, files, secrets, _warnings(raw, root, file.parent, files))


def _folders(experiment: Experiment, storage: Path | None) -> list[str]:
    """Overrides that put relative ``runs`` and ``store`` on the cluster's storage.

    Raises ConfigError where there is none.
    """
    if storage is not None and not storage.is_absolute():
        raise ConfigError(f"--storage names a folder of the cluster from its root on, not {str(storage)!r}", where="--storage")
    overrides = []
    for key in ("runs", "store"):
        folder = Path(getattr(experiment, key))
        if folder.is_absolute() or str(folder).startswith("~"):
            continue
        if storage is None:
            raise ConfigError(
                f"`{key}: {folder}` is relative: a job runs in a temporary copy of the folder that is sent, and loses what it writes there",
                where=f"{key} of the experiment",
                remedy=f"Name storage that every node of the cluster mounts: --storage /FOLDER (or {STORAGE}=/FOLDER), "
                f"or write an absolute `{key}:` into the experiment.",
            )
        overrides.append(f"{key}={as_yaml(str(storage / folder))}")
    return overrides


def _own_output(experiment: Experiment, root: Path) -> list[str]:
    """Patterns for the runs and features of earlier starts on this machine: a job reads those of
    the cluster.
    """
    with contextlib.suppress(RaysereError):
        folders = [(root / Path(getattr(experiment, key)).expanduser()).resolve() for key in ("runs", "store")]
        return [
            f"/{folder.relative_to(root).as_posix()}"
            for folder in folders
            if folder.is_dir() and folder != root and folder.is_relative_to(root)
        ]
    return []


# --- what is sent ---------------------------------------------------------------------------------


def upload(root: Path, excludes: Sequence[str] = ()) -> dict[str, int]:
    """Files below ``root`` that Ray would send, relative with '/', and their bytes.

    Left out is what ``.gitignore`` and ``.rayignore`` of a folder name for all below it,
    ``excludes``, and what Ray never sends. Raises ConfigError where it is more than Ray takes (512
    MiB), with the largest folders.
    """
    files: dict[str, int] = {}
    total = 0
    for path in _sent(root, excludes):
        size = path.stat().st_size
        files[path.relative_to(root).as_posix()] = size
        total += size
        if total > LIMIT_BYTES:
            raise ConfigError(
                f"More than {LIMIT_BYTES >> 20} MiB would be sent, and Ray takes no more. The largest so far: {_largest(files)}",
                where=root,
                remedy="Name what the job does not need in a file .rayignore there (as in .gitignore), or send a smaller folder with "
                "--working-dir. Corpora and models belong on storage that all nodes mount.",
            )
    return files


def _sent(root: Path, excludes: Sequence[str]) -> Iterator[Path]:
    return _walk(root, [_matcher(root, [*_ALWAYS_OUT, *excludes])])


def _walk(folder: Path, matchers: list[Callable[[Path, bool], bool]]) -> Iterator[Path]:
    matchers = matchers + [
        _matcher(folder, (folder / name).read_text(encoding="utf-8", errors="replace").splitlines())
        for name in _IGNORE_FILES
        if (folder / name).is_file()
    ]
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir()
        if any(left_out(path, is_folder) for left_out in matchers):
            continue
        if is_folder:
            yield from _walk(path, matchers)
        elif path.is_file():
            yield path


def _holds_secret(path: Path) -> bool:
    """Whether a file is a private key, or one long word without blanks: a token under a name that
    does not tell.
    """
    try:
        if path.stat().st_size > _SMALL_BYTES:
            return False
        with path.open("rb") as file:
            start = file.read(600)
    except PermissionError:  # Ray cannot read it, either, and would send nothing
        return True
    return bool(_PRIVATE_KEY.match(start) or _TOKEN.fullmatch(start))


def _matcher(folder: Path, patterns: Sequence[str]) -> Callable[[Path, bool], bool]:
    import pathspec

    spec = pathspec.GitIgnoreSpec.from_lines(patterns)

    def left_out(path: Path, is_folder: bool) -> bool:
        return spec.match_file(path.relative_to(folder).as_posix() + "/" * is_folder)

    return left_out


def _largest(files: dict[str, int], count: int = 3) -> str:
    sizes: dict[str, int] = {}
    for name, size in files.items():
        sizes[name.split("/")[0]] = sizes.get(name.split("/")[0], 0) + size
    return ", ".join(f"{name} ({size >> 20} MiB)" for name, size in sorted(sizes.items(), key=lambda item: -item[1])[:count])


def _warnings(raw: dict[str, Any], root: Path, beside: Path, files: dict[str, int]) -> list[str]:
    """Relative paths of the experiment that the job will not find."""
    warnings = []
    for key, text in _paths(raw):
        path = Path(text)
        if path.is_absolute() or text.startswith("~"):
            continue
        target = next((place.resolve() for place in (beside / path, root / path) if place.exists()), (root / path).resolve())
        if not target.is_relative_to(root):
            warnings.append(
                f"{key}: {text} leaves the folder that is sent ({root}): the job will not find it. Name storage of the cluster."
            )
        elif target.exists() and not any(
            name == (inside := target.relative_to(root).as_posix()) or name.startswith(f"{inside}/") for name in files
        ):
            warnings.append(
                f"{key}: {text} is left out of what is sent (.gitignore, .rayignore, or it looks like a secret): the job will not find it."
            )
    return warnings


def _paths(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What an experiment names as files and folders that it reads, with the key of each."""
    for number, corpus in enumerate(raw["corpora"]):
        yield f"corpora.{number}.path", str(corpus["path"])
    for name, feature in raw["features"].items():
        family, _, argument = str(feature["backbone"]).partition(":")
        argument = argument.partition("#")[0]
        if family == "table" or (family == "hf" and (argument.startswith(".") or Path(argument).is_dir())):
            yield f"features.{name}.backbone", argument
    for number, entry in enumerate(raw["search"]):
        if str(entry["space"]).endswith((".yaml", ".yml")) or os.sep in str(entry["space"]):
            yield f"search.{number}.space", str(entry["space"])


# --- the job --------------------------------------------------------------------------------------


def submit(submission: Submission, *, address: str, say: Callable[[str], None]) -> int:
    """Run the submission's command, hand every line that it prints to ``say``, and return the exit
    code that the job earned.

    That is the code of ``raysere run`` in the job; 130 for a job that was stopped; 0 for one that
    is only accepted (``--no-wait``).

    Raises:
        EnvironmentFault: nothing answers at the address, or the cluster did not take the job.
    """
    if importlib.util.find_spec("aiohttp") is None:
        raise EnvironmentFault("Submitting jobs needs packages that are not here: aiohttp", remedy="pip install 'raysere[cluster]'")
    client = _client(address)
    job = None
    with subprocess.Popen([_ray(), *submission.command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                say(line.rstrip("\n"))
                job = job or next(iter(_SUBMITTED.findall(line)), None)
        except KeyboardInterrupt:
            process.wait()
            if job is None:
                raise
            at = f"--address {address}"
            say(f"The job goes on. Follow it: ray job logs {at} --follow {job}; stop it: ray job stop {at} {job}")
            return 130
    if job is None:
        raise EnvironmentFault("The cluster did not take the job; the lines above say why", where=address)
    if "--no-wait" in submission.command[: submission.command.index("--")]:
        return 0
    return _exit_code(client, job)


def _exit_code(client: Any, job: str) -> int:
    """How a job ended:

    `ray job submit` itself tells a stopped job as a success, and every failure as 1.
    """
    details = client.get_job_info(job)
    status = str(getattr(details.status, "value", details.status))
    return _STATUS_CODES.get(status, details.driver_exit_code if details.driver_exit_code in (1, 2, 3, 130) else 3)


def _ray() -> str:
    """The `ray` command of this Python, not of another environment that comes first in PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if (command := shutil.which("ray", path=path)) is None:
        raise EnvironmentFault("The command `ray` is missing", remedy="pip install 'raysere[cluster]'")
    return command


def _client(address: str) -> Any:
    """A connection to the dashboard.

    Raises ConfigError, EnvironmentFault: no URL; nothing answers, or not to us.
    """
    from ray.job_submission import JobSubmissionClient

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{address!r} is not the URL of a dashboard", where="--address", remedy=f"Such as {ADDRESS}.")
    try:
        socket.create_connection((parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), timeout=10).close()
        return JobSubmissionClient(address)
    except Exception as error:  # Ray raises errors of its own, of requests, and RuntimeError
        token = type(error).__name__ == "AuthenticationError"
        raise EnvironmentFault(
            "The cluster asks for its token" if token else f"No cluster answers: {' '.join(str(error).split())[:200]}",
            where=address,
            remedy="Set RAY_AUTH_MODE=token, and put the token into ~/.ray/auth_token or RAY_AUTH_TOKEN."
            if token
            else "`ray start --head` starts one here; `ray dashboard cluster.yaml` and `kubectl port-forward` bring a remote one here.",
        ) from error


def job_hint(error: RaysereError) -> str | None:
    """What to add to an error in a job about a file that is not there: whose files they are."""
    if not in_job() or not isinstance(error, MissingFileError):
        return None
    return (
        f"This is a job on the node {socket.gethostname()}: paths are those of the cluster's nodes, and of what was sent. "
        "Put corpora and models on storage that every node mounts, and name it: --set corpora.0.path=/FOLDER/..."
    )
