"""Audio files with broken headers and bodies, for whatever takes uploads."""

from __future__ import annotations

import io
import random

import numpy as np
import soundfile

_FORMATS = {"wav": ("WAV", "PCM_16"), "float": ("WAV", "FLOAT"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", None)}


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
    """A file with some of its bytes changed, cut out, doubled, or put in front; headers are hit as often as bodies."""
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
