"""Files that ship beside the code: experiments and search spaces load, the README's facts hold."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import click
import pytest
from pydantic import BaseModel, TypeAdapter

from raysere.pipeline.experiment import load_experiment

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_shipped_experiment_is_valid_and_named_after_its_file(path):
    assert load_experiment(path).name == path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_shipped_space_fits_its_method_and_starts_with_the_published_default(path):
    from raysere.methods import METHODS
    from raysere.search.space.grammar import load_space

    space = load_space(path)
    method = METHODS.get(space.method)
    assert set(space.dims) <= set(method.Params.model_fields)
    method.Params(**space.defaults)


def test_the_constraints_name_exact_versions_and_no_place():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!-]+", line), line


def test_every_command_of_the_readme_exists_and_has_an_example():
    from raysere.cli.main import cli

    readme = (ROOT / "README.md").read_text()
    lines = re.findall(r"^raysere (\w+)|`raysere ([\w |\\]+?)[`A-Z ]", readme, re.M)
    named = {word for line in lines for part in line for word in re.findall(r"\w+", part)}
    assert named - {"doctor"} <= set(cli.commands) | {"table"}, named
    for name, command in cli.commands.items():
        assert f"Example: raysere {name}" in (command.help or ""), name


def test_the_help_is_whole_and_every_option_says_what_it_does():
    from raysere.cli.main import cli
    from raysere.ensemble.config import ATTRIBUTE_FAMILIES, FAMILIES

    top = click.Context(cli, info_name="raysere", terminal_width=80, max_content_width=80)
    groups = {"raysere": cli, **{name: one for name, one in cli.commands.items() if isinstance(one, click.Group)}}
    for name, group in groups.items():
        shown = group.get_help(click.Context(group, info_name=name, parent=None if group is cli else top, terminal_width=80))
        assert "..." not in shown.split("Commands:")[1], shown  # a summary that is cut says half
    commands = {f"{name} {inner}": one for name, group in groups.items() for inner, one in group.commands.items()}
    for name, command in commands.items():
        for option in (one for one in command.params if isinstance(one, click.Option)):
            assert option.help, (name, option.opts)
    options = {name: {opt for one in command.params for opt in one.opts} for name, command in commands.items()}
    assert {name for name, names in options.items() if "--retry-errors" in names} == {"raysere run", "raysere tune"}  # what has trials
    family = cli.commands["ensemble"].help
    assert family
    assert set(re.findall(r"^ +([a-z_]+)  ", family, re.M)) == {"auto", *FAMILIES, *ATTRIBUTE_FAMILIES}
    (choices,) = (one.type.choices for one in cli.commands["ensemble"].params if one.name == "family")
    assert set(choices) == {"auto", *FAMILIES, *ATTRIBUTE_FAMILIES}


def test_the_extras_that_the_readme_and_the_doctor_name_exist():
    from raysere.cli.doctor import EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= set(project["optional-dependencies"])
    assert project["version"] == __import__("raysere").__version__


def test_the_way_of_a_clip_names_functions_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= 150
    way = text.split("## From one clip to the report")[1].split("\n## ")[0]
    assert len(re.findall(r"^\d+\. ", way, re.M)) <= 15
    calls = re.findall(r"`([a-z_]+(?:\.\w+)+)\(", way)
    assert len(calls) >= 14
    for call in calls:
        parts = f"raysere.{call}".split(".")
        count = max(n for n in range(1, len(parts)) if (ROOT.joinpath(*parts[:n]).with_suffix(".py").is_file() or n == 1))
        found = importlib.import_module(".".join(parts[:count]))
        for name in parts[count:]:
            found = getattr(found, name)
        assert callable(found), call


def test_pages_written_from_the_code_are_those_of_the_code():
    found = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_example_of_a_key_is_a_value_that_it_takes():
    from raysere.corpora.splits import Protocol
    from raysere.ensemble.config import EnsembleConfig
    from raysere.features.spec import FeatureConfig
    from raysere.pipeline import experiment

    own = [one for one in vars(experiment).values() if isinstance(one, type) and issubclass(one, BaseModel) and one.model_fields]
    tried = 0
    for model in {*own, Protocol, EnsembleConfig, FeatureConfig}:
        for name, field in model.model_fields.items():
            for example in field.examples or ():
                TypeAdapter(Annotated[field.annotation, "", *field.metadata]).validate_python(example)
                tried += example != field.get_default(call_default_factory=True) or pytest.fail(f"{model.__name__}.{name}: the default")
    assert tried > 60
