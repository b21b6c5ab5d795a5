"""What a file is written in, where data.encoding or a guess could spoil its letters."""

import gzip

import pytest

from luthier.errors import DataError
from luthier.records import Rejected, Row


def test_one_bad_byte_among_utf_8_letters_leads_to_no_other_encoding(write, read) -> None:  # type: ignore[no-untyped-def]
    rows, _ = read(write("rows.jsonl", '{"x": "Grüße aus Köln'.encode() + b"\x80" + b'"}\n{"x": "y"}\n'))
    assert isinstance(rows[0], Rejected)
    assert rows[0].detail.endswith("of the file is not UTF-8")
    western, _ = read(write("western.jsonl", '{"x": "Grüße aus Köln"}\n'.encode("cp1252")))
    assert isinstance(western[0], Rejected)
    assert "data.encoding=cp1252 reads that" in western[0].detail


def test_utf_8_that_is_read_as_another_encoding_is_said(write, read) -> None:  # type: ignore[no-untyped-def]
    text = '{"x": "Grüße"}\n'
    _, notes = read(write("rows.jsonl", text.encode()), encoding="cp1252")
    assert notes == ["rows.jsonl: was read as cp1252, as data.encoding says, but all of it is UTF-8, too: check that its letters are right"]
    rows, notes = read(write("marked.jsonl", text.encode("utf-8-sig")), encoding="cp1252")
    assert isinstance(rows[0], Row)
    assert (rows[0].value, notes) == ({"x": "Grüße"}, ["marked.jsonl: begins with the mark of UTF-8, and is read as UTF-8, not as cp1252"])
    for right in (text.encode("cp1252"), b'{"x": "plain"}\n'):
        assert read(write("right.jsonl", right), encoding="cp1252")[1] == []


def test_an_encoding_that_has_no_letters_is_an_error_of_the_setting(write, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="undefined is no encoding of text"):
        read(write("rows.jsonl", '{"x": 1}\n'), encoding="undefined")


BROKEN = {
    "commas": ("rows.jsonl", b'{"a": 1},\n{"a": 2},\n', "a comma stands after the row (column 9)"),
    "objects": ("rows.jsonl", b'{\n "a": 1\n}\n{\n "a": 2\n}\n', "holds one JSON object after the other, over several lines each"),
    "object": ("rows.json", b'{\n "a": 1\n}\n', "holds a single JSON object, not a list of rows"),
    "chat": ("rows.json", b'{\n "messages": [{"role": "user"}]\n}\n', "if it is a single row, write one object a line"),
    "zeros": ("rows.json", b'[{"a": 1}]\0\0', "NUL bytes follow the list"),
    "packed": ("rows.jsonl.gz", gzip.compress(gzip.compress(b"{}")), "is packed twice"),
    "excel": ("rows.csv", b"sep=;\nquestion;answer\na;b\n", "rows.csv:1: the first line tells a spreadsheet what parts the columns"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_of_the_wrong_build_is_named_for_what_it_is(case: str, write, read) -> None:  # type: ignore[no-untyped-def]
    name, content, message = BROKEN[case]
    if case == "commas":
        rows, _ = read(write(name, content))
        assert [message in row.detail for row in rows] == [True, True]
        return
    with pytest.raises(DataError) as error:
        read(write(name, content))
    assert message in str(error.value)
