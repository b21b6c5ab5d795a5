"""Tables as text: what parts the columns, records over several lines, and records that do not fit."""

import pytest

from luthier.errors import DataError
from luthier.records import Rejected, Row


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'q,a\n"one, two",1\n"x\ny",2\n\n"say ""hi""",\n'),
        ("rows.csv", 'q;a\n"one, two";1\n"x\ny";2\n\n"say ""hi""";\n'),
        ("rows.csv", 'q;a\none, two;1\n"x\ny";2\n\n"say ""hi""";\n'),
        ("rows.tsv", 'q\ta\none, two\t1\n"x\ny"\t2\n\n"say ""hi"""\t\n'),
        ("rows.csv", '\ufeffq,a\n"one, two",1\n"x\ny",2\n\n"say ""hi""",\n'),
    ],
)
def test_commas_semicolons_and_tabs_part_columns_and_values_stay_text(name: str, content: str, write, read) -> None:  # type: ignore[no-untyped-def]
    rows, notes = read(write(name, content))
    assert [(row.value, row.source.line) for row in rows] == [
        ({"q": "one, two", "a": "1"}, 2),
        ({"q": "x\ny", "a": "2"}, 3),
        ({"q": 'say "hi"', "a": ""}, 6),
    ]
    assert notes == [f"{name}: 1 blank lines are no rows"]
    assert rows[1].raw.startswith('"x\ny"')


def test_crlf_ends_lines_and_stays_inside_quotes(write, read) -> None:  # type: ignore[no-untyped-def]
    rows, _ = read(write("rows.csv", b'q,a\r\n"x\r\ny",2\r\n3,4'))
    assert [row.value for row in rows] == [{"q": "x\r\ny", "a": "2"}, {"q": "3", "a": "4"}]


def test_records_that_do_not_fit_cost_only_themselves(write, read) -> None:  # type: ignore[no-untyped-def]
    content = b'q,a\n1,2\n1\n1,2,3\n"a"b,2\ncaf\xe9,2\na\0b,2\n1\r2,3\n5,6\n"cut,'
    rows, _ = read(write("rows.csv", content))
    assert [row.value for row in rows if isinstance(row, Row)] == [{"q": "1", "a": "2"}, {"q": "5", "a": "6"}]
    assert [(row.source.line, row.reason, row.detail.partition(" (")[0]) for row in rows if isinstance(row, Rejected)] == [
        (3, "ragged_row", "the record has 1 fields, and the header has 2"),
        (4, "ragged_row", "the record has 3 fields, and the header has 2"),
        (5, "bad_quotes", "the quotes do not fit"),
        (6, "not_utf8", "byte 0xe9 at offset 26 of the file is not UTF-8"),
        (7, "nul_bytes", "a NUL byte stands at column 2 of line 7"),
        (8, "lone_cr", "a CR without LF stands outside of quotes"),
        (10, "cut_row", "the file ends inside a quoted field"),
    ]
    assert rows[1].raw == "1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('q,a\n1,2\n"open,2\n3,4\n5,6\n', "rows.csv:3: a quote that opens in the record of this line is not closed before line 5"),
        ("q,q\n1,2\n", 'rows.csv:1: two columns are named "q"'),
        ("q,a\r1,2\r3,4\r", "rows.csv:1: the header cannot be read: a CR without LF"),
        ("q,a\n", "rows.csv: is empty"),
    ],
)
def test_a_table_that_is_broken_as_a_whole_stops(content: str, message: str, write, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as error:
        read(write("rows.csv", content))
    assert str(error.value).startswith(message)


def test_a_column_without_a_name_gets_one(write, read) -> None:  # type: ignore[no-untyped-def]
    rows, notes = read(write("rows.csv", ",text\n0,hello\n"))
    assert rows[0].value == {"column_1": "0", "text": "hello"}
    assert notes == ["rows.csv: column 1 has no name, and is called column_1"]


def test_a_long_field_is_read(write, read) -> None:  # type: ignore[no-untyped-def]
    rows, _ = read(write("rows.csv", f"q,a\n{'x' * 300_000},2\n"))
    assert len(rows[0].value["q"]) == 300_000
