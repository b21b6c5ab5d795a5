import json
from typing import Any

import pytest
from format_rows import ASK, CALL, CALLED, GOOD, SAY, WEATHER, all_of, one

from luthier.data.formats.build import Built
from luthier.data.formats.write import TARGETS, write_as
from luthier.errors import DataError
from luthier.records import Conversation

SYSTEM = {"role": "system", "content": "s"}
BARE = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOLS_ROW = {"messages": [SYSTEM, *CALLED], "tools": [WEATHER]}
SHAREGPT_ROW = {
    "conversations": [
        {"from": "human", "value": "u"},
        {"from": "function_call", "value": json.dumps(BARE["function"])},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "a", "train": False},
        {"from": "human", "value": "u"},
        {"from": "gpt", "value": "a"},
    ],
    "tools": json.dumps([WEATHER]),
}
ROUND: list[tuple[str, dict[str, Any]]] = [
    ("messages", TOOLS_ROW),
    ("messages", SHAREGPT_ROW),
    ("messages", {"messages": [ASK, {**SAY, "train": False, "reasoning_content": "hm", "name": "Bo"}, ASK, SAY], "category": "c"}),
    ("messages", GOOD["preference"][0][0]),
    ("messages", GOOD["kto"][0][0]),
    ("openai", TOOLS_ROW),
    ("openai", {"messages": [ASK, {**SAY, "weight": 0}, ASK, SAY]}),
    ("sharegpt", SHAREGPT_ROW),
    ("sharegpt", GOOD["sharegpt"][0][0]),
    ("alpaca", GOOD["alpaca"][0][0]),
    ("alpaca", GOOD["dolly"][0][0]),
]


def again(row: dict[str, Any]) -> Conversation:
    return one(json.loads(json.dumps(row)))


@pytest.mark.parametrize(("target", "row"), ROUND)
def test_what_is_written_is_read_back_as_the_same_conversation(target: str, row: dict[str, Any]) -> None:
    conversation = one(row)
    assert again(write_as(target, conversation)) == conversation


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["messages", "sharegpt", "alpaca", "dolly", "question_answer", "openassistant", "openassistant_tree", "message_log"])
def test_a_chat_of_text_goes_into_every_target(target: str, name: str) -> None:
    first = all_of(*GOOD[name][0])[0]
    assert isinstance(first, Built)
    written = again(write_as(target, first.conversation))
    assert (written.turns, written.category) == (first.conversation.turns, first.conversation.category)


def test_openai_gets_ids_and_arguments_as_text() -> None:
    row = write_as("openai", one(SHAREGPT_ROW | {"conversations": [*SHAREGPT_ROW["conversations"][:3], {"from": "gpt", "value": "a"}]}))
    assert row["messages"][1]["tool_calls"] == [CALL]
    assert row["messages"][2] == {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}
    assert row["tools"] == [WEATHER]
    assert again(row).turns[1].extra


def test_sharegpt_tells_the_ids_of_calls_by_their_order() -> None:
    turns = again(write_as("sharegpt", one(TOOLS_ROW))).turns
    assert json.loads(turns[2].extra)["tool_calls"] == [BARE]


def test_a_completion_becomes_a_chat() -> None:
    assert write_as("messages", one(GOOD["completion"][0][0])) == {"messages": [ASK, SAY]}


@pytest.mark.parametrize(
    ("target", "row", "what"),
    [
        ("alpaca", TOOLS_ROW, "tools"),
        ("alpaca", {"messages": CALLED}, '"tool_calls"'),
        ("alpaca", {"messages": [ASK, {**SAY, "train": False}, ASK, SAY]}, "which message is trained"),
        ("alpaca", GOOD["preference"][0][0], "a worse answer beside the better one"),
        ("openai", GOOD["kto"][0][0], "a verdict"),
        ("openai", {"messages": [ASK, {**SAY, "thinking": "hm"}]}, '"thinking"'),
        ("openai", {"messages": [{**ASK, "train": True}, SAY]}, '"train" on a message of the user'),
        ("sharegpt", {"messages": [ASK, {**SAY, "name": "Bo"}]}, '"name"'),
        ("sharegpt", {"messages": [ASK, {"role": "assistant", "content": "wait", "tool_calls": [CALL]}]}, "text beside a tool call"),
        ("messages", GOOD["text"][0][0], "plain text without a question"),
    ],
)
def test_what_a_target_cannot_hold_is_said_with_the_line(target: str, row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1") as error:
        write_as(target, one(row))
    assert f"{target} cannot hold {what}" in str(error.value)


def test_a_target_that_is_none_is_named() -> None:
    with pytest.raises(DataError, match='"mesages" is no target'):
        write_as("mesages", one(GOOD["text"][0][0]))
