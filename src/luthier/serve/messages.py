"""Turns as an engine gets them: it renders them itself, with the template that it has."""

import json
from collections.abc import Sequence
from typing import Any

from luthier.records import Turn
from luthier.serve.faults import bad_request


def written(turn: Turn) -> dict[str, Any]:
    """A turn as a message: role, content, and whatever else the message held."""
    return {**json.loads(turn.extra or "{}"), "role": turn.role, "content": turn.content}


def with_known_roles(turns: Sequence[Turn], knows_system: bool) -> list[Turn]:
    """The turns as the engine's template can express them: without a system role, its text stands before the first user message, as it does
    in training. Raises a Fault where none follows."""
    first, *others = turns
    if first.role != "system" or knows_system:
        return list(turns)
    if not others or others[0].role != "user":
        raise bad_request("messages", "this model's chat template has no system role, and no user message follows", "begin with a user message")
    joined = f"{first.content}\n\n{others[0].content}" if first.content.strip() else others[0].content
    return [Turn("user", joined, extra=others[0].extra), *others[1:]]


def all_written(turns: Sequence[Turn], knows_system: bool) -> list[dict[str, Any]]:
    """The turns as messages that the engine's template can express."""
    return [written(turn) for turn in with_known_roles(turns, knows_system)]


def check_control(text: str, field: str, control: Sequence[str]) -> None:
    """Raises a Fault (400) for a text that the engine would read as a control token."""
    if found := next((spelling for spelling in control if spelling in text), None):
        problem = f'holds "{found}", which this model reads as a control token and not as text'
        raise bad_request(field, problem, "ask in the form that the model was trained with")
