"""Read the items of a request; every bound is checked while reading.

JSON is counted before it is parsed, and parsed in a thread, one body after the other: the event
loop stays free, and no more than one body is in memory in several forms.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from raysere.serving.faults import Fault
from raysere.serving.limits import Limits
from raysere.serving.model import Given
from raysere.serving.schema import BatchRequest, Item, PredictRequest

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_BODIES = 16  # of the largest size, that a replica holds at once
_DEPTH = 8  # of brackets in JSON; the API has three
_ITEM = 64  # characters of an item's JSON that are neither text nor space: it has five fields
_PIECE = 1 << 20  # characters of base64 at once; divisible by four
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="raysere-intake")


class Held:
    """Bytes of bodies that a replica holds, from their arrival to the answer: clients that send
    slowly are many, its memory is not.
    """

    def __init__(self, limits: Limits) -> None:
        self._most, self._now = _BODIES * limits.body_bytes, 0

    @contextlib.contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """For one request: a function that takes the number of bytes that came, and raises Fault
        429 where they do not fit.
        """
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._now + count > self._most:
                message, remedy = "The server holds as many bodies of requests as it can", "Try again after the seconds of Retry-After."
                raise Fault(429, "overloaded", message, remedy=remedy, retry_s=1.0)
            self._now, mine = self._now + count, mine + count

        try:
            yield take
        finally:
            self._now -= mine


async def read_single(request: Request, limits: Limits, take: Callable[[int], None] = lambda count: None) -> tuple[Given, PredictRequest]:
    """The item of ``POST /v1/predict``; ``take`` as of :class:`Held`.

    Raises Fault: 400, 408, 413, 415, 422, 429.
    """
    if _kind(request) == "json":
        return await _apart(_single, await _body(request, limits, take), limits)
    form = await _form(request, limits, 1, take)
    audio = await _file(form.getlist("file"))
    fields = _texts(form, {"file"}, {"text", "language", "corpus", "speaker", "trace", "votes"})
    asked = _parse({name: _flag(name, value) if name in ("trace", "votes") else value for name, value in fields.items()}, PredictRequest)
    return _checked(Given(audio[0] if audio else None, asked.text, asked.language, asked.corpus, asked.speaker), limits), asked


async def read_batch(
    request: Request, limits: Limits, take: Callable[[int], None] = lambda count: None
) -> tuple[list[Given | Fault], bool]:
    """Items of ``POST /v1/predict/batch``, each or its fault, and whether votes are wanted.

    Raises Fault for the request as a whole.
    """
    if _kind(request) == "json":
        return await _apart(_batch, await _body(request, limits, take), limits)
    form = await _form(request, limits, limits.items, take)
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


@contextlib.asynccontextmanager
async def _in_time(limits: Limits) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limits.request_s):
            yield
    except TimeoutError:
        message = f"The body of the request did not arrive within {limits.request_s:g} s"
        raise Fault(408, "body_too_slow", message, remedy="Send less, or a compressed format (flac).") from None


async def _counted(request: Request, limits: Limits, take: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    """The body as it arrives.

    Raises Fault 413 as soon as it is too long, whatever its headers say.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise _too_large(limits)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body_bytes:
                raise _too_large(limits)
            take(len(chunk))
            yield chunk
            await asyncio.sleep(0)  # what has arrived is given at once: without this nobody else has a turn until the body ends
    except ClientDisconnect:
        raise Fault(400, "disconnected", "The request ended before its body was complete") from None


def _too_large(limits: Limits) -> Fault:
    return Fault(
        413,
        "body_too_large",
        f"The request is larger than {limits.body_mb:g} MiB",
        remedy="Send shorter audio, or a compressed format (flac).",
    )


async def _body(request: Request, limits: Limits, take: Callable[[int], None]) -> bytes:
    outline, chunks = _Outline(limits), []
    async with _in_time(limits):
        async for chunk in _counted(request, limits, take):
            outline.add(chunk)
            chunks.append(chunk)
    return b"".join(chunks)


async def _apart(work: Callable[[bytes, Limits], T], body: bytes, limits: Limits) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work, body, limits)


def _single(body: bytes, limits: Limits) -> tuple[Given, PredictRequest]:
    asked = _parse(_json(body), PredictRequest)
    given = _given(asked, limits)
    asked.audio = None  # it is in ``given``
    return given, asked


def _batch(body: bytes, limits: Limits) -> tuple[list[Given | Fault], bool]:
    value = _json(body)
    if isinstance(value, dict) and isinstance(value.get("items"), list):
        _count(len(value["items"]), limits)
    asked = _parse(value, BatchRequest)
    return [_or_fault(item, limits) for item in asked.items], asked.votes


def _json(body: bytes) -> Any:
    try:
        # as UTF-8 alone, which is what was counted; ``json`` would guess others
        return json.loads(body.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Fault(400, "malformed", f"The body is not JSON: {str(error)[:200]}") from None


class _Outline:
    """Counts what is outside of texts while JSON arrives, before anything is made of it: a megabyte
    of brackets would become a gigabyte.

    Wrong JSON may be counted wrongly, but only after its first fault, where the parser stops.
    """

    def __init__(self, limits: Limits) -> None:
        self._items, self._most = limits.items, _ITEM * (limits.items + 1)
        self._count = self._depth = 0
        self._in_text, self._left = False, b""

    def add(self, chunk: bytes) -> None:
        """Raises Fault:

        400 where it nests too deep, 413 where it is more than the fields of all items.
        """
        chunk = self._left + chunk
        self._left = b"\\" * ((len(chunk) - len(chunk.rstrip(b"\\"))) % 2)  # belongs to the next character, which may be a quote
        whole = chunk[: len(chunk) - len(self._left)]
        pieces = whole.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')  # every second one is a text
        outside = b"".join(pieces[self._in_text :: 2]).translate(None, b" \t\r\n")
        self._in_text ^= len(pieces) % 2 == 0
        self._count += len(outside) + len(pieces) - 1
        for character in outside[: self._most + 1]:
            self._depth += (character in b"[{") - (character in b"]}")
            if self._depth > _DEPTH:
                raise Fault(400, "malformed", f"The body is JSON of more than {_DEPTH} levels")
        if self._count > self._most:
            message = f"The JSON holds more than the fields of {self._items} items, which are taken at once"
            raise Fault(413, "too_many_items", message, remedy="Send several requests.")


class _Parser(MultiPartParser):
    spool_max_size = 1 << 40  # nothing goes to the disk: what comes is bounded, and is wanted in memory

    def __init__(self, request: Request, files: int, stream: AsyncGenerator[bytes, None]) -> None:
        # without its parameter ``charset``: some encodings of Python take minutes to decode, and
        # forms are in UTF-8
        kind = ";".join(part for part in request.headers["content-type"].split(";") if not part.strip().lower().startswith("charset"))
        headers = Headers({"content-type": kind})
        super().__init__(headers, stream, max_files=files, max_fields=files + 8, max_part_size=1 << 20)


async def _form(request: Request, limits: Limits, files: int, take: Callable[[int], None]) -> FormData:
    try:
        async with _in_time(limits):
            return await _Parser(request, files, _counted(request, limits, take)).parse()
    except MultiPartException as error:
        status, code = (413, "too_many_parts") if error.message.startswith("Too many") else (400, "malformed")
        raise Fault(status, code, f"The multipart body cannot be read: {error.message[:200]}") from None
    except (KeyError, ValueError, UnicodeError) as error:  # no boundary, text that is no UTF-8
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
        audio = None if item.audio is None else _decoded(item.audio)
    except ValueError:
        raise Fault(422, "not_base64", "audio is not base64", remedy="Encode the file as in RFC 4648, without a data: prefix.") from None
    return _checked(Given(audio, item.text, item.language, item.corpus, item.speaker), limits)


def _decoded(text: str) -> bytes:
    """Base64 of a file, by pieces: while one is decoded, no other thread of Python has a turn.

    Raises ValueError.
    """
    if 0 <= text.find("=") < len(text) - 2:
        raise ValueError("padding within")
    return b"".join(base64.b64decode(text[at : at + _PIECE], validate=True) for at in range(0, len(text), _PIECE))


def _checked(given: Given, limits: Limits) -> Given:
    if given.text is not None and len(given.text) > limits.text:
        raise Fault(413, "text_too_long", f"The text has {len(given.text)} characters, at most {limits.text} are taken")
    if given.text is not None and any("\ud800" <= character <= "\udfff" for character in given.text):
        raise Fault(422, "wrong_type", "The text is not valid Unicode: it holds half of a surrogate pair")
    if given.audio is None and not (given.text and given.text.strip()):
        raise Fault(422, "nothing_to_predict", "There is neither audio nor text", remedy="Send an audio file, a text, or both.")
    return given


def _count(count: int, limits: Limits) -> None:
    if count > limits.items:
        raise Fault(413, "too_many_items", f"{count} items, at most {limits.items} are taken at once", remedy="Send several requests.")
