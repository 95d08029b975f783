"""The demo corpus: synthetic emotional speech in English, Mandarin and Russian, made offline by
espeak-ng in under a minute.

It lets every part of raysere be tried without data of one's own. Voices, classes, attributes, votes
and traces are simulated: figures on it show that the system works, never how well emotion is
recognised.
"""

from __future__ import annotations

import fcntl
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import soundfile

from raysere.base.errors import ConfigError
from raysere.base.files import atomic_folder, atomic_write, explain_write_errors, open_lock, read_json, write_json
from raysere.base.progress import Progress
from raysere.corpora.manifest import Manifest, rows_to_table
from raysere.demo import prosody as prosody
from raysere.demo.espeak import Espeak, Mark
from raysere.demo.texts import LANGUAGES, SHARED, TEXTS, spoken, word_marks
from raysere.demo.voices import SAMPLING_RATE, Voice, espeak_settings, finish, make_voices, render, seconds

FORMAT = "raysere.demo/1"
VERSION = 1  # of the synthesis: goes up whenever the same seed gives other sound or labels
CORPUS = "demo"
TRACE_STEP_S = 0.25
_PASSAGE_S = 16.0  # a passage ends with the sentence that passes this
_LOCK_NAME = ".demo.lock"


def make_demo(
    folder: str | Path, *, seed: int = 0, voices: int = 24, utterances: int = 30, passages: int = 1, progress: Progress | None = None
) -> Path:
    """Synthesise the demo corpus, or find that it is there.

    The folder then holds ``manifest.parquet`` (written last: a folder with it is complete),
    ``audio/VOICE/NAME.flac`` (16 kHz, 16 bit), ``demo.json`` (the settings and the voices) and
    ``README.txt``. A synthesis that was cut off continues with the first voice that is missing and
    gives the same corpus bit for bit; two at once wait for each other.

    Args:
        folder: where it goes; made when missing.
        seed: of everything that is drawn.
        voices: speakers, at least 9, dealt to the three languages in turn (24: 4 train, 2
            development, 2 test speakers a language).
        utterances: short utterances (1 to 4 s) a voice, classes as even as can be; at least 4.
        passages: passages (16 to 20 s) a voice, with drifting emotion and traces instead of a
            label.

    Returns:
        The folder.

    Raises:
        ConfigError: too few voices or utterances, or the folder holds a demo corpus with other
            settings, or something else.
        EnvironmentFault: espeak-ng is missing (``pip install raysere[demo]``), or the disk is full
            or not writable.
    """
    settings = {"format": FORMAT, "version": VERSION, "seed": seed, "voices": voices, "utterances": utterances, "passages": passages}
    for name, least in (("seed", 0), ("voices", 9), ("utterances", 4), ("passages", 0)):
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"The demo corpus needs {name} to be a whole number of at least {least}, not {value!r}")
    folder = Path(folder).expanduser()
    _check_folder(folder, settings)
    if _complete(folder):
        return folder
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_lock(folder / _LOCK_NAME)
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _check_folder(folder, settings)
        if not _complete(folder):
            _synthesise(folder, settings, progress or Progress(quiet=True))
    return folder


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError("The demo corpus needs a folder, and this is a file", where=folder)
    if (folder / "demo.json").is_file():
        found = read_json(folder / "demo.json")
        other = [f"{key} {found.get(key)!r} instead of {value!r}" for key, value in settings.items() if found.get(key) != value]
        if other:
            raise ConfigError(
                f"The folder holds a demo corpus with other settings: {', '.join(other)}",
                where=folder,
                remedy="Name another folder, or delete this one.",
            )
    elif (folder / "audio").exists() or (folder / "manifest.parquet").exists():
        raise ConfigError("The folder holds another corpus", where=folder, remedy="Name an empty folder.")


def _complete(folder: Path) -> bool:
    """Whether the manifest is there and every file that it names."""
    path = folder / "manifest.parquet"
    if not path.is_file():
        return False
    return all((folder / name).is_file() for name in pl.read_parquet(path, columns=["path"])["path"])


def _synthesise(folder: Path, settings: dict[str, Any], progress: Progress) -> None:
    voices = make_voices(settings["voices"], LANGUAGES, settings["seed"])
    for left in (folder / "audio").glob(".*.tmp"):  # of a process that was killed: the lock says that none is alive
        shutil.rmtree(left, ignore_errors=True)
    parts = []
    stage = "synthesise demo corpus"
    have = [_read_part(folder, voice) for voice in voices]
    (folder / "manifest.parquet").unlink(missing_ok=True)
    progress.start(stage, total=len(voices), done=sum(part is not None for part in have))
    for index, voice in enumerate(voices):
        part = have[index]
        if part is None:
            with Espeak() as espeak:  # a fresh one each voice: what is spoken does not depend on where a killed run stopped
                if not (folder / "demo.json").is_file():
                    write_json(
                        folder / "demo.json",
                        {
                            **settings,
                            "espeak-ng": espeak.version(),
                            "languages": list(LANGUAGES),
                            "speakers": [one.to_json() for one in voices],
                        },
                    )
                part = _make_part(folder, voice, index, settings, espeak)
            progress.advance(stage, note=voice.name)
        parts.append(part)
    manifest = Manifest.checked(pl.concat(parts), roots={CORPUS: "."}, scales={CORPUS: prosody.SCALE}, notes=[prosody.NOTE], synthetic=True)
    with atomic_write(folder / "README.txt") as temporary:
        temporary.write_text(_readme(settings, manifest.table), encoding="utf-8")
    manifest.write(folder / "manifest.parquet")


def _part_file(folder: Path, voice: Voice) -> Path:
    return folder / "audio" / voice.name / "rows.parquet"


def _read_part(folder: Path, voice: Voice) -> pl.DataFrame | None:
    """The rows of a voice that is done; one whose files were deleted is cleared, to be made again."""
    file = _part_file(folder, voice)
    if file.is_file():
        part = pl.read_parquet(file)
        if all((folder / name).is_file() for name in part["path"]):
            return part
    shutil.rmtree(file.parent, ignore_errors=True)
    return None


def _make_part(folder: Path, voice: Voice, place: int, settings: dict[str, Any], espeak: Espeak) -> pl.DataFrame:
    seed, count = settings["seed"], settings["utterances"]
    deck = np.random.default_rng([seed, 2, place]).permutation([(place + index) % len(prosody.EMOTIONS) for index in range(count)])
    with atomic_folder(_part_file(folder, voice).parent) as temporary:
        rows = []
        for index, emotion in enumerate(deck):
            rng = np.random.default_rng([seed, 3, place, index])
            rows.append(_utterance(temporary, voice, f"u{index:03d}", prosody.EMOTIONS[emotion], rng, espeak))
        for index in range(settings["passages"]):
            rows.append(_passage(temporary, voice, f"p{index:02d}", np.random.default_rng([seed, 4, place, index]), espeak))
        part = rows_to_table(rows)
        table = io.BytesIO()
        part.write_parquet(table)
        (temporary / "rows.parquet").write_bytes(table.getvalue())
    return part


def _utterance(folder: Path, voice: Voice, name: str, emotion: str, rng: np.random.Generator, espeak: Espeak) -> dict[str, Any]:
    carried = prosody.draw_words(emotion, rng)
    drawn = prosody.draw_prosody(emotion, voice.style, carried, rng)
    sound, text, words, phones = _sentence(voice, carried, drawn, rng, espeak)
    before, after = rng.uniform(0.08, 0.25), rng.uniform(0.12, 0.3)
    row = _write(folder, voice, name, [np.zeros(int(before * SAMPLING_RATE)), sound, np.zeros(int(after * SAMPLING_RATE))], rng)
    offset = int(before * SAMPLING_RATE) / SAMPLING_RATE
    votes = prosody.draw_votes(emotion, drawn, carried, rng)
    means = {name: round(float(np.mean([vote[name] for vote in votes])), 3) for name in prosody.ATTRIBUTES}  # type: ignore[misc]
    return {
        **row,
        **means,
        "emotion": emotion,
        "votes": votes,
        "transcript": text,
        "words": _shift(words, offset),
        "phones": _shift(phones, offset),
    }


def _passage(folder: Path, voice: Voice, name: str, rng: np.random.Generator, espeak: Espeak) -> dict[str, Any]:
    """Sentence after sentence; the emotion stays or changes, and half of the prosody carries over."""
    emotion = str(rng.choice(prosody.EMOTIONS))
    state: prosody.Prosody | None = None
    pieces, texts, words, phones, spans = [np.zeros(int(0.3 * SAMPLING_RATE))], [], [], [], []
    length = len(pieces[0])
    while length < _PASSAGE_S * SAMPLING_RATE:
        if rng.random() < 0.45:
            emotion = str(rng.choice([other for other in prosody.EMOTIONS if other != emotion]))
        carried = prosody.draw_words(emotion, rng)
        drawn = prosody.draw_prosody(emotion, voice.style, carried, rng)
        state = drawn if state is None else prosody.Prosody((state.cues + drawn.cues) / 2, (state.affect + drawn.affect) / 2)
        sound, text, some_words, some_phones = _sentence(voice, carried, state, rng, espeak)
        offset = length / SAMPLING_RATE
        words += _shift(some_words, offset)
        phones += _shift(some_phones, offset)
        texts.append(text)
        spans.append((offset, state.affect))
        pause = np.zeros(int(rng.uniform(0.15, 0.4) * np.exp(0.3 * float(np.clip(state.cues[4], -2, 2))) * SAMPLING_RATE))
        pieces += [sound, pause]
        length += len(sound) + len(pause)
    row = _write(folder, voice, name, pieces, rng)
    times = np.arange(0, length / SAMPLING_RATE, TRACE_STEP_S)
    current = np.maximum(np.searchsorted([start for start, _ in spans], times, side="right") - 1, 0)
    affect = np.array([value for _, value in spans])[current]
    return {
        **row,
        "transcript": ("" if voice.language == "cmn" else " ").join(texts),
        "words": words,
        "phones": phones,
        "dialogue": row["utterance"],
        "turn": 0,
        "traces": prosody.draw_traces(times, affect, rng),
    }


def _sentence(
    voice: Voice, carried: str | None, drawn: prosody.Prosody, rng: np.random.Generator, espeak: Espeak
) -> tuple[np.ndarray, str, list[dict[str, Any]], list[dict[str, Any]]]:
    """Dry sound, transcript, and words and phones with times in s from its start."""
    text, tokens = spoken(voice.language, str(rng.choice(TEXTS[voice.language][carried or SHARED])))
    speech = espeak.say(text, language=voice.language, variant=voice.variant, **espeak_settings(voice, drawn))
    return (
        render(speech, voice, drawn),
        text,
        [_span(voice, word) for word in word_marks(tokens, speech)],
        [_span(voice, phone) for phone in speech.phones],
    )


def _span(voice: Voice, mark: Mark) -> dict[str, Any]:
    return {"label": mark.label, "start_s": seconds(voice, mark.start), "end_s": seconds(voice, mark.end)}


def _shift(spans: list[dict[str, Any]], offset: float) -> list[dict[str, Any]]:
    return [{**one, "start_s": round(one["start_s"] + offset, 4), "end_s": round(one["end_s"] + offset, 4)} for one in spans]


def _write(folder: Path, voice: Voice, name: str, pieces: list[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    samples = finish(np.concatenate(pieces), voice, rng)
    encoded = io.BytesIO()  # in memory first: libsndfile's own errors do not say that the disk is full
    soundfile.write(encoded, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    (folder / f"{name}.flac").write_bytes(encoded.getvalue())
    return {
        "utterance": f"{CORPUS}/{voice.name}/{name}",
        "corpus": CORPUS,
        "language": voice.language,
        "path": f"audio/{voice.name}/{name}.flac",
        "duration_s": len(samples) / SAMPLING_RATE,
        "sampling_rate": SAMPLING_RATE,
        "speaker": f"{CORPUS}/{voice.name}",
        "sex": voice.sex,
        "split": voice.split,
    }


def _readme(settings: dict[str, Any], table: pl.DataFrame) -> str:
    short = table.filter(pl.col("emotion").is_not_null())
    minutes = sum(short["duration_s"]) / 60
    rest = sum(table["duration_s"]) / 60 - minutes
    return f"""SYNTHETIC SPEECH

Nobody spoke this corpus. It was made by raysere with the speech synthesiser espeak-ng (seed {settings["seed"]}, version {VERSION}).
Emotion, raters and traces are simulated. Use it to try the software; its figures say nothing about real speech.

{short.height} utterances ({minutes:.1f} min) and {table.height - short.height} passages ({rest:.1f} min) of {settings["voices"]} voices;
languages: {", ".join(LANGUAGES)}.

manifest.parquet   a row for each utterance: path, speaker, sex, split, emotion, votes of simulated raters, arousal, valence,
                   dominance (1 to 7, means of the votes), transcript, words and phones with times; passages have traces
                   (rater, attribute, time, value) instead of an emotion
audio/VOICE/       16 kHz FLAC; u... utterances, p... passages; rows.parquet: the rows of this voice
demo.json          settings and voices

Load it with the corpus name 'demo'. Delete the folder to make it anew.
"""
