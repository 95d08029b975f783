"""The conformance suite itself: it must find each fault, and name it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raysere.corpora.adapters.base import Adapter, audio_files
from raysere.testing.corpus import check_corpus

Clip = Callable[..., Path]


class Sound(Adapter):
    """Files named speaker_emotion_number."""

    name = "sound"
    language = "en"
    licence = "CC0-1.0"
    classes = "common4"
    layout = "a folder with speaker_emotion_number.wav"

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        for file in audio_files(path):
            speaker, emotion, _ = file.stem.split("_")
            yield {"path": file.relative_to(path), "speaker": speaker, "emotion": emotion}


@pytest.fixture
def folder(clip: Clip, tmp_path: Path) -> Path:
    for speaker, emotion in itertools.product(("ann", "bob"), ("anger", "neutral", "sadness")):
        clip(f"{speaker}_{emotion}_1.wav")
    return tmp_path


def failure(adapter: type[Adapter], folder: Path, **arguments: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        check_corpus(adapter, folder, **arguments)
    return str(caught.value)


def test_a_sound_adapter_passes_and_reports(folder: Path) -> None:
    report = check_corpus(Sound, folder)
    assert len(report.passed) == 10
    assert report.skipped == {"attributes have a scale": "no attributes"}
    assert len(report.loaded.manifest) == 6


def test_self_description(folder: Path) -> None:
    class Bare(Sound):
        licence = "unknown"
        layout = ""
        homepage = "somewhere"
        scale = (5.0, 1.0)

    text = failure(Bare, folder)
    assert "fails 1 of 11 checks" in text
    for word in ("`layout` is empty", "`licence`", "`homepage` 'somewhere'", "`scale` (5.0, 1.0)"):
        assert word in text

    class Odd(Sound):
        name = "Odd Adapter"
        language = "english"

    text = failure(Odd, folder)
    assert "could not be loaded at all" in text
    assert "`name` must be lower-case" in text
    assert "`language` 'english'" in text


def test_ids_that_hold_the_place(folder: Path) -> None:
    class Placed(Sound):
        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            for row in super().read(path):
                yield {**row, "utterance": str(path / row["path"])}

    assert "utterance ids change when the corpus lies in another folder" in failure(Placed, folder)


def test_chance(folder: Path) -> None:
    class Moody(Sound):
        count = 0

        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            Moody.count += 1
            for row in super().read(path):
                yield {**row, "transcript": f"take {Moody.count}"}

    assert "loading twice gives the same: a second load" in failure(Moody, folder)


def test_speakers_and_labels(folder: Path) -> None:
    class Nobody(Sound):
        classes = "emodb4"

        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            for row in super().read(path):
                yield {"path": row["path"], "emotion": "enthusiasm"}

    text = failure(Nobody, folder)
    assert "speakers are told: no utterance has a speaker" in text
    assert "does not know these labels: enthusiasm" in text
    assert "fails 2 of 11 checks" in text
    assert "speakers are told" not in failure(Nobody, folder, allow_unknown_speakers=True)

    class Mute(Sound):
        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            for row in super().read(path):
                yield {**row, "emotion": None}

    assert "no utterance has an emotion" in failure(Mute, folder)


def test_swallowed_options(folder: Path) -> None:
    class Greedy(Sound):
        def read(self, path: Path, **options: Any) -> Iterator[dict[str, Any]]:  # type: ignore[override]
            yield from super().read(path)

    assert "an unknown option was taken without a word" in failure(Greedy, folder)


def test_attributes_need_a_scale(folder: Path) -> None:
    class Valued(Sound):
        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            for row in super().read(path):
                yield {**row, "arousal": 3.0}

    assert "no `scale` for sound" in failure(Valued, folder)
    Valued.scale = (1.0, 5.0)
    assert "attributes have a scale" in check_corpus(Valued, folder).passed


def test_one_broken_file_may_not_take_the_rest_with_it(folder: Path) -> None:
    class Brittle(Sound):
        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            for file in audio_files(path):
                if file.stat().st_size == 0:
                    raise ValueError("an empty file")
            yield from super().read(path)

    assert "a move and a broken file are survived: ended in ValueError" in failure(Brittle, folder)

    class Hiding(Sound):
        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            yield from (row for row in super().read(path) if (path / row["path"]).stat().st_size)

    assert "vanished: it is neither in the manifest nor among the rejected" in failure(Hiding, folder)


def test_an_adapter_that_loads_nothing(folder: Path, tmp_path: Path) -> None:
    class Empty(Sound):
        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            return iter(())

    assert "could not be loaded at all" in failure(Empty, folder)

    class Crashing(Sound):
        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            raise IndexError("row 3")

    assert "ended in IndexError: row 3" in failure(Crashing, folder)
    with pytest.raises(AssertionError, match="is not an adapter"):
        check_corpus(dict, folder)  # type: ignore[arg-type]


def test_an_empty_folder_must_be_refused(folder: Path) -> None:
    class Inventing(Sound):
        audio = False

        def read(self, path: Path) -> Iterator[dict[str, Any]]:
            yield {"utterance": "one", "speaker": "ann", "emotion": "anger"}

    text = failure(Inventing, folder)
    assert "what is not there is refused: an empty folder was loaded without an error" in text
