"""What holds for every kind: nothing changes while it is read, plain text is one row, and no mutation breaks the reader."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.config.data import SourceSettings
from luthier.data.read import plain
from luthier.data.read.rows import rows_of
from luthier.data.read.source import SourceFile, find_sources
from luthier.errors import DataError
from luthier.records import Rejected, Row

MUTATED_LINES = 20_000
LINES_A_FILE = 100


def found(path: str, base: Path) -> SourceFile:
    [file] = find_sources([SourceSettings(path=path)], base, base / "spool")
    return file


def test_a_file_that_changes_while_it_is_read_stops_the_reading(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    name = write("rows.jsonl", '{"x": 1}\n' * 10)
    for change, words in (
        (lambda: (tmp_path / name).write_text('{"x": 2}\n'), "rows.jsonl: was changed while it was read\n  Try: wait until"),
        (lambda: os.replace(tmp_path / write("new.jsonl", '{"x": 3}\n' * 10), tmp_path / name), "rows.jsonl: was changed while it was read"),
        (lambda: (tmp_path / name).unlink(), "rows.jsonl: was deleted or moved while it was read"),
    ):
        rows = rows_of(found(name, tmp_path), "utf-8", print)
        next(rows)
        change()
        with pytest.raises(DataError) as error:
            list(rows)
        assert str(error.value).startswith(words)


def test_a_file_that_changed_or_went_before_it_is_read_is_named(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = found(write("rows.jsonl", '{"x": 1}\n'), tmp_path)
    write("rows.jsonl", '{"x": 11}\n')
    with pytest.raises(DataError, match=r"rows.jsonl: was changed since it was found"):
        list(rows_of(file, "utf-8", print))
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"rows.jsonl: there is no such file or folder"):
        list(rows_of(file, "utf-8", print))


def test_a_text_is_one_row(write, read) -> None:  # type: ignore[no-untyped-def]
    (row,), notes = read(write("book.txt", "\ufeffOnce upon\r\na time\n\nThe end.\n"))
    assert (row.value, row.source.line) == ({"text": "Once upon\r\na time\n\nThe end.\n"}, 1)
    assert notes == []


def test_a_very_long_text_is_cut_at_blank_lines_and_nothing_is_lost(write, read, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(plain, "MOST_ROW_BYTES", 1 << 20)
    content = "".join(f"Paragraph {number}, é.\nIts second line.\n\n" for number in range(80_000))
    rows, notes = read(write("book.md", content))
    assert "".join(row.value["text"] for row in rows) == content
    assert all(row.value["text"].startswith("Paragraph") and len(row.raw) <= 1 << 20 for row in rows)
    assert [content.count("\n", 0, content.index(row.raw[:30])) + 1 for row in rows] == [row.source.line for row in rows]
    assert notes == [f"book.md: the text is longer than 1 MB, and is cut at blank lines into {len(rows)} rows"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"one\ntwo caf\xe9 two\n",
            "book.txt:2: byte 0xe9 at offset 11 of the file is not UTF-8 (it may be cp1252: data.enc",
        ),
        (b"one\ntwo" + bytes(300), "book.txt:2: 300 NUL bytes end the file: it was cut here (a power loss?)"),
        (b"one\ntwo\0two\n", "book.txt:2: a NUL byte stands in the text"),
        ("text".encode("utf-16"), "book.txt: is written in UTF-16"),
    ],
)
def test_a_text_that_is_broken_stops(content: bytes, message: str, write, read) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as error:
        read(write("book.txt", content))
    assert str(error.value).startswith(message)


SEEDS = [
    b'{"instruction": "Add the numbers", "input": "1, 2", "output": "3"}',
    b'{"messages": [{"role": "user", "content": "h\xc3\xa9llo \\u00e9 \\ud83d\\ude00"}, {"role": "assistant", "content": "hi", "weight": 1.5e3}]}',
    '{"text": "混合 текст \u2028 \u0085", "n": [-0, 1e10, true, null, {"a": {"b": []}}]}'.encode(),
]
SPLICES = [
    b"\xff",
    b"\0",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b'"',
    b"\\",
    b"{",
    b"[" * 70,
    b"]",
    b",",
    b"\r",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
    b"-Infinity",
]
SPLICES += [b"\xe2\x80\xa8", b'"a":1,"a":2,', b"9" * 4400, b"\x0c", b"\x85", b"/*", b"'", b"\xed\xa0\x80", b"\xc0\x80", b" ", b"\t", b"}{", b":"]


def mutated(line: bytes, draw: random.Random) -> bytes:
    """The line with up to four cuts, changed bytes or splices."""
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randint(0, len(line)), draw.choice((0, 0, 1, 1, 5, 40))
        put = draw.choice((b"", bytes([draw.randint(0, 255)]), draw.choice(SPLICES), draw.choice(SPLICES), line[: draw.randint(0, 20)]))
        line = line[:at] + put + line[at + length :]
    return line.replace(b"\n", b" ")


def test_no_mutation_of_a_line_breaks_the_reader_or_loses_a_row(write, read) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(20261122)
    accepted = rejected = 0
    for number in range(MUTATED_LINES // LINES_A_FILE):
        lines = [SEEDS[0], *(mutated(draw.choice(SEEDS), draw) for _ in range(LINES_A_FILE))]
        rows, _ = read(write("rows.jsonl", b"\n".join(lines)))
        given = [line for line in lines if line.strip()]
        assert len(rows) == len(given), number
        accepted += sum(isinstance(row, Row) for row in rows)
        rejected += sum(isinstance(row, Rejected) for row in rows)
        for row, line in zip(rows, given, strict=True):
            if isinstance(row, Row):
                # What is accepted is JSON to others too, has a UTF-8 form, and lost no key.
                assert row.value == json.loads(line.decode().strip(" \r\t"), parse_constant=pytest.fail)
                json.dumps(row.value, ensure_ascii=False, allow_nan=False).encode()
            else:
                assert row.raw == line.decode(errors="backslashreplace").rstrip("\r")
                assert row.reason
                assert row.detail
    assert min(accepted, rejected) > MUTATED_LINES // 20


@pytest.mark.parametrize("kind", ["json", "csv", "txt", "jsonl.gz", "parquet", "arrow"])
def test_no_mutation_of_a_whole_file_gives_anything_but_rows_and_words(kind: str, write, read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"q": [f"question {number}, é" for number in range(50)], "a": [None, "x\ny"] * 25})
    pq.write_table(table, tmp_path / "t.parquet")
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as writer:
        writer.write_table(table)
    whole = {
        "json": json.dumps([json.loads(line) for line in SEEDS], indent=1).encode(),
        "csv": b'question,answer\n"a, b",2\n"c\nd","e ""f"""\n3,4\n',
        "txt": b"One.\n\nTwo.\n",
        "jsonl.gz": gzip.compress(b"\n".join(SEEDS)),
        "parquet": (tmp_path / "t.parquet").read_bytes(),
        "arrow": (tmp_path / "t.arrow").read_bytes(),
    }[kind]
    draw = random.Random(7)
    outcomes = set()
    for _ in range(400):
        try:
            rows, _ = read(write(f"rows.{kind}", changed(whole, draw) if kind in ("parquet", "arrow") else spliced(whole, draw)))
            assert all(isinstance(row, Row | Rejected) for row in rows)
            outcomes.add("rows")
        except DataError as error:
            outcomes.add("words" if f"rows.{kind}" in error.where else str(error))
    assert outcomes == {"rows", "words"}


def spliced(content: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(content))
    return content[:at] + draw.choice((b"", *SPLICES, b"\n")) + content[at + draw.choice((0, 1, 30)) :]


def changed(content: bytes, draw: random.Random) -> bytes:
    """One byte is another, or the end is gone: what is moved never fits, and says nothing."""
    at = draw.randrange(len(content))
    return content[:at] + (bytes([draw.randint(0, 255)]) + content[at + 1 :] if draw.random() < 0.9 else b"")


MEASURE = """
import re, sys
from pathlib import Path
from luthier.config.data import SourceSettings
from luthier.data.read.rows import rows_of
from luthier.data.read.source import find_sources
[file] = find_sources([SourceSettings(path=sys.argv[1])], Path("."), Path("."))
rows = sum(1 for _ in rows_of(file, "utf-8", print))
# Not ru_maxrss, which a child inherits from its parent.
print(rows, int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def resident_bytes(place: Path, size_bytes: int) -> int:
    """The most memory that reading a generated .jsonl of that size takes."""
    row = json.dumps({"messages": [{"role": "user", "content": "What is it? " * 30}, {"role": "assistant", "content": "An answer. " * 30}]}) + "\n"
    with open(place, "w") as file:
        for _ in range(size_bytes // len(row) // 1000):
            file.write(row * 1000)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(place)], capture_output=True, text=True, check=True)
    rows, most_bytes = map(int, done.stdout.split())
    assert rows == size_bytes // len(row) // 1000 * 1000
    return most_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path / "rows.jsonl", 60_000_000) < 120e6


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_gigabytes_are_read_in_little_memory(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path / "rows.jsonl", 2_000_000_000) < 300e6
