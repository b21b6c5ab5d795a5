"""/v1/embeddings: the vectors of texts, where an embedder is loaded."""

import asyncio
import base64
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from luthier.serve import routing
from luthier.serve.faults import Fault, bad_request, overloaded, too_late, unknown_model
from luthier.serve.passages import Left, Waiting

MOST_TEXTS = 2048  # OpenAI's own
MOST_WAITING = 16
# Texts to vectors, float32 (N, D).
Embed = Callable[[list[str]], Any]

Text = Annotated[str, Field(min_length=1)]


class EmbeddingsAsked(BaseModel):
    """A request to /v1/embeddings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Annotated[str, Field(min_length=1, max_length=200)]
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embeddings:
    """The path. `name` is the embedder's among the models; `count` gives the tokens of a text, for the usage that OpenAI's answers hold.

    A request may take `answer_s` as a whole.
    """

    def __init__(self, embed: Embed | None, name: str, count: Callable[[str, Left], int], answer_s: float) -> None:
        self.embed, self.name, self._count, self._answer_s = embed, name, count, answer_s
        self._one_at_a_time = ThreadPoolExecutor(1)  # a thread goes on where its client does not: the next one waits for it
        self._waiting = 0

    async def answer(self, request: Request) -> Response:
        """The vectors of some texts, in their order (OpenAI's embeddings)."""
        asked = await routing.read(request, EmbeddingsAsked)
        waiting = Waiting(time.monotonic() + self._answer_s)
        if self.embed is None:
            raise Fault(404, "no_embedder", "no embedder is loaded here. Try: luthier serve --rag FOLDER", "model")
        routing.check_key(request, asked.model)
        if asked.model != self.name:
            raise unknown_model(asked.model)
        if self._waiting == MOST_WAITING:
            raise overloaded()
        self._waiting += 1
        try:
            async with asyncio.timeout(waiting.left()):
                vectors_ND, tokens = await routing.unless_gone(request, self._embedded(asked.texts, waiting.left), lambda: None)
        except TimeoutError as error:
            raise too_late() from error
        finally:
            waiting.over = True
            self._waiting -= 1
        width = len(vectors_ND[0])
        if asked.dimensions not in (None, width):
            raise bad_request("dimensions", f"is {asked.dimensions}, and this embedder gives {width}", f"{width}, or leave it out")
        data = [{"object": "embedding", "index": place, "embedding": _written(vector, asked)} for place, vector in enumerate(vectors_ND)]
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})

    async def _embedded(self, texts: list[str], left: Left) -> tuple[Any, int]:
        """The vectors of the texts, and their tokens."""
        assert self.embed is not None
        vectors_ND = await asyncio.get_running_loop().run_in_executor(self._one_at_a_time, self.embed, texts)
        return vectors_ND, await asyncio.to_thread(lambda: sum(self._count(text, left) for text in texts))


def _written(vector_D: Any, asked: EmbeddingsAsked) -> Any:
    """A list of numbers, or the bytes of little-endian float32 as base64, which is what OpenAI's client asks for."""
    numbers = vector_D.astype("<f4")
    return numbers.tolist() if asked.encoding_format == "float" else base64.b64encode(numbers.tobytes()).decode("ascii")
