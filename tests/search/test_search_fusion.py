"""A fusion member in a real search: two feature streams, one of which some utterances lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy import CLASSES, SPEC, toy_run, toy_study

from raysere.corpora.manifest import Manifest
from raysere.features.spec import FeatureSpec, LayerSpec
from raysere.features.store.content import Failure, text_contents
from raysere.features.store.quarantine import Quarantine
from raysere.features.store.shards import rebuild_index, write_shard
from raysere.features.store.store import FeatureStore
from raysere.methods import METHODS
from raysere.search.ledger import Ledger
from raysere.search.space.checks import check
from raysere.search.space.grammar import load_space, with_fixed
from raysere.search.study import StudyFeature
from raysere.search.tuner import run_search
from raysere.training.method import Shapes
from raysere.training.task import Task

FRAMES = FeatureSpec(
    backbone="table:frames.parquet",
    identity="frames",
    modality="audio",
    granularity="frame",
    dtype="float32",
    sampling_rate=None,
    frame_s=0.5,
    layers=tuple(LayerSpec(number=n, name=str(n), dim=5, rows="frame") for n in range(2)),
)


def two_streams(folder: Path) -> tuple[Path, list[str]]:
    """The toy run with rows over time beside its words; the third utterance of each speaker and
    class has none.
    """
    run_dir = toy_run(folder)
    table = Manifest.read(run_dir / "manifest.parquet").table
    rng = np.random.default_rng(3)
    store = FeatureStore(run_dir / "features")
    place = store.prepare(FRAMES)
    kept = [n for n, utterance in enumerate(table["utterance"].to_list()) if "-02-" not in utterance]
    found = text_contents(table, FRAMES)
    contents = [str(found.content[n]) for n in kept]
    rows = [rng.normal(size=(int(rng.integers(1, 5)), 5)).astype(np.float32) + CLASSES.index(table["emotion"][n]) for n in kept]
    write_shard(place, FRAMES, contents, {0: rows, 1: [2 * row for row in rows]})
    rebuild_index(place)
    gone = [utterance for n, utterance in enumerate(table["utterance"].to_list()) if n not in kept]
    Quarantine(place).add(
        Failure(utterance, content, None, "broken")  # as an extraction notes what it cannot read
        for utterance, content in zip(found.utterances, found.content, strict=True)
        if utterance in gone
    )
    return run_dir, gone


@pytest.mark.usefixtures("local_ray")
def test_a_search_over_two_streams_scores_utterances_that_lack_one(tmp_path: Path) -> None:
    run_dir, gone = two_streams(tmp_path / "run")
    method, task = METHODS.get("xattn")(), Task(classes=CLASSES)
    small = {"width": 16, "heads": 4, "batch": 16, "epochs": 3, "hidden": 16}
    shapes = Shapes(task, {"frames": FRAMES.shape(), "words": SPEC.shape()})
    space = check(with_fixed(load_space("xattn"), small), method.Params, shapes, method=method)
    study = toy_study(
        space=space.to_dict(),
        method="xattn",
        trials=2,
        features=(
            StudyFeature(name="frames", spec_key=FRAMES.key, modality="audio"),
            StudyFeature(name="words", spec_key=SPEC.key, modality="text"),
        ),
    )
    summary = run_search(run_dir, [study], max_concurrent=2)
    assert (summary.ran, summary.statuses) == (2, {"done": 2})
    first, second = Ledger(run_dir).trials()
    assert (first.method, first.modality) == ("xattn", "audio+text")
    published = method.Params().model_dump()
    assert {name: value for name, value in first.resolved.items() if value != published[name]} == small  # trial 0 is the default
    assert second.params != first.params
    predicted = set(first.predictions()["utterance"].to_list())
    assert set(gone) <= predicted
    assert len(predicted) == 72
