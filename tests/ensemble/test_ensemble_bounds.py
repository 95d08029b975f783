"""An ensemble.yaml that somebody else wrote: its numbers are numbers that can be computed with, its
lists are of a size, its models fit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysere.base.errors import DataError, RaysereError
from raysere.base.files import to_yaml
from raysere.ensemble.evaluate.evaluation import evaluate
from raysere.ensemble.saved.read import load_ensemble
from tests.bombs import opened


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, toy: Any) -> Path:
    run = toy.run(
        tmp_path_factory.mktemp("bounds") / "run",
        skills=[("speech", 0.9), ("speech", 1.1), ("text", 1.0)],
        kind="both",
        ensemble={"family": "average", "dimensional": "nnls"},
    )
    toy.features(run.folder, ["speech", "text"])
    evaluate(run.folder)
    return run.folder / "ensemble"


def first(record: dict[str, Any]) -> dict[str, Any]:
    return record["members"][0]["classes"]


def attribute(record: dict[str, Any]) -> dict[str, Any]:
    return next(iter(next(entry["attributes"] for entry in record["members"] if entry["attributes"]).values()))


def set_(where: Callable[[Any], dict[str, Any]], key: str, value: Any) -> Callable[[Any], None]:
    return lambda record: where(record).__setitem__(key, value)


NUMBERS: dict[str, tuple[Callable[[Any], None], str]] = {
    "weight NaN": (set_(first, "weight", float("nan")), "a weight is a number from 0 on"),
    "weight below 0": (set_(first, "weight", -1.0), "a weight is a number from 0 on"),
    "weight beyond": (set_(first, "weight", 1e300), "a weight is a number from 0 on"),
    "temperature": (set_(first, "temperature", 1e-300), "1e-300 does not"),
    "temperature beyond": (set_(first, "temperature", 1e300), "1e\\+300 does not"),
    "temperature of the pool": (set_(lambda record: record["parts"][0], "temperature", 1e-300), "1e-300 does not"),
    "bias": (lambda record: first(record)["bias"].update(anger=1e300), "numbers between"),
    "weight of an attribute": (lambda record: attribute(record).update(weight=float("nan")), "nan does not"),
    "deviation": (lambda record: attribute(record).update(sd=1e-300), "1e-300 does not"),
    "slope": (lambda record: next(iter(record["parts"][0]["attributes"].values())).update(slope=1e300), "numbers between"),
    "one file for two": (
        lambda record: record["members"][1].update(weights=record["members"][0]["weights"], sha256=record["members"][0]["sha256"]),
        "one file of weights",
    ),
    "classes": (
        lambda record: (record["task"].update(classes=[str(n) for n in range(2000)]), record.update(classes=[str(n) for n in range(2000)])),
        "classes of an ensemble",
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(saved: Path, name: str) -> None:
    change, said = NUMBERS[name]
    path = saved / "ensemble.yaml"
    kept = path.read_text()
    record = yaml.safe_load(kept)
    change(record)
    path.write_text(to_yaml(record))
    try:
        with pytest.raises(DataError, match=said) as caught:
            load_ensemble(saved)
    finally:
        path.write_text(kept)
    assert "ensemble.yaml" in str(caught.value)


def with_parts(saved: Path, folder: Path, count: int) -> None:
    """The saved ensemble with so many parts, each with members of its own."""
    import shutil

    record = yaml.safe_load((saved / "ensemble.yaml").read_text())
    shutil.copytree(saved, folder)
    parts, members = record["parts"], record["members"]
    record["parts"] = [{**copy.deepcopy(parts[0]), "number": number} for number in range(count)]
    record["members"] = []
    for number in range(count):
        for member in members if count <= 1000 else []:
            name = f"members/{number}-{Path(member['weights']).name}"
            shutil.copyfile(saved / member["weights"], folder / name)
            record["members"].append({**copy.deepcopy(member), "id": f"{number}-{member['id']}", "part": number, "weights": name})
    (folder / "ensemble.yaml").write_text(to_yaml(record))


def test_a_hundred_parts_open(saved: Path, tmp_path: Path) -> None:
    with_parts(saved, tmp_path / "ensemble", 100)
    assert len(load_ensemble(tmp_path / "ensemble").parts) == 100


def test_twenty_thousand_parts_do_not(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "ensemble.yaml"
    record = yaml.safe_load((saved / "ensemble.yaml").read_text())
    for count, said in ((1500, "parts of an ensemble"), (20_000, "values in YAML")):
        path.write_text(
            to_yaml({**record, "parts": [{"number": number, "pool": "mean", "family": "x", "k": [1] * 30} for number in range(count)]})
        )
        kind, message = opened("from raysere.ensemble.saved.read import load_ensemble", "load_ensemble(path.rpartition('/')[0])", path)
        assert kind in ("DataError", "ConfigError"), message
        assert said in message
        assert "ensemble.yaml" in message


def test_a_model_of_terabytes_is_not_built() -> None:
    import torch

    from raysere.features.spec import StreamShape
    from raysere.methods import METHODS
    from raysere.training.method import Shapes
    from raysere.training.predictor import load_predictor
    from raysere.training.task import Task

    method = METHODS.get("pooled")()
    shapes = Shapes(Task(classes=("a", "b")), {"speech": StreamShape("audio", {0: 10**12}, 1, "utterance")})
    state = {"fold0.model.x": torch.zeros(2)}
    with pytest.raises(RaysereError, match="The tensors are not those of this model"):
        load_predictor(method, {}, shapes, state)
