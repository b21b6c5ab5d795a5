from typing import Any

import pytest
from format_rows import ASK, GOOD, SAY, all_of, one, read, said, why

from luthier.data.formats.build import Built
from luthier.errors import DataError
from luthier.records import Rejected, Source

BROKEN = Rejected("not_json", "Expecting value (column 1)", Source("rows.jsonl", 1), "{")


def refused(*rows: object, **how: Any) -> str:
    with pytest.raises(DataError) as error:
        all_of(*rows, **how)
    return str(error.value)


# --- class 14: wrong keys


def test_columns_of_no_format_are_listed_with_the_line_to_write() -> None:
    said = refused({"Instruction": "u", "Output": "a", "id": 3})
    assert "rows.jsonl:1: the columns Instruction, Output, id are of no known format" in said
    assert "data.columns: {instruction: Instruction, output: Output} reads it as alpaca (instruction, output)" in said
    for wrong, name in (("message", "messages"), ("conversation", "conversations")):
        assert f"data.columns: {{{name}: {wrong}}} reads it as" in refused({wrong: [ASK, SAY]})
    said = refused({"Frage": "u", "Antwort": "a"})
    assert "data.columns: {question: Frage, answer: ...}" in said
    assert "question_answer: question, answer" in said


def test_a_row_without_a_column_of_its_file_names_the_nearest() -> None:
    good = GOOD["alpaca"][0][0]
    assert [type(entry) for entry in all_of(good, {"instruction": "x", "outptu": "y"})] == [Built, Rejected]
    rejected = all_of(good, {"instruction": "x", "outptu": "y"})[1]
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.source.line) == ("missing_column", 2)
    assert 'the row has no "output"; "outptu" is there: rename it to "output"' in rejected.detail


# --- class 15: mixed formats


def test_the_line_where_the_format_changes_is_named() -> None:
    chat, task = {"messages": [ASK, SAY]}, GOOD["alpaca"][0][0]
    said = refused(chat, chat, task)
    assert "rows.jsonl:3: the rows before this one are messages, this one is alpaca" in said
    assert "data.format" in said
    kinds = [type(entry) for entry in all_of(chat, chat, task, format="messages")]
    assert kinds == [Built, Built, Rejected]


# --- data.columns and data.format


def test_columns_of_another_name_are_read_and_said_back() -> None:
    formatted = read([{"Frage": "u", "Antwort": "a", "answer": "other"}], columns={"question": "Frage", "answer": "Antwort"})
    assert formatted.evidence == 'question_answer (columns question = "Frage", answer = "Antwort")'
    [built] = formatted.built
    assert isinstance(built, Built)
    assert said(built.conversation) == [("user", "u"), ("assistant", "a")]
    assert formatted.notes() == ["not read: answer (data.columns reads Antwort in its place) (1)"]


def test_a_field_is_named_as_the_file_names_it() -> None:
    assert why({"Frage": "u", "Antwort": 7}, columns={"question": "Frage", "answer": "Antwort"}).detail.startswith(
        "Antwort: is the number 7, not text"
    )
    assert why({"chat": [ASK, {"role": "assistant"}]}, columns={"messages": "chat"}).detail.startswith('chat[1]: has no "content"')


def test_settings_that_name_what_is_not_there_are_errors() -> None:
    assert 'data.columns: "qestion" is no column of any format' in refused({"Frage": "u"}, columns={"qestion": "Frage"})
    assert "nearest: question" in refused({"Frage": "u"}, columns={"qestion": "Frage"})
    assert 'data.columns names "Frag"; nearest: Frage' in refused({"Frage": "u", "Antwort": "a"}, columns={"question": "Frag", "answer": "Antwort"})
    assert 'data.format: "mesages" is no format' in refused({"messages": []}, format="mesages")
    assert "nearest: messages" in refused({"messages": []}, format="mesages")


# --- every row is accounted for


def test_rows_that_could_not_be_read_pass_through_and_the_first_readable_one_shows_the_format() -> None:
    found = all_of(BROKEN, {"messages": [ASK, SAY]}, {"messages": []})
    assert found[0] is BROKEN
    assert [type(entry) for entry in found] == [Rejected, Built, Rejected]
    assert "rows.jsonl:1: none of the first 2 rows can be read; the first: Expecting value" in refused(BROKEN, BROKEN)
    assert "rows.jsonl: there are no rows" in refused()


def test_rows_are_read_one_after_the_other() -> None:
    taken: list[int] = []

    def rows() -> Any:
        for number in range(1, 10_000):
            taken.append(number)
            yield {"text": f"row {number}"}

    from luthier.data.formats.build import How, build
    from luthier.records import Row

    built = build((Row(value, "", Source("f", 1)) for value in rows()), How("auto", {}, True, "best"), "f").built
    next(built), next(built)
    assert len(taken) == 2


def test_columns_and_keys_that_are_not_read_are_said_with_their_count() -> None:
    formatted = read([{"messages": [ASK, {**SAY, "mood": "good"}], "id": 1}, {"messages": [ASK, SAY], "id": 2, "label": ["x"]}])
    list(formatted.built)
    assert formatted.notes() == ["not read: id (2), label (1), messages[].mood (1)"]


def test_a_category_is_a_short_text() -> None:
    assert one({"text": "a", "category": "news"}).category == "news"
    assert one({"text": "a", "category": "n" * 65}).category == ""
    assert one({"text": "a", "category": 3}).category == ""
