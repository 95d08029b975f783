"""Questions that need no phones: which units a language uses, and what two corpora of one language
differ by (docs/methods.md 7.4).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl

from raysere.studies.units.config import UnitsConfig
from raysere.studies.units.counts import enough
from raysere.studies.units.distances import entropy, js, normalised
from raysere.studies.units.questions import NAN, Row
from raysere.studies.units.statistics import matched_similarity

OWNED = 0.95  # share of a unit's mass in one language from which on it is that language's own


def usage(counts: pl.DataFrame, column: str, units: int) -> dict[str, np.ndarray]:
    """Frames of each unit by language or corpus: int64 (units,)."""
    result = {}
    for (name,), part in counts.group_by(column).agg(pl.col("unit"), pl.col("n")).sort(column).group_by(column, maintain_order=True):
        table = np.zeros(units, dtype=np.int64)
        np.add.at(table, part["unit"][0].to_numpy(), part["n"][0].to_numpy())
        result[str(name)] = table
    return result


def inventories(counts: pl.DataFrame, units: int) -> list[Row]:
    """Q6 for each language: frames, units in use, perplexity, and the share of units of which 95 %
    of the mass are this language's.

    Languages count alike in that share, whatever they have of speech. It is NaN for a single
    language.
    """
    used = usage(counts, "language", units)
    masses = np.stack([normalised(table) for table in used.values()])
    shares = masses / np.where(masses.sum(0) > 0, masses.sum(0), np.nan)
    own = (shares > OWNED).sum(1) / units
    return [
        {
            "language": name,
            "frames": int(table.sum()),
            "units_used": int((table > 0).sum()),
            "perplexity": float(np.exp(entropy(normalised(table)))),
            "own_units": float(own[place]) if len(used) > 1 else NAN,
        }
        for place, (name, table) in enumerate(used.items())
    ]


def overlaps(counts: pl.DataFrame, units: int, config: UnitsConfig) -> list[Row]:
    """Q6 for each pair of languages, and for each pair of corpora of one language (the corpus
    floor): 1 - JS of their usage of units.
    """
    rows = []
    languages = usage(counts, "language", units)
    for one, other in combinations(languages, 2):
        rows.append({"kind": "languages", "a": one, "b": other, "overlap": _overlap(languages[one], languages[other], units, config)})
    for (language,), part in counts.group_by("language", maintain_order=True):
        corpora = usage(part, "corpus", units)
        for one, other in combinations(corpora, 2):
            value = _overlap(corpora[one], corpora[other], units, config)
            rows.append({"kind": f"corpora of {language}", "a": one, "b": other, "overlap": value})
    return rows


def _overlap(one: np.ndarray, other: np.ndarray, units: int, config: UnitsConfig) -> float:
    if not enough(min(one.sum(), other.sum()), units, config.frames_per_unit):
        return NAN
    return float(1 - js(one, other))


def corpus_floor(counts: pl.DataFrame, phones: list[str], units: int, config: UnitsConfig) -> list[Row]:
    """Similarity of every vowel between two corpora of the same language: what two rooms and
    microphones alone differ by.

    A similarity across languages below the floor of its vowel says nothing of the languages.
    """
    rows = []
    part = counts.filter(pl.col("phone").is_in(phones))
    for (language, phone), cell in part.group_by("language", "phone", maintain_order=True):
        corpora = usage(cell, "corpus", units)
        for one, other in combinations(corpora, 2):
            frames = int(min(corpora[one].sum(), corpora[other].sum()))
            good = enough(frames, units, config.frames_per_unit)
            value = float(matched_similarity(corpora[one], corpora[other])) if good else NAN
            rows.append({"language": language, "vowel": phone, "a": one, "b": other, "frames": frames, "similarity": value})
    return rows


def floor_message(counts: pl.DataFrame) -> str:
    """What may be said of language and corpus, in a sentence."""
    per_language = counts.group_by("language").agg(pl.col("corpus").n_unique())
    several = per_language.filter(pl.col("corpus") > 1)["language"].sort().to_list()
    if several:
        return (
            f"Corpus floor: {', '.join(several)} come from more than one corpus. Cross-language differences that are not larger than those "
            "between two corpora of one language are channel, not language."
        )
    return "Language and corpus are not separable here: every language comes from one corpus only, so a difference may be the channel's."
