"""The window of Whisper: 30 s whatever the clip holds, as published, or the clip and half a second
(``window=clip``).

Its features are not those of the published window, so there are two questions: how much faster, and
what it costs in the recognition of emotion. The second is answered on four corpora with a probe of
each layer, speakers of the test unseen in training. The corpora and the model are folders named by
the environment variables RAYSERE_CORPORA and RAYSERE_MODELS; features are kept in a folder
(RAYSERE_BENCH_CACHE, default: in the user's cache), so that a second run has only the probes to do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import Row, alternate, kept_folder, result, speed

TITLE = "The window of Whisper"
GOAL = 10.0
CORPORA = {"emodb": "EmoDB", "emovo": "EMOVO", "ravdess": "RAVDESS", "nemo": "nEMO"}
MODEL = "whisper-base-encoder"
CLIPS, SECONDS, RATE = 6, 3, 16000
CAP = 300  # clips of a corpus, balanced over speakers and emotions: the published window takes most of a second for each
LAYER = 4  # of the rows, chosen before the comparison; the others stand in the details
FOLDS = 6


def run() -> dict[str, Any]:
    folders = {name: os.environ.get(name) for name in ("RAYSERE_CORPORA", "RAYSERE_MODELS")}
    missing = [name for name, folder in folders.items() if not folder or not Path(folder).is_dir()]
    if missing:
        reason = f"{' and '.join(missing)} must name a folder"
        return result([Row("window=clip on clips of 3 s", "the window of 30 s", goal=GOAL, not_measured=reason)], "Not measured.")
    corpora, model = Path(str(folders["RAYSERE_CORPORA"])), f"hf:{Path(str(folders['RAYSERE_MODELS'])) / MODEL}"
    manifests = {name: _subset(name, corpora / name) for name in CORPORA}
    views = _extract(manifests, model)
    rows = _speed(manifests["emovo"], model)
    rows += [_probe(name, manifests[name], *views[name]) for name in CORPORA]
    return result(
        rows,
        """With the clip's window about half of the time goes to matrix products at the
        processor's rate, and the rest to attention, the spectrogram and calls; on clips of a
        second or two calls weigh more. The shorter window has a price: the upper layers lose
        recall, up to five points where the interval over speakers excludes 0. Layers up to 3
        lose next to nothing, so prefer those. Features of the two windows must never be mixed,
        and are stored under different keys.""",
    )


def _speed(manifest: Any, model: str) -> list[Row]:
    """Clips of exactly 3 s from real ones, one thread."""
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    from raysere.features.audio import read_audio
    from raysere.features.backbone import Item
    from raysere.features.backbones import open_backbone

    torch.set_num_threads(1)
    long = manifest.table.filter(manifest.table["duration_s"] > SECONDS).head(CLIPS).iter_rows(named=True)
    waves = [read_audio(manifest.path(row), 0, SECONDS) for row in long]
    items = [Item(str(number), wave=wave) for number, wave in enumerate(waves)]
    clip, full = open_backbone(f"{model}?window=clip"), open_backbone(model)
    layers = list(range(len(clip.info.layers)))
    folder = model.removeprefix("hf:")
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).get_encoder().eval()

    def ours() -> list[Any]:
        return [clip.encode([item], layers)[0] for item in items]

    def published() -> list[Any]:
        return [full.encode([item], layers)[0] for item in items]

    def transformers() -> list[Any]:
        with torch.inference_mode():
            return [
                encoder(extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features, output_hidden_states=True).hidden_states
                for wave in waves
            ]

    mine, theirs, users = ours(), published(), transformers()
    frames = len(mine[0][0])
    error = max(
        float(np.abs(rows[layer] - states[layer][0, :frames].numpy()).max() / np.abs(rows[layer]).max())
        for rows, states in zip(theirs, users, strict=True)
        for layer in layers
    )
    entry = max(float(np.abs(a[0][:-1] - b[0][:-1]).max()) for a, b in zip(mine, theirs, strict=True))
    cosine = {layer: round(_cosine(mine, theirs, layer), 3) for layer in layers}
    audio_s = CLIPS * SECONDS
    return [
        speed(
            "window=clip on clips of 3 s",
            "the published window of 30 s, the same backbone",
            alternate(ours, published),
            goal=GOAL,
            checked=f"the input of the first block differs by {entry:.1g}; the outputs differ by design, see the cosines by layer",
            detail={"cosine by layer": cosine, "seconds of audio": audio_s},
        ),
        speed(
            "window=clip on clips of 3 s",
            "a loop over transformers' encoder, clip by clip, window of 30 s",
            alternate(ours, transformers),
            goal=GOAL,
            checked=f"our backbone with the published window gives transformers' hidden states, relative error at most {error:.1g}",
            detail={"seconds of audio": audio_s},
        ),
    ]


def _cosine(mine: list[Any], theirs: list[Any], layer: int) -> float:
    """Mean cosine of frames after the mean frame of the published window is taken from both."""
    a, b = (np.concatenate([rows[layer] for rows in side]).astype(np.float64) for side in (mine, theirs))
    a, b = a - b.mean(0), b - b.mean(0)
    return float(np.mean((a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)))


def _subset(name: str, folder: Path) -> Any:
    """At most CAP clips of a corpus, as many of each speaker and emotion as can be, the same ones
    every time.
    """
    import polars as pl

    from raysere.corpora.adapters import load_corpus
    from raysere.corpora.manifest import Manifest

    manifest = load_corpus(name, folder).manifest
    order = pl.col("utterance").hash(0)
    rank = order.rank("ordinal").over("speaker", "emotion")
    table = manifest.table.with_columns(rank=rank, order=order).sort("rank", "order").head(CAP).drop("rank", "order")
    return Manifest(table.sort("utterance"), manifest.roots)


def _extract(manifests: dict[str, Any], model: str) -> dict[str, tuple[Any, Any]]:
    """Views of each corpus in both windows: (clip, full)."""
    from raysere.base.cluster import stop_ray
    from raysere.features.extract.run import extract
    from raysere.features.spec import resolve
    from raysere.features.store.store import FeatureStore

    store = kept_folder() / "whisper"
    specs = [resolve({"backbone": model, "options": {"window": window}}) for window in ("clip", "full")]
    try:
        for name, manifest in manifests.items():
            for spec in specs:
                outcome = extract(manifest, spec, store)
                print(f"  {name}, {spec.backbone.rpartition('/')[2]}: {outcome.done} extracted, {outcome.cached} found", flush=True)
                if outcome.quarantined.height:
                    raise RuntimeError(f"clips without features: {outcome.quarantined['reason'].to_list()[:3]}")
    finally:
        stop_ray()
    return {
        name: (FeatureStore(store).open(specs[0], manifest), FeatureStore(store).open(specs[1], manifest))
        for name, manifest in manifests.items()
    }


def _probe(name: str, manifest: Any, clip: Any, full: Any) -> Row:
    """UAR of a linear probe on mean and standard deviation of each layer, and the interval of the
    difference over speakers.
    """
    from sklearn.model_selection import GroupKFold

    from raysere.training.metrics import bootstrap_difference, group_confusions, statistic_of

    table = manifest.table
    names = sorted(table["emotion"].unique())
    labels = np.array([names.index(emotion) for emotion in table["emotion"]])
    speakers = table["speaker"].to_numpy()
    folds = list(GroupKFold(min(FOLDS, len(set(speakers)))).split(labels, labels, speakers))
    differences, values = {}, {}
    for layer in [layer.number for layer in clip.spec.layers][1:]:
        sums = [
            group_confusions(labels, _predict(view.matrix(layer).astype(np.float64), labels, folds), speakers, len(names))
            for view in (clip, full)
        ]
        differences[layer] = bootstrap_difference(*sums, statistic_of("uar"))
        values[layer] = [round(float(statistic_of("uar")(one.sum(0))), 3) for one in sums]
    chosen = differences[LAYER]
    return Row(
        f"UAR of a probe on layer {LAYER}, {CORPORA[name]}: window=clip less the published window",
        "the published window of 30 s; in brackets the 95 % interval over speakers",
        [chosen.low, chosen.value, chosen.high],
        unit="of UAR",
        checked=f"the same {len(labels)} clips of {len(set(speakers))} speakers, folds disjoint in speakers, paired bootstrap over them",
        detail={
            "UAR of clip and published by layer": {
                layer: f"{pair[0]} and {pair[1]} [{differences[layer].low:.3f}, {differences[layer].high:.3f}]"
                for layer, pair in values.items()
            },
            "classes": len(names),
        },
    )


def _predict(features: np.ndarray, labels: np.ndarray, folds: list[Any]) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    predicted = np.zeros_like(labels)
    for train, test in folds:
        mean, std = features[train].mean(0), features[train].std(0) + 1e-8
        probe = LogisticRegression(C=0.01, class_weight="balanced", max_iter=300)
        predicted[test] = probe.fit((features[train] - mean) / std, labels[train]).predict((features[test] - mean) / std)
    return predicted
