"""The parts of a row that checks look at, and its text without code."""

import re
from collections.abc import Iterator, Sequence

from luthier.records import Conversation, Turn

ANSWERS = ("assistant", "completion")
FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
INLINE = re.compile(r"`[^`\n]+`")
SHOWN = 60  # characters of a row that a detail shows
SAMPLED = 2000  # rows that are enough to see what is usual in a set


def answers_of(row: Conversation) -> list[Turn]:
    """The turns a model learns to write: none in plain text (continued pretraining), whose ends mean nothing."""
    return [turn for turn in row.turns if turn.role in ANSWERS and turn.trained is not False]


def turns_of(row: Conversation) -> Iterator[Turn]:
    """Every turn, the worse answers of a preference row included."""
    yield from row.turns
    yield from row.rejected


def prompt_of(row: Conversation) -> str:
    """What the user said, all of it."""
    return "\n".join(turn.content for turn in row.turns if turn.role in ("user", "prompt"))


def without_code(text: str) -> str:
    """The text without its ``` blocks and `inline code`."""
    return INLINE.sub(" ", FENCED.sub("\n", text)) if "`" in text else text


def excerpt(text: str, start: int = 0, end: int | None = None) -> str:
    """A short piece around text[start:end], on one line, with … where something is left out."""
    end = start if end is None else end
    first = max(0, min(start - 15, len(text) - SHOWN))
    last = min(len(text), max(end + 15, first + SHOWN), first + 2 * SHOWN)
    piece = "".join(character if character.isprintable() else " " for character in text[first:last])
    return ("…" if first else "") + piece.strip() + ("…" if last < len(text) else "")


def sample_of(rows: Sequence[Conversation]) -> list[Conversation]:
    """Up to SAMPLED rows at even distances."""
    step = max(1, len(rows) // SAMPLED)
    return [rows[place] for place in range(0, len(rows), step)][:SAMPLED]
