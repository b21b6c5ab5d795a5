"""RELIABILITY's classes of bad rows: each message names the field, the value and what to do; the row comes back verbatim with its line."""

import json
from typing import Any

import pytest
from format_rows import ASK, BEYOND, CALL, CALLED, FILE, SAY, WEATHER, all_of, one, read, said, why
from jsonschema import Draft202012Validator

from luthier.data.formats.build import Built
from luthier.data.formats.schema import schema
from luthier.data.formats.table import detect
from luthier.records import Rejected, Source, Turn


def turn(role: object, content: object = "x", **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


def chat(*messages: object, **columns: object) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def calling(arguments: object, name: str = "weather", **more: object) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}
    return chat(ASK, {"role": "assistant", "tool_calls": [call]}, tools=[WEATHER])


AT = "messages[1].tool_calls[0].function"
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    # what is wrong            row                                                   reason                    what is said
    # class 16: content
    "null": (chat(ASK, turn("assistant", None)), "not_text", "messages[1].content: is null, not text; write the text"),
    "number": (chat(turn("user", 7), SAY), "not_text", "messages[0].content: is the number 7, not text; write it as text, in quotes"),
    "true": (chat(turn("user", True), SAY), "not_text", "messages[0].content: is true, not text"),
    "object": (chat(turn("user", {"a": 1}), SAY), "not_text", "messages[0].content: is an object, not text; write the text itself"),
    "empty answer": (chat(ASK, turn("assistant", "")), "empty_answer", 'messages[1].content: is "", so there is nothing to learn'),
    "blank answer": (chat(ASK, turn("assistant", " \n")), "empty_answer", "messages[1].content: is"),
    "empty question": (chat(turn("user", ""), SAY), "empty_prompt", "messages[0].content: is"),
    "text in a list": (chat(turn("user", ["hi"]), SAY), "not_text", 'messages[0].content[0]: is "hi", not an object; write {"type": "text"'),
    "image": (
        chat(turn("user", [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": "x"}}]), SAY),
        "not_only_text",
        'messages[0].content[1].type: is "image_url"; only text is trained here',
    ),
    "strange part": (chat(turn("user", [{"type": "smell"}]), SAY), "not_text", 'messages[0].content[0].type: is "smell"; known are text'),
    "images": (
        chat(ASK, SAY, images=["a.png"]),
        "not_only_text",
        'images: holds 1 of them ("a.png" ...); only text is trained here: leave the row out',
    ),
    "output is null": ({"instruction": "u", "output": None}, "not_text", "output: is null, not text"),
    "answer is a number": ({"question": "u", "answer": 4}, "not_text", "answer: is the number 4, not text; write it as text"),
    "empty completion": ({"prompt": "u", "completion": ""}, "empty_answer", 'completion: is ""'),
    "empty text": ({"text": " "}, "empty_answer", 'text: is " "'),
    "history": ({"instruction": "u", "output": "a", "history": [["q"]]}, "not_a_pair", "history[0]: is a list, not a pair"),
    # class 17: roles
    "strange role": (chat(turn("usr"), SAY), "unknown_role", 'messages[0].role: is "usr"; known are system, developer, user'),
    "near role": (chat(turn("assitant"), SAY), "unknown_role", "nearest: assistant"),
    "no text for a role": (chat(turn(None), SAY), "unknown_role", "messages[0].role: is null"),
    # class 18: order
    "two users": (
        chat(ASK, ASK, SAY),
        "roles_do_not_alternate",
        "messages[1]: is user after user; assistant should speak here: join the two, or set",
    ),
    "two answers": (chat(ASK, SAY, SAY), "roles_do_not_alternate", "messages[2]: is assistant after assistant; user should speak here"),
    "assistant first": (chat(SAY), "roles_do_not_alternate", "messages[0]: is assistant, and it begins; user should speak here"),
    "user last": (chat(ASK, SAY, ASK), "no_answer", "messages[2]: the row ends with a user turn, not with an assistant's answer"),
    "nobody": (chat(), "no_answer", "the row holds no turn to answer"),
    "late system": (chat(ASK, turn("system"), SAY), "system_not_first", "messages[1]: is a system message after others; put one at the beginning"),
    "two systems": (chat(turn("system"), turn("system"), ASK, SAY), "system_not_first", "messages[1]: is a second system message"),
    "system twice": (chat(turn("system"), ASK, SAY, system="s"), "system_not_first", "messages[0]: is a second system message"),
    # class 21: tools
    "not JSON": (calling("{city: Paris}"), "not_json", f'{AT}.arguments: is "{{city: Paris}}", which is not JSON (Expecting property name'),
    "a list": (calling([1]), "arguments_not_an_object", f"{AT}.arguments: is a list, not a JSON object such as"),
    "text of a number": (calling("7"), "arguments_not_an_object", f"{AT}.arguments: is a number, not a JSON object"),
    "key twice": (calling('{"city": 1, "city": 2}'), "not_json", 'the key "city" is given twice'),
    "NaN": (calling('{"city": NaN}'), "not_json", "NaN is not a JSON value"),
    "no arguments": (
        chat(ASK, turn("assistant", None, tool_calls=[{"function": {"name": "f"}}])),
        "missing_key",
        f'{AT}: has no "arguments"; there is: name',
    ),
    "no name": (chat(ASK, turn("assistant", None, tool_calls=[{"function": {"arguments": {}}}])), "missing_key", f'{AT}: has no "name"'),
    "no function": (chat(ASK, turn("assistant", None, tool_calls=[{"name": "f"}])), "missing_key", 'messages[1].tool_calls[0]: has no "function"'),
    "unknown tool": (calling("{}", "wether"), "unknown_tool", f'{AT}.name: is "wether"; the row\'s tools are weather; nearest: weather'),
    "missing argument": (calling({}), "arguments_do_not_fit", f'{AT}.arguments: has no "city", which weather requires; add it'),
    "wrong argument": (calling({"city": 7}), "arguments_do_not_fit", f"{AT}.arguments.city: is the number 7; weather takes string here"),
    "result of nothing": (chat(ASK, turn("tool"), SAY), "tool_result_without_call", "messages[1]: is a tool's result, and no tool was called"),
    "other id": (
        chat(*CALLED[:2], turn("tool", tool_call_id="call_2"), SAY),
        "tool_result_without_call",
        'messages[2].tool_call_id: is "call_2", which no waiting call has; waiting calls: call_1; nearest: call_1',
    ),
    "missing id": (
        chat(*CALLED[:2], turn("tool"), SAY),
        "missing_call_id",
        'messages[2].tool_call_id: is missing; the call that it answers has the id "call_1"',
    ),
    "id of a call without one": (
        chat(ASK, turn("assistant", None, tool_calls=[{"function": CALL["function"]}]), turn("tool", tool_call_id="c"), SAY),
        "tool_result_without_call",
        "the calls before it have no id: give them one each",
    ),
    "id twice": (chat(ASK, turn("assistant", "", tool_calls=[CALL, CALL])), "call_id_twice", 'messages[1].tool_calls[1].id: is "call_1" as another'),
    "no result": (chat(*CALLED[:2], ASK, SAY), "tool_call_without_result", "messages[2]: is user, but the tool call before it has no result"),
    "one result of two": (
        chat(ASK, turn("assistant", "", tool_calls=[CALL, {**CALL, "id": "c2"}]), *CALLED[2:]),
        "tool_call_without_result",
        'messages[3]: follows, but the call "c2" has no result yet',
    ),
    "a user calls": (chat(turn("user", tool_calls=[CALL]), SAY), "unexpected_call", "messages[0]: is a tool call by the user; only the assistant"),
    "tools not JSON": (chat(ASK, SAY, tools="[{"), "not_json", 'tools: is "[{", which is not JSON'),
    "tool without a name": (chat(ASK, SAY, tools=[{"function": {}}]), "missing_key", 'tools[0].function: has no "name"'),
    "tools and functions": (chat(ASK, SAY, tools=[WEATHER], functions=[WEATHER]), "two_lists_of_tools", 'functions: stands beside "tools"'),
    "function_call": (
        {"conversations": [{"from": "human", "value": "u"}, {"from": "function_call", "value": "weather()"}]},
        "not_json",
        'conversations[1].value: is "weather()", which is not JSON',
    ),
    # class 22: preference
    "same answers": ({"messages": [ASK], "chosen": [SAY], "rejected": [SAY]}, "same_answers", 'rejected: chosen and rejected are the same ("a")'),
    "same texts": ({"prompt": "u", "chosen": "a", "rejected": "a"}, "same_answers", "rejected: chosen and rejected are the same"),
    "other prompts": (
        {"chosen": [ASK, SAY], "rejected": [turn("user", "v"), SAY]},
        "different_prompts",
        'rejected: answers another prompt than chosen ("u" and "v")',
    ),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "no_prompt", 'chosen: is "a", and the row has no prompt; add a "prompt"'),
    "empty rejected": ({"prompt": "u", "chosen": "a", "rejected": ""}, "empty_answer", 'rejected: is ""'),
    "several turns": (
        {"chosen": [ASK, SAY, ASK, SAY], "rejected": [ASK, turn("assistant", "b")]},
        "answers_of_several_turns",
        "chosen: goes on for 3 turns after what both share",
    ),
    # class 23: weights and labels
    "weight": (
        chat(ASK, {**SAY, "weight": 0.5}),
        "weight_out_of_range",
        "messages[1].weight: is the number 0.5; write 1 (trained) or 0 (not trained)",
    ),
    "weight in quotes": (chat(ASK, {**SAY, "weight": "1"}), "weight_out_of_range", 'messages[1].weight: is "1"; write 1'),
    "weight true": (chat(ASK, {**SAY, "weight": True}), "weight_out_of_range", "messages[1].weight: is true"),
    "train in quotes": (chat(ASK, {**SAY, "train": "false"}), "not_true_or_false", 'messages[1].train: is "false", which is neither true nor false'),
    "train and weight": (
        chat(ASK, {**SAY, "train": True, "weight": 0}),
        "trained_or_not",
        "messages[1]: says both that it is trained and that it is not",
    ),
    "label in quotes": (
        chat(ASK, SAY, label="false"),
        "not_true_or_false",
        'label: is "false", which is neither true nor false; write true or false without',
    ),
    "label out of range": (
        chat(ASK, SAY, label=2),
        "not_true_or_false",
        "label: is the number 2, which is neither true nor false; use true or false",
    ),
    "label null": (chat(ASK, SAY, kto_tag=None), "not_true_or_false", "kto_tag: is null"),
    # class 14: wrong keys inside
    "message key": (chat({"role": "user", "contnt": "x"}, SAY), "missing_key", 'messages[0]: has no "content"; "contnt" is there: rename it'),
    "no list": ({"messages": "hello"}, "not_a_list", 'messages: is "hello", not a list'),
    "texts": (chat("hello"), "not_a_message", 'messages[0]: is "hello", not an object; write {"role": ..., "content": ...}'),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_set_aside_with_its_field_its_value_and_the_next_step(case: str) -> None:
    row, reason, detail = BAD[case]
    rejected = why(row)
    assert (rejected.reason, rejected.source, rejected.raw) == (reason, Source(FILE, 1), json.dumps(row))
    assert detail in rejected.detail
    assert "\n" not in rejected.detail


@pytest.mark.parametrize("case", [case for case, (_, reason, _) in BAD.items() if reason not in BEYOND | {"not_json"}])
def test_the_schema_refuses_the_same_rows(case: str) -> None:
    row = BAD[case][0]
    assert not Draft202012Validator(schema(detect(row) or "")).is_valid(row)


def test_missing_one_of_two_answers_names_the_format_and_the_column() -> None:
    rejected = all_of({"prompt": "u", "chosen": "a", "rejected": "b"}, {"prompt": "u", "chosen": "a"})[1]
    assert isinstance(rejected, Rejected)
    assert 'the row has no "rejected"; there is: chosen, prompt' in rejected.detail


# --- class 13 (rows that are no objects) and files of another kind are the reader's


# --- what is good


def test_tool_calls_reach_the_template_as_the_row_has_them() -> None:
    arguments = {"city": "Paris", "days": [1, 2.0, None], "deep": {"b": 1, "a": None}}
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    row = chat(ASK, turn("assistant", None, tool_calls=[call], reasoning_content="hm", name="Bo"), *CALLED[2:], tools=json.dumps([WEATHER]))
    conversation = one(row)
    assert json.loads(conversation.turns[1].extra) == {"tool_calls": [call], "reasoning_content": "hm", "name": "Bo"}
    assert conversation.turns[1].content == ""
    assert json.loads(conversation.turns[2].extra) == {"tool_call_id": "call_1"}
    assert json.loads(conversation.tools) == [WEATHER]
    assert json.dumps(json.loads(conversation.turns[1].extra)["tool_calls"]) == json.dumps([call])
    text = one(chat(*CALLED)).turns[1]
    assert json.loads(text.extra)["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'


def test_null_keys_are_as_if_they_were_not_there() -> None:
    row = chat({**ASK, "tool_calls": None, "name": None, "weight": None}, {**SAY, "function_call": None}, tools=None, system=None)
    assert one(row).turns == (Turn("user", "u"), Turn("assistant", "a"))


def test_calls_of_sharegpt_and_of_the_old_functions_become_tool_calls() -> None:
    function = {"name": "weather", "arguments": {"city": "Paris"}}
    row = {
        "conversations": [
            {"from": "human", "value": "u"},
            {"from": "function_call", "value": json.dumps(function)},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([WEATHER]),
    }
    old = chat(
        ASK, {"role": "assistant", "content": None, "function_call": function}, {"role": "function", "name": "weather", "content": "sunny"}, SAY
    )
    for conversation in (one(row), one(old)):
        assert [turn.role for turn in conversation.turns] == ["user", "assistant", "tool", "assistant"]
        assert json.loads(conversation.turns[1].extra) == {"tool_calls": [{"type": "function", "function": function}]}


def test_aliases_case_parts_and_weights_are_understood() -> None:
    row = chat(
        turn("Developer", "s"),
        turn("HUMAN", [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]),
        turn("gpt", [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "a"}], weight=0),
        {"from": "human", "value": "w"},
        turn("model", "b", train=True),
    )
    conversation = one(row)
    assert said(conversation) == [("system", "s"), ("user", "uv"), ("assistant", "a"), ("user", "w"), ("assistant", "b")]
    assert [turn.trained for turn in conversation.turns] == [None, None, False, None, True]
    assert json.loads(conversation.turns[2].extra) == {"reasoning_content": "hm"}


# --- strict: false


def test_what_is_mended_is_counted_and_the_first_line_is_named() -> None:
    good = chat(ASK, SAY)
    rows = [
        good,
        chat(ASK, turn("user", "v"), SAY),
        chat(ASK, turn("system", "s"), SAY, turn("assistant", "b"), turn("user", "thanks")),
        chat(turn("system", "s"), turn("developer", "t"), ASK, SAY, ASK),
    ]
    formatted = read(rows, strict=False)
    built = [entry.conversation for entry in formatted.built if isinstance(entry, Built)]
    assert [said(conversation) for conversation in built] == [
        [("user", "u"), ("assistant", "a")],
        [("user", "u\n\nv"), ("assistant", "a")],
        [("system", "s"), ("user", "u"), ("assistant", "a\n\nb")],
        [("system", "s\n\nt"), ("user", "u"), ("assistant", "a")],
    ]
    assert formatted.notes() == [
        "mended: consecutive turns of one speaker were joined with a blank line (2 rows, first at line 2)",
        "mended: system messages that did not stand first were moved there (2 rows, first at line 3)",
        "mended: turns after the last answer were left out (nothing answers them) (2 rows, first at line 3)",
    ]


def test_what_cannot_be_mended_without_a_loss_is_still_set_aside() -> None:
    assert why(chat(SAY, ASK, SAY), strict=False).reason == "roles_do_not_alternate"
    assert why(chat(ASK), strict=False).reason == "no_answer"
    assert why(chat(ASK, turn("user", name="Bo"), turn("user", name="Al"), SAY), strict=False).reason == "roles_do_not_alternate"
    assert why(chat(ASK, {**SAY, "train": False}, SAY), strict=False).reason == "roles_do_not_alternate"
    assert why(chat(ASK, turn("assistant", None, tool_calls=[CALL]), SAY), strict=False).reason == "tool_call_without_result"
