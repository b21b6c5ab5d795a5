"""Rows of every format: good ones with the conversation they make, and ways to read rows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from luthier.data.formats.build import Built, Formatted, How, build
from luthier.records import Conversation, Rejected, Row, Source

FILE = "rows.jsonl"
ASK, SAY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CALLED = [
    ASK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    SAY,
]
TREE = {
    "text": "u",
    "role": "prompter",
    "replies": [
        {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
        {"text": "a", "role": "assistant", "rank": 0, "replies": [{"text": "thanks", "role": "prompter", "replies": []}]},
    ],
}

# Flaws of the order and between fields, which a schema cannot tell (its description says so).
BEYOND = {
    "roles_do_not_alternate",
    "no_answer",
    "system_not_first",
    "tool_result_without_call",
    "tool_call_without_result",
    "missing_call_id",
    "call_id_twice",
    "unknown_tool",
    "arguments_do_not_fit",
    "two_lists_of_tools",
    "trained_or_not",
    "same_answers",
    "different_prompts",
    "no_prompt",
    "answers_of_several_turns",
}

# name of a format: rows of one file -> (role, content) of the first conversation
GOOD: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]]]] = {
    "messages": ([{"messages": [{"role": "system", "content": "s"}, ASK, SAY]}], [("system", "s"), ("user", "u"), ("assistant", "a")]),
    "sharegpt": (
        [{"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s"}],
        [("system", "s"), ("user", "u"), ("assistant", "a")],
    ),
    "alpaca": (
        [{"instruction": "u", "input": "i", "output": "a", "system": "s", "history": [["q", "b"]]}],
        [("system", "s"), ("user", "q"), ("assistant", "b"), ("user", "u\n\ni"), ("assistant", "a")],
    ),
    "dolly": ([{"instruction": "u", "context": "c", "response": "a", "category": "open_qa"}], [("user", "u\n\nc"), ("assistant", "a")]),
    "question_answer": ([{"question": "u", "answer": "a"}], [("user", "u"), ("assistant", "a")]),
    "completion": ([{"prompt": "u", "completion": "a"}], [("prompt", "u"), ("completion", "a")]),
    "text": ([{"text": "a"}], [("text", "a")]),
    "openassistant": (
        [
            {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "worse", "rank": 1},
            {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "a", "rank": 0},
            {"message_id": "1", "parent_id": None, "role": "prompter", "text": "u"},
        ],
        [("user", "u"), ("assistant", "a")],
    ),
    "openassistant_tree": ([{"message_tree_id": "1", "prompt": TREE}], [("user", "u"), ("assistant", "a")]),
    "message_log": (
        [
            {"conversation_id": 7, "role": "assistant", "text": "a", "time": "2026-11-22T10:00:05Z"},
            {"conversation_id": 8, "role": "user", "text": "x", "time": "2026-11-22T10:00:06Z"},
            {"conversation_id": 7, "role": "user", "text": "u", "time": "2026-11-22T10:00:01Z"},
            {"conversation_id": 8, "role": "assistant", "text": "y", "time": "2026-11-22T10:00:07Z"},
        ],
        [("user", "u"), ("assistant", "a")],
    ),
    "preference": ([{"messages": [ASK], "chosen": [SAY], "rejected": {"from": "gpt", "value": "bad"}}], [("user", "u"), ("assistant", "a")]),
    "kto": ([{"messages": [ASK, SAY], "label": False}], [("user", "u"), ("assistant", "a")]),
}


def read(
    rows: Sequence[object],
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    strict: bool = True,
    tree_paths: Literal["best", "all"] = "best",
) -> Formatted:
    """Rows as a file of them: line n is row n."""
    given = [row if isinstance(row, Rejected) else Row(row, json.dumps(row), Source(FILE, number)) for number, row in enumerate(rows, 1)]  # type: ignore[arg-type]
    return build(given, How(format, columns or {}, strict, tree_paths), FILE)


def all_of(*rows: object, **how: Any) -> list[Built | Rejected]:
    return list(read(rows, **how).built)


def one(row: object, **how: Any) -> Conversation:
    [built] = all_of(row, **how)
    assert isinstance(built, Built), built
    return built.conversation


def why(row: object, **how: Any) -> Rejected:
    [rejected] = all_of(row, **how)
    assert isinstance(rejected, Rejected), rejected
    return rejected


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.turns]
