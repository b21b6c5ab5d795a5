"""Answers with the passages that they were made from, where the server has documents to look things up in."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from luthier.engine.spelling import Spelling
from luthier.errors import DataError
from luthier.records import Turn
from luthier.serve import routing
from luthier.serve.asked import ChatAsked
from luthier.serve.faults import Fault, bad_request, too_late
from luthier.serve.registry import now
from luthier.serve.shapes import Part, Shape, chat_shape

# Beside passages an answer has this much room where the request does not say.
ANSWER_TOKENS = 256
NOTHING_SPELLED = Spelling(None, False, frozenset())  # an answer that no model gave has no tokens


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A conversation with passages before its last question, and the same passages for the client. With an `answer` the model is not asked:
    nothing of the documents has to do with the question."""

    turns: list[Turn]
    passages: list[dict[str, object]]
    answer: str = ""


# Seconds that a look-up may still take. Raises a Fault once there are none, or nobody waits for it.
Left = Callable[[], float]
# A conversation, the tokens that its answer may have (None: as many as there is room for) and its tools (JSON, or "") to the same with passages.
# Raises DataError where the question leaves no room for any.
LookUp = Callable[[list[Turn], int | None, str, Left], LookedUp]


def look_up_with(ground: Callable[[Left], Callable[..., Any]], not_there: str) -> LookUp:
    """A look-up: what `ground` gives puts passages before a conversation's question, and where nothing fits the answer is `not_there`."""

    def look_up(turns: list[Turn], answer_tokens: int | None, tools: str, left: Left) -> LookedUp:
        grounded = ground(left)(turns, answer_tokens or ANSWER_TOKENS, tools=tools)
        return LookedUp(grounded.turns, grounded.passages, "" if grounded.passages else not_there)

    return look_up


@dataclass(slots=True)
class Waiting:
    """Somebody who waits for a look-up, until `latest` (of time.monotonic) at most."""

    latest: float
    over: bool = False

    def left(self) -> float:
        """Seconds. Raises a Fault where there are none."""
        seconds = 0.0 if self.over else self.latest - time.monotonic()
        if seconds <= 0:
            raise too_late()
        return seconds


async def looked_up(request: Request, look_up: LookUp | None, asked: ChatAsked, turns: list[Turn], latest: float) -> LookedUp | None:
    """The conversation with passages; None where this request or this server looks nothing up.

    Raises a Fault where there is no room for passages, where nothing fits and the answer was to be JSON, and at `latest` (of time.monotonic).
    A look-up that nobody waits for any more ends before the next tokens that it would have counted elsewhere.
    """
    if look_up is None:
        if asked.rag:
            raise bad_request("rag", "is asked for, and this server has no documents", "luthier serve RUN --rag INDEX")
        return None
    if asked.rag is False or turns[-1].role != "user":  # what a tool gave is no question
        return None
    waiting = Waiting(latest)
    try:
        async with asyncio.timeout(waiting.left()):
            work = asyncio.to_thread(look_up, turns, asked.limit, asked.tools_as_json, waiting.left)
            found = await routing.unless_gone(request, work, lambda: None)
    except TimeoutError as error:
        raise too_late() from error
    except DataError as error:
        raise bad_request("messages", error.problem, error.next_step) from error
    finally:
        waiting.over = True
    if found.answer and asked.response_format and asked.response_format.schema_of_answer is not None:
        problem = "nothing in the documents fits the question, and a sentence that says so is not the JSON that response_format asks for"
        raise Fault(400, "not_in_documents", f'{problem}. Try: another question, or "rag": false', "messages")
    return found


def without_model(request: Request, asked: ChatAsked, name: str, found: LookedUp) -> Response:
    """The answer of a look-up that found nothing, in the shape that was asked for."""
    shape = Cited(chat_shape(routing.id_of(request), now(), name, asked.likeliest, NOTHING_SPELLED), found.passages)
    if asked.stream:
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return StreamingResponse(_stream(shape, found.answer, asked.n, with_usage), media_type="text/event-stream")
    return JSONResponse(shape.whole(_parts(found.answer, asked.n), asked.n, NO_USAGE))


@dataclass(frozen=True, slots=True)
class Cited:
    """Another shape, with a field `passages` in a whole answer, or in the first piece of a stream."""

    shape: Shape
    passages: list[dict[str, object]]
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.shape.id)

    def begin(self, place: int) -> dict[str, Any] | None:
        """The first piece of answer `place`; that of the first answer has the passages."""
        begun = self.shape.begin(place)
        return {**begun, "passages": self.passages} if begun is not None and place == 0 else begun

    def piece(self, part: Part) -> dict[str, Any]:
        """A piece as it is."""
        return self.shape.piece(part)

    def last(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The usage as it is."""
        return self.shape.last(usage)

    def whole(self, parts: list[Part], answers: int, usage: dict[str, Any]) -> dict[str, Any]:
        """The whole answers, and the passages."""
        return {**self.shape.whole(parts, answers, usage), "passages": self.passages}


NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}}


async def _stream(shape: Shape, answer: str, answers: int, with_usage: bool) -> AsyncIterator[str]:
    for place, part in enumerate(_parts(answer, answers)):
        if begin := shape.begin(place):
            yield routing.event(begin)
        yield routing.event(shape.piece(part))
    if with_usage:
        yield routing.event(shape.last(NO_USAGE))
    yield "data: [DONE]\n\n"


def _parts(answer: str, answers: int) -> list[Part]:
    return [Part(place, answer, (), "stop") for place in range(answers)]
