from __future__ import annotations

import json
import subprocess
import sys

import pytest
from toy_corpus import use_toy

from raysere.base.errors import ConfigError, UnknownNameError
from raysere.features.spec import FeatureConfig, FeatureSpec, resolve

use_toy()


def test_defaults_are_utterance_statistics_of_all_layers_in_float32():
    spec = resolve({"backbone": "toy"})
    assert (spec.granularity, spec.dtype, spec.numbers) == ("utterance", "float32", [0, 1, 2])
    assert [spec.width(number) for number in spec.numbers] == [6, 10, 4]  # [mean; std] of frame layers, the vector itself otherwise
    shape = spec.shape()
    assert (shape.layers, shape.stats, shape.layer_stats, shape.stats_of(0)) == ({0: 6, 1: 10, 2: 4}, 1, {0: 2, 1: 2, 2: 1}, 2)
    assert resolve({"backbone": "toy", "layers": [0, 1]}).shape().stats == 2


def test_frames_and_chunks_leave_utterance_layers_out_of_all_and_are_float16():
    for granularity in ("frame", "chunk"):
        spec = resolve({"backbone": "toy", "granularity": granularity})
        assert spec.numbers == [0, 1]
        assert spec.dtype == "float16"
    assert resolve({"backbone": "toy", "granularity": "frame"}).width(1) == 5
    assert resolve({"backbone": "toy", "granularity": "chunk"}).width(1) == 10
    with pytest.raises(ConfigError, match=r"Layer 2 .* one row for each utterance.*0 \(raw\), 1 \(wide\)"):
        resolve({"backbone": "toy", "granularity": "frame", "layers": [0, 2]})


def test_layers_by_number_or_name_and_a_wrong_one_lists_the_valid_ones():
    assert resolve({"backbone": "toy", "layers": ["wide", 0, 1]}).numbers == [0, 1]
    for wrong in (3, -1, "wider"):
        with pytest.raises(ConfigError, match=r"no layer .*0 \(raw\), 1 \(wide\), 2 \(whole\)"):
            resolve({"backbone": "toy", "layers": [wrong]})
    with pytest.raises(ConfigError, match="`layers` is empty"):
        resolve({"backbone": "toy", "layers": []})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "toy", "granularity": "word"}, "granularity"),
        ({"backbone": "toy", "layers": [True]}, "layers"),
        ({"backbone": "toy", "lyers": [1]}, "lyers.*Valid choices: backbone"),
        ({"backbone": "toy", "chunk_s": 0.5, "chunk_hop_s": 0.6}, "longer than chunk_s"),
        ({"backbone": "toy", "modality": "text"}, "of modality 'audio'"),
        ({"backbone": "toy", "options": {"modality": "text"}, "granularity": "chunk"}, "not steps of time"),
        ({"backbone": "toy", "options": {"modality": "text"}, "level": "rms"}, "no level"),
    ],
)
def test_what_cannot_be_right_is_one_clear_error(config, message):
    with pytest.raises(ConfigError, match=message):
        resolve(config)


def test_unknown_backbone_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="acoustic"):
        resolve({"backbone": "acustic"})


def test_the_key_covers_what_shapes_the_bytes_and_nothing_else():
    base = resolve({"backbone": "toy"})
    changed = [
        {"layers": [0]},
        {"granularity": "frame"},
        {"granularity": "chunk"},
        {"granularity": "chunk", "chunk_s": 2.0},
        {"dtype": "float16"},
        {"level": "rms"},
        {"channel": 1},
        {"channel": "mix"},
        {"options": {"version": 2}},
    ]
    keys = [base.key, *(resolve({"backbone": "toy", **change}).key for change in changed)]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys)
    assert resolve({"backbone": "toy", "chunk_s": 2.0}).key == base.key  # chunks play no part in utterance statistics
    assert resolve(FeatureConfig(backbone="toy", layers=(0, 1, 2))).key == base.key


def test_json_round_trip_and_foreign_formats():
    spec = resolve({"backbone": "toy", "granularity": "chunk", "layers": [1]})
    value = spec.to_json()
    assert value["format"] == "raysere.features/1"
    for form in (value, json.dumps(value)):
        again = FeatureSpec.from_json(form)
        assert again == spec
        assert again.key == spec.key
    for wrong in ({**value, "format": "raysere.features/2"}, {**value, "colour": 1}, {"format": "raysere.features/1"}, "{", "[]"):
        with pytest.raises(ConfigError):
            FeatureSpec.from_json(wrong)


def test_a_field_added_later_with_a_default_leaves_keys_as_they_are():
    class Later(FeatureSpec):
        taste: str = "none"

    spec = resolve({"backbone": "toy"})
    assert Later(**spec.model_dump()).key == spec.key
    assert Later(**spec.model_dump(), taste="sweet").key != spec.key


def test_a_spec_is_light():
    code = "import sys; import raysere.features.spec; print([name for name in ('torch', 'ray', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_model_folder_that_moves_keeps_its_key_and_another_content_changes_it() -> None:
    config = FeatureConfig(backbone="hashed")
    spec = resolve(config)
    here, there = (spec.model_copy(update={"backbone": f"hf:{place}/model", "identity": "same"}) for place in ("/a", "/b"))
    assert here.key == there.key != here.model_copy(update={"identity": "other"}).key
    assert here.key != spec.key
