"""The feature store: a folder for each key, shared by all runs and trials.

<store>/hashes.parquet                          cache: file hashes by path, size and time of change
<store>/<key>/spec.json                         what the rows are (raysere.features/1)
<store>/<key>/shard-NNNNN/layer-XX.npy ...      rows; see raysere.features.store.shards
<store>/<key>/index.parquet                     cache: content, shard, first, rows of all shards
<store>/<key>/utterances.parquet                which content each audio row had when it was extracted last, by corpus root
<store>/<key>/quarantine.parquet                what could not be extracted, by content
<store>/<key>/lock                              held by the process that extracts
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from raysere.base.errors import ConfigError, DataError, EnvironmentFault, MissingFileError, machine_fault
from raysere.base.files import atomic_write, explain_write_errors, open_lock, read_json, write_json
from raysere.features.rows import MappedLayers, Placement
from raysere.features.spec import FeatureSpec
from raysere.features.store.content import MAP, FileHashes, content_map, contents, lookup, merge_map, read_map, text_contents
from raysere.features.store.quarantine import Quarantine
from raysere.features.store.shards import read_index

if TYPE_CHECKING:
    from raysere.corpora.manifest import Manifest
    from raysere.features.store.content import Contents
    from raysere.features.views import FeatureView


class FeatureStore:
    """Features under ``root``, a local or shared folder (see :mod:`raysere.features.store.remote`
    for ``s3://bucket/features``).
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        if "://" in str(root):
            raise ConfigError(
                f"{root} is an address, not a folder", remedy="Fetch the features first: raysere.features.store.remote.resident(root, key)."
            )
        self.root = Path(root).expanduser()

    def folder(self, spec: FeatureSpec | str) -> Path:
        return self.root / (spec if isinstance(spec, str) else spec.key)

    def keys(self) -> list[str]:
        """Keys of the features that the store holds, sorted."""
        return sorted(path.parent.name for path in self.root.glob("*/spec.json"))

    def spec(self, key: str) -> FeatureSpec:
        """The spec of a key.

        Raises MissingFileError (with the keys there are) where the store does not hold it.
        """
        path = self.root / key / "spec.json"
        if not path.is_file():
            raise MissingFileError(
                f"The store has no features {key!r}", where=self.root, choices=self.keys(), remedy="Run `raysere extract` first."
            )
        return FeatureSpec.from_json(read_json(path), where=path)

    def open(
        self,
        spec: FeatureSpec | str,
        table: pl.DataFrame | Manifest,
        *,
        roots: Mapping[str, str] | None = None,
        partial: bool = False,
    ) -> FeatureView:
        """A view in the row order of ``table``, joined by content hash and asserted.

        Args:
            spec: a spec or its key.
            table: a manifest, or its table (utterance, path, start_s, end_s; for words transcript
                and language). The content of an audio row is what it was when it was extracted last
                from the root of its corpus, so the audio need not be there. With a manifest, files
                that were never extracted from their root are looked at (what another corpus
                extracted may be theirs).
            roots: corpus to root folder, for a table (which then needs the column corpus).
            partial: take utterances that were not extracted yet as absent.

        Raises:
            MissingFileError: no such features.
            DataError: utterances that were never extracted (unless ``partial``); quarantined ones
                are absent, not an error. A table without roots whose rows were extracted from
                several corpora of one name, with different content.
        """
        from raysere.features.views import FeatureView

        folder = self.folder(spec)
        spec = self.spec(spec if isinstance(spec, str) else spec.key)
        frame = table if isinstance(table, pl.DataFrame) else table.table
        content, unknown = self._contents(spec, table, roots)
        index = read_index(folder)
        places = {name: (shard, first, rows) for name, shard, first, rows in index.iter_rows()}
        utterances = frame["utterance"].to_list()
        found = [places.get(name, (-1, 0, 0)) if name is not None else (-1, 0, 0) for name in content]
        if not partial:
            refused = Quarantine(folder).reasons
            unknown += [
                utterance
                for utterance, name in zip(utterances, content, strict=True)
                if name is not None and name not in places and name not in refused
            ]
            if unknown:
                raise DataError(
                    f"{len(unknown)} of {len(utterances)} utterances have no features of {spec.backbone} yet",
                    where=f"{folder}: {', '.join(unknown[:5])}",
                    remedy="Run `raysere extract`; features that exist already are not computed again.",
                )
        columns = np.array(found, dtype=np.int64).reshape(-1, 3)
        placement = Placement(columns[:, 0].astype(np.int32), columns[:, 1].copy(), columns[:, 2].copy())
        return FeatureView(spec, utterances, placement, MappedLayers(folder))

    def _contents(
        self, spec: FeatureSpec, table: pl.DataFrame | Manifest, roots: Mapping[str, str] | None = None
    ) -> tuple[list[str | None], list[str]]:
        """(content of each row, utterances of which nothing is known)."""
        if spec.reads != "wave":
            return text_contents(table if isinstance(table, pl.DataFrame) else table.table, spec).content, []
        if isinstance(table, pl.DataFrame):
            content, missing = lookup(table, self._map(spec), roots)
            return content, [table["utterance"][row] for row in missing]
        return self._contents_of(spec, table)

    def _contents_of(self, spec: FeatureSpec, manifest: Manifest) -> tuple[list[str | None], list[str]]:
        try:
            known = self._map(spec)
        except MissingFileError:
            known = pl.DataFrame(schema=MAP)
        content, missing = lookup(manifest.table, known, manifest.roots, guess=False)
        unknown: list[str] = []
        rows = [row for row in missing if manifest.table["path"][row] is not None]
        if not rows:
            return content, unknown
        rest = manifest.table[rows]
        here = rest["corpus"].is_in(list(manifest.roots)).all()
        seen: list[str | None] = [None] * len(rows)
        if here:
            seen = contents(replace(manifest, table=rest), spec, FileHashes(self.root)).content
        left = [place for place, one in enumerate(seen) if one is None]
        if left:  # no audio here: what a store of before roots were kept says of these paths, where that is clear
            old, none = lookup(rest[left], known, manifest.roots)
            for place, one in zip(left, old, strict=True):
                seen[place] = one
            unknown = [rest["utterance"][left[place]] for place in none]
        for row, one in zip(rows, seen, strict=True):
            content[row] = one
        return content, unknown

    def _map(self, spec: FeatureSpec) -> pl.DataFrame:
        path = self.folder(spec) / "utterances.parquet"
        try:
            return read_map(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            if fault := machine_fault(error, path):
                raise fault from error
            raise MissingFileError("The store does not know these utterances", where=path, remedy="Run `raysere extract` first.") from error

    def remember(self, spec: FeatureSpec, manifest: Manifest, found: Contents) -> None:
        """Record which content each audio row has now, so that workers without the audio can join
        by table.
        """
        if spec.reads != "wave":
            return
        try:
            old = self._map(spec)
        except MissingFileError:
            old = None
        new = merge_map(old, content_map(manifest, found))
        if old is None or not new.equals(old):
            with atomic_write(self.folder(spec) / "utterances.parquet") as temporary:
                new.write_parquet(temporary)

    def prepare(self, spec: FeatureSpec) -> Path:
        """Make the folder of a key and its spec.json.

        Raises EnvironmentFault where the store cannot be written.
        """
        folder = self.folder(spec)
        with explain_write_errors(self.root):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise EnvironmentFault("The store is not a folder", where=self.root, remedy="Name another folder as the store.") from error
        path = folder / "spec.json"
        if not path.is_file():
            write_json(path, spec.to_json())
        elif FeatureSpec.from_json(read_json(path), where=path).key != spec.key:
            raise DataError(
                "This folder of the store belongs to other features", where=path, remedy="Remove the folder, or name another store."
            )
        return folder

    @contextlib.contextmanager
    def lock(self, spec: FeatureSpec, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
        """Hold the right to extract a key.

        A second process waits, saying so; the lock ends with its process, whatever ends that.
        """
        path = self.folder(spec) / "lock"
        with explain_write_errors(path):
            file = open_lock(path)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process extracts {spec.backbone} into this store ({_holder(file)}): waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 1:  # with a second name it may be somebody's file
                file.truncate(0)
                file.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
            yield


def _holder(file: io.FileIO) -> str:
    return os.pread(file.fileno(), 200, 0).decode(errors="replace") or "starting"
