"""A JSON Schema (2020-12) for one row of each format, from the same tables as the readers.

It tells the shape of a row. What a schema cannot tell is in its description and checked by the readers: who speaks after whom, which call a result
belongs to, and that the text of a JSON value is JSON.
"""

from collections.abc import Iterable
from typing import Any

from luthier.data.formats.message import MEDIA_COLUMNS, PASSED_ON, ROLES, TEXT_PARTS
from luthier.data.formats.table import FORMATS
from luthier.data.formats.trees import TIMES
from luthier.data.formats.unfit import near
from luthier.errors import DataError

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SPOKEN: Schema = {"type": "string", "pattern": r"\S"}
TEXT: Schema = {"type": "string"}
MAYBE: Schema = {"type": ["string", "null"]}
NOTHING: Schema = {"enum": [None, "", []]}
VERDICT: Schema = {"enum": [True, False, 0, 1]}
ID: Schema = {"type": ["string", "integer"]}


def schema(name: str) -> Schema:
    """The schema of one row. Raises DataError for a name that is no format's."""
    if name not in FORMATS:
        step = f"write one of {', '.join(FORMATS)}{near(name, FORMATS)}"
        raise DataError(f'"{name}" is no format', where="luthier data schema", next_step=step)
    described = {
        "$schema": DIALECT,
        "title": name,
        "description": f"One row of the format {name}. Other columns are allowed and not read. Roles take turns and an answer comes last.",
    }
    return described | {"type": "object"} | ROWS[name] | ({"$defs": DEFINITIONS} if "#/$defs" in str(ROWS[name]) else {})


def _spelled(names: Iterable[str]) -> str:
    """A pattern for the names in any case."""
    return "^(" + "|".join("".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in name) for name in names) + ")$"


def _row(required: Schema, optional: Schema | None = None, **rest: Any) -> Schema:
    """Columns that a row must have, and those that it may have. Pictures and sound are refused in all formats."""
    media = dict.fromkeys(MEDIA_COLUMNS, NOTHING)
    return {"properties": {**media, **(optional or {}), **required}, "required": list(required), **rest}


def _of_role(names: Iterable[str]) -> Schema:
    return {"anyOf": [{"properties": {key: {"type": "string", "pattern": _spelled(names)}}, "required": [key]} for key in ("role", "from")]}


def _one_key(role: str, content: str) -> Schema:
    """A message in one of the two spellings: what it says depends on who speaks and on whether a tool is called."""
    quiet = [name for name, role in ROLES.items() if role in ("system", "tool")]
    calling = [name for name, role in ROLES.items() if role == "calling"]
    role_is = {name: {"properties": {role: {"pattern": _spelled(names)}}} for name, names in (("quiet", quiet), ("calling", calling))}
    calls = {
        "anyOf": [
            {"properties": {"tool_calls": {"type": "array", "minItems": 1}}, "required": ["tool_calls"]},
            {"properties": {"function_call": {"type": "object"}}, "required": ["function_call"]},
        ]
    }
    loud = {"anyOf": [SPOKEN, {"type": "array", "items": {"$ref": "#/$defs/part"}, "contains": {"$ref": "#/$defs/loud_part"}}]}
    silent = {"anyOf": [TEXT, {"type": "array", "items": {"$ref": "#/$defs/part"}}]}
    return {
        "properties": {role: {"type": "string", "pattern": _spelled(ROLES)}},
        "required": [role],
        "if": role_is["calling"],
        "then": {"properties": {content: SPOKEN}, "required": [content]},
        "else": {
            "if": role_is["quiet"],
            "then": {"properties": {content: silent}, "required": [content]},
            "else": {
                "if": calls,
                "then": {"properties": {content: {"anyOf": [{"type": "null"}, silent]}, role: {"pattern": _spelled(_assistants())}}},
                "else": {"properties": {content: loud}, "required": [content]},
            },
        },
    }


def _assistants() -> list[str]:
    return [name for name, role in ROLES.items() if role in ("assistant", "calling")]


FUNCTION: Schema = {
    "type": "object",
    "properties": {"name": SPOKEN, "arguments": {"anyOf": [{"type": "object"}, {"type": "string", "pattern": r"^\s*\{[\s\S]*\}\s*$"}]}},
    "required": ["name", "arguments"],
}
CALL: Schema = {
    "type": "object",
    "properties": {"id": MAYBE, "type": {"const": "function"}, "function": {"$ref": "#/$defs/function"}},
    "required": ["function"],
}
TOOL: Schema = {
    "type": "object",
    "if": {"required": ["function"]},
    "then": {"properties": {"function": {"type": "object", "properties": {"name": SPOKEN}, "required": ["name"]}}},
    "else": {"properties": {"name": SPOKEN}, "required": ["name"]},
}
PART: Schema = {
    "type": "object",
    "properties": {"type": {"enum": [*TEXT_PARTS, "reasoning", "tool_call"]}, "text": TEXT},
    "required": ["type"],
    "anyOf": [{"required": ["text"]}, {"properties": {"value": TEXT}, "required": ["value"]}],
}
LOUD_PART: Schema = {
    "if": {"properties": {"type": {"const": "reasoning"}}},
    "then": False,
    "else": {"anyOf": [{"properties": {key: SPOKEN}, "required": [key]} for key in ("text", "value")]},
}
MESSAGE: Schema = {
    "type": "object",
    "properties": {
        **dict.fromkeys(PASSED_ON, MAYBE),
        "tool_calls": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/call"}}]},
        "function_call": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/function"}]},
        "train": {"type": ["boolean", "null"]},
        "weight": {"type": ["number", "null"], "enum": [0, 1, None]},
        "loss_weight": {"type": ["number", "null"], "enum": [0, 1, None]},
    },
    "if": {"required": ["role"]},
    "then": _one_key("role", "content"),
    "else": _one_key("from", "value"),
}
NODE: Schema = {
    "type": "object",
    "properties": {
        "text": SPOKEN,
        "role": {"type": "string", "pattern": _spelled([*_assistants(), *(name for name, role in ROLES.items() if role == "user")])},
        "rank": {"type": ["number", "null"]},
        "replies": {"anyOf": [{"enum": [None, ""]}, {"type": "array", "items": {"$ref": "#/$defs/reply"}}]},
    },
    "required": ["text"],
}
REPLY: Schema = {"$ref": "#/$defs/node", "required": ["text", "role"]}
DEFINITIONS: Schema = {
    "function": FUNCTION,
    "call": CALL,
    "tool": TOOL,
    "part": PART,
    "loud_part": LOUD_PART,
    "message": MESSAGE,
    "node": NODE,
    "reply": REPLY,
}

MESSAGES: Schema = {"type": "array", "items": {"$ref": "#/$defs/message"}}
CHAT: Schema = {**MESSAGES, "contains": _of_role(_assistants())}
TOOLS: Schema = {"anyOf": [NOTHING, TEXT, {"type": "array", "items": {"$ref": "#/$defs/tool"}}]}
BESIDE: Schema = {"system": MAYBE, "tools": TOOLS, "functions": TOOLS}
TASK: Schema = {"instruction": TEXT, "output": SPOKEN}


def _says(instruction: str, beside: str) -> Schema:
    """One of the two says something."""
    return {"anyOf": [{"properties": {instruction: SPOKEN}}, {"properties": {beside: SPOKEN}, "required": [beside]}]}


PAIR: Schema = {"type": "array", "items": SPOKEN, "minItems": 2, "maxItems": 2}
HISTORY: Schema = {"anyOf": [{"enum": [None, ""]}, {"type": "array", "items": PAIR}]}
ASKED: Schema = {"input": MAYBE, "history": HISTORY, **BESIDE}
SIDE: Schema = {"anyOf": [SPOKEN, {"$ref": "#/$defs/message"}, CHAT]}
CONTEXT: Schema = {"anyOf": [{"type": "null"}, SPOKEN, {"$ref": "#/$defs/message"}, MESSAGES]}
COMPLETION: Schema = {
    "anyOf": [
        {"properties": {"prompt": SPOKEN, "completion": SPOKEN}},
        {"properties": {"prompt": MESSAGES, "completion": CHAT}},
    ]
}
JUDGED: list[Schema] = [
    {"properties": {"messages": CHAT}, "required": ["messages"]},
    {"properties": {"conversations": CHAT}, "required": ["conversations"]},
    {"properties": {**TASK, "input": MAYBE}, "required": list(TASK), **_says("instruction", "input")},
    {"properties": {"question": SPOKEN, "answer": SPOKEN}, "required": ["question", "answer"]},
    {**COMPLETION, "required": ["prompt", "completion"]},
]
VERDICTS: list[Schema] = [{"properties": {column: VERDICT}, "required": [column]} for column in ("label", "kto_tag")]
SIDES: list[Schema] = [
    {"properties": {one: SIDE, other: SIDE}, "required": [one, other]}
    for one, other in (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))
]

ROWS: dict[str, Schema] = {
    # name                what a row must have, and what it may have
    "messages": _row({"messages": CHAT}, BESIDE),
    "sharegpt": _row({"conversations": CHAT}, BESIDE),
    "alpaca": _row(TASK, ASKED, **_says("instruction", "input")),
    "dolly": _row({"instruction": TEXT, "response": SPOKEN}, {"context": MAYBE, **BESIDE}, **_says("instruction", "context")),
    "question_answer": _row({"question": SPOKEN, "answer": SPOKEN}, BESIDE),
    "completion": _row({"prompt": True, "completion": True}, BESIDE, **COMPLETION),
    "text": _row({"text": SPOKEN}),
    "openassistant_tree": _row({"prompt": {"$ref": "#/$defs/node"}}),
    "openassistant": _row(
        {"message_id": ID, "role": NODE["properties"]["role"], "text": SPOKEN},
        {"parent_id": {"type": ["string", "integer", "null"]}, "rank": {"type": ["number", "null"]}},
    ),
    "message_log": _row(
        {"conversation_id": {"anyOf": [SPOKEN, {"type": "integer"}]}, "role": {"type": "string"}},
        MESSAGE["properties"] | {column: {"type": ["string", "number", "null"]} for column in TIMES},
        **{"if": {"required": ["text"]}, "then": _one_key("role", "text"), "else": _one_key("role", "content")},
    ),
    "preference": _row(
        {},
        dict.fromkeys(("prompt", "messages", "conversations", "question"), CONTEXT) | ASKED,
        anyOf=SIDES,
    ),
    "kto": _row({}, ASKED, allOf=[{"anyOf": JUDGED}, {"anyOf": VERDICTS}]),
}
