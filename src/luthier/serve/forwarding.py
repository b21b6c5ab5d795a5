"""The same API over an engine in a process of its own: our doors, names, limits and counters in front, its answers passed on as they come."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from luthier.records import Turn
from luthier.serve import dialects, messages, passages, routing
from luthier.serve.asked import AdapterAsked, ChatAsked, CompletionAsked
from luthier.serve.counters import Counters
from luthier.serve.dialects import Body, Dialect, Forwarded
from luthier.serve.doors import Doors, Limits
from luthier.serve.embedding import Embed, Embeddings, EmbeddingsAsked
from luthier.serve.faults import Fault, overloaded, too_late, unknown_model
from luthier.serve.keys import Keys
from luthier.serve.registry import Served
from luthier.serve.shapes import model_shape
from luthier.serve.upstream import Upstream

LOG = logging.getLogger("luthier.serve")
PATHS = {ChatAsked: "/v1/chat/completions", CompletionAsked: "/v1/completions"}


@dataclass(slots=True)
class Forwarding:
    """What the routes need: the engine and how it is spoken to, the names, and what is counted.

    `most` requests are passed on at the same time or wait inside the engine; `control` are the spellings of its control tokens.
    """

    upstream: Upstream
    dialect: Dialect
    names: Mapping[str, Forwarded]  # the base first
    counters: Counters
    limits: Limits
    most: int
    knows_system: bool = True
    control: Sequence[str] = ()
    look_up: passages.LookUp | None = None
    embed: Embed | None = None
    embed_name: str = "embeddings"
    count: Callable[[str, passages.Left], int] = lambda text, left: len(text)  # the tokens of a text, for the usage of embeddings
    in_flight: int = 0
    client: httpx.AsyncClient = field(init=False)

    @property
    def adapters(self) -> int:
        return len(self.names) - 1

    @property
    def base(self) -> Served:
        return next(iter(self.names.values())).served


def application(server: Forwarding, keys: Keys, hosts: frozenset[str]) -> Doors:
    """The forwarding as an ASGI application, behind its doors."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        # No proxy of the environment stands between us and this machine; an engine that is busy may think for long.
        bounds = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        server.client = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=5), limits=bounds, trust_env=False)
        async with server.client, server.upstream.watched():
            yield

    routes, embeddings = Routes(server), Embeddings(server.embed, server.embed_name, server.count, server.limits.answer_s)
    table: list[routing.Route] = [
        ("/v1/chat/completions", "POST", routes.chat, ChatAsked),
        ("/v1/completions", "POST", routes.complete, CompletionAsked),
        ("/v1/embeddings", "POST", embeddings.answer, EmbeddingsAsked),
        ("/v1/load_lora_adapter", "POST", routes.change, AdapterAsked),
        ("/v1/unload_lora_adapter", "POST", routes.change, AdapterAsked),
        ("/v1/models", "GET", routes.models, None),
        ("/v1/models/{name}", "GET", routes.model, None),
        ("/health", "GET", routes.health, None),
        ("/ready", "GET", routes.ready, None),
        ("/metrics", "GET", routes.metrics, None),
    ]
    return routing.application(server, table, life, keys, hosts, server.limits, server.counters.count)


class Routes:
    """What each path does."""

    def __init__(self, server: Forwarding) -> None:
        self.server = server

    async def chat(self, request: Request) -> Response:
        """Answer a conversation (OpenAI's chat completions)."""
        asked, latest = await routing.read(request, ChatAsked), self._latest()
        to = self._named(request, asked.model)
        turns = turns_of(asked, to.served.system, self.server.control)
        found = await passages.looked_up(request, self.server.look_up, asked, turns, latest)
        if found is not None and found.answer:
            return passages.without_model(request, asked, to.served.name, found)
        beside = {} if found is None else {"passages": found.passages}
        said = messages.all_written(found.turns if found else turns, self.server.knows_system)
        return await self._pass_on(request, asked, to, said, beside, latest)

    async def complete(self, request: Request) -> Response:
        """Go on with a text (OpenAI's completions)."""
        asked = await routing.read(request, CompletionAsked)
        to = self._named(request, asked.model)
        if isinstance(asked.prompt, str):
            messages.check_control(asked.prompt, "prompt", self.server.control)
        return await self._pass_on(request, asked, to, [], {}, self._latest())

    async def change(self, request: Request) -> Response:
        """Adapters of such an engine are those that it was started with."""
        asked = await routing.read(request, AdapterAsked)
        routing.check_admin(request)
        self._named(request, asked.lora_name)
        problem = f"{self.server.dialect.name} has the adapters that it was started with"
        raise Fault(501, "not_supported", f"{problem}. Try: start luthier serve again, or luthier serve --engine transformers")

    async def models(self, request: Request) -> Response:
        """The base and its adapters."""
        key = routing.key_of(request)
        found = [one.served for one in self.server.names.values() if key is None or key.may_use(one.served.name)]
        shapes = [model_shape(one, self.server.base) for one in found]
        if self.server.embed is not None and (key is None or key.may_use(self.server.embed_name)):
            shapes.append(model_shape(embedder := Served(self.server.embed_name), embedder))
        return JSONResponse({"object": "list", "data": shapes})

    async def model(self, request: Request, name: str) -> Response:
        """One model."""
        if self.server.embed is not None and name == self.server.embed_name:
            routing.check_key(request, name)
            return JSONResponse(model_shape(embedder := Served(name), embedder))
        return JSONResponse(model_shape(self._named(request, name).served, self.server.base))

    async def health(self, request: Request) -> Response:
        """Whether the process is there, and its engine is or will be."""
        ended = self.server.upstream.ended
        return JSONResponse({"status": "failing" if ended else "ok"}, 503 if ended else 200)

    async def ready(self, request: Request) -> Response:
        """Whether requests are answered."""
        ready = self.server.upstream.ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Counters in Prometheus' text format."""
        routing.check_admin(request)
        counters = self.server.counters
        counters.in_flight.set(self.server.in_flight)
        counters.running.set(self.server.in_flight)
        counters.loaded.set(self.server.adapters)
        return Response(counters.text(), media_type="text/plain; version=0.0.4")

    def _named(self, request: Request, name: str) -> Forwarded:
        routing.check_key(request, name)
        if name not in self.server.names:
            raise unknown_model(name)
        return self.server.names[name]

    def _latest(self) -> float:
        """When a request that begins now has to be answered (of time.monotonic)."""
        return time.monotonic() + self.server.limits.answer_s

    async def _pass_on(
        self, request: Request, asked: ChatAsked | CompletionAsked, to: Forwarded, said: Sequence[Body], beside: Body, latest: float
    ) -> Response:
        key = routing.key_of(request)
        body = dialects.body_of(self.server.dialect, asked, said, to, self.server.adapters, key.name if key else "")
        passed = Passed(self.server, to.served.name, routing.id_of(request), PATHS[type(asked)], body, beside, latest)
        if asked.stream:
            with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            events = passed.events(with_usage)
            # The engine has taken the request once this returns; what it refuses is raised here, with its status.
            await routing.unless_gone(request, anext(events), lambda: None)
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await routing.unless_gone(request, passed.whole(), lambda: None))


def turns_of(asked: ChatAsked, system: str | None, control: Sequence[str]) -> list[Turn]:
    """The conversation, with the system message of the run's contract where it has none.

    Raises a Fault for messages that mean nothing, and for a text that the engine would read as a control token.
    """
    turns = asked.turns
    if system and turns[0].role != "system":
        turns = [Turn("system", system), *turns]
    for text in (*(one.content for one in turns), *(one.extra for one in turns), asked.tools_as_json):
        messages.check_control(text, "messages", control)
    return turns


class Passed:
    """One request on its way through the engine. What is `beside` stands in its answer too: in a stream, in the first piece. It ends
    at `latest` (of time.monotonic)."""

    def __init__(self, server: Forwarding, name: str, id: str, path: str, body: Body, beside: Body, latest: float) -> None:
        self.server, self.name, self.id, self.path, self.body, self.beside = server, name, id, path, body, beside
        self._begun, self._latest = time.monotonic(), latest

    async def whole(self) -> Body:
        """The answer, once it is whole. Where the client goes away this is cancelled, and so is the engine's work."""
        async with self._sent() as response:
            answer = _parsed(await self._in_time(response.aread()))
            self._first()
            self._count(answer)
            return dialects.whole(answer, self.id, self.name) | self.beside

    async def events(self, with_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events, after an empty piece that says that the engine has taken the request.

        What the engine refuses is raised before that; what fails later is the last event.
        """
        taken, beside = False, self.beside
        try:
            async with self._sent() as response:
                taken = True
                yield ""
                async for answer in self._pieces(response):
                    self._count(answer)
                    shaped = dialects.whole(answer, self.id, self.name)
                    usage = shaped.pop("usage", None)
                    if shaped["choices"]:
                        self._first()
                        yield routing.event(shaped | beside)
                        beside = {}
                    if usage and with_usage:
                        yield routing.event({**shaped, "choices": [], "usage": usage})
        except Fault as fault:
            if not taken:
                raise
            yield routing.event(fault.body(self.id))
        yield "data: [DONE]\n\n"

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[Body]:
        lines = aiter(response.aiter_lines())
        while (line := await self._in_time(anext(lines, None))) is not None:
            if not line.startswith(("data:", "error:")) or (text := line.partition(":")[2].strip()) == "[DONE]":
                continue
            answer = _parsed(text.encode())
            if "choices" not in answer:
                LOG.error("%s: %s broke an answer off", self.id, self.server.dialect.name)
                raise dialects.fault_of(self.server.dialect.name, 500, answer)
            yield answer

    @contextlib.asynccontextmanager
    async def _sent(self) -> AsyncIterator[httpx.Response]:
        """The engine's response, headers read; its connection is closed at the end, which ends the work inside the engine."""
        server = self.server
        backend = server.upstream.there()
        if server.in_flight >= server.most:
            raise overloaded()
        server.in_flight += 1
        try:
            request = server.client.build_request("POST", backend.url + self.path, json=self.body, headers=dict(backend.headers))
            response = await self._in_time(server.client.send(request, stream=True))
            try:
                if response.status_code != 200:
                    raise self._refused(response.status_code, _parsed(await self._in_time(response.aread())))
                yield response
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            LOG.error("%s: the connection to %s broke (%s)", self.id, server.dialect.name, type(error).__name__)
            raise server.upstream.down() from error
        finally:
            server.in_flight -= 1

    def _refused(self, status: int, answer: Any) -> Fault:
        fault = dialects.fault_of(self.server.dialect.name, status, answer)
        if fault.status >= 500:
            LOG.error("%s: %s answered %s", self.id, self.server.dialect.name, status)
        return fault

    async def _in_time(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(self._latest - time.monotonic()):
                return await work
        except TimeoutError as error:
            raise too_late() from error

    def _first(self) -> None:
        if self._begun:
            self.server.counters.first.observe(time.monotonic() - self._begun)
            self._begun = 0.0

    def _count(self, answer: Body) -> None:
        if usage := dialects.usage_of(answer):
            counters = self.server.counters
            counters.prompt_tokens.labels(self.name).inc(usage["prompt_tokens"])
            counters.reused_tokens.labels(self.name).inc(usage["prompt_tokens_details"]["cached_tokens"])
            counters.answer_tokens.labels(self.name).inc(usage["completion_tokens"])


def _parsed(body: bytes) -> Body:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"message": "its answer is no JSON"}
