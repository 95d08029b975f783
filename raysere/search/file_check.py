"""Reads finished trials and checks that their files are as they were recorded, once a command."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from raysere.base.errors import ConfigError, EnvironmentFault, RaysereError
from raysere.base.files import read_json
from raysere.base.progress import warn
from raysere.search.hashes import Fault, find_fault

if TYPE_CHECKING:
    from raysere.search.ledger import Ledger, Record

_SHOWN = 5  # trials that are told one by one
_READERS = 8  # at once: of a shared file system, waiting takes longer than hashing


class FileCheck:
    """Reads finished trials and checks their files. One a command: it reads the files of each trial
    once, and says everything once.

    Args:
        tell: takes a line for the user; None writes it to standard error.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.tell = tell or warn
        self._known: dict[Path, tuple[tuple[int, int], Record | Fault]] = {}  # by folder, for the DONE of that inode and time
        self._told: set[Path] = set()

    def trials(self, ledger: Ledger) -> list[Record]:
        """The finished trials that are as they were recorded, by id.

        Others are left out, and the user is warned.
        """
        found = self._look(ledger)
        records = [one for one in found if not isinstance(one, Fault)]
        faults = [one for one in found if isinstance(one, Fault) and one.path.parent not in self._told]
        self._told.update(fault.path.parent for fault in faults)
        for fault in faults[:_SHOWN]:
            self.tell(f"Left out: the trial {fault.trial}. {fault.sentence}")
        if faults:
            more = f"... and {len(faults) - _SHOWN} more trials. " if len(faults) > _SHOWN else ""
            self.tell(
                f"{more}Restore the files, or run the experiment again (`raysere run`, `raysere tune`): such a trial is then set aside "
                "and trained anew."
            )
        unchecked = sum(record.files is None for record in records)
        if unchecked and ledger.folder not in self._told:
            self._told.add(ledger.folder)
            self.tell(
                f"Not checked: {unchecked} of {len(found)} trials in {ledger.folder} were recorded by a version of raysere that kept no "
                "hashes of their files."
            )
        return records

    def set_aside(self, ledger: Ledger) -> None:
        """Hide every trial that is not as it was recorded, and say so: its number is free then.

        Only for the one driver of a run.
        """
        faults = [one for one in self._look(ledger) if isinstance(one, Fault)]
        for number, fault in enumerate(faults):
            hidden = ledger.set_aside(fault.trial)
            if number < _SHOWN:
                self.tell(f"Set aside: the trial {fault.trial}, now in {hidden}. {fault.sentence}")
        if faults:
            more = f"... and {len(faults) - _SHOWN} more trials. " if len(faults) > _SHOWN else ""
            self.tell(f"{more}A trial that was set aside is trained anew if the experiment still has it; nothing was deleted.")

    def _look(self, ledger: Ledger) -> list[Record | Fault]:
        with ThreadPoolExecutor(_READERS) as readers:
            found = list(readers.map(lambda trial: self._one(ledger, trial), ledger.names()))
        return [one for one in found if one is not None]

    def _one(self, ledger: Ledger, trial: str) -> Record | Fault | None:
        folder = ledger.folder / trial
        try:
            there = os.stat(folder / "DONE")
            stamp = (there.st_ino, there.st_mtime_ns)
            if folder not in self._known or self._known[folder][0] != stamp:
                self._known[folder] = (stamp, self._read(ledger, trial, folder))
            return self._known[folder][1]
        except (FileNotFoundError, NotADirectoryError):
            if (folder / "DONE").is_file():
                raise
            return None  # no finished trial
        except OSError as error:
            if isinstance(error, RaysereError):
                raise
            raise EnvironmentFault(
                f"A trial cannot be read: {error.strerror or error}",
                where=error.filename or folder,
                remedy="Make its files readable, then run the same command again.",
            ) from error

    @staticmethod
    def _read(ledger: Ledger, trial: str, folder: Path) -> Record | Fault:
        try:
            done = read_json(folder / "DONE")
        except ConfigError as error:
            return Fault(trial, folder / "DONE", f"cannot be read ({error.what})")
        return find_fault(folder, done) or ledger.record(trial, done)
