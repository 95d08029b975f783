"""From splits and experiments to what is trained."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from raysere.base.errors import ConfigError
from raysere.features.spec import resolve
from raysere.pipeline.experiment import SearchEntry
from raysere.pipeline.lanes import _checked_space, add_vote_rows
from raysere.training.task import Task


def test_rows_with_votes_but_no_class_go_to_the_fold_of_their_speaker_and_never_to_the_test_part():
    table = pl.DataFrame(
        {
            "utterance": ["a1", "a2", "b1", "b2", "c1", "c2", "d1", "a3"],
            "speaker": ["a", "a", "b", "b", "c", "c", "d", "a"],
            "label": ["x", None, "y", None, "x", None, None, None],
            "split": [None] * 8,
        },
        schema_overrides={"split": pl.String},
    )
    splits = pl.DataFrame(
        {"outer": [0, 0, 0], "utterance": ["a1", "b1", "c1"], "role": ["pool", "pool", "test"], "fold": [0, None, None]},
        schema={"outer": pl.Int32, "utterance": pl.String, "role": pl.String, "fold": pl.Int32},
    )
    soft = np.array([[1, 0], [0.5, 0.5], [0, 1], [0.6, 0.4], [1, 0], [0.5, 0.5], [0.5, 0.5], [0, 0]])
    grown = add_vote_rows(splits, table, soft)
    assert grown.rows() == [
        (0, "a1", "pool", 0),
        (0, "a2", "pool", 0),
        (0, "b1", "pool", None),
        (0, "b2", "pool", None),
        (0, "c1", "test", None),
    ]
    assert add_vote_rows(splits, table, None).equals(splits)


def test_a_fusion_method_needs_two_features():
    spec = resolve({"backbone": "hashed"})
    entry = SearchEntry(space="xattn", features="words")
    with pytest.raises(ConfigError, match="needs 2 feature streams, and this search names 1"):
        _checked_space(entry, Task(classes=("a", "b")), {"words": spec}, "nested")
