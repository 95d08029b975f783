"""From splits and experiments to what is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from raysere.base.errors import ConfigError
from raysere.features.spec import resolve
from raysere.pipeline.experiment import SearchEntry
from raysere.pipeline.lanes import _checked_space, add_vote_rows
from raysere.pipeline.stages import untrained
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


def test_trials_that_were_not_trained_are_told_with_a_reason():
    def record(trial: str, status: str, error: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(trial=trial, status=status, error=error)

    run = Path("runs/toy")
    assert untrained([record("a-0000", "done"), record("a-0001", "stopped")], run) is None
    told = untrained(
        [record("a-0000", "done"), record("a-0001", "infeasible", "too wide\nmore"), record("a-0002", "error", "no memory")], run
    )
    assert told is not None
    for part in ("of 3 trials 1 failed", "--retry-errors", "1 had a configuration", "a-0002: no memory.", "raysere leaderboard runs/toy"):
        assert part in told, part
    ruled_out = untrained([record("a-0001", "infeasible", "too wide\nmore")], run)
    assert ruled_out is not None
    assert "a-0001: too wide." in ruled_out
    assert "--retry-errors" not in ruled_out
