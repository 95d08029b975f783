"""Backbones by name: options, devices, and one message for each wrong name.

And the conformance suite finds broken backbones.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from raysere.base.errors import ConfigError, EnvironmentFault, UnknownNameError
from raysere.features.backbone import Backbone, BackboneInfo, Item, Layer
from raysere.features.backbones import BACKBONES, check_device, describe_backbone, open_backbone
from raysere.testing.backbone import check_backbone


def test_wrong_names_list_the_right_ones() -> None:
    with pytest.raises(UnknownNameError, match="acoustic, hashed, hf, opensmile, table.*Did you mean 'acoustic'"):
        describe_backbone("acustic")
    with pytest.raises(ConfigError, match="no option 'size'.*bins"):
        open_backbone("hashed?size=3")
    with pytest.raises(ConfigError, match="given twice"):
        describe_backbone("hashed?bins=64", bins=128)
    assert describe_backbone("hashed?bins=64", bins=64).layers[0].dim == 64
    assert describe_backbone("hashed", bins=None) == describe_backbone("hashed")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="not a device"):
        check_device("gpu0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match="'cuda' is not there"):
        open_backbone("acoustic", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert check_device("cuda:0") == "cuda:0"
    with pytest.raises(EnvironmentFault, match="cuda:1"):
        check_device("cuda:1")


def test_naming_backbones_loads_no_torch() -> None:
    code = (
        "import sys, raysere.features.backbones as b; b.BACKBONES.names(); b.describe_backbone('hashed'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Toy(Backbone):
    """Right, unless told how to be wrong."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.calls = 0
        self.info = BackboneInfo(
            "toy", "audio", (Layer("a", 2), Layer("b", 3), Layer("c", 1, "utterance")), "1", frame_s=0.01, batching="padded"
        )

    @staticmethod
    def describe(argument: str | None = None, *, speed: int = 1) -> BackboneInfo:
        return Toy().info

    @staticmethod
    def open(argument: str | None = None, *, device: str = "cpu", speed: int = 1) -> Toy:
        return Toy()

    def encode(self, items: Sequence[Item], layers: Sequence[int]) -> list[list[np.ndarray]]:
        self.calls += 1
        if self.fault != "accepts a missing layer" and any(layer > 2 for layer in layers):
            raise IndexError("no") if self.fault == "raises another error" else ConfigError("no such layer")
        return [self._one(item, layers, len(items)) for item in items]

    def _one(self, item: Item, layers: Sequence[int], company: int) -> list[np.ndarray]:
        if item.wave is None:
            if self.fault == "accepts nothing":
                return [np.zeros((1, 2), np.float32) for _ in layers]
            raise ConfigError("nothing to hear")
        if self.fault == "changes the input":
            item.wave[:] = 0
        count = len(item.wave) // 160
        rows = [np.full((count, 2), item.wave.std()), np.full((count, 3), item.wave.mean()), np.array([[item.wave.max()]])]
        if self.fault == "company":
            rows[0] += 0.01 * (company - 1)
        if self.fault == "random":
            rows[1] += self.calls
        if self.fault == "rows":
            rows[1] = rows[1][:-1]
        if self.fault == "two utterance rows":
            rows[2] = np.repeat(rows[2], 2, axis=0)
        if self.fault == "width":
            rows[0] = rows[0][:, :1]
        if self.fault == "nan":
            rows[2][:] = np.nan
        if self.fault == "order":
            layers = sorted(layers)
        kind = np.float64 if self.fault == "dtype" else np.float32
        chosen = [rows[layer if layer < 3 else 0].astype(kind) for layer in layers]
        return [array.T.copy().T for array in chosen] if self.fault == "layout" else chosen


def test_a_registered_family_opens_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES._objects, "toy", Toy)
    check_backbone(open_backbone("toy?speed=2"))
    with pytest.raises(ConfigError, match="no option 'pace'.*speed"):
        open_backbone("toy", pace=3)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("company", "in a batch"),
        ("random", "other values the second time"),
        ("rows", "different lengths"),
        ("two utterance rows", "promised one for each utterance"),
        ("width", "promised"),
        ("nan", "not finite"),
        ("order", "layer"),
        ("dtype", "float32"),
        ("layout", "C-contiguous"),
        ("changes the input", "changed the samples"),
        ("accepts a missing layer", "accepts a layer that is not there"),
        ("raises another error", "IndexError"),
        ("accepts nothing", "accepts an item without content"),
    ],
)
def test_the_suite_finds_broken_backbones(fault: str, message: str) -> None:
    check_backbone(Toy())
    with pytest.raises(AssertionError, match=message):
        check_backbone(Toy(fault))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": ""}, "no identity"),
        ({"layers": ()}, "no layers"),
        ({"layers": (Layer("a", 2), Layer("a", 3))}, "two layers of one name"),
        ({"modality": "smell"}, "modality"),
        ({"min_s": 9.0, "max_s": 1.0}, "no length"),
        ({"frame_s": 0.0}, "frames of no length"),
    ],
)
def test_the_suite_finds_broken_descriptions(change: dict, message: str) -> None:
    toy = Toy()
    toy.info = replace(toy.info, **change)
    with pytest.raises(AssertionError, match=message):
        check_backbone(toy)
