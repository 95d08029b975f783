"""Extract features: each content once, by Ray actors or, for small work, in this process.

Whatever is killed, at most the shards in flight are lost: shards appear by rename, and a second
start sees what stands.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from raysere.base.errors import DataError
from raysere.base.files import digest, explain_write_errors
from raysere.features.extract.cost import check_disk, expected_bytes
from raysere.features.extract.encoder import Encoded, Encoder
from raysere.features.spec import FeatureSpec
from raysere.features.store.content import MISSING, NO_PHONES, NO_TRANSCRIPT, Contents, Failure, FileHashes, Work, contents, failures_table
from raysere.features.store.quarantine import Quarantine
from raysere.features.store.shards import rebuild_index, remove_leftovers
from raysere.features.store.store import FeatureStore

if TYPE_CHECKING:
    from raysere.base.progress import Progress
    from raysere.corpora.manifest import Manifest
    from raysere.features.backbone import Backbone
    from raysere.features.views import FeatureView

_SHOWN = 5


@dataclass
class Extraction:
    """Utterances ``done`` now, ``cached`` ones that stood already, and those without features
    (utterance, path, reason, stage).

    ``without_text`` of the latter have no words to read: a missing modality, not a fault. Their
    stage is ``no transcript``, that of those that a ready table does not hold ``no row``, and that
    of the others ``features``.
    """

    key: str
    done: int
    cached: int
    quarantined: pl.DataFrame
    without_text: int = 0


@dataclass
class _Session:
    """One extraction under the lock of its key."""

    spec: FeatureSpec
    folder: Path
    found: Contents
    todo: list[Work]
    quarantine: Quarantine
    failures: dict[str, Failure]  # by content, of this run and remembered
    limit: float
    cached: set[str]
    say: Callable[[int], None]
    counts: dict[str, int] = field(default_factory=dict)

    def take(self, outcome: Encoded) -> None:
        """Book one task.

        Raises DataError when too many failed; what is done and what is quarantined is on the disk
        then.
        """
        self.quarantine.add(outcome.failures)
        self.quarantine.forget(outcome.done)
        self.failures.update({failure.content: failure for failure in outcome.failures if failure.content is not None})
        self.say(sum(self.counts[content] for content in [*outcome.done, *(f.content for f in outcome.failures if f.content is not None)]))
        self.judge()

    def judge(self) -> None:
        total = len(self.found.utterances)
        # no words to read, and no row in a table, is a missing modality and not a failure; but
        # audio that is not there is
        absent = [failure for failure in self.found.failures if failure.reason not in (NO_TRANSCRIPT, NO_PHONES)]
        missing = sum(self.counts[content] for content, failure in self.failures.items() if failure.reason in MISSING)
        failed = len(absent) + sum(self.counts[content] for content in self.failures) - missing
        nothing = total > 0 and (not self.found.work or missing == total)
        if nothing and not absent and self.spec.phones:
            raise DataError(
                f"None of the {total} utterances has one of the phones {', '.join(self.spec.phones)} (IPA)",
                where=", ".join(sorted({utterance.split("/", 1)[0] for utterance in self.found.utterances})),
                remedy="Give the manifest a column `phones` (label, start_s, end_s), or name phones that are in it.",
            )
        if nothing and not absent and not missing:
            raise DataError(
                f"The corpus has no transcripts: {self.spec.backbone} reads words, and none of the {total} utterances has any",
                where=", ".join(sorted({utterance.split("/", 1)[0] for utterance in self.found.utterances})),
                remedy="Give the manifest a column `transcript`, or leave the features of text out.",
            )
        if failed > self.limit * total or nothing:
            listed = [*absent, *self.failures.values(), *self.found.failures]
            reasons = "; ".join(f"{failure.utterance}: {failure.reason}" for failure in listed[:_SHOWN])
            count, bound = (total, "") if nothing else (failed, f" (more than {self.limit:.0%})")
            raise DataError(
                f"{count} of {total} utterances give no features of {self.spec.backbone}{bound}: {reasons}",
                where=self.folder,
                remedy="Look at these files. What was extracted is kept; quarantine.parquet lists the rest.",
            )

    def result(self) -> Extraction:
        rows = list(self.found.failures)
        for utterance, content in zip(self.found.utterances, self.found.content, strict=True):
            failure = self.failures.get(content) if content is not None else None
            if failure is not None:
                rows.append(Failure(utterance, content, failure.path, failure.reason))
        cached = sum(content in self.cached for content in self.found.content)
        silent = sum(failure.stage == NO_TRANSCRIPT for failure in rows)
        return Extraction(self.spec.key, len(self.found.content) - cached - len(rows), cached, failures_table(rows), silent)


def extract(
    manifest: Manifest,
    spec: FeatureSpec,
    store_root: str | os.PathLike[str],
    *,
    actors: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    fail_threshold: float = 0.5,
    batch_s: float | None = None,
) -> Extraction:
    """Extract what the store lacks, with Ray actors.

    Args:
        manifest: utterances; audio files are hashed first (cached).
        spec: what to extract (:func:`raysere.features.spec.resolve`).
        store_root: the store; on a cluster a folder that all nodes share.
        actors: how many; default: one for each GPU where the cluster has any, else one for each
            core.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: display; its stage is named after the backbone.
        fail_threshold: share of all utterances that may fail.
        batch_s: seconds of audio in a padded batch; default 60 on a GPU, single items on a CPU.

    Raises:
        DataError: more than ``fail_threshold`` fail; the message lists the first reasons, and
            nothing is lost.
        EnvironmentFault: full disk, unwritable store, no Ray, workers that die again and again.
        ConfigError: the backbone is another one than the spec was made of.
    """
    from raysere.features.extract.actors import run_actors

    with _session(manifest, spec, store_root, progress, fail_threshold) as session:
        if session.todo:
            run_actors(
                spec,
                session.folder,
                session.todo,
                session.take,
                actors=actors,
                device=device,
                batch_s=batch_s,
                say=progress.say if progress else None,
            )
    return session.result()


def extract_local(
    manifest: Manifest,
    spec: FeatureSpec,
    store_root: str | os.PathLike[str],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    fail_threshold: float = 0.5,
    batch_s: float | None = None,
    backbone: Backbone | None = None,
) -> Extraction:
    """The same as :func:`extract` in this process, without Ray."""
    with _session(manifest, spec, store_root, progress, fail_threshold) as session:
        if session.todo:
            encoder = Encoder(spec, session.folder, device=device, batch_s=batch_s, backbone=backbone).open()
            for start in range(0, len(session.todo), 32):
                session.take(encoder.run(session.todo[start : start + 32]))
    return session.result()


def encode_view(
    spec: FeatureSpec, works: Iterable[Work], *, device: str = "cpu", backbone: Backbone | None = None
) -> tuple[FeatureView, pl.DataFrame]:
    """Features of a few items in memory, for prediction: (view over their utterances, those without
    features as in :class:`Extraction`).

    Make ``works`` with :func:`item`.
    """
    from raysere.features.views import FeatureView

    works = list(works)
    encoder = Encoder(spec, None, device=device, backbone=backbone).open()
    outcome = encoder.run(works)
    layers = {
        number: [encoder.kept[work.content][place] if work.content in encoder.kept else None for work in works]
        for place, number in enumerate(spec.numbers)
    }
    return FeatureView.from_arrays(spec, [work.utterance for work in works], layers), failures_table(outcome.failures)


def item(
    utterance: str,
    *,
    path: str | os.PathLike[str] | None = None,
    text: str | None = None,
    language: str | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Work:
    """An item for :func:`encode_view`."""
    name = digest([utterance, None if path is None else str(path), text, language, start_s, end_s], 64)
    return Work(name, utterance, 1.0, None if path is None else str(path), start_s, end_s, text, language)


def _files(manifest: Manifest, spec: FeatureSpec) -> list[str | None]:
    """The audio file that each row is heard from, as failures name it."""
    rows = manifest.table.select("corpus", "path").iter_rows(named=True)
    return [None if spec.reads != "wave" or row["path"] is None else str(manifest.path(row)) for row in rows]


@contextlib.contextmanager
def _session(
    manifest: Manifest, spec: FeatureSpec, store_root: str | os.PathLike[str], progress: Progress | None, limit: float
) -> Iterator[_Session]:
    store = FeatureStore(store_root)
    folder = store.prepare(spec)
    say = progress.say if progress else lambda line: None
    with explain_write_errors(folder), store.lock(spec, say):
        remove_leftovers(folder)
        hashes = FileHashes(store.root)
        found = contents(manifest, spec, hashes)
        hashes.save()
        store.remember(spec, manifest, found)
        counts: dict[str, int] = {}
        for content in found.content:
            if content is not None:
                counts[content] = counts.get(content, 0) + 1
        standing = set(rebuild_index(folder)["content"].to_list()) & counts.keys()
        quarantine = Quarantine(folder)
        now = set(zip(found.utterances, _files(manifest, spec), strict=True))
        replaced = {name for name, failure in quarantine.reasons.items() if name not in counts and (failure.utterance, failure.path) in now}
        quarantine.forget(standing | replaced)  # what is good by now, and what was at fault in files that are others today
        refused = {content: failure for content, failure in quarantine.reasons.items() if content in counts}
        todo = sorted(
            (work for content, work in found.work.items() if content not in standing and content not in refused),
            key=lambda work: (-work.seconds, work.content),
        )
        stage = f"extract {spec.backbone}"

        def advance(count: int) -> None:
            if progress is not None:
                progress.advance(stage, count)

        session = _Session(spec, folder, found, todo, quarantine, refused, limit, standing, advance, counts)
        session.judge()
        if todo:
            check_disk(expected_bytes(spec, todo), folder)
            if progress is not None:
                progress.start(stage, total=sum(counts.values()), done=sum(counts[content] for content in [*standing, *refused]))
        try:
            yield session
        finally:
            with contextlib.suppress(FileNotFoundError):
                rebuild_index(folder)
