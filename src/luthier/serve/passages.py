"""Answers with the passages that they were made from, where the server has documents to look things up in."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from luthier.records import Turn
from luthier.serve import routing
from luthier.serve.shapes import Part, Shape


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A conversation with passages before its last question, and the same passages for the client. With an `answer` the model is not asked:
    nothing of the documents has to do with the question."""

    turns: list[Turn]
    passages: list[dict[str, object]]
    answer: str = ""


# A conversation and the tokens that its answer may have (None: as many as there is room for) to the same with passages. Raises DataError where
# the question leaves no room for any.
LookUp = Callable[[list[Turn], int | None], LookedUp]


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


def whole(shape: Shape, answer: str, answers: int) -> dict[str, Any]:
    """An answer that no model was asked for."""
    return shape.whole(_parts(answer, answers), answers, NO_USAGE)


async def stream(shape: Shape, answer: str, answers: int, with_usage: bool) -> AsyncIterator[str]:
    """The same as server-sent events."""
    for place, part in enumerate(_parts(answer, answers)):
        if begin := shape.begin(place):
            yield routing.event(begin)
        yield routing.event(shape.piece(part))
    if with_usage:
        yield routing.event(shape.last(NO_USAGE))
    yield "data: [DONE]\n\n"


def _parts(answer: str, answers: int) -> list[Part]:
    return [Part(place, answer, (), "stop") for place in range(answers)]
