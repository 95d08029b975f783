"""MELD: utterances of a television series in dialogue, seven emotions, with the published train,
dev and test splits.

Poria, Hazarika, Majumder, Naik, Cambria, Mihalcea, "MELD: A Multimodal Multi-Party Dataset for
Emotion Recognition in Conversations", ACL 2019.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from raysere.base.bounds import ROWS_BYTES, ROWS_CELLS, check_text_table, read_parquet
from raysere.base.errors import DataError
from raysere.corpora.adapters.base import AUDIO_SUFFIXES, Adapter

SPLITS = ("train", "dev", "test")
EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
PARQUET = "utterances.parquet"
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_PACKED = ("split", "dialog_id", "utterance_no", "speaker", "transcript", "emotion")
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi")
_CLIP = re.compile(r"(?:(train|dev|test)_)?dia(\d+)_utt(\d+)")
# the published tables hold the quotes of Windows-1252 as control characters
_WINDOWS = {code: bytes([code]).decode("cp1252", errors="ignore") for code in range(0x80, 0xA0)}


class Meld(Adapter):
    """The published tables (``train_sent_emo.csv``, ``dev_sent_emo.csv``, ``test_sent_emo.csv``),
    or one ``utterances.parquet`` instead.

    Audio is optional (the corpus is published as video): clips named ``dia0_utt0`` in a folder
    whose name holds the split, such as ``train_splits/``, ``dev_splits_complete/`` and
    ``output_repeated_splits_test/``, are taken where they are there. Utterances are named
    ``train_dia0_utt0``, dialogues ``train_dia0``; the turn is the utterance's number in its
    dialogue.
    """

    name = "meld"
    language = "en"
    licence = "GPL-3.0 (annotations); the words and pictures are those of a television series"
    homepage = "https://affective-meld.github.io"
    classes = "meld7"
    layout = (
        "a folder with train_sent_emo.csv, dev_sent_emo.csv and test_sent_emo.csv (or utterances.parquet), and if there is audio, "
        "train_splits/dia0_utt0.wav and so on"
    )
    audio = False
    notes = (
        "meld: speakers recur across the published splits (six main characters speak most lines), so figures on them are not "
        "speaker-independent: say so. Make folds by dialogue, not by speaker.",
        "meld: classes are unbalanced (47 % neutral, under 3 % fear or disgust): report macro-F1 or UAR beside the weighted F1.",
    )

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        clips = self._clips(path)
        heard = 0
        for split, dialogue, turn, speaker, text, emotion in self._rows(path):
            audio, video = clips.get((split, dialogue, turn), (None, None))
            row: dict[str, Any] = {
                "utterance": f"{split}_dia{dialogue}_utt{turn}",
                "path": audio,
                "video": video.as_posix() if video else None,
                "speaker": speaker,
                "split": split,
                "emotion": emotion,
                "transcript": text.translate(_WINDOWS),
                "dialogue": f"{split}_dia{dialogue}",
                "turn": turn,
            }
            if emotion not in EMOTIONS:
                row["reject"] = f"there is no emotion {emotion!r} in MELD ({', '.join(EMOTIONS)})"
            heard += audio is not None
            yield row
        if not heard:
            self.note(
                "meld: there is no audio, only words; take features of your own for the voice (`table:`), or extract the audio of the "
                "published videos."
            )
        else:
            self.note(
                "meld: the published video of train dia125_utt3 is broken and that of dev dia110_utt7 is absent: these stay without audio."
            )

    def _rows(self, path: Path) -> Iterator[tuple[str, int, int, str, str, str]]:
        tables = {split: file for split in SPLITS if (file := _first(path, f"{split}_sent_emo.csv")) is not None}
        packed = _first(path, PARQUET)
        if tables:
            absent = [split for split in SPLITS if split not in tables]
            if absent:
                self.note(f"meld: there is no {' and no '.join(f'{split}_sent_emo.csv' for split in absent)}; these splits are absent.")
            for split, file in tables.items():
                for number, row in enumerate(_read_csv(file)):
                    try:
                        yield (
                            split,
                            int(row["Dialogue_ID"]),
                            int(row["Utterance_ID"]),
                            row["Speaker"].strip(),
                            row["Utterance"].strip(),
                            row["Emotion"].strip().lower(),
                        )
                    except (ValueError, AttributeError) as error:
                        raise DataError(f"Row {number} of this table is broken: {error}", where=file) from error
        elif packed is not None:
            table = read_parquet(packed)
            missing = [column for column in _PACKED if column not in table.columns]
            if missing:
                raise DataError(f"{PARQUET} lacks the columns {', '.join(missing)}", where=packed, choices=table.columns)
            yield from table.select(_PACKED).iter_rows()

    def _clips(self, path: Path) -> dict[tuple[str, int, int], tuple[Path | None, Path | None]]:
        """(split, dialogue, utterance) to the audio and the video file, relative to the corpus."""
        clips: dict[tuple[str, int, int], tuple[Path | None, Path | None]] = {}
        for file in sorted(path.rglob("*dia*_utt*")):
            suffix, match = file.suffix.lower(), _CLIP.fullmatch(file.stem)
            if match is None or suffix not in (*AUDIO_SUFFIXES, *_VIDEO_SUFFIXES):
                continue
            relative = file.relative_to(path)
            split = match.group(1) or _split_of(reversed(relative.parts[:-1]))
            if split is not None:
                key = (split, int(match.group(2)), int(match.group(3)))
                audio, video = clips.get(key, (None, None))
                clips[key] = (audio, video or relative) if suffix in _VIDEO_SUFFIXES else (audio or relative, video)
        return clips


def _split_of(folders: Iterable[str]) -> str | None:
    for folder in folders:
        for split, words in (("train", ("train",)), ("dev", ("dev", "val")), ("test", ("test",))):
            if any(word in folder.lower() for word in words):
                return split
    return None


def _first(path: Path, name: str) -> Path | None:
    """The file in the corpus folder or, as in the published archives, some folders below it."""
    if (path / name).is_file():
        return path / name
    return next((file for file in sorted(path.rglob(name)) if file.is_file()), None)


def _read_csv(file: Path) -> list[dict[str, str]]:
    check_text_table(file, most=ROWS_BYTES, cells=ROWS_CELLS)
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"This table of MELD lacks the columns {', '.join(missing)}", where=file, choices=reader.fieldnames or ())
    return list(reader)
