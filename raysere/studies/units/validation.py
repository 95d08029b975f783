"""Validation of the similarity of vowels (docs/methods.md 7.5)."""

from __future__ import annotations

import numpy as np
import polars as pl

from raysere.corpora.ipa import VOWELS, vowel_distance
from raysere.studies.units.config import UnitsConfig
from raysere.studies.units.counts import SpeakerCounts
from raysere.studies.units.questions import NAN, Pair, Row
from raysere.studies.units.statistics import kendall_tau, mantel, match_ranks, similarity

FEWEST = 100  # frames of a phone that is to be found again: a nearest neighbour needs far fewer than an unbiased distance


def split_half(side: SpeakerCounts, config: UnitsConfig) -> Row:
    """V1: is the nearest phone of the other half of the speakers the phone itself? Accuracy and
    mean reciprocal rank, over splits.

    Chance is 1 / phones for the accuracy. Phones with 100 frames or more and two speakers or more
    take part.
    """
    rng = np.random.default_rng([config.seed, 5, *side.language.encode()])
    table = side.counts.sum(2)
    taking = np.flatnonzero((table.sum((0, 2)) >= FEWEST) & ((table.sum(2) > 0).sum(0) >= 2))
    row = {"check": "V1 split half", "of": side.language, "items": len(taking), "accuracy": NAN, "mrr": NAN}
    row["chance"] = 1 / len(taking) if len(taking) else NAN
    accuracies, reciprocal = [], []
    for _ in range(config.splits if len(taking) > 1 and len(side.speakers) > 1 else 0):
        half = rng.permutation(len(side.speakers)) < len(side.speakers) // 2
        first, second = table[half][:, taking].sum(0), table[~half][:, taking].sum(0)
        both = np.flatnonzero((first.sum(1) > 0) & (second.sum(1) > 0))
        ranks = match_ranks(similarity(first[both], second[both]), range(len(both)))
        accuracies.append(np.mean(ranks == 1))
        reciprocal.append(np.mean(1 / ranks))
    if accuracies:
        row |= {"accuracy": float(np.mean(accuracies)), "mrr": float(np.mean(reciprocal))}
    return row


def across_languages(pair: Pair) -> Row:
    """V2: is the nearest vowel of the other language the one with the same IPA symbol? Among the
    vowels that both have.
    """
    frames = np.stack([pair.one.frames(), pair.other.frames()]).min(0)
    both = np.flatnonzero(frames >= FEWEST)
    row = {"check": "V2 across languages", "of": f"{pair.one.language}-{pair.other.language}", "items": len(both)}
    row |= {"accuracy": NAN, "mrr": NAN, "chance": 1 / len(both) if len(both) else NAN}
    if len(both) > 1:
        table = similarity(*(side.counts.sum((0, 2))[both] for side in (pair.one, pair.other)))
        ranks = np.concatenate([match_ranks(one, range(len(both))) for one in (table, table.T)])
        row |= {"accuracy": float(np.mean(ranks == 1)), "mrr": float(np.mean(1 / ranks))}
    return row


def articulation(side: SpeakerCounts, config: UnitsConfig) -> Row:
    """V3: rank correlation of 1 - S of pairs of monophthongs with their articulatory distance, with
    the p of Mantel's permutations.
    """
    frames = side.frames()
    places = [place for place, name in enumerate(side.phones) if name in VOWELS and frames[place] >= FEWEST]
    row = {"check": "V3 articulation", "of": side.language, "items": len(places), "correlation": NAN, "p": NAN}
    if len(places) >= 4:
        pooled = side.counts.sum((0, 2))[places]
        names = [side.phones[place] for place in places]
        articulatory = np.array([[vowel_distance(one, other) for other in names] for one in names])
        value, p = mantel(1 - similarity(pooled, pooled), articulatory, min(config.permutations, 999), config.seed)
        row |= {"correlation": value, "p": p}
    return row


def formant_geometry(side: SpeakerCounts, places: pl.DataFrame, config: UnitsConfig) -> Row:
    """V4: rank correlation of 1 - S of pairs of monophthongs with their Euclidean distance of F1
    and F2 in Bark, freed of the speakers, with the p of Mantel's permutations.

    Args:
        places: of :func:`raysere.studies.units.formants.vowel_places`.
    """
    frames = side.frames()
    of_language = places.filter((pl.col("language") == side.language) & pl.col("f1_bark").is_finite())
    known = {row[0]: row[1:] for row in of_language.select("vowel", "f1_bark", "f2_bark").iter_rows()}
    taking = [place for place, name in enumerate(side.phones) if name in known and frames[place] >= FEWEST]
    row = {"check": "V4 formants", "of": side.language, "items": len(taking), "correlation": NAN, "p": NAN}
    if len(taking) >= 4:
        pooled = side.counts.sum((0, 2))[taking]
        bark = np.array([known[side.phones[place]] for place in taking])
        distance = np.linalg.norm(bark[:, None] - bark[None], axis=-1)
        value, p = mantel(1 - similarity(pooled, pooled), distance, min(config.permutations, 999), config.seed)
        row |= {"correlation": value, "p": p}
    return row


def ranking_stability(pair: str, first: dict[str, float], others: dict[str, list[dict[str, float]]]) -> list[Row]:
    """V6: Kendall's tau of the ranking of vowels by similarity with those that other codebooks
    give, a row for each kind of codebook.

    Args:
        first: {vowel: S(v)} of the codebook that counts.
        others: kind of codebook (other seeds, half of the units, another layer) to their rankings.
    """
    rows = []
    for kind, rankings in others.items():
        taus = [kendall_tau([first[v] for v in first], [ranking[v] for v in first]) for ranking in rankings]
        known = [tau for tau in taus if np.isfinite(tau)]
        rows.append({"check": "V6 stability", "of": f"{pair}, {kind}", "items": len(first), "tau": float(np.mean(known)) if known else NAN})
    return rows
