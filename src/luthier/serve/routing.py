"""What the routes of every server share: the application with its faults in OpenAI's shape, bodies, keys, and clients that go away."""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from luthier.serve import bodies
from luthier.serve.doors import Doors, Limits
from luthier.serve.faults import Fault, internal
from luthier.serve.keys import Key, Keys

LOG = logging.getLogger("luthier.serve")
CLIENT_GONE = 499  # nginx's
SCHEMAS = "#/components/schemas/{model}"
REFUSALS = {
    400: "a field, or the request as a whole, means nothing",
    401: "no API key, or a wrong one",
    403: "not with this key, under this name (Host), or from this page (Origin)",
    404: "no such model or path",
    405: "not with this method",
    408: "the request took too long to come",
    413: "the body is too large",
    414: "the path is too long",
    415: "the body is no JSON, or is compressed",
    422: "the adapter cannot be served",
    431: "the headers are too large",
    500: "a fault of the server",
    501: "not with this engine, or not without a library that is missing",
    503: "too many requests wait, or the server is about to end: come again later (Retry-After)",
    504: "the answer took too long",
}
OF_BODIES = (413, 415, 422, 501, 504)
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("message", "type", "request_id")}
            | {name: {"type": ["string", "null"]} for name in ("code", "param")},
            "required": ["message", "type", "code", "param", "request_id"],
        }
    },
    "required": ["error"],
}
Given = TypeVar("Given")
# A path, its method, what it does, and the body that it takes.
Route = tuple[str, str, Callable[..., Any], type[BaseModel] | None]
Life = Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]


def application(
    server: Any, table: Sequence[Route], life: Life, keys: Keys, hosts: frozenset[str], limits: Limits, count: Callable[[str, str, int, float], None]
) -> Doors:
    """The routes of `table` as an ASGI application behind its doors; `server` is what tests and the command line look at (app.state.server)."""
    app = FastAPI(title="Luthier", version="1", lifespan=life)
    app.state.server = server
    app.add_exception_handler(Fault, _say_fault)
    app.add_exception_handler(HTTPException, _say_http_fault)
    app.add_exception_handler(ClientDisconnect, _say_gone)
    app.add_exception_handler(Exception, _say_failure)
    for path, method, handler, model in table:
        content = {"application/json": {"schema": {"$ref": SCHEMAS.format(model=model.__name__)}}} if model else {}
        body = {"requestBody": {"required": True, "content": content}} if model else None
        app.add_api_route(path, handler, methods=[method], openapi_extra=body, response_model=None, responses=_refusals(bool(model)))
    _describe(app, [model for _, _, _, model in table if model])
    return Doors(app, keys, hosts, limits, count)


def _refusals(with_body: bool) -> dict[int | str, dict[str, Any]]:
    """What a path may answer besides 200, for the OpenAPI page."""
    error = {"content": {"application/json": {"schema": {"$ref": SCHEMAS.format(model="Error")}}}}
    return {status: {"description": said, **error} for status, said in REFUSALS.items() if with_body or status not in OF_BODIES}


def _describe(app: FastAPI, models: list[type[BaseModel]]) -> None:
    """Put the bodies among the schemas of the OpenAPI page: FastAPI only knows of those that it reads itself."""
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMAS)
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document.setdefault("components", {})["schemas"] = {**found["$defs"], "Error": ERROR}
        return document

    app.openapi = openapi  # type: ignore[method-assign]


async def _say_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    return JSONResponse(error.body(id_of(request)), error.status, headers)


async def _say_http_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    fault = Fault(error.status_code, "not_found" if error.status_code == 404 else "not_allowed", str(error.detail))
    return JSONResponse(fault.body(id_of(request)), error.status_code, dict(error.headers or {}))


async def _say_gone(request: Request, error: Exception) -> Response:
    """Nobody reads it; the log and the counters do."""
    return Response(status_code=CLIENT_GONE)


async def _say_failure(request: Request, error: Exception) -> Response:
    LOG.error("%s failed", id_of(request), exc_info=error)
    return JSONResponse(internal().body(id_of(request)), 500)


def id_of(request: Request) -> str:
    """The id that the doors gave a request; its log line and its errors have it."""
    return str(request.scope["state"]["request_id"])


async def read(request: Request, model: Any) -> Any:
    """The body as a record of `model`. Raises a Fault (4xx) that names the field."""
    body = await request.body()
    headers = request.headers
    return await asyncio.to_thread(bodies.read, body, headers.get("content-type", ""), headers.get("content-encoding", ""), model)


def key_of(request: Request) -> Key | None:
    """Whose request it is; None where no keys are asked for."""
    key: Key | None = request.scope["state"]["key"]
    return key


def check_key(request: Request, name: str) -> None:
    """Raises a Fault (403) where the key may not use the model `name`."""
    key = key_of(request)
    if key is not None and not key.may_use(name):
        raise Fault(403, "model_not_allowed", "this API key may not use that model", "model")


def check_admin(request: Request) -> None:
    """Raises a Fault (403) where the key may only ask models."""
    key = key_of(request)
    if key is not None and not key.admin:
        raise Fault(403, "not_admin", "this API key may only ask models")


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def unless_gone(request: Request, work: Awaitable[Given], cancel: Callable[[], None]) -> Given:
    """What `work` gives; where the client goes away before, the work is stopped."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":  # its body was read before
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            cancel()
            raise Fault(CLIENT_GONE, "client_gone", "the client has gone")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
