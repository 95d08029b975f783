"""Errors, files, registry and progress: what everything else stands on."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import raysere
from raysere.base.errors import ConfigError, DataError, EnvironmentFault, InfeasibleTrial, MissingFileError, UnknownNameError
from raysere.base.files import (
    atomic_folder,
    atomic_write,
    canonical_json,
    digest,
    explain_write_errors,
    read_json,
    read_yaml,
    write_json,
    write_yaml,
)
from raysere.base.progress import Progress
from raysere.base.registry import Registry

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("kind", "standard", "code"),
    [
        (ConfigError, ValueError, 2),
        (DataError, ValueError, 2),
        (MissingFileError, FileNotFoundError, 2),
        (EnvironmentFault, OSError, 3),
        (InfeasibleTrial, RuntimeError, 2),
    ],
)
def test_each_error_is_the_standard_error_it_is_and_says_what_where_and_what_to_do(kind, standard, code):
    error = kind("It broke", where="a.yaml, key b", remedy="Mend it.", choices=["x", "y"])
    assert isinstance(error, standard)
    assert error.exit_code == code
    assert str(error) == "It broke. Where: a.yaml, key b. Valid choices: x, y. Mend it."


def test_errors_survive_a_process_border():
    error = pickle.loads(pickle.dumps(UnknownNameError("method", "poled", ["pooled"], where="space")))  # noqa: S301  as Ray does
    assert isinstance(error, UnknownNameError)
    assert isinstance(error, KeyError)
    assert "Did you mean 'pooled'?" in str(error)
    assert error.where == "space"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    def fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert read_json(target) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fail() -> None:
        with atomic_folder(tmp_path / "shard") as folder:
            (folder / "one").write_text("1")
            assert not (tmp_path / "shard").exists()
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "shard") as folder:
        (folder / "one").write_text("1")
    assert (tmp_path / "shard" / "one").read_text() == "1"


def test_a_full_disk_is_said_in_words(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"disk is full.*Free space"):
        with explain_write_errors(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="strange"), explain_write_errors(tmp_path):
        raise OSError(errno.EBUSY, "strange")


def test_digest_is_of_the_content_not_of_the_key_order():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1}) != digest({"a": 1, "b": [3, 2]})
    assert canonical_json({"b": None, "a": "ü"}) == '{"a":"ü","b":null}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_yaml_faults_name_line_and_column(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(ConfigError, match="line 3"):
        read_yaml(tmp_path / "bad.yaml")
    with pytest.raises(MissingFileError, match=r"no file 'none.yaml'"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "evil.yaml").write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError):
        read_yaml(tmp_path / "evil.yaml")
    write_yaml(tmp_path / "good.yaml", {"z": 1, "a": ["ä"]})
    assert list(read_yaml(tmp_path / "good.yaml")) == ["z", "a"]


def test_a_registry_lists_its_names_and_refuses_a_second_owner():
    registry = Registry("method", "raysere.no-such-group", {"json": "json:dumps"})
    assert registry.names() == ["json"]
    assert registry.get("json") is json.dumps
    with pytest.raises(UnknownNameError, match="Valid choices: json"):
        registry.get("jsn")
    registry.register("mine", 1)
    with pytest.raises(ConfigError, match="registered already"):
        registry.register("mine", 2)


def test_progress_prints_plain_lines_where_there_is_no_terminal(capsys):
    with Progress(every_s=0) as progress:
        progress.start("extract", total=2, done=1)
        progress.advance("extract", note="note")
    assert capsys.readouterr().err.splitlines() == ["extract: 1 of 2 done at the start", "extract: 2 of 2 (100 %), 0 s, note"]


def test_importing_raysere_loads_neither_torch_nor_ray():
    code = (
        "import sys, raysere; raysere.load_experiment; print([m for m in ('torch', 'ray', 'transformers', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_what_it_says_whatever_was_imported_before():
    for path in (ROOT / "raysere").iterdir():
        assert path.stem not in raysere.__all__, f"{path.name} would hide raysere.{path.stem}"
    for name in raysere.__all__:
        assert getattr(raysere, name), name


def test_every_name_of_every_registry_leads_to_an_object():
    from raysere.corpora.adapters import CORPORA
    from raysere.features.backbones import BACKBONES
    from raysere.methods import METHODS

    for registry in (CORPORA, BACKBONES, METHODS):
        assert len(registry.names()) >= 4
        for name in registry.names():
            assert registry.get(name), name
