"""EMOVO: six Italian actors, fourteen sentences, seven emotions.

Costantini, Iadarola, Paoloni, Todisco, "EMOVO Corpus: an Italian Emotional Speech Database", LREC
2014.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysere.corpora.adapters.base import Adapter
from raysere.corpora.adapters.names import named_files

SPEAKERS = ("f1", "f2", "f3", "m1", "m2", "m3")
EMOTIONS = {"dis": "disgust", "gio": "joy", "pau": "fear", "rab": "anger", "sor": "surprise", "tri": "sadness", "neu": "neutral"}
SENTENCES = {
    "b1": "Gli operai si alzano presto.",
    "b2": "I vigili sono muniti di pistola.",
    "b3": "La cascata fa molto rumore.",
    "l1": "L'autunno prossimo Tony partirà per la Spagna nella prima metà di ottobre.",
    "l2": "Ora prendo la felpa di là ed esco per fare una passeggiata.",
    "l3": "Un attimo dopo s'è incamminato ... ed è inciampato.",
    "l4": "Vorrei il numero telefonico del Signor Piatti.",
    "n1": "La casa forte vuole col pane.",
    "n2": "La forza trova il passo e l'aglio rosso.",
    "n3": "Il gatto sta scorrendo nella pera",
    "n4": "Insalata pastasciutta coscia d'agnello limoncello.",
    "n5": "Uno quarantatré dieci mille cinquantasette venti.",
    "d1": "Sabato sera cosa farà?",
    "d2": "Porti con te quella cosa?",
}
_NAME = re.compile(r"([a-z]{3})-([fm]\d)-([a-z]\d)")
_TWINS = ("tri-f3-n1", "tri-f3-n2")


class Emovo(Adapter):
    """``dis-f1-b1`` = emotion, speaker (f or m is the sex), sentence. 588 clips, complete."""

    name = "emovo"
    language = "it"
    licence = "CC BY-NC-SA 4.0 (as catalogues write; distributed by the authors for research)"
    homepage = "https://aclanthology.org/L14-1478/"
    classes = "emovo7"
    layout = "a folder with f1/dis-f1-b1.wav (emotion, speaker, sentence) in any format that libsndfile reads"
    # the louder microphone of each actor; the other hears the same voice 0.4 ms apart: their mean
    # is comb-filtered and 4 to 6 dB down
    channels = {"f1": 0, "f2": 0, "f3": 0, "m1": 0, "m2": 1, "m3": 1}
    notes = (
        "emovo: the two channels of a published file are two microphones about 0.4 ms apart. Of a stereo file one channel is taken and "
        "never the mean: left for f1, f2, f3 and m1, right for m2 and m3.",
        "emovo: the recording format gives the class away in the published files: 13 of f1's 14 neutral clips have two identical channels "
        "and rab-f1-b1 is the only mono file. One channel of each file hides that.",
        "emovo: f2's recordings were gated: a fifth of a median clip is digital zeros, under 1 % for the others.",
        "emovo: levels are not comparable: the gain was turned down by hand for loud emotions. Consider level normalisation (`level: "
        "rms`).",
        "emovo: fourteen sentences are spoken by everybody in every emotion, so words carry no emotion.",
    )

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        seen = set()
        for file, match in named_files(path, _NAME, self.note, self.name):
            code, speaker, sentence = match.groups()
            row = {
                "utterance": file.stem,
                "path": file,
                "speaker": speaker,
                "sex": speaker[0],
                "emotion": EMOTIONS.get(code),
                "transcript": SENTENCES.get(sentence),
            }
            if code not in EMOTIONS:
                row["reject"] = f"there is no emotion {code!r} in EMOVO ({', '.join(EMOTIONS)})"
            elif speaker not in SPEAKERS:
                row["reject"] = f"there is no speaker {speaker} in EMOVO ({', '.join(SPEAKERS)})"
            elif sentence not in SENTENCES:
                row["reject"] = f"there is no sentence {sentence} in EMOVO ({', '.join(SENTENCES)})"
            seen.add(file.stem)
            yield row
        if seen.issuperset(_TWINS):
            self.note(
                "emovo: tri-f3-n1 is bit for bit a part of tri-f3-n2 (from 0.107 s on): one of the two sentence labels is wrong. Both are "
                "kept (same speaker, same emotion); a split by sentence would leak here."
            )
