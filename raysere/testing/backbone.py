"""Check that a backbone keeps its contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raysere.base.errors import RaysereError
from raysere.features.backbone import Backbone, Item

TEXTS = ("I never said that she took the money!", "Yes.", "Und was machen wir jetzt?", "你今天怎么样？ Я очень рад.")


def check_backbone(backbone: Backbone, items: Sequence[Item] | None = None, *, tolerance: float = 1e-4) -> None:
    """Assert that a backbone keeps its contract.

    Checked: the description; one array per item and layer, float32, C-contiguous, finite, of the
    promised width, one row where rows are utterances and equally many rows in all frame layers;
    layers in the order asked for; the same output twice and for each item in whatever company;
    inputs left as they are; an item of the shortest allowed length; a layer that is not there and
    an item without content refused with raysere's errors.

    Args:
        items: at least two items of different lengths; default: synthetic voices, or sentences in
            four languages.
        tolerance: largest difference between a batch and single items, relative to the largest
            value of the layer.

    Raises:
        AssertionError: says which promise is broken.

    Example:
        >>> check_backbone(open_backbone("mine:folder"))  # doctest: +SKIP
    """
    info = backbone.info
    _check_info(backbone)
    items = list(items) if items is not None else sample_items(info.modality, info.sampling_rate, min_s=info.min_s)
    assert len(items) >= 2, "at least two items are needed to compare"
    layers = list(range(len(info.layers)))
    before = [None if item.wave is None else item.wave.copy() for item in items]
    single = [_check_output(backbone, backbone.encode([item], layers), layers)[0] for item in items]
    for item, wave in zip(items, before, strict=True):
        assert wave is None or (item.wave is not None and np.array_equal(item.wave, wave)), (
            f"{info.name} changed the samples of {item.utterance}"
        )

    again = backbone.encode([items[0]], layers)[0]
    assert all(np.array_equal(first, second) for first, second in zip(single[0], again, strict=True)), (
        f"{info.name} gives other values the second time"
    )
    reverse = backbone.encode([items[0]], layers[::-1])[0][::-1]
    last = backbone.encode([items[0]], layers[-1:])[0]
    for layer in layers:
        _close(info.name, f"layer {layer} asked for in another order", reverse[layer], single[0][layer], tolerance)
    _close(info.name, "the last layer asked for alone", last[0], single[0][-1], tolerance)

    if info.batching == "padded":
        for name, order in (("a batch", range(len(items))), ("a batch in another order", range(len(items) - 1, -1, -1))):
            rows = _check_output(backbone, backbone.encode([items[i] for i in order], layers), layers)
            for position, i in enumerate(order):
                for layer in layers:
                    _close(info.name, f"{items[i].utterance}, layer {layer} in {name}", rows[position][layer], single[i][layer], tolerance)
    _check_refusals(backbone, items[0], layers)


def sample_items(modality: str, sampling_rate: int | None = 16000, *, min_s: float = 0.1, seed: int = 0) -> list[Item]:
    """Four items: tones with a moving pitch, syllables and noise, the last of the shortest length;
    or sentences in four languages.
    """
    if modality == "text":
        return [Item(f"check/text{i}", text=text) for i, text in enumerate(TEXTS)]
    rate = sampling_rate or 16000
    random = np.random.default_rng(seed)
    items = []
    for i, (seconds, pitch) in enumerate(((1.3, 120.0), (2.0, 210.0), (0.7, 320.0), (max(min_s, 0.05), 150.0))):
        time = np.arange(int(np.ceil(seconds * rate))) / rate
        phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.15 * np.sin(2 * np.pi * 1.7 * time))) / rate
        voice = sum(np.sin(k * phase) / k for k in range(1, 12)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))
        items.append(Item(f"check/wave{i}", wave=(0.1 * voice + 0.003 * random.standard_normal(len(time))).astype(np.float32)))
    return items


def _check_info(backbone: Backbone) -> None:
    info = backbone.info
    assert info.layers, f"{info.name} has no layers"
    assert info.identity, f"{info.name} has no identity: features of other weights would share its key"
    assert len({layer.name for layer in info.layers}) == len(info.layers), f"{info.name} has two layers of one name"
    assert all(layer.dim > 0 and layer.rows in ("frame", "utterance") for layer in info.layers), (
        f"{info.name} has a layer without a width or a kind of row"
    )
    assert info.modality in ("audio", "text"), f"{info.name} has the unknown modality {info.modality!r}"
    assert info.kind in ("dense", "counts"), f"{info.name} is of the unknown kind {info.kind!r}"
    assert info.batching in ("single", "padded"), f"{info.name} has the unknown batching {info.batching!r}"
    assert info.modality == "audio" or info.sampling_rate is None, f"{info.name} reads text and asks for a sampling rate"
    assert info.frame_s is None or info.frame_s > 0, f"{info.name} has frames of no length"
    assert 0 <= info.min_s < info.max_s, f"{info.name} takes no length of audio"


def _check_output(backbone: Backbone, output: list[list[np.ndarray]], layers: list[int]) -> list[list[np.ndarray]]:
    info = backbone.info
    for rows in output:
        assert len(rows) == len(layers), f"{info.name} returned {len(rows)} arrays for {len(layers)} layers"
        lengths = set()
        for number, array in zip(layers, rows, strict=True):
            layer = info.layers[number]
            where = f"{info.name}, layer {number} ({layer.name})"
            assert getattr(array, "dtype", None) == np.float32, f"{where}: not a float32 array"
            assert array.shape == (array.shape[0], layer.dim), f"{where}: shape {array.shape}, promised (rows, {layer.dim})"
            assert len(array), f"{where}: no rows"
            assert np.isfinite(array).all(), f"{where}: values that are not finite"
            assert array.flags.c_contiguous, f"{where}: not C-contiguous"
            assert info.kind == "dense" or (array >= 0).all(), f"{where}: negative counts"
            if layer.rows == "utterance":
                assert len(array) == 1, f"{where}: {len(array)} rows, promised one for each utterance"
            else:
                lengths.add(len(array))
        assert len(lengths) <= 1, f"{info.name}: frame layers of different lengths {sorted(lengths)}"
    return output


def _check_refusals(backbone: Backbone, item: Item, layers: list[int]) -> None:
    name = backbone.info.name
    for what, bad, wanted in (
        ("a layer that is not there", item, [len(layers)]),
        ("an item without content", replace(item, utterance="check/nothing", wave=None, text=None), layers),
    ):
        try:
            backbone.encode([bad], wanted)
        except RaysereError:
            continue
        except Exception as error:
            raise AssertionError(f"{name} answers {what} with {type(error).__name__}, not with an error of raysere") from error
        raise AssertionError(f"{name} accepts {what}")


def _close(name: str, what: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape, f"{name}: {what}: shape {found.shape} instead of {expected.shape}"
    difference = float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-6)
    assert difference <= tolerance, f"{name}: {what}: differs by {difference:.1e} of the largest value"
