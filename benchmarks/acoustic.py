"""Throughput of the ``acoustic`` backbone, one thread each, against openSMILE and against
torchaudio, both clip by clip.

All see the same waves, and must give finite rows for every clip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._measure import Row, alternate, result, speed

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
    return result(
        [row, _torchaudio(clips, ours, acoustic)],
        """Both sides run on one thread. The backbone does many small array operations on blocks
        of frames that fit the cache. The largest shares of its time are the spectra, the
        autocorrelations for the pitch, and the functionals; the calls of the interpreter for
        each clip weigh as much.""",
    )


def _torchaudio(clips: list[np.ndarray], backbone: Any, acoustic: Callable[[], None]) -> Row:
    """Against the same features with torchaudio; what it has nothing for is left out, which is in
    favour of the alternative.
    """
    import torch

    from raysere.features.backbone import Item
    from raysere.features.backbones.acoustic import frame_names
    from raysere.features.torchaudio_cpu import require_torchaudio

    require_torchaudio()
    import torchaudio.functional as functional
    import torchaudio.transforms as transforms

    frame = {"n_fft": 1024, "win_length": 640, "hop_length": 160}
    mel = transforms.MelSpectrogram(RATE, n_mels=40, f_min=50, f_max=7800, **frame)
    mfcc = transforms.MFCC(RATE, n_mfcc=21, log_mels=True, melkwargs={"n_mels": 40, "f_min": 50, "f_max": 7800, **frame})
    spectrogram, hertz = transforms.Spectrogram(**frame), torch.linspace(0, RATE / 2, 513)
    parts = [(hertz >= low) & (hertz < high) for low, high in ((0, 500), (500, 1000), (1000, 2000), (2000, 4000), (4000, 8001))]

    def shape(power: Any) -> Any:
        """Spectral shape of (513, frames), in torch: torchaudio has the centroid alone, at the
        price of one more spectrum.
        """
        power = power + 1e-10
        total = power.sum(0)
        share, logs = power / total, power.log()
        centre = hertz @ share
        away = hertz[:, None] - centre
        spread = (away.square() * share).sum(0).sqrt()
        cumulative = share.cumsum(0)
        unit = power.sqrt() / total.sqrt()
        flux = torch.nn.functional.pad((unit[:, 1:] - unit[:, :-1]).norm(dim=0), (1, 0))
        rolloffs = [hertz[(cumulative < part).sum(0).clamp(max=512)] for part in (0.25, 0.5, 0.75, 0.9)]
        slopes = []
        for low, high in ((2, 32), (32, 96)):
            x = hertz[low:high] - hertz[low:high].mean()
            slopes.append(x @ logs[low:high] / x.square().sum())
        alpha = power[2:64].sum(0).log() - power[64:320].sum(0).log()
        hammarberg = logs[:128].amax(0) - logs[128:320].amax(0)
        bands = [(power[part].sum(0) / total).log() for part in parts]
        skewness = (away.pow(3) * share).sum(0) / spread.pow(3)
        entropy, flatness = -(share * share.log()).sum(0), logs.mean(0) - total.log()
        return torch.stack(
            [total.log(), centre / 1000, spread / 1000, skewness, entropy, flatness, flux, *rolloffs, *slopes, alpha, hammarberg, *bands]
        )

    def describe(wave: Any) -> tuple[Any, Any]:
        """(frames, columns), and mean and standard deviation of each column."""
        energy = torch.nn.functional.pad(wave, (0, -wave.shape[-1] % 160)).view(-1, 160).square().mean(1).add(1e-10).log()
        mels, cepstra = mel(wave).add(1e-10).log(), mfcc(wave)[1:]
        pitch = functional.detect_pitch_frequency(wave[None], RATE, frame_time=0.01, freq_low=60, freq_high=600)[0]
        count = min(energy.shape[-1], mels.shape[-1], pitch.shape[-1])
        moving = torch.cat([energy[None, :count], cepstra[:, :count], pitch[None, :count].clamp(min=1).log2() * 12])
        delta = functional.compute_deltas(moving, win_length=11)
        second = functional.compute_deltas(delta, win_length=11)
        rows = torch.cat([mels[:, :count], moving, shape(spectrogram(wave))[:, :count], delta, second]).T
        return rows, torch.cat([rows.mean(0), rows.std(0)])

    def users() -> None:
        with torch.inference_mode():
            for clip in clips:
                assert all(bool(torch.isfinite(part).all()) for part in describe(torch.from_numpy(clip)))

    # both describe the same frames: mel bands, centroid and pitch of both must move together
    names = list(frame_names())
    pairs: dict[str, list[float]] = {"mel20": [], "centroid": [], "f0_semitones": []}
    columns = {"mel20": 19, "centroid": 40 + 22 + 1, "f0_semitones": 40 + 21}
    for number, clip in enumerate(clips):
        mine = backbone.encode([Item(str(number), wave=clip)], [0])[0][0]
        theirs = describe(torch.from_numpy(clip))[0].numpy()
        loud = mine[: len(theirs), names.index("loudness_db")] > -10
        for name, values in pairs.items():
            values.append(float(np.corrcoef(mine[: len(theirs), names.index(name)][loud], theirs[: len(mine), columns[name]][loud])[0, 1]))
    agreement = ", ".join(f"{name} {np.median(values):.2f}" for name, values in pairs.items())
    return speed(
        "acoustic, all three layers",
        "the same features with torchaudio, clip by clip (energy, 40 mel bands, 20 cepstra, pitch, deltas; 20 columns of spectral shape in "
        "torch on its spectrogram; mean and standard deviation)",
        alternate(acoustic, users),
        goal=5,
        checked=f"finite rows for every clip; columns of both correlate in loud frames, median over clips: {agreement}. Left out of the "
        "alternative, as torchaudio has nothing for them: voicing, harmonics, jitter and shimmer, the modulation layer and all "
        "functionals but two",
    )
