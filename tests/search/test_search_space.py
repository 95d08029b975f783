"""The grammar of search spaces, and how they are sampled."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raysere.base.errors import ConfigError, MissingFileError, UnknownNameError
from raysere.search.space.grammar import Dimension, Space, is_active, load_space, parse_space, space_names, suggest, with_fixed

SCALARS = st.one_of(st.integers(-5, 5), st.booleans(), st.sampled_from(["a", "b", "c"]), st.none(), st.floats(-2, 2))


@st.composite
def spaces(draw: st.DrawFn) -> dict:
    """Random trees: each parameter may depend on a choice before it."""
    space: dict = {}
    parents: dict[str, list] = {}
    for number in range(draw(st.integers(1, 6))):
        name = f"p{number}"
        kind = draw(st.sampled_from(["choice", "int", "float", "fixed"]))
        if kind == "choice":
            choices = draw(st.lists(SCALARS, min_size=2, max_size=4, unique_by=lambda value: json.dumps(value)))
            entry: dict = {"choice": choices}
        elif kind == "int":
            low = draw(st.integers(1, 20))
            entry = {"int": [low, low + draw(st.integers(0, 30))], **draw(st.sampled_from([{}, {"log": True}, {"step": 3}]))}
        elif kind == "float":
            low = draw(st.floats(1e-6, 1))
            entry = {"float": [low, low * draw(st.floats(1, 1000))], **draw(st.sampled_from([{}, {"log": True}]))}
        else:
            space[name] = draw(SCALARS)
            continue
        if parents and draw(st.booleans()):
            parent = draw(st.sampled_from(sorted(parents)))
            entry["when"] = {parent: draw(st.lists(st.sampled_from(parents[parent]), min_size=1, max_size=2))}
        space[name] = entry
        if kind == "choice":
            parents[name] = choices
    return {"method": "pooled", "space": dict(draw(st.permutations(list(space.items()))))}


def sample(space: Space, seed: int) -> tuple[dict, optuna.Trial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    return suggest(trial, space), trial


@settings(max_examples=60, deadline=None)
@given(raw=spaces(), seed=st.integers(0, 1000))
def test_samples_stay_inside_and_leave_inactive_branches_out(raw: dict, seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = parse_space(raw)
    config, trial = sample(space, seed)
    for name, dimension in space.dims.items():
        assert (name in config) == is_active(dimension, {key: config[key] for key in dimension.when if key in config})
        if name in config:
            assert dimension.holds(config[name]), (name, config[name], dimension)
    # what the study remembers and what the configuration says are the same, so a ledger can refill
    # a study
    searched = space.searched(config)
    assert trial.params == {name: dimension.to_optuna(config[name]) for name, dimension in searched.items()}
    assert trial.distributions == {name: dimension.distribution() for name, dimension in searched.items()}


@settings(max_examples=60, deadline=None)
@given(raw=spaces())
def test_a_space_survives_json_and_yaml(raw: dict) -> None:
    space = parse_space(raw)
    for text in (json.loads(json.dumps(space.to_dict())), yaml.safe_load(yaml.safe_dump(space.to_dict(), sort_keys=False))):
        again = parse_space(text)
        assert again.to_dict() == space.to_dict()
        assert list(again.dims) == list(space.dims)


def test_parents_come_before_children_whatever_the_order_of_the_file() -> None:
    space = parse_space(
        {
            "method": "m",
            "space": {"c": {"int": [1, 2], "when": {"b": 1}}, "b": {"choice": [1, 2], "when": {"a": "x"}}, "a": {"choice": ["x", "y"]}},
        }
    )
    assert list(space.dims) == ["a", "b", "c"]
    assert space.walk(lambda name, _: {"a": "y", "b": 1, "c": 2}[name]) == {"a": "y"}  # c hangs on b, which is not there


def test_one_and_true_and_one_point_zero_are_three_choices() -> None:
    dimension = parse_space({"method": "m", "space": {"a": {"choice": [1, True, 1.0]}}}).dims["a"]
    assert len(dimension.distribution().choices) == 3
    assert Dimension("choice", choices=(1,)).holds(1)
    assert not Dimension("choice", choices=(1,)).holds(True)


def test_lists_are_choices_too() -> None:
    space = parse_space({"method": "m", "space": {"a": {"choice": [[1, 2], "all"]}}})
    seen = {json.dumps(sample(space, seed)[0]["a"]) for seed in range(30)}
    assert seen == {"[1, 2]", '"all"'}


def test_every_fault_is_said_at_once_with_its_key() -> None:
    raw = {
        "method": 3,
        "spaces": {},
        "space": {
            "a": {"choice": []},
            "b": {"int": [3, 1]},
            "c": {"float": ["1e-5", 1]},
            "d": {"float": [0, 1], "log": True},
            "e": {"int": [1, 2.5]},
            "f": {"int": [1, 2], "float": [1, 2]},
            "g": {"choice": [1, 1]},
            "h": {"int": [1, 9], "log": True, "step": 2},
            "i": {"int": [1, 2], "when": {"zz": 1}},
            "j": {"choice": [1, 2], "log": True},
            "k": {"range": [1, 2]},
        },
    }
    with pytest.raises(ConfigError) as caught:
        parse_space(raw, where="my.yaml")
    text = str(caught.value)
    for part in (
        "my.yaml",
        "spaces: unknown key; valid choices: method, description, defaults, space",
        "method: is missing",
        "space.a.choice",
        "space.b.int: the low end 3 is above",
        "write 1.0e-5",
        "space.d.float: with log the low end",
        "space.e.int: 2.5 is not a whole number",
        "space.f: exactly one of choice, int, float",
        "space.g.choice: a value stands there twice",
        "space.h: log and step",
        "space.j.log: only int and float",
        "space.k.range: unknown key",
    ):
        assert part in text, part


def test_an_unknown_parent_and_a_circle_are_named() -> None:
    with pytest.raises(ConfigError, match=r"space\.b\.when\.zz: no such parameter.*valid choices: a"):
        parse_space({"method": "m", "space": {"a": 1, "b": {"int": [1, 2], "when": {"zz": 1}}}})
    with pytest.raises(ConfigError, match="round in a circle"):
        parse_space({"method": "m", "space": {"a": {"int": [1, 2], "when": {"b": 1}}, "b": {"int": [1, 2], "when": {"a": 1}}}})


def test_a_default_that_is_not_searched_is_fixed() -> None:
    space = parse_space({"method": "m", "defaults": {"a": 1, "b": 5}, "space": {"a": {"int": [0, 3]}}})
    assert space.default_config() == {"a": 1, "b": 5}
    assert {sample(space, seed)[0]["b"] for seed in range(5)} == {5}


def test_fixed_parameters_of_an_experiment_replace_a_range() -> None:
    space = with_fixed(
        parse_space({"method": "m", "defaults": {"a": 1}, "space": {"a": {"int": [0, 3]}, "b": {"int": [0, 3], "when": {"a": 9}}}}),
        {"a": 9, "c": "x"},
    )
    config, _ = sample(space, 0)
    assert config["a"] == 9
    assert config["c"] == "x"
    assert "b" in config


def test_steps_end_at_the_last_value_that_they_reach() -> None:
    dimension = parse_space({"method": "m", "space": {"a": {"int": [1, 9], "step": 3}}}).dims["a"]
    assert (dimension.low, dimension.high) == (1, 7)
    assert [value for value in range(12) if dimension.holds(value)] == [1, 4, 7]


def test_files_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"pooled", "pooled_quick", "pooled_small", "pooled_text"} <= set(space_names())
    assert load_space("pooled").method == "pooled"
    with pytest.raises(UnknownNameError, match="Did you mean 'pooled'"):
        load_space("poled")
    with pytest.raises(MissingFileError):
        load_space("nowhere/x.yaml")
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "pooled.yaml").write_text("method: mine\n")
    assert load_space("pooled").method == "mine"  # the user's own comes first
    (tmp_path / "bad.yaml").write_text("method: [\n")
    with pytest.raises(ConfigError, match="line"):
        load_space("bad.yaml")


def test_a_space_without_a_default_says_so() -> None:
    with pytest.raises(ConfigError, match="'a' has no default"):
        parse_space({"method": "m", "space": {"a": {"int": [1, 2]}}}).default_config()
