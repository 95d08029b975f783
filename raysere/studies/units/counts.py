"""Counts of units by corpus, language, speaker, phone and emotion: the only input of every
statistic of the units study.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from torch import Tensor

from raysere.base.errors import DataError
from raysere.features.clock import frame_centres, interval_of
from raysere.features.views import FeatureView
from raysere.nn.frame_units import FrameNorm, FrameUnits, frames_in_batches

CELL = ("corpus", "language", "speaker", "phone", "emotion")
SCHEMA = {**dict.fromkeys(CELL, pl.String), "unit": pl.Int32, "n": pl.Int64}
_COMPACT = 2_000_000  # rows after which what was counted is added up

Collect = Callable[[np.ndarray, np.ndarray, Tensor], None]


@dataclass(frozen=True)
class PhoneFrames:
    """The phone of every frame, utterance by utterance:

    ``names`` of the phones and intervals as arrays.
    """

    names: list[str]
    starts: dict[str, np.ndarray]
    ends: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]
    clock: tuple[float, float]
    margin_s: float = 0.0

    @classmethod
    def of(cls, phones: pl.DataFrame, clock: tuple[float, float], margin_s: float = 0.0) -> PhoneFrames:
        """From the table of :func:`raysere.corpora.ipa.ipa_phones` and
        :func:`raysere.features.clock.frame_clock`.

        A frame belongs to the phone that its centre lies in; ``margin_s`` drops frames so near to a
        boundary.
        """
        names = sorted(phones["ipa"].drop_nulls().unique().to_list())
        number = {name: code for code, name in enumerate(names)}
        starts, ends, codes = {}, {}, {}
        for (utterance,), part in phones.group_by("utterance", maintain_order=True):
            starts[str(utterance)], ends[str(utterance)] = part["start_s"].to_numpy(), part["end_s"].to_numpy()
            codes[str(utterance)] = np.array([-1 if name is None else number[name] for name in part["ipa"].to_list()], dtype=np.int64)
        return cls(names, starts, ends, codes, clock, margin_s)

    def of_utterance(self, utterance: str, frames: int) -> np.ndarray:
        """Code of the phone of each frame, -1 where there is none: int64 (frames,)."""
        if utterance not in self.codes:
            return np.full(frames, -1, dtype=np.int64)
        interval = interval_of(frame_centres(self.clock, frames), self.starts[utterance], self.ends[utterance], self.margin_s)
        return np.where(interval >= 0, self.codes[utterance][np.maximum(interval, 0)], -1)


def count_units(
    view: FeatureView,
    codebooks: Sequence[FrameUnits],
    norm: FrameNorm,
    table: pl.DataFrame,
    phones: PhoneFrames,
    *,
    collect: Collect | None = None,
) -> list[pl.DataFrame]:
    """A table of counts for each codebook (columns of :data:`SCHEMA`), in one pass over the frames.

    Args:
        codebooks: of one layer and normalisation.
        table: utterance, corpus, language, speaker and emotion (null: no class) of the view's
            utterances, in its order.
        collect: called with (row of the utterance, phone code, normalised frames) of every batch,
            for what is measured without units.

    Frames outside of every known phone have the phone null.
    """
    if table["utterance"].to_list() != view.utterances:
        raise DataError("The table of utterances is not in the order of the features")
    cells = table.select("corpus", "language", "speaker", "emotion").with_row_index("row")
    keys = cells.select(pl.struct("corpus", "language", "speaker", "emotion").rank("dense").alias("key"))["key"].to_numpy().astype(np.int64)
    known = cells.with_columns(key=pl.Series(keys)).unique("key", keep="first").drop("row")
    width = len(phones.names) + 1
    found: list[list[pl.DataFrame]] = [[] for _ in codebooks]
    for rows, lengths, frames in frames_in_batches(view, codebooks[0].layer, norm, np.arange(len(view))):
        phone = np.concatenate([phones.of_utterance(view.utterances[row], int(n)) for row, n in zip(rows, lengths, strict=True)])
        owner = np.repeat(rows, lengths)
        if collect is not None:
            collect(owner, phone, frames)
        for place, codebook in enumerate(codebooks):
            code = (keys[owner] * width + phone + 1) * codebook.size + codebook.units(frames)
            values, counts = np.unique(code, return_counts=True)
            found[place].append(pl.DataFrame({"code": values, "n": counts.astype(np.int64)}))
            if sum(part.height for part in found[place]) > _COMPACT:
                found[place] = [_sum(found[place])]
    names = pl.DataFrame({"phone_code": np.arange(width), "phone": pl.Series([None, *phones.names], dtype=pl.String)})
    tables = []
    for parts, codebook in zip(found, codebooks, strict=True):
        split = _sum(parts).with_columns(
            unit=(pl.col("code") % codebook.size).cast(pl.Int32),
            phone_code=(pl.col("code") // codebook.size) % width,
            key=pl.col("code") // codebook.size // width,
        )
        joined = split.join(known, on="key", how="left").join(names, on="phone_code", how="left")
        tables.append(joined.select(list(SCHEMA)).sort(*CELL, "unit", nulls_last=True))
    return tables


def _sum(parts: list[pl.DataFrame]) -> pl.DataFrame:
    if not parts:
        return pl.DataFrame(schema={"code": pl.Int64, "n": pl.Int64})
    return pl.concat(parts).group_by("code").agg(pl.col("n").sum())


@dataclass(frozen=True)
class SpeakerCounts:
    """Counts of one language: int64 (speakers, phones, emotions, units).

    Frames without a class are the last emotion, ``None``.
    """

    language: str
    speakers: list[str]
    phones: list[str]
    emotions: list[str | None]
    counts: np.ndarray

    @classmethod
    def of(cls, counts: pl.DataFrame, language: str, phones: Sequence[str], emotions: Sequence[str], units: int) -> SpeakerCounts:
        """Of a table of counts; phones that the language lacks have no frames."""
        part = counts.filter((pl.col("language") == language) & pl.col("phone").is_in(list(phones)))
        speakers = sorted(part["speaker"].unique().to_list())
        columns: list[str | None] = [*emotions, None]
        place = [{name: code for code, name in enumerate(names)} for names in (speakers, list(phones), columns)]
        table = np.zeros((len(speakers), len(phones), len(columns), units), dtype=np.int64)
        index = tuple(
            np.array([codes.get(name, codes.get(None, 0)) for name in part[column].to_list()], dtype=np.int64)
            for column, codes in zip(("speaker", "phone", "emotion"), place, strict=True)
        )
        np.add.at(table, (*index, part["unit"].to_numpy().astype(np.int64)), part["n"].to_numpy())
        return cls(language, speakers, list(phones), columns, table)

    @property
    def units(self) -> int:
        return self.counts.shape[-1]

    def phone(self, name: str) -> np.ndarray:
        """All frames of a phone: int64 (speakers, units)."""
        return self.counts[:, self.phones.index(name)].sum(1)

    def cell(self, name: str, emotion: str | None) -> np.ndarray:
        """Frames of a phone in an emotion: int64 (speakers, units)."""
        return self.counts[:, self.phones.index(name), self.emotions.index(emotion)]

    def frames(self) -> np.ndarray:
        """Frames of every phone: int64 (phones,)."""
        return self.counts.sum((0, 2, 3))


def balanced(counts: np.ndarray, minimum: int = 20) -> np.ndarray:
    """Counts as mass 1 for every speaker's cell that has at least ``minimum`` frames, else 0: every
    speaker counts alike. Float64.
    """
    total = counts.sum(-1, keepdims=True)
    return np.where(total >= minimum, counts / np.maximum(total, 1), 0.0)


def enough(frames: np.ndarray | int, units: int, per_unit: float) -> np.ndarray:
    """Whether a cell has frames for a histogram of that many units:

    ``per_unit`` (50) for each; else JS is near its maximum anyhow.
    """
    return np.asarray(frames) >= units * per_unit
