"""Features of chosen phones: the frames that lie in them, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from toy_corpus import corpus, use_toy

from raysere.base.errors import ConfigError, DataError
from raysere.features.clock import frame_centres, frame_clock
from raysere.features.extract.run import encode_view, extract_local, item
from raysere.features.spec import resolve
from raysere.features.store.content import phone_spans
from raysere.features.store.store import FeatureStore

use_toy()
MARKS = [("a", 0.0, 0.2), ("t", 0.2, 0.3), ("i", 0.3, 0.4), ("a", 0.4, 0.45)]


def spoken(folder, marks=MARKS, count=4):
    manifest = corpus(folder, count)
    phones = [[{"label": label, "start_s": start, "end_s": end} for label, start, end in marks]] * (count - 1) + [[]]
    return replace(manifest, table=manifest.table.with_columns(phones=pl.Series(phones, dtype=manifest.table.schema["phones"])))


def test_statistics_are_those_of_the_frames_in_the_phones(tmp_path):
    manifest = spoken(tmp_path / "audio")
    frames, chosen = (
        resolve({"backbone": "toy", "layers": [0], **more}) for more in ({"granularity": "frame", "dtype": "float32"}, {"phones": ["a"]})
    )
    assert frames.key != chosen.key != resolve({"backbone": "toy", "layers": [0]}).key
    for spec in (frames, chosen):
        done = extract_local(manifest, spec, tmp_path / "store")
    assert done.quarantined["stage"].to_list() == ["no phones"]
    whole, found = (FeatureStore(tmp_path / "store").open(spec, manifest) for spec in (frames, chosen))
    assert found.present.tolist() == [True, True, True, False]
    rows = whole.packed(0, np.array([0])).astype(np.float64)
    centres = frame_centres(frame_clock(frames), len(rows))
    inside = (centres < 0.2) | ((centres >= 0.4) & (centres < 0.45))
    assert 0 < inside.sum() < len(rows)
    expected = np.concatenate([rows[inside].mean(0), rows[inside].std(0)])
    np.testing.assert_allclose(found.matrix(0, np.array([0]))[0], expected, rtol=1e-5)


def test_other_marks_are_another_content(tmp_path):
    spec = resolve({"backbone": "toy", "layers": [0], "phones": ["a"]})
    assert extract_local(spoken(tmp_path / "audio"), spec, tmp_path / "store").done == 3
    moved = spoken(tmp_path / "audio", [("a", 0.1, 0.3)])
    assert extract_local(moved, spec, tmp_path / "store").done == 3
    assert extract_local(moved, spec, tmp_path / "store").cached == 3
    assert phone_spans(moved.table, ["a"])[moved.table["utterance"][0]] == ((0.1, 0.3),)


def test_what_cannot_be_is_told(tmp_path):
    manifest = spoken(tmp_path / "audio")
    with pytest.raises(DataError, match="None of the 4 utterances has one of the phones y"):
        extract_local(manifest, resolve({"backbone": "toy", "layers": [0], "phones": ["y"]}), tmp_path / "store")
    short = spoken(tmp_path / "audio", [("a", 0.0, 0.2), ("i", 0.3, 0.3001)])
    done = extract_local(short, resolve({"backbone": "toy", "layers": [0], "phones": ["i"]}), tmp_path / "other", fail_threshold=0.0)
    assert set(done.quarantined["stage"]) == {"no phones"}
    for more in ({"granularity": "chunk"}, {"granularity": "frame"}):
        with pytest.raises(ConfigError, match="phones"):
            resolve({"backbone": "toy", "phones": ["a"], **more})
    with pytest.raises(ConfigError, match="phones"):
        resolve({"backbone": "hashed", "phones": ["a"]})


def test_a_clip_without_marks_is_refused(tmp_path):
    manifest = corpus(tmp_path / "audio", 1)
    spec = resolve({"backbone": "toy", "layers": [0], "phones": ["a"]})
    view, refused = encode_view(spec, [item("clip", path=manifest.path(manifest.table.row(0, named=True)))])
    assert not view.present.any()
    assert "nothing tells when" in refused["reason"][0]
