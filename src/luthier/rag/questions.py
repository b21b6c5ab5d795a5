"""Questions with their answers, read from files of rows, and the documents that belong together."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.conversations import AS_FOUND, conversations, files_of
from luthier.errors import DataError
from luthier.rag.index import Index
from luthier.records import Conversation, Rejected
from luthier.reporting import Reporter


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as a conversation whose last turn is the answer, and its row as it stood."""

    conversation: Conversation
    row: dict[str, Any]

    @property
    def question(self) -> str:
        """What is looked up: the last thing that was asked."""
        return self.conversation.prompt[-1].content

    @property
    def answer(self) -> str:
        """What should be said."""
        return self.conversation.answer


def read_questions(path: str, reporter: Reporter) -> tuple[list[Asked], list[Rejected]]:
    """The questions of a file or folder of rows, in any of their formats, and the rows that are none. Raises DataError where there is none."""
    found: list[Asked] = []
    rejected: list[Rejected] = []
    with tempfile.TemporaryDirectory() as spool:
        for file in files_of([path], Path(spool), reporter.say):
            for built in conversations(file, AS_FOUND, reporter.say).built:
                if isinstance(built, Rejected):
                    rejected.append(built)
                elif not built.conversation.prompt or built.conversation.label is False:
                    rejected.append(Rejected("asks_nothing", "has no question with a good answer", built.conversation.source, built.raw))
                else:
                    found.append(Asked(built.conversation, json.loads(built.raw.split("\n", 1)[0])))
    if not found:
        raise DataError("holds no question with an answer", where=path, next_step='rows such as {"question": ..., "answer": ...}')
    return found, rejected


def fellows(index: Index, rows: Sequence[int]) -> list[int]:
    """All passages that may say the same as these: those of their documents; of a file of rows those rows that have their title."""
    found: set[int] = set()
    for row, passage in zip(rows, index.passages(rows), strict=True):
        inside = index.rows_of(passage.document)
        if passage.unit != "row":
            found.update(inside)
        elif passage.title:
            titles = index.table.column("title").slice(inside.start, len(inside)).to_pylist()
            found.update(inside.start + place for place, title in enumerate(titles) if title == passage.title)
        else:
            found.update(other for other, one in zip(inside, index.passages(inside), strict=True) if one.first == passage.first)
        found.add(row)
    return sorted(found)


def group(index: Index, row: int) -> str:
    """What a passage is held out with: its document, or in a file of rows those that have its title."""
    [passage] = index.passages([row])
    if passage.unit != "row":
        return passage.document
    return f"{passage.document} {passage.title}" if passage.title else passage.place
