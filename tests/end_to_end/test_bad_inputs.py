"""A folder as users have them: good clips, and every kind of bad one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import soundfile

from raysere.cli.main import main
from tests.end_to_end.toy import RATE, experiment, make_corpus, tone


@pytest.fixture
def messy(tmp_path):
    table = make_corpus(tmp_path / "corpus")
    folder = table.parent
    good = tone("anger", 0, 99)
    soundfile.write(folder / "truncated.wav", good, RATE)
    whole = (folder / "truncated.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no audio at all, it is a note to myself\n" * 20)
    soundfile.write(folder / "short.wav", good[: int(0.05 * RATE)], RATE)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    broken = good.copy()
    broken[100] = np.nan
    soundfile.write(folder / "nan.wav", broken, RATE, subtype="FLOAT")
    stereo = np.repeat(np.interp(np.arange(0, len(good), 1 / 3), np.arange(len(good)), good)[:, None], 2, axis=1)
    soundfile.write(folder / "stereo48.wav", stereo * [[1.0, 0.5]], 48000)
    names = ["truncated", "empty", "text", "short", "silent", "nan", "missing", "stereo48"]
    extra = pl.DataFrame(
        {"path": [f"{name}.wav" for name in names], "speaker": ["s0"] * 8, "emotion": ["anger"] * 8, "transcript": ["stop it now"] * 8}
    )
    pl.concat([pl.read_csv(table), extra]).write_csv(table)
    return tmp_path, table


def test_the_good_go_through_and_the_bad_are_listed_with_reasons(messy, capsys, monkeypatch):
    folder, table = messy
    path = experiment(
        folder,
        table,
        search=[{"space": "pooled_quick", "features": "acoustic", "trials": 1, "fixed": {"hidden": 16, "epochs": 2}}],
        features={"acoustic": {"backbone": "acoustic"}},
    )
    monkeypatch.setattr("sys.argv", ["raysere", "run", str(path), "--quiet"])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr().out
    assert stopped.value.code == 1, printed
    rejected = pl.read_parquet(folder / "runs/toy/quarantine.parquet")
    reasons = dict(zip(rejected["path"], rejected["reason"], strict=True))
    wanted = {
        "truncated.wav": "truncated",
        "empty.wav": "empty",
        "text.wav": "audio",
        "short.wav": "short",
        "silent.wav": "silen",
        "nan.wav": "finite",
        "missing.wav": "missing",
    }
    assert set(reasons) == set(wanted)
    for name, word in wanted.items():
        assert word in reasons[name].lower(), (name, reasons[name])
        assert name in printed
    assert "stereo48.wav" not in printed
    predicted = pl.read_parquet(next((folder / "runs/toy/trials").glob("*/predictions.parquet")))
    assert predicted["utterance"].str.contains("stereo48").any()
    report = (folder / "runs/toy/report.html").read_text()
    assert all(name in report for name in wanted)
