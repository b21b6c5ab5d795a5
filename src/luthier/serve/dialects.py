"""How each engine spells what clients ask in OpenAI's way, and how its answers become OpenAI's again."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.serve.asked import ChatAsked, CompletionAsked
from luthier.serve.faults import Fault, bad_request
from luthier.serve.registry import Served

Body = dict[str, Any]
Asked = ChatAsked | CompletionAsked
# Posts a body to a path of the engine and gives what it answers.
Post = Callable[[str, Body], Body]
PENALIZED = 32_768  # of the newest tokens, for llama.cpp's penalties; its own default is 64
MOST_SEED = 2**32 - 1  # llama.cpp draws one by itself where the seed is this


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A name that is answered to, and what stands behind it in the engine: the base, or the adapter at `place` of those it was started with."""

    served: Served
    place: int | None = None
    content: str = ""  # the hash of what the name stands for: an engine's caches are kept apart by it
    stop_ids: tuple[int, ...] = ()  # what its contract says that an answer ends with; (): what the engine's files say


@dataclass(frozen=True, slots=True)
class Dialect:
    """`body` writes a request's own fields as the engine reads them; `tokens` gives the ids that it makes of messages and tools, or of a text.

    `refused` names the fields that the engine cannot do, and why.
    """

    name: str
    body: Callable[[Asked, Forwarded, int, str], Body]
    tokens: Callable[[Post, Sequence[Body] | str, Any], list[int]]
    refused: Mapping[str, str]


def body_of(dialect: Dialect, asked: Asked, messages: Sequence[Body], to: Forwarded, adapters: int, tenant: str) -> Body:
    """The request as the engine gets it. Raises a Fault for a field that the engine cannot do.

    `adapters` is how many the engine has, `tenant` whose request it is.

    Every number is sent, also where a client gave none: what is left out, each engine fills in another way.
    """
    for name, why in dialect.refused.items():
        if name in asked.model_fields_set:
            raise bad_request(name, f"is not for this engine: {why}", "leave it out, or luthier serve --engine transformers")
    body: Body = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "min_p": asked.min_p,
        "frequency_penalty": asked.frequency_penalty,
        "presence_penalty": asked.presence_penalty,
        "n": asked.n,
        "stop": list(asked.stops),
        "stream": asked.stream,
    }
    body |= {"max_tokens": asked.limit} if asked.limit is not None else {}
    body |= {"stream_options": {"include_usage": True}} if asked.stream else {}
    if isinstance(asked, ChatAsked):
        body |= {"messages": list(messages), **_chat(asked)}
    else:
        body |= {"prompt": asked.prompt, **({"logprobs": asked.logprobs} if asked.logprobs is not None else {})}
    return body | dialect.body(asked, to, adapters, tenant)


def _chat(asked: ChatAsked) -> Body:
    """What only a conversation has. Tools go to the template, and what the model says of them comes back as text."""
    body: Body = {"tools": asked.tools, "tool_choice": "none"} if asked.tools_as_json else {}
    if asked.likeliest is not None:
        body |= {"logprobs": True, "top_logprobs": asked.likeliest}
    if asked.response_format and (schema := asked.response_format.schema_of_answer) is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return body


def _for_llama_cpp(asked: Asked, to: Forwarded, adapters: int, tenant: str) -> Body:
    body: Body = {
        "repeat_penalty": asked.repetition_penalty,
        "repeat_last_n": PENALIZED,
        "lora": [{"id": place, "scale": float(place == to.place)} for place in range(adapters)],
        # Its cache of prompts knows nothing of adapters and tenants: kept prompts of one would be gone on with by another.
        "cache_prompt": not adapters and not tenant,
        "reasoning_format": "none",
        "parse_tool_calls": False,
    }
    if asked.seed is not None:
        body["seed"] = asked.seed % MOST_SEED
    if asked.logit_bias:
        body["logit_bias"] = [[int(token), value] for token, value in _token_ids(asked.logit_bias).items()]
    return body


def _for_vllm(asked: Asked, to: Forwarded, adapters: int, tenant: str) -> Body:
    body: Body = {
        "model": to.served.name,
        "repetition_penalty": asked.repetition_penalty,
        # Its cache of prefixes is keyed by an adapter's name: the salt keeps contents and tenants apart.
        "cache_salt": hashlib.sha256(f"{to.content} {tenant}".encode()).hexdigest(),
        "spaces_between_special_tokens": False,
    }
    body |= {"stop_token_ids": list(to.stop_ids)} if to.stop_ids else {}
    body |= {"seed": asked.seed} if asked.seed is not None else {}
    body |= {"logit_bias": _token_ids(asked.logit_bias)} if asked.logit_bias else {}
    return body


def tools_of(tools: str) -> Any:
    """A list of tools as JSON, or None where there is none."""
    return json.loads(tools) if tools else None


def _token_ids(biases: Mapping[str, float]) -> dict[str, float]:
    if wrong := [token for token in biases if not token.isdecimal()]:
        raise bad_request("logit_bias", f"names {wrong[0][:40]!r}, which is no token id", 'give ids as text: {"1734": -100}')
    return dict(biases)


def _llama_cpp_tokens(post: Post, asked: Sequence[Body] | str, tools: Any) -> list[int]:
    given = {"tools": tools} if tools else {}
    text = asked if isinstance(asked, str) else post("/apply-template", {"messages": list(asked), **given})["prompt"]
    ids: list[int] = post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    return ids


def _vllm_tokens(post: Post, asked: Sequence[Body] | str, tools: Any) -> list[int]:
    text = {"prompt": asked} if isinstance(asked, str) else {"messages": list(asked), "add_generation_prompt": True}
    ids: list[int] = post("/tokenize", {**text, **({"tools": tools} if tools else {})})["tokens"]
    return ids


DIALECTS: dict[str, Dialect] = {
    # --engine
    "gguf": Dialect("llama.cpp", _for_llama_cpp, _llama_cpp_tokens, {}),
    "vllm": Dialect("vLLM", _for_vllm, _vllm_tokens, {}),
}


def whole(answer: Body, id: str, name: str) -> Body:
    """An engine's answer, or a piece of one, in OpenAI's shape and nothing else: our id, the model's name here, its choices and its usage."""
    if not isinstance(answer.get("choices"), list):
        raise _strange()
    kind = str(answer.get("object", ""))
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    shaped = {"id": f"{prefix}-{id}", "object": kind, "created": answer.get("created", 0), "model": name}
    shaped["choices"] = [_choice(choice, chat=kind.startswith("chat")) for choice in answer["choices"]]
    return shaped | ({"usage": usage} if (usage := usage_of(answer)) else {})


def _choice(choice: Body, chat: bool) -> Body:
    said: Body = {}
    for part in ("message", "delta"):
        if isinstance(choice.get(part), dict):
            given = choice[part]
            said[part] = {"role": "assistant"} if given.get("role") else {}
            said[part] |= {"content": given.get("content") or ""} if "content" in given or part == "message" else {}
    if "text" in choice:
        said["text"] = choice["text"]
    logprobs = choice.get("logprobs")
    return {"index": choice.get("index", 0), **said, "logprobs": _logprobs(logprobs, chat), "finish_reason": choice.get("finish_reason")}


def _logprobs(given: Any, chat: bool) -> Body | None:
    """Log-probabilities in the shape of the endpoint: llama.cpp writes those of chats at both."""
    if not isinstance(given, dict):
        return None
    if chat:
        return {"content": [_token(one) | {"top_logprobs": [_token(top) for top in one.get("top_logprobs", [])]} for one in given["content"] or []]}
    if "content" not in given:
        return {name: given.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")}
    content = given["content"] or []
    likeliest = [{top["token"]: top["logprob"] for top in one.get("top_logprobs", [])} for one in content]
    return {"tokens": [one["token"] for one in content], "token_logprobs": [one["logprob"] for one in content], "top_logprobs": likeliest or None}


def _token(one: Body) -> Body:
    return {"token": one["token"], "logprob": one["logprob"], "bytes": one.get("bytes")}


def usage_of(answer: Body) -> Body | None:
    """OpenAI's count of tokens in an answer, where it holds one."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, said = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def fault_of(engine: str, status: int, answer: Any) -> Fault:
    """What a client is told of an engine's refusal: its own words where the request was at fault, none where the engine was."""
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    message = error.get("message") if isinstance(error, dict) else error
    said = " ".join(str(message or "no reason given").split())[:300]
    if status in (400, 413, 422, 501):
        code = "context_length_exceeded" if "context" in said and ("length" in said or "size" in said) else "engine_refused"
        return Fault(400, code, f"{engine} refuses this request: {said}")
    if status in (429, 503):
        return Fault(503, "overloaded", f"{engine} takes no more requests at the moment. Try again later", None, 1)
    return Fault(500, "engine_error", f"{engine} failed on this request; the server's log has the cause beside this request_id")


def _strange() -> Fault:
    return Fault(500, "engine_error", "the engine's answer is no OpenAI answer; the server's log has it beside this request_id")
