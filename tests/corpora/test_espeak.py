"""The binding to espeak-ng: state, times, names, long paths."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from raysere.base.errors import DataError, EnvironmentFault, UnknownNameError
from raysere.demo import espeak as module
from raysere.demo.espeak import Espeak
from raysere.demo.prosody import EMOTIONS
from raysere.demo.texts import LANGUAGES, SHARED, TEXTS, spoken, word_marks
from raysere.demo.voices import FEMALE, MALE

PLAIN = {"rate": 170, "pitch": 50, "pitch_range": 50}


def test_instances_share_no_state() -> None:
    sentence = "The letter is on the kitchen table."
    with Espeak() as first:
        a = [first.say(sentence, language="en", variant="m3", **PLAIN).samples for _ in range(2)]
        with Espeak() as second:  # while the first is open
            b = [second.say(sentence, language="en", variant="m3", **PLAIN).samples for _ in range(2)]
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert a[0].dtype == np.int16
    assert first.sampling_rate == 22_050


def test_every_word_of_every_sentence_gets_its_time() -> None:
    with Espeak() as espeak:
        for language in LANGUAGES:
            for sentence in (text for key in (SHARED, *EMOTIONS) for text in TEXTS[language][key]):
                text, tokens = spoken(language, sentence)
                speech = espeak.say(text, language=language, variant="f1", **PLAIN)
                marks = word_marks(tokens, speech)
                assert [mark.label for mark in marks] == [token[0] for token in tokens]
                assert all(earlier.end <= later.start < later.end for earlier, later in pairwise(marks)), sentence
                assert len(speech.phones) > len(tokens)
                assert speech.phones[-1].end <= len(speech.samples)
                assert all(mark.start < mark.end for mark in speech.phones)


def test_settings_do_what_they_say() -> None:
    def length(**changed: int) -> int:
        with Espeak() as espeak:
            return len(espeak.say("We are going to the station now.", language="en", variant="m1", **{**PLAIN, **changed}).samples)

    assert length(rate=120) > 1.2 * length()
    assert length(word_gap=10) > length() + 0.2 * 22_050


def test_voices_exist_and_do_not_clip_when_loud_and_high() -> None:
    with Espeak() as espeak:
        assert {*FEMALE, *MALE} <= set(espeak.voices())
        for variant in (*FEMALE, *MALE):
            for pitch in (5, 95):
                speech = espeak.say(
                    "Hooray, the holidays begin today.", language="en", variant=variant, rate=250, pitch=pitch, pitch_range=100
                )
                assert 1000 < np.abs(speech.samples.astype(int)).max() < 32_700


def test_unknown_names_are_told() -> None:
    with Espeak() as espeak:
        with pytest.raises(UnknownNameError, match="f99"):
            espeak.say("x", language="en", variant="f99", **PLAIN)
        with pytest.raises(UnknownNameError, match="Did you mean 'cmn'"):
            espeak.say("x", language="cmm", variant="f1", **PLAIN)
        with pytest.raises(DataError, match="nothing"):
            espeak.say("", language="en", variant="f1", **PLAIN)


def test_data_behind_a_long_path_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, data = module._locate()
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / data.name).symlink_to(data)
    monkeypatch.setattr(module, "_locate", lambda: (library, deep / data.name))
    with Espeak() as espeak:
        assert len(espeak.say("Hello.", language="en", variant="f1", **PLAIN).samples) > 1000


def test_broken_installations_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, data = module._locate()
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(module, "_locate", lambda: (broken, data))
    with pytest.raises(EnvironmentFault, match=r"does not load.*pip install raysere\[demo\]"):
        Espeak()
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(module, "_locate", lambda: (library, tmp_path / "empty"))
    with pytest.raises(EnvironmentFault, match="data"):
        Espeak()
