"""Hashes of finished trials: what is recorded, what is found out, what is said, and that each file
is read once a command.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from test_search_ledger import put
from toy import toy_study

from raysere.base.errors import EnvironmentFault
from raysere.base.files import file_hash, read_json, write_json
from raysere.search import hashes
from raysere.search.file_check import FileCheck
from raysere.search.ledger import Ledger
from raysere.search.trial import head

FILES = ("metrics.parquet", "model.safetensors", "params.yaml", "predictions.parquet")


def flip(path: Path, place: int = -1) -> None:
    """Turn one bit of one byte over."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Two finished trials with tensors."""
    study, ledger = toy_study(), Ledger(tmp_path)
    for number in (0, 1):
        put(ledger, study, number, {"lr": 0.1 * (number + 1)}, tensors=bytes(range(200)))
    return ledger


def old(folder: Path) -> None:
    """As an earlier version wrote it."""
    write_json(folder / "DONE", {key: value for key, value in read_json(folder / "DONE").items() if key not in ("files", "sha256")})


def test_done_holds_the_hash_of_every_file(ledger: Ledger) -> None:
    record = ledger.read("toy-0000")
    assert record.files == {name: file_hash(record.folder / name) for name in FILES}
    told: list[str] = []
    assert FileCheck(told.append).trials(ledger) == ledger.trials()
    assert not told


@pytest.mark.parametrize("name", [*FILES, "DONE"])
@pytest.mark.parametrize("change", ["flipped", "gone", "cut"])
def test_a_trial_with_another_file_is_left_out_and_told(ledger: Ledger, name: str, change: str) -> None:
    path = ledger.folder / "toy-0000" / name
    if change == "flipped":
        flip(path, len(path.read_bytes()) // 2)
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif name == "DONE":
        return  # without it there is no finished trial
    else:
        path.unlink()
    told: list[str] = []
    check = FileCheck(told.append)
    for _ in range(2):
        assert [record.trial for record in check.trials(ledger)] == ["toy-0001"]
    assert len(told) == 2, "it is said once"
    assert f"Left out: the trial toy-0000. The file {path} " in told[0]
    assert "`raysere run`" in told[1]


def test_no_bit_of_done_can_change_a_record(ledger: Ledger) -> None:
    record = ledger.read("toy-0000")
    path = record.folder / "DONE"
    content = path.read_bytes()
    for place in range(len(content)):
        flip(path, place)
        found = [one for one in FileCheck(lambda line: None).trials(ledger) if one.trial == "toy-0000"]
        assert found in ([], [record]), content[max(0, place - 20) : place + 20]  # a blank is no content
        path.write_bytes(content)
    assert FileCheck().trials(ledger)[0] == record


def test_files_are_read_once_a_command_and_again_by_the_next(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(hashes, "file_hash", lambda path: read.append(path) or file_hash(path))
    check = FileCheck()
    for _ in range(3):
        assert len(check.trials(ledger)) == 2
    assert sorted(read) == sorted(ledger.folder / trial / name for trial in ("toy-0000", "toy-0001") for name in FILES)
    put(ledger, toy_study(), 2, {"lr": 0.7})  # one that this command trained
    read.clear()
    check.trials(ledger)
    assert {path.parent.name for path in read} == {"toy-0002"}
    read.clear()
    assert len(FileCheck().trials(ledger)) == 3
    assert len(read) == 2 * len(FILES) + 3


def test_trials_of_an_earlier_version_are_opened_counted_once_and_left_as_they_are(ledger: Ledger) -> None:
    for trial in ("toy-0000", "toy-0001"):
        old(ledger.folder / trial)
    put(ledger, toy_study(), 2, {"lr": 0.7})
    flip(ledger.folder / "toy-0000" / "model.safetensors")  # nobody can know
    before = {path: path.read_bytes() for path in ledger.folder.glob("*/*")}
    told: list[str] = []
    check = FileCheck(told.append)
    check.set_aside(ledger)
    for _ in range(2):
        assert [record.trial for record in check.trials(ledger)] == ["toy-0000", "toy-0001", "toy-0002"]
    assert len(told) == 1
    assert told[0].startswith("Not checked: 2 of 3 trials")
    assert {path: path.read_bytes() for path in ledger.folder.glob("*/*")} == before


def test_many_changed_trials_are_few_lines(tmp_path: Path) -> None:
    study, ledger = toy_study(trials=30), Ledger(tmp_path)
    for number in range(12):
        flip(put(ledger, study, number, {"lr": 0.01 * (number + 1)}).folder / "metrics.parquet")
    told: list[str] = []
    assert not FileCheck(told.append).trials(ledger)
    assert len(told) == 6
    assert told[-1].startswith("... and 7 more trials")


def test_what_is_set_aside_is_kept_under_a_hidden_name(ledger: Ledger, tmp_path: Path) -> None:
    flip(ledger.folder / "toy-0000" / "model.safetensors")
    events = tmp_path / "search/toy/toy-0000/events.out.tfevents.1.trial"
    events.parent.mkdir(parents=True)
    events.touch()
    files = {path.name: path.read_bytes() for path in (ledger.folder / "toy-0000").iterdir()}
    told: list[str] = []
    check = FileCheck(told.append)
    check.set_aside(ledger)
    (hidden,) = ledger.folder.glob(".*")
    assert str(hidden) in told[0]
    assert "model.safetensors was changed since the trial was recorded" in told[0]
    assert "trained anew" in told[1]
    assert {path.name: path.read_bytes() for path in hidden.iterdir()} == files | {events.name: b""}
    assert not events.exists()  # else the trial that comes in its place would not be shown
    assert ledger.ids() == ["toy-0001"] == [record.trial for record in check.trials(ledger)]
    ledger.sweep()
    assert hidden.is_dir()
    assert len(told) == 2


def test_a_retried_error_is_shown_anew(ledger: Ledger, tmp_path: Path) -> None:
    put(ledger, toy_study(), 2, {"lr": 0.5}, status="error", score=None)
    events = tmp_path / "search/toy/toy-0002/events.out.tfevents.1.trial"
    events.parent.mkdir(parents=True)
    events.touch()
    assert ledger.forget_errors({"toy"}) == 1
    assert not events.exists()


def test_a_twin_has_the_hashes_of_its_files(ledger: Ledger) -> None:
    study, first = toy_study(), ledger.read("toy-0000")
    job = {"trial": "toy-0004", "outer": 0, "number": 4, "params": first.params, "config": first.config}
    twin = ledger.copy(first, head(study, job), "b")
    assert twin.files == {name: file_hash(twin.folder / name) for name in FILES}
    assert twin.files["params.yaml"] != first.files["params.yaml"]
    assert len(FileCheck().trials(ledger)) == 3
    flip(first.folder / "model.safetensors")
    ledger.copy(first, head(study, {**job, "trial": "toy-0005", "number": 5}), "c")
    kept = [record.trial for record in FileCheck(lambda line: None).trials(ledger)]
    assert kept == ["toy-0001", "toy-0004"], "a copy of changed tensors is not made right by copying them"
    ledger.set_aside("toy-0000")
    again = ledger.copy(twin, head(study, {**job, "trial": "toy-0000", "number": 0}), "d")
    assert again.twin_of is None, "the first of its kind, or neither would be a member"
    assert {record.trial for record in FileCheck(lambda line: None).trials(ledger)} == {"toy-0000", "toy-0001", "toy-0004"}


def test_a_twin_of_an_unchecked_trial_is_unchecked(ledger: Ledger) -> None:
    old(ledger.folder / "toy-0000")
    first = ledger.read("toy-0000")
    job = {"trial": "toy-0004", "outer": 0, "number": 4, "params": first.params, "config": first.config}
    twin = ledger.copy(first, head(toy_study(), job), "b")
    assert twin.files is None
    assert not {"files", "sha256"} & set(read_json(twin.folder / "DONE"))


def test_a_name_in_done_leads_nowhere_else(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    done = read_json(ledger.folder / "toy-0000" / "DONE")
    for name in ("../../secret", "/dev/zero", "..", ""):
        write_json(ledger.folder / "toy-0000" / "DONE", hashes.sealed({**done, "files": {name: file_hash(tmp_path / "secret")}}))
        assert [record.trial for record in FileCheck(lambda line: None).trials(ledger)] == ["toy-0001"]


def test_a_file_that_cannot_be_read_is_a_fault_of_the_machine(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(hashes, "file_hash", denied)  # root may read everything
    with pytest.raises(EnvironmentFault, match="Permission denied"):
        FileCheck().trials(ledger)
