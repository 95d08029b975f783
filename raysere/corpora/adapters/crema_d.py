"""CREMA-D: 91 actors, twelve English sentences, six emotions, perceived labels of 2,443 raters.

Cao, Cooper, Keutmann, Gur, Nenkova, Verma, "CREMA-D: Crowd-Sourced Emotional Multimodal Actors
Dataset", IEEE Trans. Affective Computing 5(4), 2014. Sentences, codes and table columns are those
of the repository's own README.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.bounds import ROWS_BYTES, ROWS_CELLS, TEXT_CELLS, check_text_table
from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.adapters.base import Adapter
from raysere.corpora.adapters.names import is_pointer, named_files

EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
LETTERS = {"A": "anger", "D": "disgust", "F": "fear", "H": "happy", "N": "neutral", "S": "sad"}
SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
STIMULI = {"voice": "1", "face": "2", "audio_visual": "3"}
_VOTE_COLUMNS = {"voice": "VoiceVote", "face": "FaceVote", "audio_visual": "MultiModalVote"}
LABELS = ("intended", "perceived")
_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_([A-Z]{1,2})")  # one published copy has a level X for XX
_SILENT = "1076_MTI_SAD_XX"


class CremaD(Adapter):
    """``1001_IEO_ANG_HI`` = actor, sentence, emotion, level (LO, MD, HI, XX). ``AudioWAV/`` goes
    before ``AudioMP3/`` where both are there.

    Options:
        label: ``intended`` (default: the emotion that the actor was asked for) or ``perceived``
            (what most raters chose, from ``processedResults/summaryTable.csv``; no label where two
            emotions tie).
        stimulus: which ratings count as votes and as the perceived label: ``voice`` (default),
            ``face`` or ``audio_visual``. Votes come from ``finishedResponses.csv`` where it is
            there.
    """

    name = "crema-d"
    language = "en"
    licence = "ODbL 1.0 (database), DbCL 1.0 (contents)"
    homepage = "https://github.com/CheyneyComputerScience/CREMA-D"
    classes = "crema6"
    layout = (
        "a folder with AudioWAV/1001_IEO_ANG_HI.wav (actor, sentence, emotion, level), in any format that libsndfile reads, and "
        "VideoDemographics.csv"
    )
    notes = (
        "crema-d: the emotion is the one intended by the actor unless `label: perceived` is asked for; raters who heard the voice alone "
        "named the intended one in 40.9 % of their answers.",
        "crema-d: twelve sentences are spoken by everybody, so words carry no emotion (and 'It's eleven o'clock' alone has levels).",
        "crema-d: 1076_MTI_SAD_XX is silent and left out. 1076_MTI_NEU_XX, 1064_TIE_SAD_XX and 1064_IEO_DIS_MD are known as broken videos; "
        "their audio is kept.",
    )

    def read(self, path: Path, label: str = "intended", stimulus: str = "voice") -> Iterator[dict[str, Any]]:
        if label not in LABELS:
            raise ConfigError(f"The option label of the corpus 'crema-d' cannot be {label!r}", choices=LABELS)
        if stimulus not in STIMULI:
            raise ConfigError(f"The option stimulus of the corpus 'crema-d' cannot be {stimulus!r}", choices=STIMULI)
        sexes, votes = self._sexes(path), self._votes(path, stimulus)
        perceived = _perceived(path, stimulus) if label == "perceived" else {}
        files = list(named_files(path, _NAME, self.note, self.name))
        if any("AudioWAV" in file.parts for file, _ in files):  # a whole clone holds every clip as wav and as mp3
            files = [(file, match) for file, match in files if "AudioMP3" not in file.parts]
        ties = 0
        for file, match in files:
            actor, sentence, code, level = match.groups()
            stem = f"{actor}_{sentence}_{code}_{'XX' if level == 'X' else level}"
            emotion = perceived.get(stem) if label == "perceived" else EMOTIONS.get(code)
            ties += emotion is None
            video = Path("VideoFlash", f"{file.stem}.flv")
            row = {
                "utterance": stem,
                "path": file,
                "speaker": actor,
                "sex": sexes.get(actor),
                "emotion": emotion,
                "transcript": SENTENCES.get(sentence),
                "votes": votes.get(stem),
                "video": video.as_posix() if (path / video).is_file() else None,
            }
            if code not in EMOTIONS:
                row["reject"] = f"there is no emotion {code!r} in CREMA-D ({', '.join(EMOTIONS)})"
            elif sentence not in SENTENCES:
                row["reject"] = f"there is no sentence {sentence!r} in CREMA-D ({', '.join(SENTENCES)})"
            elif stem == _SILENT:
                row["reject"] = "this clip is known to be silent"
            elif is_pointer(path / file):
                row["reject"] = "a git-lfs pointer, not audio: run `git lfs pull` in the corpus"
            yield row
        if label == "perceived" and ties:
            self.note(f"crema-d: {ties} clips have no perceived label, because two emotions tie or no rater judged them.")

    def _sexes(self, path: Path) -> dict[str, str]:
        file = _find(path, "VideoDemographics.csv")
        if file is None:
            self.note("crema-d: there is no VideoDemographics.csv, so that the sexes are not known.")
            return {}
        check_text_table(file, most=ROWS_BYTES, cells=ROWS_CELLS)
        with file.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
        if rows and not {"ActorID", "Sex"} <= set(rows[0]):
            raise DataError("VideoDemographics.csv of CREMA-D lacks the columns ActorID and Sex", where=file, choices=rows[0])
        return {row["ActorID"].strip(): row["Sex"].strip() for row in rows}

    def _votes(self, path: Path, stimulus: str) -> dict[str, list[dict[str, Any]]]:
        file = _find(path, "finishedResponses.csv")
        if file is None or is_pointer(file):
            return {}
        columns = ["localid", "queryType", "clipName", "respEmo"]
        check_text_table(file, cells=TEXT_CELLS)
        try:
            table = pl.read_csv(file, columns=columns, infer_schema=False, null_values=["NA", ""])
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"finishedResponses.csv of CREMA-D lacks the columns {', '.join(columns)} or is not a CSV file", where=file
            ) from error
        table = table.with_columns(pl.col(columns).str.strip_chars()).filter(
            pl.col("queryType") == STIMULI[stimulus], pl.col("respEmo").is_in(list(LETTERS))
        )
        votes: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for rater, clip, letter in (
            table.unique(["localid", "clipName"], keep="last", maintain_order=True).select("localid", "clipName", "respEmo").iter_rows()
        ):
            votes[clip].append({"rater": rater, "emotion": LETTERS[letter]})
        self.note(f"crema-d: votes are those of raters who were shown: {stimulus.replace('_', '-')}.")
        return votes


def _find(path: Path, name: str) -> Path | None:
    """A table of the repository: in the corpus folder, beside it (when ``AudioWAV`` itself was
    given), or in its ``processedResults``.
    """
    folders = [path, path / "processedResults", path.parent, path.parent / "processedResults"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _perceived(path: Path, stimulus: str) -> dict[str, str]:
    file = _find(path, "summaryTable.csv")
    if file is None:
        raise MissingFileError(
            "The perceived labels of CREMA-D need processedResults/summaryTable.csv", where=path, remedy="Add it, or use `label: intended`."
        )
    column = _VOTE_COLUMNS[stimulus]
    check_text_table(file, most=ROWS_BYTES, cells=ROWS_CELLS)
    with file.open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    if not rows or not {"FileName", column} <= set(rows[0]):
        raise DataError(f"summaryTable.csv of CREMA-D lacks the columns FileName and {column}", where=file, choices=rows[0] if rows else ())
    return {row["FileName"].strip(): LETTERS[row[column].strip()] for row in rows if row[column].strip() in LETTERS}
