"""Speech from text with espeak-ng, offline: samples with exact word and phone times.

espeak-ng keeps its state in static variables: the phase of its pitch flutter survives even
``espeak_Terminate``, so the same sentence sounds different the second time. Each :class:`Espeak`
therefore loads its own private copy of the library (a few milliseconds): the samples depend only on
what was said since it was opened, never on what other instances said before.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raysere.base.errors import DataError, EnvironmentFault, UnknownNameError

REMEDY = "pip install raysere[demo]"

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples come by callback, inside the call
_PHONEME_EVENTS, _PHONEME_IPA, _DONT_EXIT = 0x0001, 0x0002, 0x8000
_UTF8 = 1
_WORD, _PHONEME = 1, 7
_PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "pitch_range": 4, "word_gap": 7}
_LONGEST_DATA_PATH = 120  # espeak-ng keeps the path in 160 bytes and appends file names to it


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Mark:
    """A word or a phone (in IPA): first sample, the sample after the last, and the 0-based
    character of the text that it belongs to.
    """

    label: str
    start: int
    end: int
    position: int


@dataclass(frozen=True)
class Speech:
    """samples: int16 (n,), mono, at ``sampling_rate``; words and phones in order of time, without
    the pauses between them.
    """

    samples: np.ndarray
    sampling_rate: int
    words: list[Mark]
    phones: list[Mark]


class Espeak:
    """One espeak-ng synthesiser with its own state. Use as a context manager; not for use by
    several threads at once.

    Raises EnvironmentFault when the wheel ``espeakng-loader`` is missing or does not work here.
    """

    def __init__(self) -> None:
        library, data = _locate()
        self._folder = Path(tempfile.mkdtemp(prefix="raysere-espeak-"))
        try:
            self._data = _short_path(data, self._folder)
            private = self._folder / library.name
            shutil.copyfile(library, private)
            self._library: Any = ctypes.CDLL(str(private))
            options = _PHONEME_EVENTS | _PHONEME_IPA | _DONT_EXIT
            self.sampling_rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(self._data), options))
        except OSError as error:
            self._remove()
            if isinstance(error, EnvironmentFault):
                raise
            raise EnvironmentFault(f"espeak-ng does not load: {error}", where=library, remedy=f"Install it again: {REMEDY}.") from error
        if self.sampling_rate <= 0:
            self._remove()
            raise EnvironmentFault("espeak-ng does not find its data", where=data, remedy=f"Install it again: {REMEDY}.")
        self._chunks: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, int, str]] = []
        self._callback = _CALLBACK(self._receive)  # a reference must live as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)

    def __enter__(self) -> Espeak:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._library is not None:
            self._library.espeak_Terminate()
            self._library = None
            self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def version(self) -> str:
        info: Callable[..., bytes] = self._library.espeak_Info
        info.restype = ctypes.c_char_p  # type: ignore[attr-defined]
        return info(None).decode("ascii", "replace").split()[0]

    def voices(self) -> list[str]:
        """The voice variants ("f1", "m3") that the installed data have."""
        return sorted(file.name for file in (self._data / "voices" / "!v").iterdir())

    def say(
        self, text: str, *, language: str, variant: str, rate: int, pitch: int, pitch_range: int, word_gap: int = 0, volume: int = 60
    ) -> Speech:
        """Synthesise one text.

        Args:
            text: plain text; words are what espeak-ng takes for words (in Mandarin: characters).
            language: espeak-ng's language name (``en``, ``cmn``, ``ru``).
            variant: voice variant, one of :meth:`voices`.
            rate: words a minute, 80 to 450.
            pitch, pitch_range: 0 to 100; 50 is the voice's own.
            word_gap: pause between words in 10 ms.
            volume: 0 to 200; above about 80 loud voices clip.

        Raises:
            UnknownNameError: no such language or variant (espeak-ng itself takes any variant in
                silence).
            DataError: nothing was spoken.
        """
        if variant not in self.voices():
            raise UnknownNameError("espeak-ng voice variant", variant, self.voices())
        if self._library.espeak_SetVoiceByName(f"{language}+{variant}".encode()) != 0:
            languages = sorted(file.name for file in (self._data / "lang").rglob("*") if file.is_file())
            raise UnknownNameError("espeak-ng language", language, languages)
        for name, value in (("rate", rate), ("volume", volume), ("pitch", pitch), ("pitch_range", pitch_range), ("word_gap", word_gap)):
            self._library.espeak_SetParameter(_PARAMETERS[name], int(value), 0)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise comes from the C library's rand()
        self._chunks, self._events = [], []
        encoded = text.encode()
        whole = (ctypes.c_size_t(len(encoded) + 1), ctypes.c_uint(0), 1, ctypes.c_uint(0), ctypes.c_uint(_UTF8))
        status = self._library.espeak_Synth(encoded, *whole, None, None)
        samples = np.concatenate([np.zeros(0, np.int16), *self._chunks])
        words, phones = _marks(text, self._events, len(samples))
        if status != 0 or not phones:
            raise DataError(f"espeak-ng spoke nothing (status {status})", where=repr(text))
        return Speech(samples, self.sampling_rate, words, phones)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events and events[index].type:
            event = events[index]
            label = ""
            if event.type == _PHONEME:  # up to 8 bytes, not always ended by a zero: .string would stop too early or too late
                raw = ctypes.string_at(ctypes.addressof(event.id), 8).split(b"\0")[0]
                label = raw.decode("utf-8", "ignore").strip()
            self._events.append((event.type, event.text_position - 1, event.length, event.sample, label))
            index += 1
        return 0


def _marks(text: str, events: list[tuple[int, int, int, int, str]], length: int) -> tuple[list[Mark], list[Mark]]:
    """Events are points: a phone lasts until the next phone event (pauses have one without label),
    a word until its last phone ends.
    """
    phones: list[Mark] = []
    spans: list[list[int]] = []  # a word: position, characters, index of its first phone
    points = [(sample, position, label) for kind, position, _, sample, label in events if kind == _PHONEME]
    following = iter([*(point[0] for point in points[1:]), length])
    for kind, position, characters, sample, label in events:
        if kind == _WORD:
            spans.append([position, characters, len(phones)])
        elif kind == _PHONEME:
            end = min(next(following), length)
            if label and end > sample:
                phones.append(Mark(label, sample, end, position))
    words: list[Mark] = []
    for index, (position, characters, first) in enumerate(spans):
        last = spans[index + 1][2] if index + 1 < len(spans) else len(phones)
        if last > first:
            words.append(Mark(text[position : position + characters], phones[first].start, phones[last - 1].end, position))
    return words, phones


def _locate() -> tuple[Path, Path]:
    try:
        import espeakng_loader
    except ImportError as error:
        what = "The demo corpus is synthesised with espeak-ng, which is not installed"
        raise EnvironmentFault(what, remedy=f"Install it: {REMEDY}.") from error
    library, data = Path(espeakng_loader.get_library_path()), Path(espeakng_loader.__file__).parent / "espeak-ng-data"
    if not library.is_file() or not data.is_dir():
        raise EnvironmentFault("The installed espeakng-loader is incomplete", where=library.parent, remedy=f"Install it again: {REMEDY}.")
    return library, data


def _short_path(data: Path, folder: Path) -> Path:
    """The data folder by a path that espeak-ng can hold; long virtual environment paths get a link
    in the temporary folder.
    """
    if len(os.fsencode(data)) <= _LONGEST_DATA_PATH:
        return data
    short = folder / data.name
    if len(os.fsencode(short)) > _LONGEST_DATA_PATH:
        raise EnvironmentFault(
            "The path of the temporary folder is too long for espeak-ng", where=folder, remedy="Set TMPDIR to a folder with a short path."
        )
    try:
        short.symlink_to(data, target_is_directory=True)
    except OSError:  # links need a privilege on some systems
        shutil.copytree(data, short)
    return short
