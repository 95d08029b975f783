"""Extraction with a WavLM of random weights: what a user would write with transformers against
``raysere.features.extract.run``.

A corpus of noise clips whose lengths are those of speech corpora (log-normal, 0.5 to 15 s). All
sides read the files, compute every hidden state and reduce each to its mean and standard deviation
over time; ours writes them to a store as well. The alternatives run in this process with all cores;
ours with an actor a core and one thread each, Ray running already.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

from benchmarks._measure import ROUNDS, Row, result

TITLE = "Extraction"
CLIPS, RATE = 24, 16000
BATCHES = (1, 4, 8)
BASE: dict[str, Any] = {}  # the configuration's defaults are WavLM-base
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


@dataclasses.dataclass
class Setting:
    """One comparison: where, with which model, and the goals against the loop and against the
    pipeline.
    """

    device: str
    folder: Path
    manifest: Any
    waves: list[np.ndarray]
    goals: tuple[float, float]
    workers: int
    precisions: tuple[str, ...]


def run() -> dict[str, Any]:
    import torch

    from raysere.base.cluster import start_ray, stop_ray

    cores = len(os.sched_getaffinity(0))
    gpu = torch.cuda.is_available()
    start_ray()
    try:
        with tempfile.TemporaryDirectory() as name:
            temporary = Path(name)
            manifest, waves = _corpus(temporary / "clips", CLIPS)
            base = Setting("cpu", _model(temporary / "base", BASE), manifest, waves, (2.0, 1.3), cores, ("float32", "bfloat16"))
            rows = _compare(base, temporary)
            if gpu:
                manifest, waves = _corpus(temporary / "more", 20 * CLIPS)
                folder = _model(temporary / "large", LARGE)
                rows += _compare(Setting("cuda", folder, manifest, waves, (5.0, 2.0), 1, ("bfloat16",)), temporary)
    finally:
        stop_ray()
        torch.set_num_threads(1)
    if not gpu:
        for against, goal in (("a transformers loop, batch 1", 5.0), ("a transformers pipeline at its best batch size", 2.0)):
            rows.append(Row("WavLM-large shapes, bfloat16, GPU", against, goal=goal, not_measured="needs a GPU"))
        for limit in ("the measured rate of matrix products", "the measured rate of copies"):
            rows.append(Row("WavLM-large shapes, bfloat16, GPU: rate", limit, unit="of the limit", not_measured="needs a GPU"))
    return result(
        rows,
        """On a CPU, matrix products and convolutions run at the rate that oneDNN reaches for
        large matrices. The whole stays below that rate because of attention over short
        sequences, the positional convolution, GELU, reading, statistics, and the last clips,
        when some cores have no work left. On a short corpus the start of the actors (imports and
        weights) costs most; it is paid once for each corpus and backbone.""",
    )


def _compare(at: Setting, temporary: Path) -> list[Row]:
    import torch

    from raysere.features.extract import actors
    from raysere.features.extract.run import extract
    from raysere.features.spec import resolve
    from raysere.features.store.store import FeatureStore

    named = f"WavLM-{'base' if at.device == 'cpu' else 'large'} shapes"
    threads = at.workers if at.device == "cpu" else 1
    torch.set_num_threads(threads)
    files = [at.manifest.path(row) for row in at.manifest.table.iter_rows(named=True)]
    loop, pipeline, batch = _loop(at), *_pipeline(at, files)
    kinds: dict[str, Any] = {p: resolve({"backbone": f"hf:{at.folder}", "options": {"precision": p}}) for p in at.precisions}

    ready: dict[str, list[float]] = {p: [] for p in at.precisions}  # seconds until the first actor took its first task

    def ours(precision: str) -> Path:
        store = temporary / f"store-{time.monotonic_ns()}"
        start, taken = time.perf_counter(), []

        class Clocked(actors.Tasks):
            def next(self) -> Any:
                taken.append(time.perf_counter() - start)
                return super().next()

        with mock.patch.object(actors, "Tasks", Clocked):
            outcome = extract(at.manifest, kinds[precision], store, actors=at.workers, device=at.device)
        assert outcome.done == at.manifest.table.height, outcome.quarantined
        ready[precision].append(taken[0])
        return store

    sides: dict[str, Callable[[], Any]] = {
        "loop": lambda: loop(files, False),
        "loop under autocast": lambda: loop(files, True),
        "pipeline": lambda: pipeline(files, batch),
        **{p: partial(ours, p) for p in at.precisions},
    }
    loop(files[:2], False), loop(files[:2], True)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    last: dict[str, Any] = {}
    for number in range(ROUNDS):
        for side in list(sides) if number % 2 == 0 else reversed(list(sides)):
            gc.collect()
            start = time.perf_counter()
            last[side] = sides[side]()
            seconds[side].append(time.perf_counter() - start)

    count, speech_s = len(files), float(at.manifest.table["duration_s"].sum())
    expected = np.stack(last["loop"])
    rows: list[Row] = []
    for p in at.precisions:
        view = FeatureStore(last[p]).open(kinds[p], at.manifest)
        found = np.stack([view.matrix(layer) for layer in kinds[p].numbers], axis=1)
        error, wrong = _errors(at, p)
        checked = (
            f"means and standard deviations of {count} clips and {len(kinds[p].numbers)} layers in the store against the loop's: relative "
            f"error {_relative(found, expected):.1e}; hidden states of one clip: {error:.1e} (largest difference {wrong:.1e})"
        )
        steady = [whole - start for whole, start in zip(seconds[p], ready[p], strict=True)]
        against = [("loop", "a transformers loop, batch 1, all cores, float32", at.goals[0])]
        against += [("pipeline", f"a transformers pipeline, all cores, float32, batch size {batch} (best of {BATCHES})", at.goals[1])]
        if p == "bfloat16":
            against += [("loop under autocast", "a transformers loop, batch 1, all cores, autocast to bfloat16", None)]
        for side, words, goal in against:
            whole = [theirs / mine for theirs, mine in zip(seconds[side], seconds[p], strict=True)]
            detail = {
                "utterances a second": round(count / median(steady), 2),
                "utterances a second of the alternative": round(count / median(seconds[side]), 2),
                "seconds until the first actor was ready, not counted": round(median(ready[p]), 1),
                f"times as fast with start-up, {speech_s:.0f} s of speech": round(median(whole), 2),
            }
            note = checked
            if side == "pipeline" and batch > 1 and at.device == "cpu":
                note += "; batches of the pipeline are padded, which is wrong under a group norm"
            rows.append(
                Row(
                    f"{named}, {p}, {at.device}",
                    words,
                    [theirs / mine for theirs, mine in zip(seconds[side], steady, strict=True)],
                    goal=goal,
                    checked=note,
                    detail=detail,
                )
            )
        rows += _rates(at, p, named, steady)
    rows.append(_padding(at, named))
    return rows


def _loop(at: Setting) -> Callable[[list[Path], bool], list[np.ndarray]]:
    """What users write: one clip after the other, every hidden state, mean and standard deviation."""
    import soundfile
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    extractor, model = AutoFeatureExtractor.from_pretrained(at.folder), AutoModel.from_pretrained(at.folder).eval().to(at.device)

    def loop(files: list[Path], autocast: bool) -> list[np.ndarray]:
        rows = []
        with torch.inference_mode(), torch.autocast(at.device, torch.bfloat16, enabled=autocast):
            for file in files:
                wave, rate = soundfile.read(file, dtype="float32")
                inputs = extractor(wave, sampling_rate=rate, return_tensors="pt").to(at.device)
                rows.append(_pooled(model(**inputs, output_hidden_states=True).hidden_states))
        return rows

    return loop


def _pipeline(at: Setting, files: list[Path]) -> tuple[Callable[[list[Path], int], list[np.ndarray]], int]:
    """The pipeline (files, batch size) and its best batch size. Transformers' own for feature
    extraction takes text only: this is its class with a speech model, clips sorted by length so
    that a batch holds little padding.
    """
    import soundfile
    from transformers import AutoFeatureExtractor, AutoModel, Pipeline

    class Hidden(Pipeline):
        _load_processor, _load_image_processor, _load_feature_extractor, _load_tokenizer = False, False, True, False

        def _sanitize_parameters(self, **_: Any) -> tuple[dict, dict, dict]:
            return {}, {}, {}

        def preprocess(self, file: Path) -> Any:
            wave, rate = soundfile.read(file, dtype="float32")
            return self.feature_extractor(wave, sampling_rate=rate, return_tensors="pt")

        def _forward(self, inputs: Any) -> Any:
            return self.model(**inputs, output_hidden_states=True)

        def postprocess(self, outputs: Any) -> np.ndarray:
            return _pooled(outputs["hidden_states"])

    model, extractor = AutoModel.from_pretrained(at.folder).eval(), AutoFeatureExtractor.from_pretrained(at.folder)
    pipeline = Hidden(model=model, feature_extractor=extractor, device=at.device)
    order = sorted(files, key=lambda file: -file.stat().st_size)

    def call(some: list[Path], batch: int) -> list[np.ndarray]:
        known = set(some)
        return list(pipeline((file for file in order if file in known), batch_size=batch))

    took = {}
    sample = order[:: max(1, len(order) // 16)]
    for batch in BATCHES:
        call(sample[:batch], batch)
        start = time.perf_counter()
        call(sample, batch)
        took[batch] = time.perf_counter() - start
    return call, min(took, key=took.__getitem__)


def _pooled(states: Any) -> np.ndarray:
    """(layers, 2 * dim) of hidden states (1, T, dim)."""
    import torch

    return np.stack([torch.cat([state[0].float().mean(0), state[0].float().std(0, correction=0)]).cpu().numpy() for state in states])


def _errors(at: Setting, precision: str) -> tuple[float, float]:
    """Relative and largest absolute error of all hidden states of one clip against transformers in
    float32 on the same device.
    """
    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    from raysere.features.backbone import Item
    from raysere.features.backbones import open_backbone

    backbone = open_backbone(f"hf:{at.folder}", device=at.device, precision=precision)
    found = backbone.encode([Item("a", wave=at.waves[0])], list(range(len(backbone.info.layers))))[0]
    model, extractor = AutoModel.from_pretrained(at.folder).eval().to(at.device), AutoFeatureExtractor.from_pretrained(at.folder)
    with torch.inference_mode():
        inputs = extractor(at.waves[0], sampling_rate=RATE, return_tensors="pt").to(at.device)
        states = [state[0].cpu().numpy() for state in model(**inputs, output_hidden_states=True).hidden_states]
    return max(_relative(a, b) for a, b in zip(found, states, strict=True)), max(
        float(np.abs(a - b).max()) for a, b in zip(found, states, strict=True)
    )


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _rates(at: Setting, precision: str, named: str, steady: list[float]) -> list[Row]:
    """Operations and copied bytes a second against what large products and copies reach here, with
    every worker's core in use alone.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(at.folder)
    work = sum(_operations(config, len(wave)) for wave in at.waves)
    dtype = getattr(torch, precision)
    a, b = (torch.randn(2048, 2048, device=at.device).to(dtype) for _ in range(2))
    torch.set_num_threads(1)
    with torch.inference_mode():
        if at.device == "cpu":  # the packed product: for float32 MKL's is no measure of the processor
            packed = torch.ops.mkldnn._reorder_linear_weight(b, None)
            rate = 2 * 2048**3 / _best(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""), at.device)
        else:
            rate = 2 * 2048**3 / _best(lambda: a @ b, at.device)
    rows = [
        Row(
            f"{named}, {precision}, {at.device}: rate of products",
            f"the measured rate of large products, {rate / 1e9:.0f} GFLOP/s, times {at.workers}",
            [work / wall / rate / at.workers for wall in steady],
            unit="of the limit",
            checked="operations counted from the shapes: convolutions, projections and attention of every clip",
        )
    ]
    if at.device != "cpu":
        source, target = (torch.empty(1 << 30, dtype=torch.uint8, device=at.device) for _ in range(2))
        copied = 2 * (1 << 30) / _best(lambda: target.copy_(source), at.device)
        bytes_ = sum(_bytes(config, len(wave)) for wave in at.waves)
        rows.append(
            Row(
                f"{named}, {precision}, {at.device}: rate of memory",
                f"the measured rate of copies, {copied / 1e9:.0f} GB/s",
                [bytes_ / wall / copied for wall in steady],
                unit="of the limit",
                checked="bytes of the inputs and results of every layer, counted from the shapes",
            )
        )
    torch.set_num_threads(at.workers if at.device == "cpu" else 1)
    return rows


def _best(call: Callable[[], Any], device: str, times: int = 10) -> float:
    """Least seconds of a call."""
    import torch

    took = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return min(took)


def _shapes(config: Any, samples: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """(steps, inputs, outputs, kernel) of each convolution of the extractor, and the frames behind
    them.
    """
    shapes, steps, inputs = [], samples, 1
    for outputs, kernel, stride in zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True):
        steps = (steps - kernel) // stride + 1
        shapes.append((steps, inputs, outputs, kernel))
        inputs = outputs
    return shapes, steps


def _operations(config: Any, samples: int) -> float:
    shapes, frames = _shapes(config, samples)
    dim, wide = config.hidden_size, config.intermediate_size
    front = sum(2 * steps * inputs * outputs * kernel for steps, inputs, outputs, kernel in shapes) + 2 * frames * config.conv_dim[-1] * dim
    position = 2 * frames * dim * (dim // config.num_conv_pos_embedding_groups) * config.num_conv_pos_embeddings
    block = 2 * frames * (4 * dim * dim + 2 * dim * wide) + 4 * frames * frames * dim
    return float(front + position + config.num_hidden_layers * block)


def _bytes(config: Any, samples: int) -> float:
    """Activations read and written once a layer in bfloat16, the residual stream in float32."""
    shapes, frames = _shapes(config, samples)
    front = sum(2 * 2 * steps * outputs for steps, _, outputs, _ in shapes)
    dim, wide = config.hidden_size, config.intermediate_size
    block = frames * (2 * (4 * dim + 2 * wide) * 2 + 4 * 4 * dim) + 2 * 4 * config.num_attention_heads * frames * frames
    return float(front + config.num_hidden_layers * block)


def _padding(at: Setting, named: str) -> Row:
    """Share of padding in the batches that an actor makes of the whole corpus."""
    from raysere.features.extract.encoder import buckets
    from raysere.features.store.content import Work

    works = [Work(str(number), str(number), len(wave) / RATE) for number, wave in enumerate(at.waves)]
    batches = buckets(works, 0.0 if at.device == "cpu" else 60.0)
    padded = sum(batch[0].seconds * len(batch) for batch in batches)
    return Row(
        f"{named}, {at.device}: padding",
        "all samples that the model is given",
        [max(0.0, 1 - sum(work.seconds for work in works) / padded)],
        unit="of the samples",
        goal=0.03,
        higher=False,
        checked=f"{len(works)} clips in {len(batches)} batches",
    )


def _model(folder: Path, sizes: dict[str, Any]) -> Path:
    import torch
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    WavLMModel(WavLMConfig(**sizes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=bool(sizes), return_attention_mask=bool(sizes)).save_pretrained(folder)
    return folder


def _corpus(folder: Path, count: int) -> tuple[Any, list[np.ndarray]]:
    """Manifest and waves of clips with a median of 3.3 s, in the order of the manifest."""
    import soundfile

    from raysere.corpora.manifest import Manifest, rows_to_table

    folder.mkdir()
    random = np.random.default_rng(0)
    waves, rows = [], []
    for number, seconds in enumerate(np.clip(random.lognormal(1.2, 0.6, count), 0.5, 15).tolist()):
        wave = (0.1 * random.standard_normal(int(seconds * RATE))).astype(np.float32)
        soundfile.write(folder / f"{number:04d}.wav", wave, RATE, subtype="FLOAT")
        waves.append(wave)
        rows.append({"utterance": f"noise/{number:04d}", "corpus": "noise", "path": f"{number:04d}.wav", "speaker": f"noise/{number % 8}"})
        rows[-1] |= {"language": "en", "duration_s": len(wave) / RATE, "sampling_rate": RATE}
    return Manifest(rows_to_table(rows), {"noise": str(folder)}), waves
