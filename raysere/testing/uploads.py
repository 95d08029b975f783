"""Damaged audio files and wrong JSON, for tests of everything that takes uploads."""

from __future__ import annotations

import base64
import copy
import functools
import io
import json
import random
from typing import Any

import numpy as np
import soundfile

_FORMATS = {"wav": ("WAV", "PCM_16"), "float": ("WAV", "FLOAT"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", None)}


@functools.cache
def seeds() -> dict[str, bytes]:
    """A short clip in each format that is mutated: a tone of half a second at 16 kHz."""
    time = np.arange(8000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 180 * time)
    found: dict[str, bytes] = {}
    for name, (form, subtype) in _FORMATS.items():
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 16000, format=form, subtype=subtype)
        found[name] = buffer.getvalue()
    return found


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A file with some of its bytes changed, cut out, doubled, or put in front; headers are hit as
    often as bodies.
    """
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        where = draw.randrange(min(64, len(found))) if draw.random() < 0.5 else draw.randrange(len(found))
        kind = draw.randrange(6)
        if kind == 0:
            found[where] = draw.randrange(256)
        elif kind == 1:
            found[where] ^= 1 << draw.randrange(8)
        elif kind == 2:
            found[where : where + 4] = draw.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00"))
        elif kind == 3:
            del found[where : where + draw.randrange(1, 64)]
        elif kind == 4:
            found[where:where] = found[where : where + draw.randrange(1, 64)]
        else:
            del found[max(1, where) :]
        if not found:
            found = bytearray(b"\x00")
    return bytes(found)


_WRONG: tuple[Any, ...] = (
    None, True, -1, 0.5, 1e308, 10**400, float("nan"), "", "a" * 20_000, "\ud800", "%%%", "\0",
    [], {}, [[]] * 1000, {"audio": {}}, ["a"] * 2000,
)  # fmt: skip


def wrong_body(draw: random.Random) -> bytes:
    """JSON for a prediction route with one to three values replaced, added or left out, or its
    bytes mutated, or nested ever deeper.
    """
    kind = draw.randrange(8)
    if kind == 0:
        return draw.choice((b"[", b'{"items":')) * draw.choice((10, 10_000))
    item = {
        "audio": base64.b64encode(draw.choice(list(seeds().values()))).decode(),
        "text": "what a morning",
        "language": "de",
        "speaker": "s",
    }
    item = {name: value for name, value in item.items() if draw.random() < 0.6}
    items = [dict(item) for _ in range(draw.randrange(1, 4))]
    body: Any = {"items": items, "votes": False} if draw.random() < 0.5 else {**item, "trace": True}
    for _ in range(draw.randrange(1, 4)):
        place = draw.choice(list(_containers(body)))
        name: Any = draw.choice([*place, "other"]) if isinstance(place, dict) else draw.randrange(len(place)) if place else None
        if name is None:
            place.append(copy.deepcopy(draw.choice(_WRONG)))
        elif draw.random() < 0.2 and isinstance(place, dict):
            place.pop(name, None)
        else:
            place[name] = copy.deepcopy(draw.choice(_WRONG))
    data = json.dumps(body).encode()
    return mutated(data, draw) if kind == 1 else data


def _containers(value: Any) -> list[Any]:
    """The value and all lists and objects in it, as far as it is one of those."""
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value[:10]
    return [value, *(found for one in inner for found in _containers(one))]
