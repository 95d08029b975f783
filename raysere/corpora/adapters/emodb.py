"""EmoDB, the Berlin Database of Emotional Speech: ten German actors, ten sentences, seven emotions.

Burkhardt, Paeschke, Rolfes, Sendlmeier, Weiss, "A Database of German Emotional Speech", Interspeech
2005.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysere.base.errors import ConfigError
from raysere.corpora.adapters.base import Adapter
from raysere.corpora.adapters.names import named_files
from raysere.corpora.lablaut import read_lablaut

PARTS = ("wav", "all")
SEXES = {"03": "M", "08": "F", "09": "F", "10": "M", "11": "M", "12": "M", "13": "F", "14": "F", "15": "M", "16": "F"}
EMOTIONS = {"W": "anger", "F": "happiness", "N": "neutral", "T": "sadness", "A": "fear", "L": "boredom", "E": "disgust"}
SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
_NAME = re.compile(r"(\d\d)([a-z]\d\d)([A-Z])([a-z])")
_RESAMPLED = "wav_resampled"


class EmoDB(Adapter):
    """``03a01Fa`` = speaker 03, sentence a01, emotion F (the German letter: Freude), version a.

    Where the published label files are there (``labels.zip`` or ``lablaut/``), ``phones`` are their
    narrow phonetic labels.

    Options:
        parts: ``wav`` (default: the published files) or ``all`` (also ``wav_resampled/``, where a
            copy has it).
    """

    name = "emodb"
    language = "de"
    licence = "free download by the authors; republished under CC0-1.0"
    homepage = "http://emodb.bilderbar.info"
    classes = "emodb7"
    layout = "a folder with wav/03a01Fa.wav (speaker, sentence, German emotion letter, version) in any format that libsndfile reads"
    notes = (
        "emodb: the emotion letters are German: F is Freude (happiness), A is Angst (fear), E is Ekel (disgust), W is Wut (anger).",
        "emodb: ten sentences are spoken by everybody in every emotion, so words carry no emotion and a split by speaker is not one by "
        "text.",
        "emodb: the published clips are those that at least 80 % of listeners recognised, and classes are unbalanced within speakers: "
        "easier than real speech, and to be measured by UAR.",
    )

    def read(self, path: Path, parts: str = "wav") -> Iterator[dict[str, Any]]:
        if parts not in PARTS:
            raise ConfigError(f"The option parts of the corpus 'emodb' cannot be {parts!r}", choices=PARTS)
        skipped = 0
        named = list(named_files(path, _NAME, self.note, self.name))
        phones = self._phones(path, {file.stem for file, _ in named if parts == "all" or _RESAMPLED not in file.parts})
        for file, match in named:
            resampled = _RESAMPLED in file.parts
            if resampled and parts == "wav":
                skipped += 1
                continue
            if resampled:
                self.note(
                    f"emodb: clips of {_RESAMPLED}/ are in use. They were resampled twice and are at most 2.0 s long, which no other class "
                    "is: length and the top of the band give fear, boredom and disgust away. Do not publish figures of them."
                )
            speaker, sentence, letter, _ = match.groups()
            row = {
                "utterance": file.stem,
                "path": file,
                "speaker": speaker,
                "sex": SEXES.get(speaker),
                "emotion": EMOTIONS.get(letter),
                "transcript": SENTENCES.get(sentence),
                "phones": phones.get(file.stem),
            }
            if speaker not in SEXES:
                row["reject"] = f"there is no speaker {speaker} in EmoDB (03 and 08 to 16)"
            elif letter not in EMOTIONS:
                row["reject"] = f"there is no emotion letter {letter!r} in EmoDB ({', '.join(EMOTIONS)})"
            elif sentence not in SENTENCES:
                row["reject"] = f"there is no sentence {sentence} in EmoDB ({', '.join(SENTENCES)})"
            yield row
        if skipped:
            self.note(
                f"emodb: {skipped} clips of {_RESAMPLED}/ (fear, boredom, disgust) are left out: all of them are resampled and short, so "
                "that a classifier could tell these classes by band and length alone. The option `parts: all` takes them in."
            )

    def _phones(self, path: Path, stems: set[str]) -> dict[str, list[dict[str, Any]]]:
        if not any((path / name).exists() for name in ("labels.zip", "lablaut")):
            return {}
        phones, faults = read_lablaut(path, stems)
        if faults:
            self.note(f"emodb: {len(faults)} label files were left out; the first is {faults[0]}.")
        if missing := sorted(stems - set(phones)):
            self.note(f"emodb: {len(missing)} of {len(stems)} utterances have no phonetic labels (the first is {missing[0]}).")
        return phones
