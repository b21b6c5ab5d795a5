"""What an engine is sent of a request, and what a client gets of its answer."""

from typing import Any

import pytest

from luthier.serve.asked import ChatAsked, CompletionAsked
from luthier.serve.dialects import DIALECTS, Body, Forwarded, body_of, fault_of, whole
from luthier.serve.faults import Fault
from luthier.serve.registry import Served

MESSAGES = [{"role": "user", "content": "Hi"}]
SALES = Forwarded(Served("sales"), 1, "content")


def sent(engine: str, to: Forwarded = SALES, adapters: int = 2, tenant: str = "", **more: Any) -> Body:
    asked = ChatAsked.model_validate({"model": "sales", "messages": MESSAGES, **more})
    return body_of(DIALECTS[engine], asked, MESSAGES, to, adapters, tenant)


def test_llama_cpp_is_told_which_adapter_and_none_of_the_others() -> None:
    assert sent("gguf")["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
    base = Forwarded(Served("base"))
    assert sent("gguf", base)["lora"] == [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]  # silence would mean all of them


@pytest.mark.parametrize(("adapters", "tenant", "kept"), [(0, "", True), (2, "", False), (0, "alice", False)])
def test_llama_cpp_keeps_prompts_only_where_all_of_them_are_alike(adapters: int, tenant: str, kept: bool) -> None:
    assert sent("gguf", Forwarded(Served("base")), adapters, tenant)["cache_prompt"] is kept


def test_no_number_is_left_to_the_engine() -> None:
    for engine, penalty in (("gguf", "repeat_penalty"), ("vllm", "repetition_penalty")):
        body = sent(engine)
        assert [body[name] for name in ("temperature", "top_p", "top_k", "min_p", penalty)] == [1.0, 1.0, 0, 0.0, 1.0]
    assert "max_tokens" not in sent("vllm")
    assert sent("vllm", max_completion_tokens=9)["max_tokens"] == 9
    assert sent("gguf", seed=2**32 - 1)["seed"] == 0  # it would draw one by itself


def test_tools_go_to_the_template_and_schemas_to_the_grammar() -> None:
    tool = {"type": "function", "function": {"name": "find"}}
    assert sent("vllm", tools=[tool])["tool_choice"] == "none"
    assert "tools" not in sent("vllm", tools=[tool], tool_choice="none")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert sent("gguf", response_format=form)["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_bias_of_no_token_is_refused() -> None:
    with pytest.raises(Fault, match="no token id"):
        sent("gguf", logit_bias={"word": 1.0})
    assert sent("gguf", logit_bias={"17": -100.0})["logit_bias"] == [[17, -100.0]]


def test_log_probabilities_of_a_text_have_the_shape_of_its_endpoint() -> None:
    token = {
        "id": 5,
        "token": " a",
        "logprob": -0.5,
        "bytes": [32, 97],
        "top_logprobs": [{"id": 5, "token": " a", "logprob": -0.5, "bytes": [32, 97]}],
    }
    of_chat = whole({"object": "chat.completion", "choices": [{"message": {"content": " a"}, "logprobs": {"content": [token]}}]}, "1", "m")
    assert of_chat["choices"][0]["logprobs"]["content"][0].keys() == {"token", "logprob", "bytes", "top_logprobs"}
    of_text = whole({"object": "text_completion", "choices": [{"text": " a", "logprobs": {"content": [token]}}]}, "1", "m")
    assert of_text["choices"][0]["logprobs"] == {"tokens": [" a"], "token_logprobs": [-0.5], "top_logprobs": [{" a": -0.5}]}
    assert of_text["id"] == "cmpl-1"


def test_an_answer_of_another_shape_is_the_engines_fault() -> None:
    with pytest.raises(Fault) as caught:
        whole({"message": "its answer is no JSON"}, "1", "m")
    assert caught.value.status == 500


@pytest.mark.parametrize(("status", "given", "told"), [(400, 400, True), (413, 400, True), (429, 503, False), (503, 503, False), (500, 500, False)])
def test_the_engines_words_reach_a_client_where_the_request_was_at_fault(status: int, given: int, told: bool) -> None:
    fault = fault_of("vLLM", status, {"error": {"message": "its own words"}})
    assert [fault.status, "its own words" in fault.message] == [given, told]


def test_a_text_is_passed_on_as_it_stands() -> None:
    asked = CompletionAsked(model="sales", prompt=[1, 2, 3])
    body = body_of(DIALECTS["vllm"], asked, [], SALES, 2, "")
    assert [body["prompt"], body["max_tokens"], "messages" in body] == [[1, 2, 3], 16, False]
