"""The HTTP application: routes, status codes, the OpenAPI document and the page.

It does not know Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException

from raysere import __version__
from raysere.serving.engine import Engine
from raysere.serving.faults import Fault, error_response
from raysere.serving.intake import Held, read_batch, read_single
from raysere.serving.limits import Limits
from raysere.serving.measures import Measures
from raysere.serving.origin import on_loopback, refusal
from raysere.serving.proxy import FULL, REFUSED
from raysere.serving.schema import BatchRequest, BatchResponse, ErrorResponse, Health, PredictRequest, PredictResponse

_LOG = logging.getLogger(__name__)
_OWN, _SWAGGER = Path(__file__).with_name("pages"), Path(str(files("fastapi_offline"))) / "static"
_PAGES = {"/": "page.html", "/docs": "docs.html"}
_ASSETS = {
    **{f"/assets/{name}": (_OWN / name, "text/javascript") for name in ("page.js", "docs.js", "session.js")},
    "/assets/swagger-ui-bundle.js": (_SWAGGER / "swagger-ui-bundle.js", "text/javascript"),
    "/assets/swagger-ui.css": (_SWAGGER / "swagger-ui.css", "text/css"),
}
_STATIC = (*_PAGES, *_ASSETS)
_FREE = (*_STATIC, "/healthz", "/readyz")  # what tells nothing of the model; probes carry no token, nor does a browser that opens a page
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_REASONS = {
    400: "The body cannot be read",
    401: "The token is missing or wrong",
    403: "From a page of another site, or to a name that the server does not go by",
    408: "The body did not arrive in time",
    413: "Larger or longer than the server takes",
    415: "Not audio, or a content type that is not taken",
    422: "Audio or fields that cannot be used",
    429: "Too much is waiting; Retry-After tells when to try again",
    500: "A fault of the server",
    503: "Not ready, going down, or no room for more audio; Retry-After tells when to try again",
    504: "No answer in time",
}


def create_app(
    folder: Path,
    limits: Limits,
    *,
    measures: Path,
    token_sha256: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    apart: bool = False,
    replicas: int = 1,
    loopback: bool = False,
) -> FastAPI:
    """The application over the ensemble in ``folder``, which is opened when the application starts.

    Args:
        folder: saved ensemble.
        limits: bounds.
        measures: folder for the counters of all replicas on this machine.
        token_sha256: hex SHA-256 of the bearer token that every request but the probes must carry;
            None asks for none.
        device, threads, apart: see :class:`~raysere.serving.engine.Engine`.
        replicas: that answer, this one among them; a proxy that knows all of them to be full asks
            none.
        loopback: whether the server listens on this machine alone: requests must then name it so.
    """
    engine = Engine(folder, limits, device=device, threads=threads, apart=apart)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.measures = Measures(measures)
        engine.heard = lambda clip: app.state.measures.audio.inc(clip.seconds)
        await engine.open()
        engine.batcher.sizes = app.state.measures.batch.observe
        app.state.ready = True
        try:
            yield
        finally:
            app.state.ready = False
            await engine.close()
            app.state.measures.close()

    app = FastAPI(
        title="raysere",
        version=__version__,
        summary="Emotion of speech and text, by an ensemble",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={code: {"model": ErrorResponse, "description": _REASONS[code]} for code in (401, 403, 500, 503)},
    )
    app.state.engine, app.state.ready = engine, False
    _add_errors(app, f"{secrets.token_hex(4)} {replicas}")
    _add_guard(app, token_sha256, on_loopback if loopback else None)
    _add_routes(app, engine, limits)
    _add_pages(app)
    if token_sha256 is not None:
        _document_token(app)
    return app


def _add_routes(app: FastAPI, engine: Engine, limits: Limits) -> None:
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": ErrorResponse, "description": _REASONS[code]} for code in (400, 408, 413, 415, 422, 429, 504)
    }

    held = Held(limits)

    @app.post("/v1/predict", response_model=PredictResponse, responses=refusals, openapi_extra=_body(PredictRequest, _SINGLE_FORM))
    async def predict(request: Request) -> dict[str, Any]:
        """Emotion of one clip, with or without its transcript, or of a text."""
        with engine.batcher.place(1) as place, held.request() as take:  # before the body is read: a refusal costs next to nothing
            given, asked = await read_single(request, limits, take)
            model, (result,) = await engine.predict([given], place, votes=asked.votes, trace=asked.trace)
        if isinstance(result, Fault):
            raise result
        return {"model": model, **result}

    @app.post("/v1/predict/batch", response_model=BatchResponse, responses=refusals, openapi_extra=_body(BatchRequest, _BATCH_FORM))
    async def predict_batch(request: Request) -> dict[str, Any]:
        """Emotion of several clips or texts; one that cannot be used has an error in its place."""
        with engine.batcher.place(1) as place, held.request() as take:
            given, votes = await read_batch(request, limits, take)
            model, found = await engine.predict([one for one in given if not isinstance(one, Fault)], place, votes=votes)
        answers = iter(found)
        results = [one if isinstance(one, Fault) else next(answers) for one in given]
        return {"model": model, "results": [{"error": one.as_json()} if isinstance(one, Fault) else one for one in results]}

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        """Members, classes, calibration, training data, figures with their intervals, licences,
        limits.
        """
        return engine.describe()

    @app.get("/v1/card", response_class=Response, responses={200: {"content": {"text/markdown": {}}}, 404: {"model": ErrorResponse}})
    async def card() -> Response:
        """The model card."""
        path = engine.bundle.folder / "card.md"
        if "card" not in engine.bundle.record or not path.is_file():
            raise Fault(404, "no_card", "This ensemble has no card", remedy="It was saved by an earlier version: `raysere evaluate RUN`.")
        return Response(path.read_text(encoding="utf-8"), media_type="text/markdown")

    @app.get("/healthz", response_model=Health)
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "alive", "model": engine.bundle.fingerprint if engine.model else ""}

    @app.get("/readyz", response_model=Health)
    async def readyz() -> dict[str, str]:
        """Whether requests are answered."""
        try:
            engine.check()
        except RuntimeError as error:
            raise Fault(503, "not_ready", f"This replica does not answer: {error}", retry_s=10.0) from error
        return {"status": "ready", "model": engine.bundle.fingerprint}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Prometheus metrics of all replicas of this machine."""
        measures: Measures = app.state.measures
        measures.waiting.set(engine.batcher.waiting)
        measures.swaps.set(engine.swaps)
        return Response(await asyncio.to_thread(measures.text), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_pages(app: FastAPI) -> None:
    """The two pages and what they load: the same files for everybody; what the model is they ask
    for with the token.
    """
    served = {path: (_OWN / name, "text/html") for path, name in _PAGES.items()} | _ASSETS

    async def static(request: Request) -> FileResponse:
        file, kind = served[request.scope["route"].path]
        return FileResponse(file, media_type=kind, headers=_HEADERS)

    for path in served:
        app.add_api_route(path, static, include_in_schema=False)


def _add_guard(app: FastAPI, token_sha256: str | None, named: Callable[[str], bool] | None) -> None:
    @app.middleware("http")
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        started, route = time.monotonic(), request.scope["path"]  # as routes are found; ``request.url`` is made of the Host that was sent
        if refused := refusal(request.method, request.headers.get, named):
            response: Response = error_response(Fault(403, refused.code, refused.message, remedy=refused.remedy))
        elif token_sha256 is not None and route not in _FREE and not _known(request, token_sha256):
            fault = Fault(401, "token", "The token is missing or wrong", remedy="Send 'Authorization: Bearer TOKEN'.")
            response = error_response(fault)
            response.headers["WWW-Authenticate"] = "Bearer"
        elif not app.state.ready and route not in ("/healthz", *_STATIC):
            response = error_response(Fault(503, "not_ready", "The server is not ready", retry_s=1.0))
        else:
            try:
                response = await call(request)
            except Exception:
                _LOG.exception("a fault of the server at %s", route)
                response = error_response(Fault(500, "internal", "A fault of the server, not of the request; it is in the log"))
        if hasattr(app.state, "measures"):
            label = route if route in _COUNTED else "other"
            app.state.measures.requests.labels(label, str(response.status_code)).inc()
            if turned_away := request.scope.get(REFUSED):
                app.state.measures.requests.labels(label, "429").inc(turned_away)
            app.state.measures.seconds.labels(label).observe(time.monotonic() - started)
        return response


_COUNTED = ("/v1/predict", "/v1/predict/batch", "/v1/model", "/")


def _known(request: Request, token_sha256: str) -> bool:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    found = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
    return scheme.lower() == "bearer" and hmac.compare_digest(found, token_sha256)


def _add_errors(app: FastAPI, replica: str) -> None:
    @app.exception_handler(Fault)
    async def fault(request: Request, error: Fault) -> Response:
        response = error_response(error)
        if error.full_s > 0:
            response.headers[FULL] = f"{replica} {error.full_s:.3f}"
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(Fault(422, "wrong_type", str(error.errors()[0].get("msg", ""))[:200]))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        known = {404: "not_found", 405: "method_not_allowed"}
        response = error_response(Fault(error.status_code, known.get(error.status_code, "http"), str(error.detail)))
        response.headers.update(error.headers or {})
        return response


_COMMON_FORM: dict[str, Any] = {
    "language": {"type": "string", "maxLength": 35},
    "corpus": {"type": "string", "maxLength": 100},
    "speaker": {"type": "string", "maxLength": 100},
    "votes": {"type": "boolean"},
}
_FILE = {"type": "string", "format": "binary"}
_SINGLE_FORM = {"file": _FILE, "text": {"type": "string"}, "trace": {"type": "boolean"}, **_COMMON_FORM}
_BATCH_FORM = {"file": {"type": "array", "items": _FILE}, "text": {"type": "array", "items": {"type": "string"}}, **_COMMON_FORM}


def _body(model: type[Any], form: dict[str, Any]) -> dict[str, Any]:
    """The two forms of a request in the OpenAPI document; the server reads them itself, to count
    while it reads.
    """
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    for name, nested in schema.pop("$defs", {}).items():
        schema = _inline(schema, name, nested)
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "properties": form, "additionalProperties": False}},
                "application/json": {"schema": schema},
            },
        }
    }


def _inline(value: Any, name: str, nested: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if value.get("$ref") == f"#/components/schemas/{name}":
            return nested
        return {key: _inline(one, name, nested) for key, one in value.items()}
    return [_inline(one, name, nested) for one in value] if isinstance(value, list) else value


def _document_token(app: FastAPI) -> None:
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
