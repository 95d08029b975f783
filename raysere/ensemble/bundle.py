"""The saved ensemble: ``ensemble.yaml`` and ``members/*.safetensors``. No pickle; hashes checked; the folder appears whole.

Everything that prediction needs is in the folder, backbones excepted: those are named, with the hash of their weights and
code, in the feature specs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from raysere.ensemble.calibration import Calibration
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.dimensional import AttributeFit
from raysere.ensemble.fit import AttributePart, ClassFit, Part
from raysere.ensemble.library import MemberInfo
from raysere.ensemble.protocols import Fitted
from raysere.ensemble.runs import Run
from raysere.errors import ConfigError, DataError, MissingFileError, RaysereError
from raysere.features.spec import FeatureSpec
from raysere.files import atomic_folder, digest, explain_write_errors, read_json, read_yaml, write_json, write_yaml
from raysere.training.task import Task

FORMAT = "raysere.ensemble/1"


@dataclass(frozen=True)
class Bundle:
    """A loaded ensemble, without its models.

    Attributes:
        parts: the fitted parts, mixed with equal shares.
        members: member id to its entry in ensemble.yaml (params, features, modality, weights file).
        specs: feature key to spec.
        weights: member id to the checked path of its tensors.
        record: ensemble.yaml as read.
    """

    folder: Path
    task: Task
    parts: list[Part]
    members: dict[str, dict[str, Any]]
    specs: dict[str, FeatureSpec]
    weights: dict[str, Path]
    record: dict[str, Any]


def save_ensemble(runs: Sequence[Run], fitted: Fitted, config: EnsembleConfig, folder: Path, evaluation: dict[str, Any]) -> None:
    """Write the fitted ensemble to ``folder``; one that is there is replaced only once the new one is whole.

    Raises MissingFileError where a member's tensors or a feature spec are gone, EnvironmentFault for a disk that is full.
    """
    folder = Path(folder)
    staged = folder.parent / f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.new"
    try:
        with atomic_folder(staged) as temporary:
            (temporary / "members").mkdir()
            write_yaml(temporary / "ensemble.yaml", _describe(runs, fitted, config, temporary, evaluation))
            write_json(temporary / "evaluation.json", evaluation)
        with explain_write_errors(folder):
            _replace(folder, staged)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _replace(folder: Path, staged: Path) -> None:
    """Put ``staged`` in the place of ``folder``. A kill between the two renames leaves the whole old one beside it."""
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


def _describe(runs: Sequence[Run], fitted: Fitted, config: EnsembleConfig, folder: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    task, by_name = runs[0].task, {run.name: run for run in runs}
    members: list[dict[str, Any]] = []
    features: dict[str, Any] = {}
    parts = []
    for number, part in enumerate(fitted.parts):
        parts.append(_part_record(number, part, len(fitted.parts), task))
        for member in part.members:
            run = by_name[member.run]
            streams = _streams(run, member, features)
            members.append({**_member_record(part, member, len(fitted.parts), task), "part": number, "features": streams,
                            "shapes": {name: _shape(features[key]["spec"]) for name, key in streams.items()},
                            **_copy_weights(run, member, folder)})
    families = sorted({part["family"] for part in parts if part["family"]} | {fit["family"] for part in parts for fit in part["attributes"].values()})
    metric = task.metric
    return {
        "format": FORMAT, "runs": [run.name for run in runs], "task": task.model_dump(mode="json"), "classes": list(task.classes),
        "family": ", ".join(families), "pool": config.pool, "synthetic": any(run.synthetic for run in runs),
        "licences": _licences(runs, features), "metrics": {metric: {**evaluation["ensemble"], "split": evaluation["split"]}},
        "evaluation": {key: evaluation.get(key) for key in ("n_utterances", "n_speakers", "best_single", "difference", "notes")},
        "config": config.model_dump(mode="json"), "parts": parts, "members": members, "features": features,
        "languages": sorted({str(name) for run in runs for name in run.manifest.table["language"].unique().to_list()}),
        "manifests": [run.manifest.fingerprint for run in runs], "versions": runs[0].settings.get("versions"),
    }


def _part_record(number: int, part: Part, count: int, task: Task) -> dict[str, Any]:
    fit = part.classes
    return {
        "number": number, "share": 1 / count, "family": fit.family if fit else None, "pool": fit.pool if fit else None,
        "choice": dict(fit.choice) if fit else {},
        "selection_prior": dict(zip(task.classes, fit.selection_prior.tolist())) if fit else {},
        "prior": dict(zip(task.classes, fit.prior.tolist())) if fit else {},
        "attributes": {task.attributes[one.index]: {"family": one.fit.family, "slope": float(one.fit.slope), "intercept": float(one.fit.intercept),
                                                    "kappa": one.fit.kappa, "choice": dict(one.choice)} for one in part.attributes},
    }


def _member_record(part: Part, member: MemberInfo, count: int, task: Task) -> dict[str, Any]:
    assert member.record is not None
    record = member.record
    shares: list[float] = []
    entry: dict[str, Any] = {"id": member.id, "trial": member.trial, "run": member.run, "study": member.study, "method": member.method,
                             "modality": member.modality, "space": record.space, "params": record.params, "resolved": record.resolved,
                             "selection_score": record.score, "transductive": bool(record.describe.get("transductive", False))}
    if part.classes is not None:
        found = [m for m, one in enumerate(part.classes.members) if one.id == member.id]
        weight = float(part.classes.weights[found[0]]) if found else 0.0
        shares.append(weight)
        calibration = part.classes.calibrations[found[0]] if found else Calibration.identity(len(task.classes))
        entry["classes"] = {"weight": weight, "temperature": float(calibration.temperature), "bias": dict(zip(task.classes, calibration.bias.tolist()))}
    entry["attributes"] = {}
    for one in part.attributes:
        found = [m for m, other in enumerate(one.members) if other.id == member.id]
        weight = float(one.fit.weights[found[0]] / one.fit.weights.sum()) if found else 0.0
        shares.append(weight)
        if found:
            entry["attributes"][task.attributes[one.index]] = {"weight": float(one.fit.weights[found[0]]), "mean": float(one.fit.mean[found[0]]), "sd": float(one.fit.sd[found[0]])}
    entry["weight"] = float(np.mean(shares)) / count
    return entry


def _streams(run: Run, member: MemberInfo, features: dict[str, Any]) -> dict[str, str]:
    """Stream name to feature key of a member; adds the configs and specs that are new to ``features``."""
    assert member.record is not None
    streams = {}
    for name in member.record.features:
        config = (run.settings.get("features") or {}).get(name)
        if config is None or "spec_key" not in config:
            raise ConfigError(f"The run {run.name} does not say what its features {name!r} are", where=run.folder / "experiment.yaml")
        key = config["spec_key"]
        streams[name] = key
        if key not in features:
            store = Path(run.settings["store"])
            store = store if store.is_absolute() else run.folder / store
            spec = FeatureSpec.from_json(read_json(store / key / "spec.json"), where=store / key / "spec.json")
            features[key] = {"config": {field: value for field, value in config.items() if field != "spec_key"}, "spec": spec.to_json()}
    return streams


def _shape(spec: dict[str, Any]) -> dict[str, Any]:
    read = FeatureSpec.from_json(spec)
    return {"modality": read.modality, "granularity": read.granularity, "kind": read.kind, "layers": {number: read.width(number) for number in read.numbers}}


def _copy_weights(run: Run, member: MemberInfo, folder: Path) -> dict[str, str]:
    assert member.record is not None
    source = member.record.folder / "model.safetensors"
    if not source.is_file():
        raise MissingFileError(f"The tensors of {member.id} are gone", where=source, remedy="Search again, or restore this file.")
    name = f"members/{re.sub(r'[^A-Za-z0-9._-]', '_', member.id)}-{digest(member.id, 6)}.safetensors"
    shutil.copyfile(source, folder / name)
    return {"weights": name, "sha256": file_hash(folder / name)}


def _licences(runs: Sequence[Run], features: dict[str, Any]) -> dict[str, Any]:
    """Licences of backbones and corpora, as far as they are known; they bind whoever passes the ensemble on."""
    from raysere.corpora.adapters import CORPORA
    from raysere.features.backbones import describe_backbone

    backbones, corpora = {}, {}
    for entry in features.values():
        name = entry["spec"]["backbone"]
        try:
            backbones[name] = describe_backbone(name, **entry["spec"].get("options", {})).licence
        except (RaysereError, ImportError):
            backbones[name] = "unknown"
    for run in runs:
        for corpus in run.settings.get("corpora") or []:
            try:
                corpora[corpus["corpus"]] = str(getattr(CORPORA.get(corpus["corpus"]), "licence", "unknown"))
            except RaysereError:
                corpora[corpus["corpus"]] = "unknown"
    return {"backbones": backbones, "corpora": corpora}


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file."""
    value = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value.update(block)
    return value.hexdigest()


# ---- reading -------------------------------------------------------------------------------------------------------------------


def load_ensemble(folder: str | os.PathLike[str]) -> Bundle:
    """Read and check a saved ensemble.

    Raises:
        MissingFileError: no ensemble there, or a member's file is gone.
        DataError: another format, a file that was changed since it was saved, a path that leaves the folder, numbers that make no sense.
    """
    folder = Path(folder)
    if not (folder / "ensemble.yaml").is_file():
        raise MissingFileError("There is no saved ensemble", where=folder, remedy="Name a folder that `raysere run` or `raysere ensemble` wrote, such as runs/NAME/ensemble.")
    record = read_yaml(folder / "ensemble.yaml")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise DataError(f"The format of this ensemble is {found!r}", where=folder / "ensemble.yaml", choices=[FORMAT], remedy="It was written by another version of raysere.")
    try:
        task = Task.model_validate(record["task"])
        if list(task.classes) != list(record["classes"]):
            raise DataError("The class order of this ensemble contradicts itself", where=folder / "ensemble.yaml")
        members = {entry["id"]: entry for entry in record["members"]}
        weights = {name: checked_path(folder, entry["weights"], entry["sha256"]) for name, entry in members.items()}
        specs = {key: FeatureSpec.from_json(entry["spec"], where=f"features.{key}") for key, entry in record["features"].items()}
        parts = [_read_part(part, [entry for entry in record["members"] if entry["part"] == part["number"]], task) for part in record["parts"]]
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        if isinstance(error, RaysereError):
            raise
        raise DataError(f"This ensemble.yaml is damaged: {type(error).__name__} {error}", where=folder / "ensemble.yaml") from error
    if not parts:
        raise DataError("This ensemble has no parts", where=folder / "ensemble.yaml")
    return Bundle(folder, task, parts, members, specs, weights, record)


def checked_path(folder: Path, name: str, sha256: str) -> Path:
    """The file ``name`` inside ``folder``. Raises DataError when it lies outside or was changed, MissingFileError when it is gone."""
    root = folder.resolve()
    path = (root / str(name)).resolve()
    if not path.is_relative_to(root) or path.suffix != ".safetensors":
        raise DataError(f"The ensemble names a file outside its folder: {name}", where=folder / "ensemble.yaml", remedy="Do not use this ensemble: it was tampered with.")
    if not path.is_file():
        raise MissingFileError(f"A member of the ensemble is missing: {name}", where=folder)
    if file_hash(path) != sha256:
        raise DataError(f"A member of the ensemble was changed since it was saved: {name}", where=folder, remedy="Save the ensemble again: `raysere evaluate RUN`.")
    return path


def _read_part(part: dict[str, Any], entries: list[dict[str, Any]], task: Task) -> Part:
    infos = {entry["id"]: MemberInfo(entry["trial"], entry["run"], entry["modality"], entry["method"], entry["study"]) for entry in entries}
    classes = None
    if task.categorical:
        used = [entry for entry in entries if entry["classes"]["weight"] > 0]
        classes = ClassFit(
            tuple(infos[entry["id"]] for entry in used), _positive([entry["classes"]["weight"] for entry in used]),
            tuple(Calibration(float(_positive([entry["classes"]["temperature"]])[0]), _by_name(entry["classes"]["bias"], task)) for entry in used),
            part["pool"], _positive(_by_name(part["selection_prior"], task)), _positive(_by_name(part["prior"], task)), part["family"], tuple(part["choice"].items()))
    attributes = []
    for index, name in enumerate(task.attributes if task.dimensional else ()):
        fit = part["attributes"][name]
        used = [entry for entry in entries if name in entry["attributes"]]
        numbers = {key: np.array([entry["attributes"][name][key] for entry in used], np.float64) for key in ("weight", "mean", "sd")}
        attributes.append(AttributePart(tuple(infos[entry["id"]] for entry in used), index,
                                        AttributeFit(_positive(numbers["weight"]), numbers["mean"], _positive(numbers["sd"]), float(fit["slope"]), float(fit["intercept"]),
                                                     float(fit["kappa"]), task.scale, fit["family"]), tuple(fit["choice"].items())))
    return Part(classes, tuple(attributes))


def _by_name(values: dict[str, float], task: Task) -> np.ndarray:
    """Values in the task's class order, whatever the order in the file."""
    return np.array([values[name] for name in task.classes], np.float64)


def _positive(values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not len(array) or not np.isfinite(array).all() or (array <= 0).any():
        raise ValueError("weights, temperatures, deviations and priors are positive numbers")
    return array
