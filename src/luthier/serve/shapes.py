"""Answers in OpenAI's shapes: whole, or piece by piece."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from luthier.engine.answers import Growing, Text
from luthier.engine.continuous import Said
from luthier.engine.spelling import Spelling
from luthier.serve.registry import Served


@dataclass(frozen=True, slots=True)
class Part:
    """What is new of answer `place`: text, the tokens behind it, and why it ended ("" where it goes on)."""

    place: int
    text: str
    said: tuple[Said, ...] = ()
    finish: str = ""


@dataclass(slots=True)
class Answered:
    """One answer as it grows: tokens come in, parts with whole characters go out; of a `whole` answer only the last one."""

    text: Text
    whole: bool = False
    growing: Growing = field(init=False)
    waiting: list[Said] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.growing = Growing(self.text)

    def add(self, place: int, said: Said) -> Part | None:
        """A token; None where nothing can be shown yet."""
        self.waiting.append(said)
        if self.whole:
            self.growing.ids.append(said.token)
            return None
        piece = self.growing.add(said.token)
        return self._part(place, piece, "") if piece else None

    def end(self, place: int, finish: str) -> Part:
        """The end, with what was held back."""
        return self._part(place, self.growing.rest(), finish)

    def _part(self, place: int, text: str, finish: str) -> Part:
        part = Part(place, text, tuple(self.waiting), finish)
        self.waiting.clear()
        return part


@runtime_checkable
class Shape(Protocol):
    """How an endpoint writes its answers."""

    @property
    def id(self) -> str: ...
    def begin(self, place: int) -> dict[str, Any] | None: ...
    def piece(self, part: Part) -> dict[str, Any]: ...
    def last(self, usage: dict[str, Any]) -> dict[str, Any]: ...
    def whole(self, parts: list[Part], answers: int, usage: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class _Chat:
    id: str
    created: int
    model: str
    likeliest: int | None
    spelling: Spelling

    def begin(self, place: int) -> dict[str, Any]:
        return self._chunk(place, {"role": "assistant", "content": ""}, None, None)

    def piece(self, part: Part) -> dict[str, Any]:
        return self._chunk(part.place, {"content": part.text} if part.text else {}, self._logprobs(part.said), part.finish or None)

    def last(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def whole(self, parts: list[Part], answers: int, usage: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for place in range(answers):
            text, said, finish = _joined(parts, place)
            message = {"role": "assistant", "content": text}
            choices.append({"index": place, "message": message, "logprobs": self._logprobs(said), "finish_reason": finish})
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, place: int, delta: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, said: tuple[Said, ...]) -> dict[str, Any] | None:
        if self.likeliest is None:
            return None
        content = [
            {**_token(self.spelling, one.token, one.log_probability), "top_logprobs": [_token(self.spelling, *pair) for pair in one.likeliest]}
            for one in said
        ]
        return {"content": content}


@dataclass(frozen=True, slots=True)
class _Completion:
    id: str
    created: int
    model: str
    likeliest: int | None
    spelling: Spelling

    def begin(self, place: int) -> None:
        return None

    def piece(self, part: Part) -> dict[str, Any]:
        return {**self._head(), "choices": [self._choice(part.place, part.text, part.said, part.finish or None)]}

    def last(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head(), "choices": [], "usage": usage}

    def whole(self, parts: list[Part], answers: int, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head(), "choices": [self._choice(place, *_joined(parts, place)) for place in range(answers)], "usage": usage}

    def _head(self) -> dict[str, Any]:
        return {"id": f"cmpl-{self.id}", "object": "text_completion", "created": self.created, "model": self.model}

    def _choice(self, place: int, text: str, said: tuple[Said, ...], finish: str | None) -> dict[str, Any]:
        logprobs = None
        if self.likeliest is not None:
            pairs = [{self.spelling.text_of(token): value for token, value in one.likeliest} for one in said]
            tokens = [self.spelling.text_of(one.token) for one in said]
            logprobs = {"tokens": tokens, "token_logprobs": [one.log_probability for one in said], "top_logprobs": pairs or None}
        return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": finish}


def chat_shape(request_id: str, created: int, model: str, likeliest: int | None, spelling: Spelling) -> Shape:
    """OpenAI's chat.completion."""
    return _Chat(request_id, created, model, likeliest, spelling)


def completion_shape(request_id: str, created: int, model: str, likeliest: int | None, spelling: Spelling) -> Shape:
    """OpenAI's text_completion."""
    return _Completion(request_id, created, model, likeliest, spelling)


def model_shape(served: Served, base: Served) -> dict[str, Any]:
    """An entry of /v1/models; an adapter names its base as its parent, as vLLM does."""
    parent = None if served.name == base.name else base.name
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "luthier", "parent": parent, "root": served.name}


def _joined(parts: list[Part], place: int) -> tuple[str, tuple[Said, ...], str | None]:
    own = [part for part in parts if part.place == place]
    return "".join(part.text for part in own), tuple(one for part in own for one in part.said), own[-1].finish or None


def _token(spelling: Spelling, token: int, log_probability: float) -> dict[str, Any]:
    return {"token": spelling.text_of(token), "logprob": log_probability, "bytes": list(spelling.bytes_of(token))}
