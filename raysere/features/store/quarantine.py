"""Utterances that gave no features, by content: tried again only when the content changes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from raysere.base.errors import machine_fault
from raysere.base.files import atomic_write
from raysere.features.store.content import Failure

SCHEMA = {"utterance": pl.String, "content": pl.String, "path": pl.String, "reason": pl.String}


class Quarantine:
    """``<key>/quarantine.parquet``: utterance, content, path, reason.

    Delete the file to have all of it tried again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "quarantine.parquet"
        self.reasons: dict[str, Failure] = {}
        try:
            for utterance, content, path, reason in pl.read_parquet(self.path).select(list(SCHEMA)).iter_rows():
                self.reasons[content] = Failure(utterance, content, path, reason)
        except (OSError, pl.exceptions.PolarsError) as error:
            if fault := machine_fault(error, self.path):
                raise fault from error
            # else none yet, or damaged: what is bad will be found again

    def add(self, failures: Iterable[Failure]) -> None:
        """Remember the lasting ones and write the file, whole."""
        new = {failure.content: failure for failure in failures if failure.lasting and failure.content is not None}
        if not new:
            return
        # an utterance whose content changed has one entry, the newest; one of the same name in
        # another corpus has its own file
        gone = {(failure.utterance, failure.path) for failure in new.values()}
        self.reasons = {
            content: failure for content, failure in self.reasons.items() if (failure.utterance, failure.path) not in gone
        } | new
        self.save()

    def forget(self, contents: Iterable[str]) -> None:
        """Drop contents that have features after all."""
        found = set(contents) & self.reasons.keys()
        if found:
            self.reasons = {content: failure for content, failure in self.reasons.items() if content not in found}
            self.save()

    def save(self) -> None:
        rows = [(failure.utterance, content, failure.path, failure.reason) for content, failure in sorted(self.reasons.items())]
        with atomic_write(self.path) as temporary:
            pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(temporary)
