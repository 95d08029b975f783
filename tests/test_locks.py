"""Files that lock a folder, where somebody else may have put a link: it is refused, and the file
that it names stays as it is.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raysere.base.errors import EnvironmentFault
from raysere.base.files import write_yaml
from raysere.base.progress import Progress
from raysere.cli.main import main
from raysere.demo.corpus import make_demo
from raysere.features.spec import resolve
from raysere.features.store.remote import resident
from raysere.features.store.store import FeatureStore
from raysere.pipeline.lock import is_held, only_driver
from raysere.pipeline.prepare import RUN_FORMAT
from raysere.search.watch.event_file import EventFile

SPEC = resolve({"backbone": "acoustic"})


def _driver(folder: Path) -> None:
    with only_driver(folder):
        pass


def _extraction(folder: Path) -> None:
    with FeatureStore(folder.parent).lock(SPEC):
        pass


def _residence(folder: Path) -> None:
    store = FeatureStore(folder.parent.parent / "store")
    store.prepare(SPEC)
    resident(str(store.root), SPEC.key, folder.parent)


LOCKS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "driver": (".driver.lock", _driver),
    "status": (".driver.lock", is_held),
    "extraction": ("lock", _extraction),
    "residence": ("lock", _residence),
    "demo": (".demo.lock", make_demo),
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_link_in_the_place_of_a_lock_is_refused_and_what_it_names_stays_as_it_is(name: str, tmp_path: Path) -> None:
    place, lock = LOCKS[name]
    folder, victim = tmp_path / "shared" / SPEC.key, tmp_path / "victim"
    folder.mkdir(parents=True)
    victim.write_text("mine")
    (folder / place).symlink_to(victim)
    with pytest.raises(EnvironmentFault, match="is a symbolic link") as error:
        lock(folder)
    assert str(folder / place) in str(error.value)
    assert victim.read_text() == "mine"
    (folder / place).unlink()
    (folder / place).symlink_to(tmp_path / "not there")
    with pytest.raises(EnvironmentFault, match="is a symbolic link"):
        lock(folder)
    assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.timeout(60)
def test_what_is_no_plain_file_is_refused_and_not_waited_for(make: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    place, lock = LOCKS[name]
    folder = tmp_path / "shared" / SPEC.key
    folder.mkdir(parents=True)
    make(folder / place)
    with pytest.raises(EnvironmentFault, match="is not a plain file"):
        lock(folder)


@pytest.mark.parametrize("name", ["driver", "extraction", "residence"])
def test_a_lock_changes_no_file_that_has_a_second_name(name: str, tmp_path: Path) -> None:
    """A hard link cannot be told from the file that it is a name of, so it is taken for the lock;
    but nothing is written into it.
    """
    place, lock = LOCKS[name]
    folder, victim = tmp_path / "shared" / SPEC.key, tmp_path / "victim"
    folder.mkdir(parents=True)
    victim.write_text("mine")
    os.link(victim, folder / place)
    lock(folder)
    assert victim.read_text() == "mine"


def test_the_command_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("mine")
    write_yaml(run / "experiment.yaml", {"format": RUN_FORMAT, "name": "toy"})
    (run / "manifest.parquet").touch()
    (run / ".driver.lock").symlink_to(victim)
    for command in ("evaluate", "status"):
        monkeypatch.setattr("sys.argv", ["raysere", command, str(run)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr().err
        assert stopped.value.code == 3
        assert "The file that locks this folder is a symbolic link." in said
        assert "remove it" in said
    assert victim.read_text() == "mine"


def test_a_lock_keeps_processes_apart_and_what_stands_in_it(tmp_path: Path) -> None:
    from raysere.base.files import open_lock

    code = f"""
import fcntl, sys
from raysere.base.files import open_lock
with open_lock({str(tmp_path / "lock")!r}) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(b"held")
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with open_lock(tmp_path / "lock") as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert (tmp_path / "lock").read_bytes() == b"held"  # opening is not writing
            holder.kill()
            fcntl.flock(file, fcntl.LOCK_EX)  # goes with its process
            assert file.read() == b"held"
    finally:
        holder.kill()
        holder.communicate()


def test_two_at_once_do_not_make_the_demo_corpus_twice(tmp_path: Path) -> None:
    """The second finds the lock taken and has made nothing after a second."""
    from raysere.base.files import open_lock

    tmp_path.joinpath("demo").mkdir()
    make = f"make_demo({str(tmp_path / 'demo')!r}, voices=9, utterances=4)"
    code = f"from raysere.demo.corpus import make_demo; print('go', flush=True); {make}"
    with open_lock(tmp_path / "demo" / ".demo.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        try:
            assert second.stdout.readline() == "go\n"
            time.sleep(1)
            assert second.poll() is None
            assert [path.name for path in (tmp_path / "demo").iterdir()] == [".demo.lock"]
        finally:
            second.kill()
            second.communicate()


def test_events_and_progress_are_written_to_new_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "events.out.tfevents.0.x").symlink_to(victim)
    with pytest.raises(FileExistsError):
        EventFile(tmp_path / "events.out.tfevents.0.x")
    (tmp_path / f".progress.json.{os.getpid()}.tmp").symlink_to(victim)
    progress = Progress(quiet=True)
    progress.keep_in(tmp_path)
    progress.say("on its way", stage="search")
    assert (tmp_path / "progress.json").is_file()
    assert not (tmp_path / "progress.json").is_symlink()
    assert victim.read_text() == "mine"
