"""The embedded backbone: exact in a batch, independent of gain and edge silence, right where the
answer is known, good for emotion.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysere.base.errors import ConfigError, DataError
from raysere.features.backbone import Item
from raysere.features.backbones import acoustic, describe_backbone, open_backbone
from raysere.features.backbones import acoustic_functionals as functionals
from raysere.features.backbones.acoustic_frames import analyse
from raysere.features.backbones.acoustic_pitch import HARMONICS, bridge
from raysere.testing.backbone import check_backbone, sample_items

RATE = 16000
BACKBONE = open_backbone("acoustic")


def encode(wave: np.ndarray, layer: int) -> np.ndarray:
    return BACKBONE.encode([Item("x", wave=wave.astype(np.float32))], [layer])[0][0]


def column(layer: int, name: str) -> int:
    return (acoustic.frame_names, functionals.modulation_names, functionals.functional_names)[layer]().index(name)


def voice(pitch: float | np.ndarray, seconds: float = 1.5, rolloff: float = 1.0, envelope: np.ndarray | float = 1.0) -> np.ndarray:
    """Harmonics that fall off as 1 / k ** rolloff over a little noise."""
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(pitch, time.shape)) / RATE
    tone = sum(np.sin(k * phase) / k**rolloff for k in range(1, 15))
    return (0.1 * tone * envelope + 1e-4 * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)


def test_keeps_the_contract() -> None:
    check_backbone(BACKBONE)


def test_describe_needs_no_instance_and_names_every_column() -> None:
    info = describe_backbone("acoustic")
    assert info == BACKBONE.info
    assert [layer.name for layer in info.layers] == ["frames", "modulation", "functionals"]
    for layer, names in zip(
        info.layers, (acoustic.frame_names(), functionals.modulation_names(), functionals.functional_names()), strict=True
    ):
        assert len(set(names)) == len(names) == layer.dim


def test_refuses_what_it_cannot_take() -> None:
    with pytest.raises(DataError, match="no audio"):
        encode(np.zeros(0), 0)
    with pytest.raises(ConfigError, match="no layer 3"):
        encode(np.ones(1600), 3)
    with pytest.raises(ConfigError, match="no argument"):
        describe_backbone("acoustic:large")


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 1600, 16001])
def test_a_frame_every_10_ms(samples: int) -> None:
    assert len(encode(voice(150)[:samples], 0)) == -(-samples // 160)


@pytest.mark.parametrize("gain", [0.03, 0.5, 3.0])
def test_gain_changes_only_the_level(gain: float) -> None:
    wave = voice(150, envelope=1 + 0.5 * np.sin(np.arange(int(1.5 * RATE)) / 800))
    for layer, tolerance in ((0, 1e-3), (1, 1e-3), (2, 1e-3)):
        before, after = encode(wave, layer), encode(wave * gain, layer)
        if layer != 1:
            level = column(layer, "level_db")
            assert np.allclose(after[:, level] - before[:, level], 20 * np.log10(gain), atol=0.01)
            before[:, level] = after[:, level] = 0
        scale = np.abs(before).max(axis=0) + 1
        assert (np.abs(after - before) / scale).max() < tolerance


def test_the_level_is_that_of_the_speech() -> None:
    wave = voice(150)
    level = 10 * np.log10(np.mean(wave**2))
    assert encode(wave, 2)[0, 0] == pytest.approx(level, abs=0.2)
    assert encode(np.pad(wave, 2 * RATE), 2)[0, 0] == pytest.approx(level, abs=0.2)


def test_silence_at_the_edges_does_not_reach_the_functionals(corpora_root: Path) -> None:
    wave, _ = sf.read(min((corpora_root / "emodb" / "wav").glob("*.flac")), dtype="float32")
    hiss = 1e-4 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    bare, padded = encode(wave, 2)[0], encode(np.concatenate([hiss, wave, hiss]), 2)[0]
    many = np.stack(
        [encode(sf.read(path, dtype="float32")[0], 2)[0] for path in sorted((corpora_root / "emodb" / "wav").glob("03*.flac"))[:12]]
    )
    spread = many.std(axis=0) + 1e-3
    assert np.median(np.abs(padded - bare) / spread) < 0.02
    assert (np.abs(padded - bare) / spread > 0.5).mean() < 0.03


@pytest.mark.parametrize("hertz", [70.0, 110.0, 160.0, 235.0, 340.0, 520.0])
@pytest.mark.parametrize("rolloff", [0.5, 1.5])
def test_pitch_of_a_voice(hertz: float, rolloff: float) -> None:
    pitch = analyse([torch.from_numpy(voice(hertz, rolloff=rolloff))]).pitch
    assert pitch.voiced[0, 5:-5].all()
    assert (pitch.f0[0, 5:-5] - 12 * np.log2(hertz / 27.5)).abs().max() < 0.15


def test_pitch_follows_a_glide_and_noise_has_none() -> None:
    time = np.arange(2 * RATE) / RATE
    glide = 120 * 2 ** (time / 2)
    pitch = analyse([torch.from_numpy(voice(glide, 2.0))]).pitch
    expected = 12 * np.log2(glide[80::160] / 27.5)
    assert np.abs(pitch.f0[0].numpy() - expected)[5:-5].max() < 0.3
    trend = encode(voice(glide, 2.0), 2)[0, column(2, "f0_trend")]
    assert trend == pytest.approx(6.0, abs=0.2)  # an octave in two seconds
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    assert analyse([torch.from_numpy(noise)]).pitch.voiced.float().mean() < 0.05


def test_hnr_falls_with_noise() -> None:
    random = np.random.default_rng(0).standard_normal(int(1.5 * RATE)).astype(np.float32)
    values = [encode(voice(150) + amount * random, 2)[0, column(2, "hnr_db.mean")] for amount in (0.0, 0.02, 0.05)]
    assert values[0] > 15
    assert values[0] > values[1] + 3 > values[2] + 6


def test_spectral_shape_of_known_spectra() -> None:
    time = np.arange(RATE) / RATE
    rows = encode(0.3 * np.sin(2 * np.pi * 2062.5 * time), 0)[5:-5]  # the middle of a band
    assert np.allclose(rows[:, column(0, "centroid")], 2.0625, atol=0.03)
    assert np.allclose(rows[:, column(0, "rolloff50")], 2.0625, atol=0.03)
    white = encode(np.random.default_rng(0).standard_normal(2 * RATE) * 0.1, 0)[5:-5]
    assert white[:, column(0, "centroid")].mean() == pytest.approx(4.0, abs=0.1)
    assert white[:, column(0, "rolloff25")].mean() == pytest.approx(2.0, abs=0.1)
    assert white[:, column(0, "entropy")].mean() > 0.9 > rows[:, column(0, "entropy")].max()
    assert white[:, column(0, "alpha_ratio")].mean() == pytest.approx(10 * np.log10(1 / 4), abs=0.5)


@pytest.mark.parametrize(("hertz", "band"), [(1.5, "1-2Hz"), (3.7, "3-4.5Hz"), (8.0, "6.5-10Hz"), (20.0, "16-25Hz")])
def test_modulation_finds_the_beat(hertz: float, band: str) -> None:
    time = np.arange(3 * RATE) / RATE
    row = encode(voice(150, 3.0, envelope=1 + 0.5 * np.sin(2 * np.pi * hertz * time)), 1)[0]
    bands = [name for name in functionals.modulation_names() if name.startswith("loudness.") and name.endswith("Hz")]
    assert bands[int(np.argmax([row[column(1, name)] for name in bands]))] == f"loudness.{band}"


def test_timing_of_bursts() -> None:
    """Six voiced bursts of 0.2 s, 0.3 s apart: five pauses of 0.3 s in 2.7 s."""
    time = np.arange(4 * RATE) / RATE
    beat = np.floor((time - 0.5) / 0.5)
    on = (((time - 0.5) % 0.5) < 0.2) & (beat >= 0) & (beat < 6)
    row = encode(voice(150, 4.0, envelope=on.astype(float)), 2)[0]

    def value(name: str) -> float:
        return float(row[column(2, name)])

    assert value("voiced_rate") == pytest.approx(6 / 2.7, rel=0.05)
    assert value("voiced_length") == pytest.approx(0.2, abs=0.03)
    assert value("pause_rate") == pytest.approx(5 / 2.7, rel=0.05)
    assert value("pause_length") == pytest.approx(0.3, abs=0.05)
    assert value("pause_share") == pytest.approx(1.5 / 2.7, abs=0.07)


def test_syllables_are_peaks_of_the_loudness() -> None:
    time = np.arange(3 * RATE) / RATE
    row = encode(voice(150, 3.0, envelope=0.05 + np.sin(np.pi * 4 * time) ** 2), 2)[0]
    assert row[column(2, "syllable_rate")] == pytest.approx(4.0, abs=0.15)
    assert row[column(2, "syllable_gap_std")] == pytest.approx(0.0, abs=0.01)
    assert row[column(2, "syllable_height")] > 10


def test_delta_of_a_line_is_its_slope() -> None:
    mask = torch.tensor([[True] * 30, [True] * 20 + [False] * 10])
    track = 0.5 * torch.arange(30.0)[None, :, None].expand(2, 30, 1)
    delta = acoustic._delta(track, mask)[..., 0]
    assert torch.allclose(delta[0, 5:25], torch.full((20,), 0.5))
    assert torch.allclose(delta[1, 5:15], torch.full((10,), 0.5))
    assert delta[1, 19] < 0.5  # beyond its end a clip goes on as it ended, whatever lies there in the batch


def test_bridge_interpolates_and_holds_the_ends() -> None:
    track = torch.tensor([[9.0, 10.0, 9.0, 9.0, 13.0, 9.0]])
    known = torch.tensor([[False, True, False, False, True, False]])
    assert torch.allclose(bridge(track, known), torch.tensor([[10.0, 10.0, 11.0, 12.0, 13.0, 13.0]]))
    assert torch.equal(bridge(track, torch.zeros_like(known)), torch.full((1, 6), 30.0))


def test_runs_are_counted_and_measured() -> None:
    flags = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1, 1], [0] * 9, [1] * 9]).bool()
    count, mean, std = functionals._runs(flags)
    assert count.tolist() == [3, 0, 1]
    assert torch.allclose(mean, torch.tensor([0.02, 0.0, 0.09]))
    assert torch.allclose(std, torch.tensor([np.std([0.02, 0.01, 0.03]), 0.0, 0.0], dtype=torch.float32))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_masked_statistics_are_those_of_the_values_that_count(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 30))
    values = np.array(data.draw(st.lists(st.floats(-50, 50, width=32), min_size=size, max_size=size)), dtype=np.float32)
    weights = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    table, flags = torch.from_numpy(values)[None, :, None], torch.from_numpy(weights)[None, :, None]
    counted = values[weights] if weights.any() else np.zeros(1, np.float32)
    mean, std = functionals._moments(table, flags)
    assert mean.item() == pytest.approx(counted.mean(dtype=np.float64), abs=1e-3)
    assert std.item() == pytest.approx(counted.std(dtype=np.float64), abs=1e-3)
    for found, part in zip(functionals._percentiles(table, flags), functionals.PERCENTILES, strict=True):
        assert found.item() == pytest.approx(np.quantile(counted.astype(np.float64), part), abs=1e-3)


ODD = {
    "one sample": np.ones(1),
    "two samples": np.array([0.1, -0.1]),
    "ten ms": voice(150)[:160],
    "zeros": np.zeros(8000),
    "constant": np.full(8000, 0.5),
    "impulse": np.eye(1, 8000)[0],
    "a click in zeros": np.pad(np.ones(3), 20000),
    "gated": voice(150) * (np.arange(24000) // 2400 % 2),
    "clipped": np.sign(voice(150)),
    "tiny": voice(150) * 1e-6,
    "huge": voice(150) * 1e4,
    "nyquist": np.resize([0.5, -0.5], 8000),
}


@pytest.mark.parametrize("name", ODD)
def test_everything_is_finite(name: str) -> None:
    for layer in range(3):
        rows = encode(ODD[name], layer)
        assert np.isfinite(rows).all()
        assert np.abs(rows).max() < 1e4


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6000), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_company_does_not_matter(lengths: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    items = [
        Item(str(i), wave=random.standard_normal(length).astype(np.float32) * 10 ** random.uniform(-4, 0))
        for i, length in enumerate(lengths)
    ]
    together = BACKBONE.encode(items, [0, 1, 2])
    for item, rows in zip(items, together, strict=True):
        alone = BACKBONE.encode([item], [0, 1, 2])[0]
        for found, expected in zip(rows, alone, strict=True):
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max())


def test_a_clip_that_ends_loud_is_the_same_in_company() -> None:
    """Gaps are closed inside the clip only: its last, nearly empty frame is silent alone as it is
    beside a longer clip.
    """
    noise = np.random.default_rng(0).standard_normal(161).astype(np.float32) * 0.1
    items = [Item("short", wave=noise), Item("long", wave=voice(150))]
    for found, expected in zip(BACKBONE.encode(items, [0, 1, 2])[0], BACKBONE.encode(items[:1], [0, 1, 2])[0], strict=True):
        assert np.allclose(found, expected, atol=1e-4)


def test_many_long_clips_are_taken_in_groups_and_come_back_in_order() -> None:
    items = [Item(str(i), wave=voice(100 + 20 * i, seconds)) for i, seconds in enumerate((9.0, 1.0, 30.0, 5.0, 20.0, 2.0))]
    rows = BACKBONE.encode(items, [2, 0])
    for item, (row, frames) in zip(items, rows, strict=True):
        assert len(frames) == len(item.wave) // 160
        expected = 12 * np.log2((100 + 20 * int(item.utterance)) / 27.5)
        assert row[0, column(2, "f0_semitones.mean")] == pytest.approx(expected, abs=0.15)


def test_the_input_may_be_read_only() -> None:
    wave = voice(150)
    wave.flags.writeable = False
    assert np.isfinite(encode(wave, 2)).all()


def test_a_change_of_the_output_needs_a_new_code_version() -> None:
    """Values written down once.

    Where this fails, stored features would differ under the same key: raise acoustic.CODE_VERSION.
    """
    assert acoustic.CODE_VERSION == 2
    frames, modulation, row = BACKBONE.encode([sample_items("audio")[1]], [0, 1, 2])[0]
    assert np.allclose(
        frames[50, [0, 5, 41, 42, 62, 63, 70, 85]], [-24.875, -4.3287, -0.2368, 14.3632, 33.072, 0.3791, 0.2231, 21.6027], atol=0.02
    )
    assert np.allclose(modulation[0, [0, 30, 60, 90, 100]], [-5.2576, -5.8142, -2.9578, -1.7024, 4.6302], atol=0.02)
    expected = [-24.6381, -2.0176, -5.9281, -2.1199, 1.5324, 0.38, -0.9388, 22.1164, 1.0, -2.9869]
    assert np.allclose(row[0, [0, 1, 10, 50, 95, 200, 300, 400, 450, 460]], expected, atol=0.02)


@pytest.mark.parametrize("name", HARMONICS)
def test_harmonic_descriptors_reach_the_layers(name: str) -> None:
    assert name in acoustic.frame_names()
    assert f"{name}.mean" in functionals.functional_names()


def _emodb(root: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    with (root / "index.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("emodb/wav/")]
    waves = [sf.read(root / row["path"], dtype="float32")[0] for row in rows]
    return waves, np.array([row["emotion"] for row in rows]), np.array([row["speaker"] for row in rows])


def test_good_for_emotion(corpora_root: Path) -> None:
    """EmoDB, four classes, leave one speaker out, z-norm by speaker, ridge classifier.

    Measured UAR in the same test: eGeMAPSv02 .850, ComParE_2016 .882, functionals .906, modulation
    .680.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import recall_score

    waves, labels, speakers = _emodb(corpora_root)
    rows = BACKBONE.encode([Item(str(i), wave=wave) for i, wave in enumerate(waves)], [1, 2])
    for layer, least in ((0, 0.62), (1, 0.87)):
        table = np.concatenate([row[layer] for row in rows]).astype(np.float64)
        for speaker in set(speakers):
            own = speakers == speaker
            table[own] = (table[own] - table[own].mean(axis=0)) / (table[own].std(axis=0) + 1e-9)
        predicted = np.empty_like(labels)
        for speaker in set(speakers):
            train = speakers != speaker
            model = RidgeClassifier(alpha=table.shape[1], class_weight="balanced").fit(table[train], labels[train])
            predicted[~train] = model.predict(table[~train])
        uar = recall_score(labels, predicted, average="macro")
        assert uar > least, f"layer {layer + 1}: {uar:.3f}"
