"""What an audio file holds, by its content: frames, rate, channels; and why a file cannot be used."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import soundfile

from raysere.base.errors import DataError, RaysereError, machine_fault

_UNKNOWN_BYTES = 0x7FFFF000  # what programs that write wav into a pipe put where the size should be (sox from here on, ffmpeg 0xFFFFFFFF)
_UNKNOWN_FRAMES = 1 << 60  # libsndfile: "not told by the header"


@dataclass(frozen=True)
class AudioInfo:
    """``frames`` samples a channel at ``sampling_rate`` Hz."""

    frames: int
    sampling_rate: int
    channels: int

    @property
    def duration_s(self) -> float:
        return self.frames / self.sampling_rate


def probe(path: str | os.PathLike[str]) -> AudioInfo:
    """Length, rate and channels of an audio file that libsndfile reads (wav, flac, ogg, mp3, aiff,
    ...).

    Raises:
        DataError: its ``what`` is the reason: ``missing file``, ``empty file``, ``not audio``,
            ``truncated`` (the header says more than the file holds: wav and aiff by their chunk
            sizes, flac by reading its last sample), ``unknown length``, ``no samples`` or
                ``unreadable``.
        EnvironmentFault: the disk fails, or too many files are open.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:  # unbuffered: libsndfile reads on from the same descriptor
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise DataError("empty file (0 bytes)", where=path)
            magic = file.read(12)
            if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM"):
                _check_chunks(file, magic, size, path)
            file.seek(0)
            return _open(file, magic, path)
    except FileNotFoundError as error:
        raise DataError("missing file", where=path) from error
    except IsADirectoryError as error:
        raise DataError("not audio (a folder)", where=path) from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> RaysereError:
    """The DataError of a file that this user may not read, or that is none; any other fault of the
    machine says nothing of the file.
    """
    fault = None if isinstance(error, PermissionError) else machine_fault(error, path)
    return fault or DataError(f"unreadable ({error.strerror or error})", where=path)


def _open(file: BinaryIO, magic: bytes, path: Path) -> AudioInfo:
    try:
        # by descriptor: given a name, soundfile and libsndfile would believe its extension
        with soundfile.SoundFile(os.dup(file.fileno()), closefd=True) as sound:
            info = AudioInfo(sound.frames, sound.samplerate, sound.channels)
            if info.frames >= _UNKNOWN_FRAMES:
                raise DataError("unknown length (a flac written into a pipe, which libsndfile cannot read: encode it again)", where=path)
            if magic[:4] == b"fLaC" and info.frames > 0:
                _check_last_sample(sound, info, path)
    except DataError:
        raise
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        raise DataError(f"not audio ({str(error).split(': ')[-1].rstrip('.')})", where=path) from error
    if info.frames <= 0:
        raise DataError("no samples (a header and nothing after it)", where=path)
    return info


def _check_last_sample(sound: soundfile.SoundFile, info: AudioInfo, path: Path) -> None:
    """FLAC tells its length in the first bytes; only the last sample shows that the rest is there.

    A seek decodes one block.
    """
    try:
        sound.seek(info.frames - 1)
        complete = len(sound.read(1, dtype="int16")) == 1
    except soundfile.SoundFileError:
        complete = False
    if not complete:
        raise DataError(f"truncated: the header says {info.frames} frames, and the last cannot be read", where=path)


def _check_chunks(file: BinaryIO, magic: bytes, size: int, path: Path) -> None:
    """Walk the chunks of a RIFF or AIFF file; DataError where the audio chunk claims more bytes
    than follow.

    libsndfile itself shortens such a file without a word.
    """
    order = "<" if magic[:4] in (b"RIFF", b"RF64") else ">"
    position, long_size = 12, None
    while position + 8 <= size:
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8))
        position += 8
        if name == b"ds64" and length >= 16:
            long_size = struct.unpack("<8xQ", file.read(16))[0]
        if name in (b"data", b"SSND"):
            if name == b"data" and length == 0xFFFFFFFF and long_size:
                length = long_size
            elif length >= _UNKNOWN_BYTES and size < _UNKNOWN_BYTES:
                return
            if position + length > size:
                raise DataError(f"truncated: the header says {length} bytes of audio, the file holds {size - position}", where=path)
            return
        position += length + length % 2
    if (magic[:4] in (b"RIFF", b"RIFX", b"RF64") and magic[8:12] == b"WAVE") or (magic[:4] == b"FORM" and magic[8:11] == b"AIF"):
        raise DataError("truncated: the file ends before its audio chunk", where=path)
