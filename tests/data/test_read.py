import os
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.data.read import Row, read_files
from luthier.errors import DataError
from luthier.records import Rejected

Write = Callable[..., str]

BROKEN_LINES: dict[str, tuple[str | bytes, str, str]] = {
    # name            the line                                   reason             what the detail says
    "nan": ('{"a": NaN}', "not_a_number", "NaN is not a JSON value"),
    "infinity": ('{"a": -Infinity}', "not_a_number", "-Infinity is not a JSON value"),
    "twice": ('{"a": 1, "a": 2}', "duplicate_key", 'the key "a" is given twice'),
    "twice_inside": ('{"m": [{"b": 1, "b": 2}]}', "duplicate_key", 'the key "b" is given twice'),
    "surrogate": ('{"a": "\\ud83d"}', "lone_surrogate", "half of a character"),
    "list": ("[1, 2]", "not_an_object", "this is a list"),
    "number": ("17", "not_an_object", "this is a number"),
    "bool": ("true", "not_an_object", "this is true or false"),
    "string": ('"hello"', "not_an_object", "this is a string"),
    "deep": ("[" * 200_000, "too_deep", "nested too deep"),
    "two_rows": ('{"a": 1} {"a": 2}', "not_json", "more text after the row's end (column 9)"),
    "single_quotes": ("{'a': 1}", "not_json", "Expecting property name enclosed in double quotes (column 2)"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "bad_number", "more digits"),
    "bytes": (b'{"a": "caf\xe9"}', "not_utf8", "byte 0xe9 at offset 19 of the file is not UTF-8"),
}


def only_file(name: str, base: Path) -> list[Row | Rejected]:
    [file] = read_files(name, base)
    return file.rows


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_a_broken_line_costs_only_itself_and_is_kept_verbatim(case: str, write: Write, tmp_path: Path) -> None:
    line, reason, detail = BROKEN_LINES[case]
    line_bytes = line if isinstance(line, bytes) else line.encode()
    name = write("rows.jsonl", b'{"x": 1}\n' + line_bytes + b'\n{"x": 2}\n')
    before, broken, after = only_file(name, tmp_path)
    assert isinstance(before, Row)
    assert isinstance(after, Row)
    assert (before.value, after.value, after.source.line) == ({"x": 1}, {"x": 2}, 3)
    assert isinstance(broken, Rejected)
    assert broken.reason == reason
    assert detail in broken.detail
    assert str(broken.source) == "rows.jsonl:2"
    assert broken.raw == line_bytes.decode(errors="backslashreplace")


def test_a_cut_last_line_is_told_from_a_miswritten_one(write: Write, tmp_path: Path) -> None:
    [_, cut] = only_file(write("cut.jsonl", '{"x": 1}\n{"x": "half a se'), tmp_path)
    assert isinstance(cut, Rejected)
    assert (cut.reason, cut.detail) == ("cut_row", "the file ends in the middle of this row")
    [whole, _] = only_file(write("whole.jsonl", '{"x": "half a se\n{"x": 1}'), tmp_path)
    assert isinstance(whole, Rejected)
    assert whole.reason == "not_json"


def test_only_a_line_feed_ends_a_line(write: Write, tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"x": "a\xe2\x80\xa8b\xc2\x85c"}\r\n\r\n   \n{"x":\r"d"}\r\n'
    rows = only_file(write("rows.jsonl", content), tmp_path)
    assert [(row.value["x"], row.source.line) for row in rows if isinstance(row, Row)] == [("a\u2028b\u0085c", 1), ("d", 4)]
    assert len(rows) == 2
    assert rows[1].raw == '{"x":\r"d"}'


def test_a_list_gives_each_row_its_line(write: Write, tmp_path: Path) -> None:
    rows = only_file(write("rows.json", '[\n {"x": 1},\n {"x":\n  2}, {"x": 3},\n\n 4, {"x": NaN}, {"x": 5}\n]\n'), tmp_path)
    assert [row.source.line for row in rows] == [2, 3, 4, 6, 6, 6]
    assert [row.reason if isinstance(row, Rejected) else row.value["x"] for row in rows] == [1, 2, 3, "not_an_object", "not_a_number", 5]
    assert [rows[3].raw, rows[4].raw] == ["4", '{"x": NaN}']


@pytest.mark.parametrize("content", ['[{"x": 1}, {"x": "ha', '[{"x": 1}', '[{"x": 1},'])
def test_a_cut_list_keeps_what_came_before_and_says_so(content: str, write: Write, tmp_path: Path) -> None:
    first, cut = only_file(write("rows.json", content), tmp_path)
    assert isinstance(first, Row)
    assert isinstance(cut, Rejected)
    assert cut.reason == "cut_row"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"x": 1},\n {"x": },\n {"x": 2}]', "rows.json:2: the list cannot be read on from here (Expecting value (column 8))"),
        ('[{"x": 1}\n {"x": 2}]', "rows.json:2: the list cannot be read on from here (a comma is missing between two rows)"),
        ('[{"x": 1}]\n[{"x": 2}]', "rows.json:2: there is more text after the list's end"),
        ('{\n "rows": [\n {"x": 1}\n ]\n}', "rows.json: holds a single JSON object, not a list of rows"),
        (b'[{"x": "a"},\n{"x": "\xff"}]', "rows.json:2: byte 0xff at offset 20 of the file is not UTF-8"),
        ("", "rows.json: is empty"),
        ("\n \n", "rows.json: is empty"),
        ('[{"x": 1}]'.encode("utf-16"), "rows.json: is written in UTF-16"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_stops(content: str | bytes, message: str, write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        only_file(write("rows.json", content), tmp_path)
    assert str(error.value).startswith(message)


def test_the_content_decides_not_the_ending(write: Write, tmp_path: Path) -> None:
    [lines] = read_files(write("lines.json", '{"x": 1}\n{"x": 2}\n'), tmp_path)
    [listed] = read_files(write("list.jsonl", '[{"x": 1}, {"x": 2}]'), tmp_path)
    assert [len(lines.rows), len(listed.rows)] == [2, 2]
    assert lines.notes == ["lines.json: holds one JSON object a line, and is read as .jsonl"]
    assert listed.notes == ["list.jsonl: holds one JSON list, and is read as such"]


def test_a_folder_is_read_by_name(write: Write, tmp_path: Path) -> None:
    for name in ("rows/b.jsonl", "rows/a.jsonl", "rows/.hidden.jsonl", "rows/notes.txt"):
        write(name, '{"x": 1}\n')
    assert [str(file.rows[0].source) for file in read_files("rows", tmp_path)] == [
        os.path.join("rows", "a.jsonl:1"),
        os.path.join("rows", "b.jsonl:1"),
    ]


def test_what_is_no_file_of_rows_is_named(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", '{"x": 1}\n')
    write("table.csv", "a,b\n")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    cases = {
        "trian.jsonl": "trian.jsonl: there is no such file or folder\n  Try: train.jsonl is there: is that the one?",
        "table.csv": "table.csv: is a .csv file; only .jsonl and .json are read\n  Try: turn it into .jsonl: one JSON object a line",
        "empty": "empty: the folder has no .jsonl or .json file",
        "pipe.jsonl": "pipe.jsonl: is not a plain file",
        "train.jsonl/rows.jsonl": "train.jsonl/rows.jsonl: there is no such file or folder",
        "x" * 300 + ".jsonl": "x" * 300 + ".jsonl: cannot be read (File name too long)",
    }
    for name, message in cases.items():
        with pytest.raises(DataError) as error:
            list(read_files(name, tmp_path))
        assert str(error.value).startswith(message)
