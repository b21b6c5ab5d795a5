"""Rows that are asked: with their answers or without, in every form that a user has them in."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.conversations import AS_FOUND, Reading, files_of
from luthier.data.questions import Question, questions
from luthier.errors import DataError
from luthier.records import Rejected


def read(path: Path, rows: list[Any], reading: Reading = AS_FOUND) -> list[Question | Rejected]:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    [file] = files_of([str(path)], path.parent, lambda line: None)
    return list(questions(file, reading, lambda line: None))


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"question": "Hi"}, [("user", "Hi")]),
        ({"question": "Hi", "answer": "known"}, [("user", "Hi")]),
        ({"messages": [USER]}, [("user", "Hi")]),
        ({"messages": [{"role": "system", "content": "Be."}, USER, {"role": "assistant", "content": "known"}]}, [("system", "Be."), ("user", "Hi")]),
        ({"messages": [USER, {"role": "assistant", "content": "Yes?"}, USER]}, [("user", "Hi"), ("assistant", "Yes?"), ("user", "Hi")]),
        ({"conversations": [{"from": "human", "value": "Hi"}]}, [("user", "Hi")]),
        ({"instruction": "Say", "input": "Hi"}, [("user", "Say\n\nHi")]),
        ({"prompt": "Once upon"}, [("prompt", "Once upon")]),
        ({"prompt": [USER]}, [("user", "Hi")]),
        ({"prompt": "Once", "completion": " upon"}, [("prompt", "Once")]),
    ],
)
def test_every_form_of_a_question(row: dict[str, Any], asked: list[tuple[str, str]], tmp_path: Path) -> None:
    [found] = read(tmp_path / "rows.jsonl", [{"id": 7, **row}])
    assert isinstance(found, Question)
    assert [(turn.role, turn.content) for turn in found.conversation.prompt] == asked
    assert found.value == {"id": 7, **row}  # as it was, with nothing in it that it had not


def test_columns_of_other_names(tmp_path: Path) -> None:
    [found] = read(tmp_path / "rows.jsonl", [{"q": "Hi", "n": 1}], Reading("auto", {"question": "q", "answer": "a"}, "utf-8"))
    assert isinstance(found, Question)
    assert [found.conversation.prompt[0].content, found.value] == ["Hi", {"q": "Hi", "n": 1}]


def test_what_cannot_be_asked_is_listed(tmp_path: Path) -> None:
    found = read(tmp_path / "rows.jsonl", [{"question": "Hi"}, "broken", {"question": ""}, {"question": 3}, {"answer": "x"}])
    assert [isinstance(row, Question) for row in found] == [True, False, False, False, False]
    assert all(isinstance(row, Question) or row.raw for row in found)
    [plain] = read(tmp_path / "text.jsonl", [{"text": "Nobody asks."}])
    assert isinstance(plain, Rejected)
    assert plain.reason == "no_question"


def test_rows_that_are_no_conversation_each_are_refused(tmp_path: Path) -> None:
    log = [{"conversation_id": 1, "role": "user", "content": "Hi"}, {"conversation_id": 1, "role": "assistant", "content": "Yes"}]
    with pytest.raises(DataError, match="data convert"):
        read(tmp_path / "log.jsonl", log)
