"""The table of formats: what gives each away, what else it may have, and the function that reads it. A new format is one row and one function."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.formats import judged, rows, trees
from luthier.data.formats.book import Book
from luthier.data.formats.message import MEDIA_COLUMNS, PASSED_ON, TRAINED_KEYS
from luthier.data.formats.said import Draft
from luthier.data.formats.trees import TIMES
from luthier.data.formats.unfit import Value
from luthier.records import Row

# A column that sorts the rows, in any format.
CATEGORIES = ("category", "label")


Read = Callable[[Value, Book], list[Draft]]
Gather = Callable[[Sequence[Row], Book], Iterator[trees.Group]]


def always(value: Value) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows. `read` makes the conversations of one row; `gather`, where there is one, puts all rows of the file together first."""

    marks: tuple[tuple[str, ...], ...]  # sets of columns: having any one of them gives the format away
    optional: tuple[str, ...]
    read: Read
    gather: Gather | None = None
    fits: Callable[[Value], bool] = always  # what the columns alone cannot tell

    @property
    def columns(self) -> frozenset[str]:
        """Every column that is read where it is there, those of pictures and sound (which are refused) among them."""
        return frozenset(column for marks in self.marks for column in marks) | {*self.optional, *MEDIA_COLUMNS}

    def has_marks(self, columns: Collection[str]) -> bool:
        return any(all(mark in columns for mark in marks) for marks in self.marks)


CHAT = ("system", "tools", "functions")
ASKED = ("prompt", "messages", "conversations", "question", "instruction", "input", "history", *CHAT)
MESSAGE = ("tool_calls", "function_call", *PASSED_ON, *TRAINED_KEYS)
VERDICTS = ("label", "kto_tag")
ANSWERED = (("messages",), ("conversations",), ("instruction", "output"), ("question", "answer"), ("prompt", "completion"))
JUDGED = tuple((*columns, verdict) for columns in ANSWERED for verdict in VERDICTS)

# The first that fits is taken: the more special stand before the more general.
FORMATS: dict[str, Format] = {
    # name                        columns that give it away (any of these sets)               columns it may have            how it is read
    "preference": Format((("chosen", "rejected"), ("chosen_messages", "rejected_messages")), ASKED, judged.preference),
    "kto": Format(JUDGED, ("input", "history", *CHAT), judged.kto, fits=judged.is_judged),
    "messages": Format((("messages",),), CHAT, rows.messages),
    "sharegpt": Format((("conversations",),), CHAT, rows.sharegpt),
    "alpaca": Format((("instruction", "output"),), ("input", "history", *CHAT), rows.alpaca),
    "dolly": Format((("instruction", "response"),), ("context", *CHAT), rows.dolly),
    "question_answer": Format((("question", "answer"),), CHAT, rows.question_answer),
    "completion": Format((("prompt", "completion"),), CHAT, rows.completion),
    "openassistant_tree": Format((("message_tree_id", "prompt"),), (), trees.openassistant_tree),
    "openassistant": Format((("message_id", "role", "text"),), ("parent_id", "rank", "deleted"), trees.openassistant_tree, trees.openassistant),
    "message_log": Format(
        (("conversation_id", "role", "text"), ("conversation_id", "role", "content")), (*TIMES, *MESSAGE), rows.messages, trees.message_log
    ),
    "text": Format((("text",),), (), rows.plain_text),
}


def detect(value: Mapping[str, Any]) -> str | None:
    """The name of the first format that a row with these columns fits, or None."""
    return next((name for name, format in FORMATS.items() if format.has_marks(value) and format.fits(dict(value))), None)
