"""nEMO: nine Polish actors, ninety sentences, six emotions.

Christop, "nEMO: Dataset of Emotional Speech in Polish", LREC-COLING 2024.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raysere.base.bounds import ROWS_BYTES, ROWS_CELLS, check_text_table
from raysere.base.errors import DataError
from raysere.corpora.adapters.base import Adapter
from raysere.corpora.adapters.names import named_files

EMOTIONS = ("anger", "fear", "happiness", "neutral", "sadness", "surprised")
SEXES = {"IC0": "F", "KD0": "F", "EB0": "F", "MK0": "F", "KS0": "M", "WR0": "M", "SM0": "M", "MP0": "M", "TP0": "M"}
SENTENCES = {  # of the ninety; the table data.tsv has all, and goes first where it is there
    "1": "Lubię czytać przed snem.",
    "2": "Nie waśńmy się ze sobą.",
    "4": "Dzieci muszą dużo jeść.",
    "5": "Przestań go judzić.",
    "6": "Dziunia, nie jesteś moim szefem.",
    "8": "Moja ciocia jest bardzo pomocna.",
    "9": "Piłka nożna to moja pasja.",
    "10": "Kupiłem nową szafę do sypialni.",
    "12": "Mój teść zawsze służy radą.",
    "14": "Ten miesiąc minął bardzo szybko.",
    "16": "Racja, ten pomysł jest najlepszy.",
    "17": "Chcę przeczytać ten artykuł jeszcze raz.",
}
TABLE = "data.tsv"
_COLUMNS = ("file_id", "emotion", "raw_text", "speaker_id", "gender")
_NAME = re.compile(r"([A-Z]{2}\d)_([a-z]+)_(\d+)")


class Nemo(Adapter):
    """``SM0_anger_14`` = speaker, emotion, sentence; texts and sexes from the published
    ``data.tsv`` where it is there.
    """

    name = "nemo"
    language = "pl"
    licence = "CC BY-NC-SA 4.0"
    homepage = "https://github.com/amu-cai/nEMO"
    classes = "nemo6"
    layout = "a folder with samples/SM0_anger_14.wav (speaker, emotion, sentence), in any format that libsndfile reads, and data.tsv"
    notes = (
        "nemo: the label is 'surprised'. MK0 has no surprised clip at all, and MP0 has 256 of its 540 clips: report UAR over speakers "
        "with care.",
        "nemo: the sentences are the same in all emotions and for all speakers, so words carry no emotion.",
    )

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        table = _table(path)
        count = 0
        for file, match in named_files(path, _NAME, self.note, self.name):
            speaker, emotion, sentence = match.groups()
            listed = table.get(file.stem, {})
            row = {
                "utterance": file.stem,
                "path": file,
                "speaker": speaker,
                "sex": listed.get("gender") or SEXES.get(speaker),
                "emotion": emotion,
                "transcript": listed.get("raw_text") or SENTENCES.get(sentence),
            }
            if emotion not in EMOTIONS:
                row["reject"] = f"there is no emotion {emotion!r} in nEMO ({', '.join(EMOTIONS)})"
            elif speaker not in SEXES:
                row["reject"] = f"there is no speaker {speaker} in nEMO ({', '.join(SEXES)})"
            elif listed and (listed["speaker_id"], listed["emotion"]) != (speaker, emotion):
                row["reject"] = f"its name and {TABLE} disagree: the table says {listed['speaker_id']}, {listed['emotion']}"
            elif table and not listed:
                self.note(f"nemo: some files are not listed in {TABLE} (the first is {file}); they are kept.")
            count += 1
            yield row
        if table and count < len(table):
            self.note(f"nemo: {count} of the {len(table)} clips that {TABLE} lists are here.")
        if not table and count:
            self.note(f"nemo: there is no {TABLE}; texts are known for {len(SENTENCES)} of the 90 sentences only.")


def _table(path: Path) -> dict[str, dict[str, str]]:
    """``data.tsv`` by file stem: it pads speaker ids with blanks and says ``.wav`` whatever the
    files are.
    """
    file = next((file for file in (path / TABLE, path.parent / TABLE) if file.is_file()), None)
    if file is None:
        return {}
    check_text_table(file, "\t", most=ROWS_BYTES, cells=ROWS_CELLS)
    with file.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{TABLE} of nEMO lacks the columns {', '.join(missing)}", where=file, choices=reader.fieldnames or ())
        rows = [{column: (row[column] or "").strip() for column in _COLUMNS} for row in reader]
    return {Path(row["file_id"]).stem: row for row in rows}
