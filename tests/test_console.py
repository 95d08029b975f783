"""What is printed: names of files, speakers, labels and errors from others cannot steer a terminal."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest

from raysere.base.progress import Progress, printable
from raysere.cli import text as console
from raysere.cli.main import main
from tests.end_to_end.toy import make_corpus

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = {
    "esc": "a\x1b[2J\x1b]0;owned\x07b",  # clears the screen, names the window
    "csi": "a\x9b31mb",  # the same in one character
    "return": "good\rbad",
    "bidi": "a\u202etxt.vaw\u2066b\u200f",
    "separator": "a\u2028b\x85c",
    "delete": "a\x08\x7fb",
    "tag": "a\U000e0041b",
    "bytes": os.fsdecode(b"a\xffb"),  # a file name that is no UTF-8
}
ORDINARY = ["Wut", "激动", "غصہ", "می\u200cخواهم", "café 👩\u200d🚀", "a\\b 'c'", "ü/ß"]


def obeyed(text: str) -> list[str]:
    """Characters that a terminal would obey instead of showing them."""
    return re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u206f\ud800-\udfff\U000e0000-\U000e007f]", text)


def raysere(capsys, monkeypatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["raysere", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_terminal_would_obey_is_escaped(text):
    shown = printable(text)
    assert not obeyed(shown)
    assert json.loads(f'"{shown}"') == text  # as JSON has it: nothing is lost
    assert "\n" not in printable(text + "\n", lines=False)
    assert printable(text + "\n").endswith("\n")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_names_are_left_alone(text):
    assert printable(text) == text


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A corpus with broken files of hostile names, and hostile labels and speakers."""
    monkeypatch.chdir(tmp_path)
    table = make_corpus(tmp_path / "corpus", speakers=6, takes=1, text=False)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    for number, text in enumerate(text for name, text in HOSTILE.items() if name != "bytes"):
        (table.parent / f"{text}.wav").write_bytes(b"no audio")
        rows.append({**rows[0], "path": f"{text}.wav"})
        rows[number] |= {"emotion": text, "speaker": text}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def test_commands_print_hostile_names_escaped(hostile, capsys, monkeypatch):
    code, out, err = raysere(capsys, monkeypatch, "init", "toy.yaml", "--corpus", "table", "--path", str(hostile))
    assert code == 0, err
    assert not obeyed(out + err)
    assert r"\u001b[2J" in out  # labels, and the names of rejected files
    assert r"good\u000dbad.wav" in out
    assert not obeyed(Path("toy.yaml").read_text())  # it is printed, too, by whoever looks at it
    words = (
        "plan",
        "toy.yaml",
        "--seconds",
        "0",
        "--set",
        "protocol.folds=2",
        "--set",
        "task.classes={anger: anger, neutral: neutral, '*': null}",
    )
    code, out, err = raysere(capsys, monkeypatch, *words, "--json")
    assert (code, obeyed(out + err)) == (0, []), err
    assert "good\rbad.wav" in {row["path"] for row in json.loads(out)["rejected"]}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_errors_print_hostile_names_escaped(capsys, monkeypatch, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    for words, expected in (
        (["submit", text, "--storage", "/s"], 2),  # an error of raysere
        (["schema", text], 2),  # of the parser of arguments
        (["doctor", text], 2),
    ):
        code, out, err = raysere(capsys, monkeypatch, *words)
        assert (code, obeyed(out + err)) == (expected, []), err
        assert err
    monkeypatch.setattr(
        importlib.import_module("raysere.pipeline.status"), "run_status", lambda run: 1 / len(str(run).encode("ascii"))
    )  # a fault of raysere itself
    code, out, err = raysere(capsys, monkeypatch, "status", text + "é")
    assert (code, obeyed(out + err)) == (3, [])


def test_progress_prints_hostile_names_escaped(monkeypatch):
    for terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", stream)
        plain = Progress()
        if terminal:
            from rich.console import Console

            plain._rich = type("Rich", (), {"console": Console(file=stream, force_terminal=True)})()
        for text in HOSTILE.values():
            plain.say(f"Note: {text}\nforged: line")
        assert not obeyed(stream.getvalue())
        assert not re.search("^forged", stream.getvalue(), re.M)


def test_a_name_takes_one_line_of_a_table():
    assert len(console.table([["a\nb", 1]], ["name", "count"]).splitlines()) == 3
    rejected = [{"path": "a.wav\n  b.wav: fine", "utterance": None, "reason": "x"}]
    assert len(console.rejected_text(rejected).splitlines()) == 2
    assert len(console.prediction_text([{"file": "a\nb", "error": "x"}]).splitlines()) == 1


def test_one_place_prints():
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "raysere").rglob("*.py")
        if re.search(r"click\.(s?echo|secho)\(|^\s*print\(|print_exc\(|\.show\(\)", path.read_text(), re.M)
    }
    assert found == {"raysere/cli/options.py", "raysere/base/progress.py"}
