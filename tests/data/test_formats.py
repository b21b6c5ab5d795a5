import subprocess
import sys
from typing import Any

import pytest

from luthier.data import formats
from luthier.records import Conversation, Rejected, Source

HERE = Source("rows.jsonl", 7)

GOOD: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s"},
    "alpaca": {"instruction": "u", "input": "", "output": "a", "system": "s"},
    "completion": {"prompt": "u", "completion": "a"},
    "text": {"text": "a"},
}
ROLES: dict[str, list[str]] = {
    "messages": ["system", "user", "assistant"],
    "sharegpt": ["system", "user", "assistant"],
    "alpaca": ["system", "user", "assistant"],
    "completion": ["prompt", "completion"],
    "text": ["text"],
}


def turn(role: str, content: object = "x") -> dict[str, object]:
    return {"role": role, "content": content}


BAD: dict[str, tuple[str, Any, str, str]] = {
    # name of the case       format       row                                                                     reason                 what is said
    "user last": ("messages", [turn("user")], "no_answer", "does not end with an assistant turn"),
    "empty": ("messages", [], "no_answer", "nothing to learn"),
    "two users": ("messages", [turn("user"), turn("user")], "roles_do_not_alternate", "turn 2 is user where assistant should speak"),
    "after system": ("messages", [turn("system"), turn("assistant")], "roles_do_not_alternate", "turn 2 is assistant where user should speak"),
    "late system": ("messages", [turn("user"), turn("system"), turn("assistant")], "system_not_first", "turn 2 is system"),
    "two systems": ("messages", [turn("system"), turn("system"), turn("user"), turn("assistant")], "system_not_first", "turn 2 is system"),
    "strange role": ("messages", [turn("usr")], "unknown_role", 'role "usr"; known are system, user, assistant, human, gpt (nearest: user)'),
    "tool": ("messages", [turn("tool")], "unknown_role", 'turn 1: role "tool"'),
    "no content": ("messages", [{"role": "user", "contnt": "x"}], "missing_key", 'turn 1: has no "content"; "contnt" is there'),
    "null": ("messages", [turn("user"), turn("assistant", None)], "not_text", "turn 2: content is null, not text"),
    "parts": ("messages", [turn("user", [{"type": "text"}])], "not_text", "turn 1: content is a list, not text"),
    "text": ("messages", "hello", "not_a_list", '"messages" is text, not a list'),
    "strings": ("messages", ["hello"], "not_a_message", "turn 1 is not an object"),
    "tool calls": ("messages", [{**turn("user"), "tool_calls": [{}]}], "unsupported_key", "tool calls are not trained"),
    "weight": ("messages", [turn("user"), {**turn("assistant"), "weight": 0}], "unsupported_key", "weight 0 would be too"),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_format_is_found_by_its_columns_and_read(name: str) -> None:
    assert formats.detect({**GOOD[name], "id": 4}) == name
    conversation = formats.convert(name, GOOD[name], HERE, "raw")
    assert isinstance(conversation, Conversation)
    assert [turn.role for turn in conversation.turns] == ROLES[name]
    assert conversation.answer == "a"
    assert conversation.templated == (name not in ("completion", "text"))
    assert formats.ignored_columns(name, {**GOOD[name], "id": 4, "b": 5}) == ["b", "id"]


@pytest.mark.parametrize("case", BAD)
def test_an_unfit_row_is_set_aside_with_its_reason(case: str) -> None:
    name, messages, reason, detail = BAD[case]
    rejected = formats.convert(name, {"messages": messages}, HERE, "the raw text")
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.raw, rejected.source) == (reason, "the raw text", HERE)
    assert detail in rejected.detail


def test_alpaca_puts_a_blank_line_before_the_input_and_history_first() -> None:
    row: dict[str, Any] = {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Hello"]]}
    conversation = formats.convert("alpaca", row, HERE, "")
    assert isinstance(conversation, Conversation)
    assert [(turn.role, turn.content) for turn in conversation.turns] == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add.\n\n1 2"),
        ("assistant", "3"),
    ]


def test_a_missing_column_names_the_nearest() -> None:
    rejected = formats.convert("alpaca", {"instruction": "x", "outptu": "y"}, HERE, "")
    assert isinstance(rejected, Rejected)
    assert rejected.detail == 'the row has no "output"; "outptu" is there: is that the one?'
    said = formats.explain_unknown({"promt": 1, "chosen": 2})
    assert "the columns chosen, promt are of no known format" in said
    assert '"promt" is near "prompt"' in said
    assert "completion: prompt, completion" in said


def test_formats_and_quality_need_no_torch() -> None:
    code = "import sys; import luthier.data.formats, luthier.data.quality; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
