"""One object a line: the classes of bad lines, each with its place, its value and its reason."""

from pathlib import Path

import pytest

from luthier.data.read import lines
from luthier.errors import DataError
from luthier.records import Rejected, Row

BROKEN_LINES: dict[str, tuple[str | bytes, str, str]] = {
    # name            the line                                   reason             what the detail says
    "nan": ('{"a": {"b": [1, NaN]}}', "not_a_number", "NaN is not a JSON value (a.b[1])"),
    "infinity": ('{"a": -Infinity}', "not_a_number", "-Infinity is not a JSON value (a)"),
    "too_large": ('{"a": 1e999}', "not_a_number", "1e999 is too large for a number (a)"),
    "twice": ('{"a": 1, "a": 2}', "duplicate_key", 'the key "a" is given twice'),
    "twice_inside": ('{"m": [{"x": 1}, {"b": 1, "b": 2}]}', "duplicate_key", 'the key "b" is given twice (m[1])'),
    "surrogate": (
        '{"m": [{"a": "\\ud83d"}]}',
        "lone_surrogate",
        "escape): it has no UTF-8 form (m[0].a)",
    ),
    "surrogate_key": ('{"\\uDC00": 1}', "lone_surrogate", "half of a character"),
    "list": ("[1, 2]", "not_an_object", "this is a list"),
    "number": ("17", "not_an_object", "this is a number"),
    "bool": ("true", "not_an_object", "this is true or false"),
    "null": ("null", "not_an_object", "this is null"),
    "string": ('"hello"', "not_an_object", "this is a string"),
    "very_deep": ('{"a":' + "[" * 200_000, "too_deep", "nested more than 64 deep"),
    "deep": ('{"a":' + "[" * 64 + "]" * 64 + "}", "too_deep", "nested more than 64 deep"),
    "two_rows": ('{"a": 1} {"a": 2}', "not_json", "more text after the row's end (column 9)"),
    "single_quotes": ("{'a': 1}", "not_json", "Expecting property name enclosed in double quotes"),
    "comma": ('{"a": 1,}', "not_json", "(column 9)"),
    "open_quote": ('{"a": "b}', "not_json", "a quote or a bracket is not closed"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "bad_number", "more digits"),
    "bytes": (b'{"a": "caf\xe9"}', "not_utf8", "byte 0xe9 at offset 19 of the file is not UTF-8 (it may be cp1252: data.encoding=cp1252 reads that)"),
    "chinese": ('{"a": "微调语言模型的数据集"}'.encode("gb18030"), "not_utf8", "it may be gb18030"),
    "nul": ('{"a": "b\0c"}', "nul_bytes", "a NUL byte stands at column 9"),
    "nul_between": ('{"a": 1}\0', "nul_bytes", "a NUL byte stands at column 9"),
    "bom": ('\ufeff{"a": 1}', "bom_inside", "a byte order mark stands at column 1: files were joined"),
    "lone_cr": ('{"a": 1}\r{"a": 2}', "lone_cr", "rows are parted by CR alone"),
    "no_break": ('\u00a0{"a": 1}', "not_json", "Expecting value (column 1)"),
}


@pytest.mark.parametrize("case", BROKEN_LINES)
def test_a_broken_line_costs_only_itself_and_is_kept_verbatim(case: str, write, read) -> None:  # type: ignore[no-untyped-def]
    line, reason, detail = BROKEN_LINES[case]
    line_bytes = line if isinstance(line, bytes) else line.encode()
    (before, broken, after), _ = read(write("rows.jsonl", b'{"x": 1}\n' + line_bytes + b'\n{"x": 2}\n'))
    assert (before.value, after.value, after.source.line) == ({"x": 1}, {"x": 2}, 3)
    assert isinstance(broken, Rejected)
    assert broken.reason == reason
    assert detail in broken.detail
    assert str(broken.source) == "rows.jsonl:2"
    assert broken.raw == line_bytes.decode(errors="backslashreplace")


def test_what_only_looks_odd_is_read(write, read) -> None:  # type: ignore[no-untyped-def]
    odd = '{"zero": -0, "huge": 123456789012345678901234567890, "deep": ' + "[" * 63 + "]" * 63 + ', "pair": "\\ud83d\\ude00", "": true}'
    (row,), _ = read(write("rows.jsonl", odd))
    assert isinstance(row, Row)
    assert (row.value["zero"], row.value["huge"], row.value["pair"], row.value[""]) == (0, 123456789012345678901234567890, "\U0001f600", True)
    assert row.raw == odd


def test_a_cut_last_line_is_told_from_a_miswritten_one(write, read) -> None:  # type: ignore[no-untyped-def]
    (_, cut), _ = read(write("cut.jsonl", '{"x": 1}\n{"x": "half a se'))
    assert (cut.reason, cut.detail, cut.source.line) == ("cut_row", "the file ends in the middle of this row", 2)
    (whole, _), _ = read(write("whole.jsonl", '{"x": "half a se\n{"x": 1}'))
    assert whole.reason == "not_json"


@pytest.mark.parametrize("content", [b'{"x": 1}\n' + bytes(5000), b'{"x": 1}\n{"x": "ha' + bytes(5000), b'{"x": 1}\n{"y": 1}' + bytes(5000)])
def test_zeros_at_the_end_are_what_a_power_loss_leaves(content: bytes, write, read) -> None:  # type: ignore[no-untyped-def]
    (row, tail), _ = read(write("rows.jsonl", content))
    assert row.value == {"x": 1}
    assert (tail.reason, tail.detail) == ("nul_bytes", "5,000 NUL bytes end the file: it was cut here (a power loss?)")
    assert str(tail.source) == "rows.jsonl:2"


def test_zeros_of_a_sparse_file_are_counted_and_not_held(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    with open(tmp_path / "rows.jsonl", "wb") as file:
        file.write(b'{"x": 1}\n')
        file.truncate(40_000_009)
    (_, tail), _ = read("rows.jsonl")
    assert (tail.reason, tail.detail) == ("nul_bytes", "40,000,000 NUL bytes end the file: it was cut here (a power loss?)")
    assert len(tail.raw) == lines.KEPT_OF_LONG_BYTES


def test_only_a_line_feed_ends_a_line(write, read) -> None:  # type: ignore[no-untyped-def]
    content = '\ufeff{"x": "a\u2028b\u2029c\u0085d\x7f"}\r\n\r\n   \n{"x":\r"d"}\r\n{"x": "\\f\\u000c"}'.encode()
    rows, notes = read(write("rows.jsonl", content))
    assert [(row.value["x"], row.source.line) for row in rows] == [("a\u2028b\u2029c\u0085d\x7f", 1), ("d", 4), ("\f\f", 5)]
    assert rows[1].raw == '{"x":\r"d"}'
    assert notes == ["rows.jsonl: 2 blank lines are no rows"]


@pytest.mark.parametrize("ends", [b"\n", b""])
def test_a_row_over_the_limit_is_named_with_its_size(ends: bytes, write, read) -> None:  # type: ignore[no-untyped-def]
    long = b'{"x": "' + b"a" * (lines.MOST_ROW_BYTES + 5000) + b'"}'
    rows, _ = read(write("rows.jsonl", b'{"x": 1}\n' + long + ends + (b'{"x": 2}\n' if ends else b"")))
    assert rows[1].reason == "row_too_big"
    assert rows[1].detail.startswith(f"the row has {len(long):,} bytes, and the limit is 16,777,216; it begins at byte 9 of the file")
    assert rows[1].raw == long[:1000].decode()
    assert [(row.value, row.source.line) for row in rows[2:]] == ([({"x": 2}, 3)] if ends else [])


def test_letters_that_are_content_are_kept_and_counted(write, read) -> None:  # type: ignore[no-untyped-def]
    texts = ["\ufffd", "a\u202eb", "a\u200bb", "e\u0301", "\ufdd0", "plain é"]
    rows, notes = read(write("rows.jsonl", "".join(f'{{"x": "{text}"}}\n' for text in texts) + '{"x": "\\u200b\\u0000"}\n'))
    assert [row.value["x"] for row in rows] == [*texts, "\u200b\0"]
    assert sorted(notes) == [
        "rows.jsonl: 1 rows hold accents as letters of their own (NFD); kept as they are",
        "rows.jsonl: 1 rows hold code points that are no characters (such as U+FFFE); kept as they are",
        "rows.jsonl: 1 rows hold letters that turn the direction of writing (such as U+202E); kept as they are",
        "rows.jsonl: 2 rows hold zero-width letters (U+200B, U+2060, U+FEFF); kept as they are",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_wide_text_is_recognized_and_read_when_said(encoding: str, write, read) -> None:  # type: ignore[no-untyped-def]
    name = write("rows.jsonl", '{"x": "é"}\n{"x": 2}\n'.encode(encoding))
    with pytest.raises(DataError) as error:
        read(name)
    assert str(error.value) == (
        f"rows.jsonl: is written in {encoding.upper()}\n  Try: set data.encoding={encoding}, or: "
        f"iconv -f {encoding.upper()} -t UTF-8 'rows.jsonl' > utf8.jsonl"
    )
    rows, _ = read(name, encoding=encoding)
    assert [row.value["x"] for row in rows] == ["é", 2]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_wide_text_without_its_mark_is_recognized(encoding: str, write, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match="is written in UTF-16"):
        read(write("rows.jsonl", '{"text": "hello"}\n'.encode(encoding)))


def test_other_encodings_are_read_when_said_and_named_when_wrong(write, read) -> None:  # type: ignore[no-untyped-def]
    name = write("rows.jsonl", '{"x": "naïve ™"}\n'.encode("cp1252"))
    rows, _ = read(name, encoding="cp1252")
    assert rows[0].value == {"x": "naïve ™"}
    for encoding, message in {
        "ascii": "rows.jsonl: byte 0xef at offset 9 of the file has no meaning in ascii\n  Try: set data.encoding",
        "latin-9000": "data.encoding: latin-9000 is no encoding of text that is known",
        "rot13": "data.encoding: rot13 is no encoding of text that is known",
    }.items():
        with pytest.raises(DataError) as error:
            read(name, encoding=encoding)
        assert str(error.value).startswith(message)
