"""Throughput of the ``acoustic`` backbone against openSMILE's eGeMAPS low-level descriptors, clip by clip, one thread each.

Both see the same waves; the comparison is of utterances a second, and both must give finite rows for every clip.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks._measure import alternate, result, speed

TITLE = "The acoustic backbone"
CLIPS, RATE = 40, 16000


def waves() -> list[np.ndarray]:
    """Voiced-like clips of 1 to 5 s with gliding pitch and noise."""
    rng = np.random.default_rng(0)
    clips = []
    for _ in range(CLIPS):
        time_s = np.arange(int(rng.uniform(1, 5) * RATE)) / RATE
        pitch = rng.uniform(100, 250) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * time_s))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        voiced = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.55 + 0.45 * np.sign(np.sin(2 * np.pi * 2.5 * time_s)))
        clips.append((0.1 * voiced + 0.002 * rng.standard_normal(time_s.size)).astype(np.float32))
    return clips


def run() -> dict[str, Any]:
    import opensmile
    import torch

    from raysere.features.backbone import Item
    from raysere.features.backbones import open_backbone

    torch.set_num_threads(1)
    clips = waves()
    ours = open_backbone("acoustic")
    theirs = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.LowLevelDescriptors, num_workers=1)
    layers = list(range(len(ours.info.layers)))

    def acoustic() -> None:
        for number, clip in enumerate(clips):
            assert all(np.isfinite(rows).all() for rows in ours.encode([Item(str(number), wave=clip)], layers)[0])

    def egemaps() -> None:
        for clip in clips:
            assert np.isfinite(theirs.process_signal(clip, RATE).to_numpy()).all()

    audio_s = sum(clip.size for clip in clips) / RATE
    row = speed(
        "acoustic, all three layers",
        "openSMILE eGeMAPSv02 low-level descriptors, clip by clip",
        alternate(acoustic, egemaps),
        goal=5,
        checked="both give finite rows for every clip",
        detail={"seconds of audio": round(audio_s, 1)},
    )
    return result([row], "One thread each.")
