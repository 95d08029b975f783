"""The experiment file: what a user writes, what is refused, and what the refusal says."""

from __future__ import annotations

import pytest
import yaml

from raysere.base.errors import ConfigError, MissingFileError
from raysere.pipeline.experiment import Experiment, load_experiment

GOOD = {
    "name": "toy",
    "corpora": [{"corpus": "emodb", "path": "corpus"}],
    "task": {"classes": "emodb4"},
    "features": {"acoustic": {"backbone": "acoustic"}},
    "search": [{"space": "pooled", "features": "acoustic", "trials": 3}],
}


def write(tmp_path, **changes):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def test_the_short_form_is_enough_and_defaults_are_filled(tmp_path):
    (tmp_path / "corpus").mkdir()
    experiment = load_experiment(write(tmp_path))
    assert experiment.task.kind == "categorical"
    assert experiment.resolved_task(None).metric == "uar"
    assert experiment.search[0].study == "pooled-acoustic"
    assert experiment.corpora[0].path == str(tmp_path / "corpus")  # relative to the experiment file
    assert experiment.run_folder.as_posix() == "runs/toy"


def test_the_name_comes_from_the_file(tmp_path):
    path = write(tmp_path)
    path.write_text(yaml.safe_dump({key: value for key, value in GOOD.items() if key != "name"}))
    assert load_experiment(path).name == "toy"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"serch": []}, ["serch", "unknown key", "search"]),
        ({"trial": {"cpus": 2}}, ["trial.cpus", "unknown key", "cpu, ", "did you mean 'cpu'"]),
        ({"search": [{"space": "pooled", "features": "acoustic", "trails": 3}]}, ["search.0.trails", "did you mean 'trials'"]),
        ({"search": [{"space": "pooled", "features": "speech"}]}, ["unknown feature 'speech'", "acoustic"]),
        ({"search": [{"space": "pooled", "features": "acoustic"}] * 2}, ["both called 'pooled-acoustic'"]),
        ({"search": [{"space": "pooled", "features": "acoustic", "trials": 0}]}, ["search.0.trials", "it is 0"]),
        ({"task": {"kind": "categorical"}}, ["classes"]),
        ({"task": {"kind": "dimensional", "metric": "uar"}}, ["ccc"]),
        ({"task": {"kind": "categories", "classes": "emodb4"}}, ["task.kind", "dimensional"]),
        ({"trial": {"gpu": 0.3}}, ["1/k"]),
        ({"name": "a/b"}, ["name", "folder"]),
        ({"features": {"acoustic": {"backbone": "acoustic", "granularity": "frames"}}}, ["features.acoustic.granularity", "chunk"]),
        ({"protocol": {"kind": "leave"}}, ["protocol", "nested"]),
        ({"ensemble": {"family": "forest"}}, ["ensemble.family", "greedy"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_valid_choices(tmp_path, changes, words):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, **changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(tmp_path, sed=1, seed=-1, trial={"cpu": 0}))
    assert all(word in str(caught.value) for word in ("sed", "seed", "trial.cpu"))


def test_overrides_reach_into_lists_and_are_yaml(tmp_path):
    experiment = load_experiment(write(tmp_path), ["search.0.trials=7", "trial.gpu=0.25", "search.0.fixed={epochs: 3}", "halving=null"])
    assert experiment.search[0].trials == 7
    assert experiment.search[0].fixed == {"epochs": 3}
    assert experiment.trial.gpu == 0.25
    assert experiment.halving is None
    for wrong in ("search.9.trials=1", "trials", "search.0.trials=[1"):
        with pytest.raises(ConfigError, match="--set"):
            load_experiment(write(tmp_path), [wrong])


def test_environment_variables_are_expanded_or_missed_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSERE_TOY", str(tmp_path))
    path = write(tmp_path, corpora=[{"corpus": "emodb", "path": "${RAYSERE_TOY}/${RAYSERE_NONE:-fallback}"}])
    assert load_experiment(path).corpora[0].path == str(tmp_path / "fallback")
    with pytest.raises(ConfigError, match="RAYSERE_NONE is not set"):
        load_experiment(write(tmp_path, corpora=[{"corpus": "emodb", "path": "${RAYSERE_NONE}"}]))


SECRETS = ["SECRET", "HF_TOKEN", "MyToken", "DB_PASSWORD", "DB_PASS", "API_KEY", "AWS_SECRET_ACCESS_KEY", "CLIENT_SECRET_ID", "CREDENTIALS"]
PLACES = [
    {"corpora": [{"corpus": "emodb", "path": "/data/${@}/emodb"}]},
    {"corpora": [{"corpus": "emodb", "path": "corpus", "options": {"login": ["user", "${@:-none}"]}}]},
    {"name": "${@}"},
    {"features": {"acoustic": {"backbone": "hf:org/model@${@}"}}},
    {"search": [{"space": "${@}", "features": "acoustic", "trials": "${@}"}]},
    {"serch": "${@}"},
    {"runs": "${@}"},
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_goes_no_further_than_its_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "hunter2")
    for changes in PLACES:
        path = write(tmp_path, **changes)
        path.write_text(path.read_text().replace("${@", "${" + name))
        with pytest.raises(ConfigError, match=f"must not hold secrets.* {name} ") as caught:
            load_experiment(path)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="must not hold secrets"):
        load_experiment(write(tmp_path), [f"corpora.0.options.login=${{{name}}}"])


@pytest.mark.parametrize(
    "name", ["RAYSERE_CORPORA", "TOKENIZER_FOLDER", "MONKEYS", "MONKEY", "PWD", "KEYWORDS", "AUTHOR", "PASSAGES", "USER"]
)
def test_other_variables_are_no_secrets(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "/data")
    corpora = [{"corpus": "emodb", "path": f"${{{name}}}/emodb"}]
    assert load_experiment(write(tmp_path, corpora=corpora)).corpora[0].path == "/data/emodb"


def test_a_missing_or_shapeless_file_is_said(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.yaml"):
        load_experiment(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="raysere init"):
        load_experiment(tmp_path / "list.yaml")


def test_what_may_not_change_between_two_starts_of_a_run(tmp_path):
    first = load_experiment(write(tmp_path))
    assert load_experiment(write(tmp_path, search=[{**GOOD["search"][0], "trials": 9}])).frozen_part() == first.frozen_part()
    assert load_experiment(write(tmp_path, seed=1)).frozen_part() != first.frozen_part()
    assert load_experiment(write(tmp_path, task={"classes": "emodb7"})).frozen_part() != first.frozen_part()


def test_the_schema_names_every_key():
    assert set(Experiment.model_json_schema()["properties"]) == set(Experiment.model_fields)
