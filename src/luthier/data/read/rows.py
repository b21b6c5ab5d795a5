"""From a file to its rows, one at a time: each row once, in order, or set aside with its reason."""

import os
from collections.abc import Callable, Iterator
from itertools import chain
from typing import IO

from luthier.data.read import columnar, document, jsonl, plain, sniff, stream, table
from luthier.data.read.lines import lines_of
from luthier.data.read.marks import Marks
from luthier.data.read.places import readable
from luthier.data.read.source import SourceFile
from luthier.errors import DataError
from luthier.records import Rejected, Row

UTF_16_OR_32 = (
    # first bytes            encoding
    (b"\xff\xfe\x00\x00",    "UTF-32"),
    (b"\x00\x00\xfe\xff",    "UTF-32"),
    (b"\xff\xfe",            "UTF-16"),
    (b"\xfe\xff",            "UTF-16"),
)  # fmt: skip
READ_AS = {
    # kind      what is said where the name promises another
    "json":    "one JSON list",
    "jsonl":   "one JSON object a line",
    "csv":     "a table (CSV)",
    "tsv":     "a table (tab separated)",
    "parquet": "Parquet data",
    "arrow":   "Arrow data",
    "text":    "plain text",
}  # fmt: skip


def rows_of(file: SourceFile, encoding: str, said: Callable[[str], None]) -> Iterator[Row | Rejected]:
    """Each row of the file, in order, and each that cannot be read with its reason. `said` gets notes for the user.

    Memory stays the same however long the file is. `encoding` is that of text files. Raises DataError where the file as a whole cannot
    be read: empty, damaged, in another encoding, or changed while it was read.
    """

    def note(text: str) -> None:
        said(f"{file.name}: {text}")

    marks = Marks()
    count = 0
    with readable(file.name, file.place), open(file.place, "rb") as opened:
        before = os.fstat(opened.fileno())
        if (before.st_size, before.st_mtime_ns) != (file.size_bytes, file.modified_ns):
            raise _changed(file, "was changed since it was found")
        for row in _rows(file, opened, encoding, marks, note):
            count += 1
            if isinstance(row, Row):
                marks.count(row.raw, row.value)
            yield row
        _check_unchanged(file, before)
    if not count:
        raise sniff.empty(file.name)
    for text in marks.said():
        note(text)


def _rows(file: SourceFile, opened: IO[bytes], encoding: str, marks: Marks, note: Callable[[str], None]) -> Iterator[Row | Rejected]:
    unpacked = stream.pieces(opened, file.compression, file.name)
    if file.kind in ("parquet", "arrow"):
        _say_kind(file, file.kind, note)
        return columnar.rows(file.name, file.kind, opened, unpacked if file.compression else None)
    chunks = stream.in_utf_8(unpacked, encoding, file.name, note)
    head = next(chunks, b"")
    _check_wide(file.name, head)
    offset_bytes = len(sniff.BOM) if head.startswith(sniff.BOM) else 0
    chunks = chain([head[offset_bytes:]], chunks)
    kind = file.kind
    if kind != "text":
        # Seen again, since the bytes may mean something only in their encoding.
        kind = sniff.kind_of_text(head[offset_bytes:][: sniff.HEAD_BYTES], file.kind, file.settings.split) or file.kind
    elif sniff.kind_of_text(head[offset_bytes:][: sniff.HEAD_BYTES], kind, None):
        note("begins like rows of JSON, and is read as plain text because of its ending: name it .jsonl if it holds rows")
    _say_kind(file, kind, note)
    match kind:
        case "jsonl":
            return jsonl.rows(file.name, lines_of(chunks, offset_bytes), marks)
        case "json":
            return document.rows(file.name, chunks, offset_bytes, file.settings.split, note)
        case "text":
            return plain.rows(file.name, chunks, offset_bytes, note)
        case _:
            delimiter, _ = sniff.delimiter_of(head[offset_bytes:][: sniff.HEAD_BYTES].decode("utf-8", "replace"))
            return table.rows(file.name, lines_of(chunks, offset_bytes), delimiter, marks, note)


def _say_kind(file: SourceFile, kind: str, note: Callable[[str], None]) -> None:
    named = sniff.kind_of_name(file.place.name)
    if named and {named, kind} not in ({kind}, {"csv", "tsv"}):
        note(f"holds {READ_AS[kind]}, and is read as such")
    packed = sniff.PACKED.get(file.place.suffix.lower(), "")
    if packed and not file.compression:
        note(f"is not packed, whatever its ending {file.place.suffix} says, and is read as it is")


def _check_wide(name: str, head: bytes) -> None:
    """UTF-16 and UTF-32 are recognised: by their mark, or by the zeros that stand beside every Latin letter."""
    found = next((encoding for mark, encoding in UTF_16_OR_32 if head.startswith(mark)), "")
    if not found and len(head) >= 8:
        if not any(head[1:40:2]) and all(head[0:40:2]):
            found = "UTF-16LE"
        elif not any(head[0:40:2]) and all(head[1:40:2]):
            found = "UTF-16BE"
    if found:
        next_step = f"set data.encoding={found.lower()}, or: iconv -f {found} -t UTF-8 '{name}' > utf8.jsonl"
        raise DataError(f"is written in {found}", where=name, next_step=next_step)


def _check_unchanged(file: SourceFile, before: os.stat_result) -> None:
    try:
        after = os.stat(file.place)
    except FileNotFoundError as error:
        raise _changed(file, "was deleted or moved while it was read") from error
    if (after.st_size, after.st_mtime_ns, after.st_ino) != (before.st_size, before.st_mtime_ns, before.st_ino):
        raise _changed(file, "was changed while it was read")


def _changed(file: SourceFile, problem: str) -> DataError:
    return DataError(problem, where=file.name, next_step="wait until the program that writes it has ended, then run again")
