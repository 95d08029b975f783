"""A space held against the method and the features."""

from __future__ import annotations

import pytest

from raysere.base.errors import ConfigError
from raysere.methods.pooled import Pooled
from raysere.search.space.checks import check
from raysere.search.space.grammar import load_space, parse_space, space_names, space_schema
from raysere.training.method import Shapes, StreamShape
from raysere.training.task import Task


def shapes(layers: tuple[int, ...] = (0, 1, 2, 3), granularity: str = "utterance", kind: str = "categorical") -> Shapes:
    task = Task(
        kind=kind,
        classes=() if kind == "dimensional" else ("a", "b"),
        attributes=() if kind == "categorical" else ("arousal",),
        metric="ccc" if kind == "dimensional" else "uar",
    )
    return Shapes(task, {"speech": StreamShape("audio", dict.fromkeys(layers, 8), 2, granularity)})


def checked(raw: dict, where: Shapes | None = None):
    return check(parse_space({"method": "pooled", **raw}, where="x.yaml"), Pooled.Params, where or shapes(), method=Pooled())


@pytest.mark.parametrize("kind", ["categorical", "dimensional", "both"])
@pytest.mark.parametrize("granularity", ["utterance", "frame"])
@pytest.mark.parametrize("name", ["pooled", "pooled_quick", "pooled_small", "pooled_text"])
def test_packaged_spaces_fit_every_task_and_start_at_the_published_default(name: str, granularity: str, kind: str) -> None:
    space = check(load_space(name), Pooled.Params, shapes(granularity=granularity, kind=kind), method=Pooled())
    params = Pooled.Params.model_validate(space.default_config())
    if name == "pooled":
        assert params == Pooled.Params()
    assert ("attentive" in str(space.dims["pooling"].choices)) == (granularity == "frame" and name not in ("pooled_quick", "pooled_small"))
    assert ("bottleneck" in space.dims) == (granularity == "frame" and name not in ("pooled_quick", "pooled_small"))
    assert ("class_weight" in space.dims) == (kind != "dimensional")
    assert ("attribute_term" in space.dims) == (kind == "both" and name == "pooled")


def test_names_in_the_folder_are_all_tested() -> None:
    assert [name for name in space_names() if load_space(name).method == "pooled"] == [
        "pooled",
        "pooled_quick",
        "pooled_small",
        "pooled_text",
    ]


def test_last_is_the_last_layer() -> None:
    space = checked(
        {"space": {"layers": {"choice": ["one", "mix"]}, "layer": {"int": [0, "last"], "when": {"layers": "one"}}}},
        shapes(tuple(range(13))),
    )
    assert (space.dims["layer"].low, space.dims["layer"].high) == (0, 12)
    assert checked({"defaults": {"layers": "one", "layer": "last"}}, shapes((0, 7))).default_config()["layer"] == 7


def test_last_over_features_of_some_layers_means_those_layers() -> None:
    space = checked(
        {"space": {"layers": {"choice": ["one", "mix"]}, "layer": {"int": [0, "last"], "when": {"layers": "one"}}}}, shapes((0, 6, 12))
    )
    assert space.dims["layer"].choices == (0, 6, 12)
    assert any("layer: 1, 2" in note for note in space.notes)


def test_a_layer_that_the_backbone_does_not_have() -> None:
    with pytest.raises(ConfigError) as caught:
        checked({"space": {"layers": {"choice": ["one", "mix"]}, "layer": {"int": [0, 12], "when": {"layers": "one"}}}})
    assert "space.layer.int: 4, 5, 6, 7, 8: The features 'speech' have no layer 4" in str(caught.value)
    assert "Valid choices: 0, 1, 2, 3" in str(caught.value)
    assert "x.yaml" in str(caught.value)


def test_all_problems_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        checked(
            {
                "space": {
                    "dropout": {"float": [0, 2]},
                    "pooling": {"choice": ["mean", "men"]},
                    "hidden": {"int": [1, 64]},
                    "depth": True,
                    "lr": {"float": [0.1, 0.2]},
                    "layer": {"int": [0, 1], "when": {"layers": "two"}},
                    "layers": {"choice": ["one", "mix"]},
                }
            }
        )
    text = str(caught.value)
    for part in (
        "space.dropout.float: 2 is outside of what pooled takes: Input should be less than or equal to 0.9",
        "space.pooling.choice: 'men'",
        "'mean', 'mean_std' or 'attentive'",
        "space.hidden.int: 1 ",
        "space.depth: True",
        "space.layer.when.layers: 'two' is not among the values of layers: one, mix",
    ):
        assert part in text, part


def test_an_unknown_parameter_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"space\.hiden: pooled has no such parameter; valid choices: .*hidden.*did you mean 'hidden'"):
        checked({"space": {"hiden": {"int": [8, 16]}}})


def test_defaults_stand_inside_their_range() -> None:
    with pytest.raises(ConfigError, match=r"defaults\.dropout: 0\.9 is not in the space: \[0, 0\.5\]"):
        checked({"defaults": {"dropout": 0.9}, "space": {"dropout": {"float": [0, 0.5]}}})
    with pytest.raises(ConfigError, match=r"defaults\.lr: the published default 0\.001 is not in the space"):
        checked({"space": {"lr": {"float": [0.1, 0.2]}}})


def test_trial_zero_adapts_where_the_default_cannot_work() -> None:
    space = checked({"defaults": {"pooling": "attentive"}, "space": {"pooling": {"choice": ["attentive", "mean"]}}})
    assert space.default_config()["pooling"] == "mean"
    assert any("trial 0 has pooling mean" in note for note in space.notes)
    with pytest.raises(ConfigError, match="trial 0 cannot work on these features: Attentive"):
        checked({"defaults": {"pooling": "attentive"}})


def test_a_checked_space_is_complete_without_features() -> None:
    space = checked({"space": {"layers": {"choice": ["one", "mix"]}, "layer": {"int": [0, "last"], "when": {"layers": "one"}}}})
    again = parse_space(space.to_dict())
    assert again.to_dict() == space.to_dict()
    assert again.default_config() == space.default_config()


def test_the_schema_takes_what_the_parser_takes() -> None:
    schema = space_schema()
    assert set(schema["properties"]) == {"method", "description", "defaults", "space"}
    kinds = [entry for entry in schema["properties"]["space"]["additionalProperties"]["anyOf"] if "required" in entry]
    assert [entry["required"] for entry in kinds] == [["choice"], ["int"], ["float"]]
    assert "pooled" in schema["properties"]["method"]["examples"]
