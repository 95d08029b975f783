"""openSMILE as a backbone: the functionals it computes itself, and a clear message where it is not
installed.
"""

from __future__ import annotations

import builtins
import importlib.util
import warnings

import numpy as np
import pytest

from raysere.base.errors import ConfigError, DataError, EnvironmentFault, UnknownNameError
from raysere.features.backbone import Item
from raysere.features.backbones import describe_backbone, open_backbone
from raysere.testing.backbone import check_backbone, sample_items


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name and importlib.util.find_spec("opensmile") is None:
        warnings.warn("openSMILE NOT TESTED: the extra 'opensmile' is not installed", stacklevel=1)
        pytest.skip("the extra 'opensmile' is not installed")


@pytest.mark.parametrize(("name", "columns"), [("eGeMAPSv02", 88), ("ComParE_2016", 6373)])
def test_the_row_is_that_of_opensmile(name: str, columns: int) -> None:
    import opensmile

    backbone = open_backbone(f"opensmile:{name}")
    check_backbone(backbone)
    item = sample_items("audio")[1]
    row = backbone.encode([item], [0])[0][0]
    expected = opensmile.Smile(opensmile.FeatureSet[name], opensmile.FeatureLevel.Functionals).process_signal(item.wave, 16000).to_numpy()
    assert row.shape == (1, columns) == expected.shape
    assert np.allclose(row, np.nan_to_num(expected), rtol=1e-5)


def test_noise_without_a_pitch_is_finite() -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    assert np.isfinite(open_backbone("opensmile:eGeMAPSv02").encode([Item("a", wave=wave)], [0])[0][0]).all()


def test_no_audio_is_refused() -> None:
    with pytest.raises(DataError, match="no audio"):
        open_backbone("opensmile:eGeMAPSv02").encode([Item("a")], [0])


def test_names() -> None:
    with pytest.raises(UnknownNameError, match="eGeMAPSv02, ComParE_2016"):
        describe_backbone("opensmile:eGeMAPS")
    with pytest.raises(ConfigError, match="opensmile:eGeMAPSv02"):
        describe_backbone("opensmile")


def test_without_the_package_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: object, **options: object) -> object:
        if name == "opensmile":
            raise ImportError(name)
        return real(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert describe_backbone("opensmile:eGeMAPSv02").layers[0].dim == 88
    with pytest.raises(EnvironmentFault, match=r"raysere\[opensmile\]"):
        open_backbone("opensmile:eGeMAPSv02")
