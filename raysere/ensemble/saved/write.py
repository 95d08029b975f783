"""The content of ``ensemble.yaml``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raysere.base.errors import ConfigError, DataError, MissingFileError, RaysereError
from raysere.base.files import digest, file_hash, read_json
from raysere.ensemble.config import EnsembleConfig
from raysere.ensemble.data.predictions import MemberInfo
from raysere.ensemble.data.run_labels import Run
from raysere.ensemble.fit.answers import Fitted
from raysere.ensemble.fit.calibration import Calibration
from raysere.ensemble.fit.classes import ClassFit
from raysere.ensemble.fit.part import OuterFit
from raysere.features.spec import FeatureSpec
from raysere.training.task import Task

#: The second is written where an ensemble has what a reader of the first would not see: offsets, a
#: stack, ranks, votes, an estimated prior.
FORMATS = ("raysere.ensemble/1", "raysere.ensemble/2")


def describe(runs: Sequence[Run], fitted: Fitted, config: EnsembleConfig, folder: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """The content of ensemble.yaml; copies the members' tensors into ``folder/members``."""
    task, by_name = runs[0].task, {run.name: run for run in runs}
    members: list[dict[str, Any]] = []
    features: dict[str, Any] = {}
    parts = []
    for number, part in enumerate(fitted.parts):
        parts.append(_part_record(number, part, len(fitted.parts), task))
        for member in part.members:
            run = by_name[member.run]
            streams = _streams(run, member, features)
            members.append(
                {
                    **_member_record(part, member, len(fitted.parts), task),
                    "part": number,
                    "features": streams,
                    "shapes": {name: _shape(features[key]["spec"]) for name, key in streams.items()},
                    **_copy_weights(run, member, folder),
                }
            )
    families = sorted(
        {part["family"] for part in parts if part["family"]} | {fit["family"] for part in parts for fit in part["attributes"].values()}
    )
    metric = task.metric
    return {
        "format": FORMATS[any(_beyond_first(part) for part in fitted.parts)],
        "runs": [run.name for run in runs],
        "task": task.model_dump(mode="json"),
        "classes": list(task.classes),
        "family": ", ".join(families),
        "pool": ", ".join(sorted({part["pool"] for part in parts if part["pool"]})),
        "synthetic": any(run.synthetic for run in runs),
        "licences": _licences(runs, features),
        "metrics": {metric: {**evaluation["ensemble"], "split": evaluation["split"]}},
        "evaluation": {key: evaluation.get(key) for key in ("n_utterances", "n_speakers", "best_single", "difference", "notes")},
        "config": config.model_dump(mode="json"),
        "parts": parts,
        "members": members,
        "features": features,
        "languages": sorted({str(name) for run in runs for name in run.manifest.table["language"].unique().to_list()}),
        "manifests": [run.manifest.fingerprint for run in runs],
        "versions": runs[0].settings.get("versions"),
    }


def _beyond_first(part: OuterFit) -> bool:
    """Whether a reader of the first format would answer something else."""
    fit = part.classes
    extended = fit is not None and (
        fit.offsets is not None
        or fit.stack is not None
        or fit.ranks is not None
        or fit.estimate
        or fit.pool == "vote"
        or any(one.votes is not None for one in fit.calibrations)
    )
    return extended or any(one.fit.ranks is not None for one in part.attributes)


def _by_class(task: Task, values: np.ndarray) -> dict[str, Any]:
    """Values (K, ...) by class name, at every axis of length K that comes first."""
    return {
        name: _by_class(task, row) if np.ndim(row) and len(row) == len(task.classes) else np.asarray(row).tolist()
        for name, row in zip(task.classes, values)
    }


def _part_record(number: int, part: OuterFit, count: int, task: Task) -> dict[str, Any]:
    fit = part.classes
    return {
        "number": number,
        "share": 1 / count,
        "family": fit.family if fit else None,
        "pool": fit.pool if fit else None,
        "temperature": float(fit.temperature) if fit else None,
        "choice": dict(fit.choice) if fit else {},
        "selection_prior": dict(zip(task.classes, fit.selection_prior.tolist())) if fit else {},
        "prior": dict(zip(task.classes, fit.prior.tolist())) if fit else {},
        **(_extras(fit, task) if fit else {}),
        "attributes": {
            task.attributes[one.index]: {
                "family": one.fit.family,
                "slope": float(one.fit.slope),
                "intercept": float(one.fit.intercept),
                "kappa": one.fit.kappa,
                **(
                    {}
                    if one.fit.ranks is None
                    else {"ranks": {"pool": one.fit.ranks.pool.tolist(), "labels": one.fit.ranks.labels.tolist()}}
                ),
                "choice": dict(one.choice),
            }
            for one in part.attributes
        },
    }


def _extras(fit: ClassFit, task: Task) -> dict[str, Any]:
    """Only what the fit has: ensembles that need none of it read as they always did."""
    found: dict[str, Any] = {}
    if fit.offsets is not None:
        found |= {"ladder": fit.ladder, "offsets": _by_class(task, fit.offsets)}
    if fit.stack is not None:
        found["stack"] = {"penalty": fit.stack.penalty, "intercept": _by_class(task, fit.stack.intercept)}
    if fit.scale is not None:
        found["rank_scale"] = {"temperature": float(fit.scale.temperature), "bias": _by_class(task, fit.scale.bias)}
    if fit.estimate:
        found["estimate_prior"] = True
    return found


def _member_record(part: OuterFit, member: MemberInfo, count: int, task: Task) -> dict[str, Any]:
    assert member.record is not None
    record = member.record
    shares: list[float] = []
    entry: dict[str, Any] = {
        "id": member.id,
        "trial": member.trial,
        "run": member.run,
        "study": member.study,
        "method": member.method,
        "modality": member.modality,
        "space": record.space,
        "params": record.params,
        "resolved": record.resolved,
        "selection_score": record.score,
        "transductive": bool(record.describe.get("transductive", False)),
    }
    if part.classes is not None:
        found = [m for m, one in enumerate(part.classes.members) if one.id == member.id]
        weight = float(part.classes.weights[found[0]]) if found else 0.0
        shares.append(weight)
        calibration = part.classes.calibrations[found[0]] if found else Calibration.identity(len(task.classes))
        entry["classes"] = {
            "weight": weight,
            "temperature": float(calibration.temperature),
            "bias": dict(zip(task.classes, calibration.bias.tolist())),
        }
        if calibration.votes is not None:
            entry["classes"]["votes"] = _by_class(task, calibration.votes)
        if found and part.classes.stack is not None:
            entry["classes"]["stack"] = _by_class(task, part.classes.stack.coefficients[found[0]])
        if found and part.classes.ranks is not None:
            entry["classes"]["knots"] = {name: row.tolist() for name, row in zip(task.classes, part.classes.ranks.knots[found[0]])}
    entry["attributes"] = {}
    for one in part.attributes:
        found = [m for m, other in enumerate(one.members) if other.id == member.id]
        weight = float(one.fit.weights[found[0]] / one.fit.weights.sum()) if found else 0.0
        shares.append(weight)
        if found:
            entry["attributes"][task.attributes[one.index]] = {
                "weight": float(one.fit.weights[found[0]]),
                "mean": float(one.fit.mean[found[0]]),
                "sd": float(one.fit.sd[found[0]]),
                **({} if one.fit.ranks is None else {"knots": one.fit.ranks.knots[found[0]].tolist()}),
            }
    entry["weight"] = float(np.mean(shares)) / count
    return entry


def _streams(run: Run, member: MemberInfo, features: dict[str, Any]) -> dict[str, str]:
    """Stream name to feature key of a member; adds the configs and specs that are new to
    ``features``.
    """
    assert member.record is not None
    streams = {}
    for name in member.record.features:
        config = (run.settings.get("features") or {}).get(name)
        if config is None or "spec_key" not in config:
            raise ConfigError(f"The run {run.name} does not say what its features {name!r} are", where=run.folder / "experiment.yaml")
        key = config["spec_key"]
        streams[name] = key
        if key not in features:
            spec = _spec(run, name, config, key)
            features[key] = {"config": {field: value for field, value in config.items() if field != "spec_key"}, "spec": spec.to_json()}
    return streams


def _spec(run: Run, name: str, config: dict[str, Any], key: str) -> FeatureSpec:
    """The spec as the store holds it, else (a store that is remote or gone) resolved again, if that
    gives the same key.
    """
    path = run.folder / str(run.settings["store"]) / key / "spec.json"  # an absolute store stays absolute
    if path.is_file():
        return FeatureSpec.from_json(read_json(path), where=path)
    from raysere.features.spec import resolve

    spec = resolve({field: value for field, value in config.items() if field != "spec_key"})
    if spec.key != key:
        raise MissingFileError(
            f"The spec of the features {name!r} of {run.name} is missing, and their backbone has changed since",
            where=path,
            remedy="Restore the feature store, or run the experiment again under another name.",
        )
    return spec


def _shape(spec: dict[str, Any]) -> dict[str, Any]:
    read = FeatureSpec.from_json(spec)
    return {
        "modality": read.modality,
        "granularity": read.granularity,
        "kind": read.kind,
        "layers": {number: read.width(number) for number in read.numbers},
    }


def _copy_weights(run: Run, member: MemberInfo, folder: Path) -> dict[str, str]:
    assert member.record is not None
    source = member.record.folder / "model.safetensors"
    if not source.is_file():
        raise MissingFileError(
            f"The tensors of {member.id} are missing",
            where=source,
            remedy="Restore this file, or move the folder of this trial away; `raysere run` then trains it anew.",
        )
    name = f"members/{re.sub(r'[^A-Za-z0-9._-]', '_', member.id)}-{digest(member.id, 6)}.safetensors"
    shutil.copyfile(source, folder / name)
    sha256 = file_hash(folder / name)  # of the copy: what is served is what was recorded, also where the source changed a moment ago
    if member.record.files is not None and sha256 != member.record.files.get(source.name):
        raise DataError(
            f"The tensors of {member.id} were changed while the ensemble was made of them",
            where=source,
            remedy="Run the same command again: the trial is then left out.",
        )
    return {"weights": name, "sha256": sha256}


def _licences(runs: Sequence[Run], features: dict[str, Any]) -> dict[str, Any]:
    """Licences of backbones and corpora, as far as they are known; they bind whoever passes the
    ensemble on.
    """
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
