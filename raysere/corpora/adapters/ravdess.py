"""RAVDESS, the speech part: 24 North American actors, two sentences, eight emotions.

Livingstone, Russo, "The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS)", PLoS
ONE 13(5), 2018.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysere.corpora.adapters.base import Adapter
from raysere.corpora.adapters.names import named_files

EMOTIONS = {"01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fearful", "07": "disgust", "08": "surprised"}
SENTENCES = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
ACTORS = 24
_AUDIO_ONLY, _SPEECH = "03", "01"
_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_TWINS = ("03-01-03-01-02-01-07", "03-01-03-01-02-02-07")


class Ravdess(Adapter):
    """``03-01-06-01-02-01-12`` = modality, vocal channel, emotion, intensity, sentence, repetition,
    actor (odd: male, even: female).

    Only the audio-only modality (03) of the speech channel (01) is taken.
    """

    name = "ravdess"
    language = "en"
    licence = "CC BY-NC-SA 4.0"
    homepage = "https://zenodo.org/records/1188976"
    classes = "ravdess8"
    layout = "a folder with Actor_01/03-01-06-01-02-01-12.wav (seven two-digit fields) in any format that libsndfile reads"
    notes = (
        "ravdess: two sentences, spoken by everybody in every emotion: text models can learn nothing here, and no split is independent of "
        "the text.",
        "ravdess: about 1 s of near silence stands before and after the voice, partly digital zeros, whose share differs by actor: a mean "
        "over time is mostly a mean over silence.",
        "ravdess: levels differ by actor and strongly by emotion (angry about 20 dB above calm). Consider level normalisation (`level: "
        "rms`).",
        "ravdess: calm is kept apart from neutral; the class map ravdess7 merges them. Neutral has no strong intensity, hence half the "
        "clips.",
        "ravdess: five of the published files are stereo with two identical channels; either channel, or the mean, is the same signal.",
    )

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        other, seen = 0, set()
        for file, match in named_files(path, _NAME, self.note, self.name):
            modality, channel, emotion, _, sentence, _, actor = match.groups()
            if (modality, channel) != (_AUDIO_ONLY, _SPEECH):
                other += 1
                continue
            row = {
                "utterance": file.stem,
                "path": file,
                "speaker": actor,
                "sex": "M" if int(actor) % 2 else "F",
                "emotion": EMOTIONS.get(emotion),
                "transcript": SENTENCES.get(sentence),
            }
            if emotion not in EMOTIONS:
                row["reject"] = f"there is no emotion {emotion} in RAVDESS (01 to 08)"
            elif not 1 <= int(actor) <= ACTORS:
                row["reject"] = f"there is no actor {actor} in RAVDESS (01 to {ACTORS})"
            elif sentence not in SENTENCES:
                row["reject"] = f"there is no sentence {sentence} in RAVDESS (01 and 02)"
            seen.add(file.stem)
            yield row
        if other:
            self.note(f"ravdess: {other} files of other modalities or of song were left out; only audio-only speech (03-01-...) is taken.")
        if seen.issuperset(_TWINS):
            self.note(
                f"ravdess: {_TWINS[0]} and {_TWINS[1]} are the same recording (actor 07, happy). Both are kept, as published figures have "
                "them."
            )
