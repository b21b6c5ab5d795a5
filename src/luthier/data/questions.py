"""Rows that are asked: those of any known format, with their answers or without, and the columns that each had when it was read."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from luthier.data.conversations import Reading
from luthier.data.formats.build import Built, How, build
from luthier.data.formats.message import ROLES, SPEAKER_KEYS
from luthier.data.formats.table import FORMATS, detect
from luthier.data.read.rows import rows_of
from luthier.data.read.source import SourceFile
from luthier.errors import DataError
from luthier.records import Conversation, Rejected, Row, Source

# Stands where an answer would be: the readers want one, and nobody is shown it.
NO_ANSWER = "?"
# The column of a question, and the one of its answer.
ANSWERS = {"question": "answer", "prompt": "completion", "instruction": "output"}


@dataclass(frozen=True, slots=True)
class Question:
    """A row to be asked: its columns as they were read, and the conversation, whose last turn is no part of the question."""

    value: dict[str, Any]
    conversation: Conversation


def questions(file: SourceFile, reading: Reading, said: Callable[[str], None]) -> Iterator[Question | Rejected]:
    """Every row of a file in order: as a question, or set aside with the reason. An answer that a row has is left out of its question.

    Raises DataError where the file cannot be read, no format fits, or several rows make one conversation.
    """
    values: dict[Source, dict[str, Any]] = {}

    def completed() -> Iterator[Row | Rejected]:
        for row in rows_of(file, reading.encoding, said):
            if isinstance(row, Rejected):
                yield row
                continue
            values[row.source] = row.value
            value = with_answer(row.value, reading.columns)
            yield Row(value, row.raw if file.kind == "jsonl" else json.dumps(row.value, ensure_ascii=False, default=str), row.source)

    how = How(format=reading.format, columns=reading.columns, strict=True, tree_paths="best")
    formatted = build(completed(), how, file.name)
    if FORMATS[formatted.name].gather or "tree" in formatted.name:
        problem = f"holds {formatted.name}: several rows are one conversation, or one row is several"
        raise DataError(problem, where=file.name, next_step="luthier data convert FILE --to messages makes one row of each conversation")
    for built in formatted.built:
        yield built if isinstance(built, Rejected) else _question(built, values.pop(built.conversation.source))
    for note in formatted.notes():
        said(f"{file.name}: {note}")


def _question(built: Built, value: dict[str, Any]) -> Question | Rejected:
    if not built.conversation.prompt:
        return Rejected("no_question", "the row is plain text, and nothing in it asks", built.conversation.source, built.raw)
    return Question(value, built.conversation)


def with_answer(value: dict[str, Any], columns: Any) -> dict[str, Any]:
    """The row with something in the place of its answer, where it has none: a last message, or the column that its format wants."""
    ours = {theirs: name for name, theirs in columns.items()}
    named = {ours.get(name, name): name for name in value}
    for messages in ("messages", "conversations"):
        if messages in named and isinstance(found := value[named[messages]], list) and found:
            return value if _answers(found[-1]) else {**value, named[messages]: [*found, _answer_to(found[-1])]}
    if detect({name: value[theirs] for name, theirs in named.items()}):
        return value
    for question, answer in ANSWERS.items():
        if question in named:
            asked = value[named[question]]
            # A prompt of messages has a completion of messages.
            empty = [{"role": "assistant", "content": NO_ANSWER}] if isinstance(asked, list) else NO_ANSWER
            return {**value, columns.get(answer, answer): empty}
    return value


def _answers(message: Any) -> bool:
    if not isinstance(message, dict):
        return True  # the reader says what is wrong with it
    role = next((str(message[role]).lower() for role, _ in SPEAKER_KEYS if role in message), "")
    return ROLES.get(role, "assistant") in ("assistant", "calling")


def _answer_to(message: dict[str, Any]) -> dict[str, str]:
    role, content = next(keys for keys in SPEAKER_KEYS if keys[0] in message)
    return {role: "assistant", content: NO_ANSWER}
