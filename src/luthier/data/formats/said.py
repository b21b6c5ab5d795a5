"""A message while it is read: its text, what else it holds for the template, and the field that it was read from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.formats.unfit import to_json
from luthier.records import Turn


@dataclass(frozen=True, slots=True)
class Said:
    """One message. `extra` goes to the template as it is: tool_calls, tool_call_id, name, reasoning_content, thinking."""

    path: str
    role: str
    content: str
    trained: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def calls(self) -> list[Any]:
        """The tool calls of an assistant's message."""
        found: list[Any] = self.extra.get("tool_calls", [])
        return found


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversation without its place: what a format's function makes of a row."""

    turns: tuple[Turn, ...]
    templated: bool = True
    tools: str = ""
    rejected: tuple[Turn, ...] = ()
    label: bool | None = None


def turns(said: Sequence[Said]) -> tuple[Turn, ...]:
    """The messages as records."""
    return tuple(Turn(one.role, one.content, one.trained, to_json(one.extra, one.path) if one.extra else "") for one in said)
