"""``raysere analyze units`` from an experiment to its folder, and what it says of wrong input."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
import yaml
from click.testing import CliRunner

from raysere.base.errors import ConfigError
from raysere.cli.main import cli
from raysere.corpora.adapters import load_corpus
from raysere.features.extract.run import extract_local
from raysere.features.spec import resolve
from raysere.pipeline.experiment import load_experiment
from raysere.studies.features import frame_feature

VOICES = {"a": 700.0, "i": 300.0}  # Hz of the one formant of a made-up vowel
RATE = 16000


def _clip(path: Path, seed: int, pitch: float) -> str:
    """A clip of the vowels a, i, a, i with its lablaut text."""
    rng = np.random.default_rng(seed)
    parts, rows, end = [], [], 0.0
    for vowel in "aiai":
        length = int(0.3 * RATE)
        time = np.arange(length) / RATE
        wave = sum(np.sin(2 * np.pi * pitch * k * time) / (1 + ((pitch * k - VOICES[vowel]) / 120) ** 2) for k in range(1, 20))
        parts.append(0.1 * wave + rng.normal(0, 0.003, length))
        end += 0.3
        rows.append(f"    {end:.6f}   -1 {vowel}")
    soundfile.write(path, np.concatenate(parts).astype(np.float32), RATE)
    return "signal x\n#\n" + "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("emodb")
    (root / "emodb" / "wav").mkdir(parents=True)
    with zipfile.ZipFile(root / "emodb" / "labels.zip", "w") as archive:
        for number, speaker in enumerate(("03", "08", "09", "10")):
            for letter in "NWFT":
                name = f"{speaker}a01{letter}a"
                archive.writestr(f"lablaut/{name}xx.lablaut", _clip(root / "emodb" / "wav" / f"{name}.wav", number, 100 + 15 * number))
    settings = {
        "name": "tiny",
        "corpora": [{"corpus": "emodb", "path": str(root / "emodb")}],
        "task": {"kind": "categorical", "classes": "emodb4", "metric": "uar"},
        "protocol": {"kind": "out_of_fold", "folds": 2},
        "features": {"acoustic": {"backbone": "acoustic"}, "words": {"backbone": "hashed"}},
        "search": [{"space": "pooled_quick", "features": "acoustic", "trials": 1}],
        "extraction": {"actors": 1},
        "runs": str(root / "runs"),
        "store": str(root / "features"),
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(settings))
    manifest = load_corpus("emodb", root / "emodb").manifest
    extract_local(manifest, resolve({"backbone": "acoustic", "granularity": "frame"}), root / "features")  # so that no Ray need start
    return root / "tiny.yaml"


def test_from_an_experiment_to_a_page(experiment: Path, tmp_path: Path) -> None:
    options = [f"--option={value}" for value in ("permutations=19", "bootstraps=20", "seeds=2", "layer_units=4", "frames_per_unit=20")]
    arguments = ["analyze", "units", str(experiment), "--units", "4", "--out", str(tmp_path / "study"), "--json", "-q", *options]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    found = json.loads(done.stdout)
    assert found["format"] == "raysere.units/1"
    assert (found["feature"], found["study"]["layer"], found["study"]["vowels"]) == ("acoustic", 0, ["a", "i"])
    assert found == json.loads((tmp_path / "study" / "units.json").read_text())
    frames = pl.read_parquet(tmp_path / "study" / "counts.parquet")
    assert frames["n"].sum() == 16 * 120  # 1.2 s of 10 ms frames each
    assert frames["emotion"].unique().sort().to_list() == ["anger", "happiness", "neutral", "sadness"]
    assert frames["phone"].null_count() == 0
    assert found["quality"][0]["phone_purity"] > 0.9  # a and i sound different, and the labels lie where the sounds are
    for name in ("units.html", "codebook.safetensors", "tables/emotion_shifts.parquet", "figures"):
        assert (tmp_path / "study" / name).exists()
    assert not (experiment.parent / "runs").exists()  # a study is no run
    text = CliRunner().invoke(cli, [*arguments[: -len(options) - 2], "-q", *options], catch_exceptions=False, standalone_mode=False).stdout
    assert "4 units of layer 0 of acoustic" in text
    assert "V1 split half" in text
    places = pl.read_parquet(tmp_path / "study" / "tables" / "formants.parquet")  # read from the clips
    assert places["vowel"].to_list() == ["a", "i"]
    assert [row["items"] for row in found["validation"] if row["check"].startswith("V4")] == [2]
    assert "ORACLE" not in found  # one language: nothing to transfer to


def test_the_feature_that_is_meant(experiment: Path) -> None:
    loaded = load_experiment(experiment)
    name, spec = frame_feature(loaded, None, None)
    assert (name, spec.granularity, spec.numbers) == ("acoustic", "frame", [0])
    with pytest.raises(ConfigError, match="no feature 'speech'"):
        frame_feature(loaded, "speech", None)
    with pytest.raises(ConfigError):
        frame_feature(loaded, "words", None)
    with pytest.raises(ConfigError, match="no layer 9"):
        frame_feature(loaded, "acoustic", 9)


def test_several_features_that_may_be_meant(experiment: Path) -> None:
    two = load_experiment(experiment, ("features.other={backbone: acoustic, level: rms}",))
    with pytest.raises(ConfigError, match="Several features") as error:
        frame_feature(two, None, None)
    assert "acoustic, other" in str(error.value)
    named = load_experiment(experiment, ("features.other={backbone: acoustic, granularity: frame}",))
    assert frame_feature(named, None, None)[0] == "other"


def test_wrong_options_say_so(experiment: Path) -> None:
    for option, words in (("norm", "takes key=value"), ("norm=all", "norm"), ("wrong=1", "wrong")):
        with pytest.raises(ConfigError, match=words):
            CliRunner().invoke(
                cli, ["analyze", "units", str(experiment), "--option", option], catch_exceptions=False, standalone_mode=False
            )
