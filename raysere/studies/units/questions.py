"""Questions of the study that need phones: shared vowels, emotion, anchors (docs/methods.md 7.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysere.studies.units.config import UnitsConfig
from raysere.studies.units.counts import SpeakerCounts, balanced, enough
from raysere.studies.units.distances import corrected, cosine, emd, hellinger, symmetric_kl, total_variation, weighted_js
from raysere.studies.units.statistics import (
    benjamini_hochberg,
    match_margin,
    match_ranks,
    matched_similarity,
    null_distribution,
    permutation_p,
    shuffled_emotions,
    shuffled_phones,
    similarity,
    speaker_weights,
)

Row = dict[str, Any]
NAN = float("nan")


@dataclass(frozen=True)
class Pair:
    """Two languages over the same list of vowels and emotions."""

    one: SpeakerCounts
    other: SpeakerCounts

    @property
    def names(self) -> Row:
        return {"language_a": self.one.language, "language_b": self.other.language}

    @property
    def seed(self) -> list[int]:
        """Of the pair, so that a draw does not depend on which other pairs are asked about."""
        return [*self.one.language.encode(), 0, *self.other.language.encode()]


def mass(counts: np.ndarray, config: UnitsConfig) -> np.ndarray:
    """Counts, or histograms by speaker where every speaker counts alike."""
    return balanced(counts) if config.speaker_balanced else counts.astype(np.float64)


def shared_vowels(pair: Pair, config: UnitsConfig, cost: np.ndarray | None = None) -> tuple[list[Row], list[Row], Row]:
    """Q1: rows of vowels with the same IPA symbol in both languages, rows of the whole matrix, and
    the mean reciprocal rank with its p.

    Null: labels of vowels permuted within every speaker of the second language. Statistic of a
    vowel: its margin (:func:`match_margin`), since mixing vowels up makes all of them more alike,
    the right ones too.

    Args:
        cost: ground cost (K, K) for the earth mover's distance; None leaves it out.
    """
    one, other = pair.one, pair.other
    units, rng = one.units, np.random.default_rng([config.seed, 1, *pair.seed])
    totals = one.frames(), other.frames()
    good = [enough(total, units, config.frames_per_unit) for total in totals]
    masses = mass(one.counts.sum(2), config), mass(other.counts.sum(2), config)
    pooled = masses[0].sum(0), masses[1].sum(0)
    heard = [[place for place in range(len(one.phones)) if total[place] > 0] for total in totals]
    matrix: list[Row] = []
    values = similarity(pooled[0], pooled[1])
    for i in heard[0]:
        for j in heard[1]:
            value = float(values[i, j]) if good[0][i] and good[1][j] else NAN
            matrix.append(
                {**pair.names, "phone_a": one.phones[i], "phone_b": one.phones[j], "similarity": value}
                | {"frames_a": int(totals[0][i]), "frames_b": int(totals[1][j])}
            )
    tested = [place for place in heard[0] if good[0][place] and good[1][place]]
    columns = tested + [place for place in heard[1] if good[1][place] and place not in tested]
    margins = ranks = p = np.full(len(tested), NAN)
    found: Row = {**pair.names, "vowels": len(tested), "mrr": NAN, "mrr_chance": NAN, "p": NAN}
    if len(tested) and len(columns) > 1:
        block = masses[1][:, columns]

        def statistic(second: np.ndarray) -> np.ndarray:
            table = similarity(pooled[0][tested], second)
            rank = match_ranks(table, range(len(tested)))
            return np.concatenate([_margins(table), [np.mean(1 / rank)]])

        observed = statistic(block.sum(0))
        null = null_distribution(lambda draw: statistic(shuffled_phones(block, draw)), config.permutations, int(rng.integers(1 << 31)))
        every = permutation_p(observed, null)
        margins, p = observed[:-1], every[:-1]
        ranks = match_ranks(similarity(pooled[0][tested], pooled[1][columns]), range(len(tested)))
        chance = float(np.mean(1 / np.arange(1, len(columns) + 1)))
        found |= {"mrr": float(observed[-1]), "mrr_chance": chance, "p": float(every[-1])}
    rows = []
    for place in [place for place in heard[0] if place in heard[1]]:
        at = tested.index(place) if place in tested else None
        a, b = one.counts[:, place].sum(1), other.counts[:, place].sum(1)
        row = {**pair.names, "vowel": one.phones[place], "frames_a": int(totals[0][place]), "frames_b": int(totals[1][place])}
        row |= {"frames_needed": config.needed(units), "similarity": NAN, "corrected_similarity": NAN, "margin": NAN, "rank": NAN, "p": NAN}
        row |= dict.fromkeys(("weighted_js", "hellinger", "tv", "cosine", "kl", "emd"), NAN)
        if at is not None:
            first, second = pooled[0][place], pooled[1][place]
            row |= {"similarity": float(values[place, place]), "margin": float(margins[at]), "rank": float(ranks[at]), "p": float(p[at])}
            row["corrected_similarity"] = 1 - corrected(a, b, rng=rng, splits=config.splits)[1]
            row |= {"weighted_js": float(weighted_js(a.sum(0), b.sum(0))), "hellinger": float(hellinger(first, second))}
            row |= {"tv": float(total_variation(first, second)), "cosine": float(cosine(first, second))}
            row |= {"kl": float(symmetric_kl(a.sum(0), b.sum(0))), "emd": NAN if cost is None else emd(first, second, cost)}
        rows.append(row)
    return rows, matrix, found


def _margins(table: np.ndarray) -> np.ndarray:
    """As :func:`match_margin`, of a table with further columns after the matched ones."""
    size, columns = table.shape
    if size == columns:
        return match_margin(table)
    own = np.diagonal(table)
    return own - (table.sum(1) - own) / (columns - 1)


def emotion_specific(pair: Pair, config: UnitsConfig) -> list[Row]:
    """Q2: similarity of a vowel across languages in an emotion, against that in the reference
    emotion.

    Null: labels of emotions permuted within every speaker of both languages; two-sided.
    """
    one, other = pair.one, pair.other
    if config.reference not in one.emotions:
        return []
    base = one.emotions.index(config.reference)
    labelled = [place for place, name in enumerate(one.emotions) if name is not None]
    frames = np.stack([one.counts.sum((0, 3)), other.counts.sum((0, 3))]).min(0)  # (phones, emotions)
    good = enough(frames, one.units, config.frames_per_unit)
    cells = [(v, e) for v in range(len(one.phones)) for e in labelled if e != base and frames[v, e] > 0 and frames[v, base] > 0]
    rows: list[Row] = []
    vowels = sorted({v for v, e in cells if good[v, e] and good[v, base]})
    observed = p = None
    table = matched_similarity(mass(one.counts, config).sum(0), mass(other.counts, config).sum(0))
    if vowels:
        blocks = [mass(side.counts[:, vowels][:, :, labelled], config) for side in (one, other)]
        reference = labelled.index(base)

        def statistic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            values = matched_similarity(first, second)
            return values - values[:, [reference]]

        observed = statistic(blocks[0].sum(0), blocks[1].sum(0))
        null = null_distribution(
            lambda rng: np.abs(statistic(shuffled_emotions(blocks[0], rng), shuffled_emotions(blocks[1], rng))),
            config.permutations,
            int(np.random.default_rng([config.seed, 2, *pair.seed]).integers(1 << 31)),
        )
        p = permutation_p(np.abs(observed), null)
    for v, e in cells:
        valid = bool(good[v, e] and good[v, base])
        row: Row = {**pair.names, "vowel": one.phones[v], "emotion": one.emotions[e], "reference": config.reference}
        row |= {"frames": int(min(frames[v, e], frames[v, base])), "frames_needed": config.needed(one.units)}
        row |= {"similarity": NAN, "similarity_reference": NAN, "difference": NAN, "p": NAN}
        if valid and observed is not None and p is not None:
            at = vowels.index(v), labelled.index(e)
            row |= {"similarity": float(table[v, e]), "similarity_reference": float(table[v, base])}
            row |= {"difference": float(observed[at]), "p": float(p[at])}
        rows.append(row)
    return rows


def emotion_shifts(side: SpeakerCounts, config: UnitsConfig) -> list[Row]:
    """Q3:

    JS between a vowel in an emotion and the same vowel in the reference emotion, within one
    language. Null: as in Q2.
    """
    if config.reference not in side.emotions:
        return []
    base = side.emotions.index(config.reference)
    labelled = [place for place, name in enumerate(side.emotions) if name is not None]
    frames = side.counts.sum((0, 3))
    good = enough(frames, side.units, config.frames_per_unit)
    vowels = [v for v in range(len(side.phones)) if any(good[v, e] and good[v, base] for e in labelled if e != base)]
    rng = np.random.default_rng([config.seed, 3, *side.language.encode()])
    observed = p = np.zeros((0, 0))
    if vowels:
        block, reference = mass(side.counts[:, vowels][:, :, labelled], config), labelled.index(base)

        def statistic(table: np.ndarray) -> np.ndarray:
            return 1 - matched_similarity(table, table[:, [reference]])

        observed = statistic(block.sum(0))
        null = null_distribution(lambda draw: statistic(shuffled_emotions(block, draw)), config.permutations, int(rng.integers(1 << 31)))
        p = permutation_p(observed, null)
    rows = []
    for v in range(len(side.phones)):
        for e in labelled:
            if e == base or not frames[v, e] or not frames[v, base]:
                continue
            row: Row = {"language": side.language, "vowel": side.phones[v], "emotion": side.emotions[e], "reference": config.reference}
            row |= {"frames": int(min(frames[v, e], frames[v, base])), "frames_needed": config.needed(side.units)}
            row |= {"js": NAN, "corrected_js": NAN, "p": NAN}
            if good[v, e] and good[v, base]:
                at = vowels.index(v), labelled.index(e)
                _, js = corrected(side.counts[:, v, e], side.counts[:, v, base], rng=rng, splits=config.splits, shared=True)
                row |= {"js": float(observed[at]), "corrected_js": js, "p": float(p[at])}
            rows.append(row)
    return rows


def anchors(pair: Pair, config: UnitsConfig) -> list[Row]:
    """Q4: how good an anchor every shared vowel is: the lower 5 % bound over bootstrap draws of the
    speakers of both languages of

    * ``bound``: S(v), which reads no emotion and may choose what is trained on;
    * ``bound_by_emotion``: mean over emotions of S(v, e) less kappa times its standard deviation,
      for analysis only.

    ``eligible`` (and ``eligible_by_emotion``): frames and speakers enough in each cell of both
    languages. ``margin``: S(v) less that of the most similar other vowel of the second language.
    """
    one, other = pair.one, pair.other
    rng = np.random.default_rng([config.seed, 4, *pair.seed])
    sides = [mass(side.counts.sum(2), config) for side in (one, other)]
    frames = np.stack([side.frames() for side in (one, other)]).min(0)
    speakers = np.stack([(side.counts.sum((2, 3)) > 0).sum(0) for side in (one, other)]).min(0)
    need = max(config.min_frames, config.needed(one.units))
    labelled = [e for e, name in enumerate(one.emotions) if name is not None]
    cells = np.stack([side.counts.sum((0, 3)) for side in (one, other)]).min(0)[:, labelled]
    heard = np.stack([(side.counts.sum(3) > 0).sum(0) for side in (one, other)]).min(0)[:, labelled]
    weights = [speaker_weights(len(side.speakers), config.bootstraps, rng) for side in (one, other)]
    pooled = similarity(sides[0].sum(0), sides[1].sum(0))
    second_good = enough(other.frames(), other.units, config.frames_per_unit)
    rows = []
    for v in [v for v in range(len(one.phones)) if frames[v] > 0]:
        row = {**pair.names, "vowel": one.phones[v], "frames": int(frames[v]), "speakers": int(speakers[v]), "frames_needed": need}
        row |= dict.fromkeys(("similarity", "bound", "margin", "mean_by_emotion", "sd_by_emotion", "bound_by_emotion"), NAN)
        row["eligible"] = bool(frames[v] >= need and speakers[v] >= config.min_speakers)
        row["eligible_by_emotion"] = bool(
            len(labelled) > 1 and (cells[v] >= need).all() and (heard[v] >= config.min_speakers).all() and row["eligible"]
        )
        if enough(frames[v], one.units, config.frames_per_unit):
            drawn = matched_similarity(weights[0] @ sides[0][:, v], weights[1] @ sides[1][:, v])
            rivals = [w for w in range(len(other.phones)) if w != v and second_good[w]]
            row |= {"similarity": float(pooled[v, v]), "bound": _low(drawn)}
            row["margin"] = float(pooled[v, v] - pooled[v, rivals].max()) if rivals else NAN
        if row["eligible_by_emotion"]:
            by_emotion = [mass(side.counts[:, v][:, labelled], config) for side in (one, other)]
            values = matched_similarity(by_emotion[0].sum(0), by_emotion[1].sum(0))
            drawn = matched_similarity(*(np.einsum("bs,sek->bek", w, block) for w, block in zip(weights, by_emotion, strict=True)))
            row |= {"mean_by_emotion": float(values.mean()), "sd_by_emotion": float(values.std())}
            row["bound_by_emotion"] = _low(drawn.mean(1) - config.kappa * drawn.std(1))
        rows.append(row)
    return sorted(rows, key=lambda row: (not row["eligible"], -row["bound"] if math.isfinite(row["bound"]) else math.inf))


def _low(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, 0.05)) if len(finite) else NAN


def with_adjusted(rows: list[Row], level: float) -> list[Row]:
    """The rows of one question with ``p_adjusted`` (Benjamini and Hochberg over all of them) and
    ``significant``.
    """
    adjusted = benjamini_hochberg([row["p"] for row in rows])
    return [{**row, "p_adjusted": float(value), "significant": bool(value <= level)} for row, value in zip(rows, adjusted, strict=True)]
