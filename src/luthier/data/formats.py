"""The shapes that rows come in, and how each becomes a conversation. No torch, no tokenizer, no disk."""

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from luthier.records import Conversation, Rejected, Source, Turn

Value = dict[str, Any]


class _Unfit(Exception):
    """The row does not have the form it should have: a short name and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows: the columns that it must have, those that it may have, and how it is read."""

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Value], list[Turn]]
    templated: bool = True


ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
# Who speaks and what is said: OpenAI's names, then ShareGPT's.
TURN_KEYS = (("role", "content"), ("from", "value"))
# Parts of a message that change what it means: leaving them out would train something else than the author wrote.
UNSUPPORTED = {
    "tool_calls": "tool calls are not trained in this version",
    "function_call": "tool calls are not trained in this version",
    "weight": "every assistant turn is trained: a message with weight 0 would be too",
}


def detect(columns: Collection[str]) -> str | None:
    """The name of the format that has these columns, or None. The first of FORMATS wins."""
    return next((name for name, format in FORMATS.items() if set(format.columns) <= set(columns)), None)


def ignored_columns(name: str, columns: Collection[str]) -> list[str]:
    """Those columns that the format does not read, sorted."""
    format = FORMATS[name]
    return sorted(set(columns) - {*format.columns, *format.optional})


def convert(name: str, value: Value, source: Source, raw: str) -> Conversation | Rejected:
    """One row as a conversation, or why it is none."""
    format = FORMATS[name]
    try:
        for column in format.columns:
            if column not in value:
                raise _Unfit("missing_column", _missing(column, value))
        turns = format.read(value)
        if format.templated:
            _check_order(turns)
    except _Unfit as unfit:
        return Rejected(unfit.reason, unfit.detail, source, raw)
    return Conversation(tuple(turns), source, format.templated)


def explain_unknown(columns: Collection[str]) -> str:
    """What to say of columns that no format has: every format with its columns, and the nearest name."""
    known = "; ".join(f"{name}: {', '.join(format.columns)}" for name, format in FORMATS.items())
    names = [column for format in FORMATS.values() for column in format.columns]
    near = [(column, found[0]) for column in columns if (found := difflib.get_close_matches(column, names, n=1))]
    hint = "; " + ", ".join(f'"{column}" is near "{name}"' for column, name in near) if near else ""
    return f"the columns {', '.join(sorted(columns)) or '(none)'} are of no known format ({known}){hint}"


def _missing(column: str, value: Value) -> str:
    found = difflib.get_close_matches(column, list(value), n=1)
    there = f'"{found[0]}" is there: is that the one?' if found else f"it has {', '.join(sorted(value)) or 'no columns at all'}"
    return f'the row has no "{column}"; {there}'


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise _Unfit("not_text", f"{what} is {_kind(value)}, not text")
    return value


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _optional_text(value: Value, column: str) -> str:
    return "" if value.get(column) is None else _text(value[column], f'"{column}"')


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Unfit("not_a_list", f"{what} is {'text' if isinstance(value, str) else _kind(value)}, not a list")
    return value


def _check_order(turns: list[Turn]) -> None:
    """System first and at most once; then user and assistant take turns, and the assistant has the last word."""
    roles = [turn.role for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in spoken:
        raise _Unfit("system_not_first", f"turn {len(roles) - len(spoken) + spoken.index('system') + 1} is system; it stands first and only once")
    for number, role in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            place = len(roles) - len(spoken) + number + 1
            raise _Unfit("roles_do_not_alternate", f"turn {place} is {role} where {expected} should speak")
    if not spoken or spoken[-1] != "assistant":
        raise _Unfit("no_answer", "the row does not end with an assistant turn, so there is nothing to learn")


def _read_turn(message: object, number: int) -> Turn:
    what = f"turn {number}"
    if not isinstance(message, dict):
        raise _Unfit("not_a_message", f"{what} is not an object with a role and a content")
    keys = next((pair for pair in TURN_KEYS if pair[0] in message), TURN_KEYS[0])
    for key in keys:
        if key not in message:
            raise _Unfit("missing_key", f"{what}: {_missing(key, message).removeprefix('the row ')}")
    for key, why in UNSUPPORTED.items():
        if message.get(key) not in (None, [], 1):
            raise _Unfit("unsupported_key", f'{what} has "{key}": {why}')
    role = _text(message[keys[0]], f"{what}: {keys[0]}")
    if role not in ROLES:
        near = difflib.get_close_matches(role, ROLES, n=1)
        raise _Unfit("unknown_role", f'{what}: role "{role}"; known are {", ".join(ROLES)}' + (f" (nearest: {near[0]})" if near else ""))
    return Turn(ROLES[role], _text(message[keys[1]], f"{what}: {keys[1]}"))


def _read_chat(value: Value, column: str) -> list[Turn]:
    turns = [_read_turn(message, number) for number, message in enumerate(_list(value[column], f'"{column}"'), 1)]
    system = _optional_text(value, "system")
    return [Turn("system", system), *turns] if system else turns


def read_messages(value: Value) -> list[Turn]:
    return _read_chat(value, "messages")


def read_sharegpt(value: Value) -> list[Turn]:
    return _read_chat(value, "conversations")


def read_alpaca(value: Value) -> list[Turn]:
    """The user's turn is the instruction, a blank line and the input."""
    turns = [Turn("system", system)] if (system := _optional_text(value, "system")) else []
    for pair in _list(value.get("history") or [], '"history"'):
        if not isinstance(pair, list) or len(pair) != 2:
            raise _Unfit("not_a_list", '"history" holds pairs of a question and an answer; one of them is none')
        turns += [Turn("user", _text(pair[0], '"history"')), Turn("assistant", _text(pair[1], '"history"'))]
    asked = [_text(value["instruction"], '"instruction"'), _optional_text(value, "input")]
    return [*turns, Turn("user", "\n\n".join(part for part in asked if part)), Turn("assistant", _text(value["output"], '"output"'))]


def read_completion(value: Value) -> list[Turn]:
    return [Turn(column, _text(value[column], f'"{column}"')) for column in ("prompt", "completion")]


def read_text(value: Value) -> list[Turn]:
    return [Turn("text", _text(value["text"], '"text"'))]


FORMATS = {
    # name                 columns that give it away     columns it may have                  row -> turns
    "messages": Format(("messages",), ("system",), read_messages),
    "sharegpt": Format(("conversations",), ("system",), read_sharegpt),
    "alpaca": Format(("instruction", "output"), ("input", "system", "history"), read_alpaca),
    "completion": Format(("prompt", "completion"), (), read_completion, templated=False),
    "text": Format(("text",), (), read_text, templated=False),
}
