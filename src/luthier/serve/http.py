"""The application: OpenAI's paths over one model and its adapters."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from luthier.data.tokenize import prompt_ids
from luthier.engine import continuous
from luthier.engine.answers import Text, text_of
from luthier.engine.by_row import RowAdapter
from luthier.engine.sampling import Sampling
from luthier.engine.spelling import Spelling
from luthier.errors import DataError
from luthier.records import Turn
from luthier.serve import bending, passages, routing
from luthier.serve.answering import Answering, Job
from luthier.serve.asked import AdapterAsked, ChatAsked, CompletionAsked
from luthier.serve.counters import Counters
from luthier.serve.doors import Doors, Limits
from luthier.serve.embedding import Embed, Embeddings, EmbeddingsAsked
from luthier.serve.faults import Fault, bad_request, internal, too_late
from luthier.serve.keys import Keys
from luthier.serve.registry import Registry, Served, now
from luthier.serve.shapes import Answered, Part, Shape, chat_shape, completion_shape, model_shape

LOG = logging.getLogger("luthier.serve")
Asked = TypeVar("Asked", ChatAsked, CompletionAsked)
LEAST_TEMPERATURE = 1e-4
# Faults of an adapter's files that may be over in a moment, and how often and how soon they are read again.
UNFIT = ("adapter_unusable", "adapter_changes")
MOST_LOADS, LOAD_AGAIN_S = 8, 0.2


@dataclass(frozen=True, slots=True)
class Server:
    """What the routes need: the model behind its thread, its tokenizer, the names, and what is counted."""

    answering: Answering
    tokenizer: Any
    stop_ids: frozenset[int]
    context: int | None
    words: int
    registry: Registry
    counters: Counters
    grammars: bending.Grammars
    limits: Limits
    drain_s: float = 30.0
    embed: Embed | None = None
    embed_name: str = "embeddings"
    look_up: passages.LookUp | None = None


def application(server: Server, keys: Keys, hosts: frozenset[str]) -> Doors:
    """The server as an ASGI application, behind its doors."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        server.answering.start()
        yield
        await asyncio.to_thread(server.answering.stop, server.drain_s)

    def count(text: str, left: passages.Left) -> int:
        return len(server.tokenizer(text).input_ids)

    routes, embeddings = Routes(server), Embeddings(server.embed, server.embed_name, count, server.limits.answer_s)
    table: list[routing.Route] = [
        ("/v1/chat/completions", "POST", routes.chat, ChatAsked),
        ("/v1/completions", "POST", routes.complete, CompletionAsked),
        ("/v1/embeddings", "POST", embeddings.answer, EmbeddingsAsked),
        ("/v1/load_lora_adapter", "POST", routes.load, AdapterAsked),
        ("/v1/unload_lora_adapter", "POST", routes.unload, AdapterAsked),
        ("/v1/models", "GET", routes.models, None),
        ("/v1/models/{name}", "GET", routes.model, None),
        ("/health", "GET", routes.health, None),
        ("/ready", "GET", routes.ready, None),
        ("/metrics", "GET", routes.metrics, None),
    ]
    return routing.application(server, table, life, keys, hosts, server.limits, server.counters.count)


class Routes:
    """What each path does."""

    def __init__(self, server: Server) -> None:
        self.server, self.spelling = server, Spelling.of(server.tokenizer)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation (OpenAI's chat completions)."""
        asked, latest = await routing.read(request, ChatAsked), self._latest()
        bends = []
        if asked.response_format and (schema := asked.response_format.schema_of_answer) is not None:
            bends = [await asyncio.to_thread(self.server.grammars.bend, schema) for _ in range(asked.n)]

        await self._adapter(await self._served(request, asked.model))
        served = await self._served(request, asked.model)  # what its contract says is known once it is loaded
        turns = asked.turns
        if served.system and turns[0].role != "system":
            turns = [Turn("system", served.system), *turns]
        looked_up = await passages.looked_up(request, self.server.look_up, asked, turns, latest)
        if looked_up is not None and looked_up.answer:
            return passages.without_model(request, asked, served.name, looked_up)

        async def prompt(served: Served) -> list[int]:
            return await self._ids(turns if looked_up is None else looked_up.turns, asked.tools_as_json)

        def shape(*about: Any) -> Shape:
            return chat_shape(*about) if looked_up is None else passages.Cited(chat_shape(*about), looked_up.passages)

        return await self._answer(request, asked, prompt, shape, bends, latest)

    async def complete(self, request: Request) -> Response:
        """Go on with a text (OpenAI's completions)."""
        asked = await routing.read(request, CompletionAsked)

        async def prompt(served: Served) -> list[int]:
            if isinstance(asked.prompt, str):
                return await self._ids([Turn("prompt", asked.prompt)], "")
            if unknown := [token for token in asked.prompt if token >= self.server.words]:
                raise bad_request("prompt", f"holds token {unknown[0]}, and the model has {self.server.words}", "send ids of this tokenizer")
            return list(asked.prompt)

        return await self._answer(request, asked, prompt, completion_shape, [], self._latest())

    async def models(self, request: Request) -> Response:
        """The base and its adapters."""
        key = request.scope["state"]["key"]
        shapes = [model_shape(one, self.server.registry.base) for one in await asyncio.to_thread(self.server.registry.all)]
        if self.server.embed is not None:
            embedder = Served(self.server.embed_name)
            shapes.append(model_shape(embedder, embedder))
        return JSONResponse({"object": "list", "data": [one for one in shapes if key is None or key.may_use(one["id"])]})

    async def model(self, request: Request, name: str) -> Response:
        """One model."""
        if self.server.embed is not None and name == self.server.embed_name:
            routing.check_key(request, name)
            embedder = Served(name)
            return JSONResponse(model_shape(embedder, embedder))
        return JSONResponse(model_shape(await self._served(request, name), self.server.registry.base))

    async def load(self, request: Request) -> Response:
        """Answer to an adapter's name, with its folder as it is now."""
        asked = await routing.read(request, AdapterAsked)
        routing.check_admin(request)
        await asyncio.to_thread(self.server.registry.take_in, asked.lora_name)
        await self._load(asked.lora_name, anew=True)
        return JSONResponse({"status": "loaded", "model": asked.lora_name})

    async def unload(self, request: Request) -> Response:
        """Answer to an adapter's name no more; what is being answered is answered."""
        asked = await routing.read(request, AdapterAsked)
        routing.check_admin(request)
        adapter = await asyncio.to_thread(self.server.registry.unload, asked.lora_name)
        if adapter is not None:
            self.server.answering.forget(adapter.key)
        return JSONResponse({"status": "unloaded", "model": asked.lora_name})

    async def health(self, request: Request) -> Response:
        """Whether the process is there."""
        return JSONResponse({"status": "ok" if self.server.answering.alive else "failing"}, 200 if self.server.answering.alive else 503)

    async def ready(self, request: Request) -> Response:
        """Whether requests are answered."""
        ready = self.server.answering.alive and self.server.answering.ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Counters in Prometheus' text format."""
        routing.check_admin(request)
        counters, answering = self.server.counters, self.server.answering
        counters.in_flight.set(answering.in_flight)
        counters.running.set(answering.running)
        counters.loaded.set(len(self.server.registry.loaded))
        return Response(counters.text(), media_type="text/plain; version=0.0.4")

    def _latest(self) -> float:
        """When a request that begins now has to be answered (of time.monotonic)."""
        return time.monotonic() + self.server.limits.answer_s

    async def _served(self, request: Request, name: str) -> Served:
        routing.check_key(request, name)
        return await asyncio.to_thread(self.server.registry.served, name)

    async def _adapter(self, served: Served) -> RowAdapter | None:
        if served.folder is None:
            return None
        return await asyncio.to_thread(self.server.registry.ready, served.name) or await self._load(served.name)

    async def _load(self, name: str, *, anew: bool = False) -> RowAdapter:
        """Read an adapter; one that is being replaced right now, once more a moment later."""
        for _ in range(MOST_LOADS):
            try:
                return await self._load_once(name, anew=anew)
            except Fault as fault:
                if fault.code not in UNFIT or not await asyncio.to_thread(self.server.registry.just_changed, name):
                    raise
            await asyncio.sleep(LOAD_AGAIN_S)
        return await self._load_once(name, anew=anew)

    async def _load_once(self, name: str, *, anew: bool) -> RowAdapter:
        """Between two steps: a prompt's virtual tokens run through the model."""
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def then(given: Any) -> None:
            loop.call_soon_threadsafe(lambda: done.done() or (done.set_exception if isinstance(given, BaseException) else done.set_result)(given))

        self.server.answering.call(lambda: self.server.registry.load(name, anew=anew), then)
        adapter: RowAdapter = await done
        return adapter

    async def _ids(self, turns: list[Turn], tools: str) -> list[int]:
        try:
            ids: list[int] = await asyncio.to_thread(prompt_ids, turns, self.server.tokenizer, tools)
            return ids
        except DataError as error:
            raise bad_request("messages", error.problem, error.next_step) from error

    async def _answer(
        self,
        request: Request,
        asked: Any,
        prompt_of: Callable[[Served], Awaitable[list[int]]],
        shape_of: Callable[..., Shape],
        grammars: list[Any],
        latest: float,
    ) -> Response:
        served = await self._served(request, asked.model)
        prompt = await prompt_of(served)
        adapter = await self._adapter(served)
        text = text_of(self.server.tokenizer, asked.stops)
        answers = Answers(self.server, served.name, text)
        key = request.scope["state"]["key"]
        answers.ask(self._requests(asked, prompt, adapter, text, grammars, answers, key.name if key else ""))
        shape = shape_of(routing.id_of(request), now(), served.name, asked.likeliest, self.spelling)
        if asked.stream:
            with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            return StreamingResponse(answers.stream(shape, with_usage, latest), media_type="text/event-stream")
        return JSONResponse(await routing.unless_gone(request, answers.whole(shape, latest), answers.cancel))

    def _limit(self, prompt_tokens: int, asked: int | None) -> int:
        context, room = self.server.context, self.server.answering.most_tokens
        most = min((limit for limit in (context, room) if limit is not None), default=None)
        if most is None:
            return asked or 4096
        if prompt_tokens >= most:
            what = "the model's context" if most == context else "the memory of this server"
            problem = f"the prompt has {prompt_tokens:,} tokens and {what} {most:,}"
            raise Fault(400, "context_length_exceeded", f"{problem}: there is no room for an answer. Try: a shorter prompt", "messages")
        return min(asked or most, most - prompt_tokens)

    def _requests(
        self, asked: Any, prompt: list[int], adapter: RowAdapter | None, text: Text, grammars: list[continuous.Bend], answers: "Answers", tenant: str
    ) -> list[continuous.Request]:
        """One for each answer that is asked for; they differ in their draws alone."""
        limit = self._limit(len(prompt) + (adapter.virtual_tokens if adapter else 0), asked.limit)
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        temperature = asked.temperature if asked.temperature > LEAST_TEMPERATURE else 0.0  # smaller ones overflow
        sampling = Sampling(temperature, asked.top_p, asked.top_k, asked.min_p, asked.repetition_penalty, seed)
        wishes = []
        if asked.logit_bias:
            wishes.append(bending.biases(asked.logit_bias, self.server.words))
        if asked.frequency_penalty or asked.presence_penalty:
            wishes.append(bending.penalties(asked.frequency_penalty, asked.presence_penalty))
        requests = []
        for place in range(asked.n):
            bend = bending.together([*wishes, *grammars[place : place + 1]])
            guarded = bending.guarded(bend, answers.fail) if bend else None
            requests.append(
                continuous.Request(prompt, limit, self.server.stop_ids, sampling, adapter, text.ended, guarded, asked.likeliest, tenant, place)
            )
        return requests


class Answers:
    """The answers to one HTTP request: what the model says of each comes in here from the answering thread."""

    def __init__(self, server: Server, name: str, text: Text) -> None:
        self.server, self.name, self.text = server, name, text
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._jobs: list[Job] = []
        self._begun = time.monotonic()
        self._open = 0

    def ask(self, requests: list[continuous.Request]) -> None:
        """Hand the requests to the model. Raises a Fault where it takes none."""
        self._jobs = [Job(request, self._teller(place)) for place, request in enumerate(requests)]
        self._open = len(requests)
        self.server.answering.submit(self._jobs)

    def _teller(self, place: int) -> Callable[[Any], None]:
        def tell(told: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
                self._loop.call_soon_threadsafe(self._told.put_nowait, (place, told))

        return tell

    def fail(self, error: Exception) -> None:
        """A fault of one request's own wishes, on the answering thread."""
        LOG.error("a request's own constraint failed", exc_info=error)
        self._teller(0)(internal())

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.server.answering.cancel(self._jobs)

    async def parts(self, latest: float, *, whole: bool = False) -> AsyncIterator[Part]:
        """What each answer says, as it comes; ends when all have ended. Raises a Fault where one fails, and at `latest` (of time.monotonic)."""
        growing = [Answered(self.text, whole) for _ in self._jobs]
        first = True
        try:
            while self._open:
                async with asyncio.timeout(latest - time.monotonic()):  # not around what the client does with a part
                    place, told = await self._told.get()
                if isinstance(told, Fault):
                    raise told
                if first:
                    self.server.counters.first.observe(time.monotonic() - self._begun)
                    first = False
                if isinstance(told, str):
                    self._open -= 1
                    self._count(self._jobs[place].request)
                    yield growing[place].end(place, told)
                elif part := growing[place].add(place, told):
                    yield part
        except TimeoutError as error:
            raise too_late() from error
        finally:
            if self._open:
                self.cancel()

    def _count(self, request: continuous.Request) -> None:
        counters = self.server.counters
        counters.prompt_tokens.labels(self.name).inc(len(request.prompt))
        counters.reused_tokens.labels(self.name).inc(request.reused_tokens)
        counters.answer_tokens.labels(self.name).inc(len(request.answer))

    @property
    def usage(self) -> dict[str, Any]:
        """OpenAI's count of tokens."""
        requests = [job.request for job in self._jobs]
        prompt, answers = len(requests[0].prompt), sum(len(request.answer) for request in requests)
        cached = {"cached_tokens": requests[0].reused_tokens}
        return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers, "prompt_tokens_details": cached}

    async def whole(self, shape: Shape, latest: float) -> dict[str, Any]:
        """All answers, once they are whole."""
        parts = [part async for part in self.parts(latest, whole=True)]
        return shape.whole(parts, len(self._jobs), self.usage)

    async def stream(self, shape: Shape, with_usage: bool, latest: float) -> AsyncIterator[str]:
        """The answers as server-sent events; a fault is the last event before the end."""
        try:
            for place in range(len(self._jobs)):
                if begin := shape.begin(place):
                    yield routing.event(begin)
            async for part in self.parts(latest):
                yield routing.event(shape.piece(part))
            if with_usage:
                yield routing.event(shape.last(self.usage))
        except Fault as fault:
            yield routing.event(fault.body(shape.id))
        yield "data: [DONE]\n\n"
