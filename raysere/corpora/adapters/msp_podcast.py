"""MSP-Podcast: natural speech from podcasts, eight emotions and three attributes, five and more
raters each.

Lotfian, Busso, "Building Naturalistic Emotionally Balanced Speech Corpus by Retrieving Emotional
Speech From Existing Podcast Recordings", IEEE Trans. Affective Computing 10(4), 2019. Releases 1.6
to 2.0 share the layout read here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from raysere.base.bounds import LABEL_BYTES, TEXT_CELLS, check_text_table, read_bytes
from raysere.base.errors import ConfigError, DataError, MissingFileError
from raysere.corpora.adapters.base import Adapter, audio_files
from raysere.corpora.textgrid import read_textgrid

EMOTIONS = {
    "A": "anger",
    "S": "sadness",
    "H": "happiness",
    "U": "surprise",
    "F": "fear",
    "D": "disgust",
    "C": "contempt",
    "N": "neutral",
    "O": "other",
    "X": "no_agreement",
}
RATER_WORDS = {
    "angry": "anger",
    "anger": "anger",
    "sad": "sadness",
    "sadness": "sadness",
    "happy": "happiness",
    "happiness": "happiness",
    "surprise": "surprise",
    "surprised": "surprise",
    "fear": "fear",
    "disgust": "disgust",
    "contempt": "contempt",
    "neutral": "neutral",
}
CONSENSUS = ("labels_consensus.csv", "labels_concensus.csv")  # spelt so until release 1.9
DETAILED = "labels_detailed.csv"
_COLUMNS = ("FileName", "EmoClass", "EmoAct", "EmoVal", "EmoDom", "SpkrID", "Gender", "Split_Set")
_LABEL_FOLDERS = ("", "Labels", "labels", "label")
_AUDIO_FOLDERS = ("Audios", "Audio", "audios", "audio")
_TEXT_FOLDERS = ("Transcripts", "Transcript", "transcripts")
_ALIGNMENT_FOLDERS = ("ForceAligned", "ForcedAligned", "ForceAlignment", "ForcedAlignment", "TextGrids", "TextGrid")
_SPLITS = {"train": "train", "training": "train", "development": "dev", "dev": "dev", "validation": "dev"}
_ATTRIBUTES = {"arousal": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom"}


class MspPodcast(Adapter):
    """``Labels/labels_consensus.csv`` and ``Audios/``; where there, ``Labels/labels_detailed.csv``
    (votes), ``Transcripts/``, TextGrids.

    Options:
        test: the part that becomes the split ``test`` (``Test1``, ``Test2``, ``Test3`` or ``all``);
            default: the first there is. The other test parts are left out and counted in a note.
        votes: whether to read each rater's answer (default: where the table is there).
        alignments: whether to read words and phones from TextGrids (default: no; one file an
            utterance).
    """

    name = "msp-podcast"
    language = "en"
    licence = "by agreement with The University of Texas at Dallas (academic) or a commercial licence"
    homepage = "https://www.lab-msp.com/MSP/MSP-Podcast.html"
    classes = "challenge8"
    layout = (
        "a folder with Labels/labels_consensus.csv (columns " + ", ".join(_COLUMNS) + ") and Audios/MSP-PODCAST_0001_0008.wav in any "
        "format that libsndfile reads"
    )
    scale = (1.0, 7.0)
    title = "MSP-Podcast"
    notes = (
        "msp-podcast: the labels other (O) and no_agreement (X) are kept as labels; the class map challenge8 leaves both out.",
        "msp-podcast: raters may write words of their own; in the votes all that are not one of the eight emotions are other.",
    )

    def read(self, path: Path, test: str | None = None, votes: bool = True, alignments: bool = False) -> Iterator[dict[str, Any]]:
        file = self._consensus(path)
        root = file.parent.parent if file.parent.name.lower() in ("labels", "label") else file.parent
        self.audio_root = root
        table = self._table(file)
        chosen = self._test_part(table, test)
        clips = _by_stem(root, _AUDIO_FOLDERS)
        texts = _files(root, _TEXT_FOLDERS, ".txt")
        grids = _files(root, _ALIGNMENT_FOLDERS, ".textgrid") if alignments else {}
        ballots = self._votes(file.parent / DETAILED) if votes else {}
        left_out: Counter[str] = Counter()
        unknown = 0
        for row in table.iter_rows(named=True):
            stem = Path(row["FileName"]).stem
            part = row["Split_Set"] or ""
            split = _SPLITS.get(part.lower(), "test" if part.lower().startswith("test") else None)
            if split == "test" and chosen is not None and part.lower() != chosen:
                left_out[part] += 1
                continue
            letter = row["EmoClass"]
            emotion = EMOTIONS.get(letter.upper()) if letter else None
            if split in ("train", "dev") and letter is None and row["EmoAct"] is None:
                split = "unlabelled"
            recording, turn = _recording(stem)
            speaker = row["SpkrID"]
            if speaker is None or speaker.lower() == "unknown":
                unknown += 1
                speaker = f"unknown-{recording}"
            utterance: dict[str, Any] = {
                "utterance": stem,
                "path": clips.get(stem),
                "speaker": speaker,
                "sex": row["Gender"] if (row["Gender"] or "").lower() in ("male", "female") else None,
                "split": split,
                "emotion": emotion,
                "votes": ballots.get(stem),
                "dialogue": recording,
                "turn": turn,
                "transcript": read_bytes(texts[stem], LABEL_BYTES).decode("utf-8", errors="replace").strip() if stem in texts else None,
            }
            utterance.update({attribute: _number(row[column]) for attribute, column in _ATTRIBUTES.items()})
            if stem in grids:
                utterance.update(self._alignment(grids[stem]))
            if utterance["path"] is None:
                utterance["path"] = Path(_AUDIO_FOLDERS[0], row["FileName"])
                utterance["reject"] = "it is listed in the labels, but there is no audio file"
            elif split is None:
                utterance["reject"] = f"its Split_Set is {part!r}, which is none of Train, Development and Test..."
            elif letter and emotion is None:
                utterance["reject"] = f"its EmoClass is {letter!r}, which is none of {', '.join(EMOTIONS)}"
            yield utterance
        if left_out:
            self.note(
                f"{self.name}: the split test is {chosen.capitalize() if chosen else 'all'}; "
                + " and ".join(f"{part} ({count} utterances)" for part, count in sorted(left_out.items()))
                + " left out (option `test`)."
            )
        if unknown:
            self.note(
                f"{self.name}: {unknown} utterances have no known speaker; they get one speaker id a recording (unknown-...), so that "
                "clips of one recording stay together, but the same voice may still be in two recordings."
            )

    def _consensus(self, path: Path) -> Path:
        if path.is_file():
            return path
        for folder in _LABEL_FOLDERS:
            for name in CONSENSUS:
                if (path / folder / name).is_file():
                    return path / folder / name
        raise MissingFileError(f"There is no {CONSENSUS[0]} of {self.title} in this folder", where=path, remedy=f"Expected: {self.layout}.")

    def _table(self, file: Path) -> pl.DataFrame:
        table = _read(file)
        missing = [column for column in _COLUMNS if column not in table.columns]
        if missing:
            raise DataError(f"The labels of {self.title} lack the columns {', '.join(missing)}", where=file, choices=table.columns)
        table = table.select(pl.col(_COLUMNS).str.strip_chars().replace("", None))
        if table["FileName"].null_count():
            raise DataError(f"The labels of {self.title} have {table['FileName'].null_count()} rows without FileName", where=file)
        return table

    def _test_part(self, table: pl.DataFrame, test: str | None) -> str | None:
        """The chosen test part in lower case; None for all of them."""
        parts = sorted({part for part in table["Split_Set"].drop_nulls() if part.lower().startswith("test")})
        if test is None:
            return parts[0].lower() if parts else None
        if test.lower() == "all":
            return None
        if test.lower() not in {part.lower() for part in parts}:
            raise ConfigError(f"The option test of the corpus {self.name!r} cannot be {test!r}", choices=[*parts, "all"])
        return test.lower()

    def _votes(self, file: Path) -> Mapping[str, list[dict[str, Any]]]:
        """Each rater's answer, in two published forms: a column each (``Workers``,
        ``EmoClass_Major``, ``EmoAct``, ...), or all of it in ``EmoDetail`` as ``WORKER00000325;
        Happy; Happy,Amused; A:5.000000; V:5.000000; D:4.000000;``.
        """
        if not file.is_file():
            self.note(f"{self.name}: there is no {DETAILED}, hence no votes.")
            return {}
        table = _read(file)
        if {"FileName", "EmoDetail"} <= set(table.columns):
            detail = pl.col("EmoDetail")
            table = table.select(
                "FileName",
                rater=detail.str.extract(r"^\s*([^;]+);"),
                emotion=detail.str.extract(r"^[^;]*;\s*([^;]+);"),
                **{
                    attribute: detail.str.extract(rf";\s*{letter}:\s*(-?[0-9.]+)")
                    for attribute, letter in (("arousal", "A"), ("valence", "V"), ("dominance", "D"))
                },
            )
        elif {"FileName", "EmoClass_Major"} <= set(table.columns):
            rater = next((column for column in ("Workers", "Worker", "WorkerID") if column in table.columns), None)
            table = table.select(
                "FileName",
                rater=pl.col(rater) if rater else pl.lit(None, dtype=pl.String),
                emotion="EmoClass_Major",
                **{
                    attribute: pl.col(column) if column in table.columns else pl.lit(None, dtype=pl.String)
                    for attribute, column in _ATTRIBUTES.items()
                },
            )
        else:
            raise DataError(
                f"{DETAILED} of {self.title} has neither EmoDetail nor EmoClass_Major beside FileName",
                where=file,
                choices=table.columns,
                remedy="Load it with the option `votes: false`.",
            )
        word = pl.col("emotion").str.strip_chars().str.to_lowercase()
        table = table.with_columns(
            pl.col("FileName", "rater").str.strip_chars(),
            pl.col(*_ATTRIBUTES).cast(pl.Float32, strict=False),
            emotion=pl.when(word.is_not_null()).then(word.replace_strict(RATER_WORDS, default="other", return_dtype=pl.String)),
        )
        ballots: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for name, rater, emotion, arousal, valence, dominance in table.select("FileName", "rater", "emotion", *_ATTRIBUTES).iter_rows():
            ballots[Path(name).stem].append(
                {"rater": rater, "emotion": emotion, "arousal": arousal, "valence": valence, "dominance": dominance}
            )
        return ballots

    def _alignment(self, file: Path) -> dict[str, Any]:
        try:
            tiers = {name.lower(): tier for name, tier in read_textgrid(file).items()}
        except DataError:
            self.note(f"{self.name}: some TextGrids cannot be read (the first is {file.name}); these utterances have no alignment.")
            return {}
        return {"words": tiers.get("words", tiers.get("word")), "phones": tiers.get("phones", tiers.get("phone"))}


def _read(file: Path) -> pl.DataFrame:
    check_text_table(file, cells=TEXT_CELLS)
    try:
        return pl.read_csv(file, infer_schema=False, encoding="utf8-lossy")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"This is not a CSV table that can be read: {str(error).splitlines()[0]}", where=file) from error


def _recording(stem: str) -> tuple[str, int | None]:
    """``MSP-PODCAST_0001_0008`` is segment 8 of recording ``MSP-PODCAST_0001``; longer names number
    segments of segments.
    """
    parts = stem.split("_")
    return "_".join(parts[:2]), int(parts[2]) if len(parts) == 3 and parts[2].isdigit() else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise DataError(f"{text!r} is not a number in the labels") from error


def _by_stem(root: Path, folders: tuple[str, ...]) -> dict[str, Path]:
    """Audio files by stem, relative to the root; the published folder first, the root itself where
    there is none.
    """
    folder = next((root / name for name in folders if (root / name).is_dir()), root)
    return {file.stem: file.relative_to(root) for file in reversed(audio_files(folder))}


def _files(root: Path, folders: tuple[str, ...], suffix: str) -> dict[str, Path]:
    folder = next((root / name for name in folders if (root / name).is_dir()), None)
    return {file.stem: file for file in sorted(folder.rglob("*")) if file.suffix.lower() == suffix} if folder else {}
