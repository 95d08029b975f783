"""Limits of the server; all are options of ``raysere serve``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysere.base.errors import ConfigError


class Limits(BaseModel):
    """Bounds of one replica.

    Attributes:
        body_mb: megabytes (2**20 bytes) of a request, counted while they arrive.
        audio_s: seconds of one clip, told by its header before anything is decoded.
        samples: samples of all channels of one clip together; what it costs to decode.
        channels: of a clip.
        rate_low, rate_high: sampling rates in Hz.
        text: characters of one transcript.
        items: clips or texts of one batch request.
        queue: clips and texts that may wait; more are refused with 429.
        wait_s: expected seconds of waiting above which a request is refused with 429 instead,
            unless fewer than four clips and texts wait.
        request_s: seconds after which a request is answered with 504.
        decode_s: seconds that decoding one clip may take.
        decoders: processes that decode.
        decoder_mb: address space of such a process in megabytes.
        spool_mb: megabytes of uploads and decoded audio on the disk, of all requests together; a
            request that needs more by itself is refused with 413, one for which there is no room
            now with 503.
        batch_s: seconds that one batch may take, as far as can be told from earlier ones: how long
            a request may have to wait for another.
        batch_items: clips and texts of one batch.
        segment_s: length of a trace's segments in seconds; a new one begins each half of it.
        segments: of one trace; a longer clip has longer steps.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_mb: float = Field(25, gt=0, le=1024)
    audio_s: float = Field(120, gt=0, le=3600)
    samples: int = Field(50_000_000, gt=0)
    channels: int = Field(8, ge=1)
    rate_low: int = Field(4000, ge=1)
    rate_high: int = Field(192_000, ge=1)
    text: int = Field(10_000, ge=1)
    items: int = Field(32, ge=1)
    queue: int = Field(256, ge=1)
    wait_s: float = Field(0.75, gt=0)
    request_s: float = Field(30, gt=0)
    decode_s: float = Field(10, gt=0)
    decoders: int = Field(1, ge=1, le=64)
    decoder_mb: int = Field(2048, ge=512)
    spool_mb: float = Field(1024, gt=0)
    batch_s: float = Field(0.25, gt=0)
    batch_items: int = Field(32, ge=1)
    segment_s: float = Field(3, ge=0.5)
    segments: int = Field(120, ge=1)

    @property
    def body_bytes(self) -> int:
        return int(self.body_mb * (1 << 20))

    @property
    def spool_bytes(self) -> int:
        return int(self.spool_mb * (1 << 20))


def read_limits(values: dict[str, object]) -> Limits:
    """Raises ConfigError for an unknown limit or a value that cannot be."""
    try:
        return Limits.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"The limit {where} cannot be {first['input']!r}: {first['msg']}", choices=list(Limits.model_fields)) from error
