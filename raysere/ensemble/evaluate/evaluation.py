"""``evaluation.json``: scores on held-out speakers beside baselines, with 95 % intervals.

Intervals are over what the splits are by: speakers, or dialogues or sentences (``interval.unit``).

:func:`score_answers` is the only function that reads labels of test rows; it does so after
everything is fitted, and its result goes nowhere but into the report.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from raysere.base.errors import ConfigError, DataError, MissingFileError, RaysereError
from raysere.base.files import atomic_write, digest, read_json, write_json
from raysere.ensemble.config import EnsembleConfig, with_family
from raysere.ensemble.data.predictions import usable_trials
from raysere.ensemble.data.run_labels import Run, Truth, dev_truth, test_truth
from raysere.ensemble.evaluate.claims import claim
from raysere.ensemble.evaluate.held_out import held_out_table
from raysere.ensemble.evaluate.protocols import SYSTEMS, fit_runs
from raysere.ensemble.evaluate.recipes import wanted_recipes
from raysere.ensemble.fit.answers import Answers, Fitted
from raysere.ensemble.fit.auto import name_of
from raysere.ensemble.fit.part import OuterFit
from raysere.ensemble.saved.check import checked_record
from raysere.search.file_check import FileCheck
from raysere.training import metrics

FORMAT = "raysere.evaluation/1"
_CODE = 5  # raised when the procedure changes its result
_BINS = 10
_FEW_UNITS = 10


def evaluate(run: str | os.PathLike[str], config: EnsembleConfig | None = None, *, check: FileCheck | None = None) -> dict[str, Any]:
    """Fit the ensemble of a run, save it to ``ensemble/``, write ``held_out.parquet`` and
    ``evaluation.json``; returns the latter.

    Raises DataError: no finished trial, splits that share a speaker, and what :func:`fit_runs`
    raises.
    """
    from raysere.ensemble.saved.read import save_ensemble

    opened = Run.open(run, check)
    config = config or opened.config
    inputs = fingerprint([opened], config)
    fitted = fit_runs([opened], config)
    result = {**score_answers([opened], fitted, config), "inputs": inputs}
    save_ensemble([opened], fitted, config, opened.folder / "ensemble", result)
    with atomic_write(opened.folder / "held_out.parquet") as temporary:
        held_out_table(fitted, opened.task).write_parquet(temporary)
    write_json(opened.folder / "evaluation.json", result)
    return result


def evaluate_runs(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, family: str | None = None) -> dict[str, Any]:
    """One ensemble of the finished trials of several runs, saved to ``out`` with its
    evaluation.json.

    The settings are the first run's; ``family`` overrides how members are weighed, None keeps it.
    Raises DataError where the runs differ in classes, task, protocol or splits, ConfigError for a
    family that the task has not.
    """
    from raysere.ensemble.saved.read import save_ensemble

    check = FileCheck()
    opened = [Run.open(run, check) for run in runs]
    if not opened:
        raise DataError("No run is named")
    config = opened[0].config
    if family is not None:
        config = with_family(config, family, opened[0].task)
    fitted = fit_runs(opened, config)
    result = {**score_answers(opened, fitted, config), "inputs": fingerprint(opened, config)}
    save_ensemble(opened, fitted, config, Path(out), result)
    return result


def evaluation_is_current(run: str | os.PathLike[str], check: FileCheck | None = None) -> bool:
    """Whether evaluation.json and the saved ensemble are those of the trials and settings that the
    run has now, and as they were saved.

    The user is warned of files that changed since they were saved (``check``).
    """
    folder = Path(run)
    if not (folder / "evaluation.json").is_file() or not (folder / "ensemble" / "ensemble.yaml").is_file():
        return False
    check = check or FileCheck()
    try:
        opened = Run.open(folder, check)
        if read_json(folder / "evaluation.json").get("inputs") != fingerprint([opened], opened.config):
            return False
        checked_record(folder)
    except (AttributeError, ConfigError, DataError, MissingFileError) as error:
        what = f"{error.what.rstrip('.')}. Where: {error.where}" if isinstance(error, RaysereError) else "evaluation.json is damaged"
        check.tell(f"The ensemble is made anew. {what}.")
        return False
    return True


def fingerprint(runs: Sequence[Run], config: EnsembleConfig) -> str:
    """Hash of all that the evaluation depends on: usable trials, splits, settings, version of the
    procedure.
    """
    trials = [
        [run.name, record.trial, record.config, record.seed, record.score, record.epoch, record.epochs]
        for run in runs
        for record in usable_trials(run)
    ]
    splits = [digest((run.folder / "splits.parquet").read_bytes()) for run in runs]
    return digest(
        {
            "code": _CODE,
            "trials": trials,
            "splits": splits,
            "manifests": [run.manifest.fingerprint for run in runs],
            "tasks": [run.task.model_dump(mode="json") for run in runs],
            "config": config.model_dump(mode="json"),
            "recipes": wanted_recipes(config, runs[0].task) if runs else (),
        }
    )


# ---- the one reader of test labels ---------------------------------------------------------------


def score_answers(runs: Sequence[Run], fitted: Fitted, config: EnsembleConfig) -> dict[str, Any]:
    """Score held-out answers; the content of evaluation.json as plain values."""
    return scores_of(runs, fitted, config).result()


def scores_of(runs: Sequence[Run], fitted: Fitted, config: EnsembleConfig) -> Scores:
    """Held-out answers with their labels, ready to be scored and compared."""
    read = dev_truth if fitted.split == "out_of_fold" else test_truth
    truths = [read(runs, answers.outer, answers.utterances) for answers in fitted.answers]
    truth = Truth(
        np.concatenate([one.label for one in truths]),
        np.concatenate([one.target for one in truths]),
        np.concatenate([one.speaker for one in truths]),
        np.concatenate([one.group for one in truths]),
        pl.concat([one.about for one in truths]),
    )
    return Scores(runs, fitted, config, truth)


class Scores:
    """Labels of the held-out rows beside every system's answers to them."""

    def __init__(self, runs: Sequence[Run], fitted: Fitted, config: EnsembleConfig, truth: Truth) -> None:
        self.runs, self.fitted, self.config, self.task = runs, fitted, config, runs[0].task
        task = self.task
        counted = np.zeros(len(truth.label), bool)
        if task.categorical:
            counted |= truth.label >= 0
        if task.dimensional:
            counted |= np.isfinite(truth.target).any(1)
        if not counted.any():
            raise DataError("No held-out row has a label, so nothing can be scored", where=runs[0].folder)
        self.label, self.target, self.speaker = truth.label[counted], truth.target[counted], truth.speaker[counted]
        self.group = truth.group[counted]
        self.about = truth.about.filter(pl.Series(counted))
        answers = fitted.answers
        self.answer = {name: _joined(answers, "answer", name)[counted] for name in answers[0].answer}
        self.values = {name: _joined(answers, "values", name)[counted] for name in answers[0].values}
        self.natural = np.concatenate([one.natural for one in answers])[counted]
        self.answered = np.concatenate([one.answered for one in answers])[counted]

    def sums(self, system: str, metric: str) -> np.ndarray:
        if metric == "ccc":
            return metrics.group_moments(self.values[system], self.target, self.group)
        return metrics.group_confusions(self.label, self.answer[system], self.group, len(self.task.classes))

    def has(self, system: str, metric: str) -> bool:
        return system in (self.values if metric == "ccc" else self.answer)

    def interval(self, system: str, metric: str) -> dict[str, float | None]:
        return _plain(
            metrics.bootstrap_by_group(
                self.sums(system, metric), metrics.statistic_of(metric), draws=self.config.draws, seed=self.config.seed
            )
        )

    def result(self) -> dict[str, Any]:
        metric, task, run = self.task.metric, self.task, self.runs[0]
        systems = [name for name in SYSTEMS if self.has(name, metric)]
        found: dict[str, Any] = {name: self.interval(name, metric) for name in systems}
        best = [member.id if len(self.runs) > 1 else member.trial for one in self.fitted.answers for member in one.best]
        found["best_single"]["member"] = ", ".join(dict.fromkeys(best))
        if len(best) > 1:
            found["best_single"]["members"] = best  # in the order of the folds that they answered
        difference = {}
        for name in systems[1:]:
            difference[f"ensemble - {name}"] = self.difference(self, name)
        sampled = self.in_sample()
        result = {
            "format": FORMAT,
            "metric": metric,
            "split": self.fitted.split,
            "n_utterances": len(self.label),
            "n_speakers": len(np.unique(self.speaker)),
            "n_units": len(np.unique(self.group)),
            **{name: found.get(name) for name in SYSTEMS},
            "difference": difference,
            "by_class": self.by_class(),
            "by_speaker": self.by_speaker(),
            "other_metrics": self.other_metrics(),
            "chance": self.chance(),
            "optimism": {"in_sample": sampled, "value": None if sampled is None else sampled - found["ensemble"]["value"]},
            "by_group": self.by_group(),
            "confusion": {
                "classes": list(task.classes),
                "counts": metrics.confusion(self.label, self.answer["ensemble"], len(task.classes)).tolist(),
            }
            if task.categorical
            else None,
            "calibration": self.calibration() if task.categorical else None,
            "members": [
                {"part": number, "member": member.id, "modality": member.modality, "method": member.method}
                for number, part in enumerate(self.fitted.parts)
                for member in part.members
            ],
            "runs": [one.name for one in self.runs],
            "protocol": dict(run.settings.get("protocol") or {"kind": run.kind}),
            "interval": {
                "level": 0.95,
                "method": f"percentile bootstrap over {run.unit}s",
                "unit": run.unit,
                "draws": self.config.draws,
                "seed": self.config.seed,
            },
            "synthetic": any(one.synthetic for one in self.runs),
            "families": [_chosen(part) for part in self.fitted.parts],
            "diversity": self.fitted.diversity,
            "notes": self.notes(),
        }
        return {**result, "claim": claim(result)}

    def difference(self, other: Scores, system: str) -> dict[str, float | None]:
        """This ensemble minus a system of ``other``, on the same resamples of the same units."""
        metric = self.task.metric
        pair = metrics.bootstrap_difference(
            self.sums("ensemble", metric),
            other.sums(system, metric),
            metrics.statistic_of(metric),
            draws=self.config.draws,
            seed=self.config.seed,
        )
        return _plain(pair)

    def in_sample(self) -> float | None:
        """The metric on the rows that the ensemble was fitted on, mean over outer folds."""
        scores = []
        for one in self.fitted.answers:
            for selection, answer, values in one.in_sample:
                if self.task.metric == "ccc":
                    filled = np.where(np.isfinite(values), values, np.nanmean(selection.target, axis=0))
                    scores.append(metrics.mean_ccc(filled, selection.target))
                else:
                    counts = metrics.confusion(selection.label, answer, len(self.task.classes))
                    scores.append(float(metrics.statistic_of(self.task.metric)(counts)))
        return float(np.mean(scores)) if scores else None

    def by_class(self) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self.task.categorical:
            counts = metrics.confusion(self.label, self.answer["ensemble"], len(self.task.classes)).astype(float)
            groups = self.sums("ensemble", "accuracy")
            for k, name in enumerate(self.task.classes):
                support, said, right = counts[k].sum(), counts[:, k].sum(), counts[k, k]
                recall = (
                    metrics.bootstrap_by_group(groups[:, [k]], _one_recall(k), draws=self.config.draws, seed=self.config.seed)
                    if support
                    else None
                )
                shown = _plain(recall) if recall is not None else {"value": None, "low": None, "high": None}
                result[name] = {
                    **shown,
                    "recall": shown["value"],
                    "precision": right / said if said else None,
                    "f1": 2 * right / (support + said) if support + said else None,
                    "n": int(support),
                }
        if self.task.dimensional:
            for a, name in enumerate(self.task.attributes):
                sums = metrics.group_moments(self.values["ensemble"][:, [a]], self.target[:, [a]], self.group)
                result[name] = {
                    **_plain(metrics.bootstrap_by_group(sums, metrics.mean_ccc_of, draws=self.config.draws, seed=self.config.seed)),
                    "n": int(np.isfinite(self.target[:, a]).sum()),
                }
        return result

    def by_speaker(self) -> dict[str, Any]:
        names, counts = np.unique(self.speaker, return_counts=True)
        return {str(name): {"n": int(count), **self._part(self.speaker == name)} for name, count in zip(names, counts)}

    def _part(self, rows: np.ndarray) -> dict[str, Any]:
        """The metric (and the accuracy) on some rows; UAR over the classes that they have."""
        if self.task.metric == "ccc":
            return {"value": metrics.mean_ccc(self.values["ensemble"][rows], self.target[rows])}
        counts = metrics.confusion(self.label[rows], self.answer["ensemble"][rows], len(self.task.classes))
        values: dict[str, float] = {
            name: float(metrics.statistic_of(name)(counts)) for name in dict.fromkeys((self.task.metric, "accuracy"))
        }
        plain = {name: value if np.isfinite(value) else None for name, value in values.items()}
        return {"value": plain[self.task.metric], **plain}

    def by_group(self) -> dict[str, Any]:
        """The metric by sex, corpus, language, quarter of the durations and tenth of the speakers,
        where there is more than one.

        A speaker's tenth is that of their own value among all speakers, 1 the lowest.
        """
        result: dict[str, Any] = {}
        for column in ("sex", "corpus", "language"):
            values = self.about[column].cast(pl.String).to_numpy()
            names = sorted({name for name in values if name is not None})
            if len(names) > 1:
                result[column] = {name: {"n": int((values == name).sum()), **self._part(values == name)} for name in names}
        for column, bins in (("duration", self._durations()), ("speaker_decile", self._deciles())):
            if len(bins) > 1:
                result[column] = {name: {"n": int(rows.sum()), **self._part(rows)} for name, rows in bins.items()}
        return result

    def _durations(self) -> dict[str, np.ndarray]:
        seconds = self.about["duration_s"].cast(pl.Float64).to_numpy()
        edges = np.unique(np.round(np.nanquantile(seconds, [0, 0.25, 0.5, 0.75, 1]), 2)) if np.isfinite(seconds).any() else np.zeros(0)
        number = np.clip(np.searchsorted(edges[1:-1], seconds, side="left"), 0, max(len(edges) - 2, 0))
        rows = {f"{edges[k]:g} to {edges[k + 1]:g} s": np.isfinite(seconds) & (number == k) for k in range(len(edges) - 1)}
        return {name: here for name, here in rows.items() if here.any()}

    def _deciles(self) -> dict[str, np.ndarray]:
        value = {name: entry["value"] for name, entry in self.by_speaker().items() if entry["value"] is not None}
        if len(value) < _BINS:
            return {}
        order = sorted(value, key=lambda name: (value[name], name))
        return {str(k + 1): np.isin(self.speaker, part.tolist()) for k, part in enumerate(np.array_split(np.array(order), _BINS))}

    def other_metrics(self) -> dict[str, Any]:
        names = [name for name in (*metrics.REPORTED, "ccc") if name != self.task.metric and self.has("ensemble", name)]
        result: dict[str, Any] = {name: self.interval("ensemble", name) for name in names}
        if self.task.categorical:
            from raysere.ensemble.fit.objective import prior_macro_f1

            counts = metrics.confusion(self.label, self.answer["ensemble"], len(self.task.classes))
            result["balanced_macro_f1"] = float(prior_macro_f1(counts.astype(float)))
            usable = self.answered & (self.label >= 0) & np.isfinite(self.natural).all(1)
            if usable.any():
                result["nll"] = float(-self.natural[usable, self.label[usable]].mean())
        return result

    def chance(self) -> dict[str, float]:
        """What guessing reaches: the best that a constant answer can."""
        if self.task.metric == "ccc":
            return {"value": 0.0}
        classes = len(self.task.classes)
        support = np.bincount(self.label[self.label >= 0], minlength=classes)
        constant = np.zeros((classes, classes, classes))
        for k in range(classes):
            constant[k, :, k] = support
        return {"value": float(np.nanmax(metrics.statistic_of(self.task.metric)(constant)))}

    def calibration(self) -> dict[str, Any]:
        """Confidence against accuracy under the prior that the members were calibrated to, in ten
        bins; expected calibration error.
        """
        usable = np.isfinite(self.natural).all(1) & (self.label >= 0)
        p = np.exp(self.natural[usable])
        confidence, right = p.max(1), p.argmax(1) == self.label[usable]
        number = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
        bins, error = [], 0.0
        for k in range(_BINS):
            here = number == k
            entry: dict[str, Any] = {
                "low": k / _BINS,
                "high": (k + 1) / _BINS,
                "count": int(here.sum()),
                "confidence": None,
                "accuracy": None,
            }
            if here.any():
                entry |= {"confidence": float(confidence[here].mean()), "accuracy": float(right[here].mean())}
                error += here.mean() * abs(entry["confidence"] - entry["accuracy"])
            bins.append(entry)
        return {"bins": bins, "ece": float(error), "prior": "selection"}

    def notes(self) -> list[str]:
        notes = list(self.fitted.notes)
        if any(run.synthetic for run in self.runs):
            notes.append("The speech is synthetic: these figures say nothing about real speakers.")
        unit = self.runs[0].unit
        if unit != "speaker":
            notes.append(f"The splits are by {unit}, so speakers recur: the figures are not speaker-independent.")
        if len(np.unique(self.group)) < _FEW_UNITS:
            notes.append(f"Only {len(np.unique(self.group))} {unit}s: intervals over so few are too narrow.")
        if missing := int((~self.answered).sum()):
            notes.append(
                f"{missing} utterances could be answered by no member of the ensemble and count as its most likely class (or mean)."
            )
        if self.task.categorical and (absent := [name for k, name in enumerate(self.task.classes) if not (self.label == k).any()]):
            notes.append(f"No held-out utterance is of the class{'es' if len(absent) > 1 else ''} {', '.join(absent)}.")
        unpredicted = self._without_predictions()
        if unpredicted:
            notes.append(f"{unpredicted} held-out utterances have no prediction of any member (no features) and are not counted.")
        return notes

    def _without_predictions(self) -> int:
        role = "pool" if self.fitted.split == "out_of_fold" else "test"
        count = 0
        scored = {utterance for run in self.runs for utterance in run.with_target()}
        for one in self.fitted.answers:
            wanted = pl.concat([run.rows(one.outer, role) for run in self.runs]).unique(subset="utterance")
            if role == "pool":
                wanted = wanted.filter(pl.col("fold").is_not_null())
            count += len(scored & set(wanted["utterance"].to_list()) - set(one.utterances))
        return count


def _chosen(part: OuterFit) -> dict[str, Any]:
    """What was chosen for a part, and the inner-fold scores of all that was tried."""
    found: dict[str, Any] = {}
    if (fit := part.classes) is not None:
        found["classes"] = {"chosen": name_of(fit.family, fit.pool, fit.ladder), "tried": dict(fit.choice)}
    if part.attributes:
        found["attributes"] = {str(one.index): {"chosen": one.fit.family, "tried": dict(one.choice)} for one in part.attributes}
    return found


def _joined(answers: list[Answers], kind: str, name: str) -> np.ndarray:
    return np.concatenate([getattr(one, kind)[name] for one in answers])


def _one_recall(k: int):
    def recall(counts: np.ndarray) -> np.ndarray:
        row = counts[..., 0, :]
        with np.errstate(invalid="ignore", divide="ignore"):
            return row[..., k] / row.sum(-1)

    return recall


def _plain(interval: metrics.Interval) -> dict[str, float | None]:
    """Value, low and high; null where there is no interval (one speaker or other unit)."""
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in (("value", interval.value), ("low", interval.low), ("high", interval.high))
    }
