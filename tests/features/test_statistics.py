"""Statistics of frames beyond mean and deviation, frames of silence, and clips at another speed."""

import numpy as np
import pytest
import soundfile
from toy_corpus import manifest_of, use_toy

from raysere.base.errors import ConfigError
from raysere.features.audio import in_noise
from raysere.features.extract.pool_frames import pool_frames
from raysere.features.extract.run import extract_local
from raysere.features.extract.silence import speech_frames
from raysere.features.spec import FeatureConfig, copies, resolve
from raysere.features.store.store import FeatureStore

use_toy()


def test_percentiles_follow_mean_and_deviation():
    spec = resolve({"backbone": "toy", "statistics": "order", "layers": [0]})
    rows = np.random.default_rng(0).normal(size=(40, spec.layer(0).dim)).astype(np.float32)
    expected = np.concatenate([rows.mean(0), rows.std(0), *np.percentile(rows, [10, 50, 90], axis=0)])
    found = pool_frames(rows, 0, spec)
    assert spec.stats(0) == ("mean", "std", "p10", "p50", "p90")
    assert found.shape == (1, spec.width(0))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        pool_frames(rows, 0, resolve({"backbone": "toy", "layers": [0]}))[0], expected[: 2 * rows.shape[1]], rtol=1e-5
    )


def test_frames_under_the_floor_do_not_count():
    spec = resolve({"backbone": "toy", "silence_db": 30, "layers": [0]})
    rows = np.random.default_rng(0).normal(size=(10, spec.layer(0).dim)).astype(np.float32)
    speech = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0, 0], dtype=bool)
    assert np.array_equal(pool_frames(rows, 0, spec, speech), pool_frames(rows[speech], 0, spec))


def test_speech_is_what_is_loud():
    wave = np.concatenate([np.full(1600, 1e-4), np.full(1600, 0.5), np.full(800, 0.05), np.full(1600, 1e-3)]).astype(np.float32)
    found = speech_frames(wave, 40, 160.0, 30.0)  # 35 frames of sound, and five behind its end
    assert found.tolist() == [False] * 10 + [True] * 15 + [False] * 15
    assert speech_frames(wave, 40, 160.0, 15.0).sum() == 10
    assert speech_frames(np.zeros(1600, dtype=np.float32), 10, 160.0, 30.0).all()
    assert speech_frames(wave, 3, 160.5, 120.0).all()


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"silence_db": 30, "granularity": "chunk"}, "silence_db"),
        ({"silence_db": 0}, "silence_db"),
        ({"statistics": "order", "granularity": "frame"}, "statistics"),
        ({"statistics": "median"}, "statistics"),
        ({"noises": [20, 20]}, "noises"),
        ({"noises": [200]}, "noises"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options, where):
    with pytest.raises(ConfigError, match=where):
        resolve({"backbone": "acoustic", **options})


def test_noise_is_pink_of_the_stated_level_and_follows_from_the_clip():
    wave = np.sin(np.arange(64000) / 7).astype(np.float32)
    noise = in_noise(wave, 10.0, "a") - wave
    assert 10 * np.log10(np.mean(wave**2) / np.mean(noise**2)) == pytest.approx(10, abs=0.01)
    power = np.abs(np.fft.rfft(noise)) ** 2
    low, high = power[100:200].mean(), power[10000:20000].mean()
    assert low / high == pytest.approx(100, rel=0.3)  # as 1 / f
    assert np.array_equal(noise, in_noise(wave, 10.0, "a") - wave)
    assert not np.array_equal(noise, in_noise(wave, 10.0, "b") - wave)


def test_clips_in_noise_have_features_of_their_own():
    config = FeatureConfig.model_validate({"backbone": "acoustic", "speeds": [0.9], "noises": [20, 5]})
    altered = copies(resolve(config), config)
    assert list(altered) == ["0.9", "noise5", "noise20"]
    assert len({one.key for one in altered.values()} | {resolve(config).key}) == 4


def test_a_faster_clip_is_that_clip_resampled(tmp_path):
    """A tone of 200 Hz at speed 1.25 is one of 250 Hz in 4/5 of the time: the same features as of
    such a file.
    """
    time = np.arange(32000) / 16000
    for name, pitch, count in (("a", 200, 32000), ("b", 250, 25600)):
        soundfile.write(tmp_path / f"{name}.wav", (0.3 * np.sin(2 * np.pi * pitch * time[:count])).astype(np.float32), 16000)
    manifest = manifest_of(tmp_path)
    fast, plain = (resolve({"backbone": "acoustic", "layers": [0]}).model_copy(update={"speed": speed}) for speed in (1.25, 1.0))
    views = []
    for spec in (fast, plain):
        extract_local(manifest, spec, tmp_path / "store")
        views.append(FeatureStore(tmp_path / "store").open(spec, manifest).matrix(0))
    width = plain.layer(0).dim
    assert np.abs(views[0][0] - views[1][1])[:width].max() < 0.1 * np.abs(views[1][1]).max()
    assert np.median(np.abs(views[0][0] - views[1][1])) < 0.1 * np.median(np.abs(views[1][0] - views[1][1]))
