"""Errors of the API: a status code, a code for programs, a sentence and a remedy."""

from __future__ import annotations

import math
from typing import Any

from starlette.responses import JSONResponse

from raysere.base.errors import DataError

#: How the reason of a clip that cannot be used begins (``corpora/audiofile.py``,
#: ``features/audio.py``): status and code.
_CLIPS: tuple[tuple[str, int, str], ...] = (
    ("not audio", 415, "not_audio"),
    ("unknown length", 415, "not_audio"),
    ("too long", 413, "audio_too_long"),
    ("too short", 422, "audio_too_short"),
    ("truncated", 422, "audio_truncated"),
    ("silent", 422, "audio_silent"),
    ("not finite", 422, "audio_not_finite"),
    ("empty file", 422, "audio_empty"),
    ("no samples", 422, "audio_empty"),
    ("segment", 422, "audio_too_short"),
)


class Fault(Exception):
    """A request or one of its items that is refused.

    Args:
        status: HTTP status code.
        code: stable name for programs.
        message: one sentence for people.
        remedy: what to do.
        retry_s: seconds for ``Retry-After``, where the same request may be answered later.
        full_s: seconds for which no other request would be taken either.
    """

    def __init__(
        self, status: int, code: str, message: str, *, remedy: str | None = None, retry_s: float | None = None, full_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.remedy = status, code, message, remedy
        self.retry_s, self.full_s = retry_s, full_s

    def __reduce__(self) -> Any:  # faults come from the processes that decode
        return _rebuild, (self.status, self.code, self.message, self.remedy, self.retry_s)

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "status": self.status, "message": self.message, "remedy": self.remedy}


def _rebuild(status: int, code: str, message: str, remedy: str | None, retry_s: float | None) -> Fault:
    return Fault(status, code, message, remedy=remedy, retry_s=retry_s)


def error_response(fault: Fault) -> JSONResponse:
    """The answer that every refused request gets."""
    headers = {} if fault.retry_s is None else {"Retry-After": str(max(1, math.ceil(fault.retry_s)))}
    return JSONResponse({"error": fault.as_json()}, status_code=fault.status, headers=headers)


def clip_fault(error: DataError) -> Fault:
    """The fault of a clip that the reader refuses."""
    for start, status, code in _CLIPS:
        if error.what.startswith(start):
            return Fault(status, code, f"The audio cannot be used: {error.what}")
    return Fault(422, "audio_unusable", f"The audio cannot be used: {error.what}")
