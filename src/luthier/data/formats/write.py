"""Conversations written as rows of other tools. What a target cannot hold is an error that names it; nothing is left out silently."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from luthier.errors import DataError
from luthier.records import Conversation, Turn

SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


class _Inexpressible(Exception):
    """What the target cannot hold, and what can."""


def write_as(target: str, conversation: Conversation) -> dict[str, Any]:
    """The conversation as one row of a target (a name of TARGETS).

    A prompt and its completion become the turns of a user and an assistant. Raises DataError where the target cannot hold the row.
    """
    if target not in TARGETS:
        raise DataError(f'"{target}" is no target', where=str(conversation.source), next_step=f"write one of {', '.join(TARGETS)}")
    try:
        row = TARGETS[target](conversation)
    except _Inexpressible as why:
        next_step = "convert to messages, which holds all of it" if target != "messages" else "keep the row as it is: it is plain text, no chat"
        raise DataError(f"{target} cannot hold {why}", where=str(conversation.source), next_step=next_step) from why
    return {**row, "category": conversation.category} if conversation.category else row


def as_messages(conversation: Conversation) -> dict[str, Any]:
    """All that a conversation holds, in OpenAI's names; a worse answer stands in `rejected` beside `chosen`."""
    turns = [_message(turn) for turn in _chat(conversation)]
    row: dict[str, Any] = {"messages": turns}
    if conversation.rejected:
        row = {"messages": turns[:-1], "chosen": turns[-1:], "rejected": [_message(turn) for turn in _roles(conversation.rejected)]}
    if conversation.label is not None:
        row["label"] = conversation.label
    return {**row, "tools": json.loads(conversation.tools)} if conversation.tools else row


def as_openai(conversation: Conversation) -> dict[str, Any]:
    """What OpenAI's fine-tuning takes: arguments are text, every call has an id, and `weight` says what is trained."""
    _refuse_judged(conversation)
    turns = _chat(conversation)
    messages = openai_messages(turns)
    for turn, message in zip(turns, messages, strict=True):
        _refuse(_extra(turn), {"tool_calls", "tool_call_id", "name"})
        if turn.role == "tool" and "tool_call_id" not in message:
            raise _Inexpressible("a tool's result that answers no call")
        if turn.trained is not None:
            if turn.role != "assistant":
                raise _Inexpressible(f'"train" on a message of the {turn.role}')
            message["weight"] = int(turn.trained)
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in json.loads(conversation.tools or "[]")]
    return {"messages": messages, **({"tools": tools} if tools else {})}


def openai_messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Turns as OpenAI's API takes them: the arguments of a call are text, every call has an id, and a result has that of its call."""
    ids: Iterator[str] = (f"call_{number}" for number in range(1, 10**9))
    waiting: list[str] = []
    messages = []
    for turn in _roles(turns):
        message: dict[str, Any] = {"role": turn.role, "content": turn.content, **_extra(turn)}
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [_openai_call(call, ids) for call in calls]
            waiting = [call["id"] for call in message["tool_calls"]]
        if turn.role == "tool" and "tool_call_id" not in message and waiting:
            message["tool_call_id"] = waiting.pop(0)
        messages.append(message)
    return messages


def as_sharegpt(conversation: Conversation) -> dict[str, Any]:
    """ShareGPT's turns; a tool call is a function_call turn, and its result an observation. The ids of calls are told by their order."""
    _refuse_judged(conversation)
    said: list[dict[str, Any]] = []
    ids: list[Any] = []
    for turn in _chat(conversation):
        extra = _extra(turn)
        _refuse(extra, {"tool_calls", "tool_call_id"})
        message = {"from": SHAREGPT[turn.role], "value": turn.content}
        if calls := extra.get("tool_calls"):
            if turn.content:
                raise _Inexpressible("text beside a tool call")
            ids = [call.get("id") for call in calls]
            functions = [_object_call(call) for call in calls]
            message = {"from": "function_call", "value": json.dumps(functions if len(functions) > 1 else functions[0], ensure_ascii=False)}
        if "tool_call_id" in extra and (not ids or ids.pop(0) != extra["tool_call_id"]):
            raise _Inexpressible("results of tools in another order than their calls (it has no ids)")
        said.append(message if turn.trained is None else {**message, "train": turn.trained})
    return {"conversations": said, **({"tools": conversation.tools} if conversation.tools else {})}


def as_alpaca(conversation: Conversation) -> dict[str, Any]:
    """An instruction and its output; earlier turns are the history, in pairs."""
    _refuse_judged(conversation)
    if conversation.tools:
        raise _Inexpressible("tools")
    turns = _chat(conversation)
    for turn in turns:
        _refuse(_extra(turn), set())
        if turn.trained is not None:
            raise _Inexpressible("which message is trained")
    spoken = turns[1:] if turns[0].role == "system" else turns
    roles = [turn.role for turn in spoken]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise _Inexpressible(f"turns in this order ({', '.join(roles)})")
    texts = [turn.content for turn in spoken]
    row: dict[str, Any] = {"instruction": texts[-2], "input": "", "output": texts[-1]}
    if len(texts) > 2:
        row["history"] = [[texts[place], texts[place + 1]] for place in range(0, len(texts) - 2, 2)]
    if len(spoken) < len(turns):
        if not turns[0].content:
            raise _Inexpressible("an empty system message")
        row["system"] = turns[0].content
    return row


TARGETS: dict[str, Callable[[Conversation], dict[str, Any]]] = {
    # name       conversation -> row
    "messages": as_messages,
    "openai": as_openai,
    "sharegpt": as_sharegpt,
    "alpaca": as_alpaca,
}


def _chat(conversation: Conversation) -> list[Turn]:
    if conversation.turns[0].role == "text":
        raise _Inexpressible("plain text without a question")
    return _roles(conversation.turns)


def _roles(turns: Sequence[Turn]) -> list[Turn]:
    raw = {"prompt": "user", "completion": "assistant"}
    return [Turn(raw[turn.role], turn.content, turn.trained, turn.extra) if turn.role in raw else turn for turn in turns]


def _message(turn: Turn) -> dict[str, Any]:
    message = {"role": turn.role, "content": turn.content, **_extra(turn)}
    return message if turn.trained is None else {**message, "train": turn.trained}


def _extra(turn: Turn) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(turn.extra) if turn.extra else {}
    return found


def _refuse(extra: dict[str, Any], known: set[str]) -> None:
    if other := sorted(extra.keys() - known):
        raise _Inexpressible(" and ".join(f'"{key}"' for key in other))


def _refuse_judged(conversation: Conversation) -> None:
    if conversation.rejected:
        raise _Inexpressible("a worse answer beside the better one")
    if conversation.label is not None:
        raise _Inexpressible("a verdict (label)")


def _openai_call(call: dict[str, Any], ids: Iterator[str]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    id = call["id"] if call.get("id") is not None else next(ids)
    return {"id": id, "type": "function", "function": {"name": call["function"]["name"], "arguments": written}}


def _object_call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    return {"name": call["function"]["name"], "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments}
