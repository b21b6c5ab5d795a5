from typing import Any

import pytest
from format_rows import ASK, BEYOND, CALLED, GOOD, SAY, WEATHER, all_of
from jsonschema import Draft202012Validator

from luthier.data.formats.build import Built
from luthier.data.formats.schema import schema
from luthier.data.formats.table import FORMATS
from luthier.errors import DataError
from luthier.records import Rejected

MORE: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": CALLED, "tools": [WEATHER], "images": []}),
    ("messages", {"messages": [{"from": "HUMAN", "value": "u"}, {"from": "Gpt", "value": "a"}], "tools": ""}),
    ("messages", {"messages": [{**ASK, "content": [{"type": "text", "text": "u"}]}, {**SAY, "weight": 1.0}], "functions": '[{"name": "f"}]'}),
    ("messages", {"messages": [ASK, {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "a"}]}]}),
    (
        "sharegpt",
        {"conversations": [ASK, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}, {"from": "observation", "value": ""}, SAY]},
    ),
    ("completion", {"prompt": [ASK], "completion": [SAY]}),
    ("preference", {"chosen": [ASK, SAY], "rejected": [ASK, {**SAY, "content": "b"}]}),
    ("preference", {"prompt": "u", "chosen": "a", "rejected": "b"}),
    ("kto", {"prompt": "u", "completion": "a", "label": 1}),
    ("kto", {"instruction": "u", "output": "a", "kto_tag": False}),
    ("alpaca", {"instruction": "u", "output": "a", "input": None, "history": None}),
]


def accepts(name: str, row: Any) -> bool:
    return bool(Draft202012Validator(schema(name)).is_valid(row))


@pytest.mark.parametrize("name", FORMATS)
def test_every_schema_is_one_and_takes_what_the_reader_takes(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    for row in GOOD[name][0]:
        assert accepts(name, row)


@pytest.mark.parametrize(("name", "row"), MORE)
def test_what_the_reader_takes_the_schema_takes(name: str, row: dict[str, Any]) -> None:
    assert all(isinstance(entry, Built) for entry in all_of(row, format=name))
    assert accepts(name, row)


def _broken(row: Any) -> list[Any]:
    """The row with one thing wrong at a time: left out, or of another kind."""
    values: list[Any] = [None, 7, 1.5, True, "", " ", "x", [], {}, [7], ["x"], {"a": 1}]
    if isinstance(row, dict):
        less = [{key: value for key, value in row.items() if key != left_out} for left_out in row]
        return [*values, *less, *({**row, key: broken} for key in row for broken in _broken(row[key]))]
    if isinstance(row, list):
        return [*values, *([*row[:place], broken, *row[place + 1 :]] for place in range(len(row)) for broken in _broken(row[place]))]
    return values


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].gather is None])
def test_the_schema_refuses_what_the_reader_refuses_and_nothing_else(name: str) -> None:
    seen = {True: 0, False: 0}
    for row in [*GOOD[name][0], *(row for format, row in MORE if format == name)]:
        for broken in _broken(row):
            if not isinstance(broken, dict):
                continue
            found = all_of(broken, format=name)
            reasons = {entry.reason for entry in found if isinstance(entry, Rejected)}
            takes = accepts(name, broken)
            if not reasons & BEYOND and reasons != {"not_json"}:
                assert takes == (not reasons), (broken, found)
            seen[takes] += 1
    assert min(seen.values()) > 0


def test_a_name_that_is_no_format_names_the_nearest() -> None:
    with pytest.raises(DataError, match="nearest: alpaca"):
        schema("alpacca")


@pytest.mark.parametrize(
    "said",
    [
        {"text": [{"type": "text", "text": "a"}]},
        {"content": None, "tool_calls": CALLED[1]["tool_calls"]},
        {"text": " "},
        {"text": "a", "weight": 0.5},
    ],
)
def test_a_message_of_a_log_is_described_as_it_is_read(said: dict[str, Any]) -> None:
    row = {"conversation_id": 1, "role": "assistant", **said}
    built = all_of({"conversation_id": 1, "role": "user", "text": "u"}, row, format="message_log")
    waits = "tool_calls" in said  # for the tool's result, which no schema of a row can tell
    assert Draft202012Validator(schema("message_log")).is_valid(row) == (isinstance(built[0], Built) or waits)
