"""Columns that a row has and nothing reads, and columns that the settings name and no row has: each is said."""

from typing import Any

import pytest
from format_rows import ASK, SAY, all_of, one, read, said, why

from luthier.data.formats.build import Built
from luthier.errors import DataError
from luthier.records import Rejected

BAD = {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize("row", [{"prompt": "u", "messages": [ASK, SAY]}, {"messages": [ASK, SAY]}])
def test_the_chosen_side_given_once_more_as_messages_is_no_context(row: dict[str, Any]) -> None:
    """As UltraFeedback (binarized) has it."""
    conversation = one({**row, "chosen": [ASK, SAY], "rejected": [ASK, BAD]})
    assert said(conversation) == [("user", "u"), ("assistant", "a")]
    assert [turn.content for turn in conversation.rejected] == ["bad"]


def test_an_answer_may_say_what_the_question_does() -> None:
    assert said(one({"question": "u", "chosen": "u", "rejected": "b"})) == [("user", "u"), ("assistant", "u")]


def test_plain_sides_may_have_either_name() -> None:
    assert said(one({"prompt": "u", "chosen_messages": "a", "rejected_messages": "b"})) == [("prompt", "u"), ("completion", "a")]


UNREAD = {
    "completion": ({"prompt": "u", "completion": "a", "system": "s", "tools": ""}, "not read: system (1)"),
    "preference": ({"prompt": "u", "chosen": "a", "rejected": "b", "system": "s", "question": "q"}, "not read: question (1), system (1)"),
    "context": ({"question": "u", "chosen": "a", "rejected": "b", "input": "i"}, "not read: input (1)"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_column_that_a_plain_row_has_no_place_for_is_said(case: str) -> None:
    row, note = UNREAD[case]
    formatted = read([row])
    assert [type(built) for built in formatted.built] == [Built]
    assert note in formatted.notes()


@pytest.mark.parametrize(
    "rows",
    [
        [{"conversation_id": 1, "role": "user", "text": "u", "images": ["a.png"]}, {"conversation_id": 1, "role": "assistant", "text": "a"}],
        [{"message_id": "1", "parent_id": None, "role": "prompter", "text": "u", "images": ["a.png"]}],
        [{"message_tree_id": "1", "prompt": {"text": "u", "replies": [{"text": "a", "role": "assistant"}]}, "images": ["a.png"]}],
    ],
)
def test_pictures_beside_messages_of_their_own_are_refused_too(rows: list[dict[str, Any]]) -> None:
    assert [built.reason for built in all_of(*rows) if isinstance(built, Rejected)] == ["not_only_text"] * len(rows)


def test_a_flaw_of_a_tree_names_the_field_that_the_file_has() -> None:
    assert why({"message_tree_id": "1", "prompt": {"text": " ", "replies": []}}).detail.startswith("prompt.text: is")


def test_a_column_that_no_row_has_is_said_and_not_shown_as_read() -> None:
    formatted = read([{"instruction": "u", "output": "a"}], columns={"output": "outptu"})
    list(formatted.built)
    assert "outptu" not in formatted.evidence
    assert formatted.notes() == ['data.columns names "outptu" for output, and no row has it; nearest: output']


def test_an_unknown_form_is_told_in_the_names_of_the_file() -> None:
    with pytest.raises(DataError) as error:
        read([{"Frage": "u", "Antwort": "a"}], columns={"question": "Frage"})
    assert "the columns Frage, Antwort are of no known format" in str(error.value)
    assert "{question: Frage, answer: ...}" in str(error.value)


def test_a_list_of_rows_under_an_unknown_name_leads_to_split() -> None:
    with pytest.raises(DataError, match=r"data.train: \[\{path: FILE, split: part\}\]"):
        read([{"part": [{"question": "u", "answer": "a"}]}])
