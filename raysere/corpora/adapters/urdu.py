"""URDU: 400 clips of spontaneous speech from Urdu talk shows, four emotions.

Latif, Qayyum, Usman, Qadir, "Cross Lingual Speech Emotion Recognition: Urdu vs. Western Languages",
FIT 2018.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysere.corpora.adapters.base import Adapter
from raysere.corpora.adapters.names import named_files

EMOTIONS = {"A": "angry", "H": "happy", "N": "neutral", "S": "sad"}
_NAME = re.compile(r"(S[FM]\d+)_F\d+_([A-Z])\d+")


class Urdu(Adapter):
    """``SM5_F12_N045`` = male speaker 5, file 12, neutral clip 45, in the folder of its
    emotion. No transcripts are published.
    """

    name = "urdu"
    language = "ur"
    licence = "research only ('Anyone can use this data only for research purposes.')"
    homepage = "https://github.com/siddiquelatif/URDU-Dataset"
    classes = "urdu4"
    layout = (
        "a folder with Angry, Happy, Neutral and Sad, in them SM5_F12_N045.wav (speaker, file, emotion letter and number) in any format "
        "that libsndfile reads"
    )
    linked_speakers = (("SF1", "SF4"),)
    notes = (
        "urdu: speaker nearly is emotion: only SM3, SM5 and SM6 speak in two or more classes, SM1, SM2 and SM4 are 98 of the 100 angry "
        "clips and no woman is angry. A random split scores speaker recognition; three speaker-disjoint folds are the most that anger "
        "allows.",
        "urdu: SF1 and SF4 share audio (SF1_F4_H04 with SF4_F3_H019 and SF4_F4_H020): both ids are kept in one fold.",
        "urdu: neighbouring clips of one speaker overlap by 1 to 2 s in at least six pairs (such as SM2_F2_A024 and SM2_F3_A025).",
        "urdu: 29 speaker ids are in the names, 38 speakers are documented; SM8 to SM16 do not exist. The numbers in the names are padded "
        "unevenly (A01, A0100) and are used as they stand.",
        "urdu: clips are cut at 2.0 or 3.0 s, through words, and many were clipped at the source.",
    )

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        for file, match in named_files(path, _NAME, self.note, self.name):
            speaker, letter = match.groups()
            emotion = EMOTIONS.get(letter)
            folder = file.parent.name.lower()
            row = {"utterance": file.stem, "path": file, "speaker": speaker, "sex": speaker[1], "emotion": emotion}
            if emotion is None:
                row["reject"] = f"there is no emotion letter {letter!r} in URDU ({', '.join(EMOTIONS)})"
            elif folder in EMOTIONS.values() and folder != emotion:
                row["reject"] = f"its name says {emotion}, its folder {file.parent.name}"
            yield row
