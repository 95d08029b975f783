"""A machine that lacks disk, memory, open files or rights: told as such, nothing half written or
recorded, and a later try is whole.
"""

from __future__ import annotations

import errno
import json
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from raysere.base.errors import ConfigError, DataError, EnvironmentFault, InfeasibleTrial, MissingFileError, machine_fault
from raysere.base.files import explain_write_errors, write_json
from raysere.base.progress import Progress
from raysere.corpora.audiofile import probe
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.evaluate.evaluation import score_answers
from raysere.ensemble.evaluate.protocols import fit_runs
from raysere.ensemble.saved.read import load_ensemble, save_ensemble
from raysere.features.audio import content_hash, read_channels
from raysere.features.extract.encoder import Encoder
from raysere.features.extract.run import extract_local
from raysere.features.spec import resolve
from raysere.features.store.content import Work
from raysere.features.store.quarantine import Quarantine
from raysere.features.store.remote import resident
from raysere.features.store.store import FeatureStore
from raysere.pipeline.experiment import load_experiment
from raysere.pipeline.prepare import prepare, write_run
from raysere.search.board import Board, _rebuilt
from raysere.search.leaderboard import leaderboard
from raysere.search.ledger import Ledger
from raysere.search.study import save_study
from raysere.search.trial import TrialCache, TrialRun, head
from raysere.search.tuner import complete_search
from raysere.search.watch.overview import write_overview
from tests.end_to_end.toy import experiment, make_corpus
from tests.features.toy_corpus import corpus, use_toy
from tests.search.toy import toy_run, toy_study
from tests.small_disk import LEVELS, Disk, as_nobody, fails_until_there_is_room, fault_of, limited, no_more_files, small_disk

use_toy()
SPEC = resolve({"backbone": "toy"})


@pytest.fixture
def disk(tmp_path: Path):
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


# --- what is whose fault --------------------------------------------------------------------------

NUMBERS = np.random.default_rng(0).random(1 << 18)


def _sqlite(path: Path) -> None:
    import sqlite3

    with sqlite3.connect(path) as there:
        there.execute("create table a(b blob)")
        there.execute("insert into a values(?)", (bytes(1 << 21),))


def _events(path: Path) -> None:
    from raysere.search.watch.event_file import EventFile

    with EventFile(path) as file:
        file.scalars(0, {"x" * (1 << 21): 1.0})


def _arrow(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"a": NUMBERS}), path)


def _sound(path: Path) -> None:
    import soundfile

    soundfile.write(path, NUMBERS, 16000, format="WAV", subtype="FLOAT")


WRITERS = {
    "text": lambda path: path.write_text("x" * (1 << 21)),
    "numpy": lambda path: np.save(path, NUMBERS),
    "polars": lambda path: pl.DataFrame({"a": NUMBERS}).write_parquet(path),
    "csv": lambda path: pl.DataFrame({"a": NUMBERS}).write_csv(path),
    "safetensors": lambda path: save_file({"a": torch.from_numpy(NUMBERS)}, str(path)),
    "arrow": _arrow,
    "events": _events,
    "sqlite": _sqlite,
}


@pytest.mark.parametrize("writer", [*WRITERS, "soundfile"])
def test_every_library_s_own_words_for_a_full_disk_are_understood(disk: Disk, writer: str) -> None:
    write = {**WRITERS, "soundfile": _sound}[writer]
    disk.leave(100)
    with pytest.raises(EnvironmentFault, match="The disk is full"), explain_write_errors(disk.folder / "file"):
        write(disk.folder / "file.npy")


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "sqlite"])
@pytest.mark.parametrize("what", ["read-only", "permission", "files"])
def test_so_are_other_faults_of_the_machine(disk: Disk, writer: str, what: str) -> None:
    path = disk.folder / "file.npy"
    WRITERS[writer](path)  # imports what it needs
    path.unlink()
    if what == "read-only":
        disk.remount("ro")
    lacking = {"read-only": limited(resource.RLIMIT_CORE, 0), "permission": as_nobody(), "files": no_more_files()}[what]
    words = {"read-only": "file system is read-only", "permission": "No permission", "files": "Too many files are open.*ulimit -n"}[what]
    with pytest.raises(EnvironmentFault, match=words), explain_write_errors(disk.folder), lacking:
        WRITERS[writer](path)


@pytest.mark.parametrize("writer", ["text", "polars", "safetensors", "arrow", "events"])
def test_a_limit_on_the_size_of_files_is_a_fault_of_the_machine(tmp_path: Path, writer: str) -> None:
    with (
        pytest.raises(EnvironmentFault, match="larger than may be written here.*ulimit -f"),
        explain_write_errors(tmp_path),
        limited(resource.RLIMIT_FSIZE, 1 << 19),
    ):
        WRITERS[writer](tmp_path / "file")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "x"), "quota"),
        (OSError(errno.EIO, "x"), "disk fails"),
        (OSError(errno.ESTALE, "x"), "network mount"),
        (OSError(errno.ETIMEDOUT, "x"), "network mount"),
        (RuntimeError("Connection timed out"), None),  # a network's words; a mount gives the number
        (RuntimeError("can't start new thread"), "No further thread.*ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "x"), None),
        (OSError(errno.ENOMEM, "x"), "memory of this machine"),
        (MemoryError(), "memory of this machine"),
        (RuntimeError("unable to mmap 8 bytes from file </f>: Cannot allocate memory (12)"), "memory of this machine"),
        ("ray.exceptions.RayTaskError(OSError): OSError: [Errno 28] No space left on device: '/d/x'", r"disk is full\. Where: /d/x"),
        ("ray.exceptions.OutOfDiskError: Local disk is full", "disk is full"),
        ("Task was killed due to the node running low on memory.", "memory of this machine"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), None),
        (ValueError("shapes do not match"), None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), None),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"), None),
        (InfeasibleTrial("The machine has not enough memory for this configuration"), None),
        (MissingFileError("There is no file 'x'"), None),
        (ConfigError("Permission denied"), None),
    ],
)
def test_what_is_the_machine_s_fault(error: BaseException | str, words: str | None) -> None:
    if words is None:
        assert machine_fault(error) is None
    else:
        with pytest.raises(EnvironmentFault, match=words):
            raise machine_fault(error)


def test_a_cause_counts_where_it_was_given() -> None:
    wrapped = RuntimeError("it failed")
    wrapped.__cause__ = OSError(errno.ENOSPC, "x")
    assert machine_fault(wrapped).what == "The disk is full"


# --- every writer ---------------------------------------------------------------------------------


def undisturbed(disk: Disk, write) -> dict[str, bytes]:
    """What ``write`` leaves on a disk with room, which is as empty afterwards as before."""
    before = disk.files()
    write()
    after = disk.files()
    for path in [disk.folder / name for name in after.keys() - before.keys()]:
        path.unlink()
    for name, content in before.items():
        (disk.folder / name).write_bytes(content)
    return after


def test_what_defines_a_run(disk: Disk, tmp_path: Path) -> None:
    prepared = prepare(load_experiment(experiment(tmp_path, make_corpus(tmp_path / "corpus"), runs=str(disk.folder))))
    assert fails_until_there_is_room(disk, lambda: write_run(prepared), undisturbed(disk, lambda: write_run(prepared))) >= 4


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(tmp_path_factory.mktemp("toy") / "run")


def job(study, number: int = 0, **params) -> dict:
    params = {**study.parsed_space().default_config(), **params}
    names = {"study": study.name, "outer": 0, "number": number, "trial": study.trial_id(0, number), "params": params}
    return names | {"config": study.config_hash(params), "attempt": "a", "stamp": "s", "cpu": 1.0, "gpu": 0.0}


def searched(folder: Path, toy: Path) -> tuple[Board, dict]:
    """A run in ``folder`` with a board, one proposal of which a worker has trained; nothing is
    recorded yet.
    """
    shutil.copytree(toy, folder, dirs_exist_ok=True)
    study = toy_study(trials=1)
    save_study(folder, study)
    board = Board(folder, [study], Progress(quiet=True), {"cpu": 1.0, "gpu": 0.0})
    board.progress.start("search", total=1)
    board.proposal = board.lanes[0].propose()
    return board, TrialRun(folder, {**board.job(board.proposal), "attempt": "a"}, TrialCache()).advance()


def test_trials(disk: Disk, toy: Path) -> None:
    shutil.copytree(toy, disk.folder, dirs_exist_ok=True)
    study = toy_study()
    save_study(disk.folder, study)
    statuses = []
    for pages in LEVELS:
        disk.leave(pages)
        outcome = TrialRun(disk.folder, job(study), TrialCache()).advance()
        statuses.append(outcome["status"])
        if outcome["status"] == "done":
            break
        assert outcome["status"] == "fatal", outcome["error"]
        fault = _rebuilt(json.loads(outcome["error"]))
        assert type(fault) is EnvironmentFault
        assert "The disk is full" in str(fault)
        assert not list((disk.folder / "trials").glob("*"))
        assert not list((disk.folder / "trials").glob(".*"))
    assert len(statuses) >= 5  # head, rows, predictions, tensors, outcome


def test_the_ledger_and_the_events_of_a_trial(disk: Disk, toy: Path, tmp_path: Path) -> None:
    whole, result = searched(tmp_path / "whole", toy)
    whole.record(whole.proposal, result)
    assert whole.close() == []
    leaderboard(whole.run_dir)
    failed = 0
    for pages in range(20):
        disk.empty()
        shutil.rmtree(disk.folder / "run", ignore_errors=True)
        board, result = searched(disk.folder / "run", toy)
        disk.leave(pages)
        board.record(board.proposal, result)
        assert board.close() == []
        done = Ledger(board.run_dir).ids()
        disk.empty()
        if board.failure is None:
            break
        failed += 1
        assert type(board.failure) is EnvironmentFault
        assert "The disk is full" in str(board.failure)
        if done:  # only its events are lacking: a later start that finds nothing to train writes them
            complete_search(board.run_dir, board.studies)
            assert [path.name.split(".")[-1] for path in (board.run_dir / "search" / "toy" / "toy-0000").iterdir()] == ["trial"]
            assert (
                pl.read_parquet(board.run_dir / "leaderboard.parquet")
                .drop("seconds")
                .equals(pl.read_parquet(whole.run_dir / "leaderboard.parquet").drop("seconds"))
            )
    assert failed >= 2
    assert done == ["toy-0000"]
    assert Ledger(board.run_dir).read("toy-0000").predictions().equals(Ledger(whole.run_dir).read("toy-0000").predictions())


def test_after_a_record_that_could_not_be_written_there_is_no_later_one(disk: Disk, toy: Path) -> None:
    """Else the sampler of a later start would propose something else for the trial that is lacking."""
    board, result = searched(disk.folder / "run", toy)
    for options in ("ro", "rw"):
        disk.remount(options)
        board._finalise(SimpleNamespace(trial="toy-0000"), Path(result["staged"]), {"status": "done"})  # type: ignore[arg-type]
    board.close()
    assert "read-only" in str(board.failure)
    assert Ledger(board.run_dir).ids() == []


def test_a_trial_that_is_copied_and_one_that_never_ran(disk: Disk, toy: Path) -> None:
    board, result = searched(disk.folder / "run", toy)
    board.record(board.proposal, result)
    board.close()
    ledger, study = Ledger(board.run_dir), board.studies[0]
    twin, before = ledger.read("toy-0000"), disk.files()
    for number, write in enumerate(
        [
            lambda: ledger.copy(twin, head(study, job(study, 1)), "a"),
            lambda: ledger.record_without_training(
                head(study, job(study, 2)), {"status": "error", "score": None, "epoch": None, "epochs": 0, "seconds": 0.0}, "b"
            ),
        ]
    ):

        def swept(write=write) -> None:
            try:
                write()
            finally:
                ledger.sweep()  # as the search does when it ends

        assert fails_until_there_is_room(disk, swept) >= 2
        assert len(ledger.ids()) == number + 2
    assert disk.files().items() >= before.items()


def test_the_overview_and_the_leaderboard(disk: Disk, toy: Path) -> None:
    board, result = searched(disk.folder / "run", toy)
    board.record(board.proposal, result)
    board.close()
    assert fails_until_there_is_room(disk, lambda: write_overview(board.run_dir, board.studies)) >= 1
    assert fails_until_there_is_room(disk, lambda: leaderboard(board.run_dir), undisturbed(disk, lambda: leaderboard(board.run_dir))) >= 1


def test_features(disk: Disk, tmp_path: Path) -> None:
    """Shards, index, hashes, map and quarantine: good clips never come into the last."""
    manifest = corpus(tmp_path / "audio", 6)
    (tmp_path / "audio" / "u003.wav").write_bytes(b"no audio at all")

    def extraction() -> None:
        done = extract_local(manifest, SPEC, disk.folder / "store")
        assert done.quarantined["utterance"].to_list() == ["toy/u003"]

    failures = 0
    for pages in LEVELS:
        disk.leave(pages)
        fault = fault_of(extraction)
        if fault is None:
            break
        failures += 1
        assert "The disk is full" in str(fault) or "the disk has" in str(fault)  # before anything is encoded
        folder = disk.folder / "store" / SPEC.key
        assert {failure.utterance for failure in Quarantine(folder).reasons.values()} <= {"toy/u003"}
        assert not list(folder.glob(".*.tmp"))
    assert failures >= 4
    disk.empty()
    extract_local(manifest, SPEC, tmp_path / "whole")
    rows = [row for row in range(6) if row != 3]
    ours, theirs = (FeatureStore(root).open(SPEC, manifest).matrix(0, rows) for root in (disk.folder / "store", tmp_path / "whole"))
    np.testing.assert_array_equal(ours, theirs)
    local = disk.folder / "local"
    assert fails_until_there_is_room(disk, lambda: resident(str(tmp_path / "whole"), SPEC.key, local)) >= 3
    np.testing.assert_array_equal(FeatureStore(local).open(SPEC, manifest).matrix(0, rows), theirs)


def test_the_ensemble(disk: Disk, real_run) -> None:
    run = disk.folder / "run"
    shutil.copytree(real_run["folder"], run)
    opened = Run.open(run)
    fitted = fit_runs([opened], opened.config)
    result = score_answers([opened], fitted, opened.config)

    def save() -> None:
        save_ensemble([opened], fitted, opened.config, run / "ensemble", result)

    save()
    before = load_ensemble(run / "ensemble").fingerprint
    shutil.rmtree(run / "ensemble")
    assert fails_until_there_is_room(disk, save) >= 3
    assert load_ensemble(run / "ensemble").fingerprint == before
    assert fails_until_there_is_room(disk, save) >= 3  # over one that is there, which stays whole each time
    assert load_ensemble(run / "ensemble").fingerprint == before
    assert fails_until_there_is_room(disk, lambda: write_json(run / "evaluation.json", result)) >= 1


# --- readers --------------------------------------------------------------------------------------


def test_a_clip_is_not_damaged_because_no_file_can_be_opened(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "audio", 1)
    path = tmp_path / "audio" / "u000.wav"
    for read in (lambda: probe(path), lambda: content_hash(path), lambda: read_channels(path, 0, 100)):
        read()
        with pytest.raises(EnvironmentFault, match="Too many files are open"), no_more_files():
            read()
    extract_local(manifest, SPEC, tmp_path / "store")
    view = FeatureStore(tmp_path / "store").open(SPEC, manifest)
    with pytest.raises(EnvironmentFault, match="Too many files are open"), no_more_files():
        view.matrix(0, [0])


def test_a_clip_that_may_not_be_read_is_left_out_and_tried_again(disk: Disk) -> None:
    corpus(disk.folder / "audio", 1)
    path = disk.folder / "audio" / "u000.wav"
    path.chmod(0o600)
    with as_nobody():
        failure = Encoder(SPEC, None).open()._read(Work("c", "toy/u000", 1.0, str(path)))
    assert (failure.reason, failure.lasting) == ("unreadable (Permission denied)", False)
    path.unlink()
    assert Encoder(SPEC, None).open()._read(Work("c", "toy/u000", 1.0, str(path))).lasting is False


def test_a_disk_that_fills_while_a_backbone_encodes_is_no_fault_of_the_clips(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "audio", 3)
    working = Encoder(SPEC, None).open().backbone

    def full(items: list, layers: tuple) -> list:
        raise OSError(errno.ENOSPC, "No space left on device")

    backbone = SimpleNamespace(info=working.info, encode=full)
    with pytest.raises(EnvironmentFault, match="disk is full"):
        extract_local(manifest, SPEC, tmp_path / "store", backbone=backbone)
    assert extract_local(manifest, SPEC, tmp_path / "store").done == 3


def test_a_damaged_file_is_still_one(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF nothing")
    with pytest.raises(DataError):
        probe(tmp_path / "x.wav")
