"""ORACLE: do similar vowels transfer emotion better (V5 of docs/units.md)? It reads target labels.

Per vowel, a classifier of emotion is trained on the frames of that vowel in one language (one
vector an utterance: their mean) and tested on those of the same vowel in another language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from raysere.studies.estimate import spearman, spearman_test
from raysere.studies.layers.probes import oracle_transfer
from raysere.studies.units.config import UnitsConfig
from raysere.studies.units.questions import NAN, Row

FEWEST = 5  # utterances with a vowel in each emotion and language
MOST = 2_000  # utterances of a language, drawn at random, so that memory is bounded


class VowelMeans:
    """Mean of the frames of each vowel in each utterance that has an emotion, filled while the
    units are counted.

    Args:
        table: language and emotion of the utterances, in the order of the view.
        wanted: codes of the vowels.
    """

    def __init__(self, table: pl.DataFrame, wanted: Sequence[int], *, most: int = MOST, seed: int = 0) -> None:
        labelled = table.select("language", "emotion").with_row_index("row").filter(pl.col("emotion").is_not_null())
        drawn = labelled.sample(fraction=1.0, shuffle=True, seed=seed).group_by("language", maintain_order=True).head(most)
        self.kept = np.zeros(table.height, dtype=bool)
        self.kept[drawn["row"].to_numpy()] = True
        self.wanted = np.array(wanted, dtype=np.int64)
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __call__(self, owner: np.ndarray, phone: np.ndarray, frames: Tensor) -> None:
        """Frames (n, D) with row and phone; all frames of an utterance come in one call."""
        kept = np.flatnonzero(self.kept[owner] & np.isin(phone, self.wanted))
        cells, place, count = np.unique(np.stack([owner[kept], phone[kept]], 1), axis=0, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(cells), frames.shape[1]).index_add_(0, torch.from_numpy(place.reshape(-1)), frames[torch.from_numpy(kept)])
        self._found.append((cells[:, 0], cells[:, 1], sums.numpy() / count[:, None].astype(np.float32)))

    def of(self, phone: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the utterances with a vowel (n,), and their vectors (n, D)."""
        parts = [(rows[phones == phone], means[phones == phone]) for rows, phones, means in self._found]
        return np.concatenate([rows for rows, _ in parts]), np.concatenate([means for _, means in parts])


def utility(
    means: VowelMeans,
    table: pl.DataFrame,
    codes: Mapping[str, int],
    pair: tuple[str, str],
    similarity: Mapping[str, float],
    config: UnitsConfig,
) -> tuple[Row, list[Row]]:
    """V5 from the first language of a pair to the second: (the correlation, a row for each vowel).

    The correlation is Spearman's over vowels between the UAR on the second language and S(v), with
    a one-sided permutation p; beside it that of the UAR with the number of utterances trained on,
    which has to be lower for S to tell anything. Both sides are z-scored by themselves; UAR has an
    interval over the second language's speakers. All vowels have the same emotions, those of both
    languages.

    Args:
        table: language, speaker, emotion of the view's utterances. codes: of the vowels.
            similarity: S(v), NaN where it is not measured.
    """
    source, target = pair
    languages, emotions, speakers = (np.array(table[name].to_list(), dtype=object) for name in ("language", "emotion", "speaker"))
    heard = [{str(one) for one in emotions[means.kept & (languages == name)]} for name in pair]
    classes = sorted(heard[0] & heard[1])
    rows: list[Row] = []
    for vowel, code in codes.items():
        at, vectors = means.of(code)
        sides = [at_language & np.isin(emotions[at].astype(str), classes) for at_language in (languages[at] == name for name in pair)]
        label = np.searchsorted(classes, emotions[at].astype(str))
        row: Row = {"source": source, "target": target, "vowel": vowel, "similarity": float(similarity.get(vowel, NAN))}
        row |= {"utterances_source": int(sides[0].sum()), "utterances_target": int(sides[1].sum()), "emotions": len(classes)}
        row |= {"uar": NAN, "low": NAN, "high": NAN, "chance": 1 / len(classes) if classes else NAN}
        counts = [np.bincount(label[side], minlength=len(classes)) for side in sides]
        if len(classes) > 1 and min(count.min() for count in counts) >= FEWEST:
            first, second = sides
            found = oracle_transfer(
                vectors[first],
                label[first],
                vectors[second],
                label[second],
                speakers[at][second].astype(str),
                len(classes),
                draws=config.bootstraps,
                seed=config.seed,
            )
            row |= {"uar": found.value, "low": found.low, "high": found.high}
        if sides[0].any() and sides[1].any():
            rows.append(row)
    measured = [row for row in rows if np.isfinite(row["uar"]) and np.isfinite(row["similarity"])]
    reached, alike = [row["uar"] for row in measured], [row["similarity"] for row in measured]
    test = spearman_test(alike, reached, permutations=config.permutations, seed=config.seed)
    answer: Row = {"check": "V5 utility (ORACLE)", "source": source, "target": target, "items": len(measured)}
    answer |= {"correlation": test.value, "p": test.p, "mean_uar": float(np.mean(reached)) if reached else NAN}
    answer["chance"] = 1 / len(classes) if classes else NAN
    answer["correlation_utterances"] = spearman([row["utterances_source"] for row in measured], reached)
    return answer, rows
