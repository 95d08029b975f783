"""From the bytes of a request to its items: every bound is held while reading, before anything is kept or decoded."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from raysere.serving.faults import Fault
from raysere.serving.limits import Limits
from raysere.serving.model import Given
from raysere.serving.schema import BatchRequest, Item, PredictRequest

M = TypeVar("M", bound=BaseModel)
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


async def read_single(request: Request, limits: Limits) -> tuple[Given, PredictRequest]:
    """The item of ``POST /v1/predict``. Raises Fault: 400, 413, 415, 422."""
    if _kind(request) == "json":
        asked = _parse(await _json(request, limits), PredictRequest)
        return _given(asked, limits), asked
    form = await _form(request, limits, files=1)
    audio = await _file(form.getlist("file"))
    fields = _texts(form, {"file"}, {"text", "language", "corpus", "speaker", "trace", "votes"})
    asked = _parse({name: _flag(name, value) if name in ("trace", "votes") else value for name, value in fields.items()}, PredictRequest)
    return _checked(Given(audio[0] if audio else None, asked.text, asked.language, asked.corpus, asked.speaker), limits), asked


async def read_batch(request: Request, limits: Limits) -> tuple[list[Given | Fault], bool]:
    """Items of ``POST /v1/predict/batch``, each or its fault, and whether votes are wanted. Raises Fault for the request as a whole."""
    if _kind(request) == "json":
        asked = _parse(await _json(request, limits), BatchRequest)
        _count(len(asked.items), limits)
        return [_or_fault(item, limits) for item in asked.items], asked.votes
    form = await _form(request, limits, files=limits.items)
    audio = await _file(form.getlist("file"))
    texts = [value for value in form.getlist("text") if isinstance(value, str)]
    fields = _texts(form, {"file", "text"}, {"language", "corpus", "speaker", "votes"})
    count = len(audio) or len(texts)
    if not count:
        raise Fault(422, "nothing_to_predict", "The request holds neither audio nor text", remedy="Send fields 'file' or 'text'.")
    if texts and len(texts) != count:
        raise Fault(422, "counts_differ", f"{len(texts)} texts for {count} files", remedy="Send a 'text' for each 'file', or none.")
    _count(count, limits)
    shared = _parse({name: value for name, value in fields.items() if name != "votes"}, Item)
    given = [
        Given(audio[n] if audio else None, texts[n] if texts else None, shared.language, shared.corpus, shared.speaker)
        for n in range(count)
    ]
    return [_or_fault(one, limits) for one in given], bool(_flag("votes", fields.get("votes", "false")))


def _kind(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return "json"
    if kind == "multipart/form-data":
        return "form"
    raise Fault(
        415,
        "content_type",
        f"The content type {kind[:80]!r} is not taken",
        remedy="Send multipart/form-data with a field 'file', or application/json with 'audio' in base64.",
    )


async def _counted(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. Raises Fault 413 as soon as it is too long, whatever its headers say."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body_bytes:
                raise _too_large(limits)
            yield chunk
    except ClientDisconnect:
        raise Fault(400, "disconnected", "The request ended before its body was complete") from None


def _too_large(limits: Limits) -> Fault:
    return Fault(
        413,
        "body_too_large",
        f"The request is larger than {limits.body_mb:g} MiB",
        remedy="Send shorter audio, or a compressed format (flac).",
    )


async def _json(request: Request, limits: Limits) -> Any:
    body = b"".join([chunk async for chunk in _counted(request, limits)])
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Fault(400, "malformed", f"The body is no JSON: {str(error)[:200]}") from None


async def _form(request: Request, limits: Limits, files: int) -> FormData:
    parser = MultiPartParser(request.headers, _counted(request, limits), max_files=files, max_fields=files + 8, max_part_size=1 << 20)
    try:
        return await parser.parse()
    except MultiPartException as error:
        status, code = (413, "too_many_parts") if error.message.startswith("Too many") else (400, "malformed")
        raise Fault(status, code, f"The multipart body cannot be read: {error.message[:200]}") from None
    except (KeyError, ValueError, UnicodeError) as error:  # no boundary, a charset that there is not, text that is no UTF-8
        raise Fault(400, "malformed", f"The multipart body cannot be read: {type(error).__name__}") from None


async def _file(values: list[Any]) -> list[bytes]:
    if any(not isinstance(value, UploadFile) for value in values):
        raise Fault(
            422, "wrong_type", "The field 'file' is text, not a file", remedy="Send it with a file name, as curl -F file=@clip.wav does."
        )
    data = []
    for value in values:
        data.append(await value.read())  # its name is never looked at
        await value.close()
    return data


def _texts(form: FormData, repeated: set[str], known: set[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name in repeated:
            continue
        if name not in known:
            raise Fault(
                422, "unknown_field", f"The field {name[:80]!r} is unknown", remedy=f"Known are {', '.join(sorted(known | repeated))}."
            )
        if not isinstance(value, str):
            raise Fault(422, "wrong_type", f"The field {name!r} is a file, not text")
        if name in fields:
            raise Fault(422, "repeated_field", f"The field {name!r} is given twice")
        fields[name] = value
    return fields


def _flag(name: str, value: str) -> bool:
    if value.lower() not in _FLAGS:
        raise Fault(422, "wrong_type", f"The field {name!r} is {value[:80]!r}, not true or false")
    return _FLAGS[value.lower()]


def _parse(value: Any, model: type[M]) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Fault(422, "wrong_type", f"{where[:100]}: {first['msg'][:200]}") from None


def _or_fault(item: Item | Given, limits: Limits) -> Given | Fault:
    try:
        return _given(item, limits) if isinstance(item, Item) else _checked(item, limits)
    except Fault as fault:
        return fault


def _given(item: Item, limits: Limits) -> Given:
    try:
        audio = None if item.audio is None else base64.b64decode(item.audio, validate=True)
    except (binascii.Error, ValueError):
        raise Fault(422, "not_base64", "audio is not base64", remedy="Encode the file as in RFC 4648, without a data: prefix.") from None
    return _checked(Given(audio, item.text, item.language, item.corpus, item.speaker), limits)


def _checked(given: Given, limits: Limits) -> Given:
    if given.text is not None and len(given.text) > limits.text:
        raise Fault(413, "text_too_long", f"The text has {len(given.text)} characters, at most {limits.text} are taken")
    if given.text is not None and any("\ud800" <= character <= "\udfff" for character in given.text):
        raise Fault(422, "wrong_type", "The text is no Unicode: it holds one half of a pair of surrogates")
    if given.audio is None and not (given.text and given.text.strip()):
        raise Fault(422, "nothing_to_predict", "There is neither audio nor text", remedy="Send an audio file, a text, or both.")
    return given


def _count(count: int, limits: Limits) -> None:
    if count > limits.items:
        raise Fault(413, "too_many_items", f"{count} items, at most {limits.items} are taken at once", remedy="Send several requests.")
