"""What a file is, from its first bytes: the content decides, its name only where the content leaves it open."""

import csv
import json
import re
from pathlib import Path

from luthier.data.read import stream
from luthier.data.read.places import readable
from luthier.errors import DataError

HEAD_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"

KINDS = {
    # ending     kind
    ".jsonl":    "jsonl",
    ".ndjson":   "jsonl",
    ".json":     "json",
    ".csv":      "csv",
    ".tsv":      "tsv",
    ".parquet":  "parquet",
    ".arrow":    "arrow",
    ".feather":  "arrow",
    ".txt":      "text",
    ".md":       "text",
}  # fmt: skip
PACKED = {
    # ending  compression
    ".gz":    "gzip",
    ".zst":   "zstd",
}  # fmt: skip

UNPACK = "unpack it, and name the file inside; .gz and .zst are read as they are"
WRITE_AGAIN = "write the rows as .jsonl: one JSON object a line"
REFUSED = (
    # at  first bytes                               what it is                                      what to do
    (0,   b"version https://git-lfs.github.com/",   "is a Git LFS pointer, not the data",           "git lfs pull, in the repository it lies in"),
    (0,   b"PK\x03\x04",                            "is a zip archive (or a .xlsx)",                UNPACK),
    (0,   b"\xfd7zXZ\x00",                          "is packed with xz",                            UNPACK),
    (4,   b"1AY&SY",                                "is packed with bzip2",                         UNPACK),
    (0,   b"7z\xbc\xaf\x27\x1c",                   "is a 7z archive",                              UNPACK),
    (0,   b"Rar!\x1a\x07",                          "is a rar archive",                             UNPACK),
    (257, b"ustar",                                 "is a tar archive",                             UNPACK),
    (0,   b"SQLite format 3\x00",                   "is an SQLite database",                        WRITE_AGAIN),
    (0,   b"FEA1",                                  "is a Feather file of version 1",               WRITE_AGAIN),
    (0,   stream.GZIP,                              "is packed twice",                              UNPACK),
    (0,   stream.ZSTD,                              "is packed twice",                              UNPACK),
    (0,   b"\x93NUMPY",                             "is a NumPy array",                             WRITE_AGAIN),
    (0,   b"\x80\x02",                              "is a Python pickle, which can run any code",   WRITE_AGAIN),
    (0,   b"\x80\x03",                              "is a Python pickle, which can run any code",   WRITE_AGAIN),
    (0,   b"\x80\x04",                              "is a Python pickle, which can run any code",   WRITE_AGAIN),
    (0,   b"\x80\x05",                              "is a Python pickle, which can run any code",   WRITE_AGAIN),
)  # fmt: skip
WEB_PAGE = re.compile(rb"\s*<(!doctype html|html[ >])", re.IGNORECASE)

# Keys under which a .json file keeps its list of rows.
ROW_KEYS = ("train", "data", "rows", "examples", "instances", "items", "records")
DELIMITERS = ",;\t"
SAMPLE_RECORDS = 20


def kind_of_name(name: str) -> str:
    """The kind that a file's name promises, "" where it promises none. Endings of packings are looked through."""
    place = Path(name)
    if place.suffix.lower() in PACKED:
        place = place.with_suffix("")
    return KINDS.get(place.suffix.lower(), "")


def look(name: str, place: Path, split: str | None) -> tuple[str, str]:
    """Kind and compression of the file at `place`. Raises DataError where it is empty or of a kind that is not read."""
    with readable(name, place), open(place, "rb") as file:
        head = file.read(HEAD_BYTES)
        compression = "gzip" if head.startswith(stream.GZIP) else "zstd" if head.startswith(stream.ZSTD) else ""
        if compression:
            file.seek(0)
            head = next(stream.pieces(file, compression, name), b"")[:HEAD_BYTES]
    if not head.strip():
        raise empty(name)
    _check_refused(name, head)
    return _kind(name, head, split), compression


def empty(name: str) -> DataError:
    """The error of a file without rows."""
    return DataError("is empty", where=name, next_step="put rows into it: one JSON object a line")


def _check_refused(name: str, head: bytes) -> None:
    for at, magic, problem, next_step in REFUSED:
        if head.startswith(magic, at):
            if magic.startswith(b"PK") and (head + bytes(7))[6] & 1:
                problem = "is an encrypted zip archive"
            raise DataError(problem, where=name, next_step=next_step)
    if WEB_PAGE.match(head):
        raise DataError("is a web page (HTML), not rows", where=name, next_step="fetch it again: a log-in or error page was saved")


def _kind(name: str, head: bytes, split: str | None) -> str:
    named = kind_of_name(name)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if named in ("parquet", "arrow"):
        raise DataError(f"is named like {named}, but its content is not", where=name, next_step="fetch the file again, or name it for what it is")
    if named == "text":
        return named
    return kind_of_text(head.removeprefix(BOM), named, split) or named or _unnamed(name)


def kind_of_text(head: bytes, named: str, split: str | None) -> str:
    """The kind of a text file, "" where its content leaves it open."""
    head = head.lstrip()
    if head.startswith(b"[") and (named == "json" or re.match(rb"\[\s*([{\]]|$)", head)):
        return "json"
    if re.match(rb"\{\s*([\"}]|$)", head):
        return "json" if _is_document(head, split) else "jsonl"
    if named in ("json", "jsonl", "") and b"\0" not in head and not re.match(rb"[\[{\"\d-]", head):
        text = head.decode("utf-8", "replace")
        delimiter, columns = delimiter_of(text)
        if columns > 1:
            return "tsv" if delimiter == "\t" else "csv"
    return ""


def _is_document(head: bytes, split: str | None) -> bool:
    """Whether a text that begins with { is one object that holds the rows, and not one row a line."""
    first, _, rest = head.partition(b"\n")
    keys = (*ROW_KEYS, *([split] if split else []))
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        end = first.rstrip()[-1:]
        # Rows of .jsonl with a comma behind each are no document.
        pretty = end in (b"{", b"[", b":") or (end == b"," and not rest.lstrip().startswith(b"{"))
        return (pretty and bool(rest)) or bool(_opening(keys).match(first))
    lists = [key for key in keys if isinstance(value.get(key), list) and all(isinstance(row, dict) for row in value[key])]
    return bool(lists) and not rest.strip()


def _opening(keys: tuple[str, ...]) -> re.Pattern[bytes]:
    """The beginning of an object whose first list has one of these keys; short values may stand before it."""
    short = rb'\s*"[^"]*"\s*:\s*("[^"]*"|[\d.eE+-]+|true|false|null)\s*,'
    return re.compile(rb"\{(" + short + rb')*\s*"(' + b"|".join(re.escape(key).encode() for key in keys) + rb')"\s*:\s*\[\s*[{\]]')


def delimiter_of(text: str) -> tuple[str, int]:
    """What parts the columns of a table (comma, semicolon or tab), and how many columns its header has; 1 where nothing does."""
    lines = text.split("\n")
    # Only \\n ends a line; the last one of a long head is probably cut.
    sample = [line + "\n" for line in (lines[:-1] if len(lines) > 1 and len(text) >= HEAD_BYTES // 4 else lines)]
    best = (0.0, 1, ",")
    for delimiter in DELIMITERS:
        try:
            records = [record for _, record in zip(range(SAMPLE_RECORDS), csv.reader(sample, delimiter=delimiter), strict=False)]
        except csv.Error:
            continue
        widths = [len(record) for record in records if record]
        if widths and widths[0] > 1:
            alike = sum(width == widths[0] for width in widths) / len(widths)
            best = max(best, (alike, widths[0], delimiter), key=lambda found: found[:2])
    return best[2], best[1]


def _unnamed(name: str) -> str:
    if name == "-":
        return "text"
    ending = Path(name).suffix or "no"
    raise DataError(
        f"has the ending {ending}, and its content is of no kind that is read",
        where=name,
        next_step=f"give it the ending of what it holds ({', '.join(KINDS)}), or write the rows as .jsonl: one JSON object a line",
    )
