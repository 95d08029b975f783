"""What the base class does for every corpus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import soundfile

from raysere.base.errors import ConfigError, DataError, MissingFileError, UnknownNameError
from raysere.corpora.adapters import CORPORA, load_corpus
from raysere.corpora.adapters.base import Adapter, Loaded, audio_files, find_audio

Clip = Callable[..., Path]


class Toy(Adapter):
    """Yields the rows that a test puts there, or every file."""

    name = "toy"
    language = "de"
    layout = "wav/SPEAKER_emotion.wav"
    scale = (1.0, 5.0)
    notes = ("a trap",)
    rows: tuple[dict[str, Any], ...] = ()
    links: tuple[tuple[str, ...], ...] = ()

    def read(self, path: Path, *, least: int = 0) -> Iterator[dict[str, Any]]:
        for group in self.links:
            self.link(group)
        if self.rows:
            yield from self.rows
            return
        for file in audio_files(path)[least:]:
            speaker, emotion = file.stem.split("_")
            yield {"path": file.relative_to(path), "speaker": speaker, "emotion": emotion, "sex": "F"}


def toy(*rows: dict[str, Any], **attributes: Any) -> Adapter:
    return type("Toy", (Toy,), {"rows": rows, **attributes})()


def reasons(loaded: Loaded) -> dict[str, str]:
    assert loaded.rejected.columns == ["path", "utterance", "reason", "stage"]
    assert set(loaded.rejected["stage"]) <= {"manifest"}
    return dict(loaded.rejected.select("utterance", "reason").iter_rows())


def test_a_folder_becomes_a_manifest(clip: Clip, tmp_path: Path) -> None:
    clip("wav/03_anger.wav", seconds=0.5)
    clip("wav/08_joy.flac", rate=48000, channels=2)
    loaded = toy().load(tmp_path)
    assert loaded.manifest.table.select(
        "utterance", "corpus", "language", "path", "duration_s", "sampling_rate", "speaker", "sex", "emotion"
    ).rows() == [
        ("toy/wav/03_anger", "toy", "de", "wav/03_anger.wav", 0.5, 8000, "toy/03", "female", "anger"),
        ("toy/wav/08_joy", "toy", "de", "wav/08_joy.flac", 0.2, 48000, "toy/08", "female", "joy"),
    ]
    assert loaded.rejected.height == 0
    assert loaded.manifest.roots == {"toy": str(tmp_path.resolve())}
    assert loaded.manifest.scales == {"toy": (1.0, 5.0)}
    assert loaded.manifest.notes == ["a trap"]
    assert loaded.manifest.path(loaded.manifest.table.row(0, named=True)).is_file()
    other = toy().load(tmp_path, name="toy-2", least=1).manifest.table
    assert other.select("utterance", "speaker").rows() == [("toy-2/wav/08_joy", "toy-2/08")]


def test_bad_files_are_listed_and_the_others_go_through(clip: Clip, tmp_path: Path) -> None:
    clip("a_anger.wav")
    clip("b_anger.wav", channels=2, rate=48000)
    os.truncate(clip("c_anger.wav"), 1000)
    (tmp_path / "d_anger.wav").touch()
    (tmp_path / "e_anger.wav").write_text("no audio")
    os.symlink(tmp_path / "nowhere.wav", tmp_path / "f_anger.wav")
    clip("g_anger.wav", seconds=0.05)
    soundfile.write(tmp_path / "h_anger.wav", np.zeros(8000), 8000)
    loaded = toy().load(tmp_path)
    assert loaded.manifest.table["utterance"].to_list() == ["toy/a_anger", "toy/b_anger", "toy/g_anger", "toy/h_anger"]
    found = {key.removeprefix("toy/")[0]: reason.split(":")[0].split(" (")[0] for key, reason in reasons(loaded).items()}
    assert found == {"c": "truncated", "d": "empty file", "e": "not audio", "f": "missing file"}


def test_rows_that_the_adapter_rejects(clip: Clip, tmp_path: Path) -> None:
    clip("a.wav")
    loaded = toy(
        {"path": "a.wav", "speaker": "1"},
        {"path": "b.wav", "speaker": "1", "reject": "unknown code 'Q'"},
        {"path": None, "utterance": "c", "speaker": "1"},
        {"path": "gone.wav", "speaker": "1"},
    ).load(tmp_path)
    assert reasons(loaded) == {"toy/b": "unknown code 'Q'", "toy/c": "no audio file is named", "toy/gone": "missing file"}


def test_segments(clip: Clip, tmp_path: Path) -> None:
    clip("a.wav", seconds=2.0)
    spans = [(0.5, 1.25), (None, 1.0), (1.0, None), (1.5, 2.005), (1.5, 2.5), (1.0, 1.0), (-1.0, 1.0), (3.0, None), ("x", 1.0)]
    loaded = toy(
        *(
            {"path": "a.wav", "utterance": f"s{number}", "speaker": "1", "start_s": start, "end_s": end}
            for number, (start, end) in enumerate(spans)
        )
    ).load(tmp_path)
    times = {
        row[0].removeprefix("toy/"): row[1:]
        for row in loaded.manifest.table.select("utterance", "start_s", "end_s", "duration_s").iter_rows()
    }
    assert times == {"s0": (0.5, 1.25, 0.75), "s1": (0.0, 1.0, 1.0), "s2": (1.0, 2.0, 1.0), "s3": (1.5, 2.0, 0.5)}
    found = reasons(loaded)
    assert found["toy/s4"] == "the segment 1.5 to 2.5 s ends after the file (2.000 s)"
    assert "empty or negative" in found["toy/s5"] + found["toy/s7"]
    assert set(found) == {"toy/s4", "toy/s5", "toy/s6", "toy/s7", "toy/s8"}
    named = toy({"path": "a.wav", "speaker": "1", "start_s": 0.5, "end_s": 1.25}, {"path": "a.wav", "speaker": "1", "start_s": 1.0}).load(
        tmp_path
    )
    assert named.manifest.table["utterance"].to_list() == ["toy/a@0.500-1.250", "toy/a@1.000-end"]


def test_two_files_of_one_stem_and_one_file_twice(clip: Clip, tmp_path: Path) -> None:
    clip("1_anger.flac")
    clip("1_anger.wav")
    loaded = toy().load(tmp_path)
    assert loaded.manifest.table["path"].to_list() == ["1_anger.wav"]
    assert reasons(loaded) == {"toy/1_anger": "a second file of the utterance that 1_anger.wav holds"}
    with pytest.raises(DataError, match="another row has the same id"):
        toy({"path": "1_anger.wav", "speaker": "1"}, {"path": "1_anger.wav", "speaker": "2"}).load(tmp_path)


def test_links_unknown_speakers_and_blanks(clip: Clip, tmp_path: Path) -> None:
    for name in "abcd":
        clip(f"{name}.wav")
    rows = [
        {"path": f"{name}.wav", "speaker": speaker, "emotion": "  anger "}
        for name, speaker in zip("abcd", ("  S1 ", "S2", "S4", None), strict=True)
    ]
    loaded = toy(*rows, links=(("S1", "S2"), ("S4", "S9"))).load(tmp_path)
    assert loaded.manifest.table["speaker"].to_list() == ["toy/S1", "toy/S2", "toy/S4", "toy/unknown"]
    assert set(loaded.manifest.table["emotion"]) == {"anger"}
    assert loaded.manifest.linked_speakers == [["toy/S1", "toy/S2"]]
    assert any("unknown" in note for note in loaded.manifest.notes)


def test_links_hold_through_a_speaker_whose_files_were_rejected(clip: Clip, tmp_path: Path) -> None:
    for name in "ac":
        clip(f"{name}.wav")
    rows = [{"path": f"{name}.wav", "speaker": name, "emotion": "anger"} for name in "abc"]
    manifest = toy(*rows, links=(("a", "b"), ("toy/b", "c"))).load(tmp_path).manifest
    assert manifest.linked_speakers == [["toy/a", "toy/c"]]
    assert "All utterances of the linked speaker toy/b were rejected." in manifest.notes


def test_absolute_paths_inside_and_outside(clip: Clip, tmp_path: Path) -> None:
    inside, outside = clip("corpus/wav/a.wav"), clip("elsewhere/b.wav")
    link = tmp_path / "corpus/wav/c.wav"
    link.symlink_to(outside)
    loaded = toy(*({"path": path, "speaker": "1"} for path in (inside, outside, link))).load(tmp_path / "corpus")
    assert loaded.manifest.table["path"].to_list() == ["wav/a.wav", "wav/c.wav"]
    assert "outside the corpus root" in loaded.rejected["reason"][0]


def test_corpus_that_may_come_without_audio(clip: Clip, tmp_path: Path) -> None:
    clip("a.wav")
    (tmp_path / "broken.wav").touch()
    rows = [
        {"path": "a.wav", "utterance": "a", "speaker": "1"},
        {"path": "b.wav", "utterance": "b", "speaker": "1", "transcript": "Hi"},
        {"utterance": "c", "speaker": "2", "transcript": "Ho", "duration_s": 1.5},
        {"path": "broken.wav", "utterance": "d", "speaker": "2"},
    ]
    loaded = toy(*rows, audio=False).load(tmp_path)
    assert loaded.manifest.table.select("path", "duration_s").rows() == [("a.wav", 0.2), (None, None), (None, 1.5)]
    assert reasons(loaded) == {"toy/d": "empty file (0 bytes)"}


def test_errors_of_a_folder(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no corpus 'toy'.*Expected: wav/SPEAKER_emotion.wav"):
        toy().load(tmp_path / "none")
    with pytest.raises(DataError, match=r"No utterance of the corpus 'toy' was found.*Expected: wav/SPEAKER_emotion.wav"):
        toy().load(tmp_path)
    (tmp_path / "a_anger.wav").touch()
    with pytest.raises(DataError, match=r"None of the 1 utterances.*a_anger.wav: empty file"):
        toy().load(tmp_path)
    with pytest.raises(ConfigError, match=r"no option 'most'.*Valid choices: least, name"):
        toy().load(tmp_path, most=3)
    with pytest.raises(ConfigError, match="takes no columns"):
        toy().load(tmp_path, columns={"path": "file"})
    clip("b_anger.wav")
    with pytest.raises(DataError, match=r"not manifest columns: mood"):
        toy({"path": "b_anger.wav", "speaker": "1", "mood": 1}).load(tmp_path)
    with pytest.raises(DataError, match=r"row 0, column 'sex', value 'x'.*toy/b_anger"):
        toy({"path": "b_anger.wav", "speaker": "1", "sex": "x"}).load(tmp_path)
    with pytest.raises(DataError, match="neither id nor path"):
        toy({"speaker": "1"}).load(tmp_path)


def test_order_of_files_does_not_matter(clip: Clip, tmp_path: Path) -> None:
    rows = [{"path": clip(f"{number}.wav"), "speaker": str(number % 2)} for number in range(9)]
    assert toy(*rows).load(tmp_path).manifest == toy(*reversed(rows)).load(tmp_path).manifest


def test_find_audio(clip: Clip, tmp_path: Path) -> None:
    clip("x/a.flac")
    (tmp_path / "x/._a.wav").touch()
    clip("x/b.WAV")
    clip("x/c.d.ogg")
    assert [file.name for file in audio_files(tmp_path)] == ["a.flac", "b.WAV", "c.d.ogg"]
    for asked, found in (("x/a.wav", "a.flac"), ("x/a", "a.flac"), ("x/b", "b.WAV"), ("x/c.d", "c.d.ogg"), ("x/c.d.wav", "c.d.ogg")):
        file = find_audio(tmp_path, asked)
        assert file is not None
        assert file.name == found
    assert find_audio(tmp_path, "x/e.wav") is None


def test_registry_lists_all_and_opens_them() -> None:
    names = {"audformat", "biic-podcast", "crema-d", "demo", "emodb", "emovo", "meld", "msp-podcast", "nemo", "ravdess", "table", "urdu"}
    assert names <= set(CORPORA.names())
    for name in names:
        adapter = CORPORA.get(name)
        assert issubclass(adapter, Adapter)
        assert adapter.name == name
        assert adapter.layout
    with pytest.raises(UnknownNameError, match="Did you mean 'emodb'"):
        load_corpus("emo-db", "/nowhere")


def test_options_reach_the_adapter(clip: Clip, tmp_path: Path) -> None:
    clip("a.wav")
    pl.DataFrame({"path": ["a.wav"], "speaker": ["1"], "emotion": ["x"]}).write_csv(tmp_path / "t.csv")
    loaded = load_corpus("table", tmp_path / "t.csv", options={"name": "mine", "language": "it"})
    assert loaded.manifest.table.select("utterance", "language").row(0) == ("mine/a", "it")
