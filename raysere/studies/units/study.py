"""The study of discrete units across languages (docs/methods.md 7).

Idea of the paper: discrete units by vector quantization of speech representations, whose
distributions quantify what phones of different languages and emotions have in common, and which
vowels may serve as anchors for adaptation. Layer, K, distance, statistics and validation are
reconstructions; see docs/methods.md 7.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from raysere.base.errors import DataError
from raysere.base.progress import Progress
from raysere.features.views import FeatureView
from raysere.nn.frame_units import FrameNorm, FramePool, FrameUnits, frame_norm, frame_pool
from raysere.nn.kmeans import kmeans
from raysere.studies.units.config import SIZES, UnitsConfig
from raysere.studies.units.controls import FrameSample
from raysere.studies.units.counts import PhoneFrames, SpeakerCounts, count_units, enough
from raysere.studies.units.distances import ground_cost
from raysere.studies.units.formants import vowel_places
from raysere.studies.units.inventory import corpus_floor, floor_message, inventories, overlaps
from raysere.studies.units.layers import best_layer, layer_quality
from raysere.studies.units.quality import unit_quality
from raysere.studies.units.questions import Pair, Row, anchors, emotion_shifts, emotion_specific, mass, shared_vowels, with_adjusted
from raysere.studies.units.statistics import matched_similarity, spearman
from raysere.studies.units.utility import VowelMeans, utility
from raysere.studies.units.validation import across_languages, articulation, formant_geometry, ranking_stability, split_half

AGREEMENT = 0.5  # rank correlation with the controls below which the page says that they disagree
COARSE = 50  # units below which the page says that they are few
TOP = 3  # vowels that count as chosen when stability over codebooks is told
_VOWELS = ("vowel", "diphthong")


@dataclass
class UnitsResult:
    """What a study found.

    ``tables`` by name (see :data:`TABLES`), ``messages`` in plain words, ``meta`` plain values.
    """

    config: UnitsConfig
    codebook: FrameUnits
    counts: pl.DataFrame
    tables: dict[str, pl.DataFrame]
    messages: list[str]
    meta: dict[str, Any] = field(default_factory=dict)


TABLES = {
    "frames": "frames by language and emotion, and how many of them lie in a known phone",
    "layers": "V7 by layer",
    "quality": "V7 of the codebook, by language",
    "inventories": "Q6 by language",
    "overlaps": "Q6 by pair of languages, and of corpora of one language",
    "shared_vowels": "Q1 by vowel, with every distance and the controls",
    "matrix": "Q1, every vowel of one language against every vowel of the other",
    "identification": "Q1, mean reciprocal rank of the matching vowel",
    "emotion_specific": "Q2",
    "emotion_shifts": "Q3",
    "anchors": "Q4",
    "corpus_floor": "similarity of vowels between two corpora of one language",
    "formants": "F1 and F2 of vowels by language, in Hz (median) and in Bark, freed of the speakers",
    "validation": "V1, V2, V3, V4, V6",
    "ORACLE_utility": "V5, read with the emotions of both languages: Spearman of transfer and similarity over vowels, by direction",
    "ORACLE_transfer": "V5 by vowel: UAR of emotion on the target's frames of a vowel",
}


def study_units(
    view: FeatureView,
    table: pl.DataFrame,
    phones: pl.DataFrame,
    clock: tuple[float, float],
    config: UnitsConfig,
    progress: Progress | None = None,
    formants: pl.DataFrame | None = None,
) -> UnitsResult:
    """Learn universal units and answer the questions of docs/methods.md 7.4.

    Args:
        view: frames (granularity frame).
        table: utterance, corpus, language, speaker, emotion (null: none) in the order of the view.
        phones: of :func:`raysere.corpora.ipa.ipa_phones`; may be empty: then only what needs no
            phones is answered.
        clock: of :func:`raysere.features.clock.frame_clock`.
        formants: of :func:`raysere.studies.units.formants.vowel_tokens`; None leaves V4 out.

    Raises:
        DataError: no frames; or no vowel has frames enough for a histogram of so many units (the
            message says how many it takes).
    """
    say = progress.say if progress else lambda line: None
    started = time.monotonic()
    table = without_labels(table, config.unlabelled)
    labels = PhoneFrames.of(phones, clock, config.margin_s)
    vowels = sorted(phones.filter(pl.col("kind").is_in(_VOWELS))["ipa"].unique().to_list())
    frames = frames_by_phone(view, table, labels)
    messages, tables = [], {"frames": _kept(frames)}
    units = _size(config, frames, vowels)
    if vowels:
        _check_size(frames, vowels, units, config)
        say(f"units: phones by layer, {len(view.spec.numbers)} layers")
        by_layer = layer_quality(view, table, labels, config)
        tables["layers"] = pl.DataFrame(by_layer, infer_schema_length=None)
        layer = best_layer(by_layer) if config.layer is None else config.layer
    else:
        messages.append("No utterance has phones: only what needs no phones is answered. Some corpora read them by an option (alignments).")
        layer = view.spec.numbers[len(view.spec.numbers) // 2] if config.layer is None else config.layer
    view.spec.layer(layer)
    emotions = sorted(table["emotion"].drop_nulls().unique().to_list())
    norm, books = _codebooks(view, table, layer, units, config, bool(emotions), say)
    languages = sorted(table["language"].unique().to_list())
    wanted = [labels.names.index(name) for name in vowels]
    spoken = np.array([languages.index(name) for name in table["language"].to_list()])
    sample = FrameSample(spoken, wanted, seed=config.seed)
    means = VowelMeans(table, wanted, seed=config.seed) if config.oracle and len(languages) > 1 else None

    def collect(owner: np.ndarray, phone: np.ndarray, values: Tensor) -> None:
        sample(owner, phone, values)
        if means is not None:
            means(owner, phone, values)

    say(f"units: counting {len(books)} codebooks")
    counted = count_units(view, books, norm, table, labels, collect=collect if vowels else None)
    best = int(np.argmin([book.meta["inertia"] if book.size == units else np.inf for book in books]))
    counts, codebook = counted[best], books[best]
    tables["inventories"] = pl.DataFrame(inventories(counts, units))
    tables["overlaps"] = _table(overlaps(counts, units, config))
    messages.append(floor_message(counts))
    if vowels and units < COARSE and config.units is None:
        messages.append(
            f"{units} units are coarse for phones; the validation says how well they do. Each one more needs {config.frames_per_unit:g} "
            "frames of a vowel. --units 100 --option frames_per_unit=5 trades that bound, which keeps bias small, for resolution: read the "
            "corrected similarities then."
        )
    if vowels:
        say("units: questions and validation")
        tables["corpus_floor"] = _table(corpus_floor(counts, vowels, units, config))
        places = None if formants is None else vowel_places(formants)
        found, words = _questions(counts, codebook, vowels, emotions, languages, sample, labels, config, places)
        tables |= found
        messages += words
        order = [best, *[number for number in range(len(books)) if number != best]]
        others = _other_layers(view, table, labels, codebook, tables["anchors"], config, say)
        _stability(tables, [*((books[number], counted[number]) for number in order), *others], vowels, emotions, config)
        if means is not None:
            tables |= _oracle(means, table, dict(zip(vowels, wanted, strict=True)), tables["shared_vowels"], config)
    meta = {
        "backbone": view.spec.backbone,
        "spec_key": view.spec.key,
        "layer": layer,
        "units": units,
        "languages": languages,
        "emotions": emotions,
        "vowels": vowels,
        "utterances": int(view.present.sum()),
        "speakers": table["speaker"].n_unique(),
        "frames": int(counts["n"].sum()),
        "seconds": round(time.monotonic() - started, 1),
    }
    return UnitsResult(config, codebook, counts, tables, messages, meta)


def anchor_vowels(result: UnitsResult, one: str | None = None, other: str | None = None, top: int = 3) -> list[str]:
    """The vowels that may anchor an adaptation from language ``one`` to ``other``, best first. No
    bound that they are ranked by reads an emotion; where the study was told that the target is
    ``unlabelled``, neither did its codebook.

    They are the eligible ones of the highest lower bound of the similarity. Without languages, of
    the only pair that there is.

    Raises:
        DataError: no such pair, or several and none is named.
    """
    table = result.tables.get("anchors", pl.DataFrame())
    pairs = table.select("language_a", "language_b").unique().sort("language_a", "language_b").rows() if table.height else []
    wanted = pairs if one is None else [pair for pair in pairs if set(pair) == {one, other}]
    if len(wanted) != 1:
        raise DataError("The study has no anchors for one pair of languages", choices=[f"{a}, {b}" for a, b in pairs] or None)
    rows = table.filter((pl.col("language_a") == wanted[0][0]) & (pl.col("language_b") == wanted[0][1]) & pl.col("eligible"))
    return rows.sort("bound", descending=True)["vowel"].head(top).to_list()


def without_labels(table: pl.DataFrame, corpora: Sequence[str]) -> pl.DataFrame:
    """The table with the emotions of these corpora taken out.

    Raises DataError for a corpus that is not there.
    """
    if missing := sorted(set(corpora) - set(table["corpus"])):
        raise DataError(f"There is no corpus {missing[0]!r} in this study", where="unlabelled", choices=sorted(set(table["corpus"])))
    return table.with_columns(emotion=pl.when(pl.col("corpus").is_in(list(corpora))).then(None).otherwise(pl.col("emotion")))


def frames_by_phone(view: FeatureView, table: pl.DataFrame, labels: PhoneFrames) -> pl.DataFrame:
    """Frames by language, emotion and phone (null: in no known phone), from lengths and labels
    alone.
    """
    totals: dict[tuple[str, str | None, str | None], int] = {}
    names = [*labels.names, None]
    lengths = view.lengths(np.arange(len(view)))
    for row, (utterance, language, emotion) in enumerate(table.select("utterance", "language", "emotion").iter_rows()):
        counts = np.bincount(labels.of_utterance(utterance, int(lengths[row])) % len(names), minlength=len(names))
        for code in np.flatnonzero(counts):
            key = (language, emotion, names[code])
            totals[key] = totals.get(key, 0) + int(counts[code])
    schema = {"language": pl.String, "emotion": pl.String, "phone": pl.String, "n": pl.Int64}
    return pl.DataFrame([(*key, count) for key, count in totals.items()], schema=schema, orient="row")


def _kept(frames: pl.DataFrame) -> pl.DataFrame:
    """Errors of an alignment differ by emotion (shouting, whispering): what share of the frames got
    a phone.
    """
    return (
        frames.group_by("language", "emotion")
        .agg(frames=pl.col("n").sum(), in_phones=pl.col("n").filter(pl.col("phone").is_not_null()).sum())
        .with_columns(share=pl.col("in_phones") / pl.col("frames"))
        .sort("language", "emotion", nulls_last=True)
    )


def _vowel_frames(frames: pl.DataFrame, vowels: Sequence[str]) -> dict[str, list[int]]:
    part = frames.filter(pl.col("phone").is_in(list(vowels))).group_by("language", "phone").agg(pl.col("n").sum())
    return {str(name): sorted(cell["n"].to_list(), reverse=True) for (name,), cell in part.group_by("language")}


def _size(config: UnitsConfig, frames: pl.DataFrame, vowels: Sequence[str]) -> int:
    """K as asked for, or the largest of the usual sizes that vowels with half of the vowel frames
    of every language bear.
    """
    if config.units is not None:
        return config.units
    if not vowels:
        bearable = [size for size in SIZES if enough(int(frames["n"].sum()), size, config.frames_per_unit)]
        return bearable[0] if bearable else SIZES[-1]
    for size in SIZES:
        parts = [np.array(cells) for cells in _vowel_frames(frames, vowels).values()]
        if all(part[enough(part, size, config.frames_per_unit)].sum() >= part.sum() / 2 for part in parts):
            return size
    return SIZES[-1]


def _check_size(frames: pl.DataFrame, vowels: Sequence[str], units: int, config: UnitsConfig) -> None:
    most = max((max(cells) for cells in _vowel_frames(frames, vowels).values()), default=0)
    if most < config.needed(units):
        fit = int(most / config.frames_per_unit)
        raise DataError(
            f"A histogram of {units} units needs {config.needed(units)} frames of a vowel, and the most frequent vowel has {most}",
            where="units study",
            remedy=f"Ask for at most {fit} units (--units {fit}), or give more speech." if fit >= 2 else "Give more speech with phones.",
        )


def _codebooks(
    view: FeatureView, table: pl.DataFrame, layer: int, units: int, config: UnitsConfig, labelled: bool, say: Any
) -> tuple[FrameNorm, list[FrameUnits]]:
    """Codebooks of every seed, and one of half the size."""
    norm, pool = _pool(view, table, layer, config, labelled)
    say(f"units: {units} units of layer {layer} from {len(pool)} frames, {config.seeds} seeds")
    seeds = range(config.seed, config.seed + config.seeds)
    books = [FrameUnits.of(one, pool) for one in kmeans(pool, units, seeds=seeds)]
    if units >= 4:
        books.append(FrameUnits.of(kmeans(pool, units // 2, seeds=[config.seed])[0], pool))
    return norm, books


def _other_layers(
    view: FeatureView, table: pl.DataFrame, labels: PhoneFrames, codebook: FrameUnits, anchors: pl.DataFrame, config: UnitsConfig, say: Any
) -> list[tuple[FrameUnits, pl.DataFrame]]:
    """A codebook of as many units for each of the nearest other layers, with its counts: none where
    no vowels are ranked.
    """
    if not anchors.height or anchors["similarity"].is_finite().sum() < 2:
        return []
    numbers = sorted(set(view.spec.numbers) - {codebook.layer}, key=lambda number: (abs(number - codebook.layer), number))
    found = []
    for number in sorted(numbers[: config.layers_compared]):
        say(f"units: {codebook.size} units of layer {number}, to compare")
        norm, pool = _pool(view, table, number, config, bool(table["emotion"].drop_nulls().len()))
        book = FrameUnits.of(kmeans(pool, codebook.size, seeds=[config.seed])[0], pool)
        found.append((book, count_units(view, [book], norm, table, labels)[0]))
    return found


def _pool(view: FeatureView, table: pl.DataFrame, layer: int, config: UnitsConfig, labelled: bool) -> tuple[FrameNorm, FramePool]:
    """What a codebook of a layer is learned from."""
    corpus, language, speaker = (table[name].to_list() for name in ("corpus", "language", "speaker"))
    norm = frame_norm(view, layer, config.norm, corpus, speaker)
    pool = frame_pool(
        view,
        layer,
        norm,
        language=language,
        speaker=speaker,
        emotion=table["emotion"].to_list() if labelled else None,
        per_language=config.per_language,
        per_speaker=config.per_speaker,
        seed=config.seed,
    )
    return norm, pool


def _questions(
    counts: pl.DataFrame,
    codebook: FrameUnits,
    vowels: list[str],
    emotions: list[str],
    languages: list[str],
    sample: FrameSample,
    labels: PhoneFrames,
    config: UnitsConfig,
    places: pl.DataFrame | None,
) -> tuple[dict[str, pl.DataFrame], list[str]]:
    every = {name: SpeakerCounts.of(counts, name, labels.names, [], codebook.size) for name in languages}  # all phones, no emotions
    every = {name: side for name, side in every.items() if side.speakers}
    sides = {name: SpeakerCounts.of(counts, name, vowels, emotions, codebook.size) for name in every}
    sides = {name: side for name, side in sides.items() if side.speakers}
    cost, codes = ground_cost(codebook.centres), [labels.names.index(name) for name in vowels]
    rows: dict[str, list[Row]] = {name: [] for name in ("shared_vowels", "matrix", "identification", "emotion_specific", "anchors")}
    checks = [split_half(side, config) for side in every.values()]
    words = []
    for one, other in combinations(sides, 2):
        pair = Pair(sides[one], sides[other])
        control = sample.control(languages.index(one), languages.index(other), codes)
        shared, matrix, found = shared_vowels(pair, config, cost)
        for row in shared:
            place = vowels.index(row["vowel"])
            row |= {name: float(values[place, place]) for name, values in control.items()}
        index = {name: place for place, name in enumerate(vowels)}
        distances = [control["frechet"][index[row["phone_a"]], index[row["phone_b"]]] for row in matrix]
        agreement = spearman([1 - row["similarity"] for row in matrix], distances)
        if np.isfinite(agreement) and agreement < AGREEMENT:
            words.append(
                f"{one}-{other}: the ranking by units and the one by Fréchet distance of the frames disagree (Spearman {agreement:.2f})."
            )
        rows["identification"].append({**found, "agreement_with_frechet": agreement})
        rows["shared_vowels"] += shared
        rows["matrix"] += matrix
        rows["emotion_specific"] += emotion_specific(pair, config)
        rows["anchors"] += anchors(pair, config)
        checks.append(across_languages(pair))
    checks += [articulation(side, config) for side in sides.values()]
    if places is not None:
        checks += [formant_geometry(side, places, config) for side in sides.values()]
    for name in ("shared_vowels", "emotion_specific"):
        rows[name] = with_adjusted(rows[name], config.level)
    rows["emotion_shifts"] = with_adjusted([row for side in sides.values() for row in emotion_shifts(side, config)], config.level)
    rows["validation"] = checks
    shifts = rows["emotion_shifts"]
    if shifts and not any(np.isfinite(row["p"]) for row in shifts):
        fit = int(max(row["frames"] for row in shifts) / config.frames_per_unit)
        words.append(
            f"No vowel has {config.needed(codebook.size)} frames both in an emotion and in {config.reference}, so movements with emotion "
            f"are not measured; with {fit} units one has."
            if fit >= 2
            else "No vowel has frames enough to ask how it moves with emotion."
        )
    rows["quality"] = [{"language": name, **unit_quality(side.counts.sum((0, 2)))} for name, side in every.items()]
    tables = {name: _table(part) for name, part in rows.items()}
    return tables if places is None else {**tables, "formants": places}, words


def _stability(
    tables: dict[str, pl.DataFrame],
    books: list[tuple[FrameUnits, pl.DataFrame]],
    vowels: list[str],
    emotions: list[str],
    config: UnitsConfig,
) -> None:
    """V6, and for each anchor the share of the seeds' codebooks in which it is among the most
    similar vowels; in place.
    """
    if not tables["anchors"].height:
        return
    first, extra = books[0][0], []
    shares: dict[tuple[str, str, str], list[bool]] = {}
    usable = {
        (row["language_a"], row["language_b"], row["vowel"])
        for row in tables["anchors"].iter_rows(named=True)
        if np.isfinite(row["similarity"])
    }
    for one, other in tables["anchors"].select("language_a", "language_b").unique(maintain_order=True).rows():
        mine = [v for v in vowels if (one, other, v) in usable]
        if not mine:
            continue
        rankings: list[dict[str, float]] = []
        kinds: dict[str, list[dict[str, float]]] = {}
        for book, counts in books:
            sides = [SpeakerCounts.of(counts, name, mine, emotions, book.size) for name in (one, other)]
            values = matched_similarity(*(mass(side.counts.sum(2), config).sum(0) for side in sides))
            rankings.append(dict(zip(mine, values.tolist(), strict=True)))
            kind = f"layer {book.layer}" if book.layer != first.layer else "other seeds" if book.size == first.size else "half of the units"
            if book is not first:
                kinds.setdefault(kind, []).append(rankings[-1])
            if (book.layer, book.size) == (first.layer, first.size):
                best = sorted(mine, key=lambda v: -rankings[-1][v])[:TOP]
                for v in mine:
                    shares.setdefault((one, other, v), []).append(v in best)
        extra += ranking_stability(f"{one}-{other}", rankings[0], kinds)
    keys = tables["anchors"].select("language_a", "language_b", "vowel").rows()
    stable = [float(np.mean(shares[key])) if key in shares else None for key in keys]
    tables["anchors"] = tables["anchors"].with_columns(stability=pl.Series(stable, dtype=pl.Float64))
    if extra:
        tables["validation"] = pl.concat([tables["validation"], _table(extra)], how="diagonal")


def _oracle(
    means: VowelMeans, table: pl.DataFrame, codes: dict[str, int], shared: pl.DataFrame, config: UnitsConfig
) -> dict[str, pl.DataFrame]:
    """V5 for every pair of languages in both directions."""
    answers: list[Row] = []
    by_vowel: list[Row] = []
    pairs = shared.select("language_a", "language_b").unique(maintain_order=True).rows() if shared.height else []
    for one, other in pairs:
        mine = shared.filter((pl.col("language_a") == one) & (pl.col("language_b") == other))
        alike = dict(mine.select("vowel", "similarity").iter_rows())
        for direction in ((one, other), (other, one)):
            answer, rows = utility(means, table, {v: codes[v] for v in alike}, direction, alike, config)
            if rows and rows[0]["emotions"] > 1:
                answers.append(answer)
                by_vowel += rows
    return {"ORACLE_utility": _table(answers), "ORACLE_transfer": _table(by_vowel)} if answers else {}


def _table(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)
