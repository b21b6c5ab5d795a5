"""A .json file: a list, or an object of lists; and files whose name and content disagree."""

import json
import tracemalloc
from pathlib import Path

import pytest

from luthier.data.read import document, lines
from luthier.errors import DataError
from luthier.records import Rejected, Row


def test_a_list_gives_each_row_its_line(write, read) -> None:  # type: ignore[no-untyped-def]
    rows, notes = read(write("rows.json", '[\n {"x": 1},\n {"x":\n  2}, {"x": 3},\n\n 4, {"x": NaN}, {"x": 5}\n]\n'))
    assert [row.source.line for row in rows] == [2, 3, 4, 6, 6, 6]
    assert [row.reason if isinstance(row, Rejected) else row.value["x"] for row in rows] == [1, 2, 3, "not_an_object", "not_a_number", 5]
    assert [rows[3].raw, rows[4].raw] == ["4", '{"x": NaN}']
    assert notes == []


@pytest.mark.parametrize("content", ['[{"x": 1}, {"x": "ha', '[{"x": 1}', '[{"x": 1},', '{"data": [{"x": 1}, {"x": "ha', '{"data": [{"x": 1}'])
def test_a_cut_list_keeps_what_came_before_and_says_so(content: str, write, read) -> None:  # type: ignore[no-untyped-def]
    (first, cut), _ = read(write("rows.json", content))
    assert isinstance(first, Row)
    assert (cut.reason, cut.source.line) == ("cut_row", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"x": 1},\n {"x": },\n {"x": 2}]', "rows.json:2: the list cannot be read on from here (Expecting value (character 7 of the row))"),
        (
            '[{"x": 1},\n {"y": 1,\n  "x": },\n {"x": 2}]',
            "rows.json:2: the list cannot be read on from here (Expecting value (character 8 of",
        ),
        ('[{"x": 1}\n {"x": 2}]', "rows.json:2: the list cannot be read on from here (a comma is missing between two rows)"),
        ('[{"x": 1},\n]', "rows.json:2: the list cannot be read on from here (a comma stands before ])"),
        ('[{"x": 1}]\n[{"x": 2}]', "rows.json:2: there is more text after the list's end"),
        ('{\n "a": "b",\n "c": {}\n}', "rows.json: holds a single JSON object, not a list of rows"),
        (
            '{\n "a": [{"x": 1}],\n "b": []\n}',
            "rows.json: holds the lists a (1 rows), b (0 rows)\n  Try: say which to read: {path: FILE, ",
        ),
        ('{\n "data": [{"x": 1}],\n "rows": []\n}', 'rows.json:3: holds rows under "data" and under "rows"'),
        ('{\n "data": [{"x": 1}]\n "b": 1\n}', "rows.json:3: the list cannot be read on from here (a comma is missing"),
        ('{\n "data": [{"x": 1}],\n b: 1\n}', "rows.json:3: the list cannot be read on from here (Expecting value"),
        (b'[{"x": "a"},\n{"x": "\xff"}]', "rows.json:2: byte 0xff at offset 20 of the file is not UTF-8"),
        ("", "rows.json: is empty\n  Try: put rows into it: one JSON object a line"),
        ("\n \n", "rows.json: is empty"),
        ("[]", "rows.json: is empty"),
        ('{"data": []}', "rows.json: is empty"),
        ("[" * 100_000, "rows.json:1: the list cannot be read on from here (lists or objects are nested more than 64 deep"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_stops(content: str | bytes, message: str, write, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as error:
        read(write("rows.json", content))
    assert str(error.value).startswith(message)


def test_a_split_is_chosen_and_the_others_are_named(write, read) -> None:  # type: ignore[no-untyped-def]
    splits = {"version": "1.0", "test": [{"x": 1}], "train": [{"x": 2}, {"x": 3}], "about": {"by": ["me"]}}
    name = write("rows.json", json.dumps(splits, indent=1))
    rows, notes = read(name)
    assert [(row.value["x"], row.source.line) for row in rows] == [(2, 9), (3, 12)]
    assert notes == ['rows.json: the rows under "train" are read; not read: test (1 rows)']
    rows, notes = read(name, split="test")
    assert [row.value["x"] for row in rows] == [1]
    assert notes == ['rows.json: the rows under "test" are read; not read: train (2 rows)']
    with pytest.raises(DataError) as error:
        read(name, split="dev")
    assert str(error.value) == "rows.json: has no list of rows dev\n  Try: it holds: test (1 rows), train (2 rows)"
    with pytest.raises(DataError, match="holds one list and no split test"):
        read(write("list.json", "[{}]"), split="test")


@pytest.mark.parametrize(
    ("name", "content", "rows_read", "note"),
    [
        ("rows.json", '{"x": 1}\n{"x": 2}\n', 2, "rows.json: holds one JSON object a line, and is read as such"),
        ("rows.jsonl", '[{"x": 1}, {"x": 2}]', 2, "rows.jsonl: holds one JSON list, and is read as such"),
        ("rows.jsonl", '[\n  {\n    "x": 1\n  }\n]\n', 1, "rows.jsonl: holds one JSON list, and is read as such"),
        ("rows.jsonl", '{"data": [{"x": 1}]}', 1, "rows.jsonl: holds one JSON list, and is read as such"),
        ("rows.json", "question,answer\n1,2\n3,4\n", 2, "rows.json: holds a table (CSV), and is read as such"),
        ("rows.csv", '{"x": 1}\n', 1, "rows.csv: holds one JSON object a line, and is read as such"),
        ("rows.jsonl", '{"messages": [{"role": "user"}]}\n', 1, None),
        ("rows.json", '{"x": 1}', 1, "rows.json: holds one JSON object a line, and is read as such"),
        ("rows.jsonl.gz", '{"x": 1}\n', 1, "rows.jsonl.gz: is not packed, whatever its ending .gz says, and is read as it is"),
        ("rows.dat", '{"x": 1}\n', 1, None),
        ("rows", "a;b\n1;2\n", 1, None),
    ],
)
def test_the_content_decides_and_not_the_name(name: str, content: str, rows_read: int, note: str | None, write, read) -> None:  # type: ignore[no-untyped-def]
    rows, notes = read(write(name, content))
    assert [isinstance(row, Row) for row in rows] == [True] * rows_read
    assert (note in notes) if note else not any("read as such" in said for said in notes)


@pytest.mark.parametrize("fetched_characters", [1, 7, 64])
def test_rows_do_not_depend_on_how_the_file_is_cut_into_pieces(fetched_characters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "LEAST_FETCH", fetched_characters)
    values = [{"n": 12345, "t": 'a "quoted" é 😀 \\ text', "f": -1.5e10, "l": [None, True, {"": []}]}, 17, {"x": "😀"}]
    content = json.dumps(values, indent=2).encode() + b"\n"
    pieces = [content[at : at + fetched_characters] for at in range(0, len(content), fetched_characters)]
    rows = list(document.rows("f", iter(pieces), 0, None, print))
    assert [row.value if isinstance(row, Row) else row.raw for row in rows] == [values[0], "17", values[2]]
    assert [row.source.line for row in rows] == [2, 14, 15]


def test_a_long_list_is_read_in_little_memory(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with open(tmp_path / "rows.json", "w") as file:
        file.write("[" + ",\n".join('{"x": "' + "a" * 10_000 + '"}' for _ in range(3000)) + "]")
    from luthier.config.data import SourceSettings
    from luthier.data.read.rows import rows_of
    from luthier.data.read.source import find_sources

    [source] = find_sources([SourceSettings(path="rows.json")], tmp_path, tmp_path)
    tracemalloc.start()
    count = sum(1 for _ in rows_of(source, "utf-8", print))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000
    assert peak_bytes < 12e6  # the file has 30 MB


def test_a_row_over_the_limit_stops_or_is_named(monkeypatch: pytest.MonkeyPatch, write, read) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(document, "MOST_ROW_BYTES", 100_000)
    (row, big), _ = read(write("rows.json", json.dumps([{"x": 1}, {"x": "a" * 100_100}])))
    assert row.value == {"x": 1}
    assert (big.reason, big.detail) == ("row_too_big", "the row has 100,109 characters, and the limit is 100,000")
    with pytest.raises(DataError, match=r"rows.json:2: the list cannot be read on from here .the row has more than 100,000 characters"):
        read(write("rows.json", '[{"x": 1},\n{"x": "' + "a" * 3_000_000))
    assert lines.MOST_ROW_BYTES == 16 << 20


def test_a_number_is_not_cut_where_a_piece_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "LEAST_FETCH", 1)
    rows = list(document.rows("f", iter([b"[1", b"2", b"3, 4", b"5]"]), 0, None, print))
    assert [row.raw for row in rows] == ["123", "45"]
