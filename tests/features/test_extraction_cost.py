from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
from toy_corpus import corpus, subset, use_toy

from raysere.base.errors import EnvironmentFault
from raysere.features.extract import cost as cost_module
from raysere.features.extract.cost import check_disk, expected_bytes, expected_rows, extraction_cost, measure, spread
from raysere.features.extract.run import extract_local
from raysere.features.spec import resolve
from raysere.features.store.content import Work
from raysere.features.store.store import FeatureStore

use_toy()
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        ({}, 1),
        ({"granularity": "frame"}, 250),
        ({"granularity": "chunk", "chunk_s": 1.0, "chunk_hop_s": 0.5}, 4),
    ],
)
def test_rows_and_bytes_come_from_durations_alone(config, rows):
    spec = resolve({"backbone": "toy", **config})
    assert expected_rows(spec, 2.5) == rows
    works = [Work(str(number), str(number), 2.5) for number in range(4)]
    width = {"utterance": (6 + 10 + 4) * 4, "frame": (3 + 5) * 2, "chunk": (6 + 10) * 2}[spec.granularity]
    assert 0 <= expected_bytes(spec, works) - 4 * rows * width <= 4 * 500


@pytest.mark.parametrize("granularity", ["utterance", "chunk", "frame"])
def test_expected_bytes_are_close_to_what_is_written(tmp_path, granularity):
    manifest = corpus(tmp_path / "audio", 20, seconds=(1.0, 4.0))
    spec = resolve({"backbone": "toy", "granularity": granularity, "dtype": "float32"})
    price = extraction_cost(manifest, spec, tmp_path / "store", seconds=0)
    extract_local(manifest, spec, tmp_path / "store")
    layers = sum(path.stat().st_size - 128 for path in FeatureStore(tmp_path / "store").folder(spec).glob("shard-*/*.npy"))  # 128: header
    assert layers == pytest.approx(price.bytes - 20 * cost_module._ITEM_BYTES, rel=0.02)


def test_a_plan_tells_every_granularity_and_what_is_cached(tmp_path):
    manifest = corpus(tmp_path / "audio", 6)
    spec = resolve({"backbone": "toy"})
    fresh = extraction_cost(manifest, spec, tmp_path / "store", speed=2.0, workers=3)
    assert not (tmp_path / "store").exists()  # pricing writes nothing
    total = manifest.table["duration_s"].sum()
    assert fresh.speech_s == pytest.approx(total)
    assert fresh.seconds == pytest.approx(total / 2 / 3)
    assert (fresh.items, fresh.cached, fresh.fits) == (6, 0, True)
    assert list(fresh.bytes_by) == ["utterance", "chunk", "frame"]
    assert fresh.bytes_by["utterance"] == fresh.bytes
    assert fresh.to_json()["bytes_by"] == fresh.bytes_by
    extract_local(subset(manifest, [1, 1, 0, 0, 0, 0]), spec, tmp_path / "store")
    partly = extraction_cost(manifest, spec, tmp_path / "store", speed=2.0)
    assert (partly.cached, partly.speech_s) == (2, pytest.approx(total - manifest.table["duration_s"][:2].sum()))
    extract_local(manifest, spec, tmp_path / "store")
    assert extraction_cost(manifest, spec, tmp_path / "store").seconds == 0  # nothing left, nothing measured
    text = resolve({"backbone": "toy", "options": {"modality": "text"}})
    assert list(extraction_cost(manifest, text, tmp_path / "store", speed=1.0).bytes_by) == ["utterance", "frame"]


def test_measured_speed_is_that_of_the_items_after_the_first(tmp_path, monkeypatch):
    manifest = corpus(tmp_path / "audio", 8)
    clock = iter(range(10_000))
    monkeypatch.setattr(cost_module.time, "monotonic", lambda: float(next(clock)))  # the module time itself: every look costs one second
    spec = resolve({"backbone": "toy"})
    price = extraction_cost(manifest, spec, tmp_path / "store", seconds=1e6)
    monkeypatch.undo()
    works = spread(cost_module.works_of(manifest, spec))
    assert sorted(work.utterance for work in works) == manifest.table["utterance"].to_list()
    counted = sum(work.seconds for work in works[1:])
    looks = (counted / price.speed) / 7  # seconds (looks at the clock) an item
    assert looks == pytest.approx(round(looks))
    assert measure(spec, [Work("x", "x", 1.0, str(tmp_path / "none.wav"))], seconds=1) is None


def test_the_sample_is_spread_over_lengths():
    works = [Work(str(number), str(number), float(number)) for number in range(1000)]
    sample = spread(works, 50)
    lengths = [work.seconds for work in sample]
    assert len(set(lengths)) == 50
    assert min(lengths) == 0
    assert max(lengths) == 999
    assert abs(sum(lengths[:10]) / 10 - 500) < 30  # long and short in turn: a short measurement is not biased


def test_what_does_not_fit_with_the_reserve_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000_000, 900_000, 100_000))
    check_disk(50_000, tmp_path / "not" / "yet")
    with pytest.raises(EnvironmentFault, match=r"need about 50 kB; the disk has 100 kB free, of which 50 kB.*fewer layers"):
        check_disk(50_001, tmp_path)
    manifest = corpus(tmp_path / "audio", 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1000_000, 960_000, 40_000))
    spec = resolve({"backbone": "toy"})
    assert not extraction_cost(manifest, spec, tmp_path / "store", seconds=0).fits
    with pytest.raises(EnvironmentFault, match="in reserve"):
        extract_local(manifest, spec, tmp_path / "store")
    assert not list(FeatureStore(tmp_path / "store").folder(spec).glob("shard*"))
