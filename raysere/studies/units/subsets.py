"""Which utterances a study uses: one sex, or the same sentences in every emotion."""

from __future__ import annotations

import polars as pl

from raysere.base.errors import DataError
from raysere.studies.units.config import UnitsConfig


def subset(table: pl.DataFrame, config: UnitsConfig) -> pl.DataFrame:
    """The rows of a table (utterance, corpus, sex, transcript, emotion) that the settings leave, in
    its order.

    ``same_sentences``: of each corpus the sentences that are spoken in all of its emotions, each as
    often in one emotion as in another (drawn at random); rows without emotion or transcript go. A
    corpus without any emotion stays whole.

    Raises:
        DataError: nothing is left.
    """
    kept = table
    if config.sex is not None:
        kept = kept.filter(pl.col("sex") == config.sex)
        if not kept.height:
            raise DataError(f"No utterance is known to be spoken by: {config.sex}", where="sex", choices=sorted(_known(table["sex"])))
    if config.same_sentences:
        said = kept.filter(pl.col("transcript").is_not_null() & pl.col("emotion").is_not_null())
        emotions = said.group_by("corpus").agg(every=pl.col("emotion").n_unique())
        sizes = said.group_by("corpus", "transcript", "emotion").agg(n=pl.len())
        least = sizes.group_by("corpus", "transcript").agg(least=pl.col("n").min(), emotions=pl.len()).join(emotions, on="corpus")
        least = least.filter(pl.col("emotions") == pl.col("every")).select("corpus", "transcript", "least")
        shuffled = said.select("utterance", "corpus", "transcript", "emotion").sample(fraction=1.0, shuffle=True, seed=config.seed)
        numbered = shuffled.with_columns(number=pl.int_range(pl.len()).over("corpus", "transcript", "emotion"))
        chosen = numbered.join(least, on=["corpus", "transcript"]).filter(pl.col("number") < pl.col("least"))
        bare = pl.col("emotion").is_null().all().over("corpus")
        kept = kept.filter(pl.col("utterance").is_in(chosen["utterance"].implode()) | bare)
        if not kept.height:
            raise DataError(
                "No sentence is spoken in all emotions of its corpus", where="same_sentences", remedy="Leave same_sentences out."
            )
    return kept


def _known(column: pl.Series) -> list[str]:
    return column.drop_nulls().unique().to_list()
