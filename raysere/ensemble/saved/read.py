"""Save and load an ensemble: ``ensemble.yaml``, ``card.md`` and ``members/*.safetensors``.

Everything that prediction needs is in the folder, backbones excepted: those are named, with the
hash of their weights and code, in the feature specs.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from raysere.base.bounds import refusal
from raysere.base.errors import DataError, MissingFileError, RaysereError
from raysere.base.files import atomic_folder, explain_write_errors, file_hash, write_json
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.data.predictions import MemberInfo
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.fit.answers import Fitted
from raysere.ensemble.fit.attributes import AttributeFit, AttributeRanks
from raysere.ensemble.fit.calibration import Calibration
from raysere.ensemble.fit.classes import POOL_NAMES, ClassFit
from raysere.ensemble.fit.offsets import LADDER
from raysere.ensemble.fit.part import AttributePart, OuterFit
from raysere.ensemble.fit.pools import KNOTS, RankReference
from raysere.ensemble.fit.stacking import Stack
from raysere.ensemble.saved.card import write_card
from raysere.ensemble.saved.check import checked_files, read_description, write_description
from raysere.ensemble.saved.write import FORMATS, describe
from raysere.features.spec import FeatureSpec
from raysere.training.task import Task

_PARTS, _MEMBERS, _CLASSES, _FEATURES = 1000, 5000, 1000, 1000  # parts: a fold of a run each; far more than anybody searches
_TINY, _SMALLEST, _LARGEST = 1e-300, 1e-15, 1e15  # of any number in an ensemble: logits divided by two temperatures stay within float32


@dataclass(frozen=True)
class Bundle:
    """A loaded ensemble, without its models.

    Attributes:
        parts: the fitted parts, mixed with equal shares.
        members: member id to its entry in ensemble.yaml (params, features, modality, weights file).
        specs: feature key to spec.
        weights: member id to the checked path of its tensors.
        record: ensemble.yaml as read.
        fingerprint: hash of ensemble.yaml, which holds the hashes of all else: it names this
            ensemble in answers and logs.
    """

    folder: Path
    task: Task
    parts: list[OuterFit]
    members: dict[str, dict[str, Any]]
    specs: dict[str, FeatureSpec]
    weights: dict[str, Path]
    record: dict[str, Any]
    fingerprint: str = ""


def save_ensemble(runs: Sequence[Run], fitted: Fitted, config: EnsembleConfig, folder: Path, evaluation: dict[str, Any]) -> None:
    """Write the fitted ensemble to ``folder``; one that is there is replaced only once the new one
    is whole.

    Raises MissingFileError where a member's tensors or a feature spec are gone, EnvironmentFault
    for a disk that is full.
    """
    folder = Path(folder)
    staged = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.new"
    try:
        with atomic_folder(staged) as temporary:
            (temporary / "members").mkdir()
            record = describe(runs, fitted, config, temporary, evaluation)
            (temporary / "card.md").write_text(write_card(record, evaluation), encoding="utf-8")
            write_json(temporary / "evaluation.json", evaluation)
            write_description(temporary, record)
        with explain_write_errors(folder):
            _replace(folder, staged)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _replace(folder: Path, staged: Path) -> None:
    """Put ``staged`` in the place of ``folder``.

    A kill between the two renames leaves the whole old one beside it.
    """
    if not folder.exists():
        os.rename(staged, folder)
        return
    old = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.old"
    os.rename(folder, old)
    try:
        os.rename(staged, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


# ---- reading -------------------------------------------------------------------------------------


def load_ensemble(folder: str | os.PathLike[str]) -> Bundle:
    """Read and check a saved ensemble.

    Raises:
        MissingFileError: no ensemble there, or a member's file is gone.
        DataError: another format, a file that was changed since it was saved, a path that leaves
            the folder, numbers that make no sense.
    """
    folder = Path(folder)
    if not (folder / "ensemble.yaml").is_file():
        raise MissingFileError(
            "There is no saved ensemble",
            where=folder,
            remedy="Name a folder that `raysere run` or `raysere ensemble` wrote, such as runs/NAME/ensemble.",
        )
    fingerprint = file_hash(folder / "ensemble.yaml")[:16]
    record = read_description(folder)
    if not isinstance(record, dict) or record.get("format") not in FORMATS:
        found = record.get("format") if isinstance(record, dict) else None
        raise DataError(
            f"The format of this ensemble is {found!r}",
            where=folder / "ensemble.yaml",
            choices=list(FORMATS),
            remedy="It was written by another version of raysere.",
        )
    try:
        task = Task.model_validate(record["task"])
        if list(task.classes) != list(record["classes"]):
            raise DataError("The class order of this ensemble contradicts itself", where=folder / "ensemble.yaml")
        for what, most in (("parts", _PARTS), ("members", _MEMBERS), ("classes", _CLASSES), ("features", _FEATURES)):
            if len(record[what]) > most:
                raise refusal(f"{what} of an ensemble", len(record[what]), most, where=folder / "ensemble.yaml")
        members = {entry["id"]: entry for entry in record["members"]}
        if len({str(entry["weights"]) for entry in members.values()}) < len(record["members"]):
            raise ValueError("two members have one id or one file of weights")
        weights = checked_files(folder, record)
        specs = {key: FeatureSpec.from_json(entry["spec"], where=f"features.{key}") for key, entry in record["features"].items()}
        for entry in record["members"]:
            _check_member(entry, specs)
        of_part: dict[int, list[dict[str, Any]]] = {int(part["number"]): [] for part in record["parts"]}
        for entry in record["members"]:
            if entry["part"] in of_part:
                of_part[entry["part"]].append(entry)
        parts = [_read_part(part, of_part[part["number"]], task) for part in record["parts"]]
    except (AttributeError, KeyError, TypeError, ValueError, ValidationError, OverflowError, OSError) as error:
        if isinstance(error, RaysereError):
            raise
        raise DataError(f"This ensemble.yaml is damaged: {type(error).__name__} {error}", where=folder / "ensemble.yaml") from error
    if not parts:
        raise DataError("This ensemble has no parts", where=folder / "ensemble.yaml")
    if file_hash(folder / "ensemble.yaml")[:16] != fingerprint:
        raise DataError("This ensemble was replaced while it was read", where=folder, remedy="Read it again.")
    return Bundle(folder, task, parts, members, specs, weights, record, fingerprint)


def _check_member(entry: dict[str, Any], specs: dict[str, FeatureSpec]) -> None:
    """What is read only when the member predicts. Raises ValueError."""
    for key, kind in (("id", str), ("trial", str), ("run", str), ("method", str), ("modality", str), ("features", dict), ("params", dict)):
        if not isinstance(entry[key], kind):
            raise ValueError(f"{key} of a member is {entry[key]!r}")
    if not isinstance(entry.get("resolved") or {}, dict):
        raise ValueError(f"resolved of {entry['id']} is {entry['resolved']!r}")
    if unknown := [key for key in entry["features"].values() if key not in specs]:
        raise ValueError(f"{entry['id']} reads the features {unknown[0]!r}, which are not described")


def _read_part(part: dict[str, Any], entries: list[dict[str, Any]], task: Task) -> OuterFit:
    infos = {entry["id"]: MemberInfo(entry["trial"], entry["run"], entry["modality"], entry["method"], entry["study"]) for entry in entries}
    classes = None
    if task.categorical:
        used = [entry for entry in entries if _weight(entry["classes"]["weight"]) > 0]
        if part["pool"] not in POOL_NAMES:
            raise ValueError(f"pool is {part['pool']!r}")
        if part.get("ladder", "none") not in LADDER:
            raise ValueError(f"ladder is {part['ladder']!r}")
        classes = ClassFit(
            tuple(infos[entry["id"]] for entry in used),
            _positive([entry["classes"]["weight"] for entry in used], _TINY),
            tuple(_read_calibration(entry["classes"], task) for entry in used),
            part["pool"],
            _positive(_by_name(part["selection_prior"], task)),
            _positive(_by_name(part["prior"], task)),
            part["family"],
            tuple(part["choice"].items()),
            _number(part.get("temperature", 1.0)),
            **_read_extras(part, [entry["classes"] for entry in used], task),
        )
    attributes = []
    for index, name in enumerate(task.attributes if task.dimensional else ()):
        fit = part["attributes"][name]
        slope, intercept, kappa = _finite([fit["slope"], fit["intercept"], fit["kappa"]]).tolist()
        used = [entry for entry in entries if name in entry["attributes"]]
        numbers = {key: np.array([entry["attributes"][name][key] for entry in used], np.float64) for key in ("weight", "mean", "sd")}
        attributes.append(
            AttributePart(
                tuple(infos[entry["id"]] for entry in used),
                index,
                AttributeFit(
                    _positive(numbers["weight"], _TINY),
                    _finite(numbers["mean"]),
                    _positive(numbers["sd"]),
                    slope,
                    intercept,
                    kappa,
                    task.scale,
                    fit["family"],
                    _read_attribute_ranks(fit, [entry["attributes"][name] for entry in used]),
                ),
                tuple(fit["choice"].items()),
            )
        )
    return OuterFit(classes, tuple(attributes))


def _read_calibration(entry: dict[str, Any], task: Task) -> Calibration:
    votes = _table(entry["votes"], task).astype(np.float32) if "votes" in entry else None
    return Calibration(_number(entry["temperature"]), _finite(_by_name(entry["bias"], task)), votes)


def _read_extras(part: dict[str, Any], entries: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """What only the second format has.

    Raises ValueError for a stack or a rank pool that is not whole.
    """
    found: dict[str, Any] = {"estimate": bool(part.get("estimate_prior", False)), "ladder": part.get("ladder", "none")}
    if "offsets" in part:
        found["offsets"] = _finite(_by_name(part["offsets"], task))
    if part["pool"] == "stack":
        blocks = np.stack([_table(entry["stack"], task) for entry in entries])
        found["stack"] = Stack(blocks, _finite(_by_name(part["stack"]["intercept"], task)), _number(part["stack"]["penalty"]))
    if part["pool"] == "rank":
        knots = np.stack([[_knots(entry["knots"][name]) for name in task.classes] for entry in entries]).astype(np.float32)
        found["ranks"], found["scale"] = RankReference(knots), _read_calibration(part["rank_scale"], task)
    return found


def _read_attribute_ranks(fit: dict[str, Any], entries: list[dict[str, Any]]) -> AttributeRanks | None:
    if "ranks" not in fit:
        return None
    knots = np.stack([_knots(entry["knots"]) for entry in entries])
    return AttributeRanks(knots, _knots(fit["ranks"]["pool"]), _knots(fit["ranks"]["labels"]))


def _knots(values: Any) -> np.ndarray:
    array = _finite(values)
    if array.shape != KNOTS.shape or (np.diff(array) < 0).any():
        raise ValueError(f"a rank reference has {len(KNOTS)} numbers that do not fall")
    return array


def _table(values: dict[str, dict[str, float]], task: Task) -> np.ndarray:
    return _finite(np.stack([_by_name(values[name], task) for name in task.classes]))


def _by_name(values: dict[str, float], task: Task) -> np.ndarray:
    """Values in the task's class order, whatever the order in the file."""
    return np.array([values[name] for name in task.classes], np.float64)


def _weight(value: Any) -> float:
    """A member's weight; 0 where it takes no part.

    NaN is above nothing, so that without this such a member would go without a word.
    """
    if not 0 <= float(value) <= _LARGEST:
        raise ValueError(f"a weight is a number from 0 on, not {value!r}")
    return float(value)


def _positive(values: Any, least: float = _SMALLEST) -> np.ndarray:
    """Above 0, and such that neither they nor what is divided by them overflows."""
    array = np.asarray(values, np.float64)
    if not len(array) or not ((array >= least) & (array <= _LARGEST)).all():
        shown = next((value for value in array.ravel().tolist() if not least <= value <= _LARGEST), "none at all")
        raise ValueError(f"weights, temperatures, deviations and priors lie between {least:g} and {_LARGEST:g}: {shown!r} does not")
    return array


def _number(value: Any) -> float:
    return float(_positive([value])[0])


def _finite(values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not (np.abs(array) <= _LARGEST).all():
        raise ValueError(f"biases, means, slopes and intercepts are numbers between {-_LARGEST:g} and {_LARGEST:g}")
    return array
