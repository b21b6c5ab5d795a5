"""What a client may ask: OpenAI's requests as records, each number within its limits. Unknown fields are refused by name."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from luthier.data.formats.book import Book
from luthier.data.formats.message import read_messages
from luthier.data.formats.said import turns
from luthier.data.formats.unfit import Unfit
from luthier.engine.sampling import LIMITS
from luthier.records import Turn
from luthier.serve.faults import bad_request

MOST_ANSWERS, MOST_STOPS, MOST_STOP_CHARACTERS, MOST_MESSAGES, MOST_LIKELIEST = 8, 8, 64, 512, 20
MOST_SEED = 2**63 - 1
# Fields that clients send of their own accord and that mean nothing here.
WITHOUT_MEANING = ("user", "store", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")

Stop = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    model: Annotated[str, Field(min_length=1, max_length=200)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=LIMITS["repetition_penalty"][0], le=10)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-MOST_SEED, le=MOST_SEED)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool = False
    stream_options: "StreamOptions | None" = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class StreamOptions(BaseModel):
    """What a stream ends with."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    include_usage: bool = False


class JsonSchema(BaseModel):
    """A schema that the answer keeps to."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    name: str = ""
    schema_: dict[str, JsonValue] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """Free text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        if self.type == "json_schema" and self.json_schema is None:
            raise bad_request("response_format.json_schema", "is missing", 'give {"name": ..., "schema": {...}}')
        if self.type == "json_object":
            return {"type": "object"}
        return dict(self.json_schema.schema_) if self.json_schema else None


class ChatAsked(_Asked):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[dict[str, JsonValue]], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None = None
    tools: list[dict[str, JsonValue]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    response_format: ResponseFormat | None = None
    rag: bool | None = None  # false: nothing is looked up for this request

    @property
    def turns(self) -> list[Turn]:
        """The messages, read as those of training rows are."""
        try:
            return list(turns(read_messages(self.messages, "messages", Book(strict=True, tree_paths="best"))))
        except Unfit as unfit:
            raise bad_request("messages", unfit.detail, "send text messages with a role and a content") from unfit

    @property
    def tools_as_json(self) -> str:
        return json.dumps(self.tools, ensure_ascii=False) if self.tools and self.tool_choice != "none" else ""

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are given beside each; None: no log-probabilities at all."""
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs", "is given without logprobs", "send logprobs: true too")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionAsked(_Asked):
    """A request to /v1/completions: a text that is gone on with as it stands."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELIEST)] | None = None
    echo: Literal[False] = False

    @property
    def limit(self) -> int | None:
        return self.max_tokens or 16  # OpenAI's own

    @property
    def likeliest(self) -> int | None:
        return self.logprobs


class AdapterAsked(BaseModel):
    """A request to load or unload an adapter, by its name alone: no path ever comes from a client."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lora_name: Annotated[str, Field(min_length=1, max_length=200)]


def without_meaning(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields but those that mean nothing here, and those that are null: clients send what was not given as null."""
    return {name: value for name, value in body.items() if name not in WITHOUT_MEANING and value is not None}
