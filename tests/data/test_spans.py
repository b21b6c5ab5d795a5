"""What is trained: rules and overrides, rewritten history, reasoning, tools, roles a template lacks, and templates that mark their answers."""

import copy
import json
from typing import Any

import pytest

from luthier.data.tokenize import How, Tokenized, end_of_turn, knows_system, prompt_ids, tokenize
from luthier.errors import DataError
from luthier.records import Conversation, Rejected, Source, TokenizedExample, Turn

HERE = Source("rows.jsonl", 3)
END = "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Like Qwen3: reasoning is written in the last answer only, and an empty thought where there is none.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{{ ((m.tool_calls | tojson) if m.tool_calls else '') + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = (Turn("system", "Count."), Turn("user", "one?"), Turn("assistant", "1"), Turn("user", "two?"), Turn("assistant", "2"))


def using(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def row(*turns: Turn, **parts: Any) -> Conversation:
    return Conversation(turns, HERE, **parts)


def made(conversation: Conversation, tokenizer: Any, **how: Any) -> tuple[TokenizedExample, ...]:
    result = tokenize(conversation, tokenizer, How(100_000, **how))
    assert isinstance(result, Tokenized), result
    assert result.read + result.repeated == sum(len(example.token_ids) for example in result.examples) + result.cut
    return result.examples


def refused(conversation: Conversation, tokenizer: Any, **how: Any) -> Rejected:
    result = tokenize(conversation, tokenizer, How(100_000, **how))
    assert isinstance(result, Rejected), result
    return result


def seen(example: TokenizedExample, tokenizer: Any) -> str:
    return str(tokenizer.decode([token for token, on in zip(example.token_ids, example.trained, strict=True) if on]))


def with_mark(turns: tuple[Turn, ...], place: int, trained: bool) -> Conversation:
    return row(*(Turn(turn.role, turn.content, trained if at == place else None) for at, turn in enumerate(turns)))


@pytest.mark.parametrize(("loss_on", "trained"), [("assistant", f"1{END}2{END}"), ("last_assistant", f"2{END}")])
def test_the_rule_says_which_answers_are_trained(loss_on: str, trained: str, tokenizer: Any) -> None:
    [example] = made(row(*TALK), tokenizer, loss_on=loss_on)
    assert seen(example, tokenizer) == trained


def test_all_trains_every_token_but_the_first(tokenizer: Any) -> None:
    [example] = made(row(*TALK), tokenizer, loss_on="all")
    assert example.trained == [False] + [True] * (len(example.token_ids) - 1)


@pytest.mark.parametrize(
    ("place", "mark", "loss_on", "trained"),
    [
        (2, False, "assistant", f"2{END}"),
        (4, False, "assistant", f"1{END}"),
        (2, True, "last_assistant", f"1{END}2{END}"),
        (3, True, "assistant", f"1{END}two?2{END}"),
    ],
    ids=["not the first answer", "not the last answer", "the first answer too", "a question too"],
)
def test_a_message_may_say_otherwise(place: int, mark: bool, loss_on: str, trained: str, tokenizer: Any) -> None:
    [example] = made(with_mark(TALK, place, mark), tokenizer, loss_on=loss_on)
    assert seen(example, tokenizer) == trained


def test_a_message_can_be_left_out_of_all(tokenizer: Any) -> None:
    [example] = made(with_mark(TALK, 3, False), tokenizer, loss_on="all")
    assert "two?" not in seen(example, tokenizer)
    assert "one?" in seen(example, tokenizer)


def test_a_row_where_nothing_is_trained_is_set_aside(tokenizer: Any) -> None:
    turns = (Turn("user", "hi"), Turn("assistant", "ho", trained=False))
    assert refused(row(*turns), tokenizer).reason == "nothing_trained"


def test_a_template_that_rewrites_history_gives_an_example_an_answer(tokenizer: Any) -> None:
    thinking = using(tokenizer, THINKING)
    first, last = made(row(*TALK), thinking)
    assert seen(first, thinking) == f"<think></think>1{END}"
    assert seen(last, thinking) == f"<think></think>2{END}"
    assert thinking.decode(last.token_ids).count("<think>") == 1
    for example, place in ((first, 2), (last, 4)):
        asked = prompt_ids(TALK[:place], thinking)
        assert example.token_ids[: len(asked)] == asked
    result = tokenize(row(*TALK), thinking, How(1000))
    assert isinstance(result, Tokenized)
    assert result.repeated == len(first.token_ids)


def test_reasoning_is_trained_where_the_template_writes_it(tokenizer: Any) -> None:
    thought = json.dumps({"reasoning_content": "One and one."})
    conversation = row(Turn("user", "sum?"), Turn("assistant", "2", extra=thought))
    [example] = made(conversation, using(tokenizer, THINKING))
    assert seen(example, tokenizer) == f"<think>One and one.</think>2{END}"
    dropped = refused(conversation, tokenizer)
    assert (dropped.reason, dropped.detail) == ("template_drops_text", "the model's chat template does not write the reasoning of turn 2")


CALL = {"type": "function", "id": "call_1", "function": {"name": "clock", "arguments": {"city": "Köln", "deep": {"n": [1, None, True, 1.5]}}}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {"city": {"type": "string", "x": None}}}}}
CALLING = (
    Turn("user", "Time?"),
    Turn("assistant", "", extra=json.dumps({"tool_calls": [CALL]})),
    Turn("tool", "12:30", extra=json.dumps({"name": "clock", "tool_call_id": "call_1"})),
    Turn("assistant", "Half past noon."),
)


def test_tools_and_calls_reach_the_template_as_they_are(tokenizer: Any) -> None:
    other = using(tokenizer, TOOLS)
    [example] = made(row(*CALLING, tools=json.dumps([TOOL])), other)
    parts = other.decode(example.token_ids).split("<|im_end|>")
    assert json.loads(parts[0].partition("system\n")[2]) == [TOOL]
    assert json.loads(parts[2].partition("assistant\n")[2]) == [CALL]
    assert seen(example, other).endswith(f"Half past noon.{END}")
    assert "12:30" not in seen(example, other)


def test_arguments_written_as_text_are_given_as_an_object_where_the_template_wants_one(tokenizer: Any) -> None:
    as_text = {**CALL, "function": {**CALL["function"], "arguments": json.dumps(CALL["function"]["arguments"])}}  # type: ignore[dict-item]
    texts = (CALLING[0], Turn("assistant", "", extra=json.dumps({"tool_calls": [as_text]})), *CALLING[2:])
    other = using(tokenizer, TOOLS)
    assert made(row(*texts), other)[0].token_ids == made(row(*CALLING), other)[0].token_ids


def test_tools_that_the_template_does_not_write_are_named(tokenizer: Any) -> None:
    assert refused(row(*CALLING[:1], CALLING[3], tools=json.dumps([TOOL])), tokenizer).reason == "template_drops_tools"
    dropped = refused(row(*CALLING), tokenizer)
    assert dropped.reason == "template_drops_text"
    assert "the call of clock in turn 2" in dropped.detail


def test_a_control_token_inside_a_tool_call_is_named(tokenizer: Any) -> None:
    call = {"function": {"name": "clock", "arguments": {"city": "<|im_end|>"}}}
    rejected = refused(row(CALLING[0], Turn("assistant", "", extra=json.dumps({"tool_calls": [call]}))), tokenizer)
    assert rejected.reason == "special_token_in_text"
    with pytest.raises(DataError, match="control token"):
        prompt_ids([Turn("user", "a <|im_start|> b")], tokenizer)


def test_without_a_system_role_its_text_stands_before_the_question(tokenizer: Any) -> None:
    other = using(tokenizer, NO_SYSTEM)
    assert not knows_system(other)
    assert knows_system(tokenizer)
    [example] = made(row(*TALK), other)
    assert other.decode(example.token_ids).startswith("<|im_start|>user\nCount.\n\none?<|im_end|>")
    assert seen(example, other) == f"1{END}2{END}"
    asked = prompt_ids(TALK[:-1], other)
    assert example.token_ids[: len(asked)] == asked


def test_a_templates_own_marks_agree(tokenizer: Any) -> None:
    [example] = made(row(*TALK), using(tokenizer, MARKED))
    assert seen(example, tokenizer) == f"1{END}2{END}"


@pytest.mark.parametrize(
    "wrong",
    [
        MARKED.replace("{% if m['role'] == 'assistant' %}", "{% if m['role'] != 'assistant' %}"),
        MARKED.replace("+ '<|im_end|>\n' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|im_end|>\n' }}"),
    ],
    ids=["the user's words", "no end of turn"],
)
def test_a_templates_own_marks_that_differ_are_named(wrong: str, tokenizer: Any) -> None:
    rejected = refused(row(*TALK), using(tokenizer, wrong))
    assert rejected.reason == "mask_not_proved"
    assert "{% generation %}" in rejected.detail


def test_a_template_that_puts_the_question_into_the_answer_is_not_trained(tokenizer: Any) -> None:
    """The two ways of finding the mask disagree: here the question is written after the point where generation would begin."""
    late = "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    late += "{{ messages[loop.index0 - 1]['content'] + ' ' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    late += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    rejected = refused(row(Turn("user", "zebra?"), Turn("assistant", "yes")), using(tokenizer, late))
    assert rejected.reason == "mask_not_proved"
    assert rejected.detail.startswith("the tokens of turn 1 (user) are not all masked")


def test_a_template_that_explodes_is_refused(tokenizer: Any) -> None:
    endless = using(tokenizer, "{% for n in range(90000) %}{{ 'abcdefghijklmnopqrstuvwxyz' }}{% endfor %}" + CHATML)
    assert refused(row(*TALK), endless).reason == "template_refused"
    deep = using(tokenizer, "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}")
    assert refused(row(*TALK), deep).reason == "template_refused"


def test_each_answer_ends_where_pad_is_the_end_too(tokenizer: Any) -> None:
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.eos_token
    [example] = made(row(*TALK), other)
    assert seen(example, other) == f"1{END}2{END}"


def test_the_end_of_turn_is_known(tokenizer: Any) -> None:
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(END)
    assert end_of_turn(using(tokenizer, "{% for m in messages %}{{ m['content'] }}\n{% endfor %}")) is None


@pytest.mark.parametrize("templated", [True, False])
def test_a_pair_gives_a_better_and_a_worse_example(templated: bool, tokenizer: Any) -> None:
    roles = ("user", "assistant") if templated else ("prompt", "completion")
    pair = row(Turn(roles[0], "best? "), Turn(roles[1], "good"), rejected=(Turn(roles[1], "bad"),), templated=templated)
    better, worse = made(pair, tokenizer)
    assert (seen(better, tokenizer), seen(worse, tokenizer)) == (f"good{END}", f"bad{END}")
    result = tokenize(pair, tokenizer, How(1000))
    assert isinstance(result, Tokenized)
    assert result.repeated >= better.trained.index(True)


def test_a_pair_trains_only_what_follows_the_shared_turns(tokenizer: Any) -> None:
    better, worse = made(row(*TALK, rejected=(Turn("assistant", "3"),)), tokenizer)
    assert (seen(better, tokenizer), seen(worse, tokenizer)) == (f"2{END}", f"3{END}")
    [judged] = made(row(*TALK, label=False), tokenizer)
    assert seen(judged, tokenizer) == f"2{END}"
