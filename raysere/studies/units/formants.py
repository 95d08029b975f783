"""F1 and F2 of vowels from the audio, and where the vowels of a language lie by them (V4 of
docs/units.md).

Linear prediction by Burg's method; a resonance is a root of the predictor that is narrow enough
(the usual recipe of phonetics; no library of it is small and free enough, and openSMILE's formants
order the vowels of EmoDB worse). No emotion is read.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from raysere.base.errors import DataError
from raysere.corpora.manifest import Manifest
from raysere.features.audio import read_audio

RATE = 10_000  # Hz: a vocal tract has about one resonance a kHz, and five of them are modelled
ORDER = 2 + RATE // 1000
WINDOW_S, STEP_S = 0.04, 0.005  # some periods of a low voice; narrower windows blur F1 of close vowels
SHORTEST_S = 0.03  # of a vowel: half of it is to be steady
LOWEST_HZ, WIDEST_HZ = 90.0, 400.0  # below is the pitch or the room; a wider root is the slope of the spectrum, not a resonance
HIGHEST_F1_HZ = 1200.0  # no adult's F1 is higher: there F1 was missed and F2 stands in its place
FEWEST_TOKENS = 3  # of a vowel by a speaker: errors of linear prediction are gross, and a median of three outvotes one
_EMPHASIS_HZ = 50.0
TOKENS = {"utterance": pl.String, "language": pl.String, "speaker": pl.String, "vowel": pl.String, "f1": pl.Float64, "f2": pl.Float64}
PLACES = ("language", "vowel", "speakers", "tokens", "f1_hz", "f2_hz", "f1_bark", "f2_bark")


def bark(hz: ArrayLike) -> NDArray[np.float64]:
    """Critical-band rate of a frequency: Traunmüller (1990, J. Acoust. Soc. Am. 88, 97-100),
    with the corrections at both ends.

    Examples:
        >>> bark([100, 1000, 9500]).round(2).tolist()
        [0.96, 8.53, 22.05]
    """
    f = np.asarray(hz, dtype=np.float64)
    z = 26.81 * f / (1960 + f) - 0.53
    return z + 0.15 * np.maximum(2 - z, 0) + 0.22 * np.maximum(z - 20.1, 0)


def burg(frames: ArrayLike, order: int) -> NDArray[np.float64]:
    """Predictors of least forward and backward error (Burg 1967): float64 (n, order + 1), first 1,
    of frames (n, samples).
    """
    x = np.atleast_2d(np.asarray(frames, dtype=np.float64))
    forward, backward = x[:, 1:], x[:, :-1]
    found = np.zeros((len(x), order + 1))
    found[:, 0] = 1
    for number in range(1, order + 1):
        power = (forward**2).sum(1) + (backward**2).sum(1)
        reflection = -2 * (forward * backward).sum(1) / np.where(power > 0, power, 1)
        found[:, 1 : number + 1] += reflection[:, None] * found[:, number - 1 :: -1][:, :number]
        forward, backward = (
            (forward + reflection[:, None] * backward)[:, 1:],
            (backward + reflection[:, None] * forward)[:, :-1],
        )
    return found


def resonances(predictors: ArrayLike, rate: float, count: int = 2) -> NDArray[np.float64]:
    """The lowest ``count`` resonances in Hz of each predictor (n, order + 1): float64 (n, count),
    NaN where there are fewer.

    A root r is one of angle(r) rate / 2 pi Hz and of the bandwidth -ln|r| rate / pi Hz.
    """
    predictors = np.asarray(predictors, dtype=np.float64)
    order = predictors.shape[1] - 1
    companion = np.zeros((len(predictors), order, order))
    companion[:, 0] = -predictors[:, 1:]
    companion[:, np.arange(1, order), np.arange(order - 1)] = 1
    roots = np.linalg.eigvals(companion)
    hz = np.angle(roots) * rate / (2 * np.pi)
    width = -np.log(np.maximum(np.abs(roots), 1e-12)) * rate / np.pi
    good = (hz > LOWEST_HZ) & (hz < rate / 2 - LOWEST_HZ) & (width < WIDEST_HZ)
    lowest = np.sort(np.where(good, hz, np.inf), axis=1)[:, :count]
    return np.where(np.isfinite(lowest), lowest, np.nan)


def formants(wave: ArrayLike, start_s: float, end_s: float) -> tuple[float, float]:
    """(F1, F2) in Hz of a vowel: medians over Hamming windows of 40 ms with their middles in its
    middle half; NaN where none is found.

    Args:
        wave: (samples,) at :data:`RATE`. start_s, end_s: of the vowel.
    """
    x = np.asarray(wave, dtype=np.float64)
    length = round(WINDOW_S * RATE)
    quarter = (end_s - start_s) / 4
    middles = np.arange(start_s + quarter, end_s - quarter + 1e-9, STEP_S)
    first = np.round(middles * RATE).astype(np.int64) - length // 2
    first = first[(first >= 1) & (first + length <= len(x))]
    if not len(first):
        return float("nan"), float("nan")
    place = first[:, None] + np.arange(length)
    emphasised = x[place] - np.exp(-2 * np.pi * _EMPHASIS_HZ / RATE) * x[place - 1]
    found = resonances(burg(emphasised * np.hamming(length), ORDER), RATE)
    found = found[np.isfinite(found).all(1) & (found[:, 0] < HIGHEST_F1_HZ)]
    if not len(found):
        return float("nan"), float("nan")
    f1, f2 = np.median(found, axis=0)
    return float(f1), float(f2)


def vowel_tokens(manifest: Manifest, phones: pl.DataFrame, most: int, seed: int = 0) -> pl.DataFrame:
    """F1 and F2 in Hz of spoken monophthongs (columns of :data:`TOKENS`), at most ``most`` a
    speaker and vowel, drawn at random.

    Args:
        phones: of :func:`raysere.corpora.ipa.ipa_phones`.

    Clips that cannot be read, vowels below 30 ms and tokens without two resonances are left out.
    """
    columns = ["utterance", "corpus", "language", "speaker", "path", "start_s", "end_s"]
    clips = {row["utterance"]: row for row in manifest.table.select(columns).iter_rows(named=True)}
    long = pl.col("end_s") - pl.col("start_s") >= SHORTEST_S
    spoken = phones.filter((pl.col("kind") == "vowel") & long).join(manifest.table.select("utterance", "speaker"), on="utterance")
    drawn = spoken.sort("utterance", "start_s").sample(fraction=1.0, shuffle=True, seed=seed)
    drawn = drawn.group_by("speaker", "ipa", maintain_order=True).head(most).sort("utterance", "start_s")
    rows = []
    for (utterance,), part in drawn.group_by("utterance", maintain_order=True):
        clip = clips[str(utterance)]
        try:
            channel = manifest.channels.get(clip["speaker"])
            wave = read_audio(manifest.path(clip), clip["start_s"], clip["end_s"], RATE, channel=channel)
        except DataError:
            continue  # what the features were extracted from says why
        for start, end, vowel in part.select("start_s", "end_s", "ipa").iter_rows():
            f1, f2 = formants(wave, start, end)
            if np.isfinite(f1):
                rows.append((utterance, clip["language"], clip["speaker"], vowel, f1, f2))
    return pl.DataFrame(rows, schema=TOKENS, orient="row")


def vowel_places(tokens: pl.DataFrame) -> pl.DataFrame:
    """Where the vowels of each language lie (columns of :data:`PLACES`): ``f1_bark`` and
    ``f2_bark`` are free of the speaker.

    Each speaker's median of a vowel, in Bark, is the sum of the vowel's place and a shift of the
    speaker (the length of a vocal tract shifts formants about equally on such a scale; the sum form
    of Nearey's normalisation), fitted by least squares. Unlike taking off a speaker's mean, that
    does not depend on which vowels he was heard in. Vowels of fewer than two speakers, with three
    tokens each, are left out; all places of a language are NaN where vowels share too few speakers
    to be compared.
    """
    rows: list[tuple] = []
    for (language,), part in tokens.sort("language").group_by("language", maintain_order=True):
        good = pl.len() >= FEWEST_TOKENS
        cells = part.group_by("speaker", "vowel").agg(good.alias("good"), pl.len().alias("n"), pl.col("f1", "f2").median()).filter("good")
        cells = cells.filter(pl.col("speaker").n_unique().over("vowel") >= 2).sort("vowel", "speaker")
        vowels, vowel = np.unique(cells["vowel"].to_numpy().astype(str), return_inverse=True)
        _, speaker = np.unique(cells["speaker"].to_numpy().astype(str), return_inverse=True)
        places = _two_way(vowel, speaker, bark(cells.select("f1", "f2").to_numpy()))
        for number, name in enumerate(vowels):
            own = cells.filter(pl.col("vowel") == str(name))
            said = part.filter((pl.col("vowel") == str(name)) & pl.col("speaker").is_in(own["speaker"].implode()))
            hz = said.select(pl.col("f1", "f2").median()).row(0)
            rows.append((language, str(name), own.height, int(own["n"].sum()), *hz, *map(float, places[number])))
    kinds = (pl.String, pl.String, pl.Int64, pl.Int64, *[pl.Float64] * 4)
    return pl.DataFrame(rows, schema=dict(zip(PLACES, kinds, strict=True)), orient="row")


def _two_way(vowel: np.ndarray, speaker: np.ndarray, values: np.ndarray) -> NDArray[np.float64]:
    """Effects (V, 2) of the vowels in an additive model of vowel and speaker (codes (n,)) of values
    (n, 2), for the mean speaker.
    """
    if not len(vowel):
        return np.zeros((0, 2))
    vowels, speakers = int(vowel.max()) + 1, int(speaker.max()) + 1
    design = np.zeros((len(vowel), vowels + speakers))
    rows = np.arange(len(design))
    design[rows, vowel] = 1
    design[rows, vowels + speaker] = 1
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    if rank < vowels + speakers - 1:  # groups of vowels without a speaker in common: their distance is not known
        return np.full((vowels, 2), np.nan)
    return solution[:vowels] + solution[vowels:].mean(0)
