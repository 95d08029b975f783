"""Small pictures for TensorBoard: a confusion matrix, the weights of layers by epoch.

Pillow only.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_INK, _PAPER, _HUE = (32, 33, 36), (255, 255, 255), (23, 94, 150)
_COLOURS = 32


class Picture(NamedTuple):
    """A PNG and its size in pixels."""

    png: bytes
    height: int
    width: int


def confusion_image(matrix: np.ndarray, classes: Sequence[str]) -> Picture:
    """PNG of a confusion matrix and its (height, width): rows are true classes, shade is the share
    of the row, numbers are counts.
    """
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=13)
    cell = 56
    left = 40 + max(int(font.getlength(name)) for name in classes)
    top = 54
    names = [name if font.getlength(name) <= cell - 6 else _shortened(name, font, cell - 6) for name in classes]
    width = max(left + cell * len(classes) + 16, left + int(small.getlength("predicted")) + 16)
    height = top + cell * len(classes) + 16
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((left, 8), "predicted", fill=_INK, font=small)
    draw.text((12, top - 22), "true", fill=_INK, font=small)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for i, name in enumerate(classes):
        middle = top + cell * i + cell // 2
        draw.text((left - 10, middle), name, fill=_INK, font=font, anchor="rm")
        draw.text((left + cell * i + cell // 2, top - 14), names[i], fill=_INK, font=font, anchor="mm")
        for j in range(len(classes)):
            share = float(shares[i, j])
            shade = _mixed(share)
            box = (left + cell * j, top + cell * i, left + cell * (j + 1) - 2, top + cell * (i + 1) - 2)
            draw.rectangle(box, fill=shade, outline=(218, 220, 224))
            ink = _PAPER if share > 0.55 else _INK
            centre = (left + cell * j + cell // 2 - 1, middle - 1)
            draw.text((centre[0], centre[1] - 9), f"{100 * share:.0f} %", fill=ink, font=font, anchor="mm")
            draw.text((centre[0], centre[1] + 11), str(int(matrix[i, j])), fill=ink, font=small, anchor="mm")
    return _png(image)


def weights_image(weights: np.ndarray, layers: Sequence[str]) -> Picture:
    """How the weights of the layers came about: float (E, L), an epoch by column and a layer by
    row, the first at the bottom.

    Shade is the weight as a share of the largest in the picture, which is written above.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=13)
    epochs, count = weights.shape
    wide, high = max(4, min(28, 420 // epochs)), max(12, min(28, 340 // count))
    left, top = 62, 30
    width, height = max(left + wide * epochs + 16, 240), top + high * count + 30
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    largest = float(weights.max())
    draw.text((12, 8), f"weight of a layer; darkest {largest:.3f}", fill=_INK, font=font)
    for row, name in enumerate(reversed(layers)):
        draw.text((left - 8, top + high * row + high // 2), name, fill=_INK, font=font, anchor="rm")
    for column in range(epochs):
        for row in range(count):
            shade = _mixed(float(weights[column, count - 1 - row]) / max(largest, 1e-12))
            box = (left + wide * column, top + high * row, left + wide * (column + 1) - 1, top + high * (row + 1) - 1)
            draw.rectangle(box, fill=shade)
    draw.text((left, height - 22), f"epoch 0 to {epochs - 1}", fill=_INK, font=font)
    return _png(image)


def _mixed(share: float) -> tuple[int, ...]:
    return tuple(round(paper + (hue - paper) * share) for paper, hue in zip(_PAPER, _HUE, strict=True))


def _png(image: Any) -> Picture:
    """With a palette: a third of the bytes and a tenth of the time of full colour; thousands of
    these are written while trials want the cores.
    """
    from PIL import Image

    buffer = io.BytesIO()
    image.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(buffer, "PNG")
    return Picture(buffer.getvalue(), image.height, image.width)


def _shortened(name: str, font: Any, room: int) -> str:
    while len(name) > 1 and font.getlength(name + ".") > room:
        name = name[:-1]
    return name + "."
