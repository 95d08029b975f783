"""Features on a node: fetched once from a shared path or object storage, and checked.

The store may lie at ``s3://``, ``gs://``, ``hdfs://`` or ``file://`` (anything that
``pyarrow.fs.FileSystem.from_uri`` knows), or in a folder. A plain folder is its own residence
unless a local one is named.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from raysere.base.errors import DataError, EnvironmentFault, MissingFileError, RaysereError
from raysere.base.files import explain_write_errors, open_lock
from raysere.features.rows import shard_name
from raysere.features.store.shards import check_shard, rebuild_index, shard_numbers

_TOP_FILES = ("spec.json", "utterances.parquet", "quarantine.parquet")
_RETRIES = 3


def resident(root: str, key: str, local: str | os.PathLike[str] | None = None) -> str:
    """Make the features ``key`` of the store ``root`` resident on this machine.

    Shards that are here already are not fetched again; every fetched one is compared with the sizes
    and hashes recorded when it was written. Two processes may call it at once.

    Returns:
        The local store folder (the root itself where it is a folder and no local one is named).

    Raises:
        MissingFileError: the store has no such features.
        DataError: a shard that still differs from its record after three attempts.
        EnvironmentFault: the storage does not answer, or the local disk is full or cannot be
            written.
    """
    if "://" not in root and local is None:
        folder = Path(root).expanduser()
        if not (folder / key / "spec.json").is_file():
            raise MissingFileError(f"The store has no features {key!r}", where=root, remedy="Run `raysere extract` first.")
        warm(folder / key)
        return str(folder)
    target = Path(local or default_local()).expanduser()
    folder = target / key
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open_lock(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _fetch(root, key, folder)
    warm(folder)
    return str(target)


def default_local() -> Path:
    """Where fetched features go: ``RAYSERE_LOCAL_STORE``, else the user's cache folder."""
    given = os.environ.get("RAYSERE_LOCAL_STORE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "raysere" / "features"


def warm(folder: Path) -> None:
    """Ask the kernel to have the shards in the page cache; returns at once."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("shard-*/*.npy"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _fetch(root: str, key: str, folder: Path) -> None:
    from pyarrow import fs

    try:
        remote, base = fs.FileSystem.from_uri(root) if "://" in root else (fs.LocalFileSystem(), str(Path(root).expanduser().resolve()))
        entries = remote.get_file_info(fs.FileSelector(f"{base.rstrip('/')}/{key}", allow_not_found=True))
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"The store does not answer: {' '.join(str(error).split())[:300]}",
            where=root,
            remedy="Check the address, the network and the credentials.",
        ) from error
    names = {entry.base_name: entry for entry in entries}
    if "spec.json" not in names:
        raise MissingFileError(f"The store has no features {key!r}", where=root, remedy="Run `raysere extract` first.")
    wanted = sorted(name for name, entry in names.items() if entry.type == fs.FileType.Directory and name.startswith("shard-"))
    have = {shard_name(number) for number in shard_numbers(folder)}
    for name in wanted:
        if name not in have:
            _fetch_shard(remote, names[name].path, folder / name)
    for name in _TOP_FILES:  # small, and they change: always anew
        if name in names:
            _copy(remote, names[name].path, folder / name)
    rebuild_index(folder)


def _fetch_shard(remote: Any, source: str, target: Path) -> None:
    from pyarrow import fs

    for attempt in range(_RETRIES):
        temporary = target.parent / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir()
        try:
            for entry in remote.get_file_info(fs.FileSelector(source)):
                _copy(remote, entry.path, temporary / entry.base_name)
            check_shard(temporary)
            os.rename(temporary, target)
            return
        except DataError as error:
            if attempt == _RETRIES - 1:
                raise DataError(
                    f"A shard arrives damaged: {error.what}", where=source, remedy="Remove the shard from the store and extract again."
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _copy(remote: Any, source: str, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with remote.open_input_stream(source) as stream, temporary.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 22)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


class NodeStore:
    """The per-node store actor: one call for each key does the fetching for all workers of the
    node.

    Get it with :func:`node_store`.
    """

    def __init__(self, local: str | None = None) -> None:
        self.local = local

    def resident(self, root: str, key: str) -> str:
        """See :func:`resident`. Paths travel through Ray, bytes stay mapped."""
        return resident(root, key, self.local)


def node_store(local: str | None = None) -> Any:
    """The store actor of the node that this process runs on, made at need; it reserves no core.

    Ray must be running.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(NodeStore)
        .options(
            name=f"raysere-store-{node}",
            namespace="raysere",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(local)
    )


def locate(root: str, key: str, local: str | None = None) -> str:
    """The local store folder of a key: by the node's store actor where Ray runs, else (or when the
    actor died) by this process itself.

    Errors are those of :func:`resident`. Both ways take the same lock, so a key is fetched once a
    node either way.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    if ray.is_initialized():
        try:
            return ray.get(node_store(local).resident.remote(root, key))
        except RayTaskError as error:
            if isinstance(error.cause, RaysereError):
                raise error.cause from None
            raise
        except (RayError, ValueError):  # the actor died, or its name is just being given anew
            pass
    return resident(root, key, local)
