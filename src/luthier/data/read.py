"""Read .jsonl and .json files. A row that cannot be read is set aside with its reason; a file that cannot be read is an error."""

import difflib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.records import Rejected, Source

READ_HERE = (".jsonl", ".json")
BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object, the text it was read from, and its place."""

    value: dict[str, Any]
    raw: str
    source: Source


@dataclass(frozen=True, slots=True)
class FileRows:
    """One file: its rows in order, those that could not be read among them, what the reader wants said, and its fingerprint."""

    name: str  # as the user wrote it
    rows: list[Row | Rejected]
    notes: list[str]
    size_bytes: int
    sha256: str


class _Flaw(Exception):
    """What is wrong with one row: a short name and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_files(path: str, base: Path) -> Iterator[FileRows]:
    """A .jsonl or .json file, or every such file of a folder (by name). Relative paths start at `base`.

    Raises DataError where a file is missing, empty, not a plain file, of another kind, or broken as a whole.
    """
    place = base / Path(path).expanduser()
    with _readable(path, place):
        mode = place.stat().st_mode
        names = sorted(os.listdir(place)) if stat.S_ISDIR(mode) else []
    if not stat.S_ISDIR(mode):
        yield _read_file(path, place)
        return
    chosen = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in READ_HERE]
    if not chosen:
        raise DataError("the folder has no .jsonl or .json file", where=path, next_step="name a file, or put the rows' files in this folder")
    for name in chosen:
        yield _read_file(os.path.join(path, name), place / name)


@contextmanager
def _readable(name: str, place: Path) -> Iterator[None]:
    """Turn the operating system's errors of reading into words."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError("there is no such file or folder", where=name, next_step=_near(name, place)) from error
    except PermissionError as error:
        raise DataError("may not be read", where=name, next_step=f"give yourself the right to read it (chmod u+r {name})") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=name, next_step="check the path and the disk it is on") from error


def _near(name: str, place: Path) -> str:
    here = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    found = difflib.get_close_matches(place.name, here, n=1)
    if found:
        return f"{Path(name).with_name(found[0])} is there: is that the one?"
    return f"check the path; it was looked for at {place.absolute()} (data sets of a hub are downloaded first)"


def _read_file(name: str, place: Path) -> FileRows:
    if place.suffix.lower() not in READ_HERE:
        raise DataError(
            f"is a {place.suffix or 'nameless'} file; only {' and '.join(READ_HERE)} are read",
            where=name,
            next_step="turn it into .jsonl: one JSON object a line",
        )
    with _readable(name, place):
        if not stat.S_ISREG(place.stat().st_mode):
            raise DataError("is not a plain file", where=name, next_step="write the rows to a .jsonl file and name that")
        content = place.read_bytes()
    if content.startswith(UTF_16):
        raise DataError("is written in UTF-16", where=name, next_step=f"iconv -f UTF-16 -t UTF-8 {name} > utf8.jsonl")
    body = content.removeprefix(BOM)
    if not body.strip():
        raise DataError("is empty", where=name, next_step="put rows into it: one JSON object a line")
    listed = body.lstrip().startswith(b"[")
    notes = []
    if listed and place.suffix.lower() == ".jsonl":
        notes.append(f"{name}: holds one JSON list, and is read as such")
    if not listed and place.suffix.lower() == ".json":
        notes.append(f"{name}: holds one JSON object a line, and is read as .jsonl")
    rows = list(_list_rows(name, body)) if listed else _line_rows(name, body, len(content) - len(body))
    return FileRows(name, rows, notes, len(content), hashlib.sha256(content).hexdigest())


def _line_rows(name: str, body: bytes, offset_bytes: int) -> list[Row | Rejected]:
    """Rows of a file with one object a line. Only \\n ends a line: U+2028 and the like stand inside strings."""
    rows: list[Row | Rejected] = []
    lines = body.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_line_row(line, Source(name, number), offset_bytes, ends=number < len(lines)))
        offset_bytes += len(line) + 1
    if any(isinstance(row, Rejected) for row in rows) and _is_one_object(body):
        raise DataError("holds a single JSON object, not a list of rows", where=name, next_step="write a list [{...}, {...}], or one object a line")
    return rows


def _is_one_object(body: bytes) -> bool:
    """One object written over several lines: some of its lines may look like rows."""
    try:
        return isinstance(json.loads(body), dict) and body.strip().count(b"\n") > 0
    except (ValueError, RecursionError):
        return False


def _line_row(line: bytes, source: Source, offset_bytes: int, ends: bool) -> Row | Rejected:
    raw = line.decode("utf-8", errors="backslashreplace").rstrip("\r")
    try:
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            where = f"byte 0x{line[error.start]:02x} at offset {offset_bytes + error.start:,} of the file is not UTF-8"
            raise _Flaw("not_utf8", where) from error
        value, end = _Decoder().decode(text, 0, cut=not ends)
        if end < len(text):
            raise _Flaw("not_json", f"more text after the row's end (column {end + 1}): one object a line, please")
        return Row(_object(value), raw, source)
    except _Flaw as flaw:
        return Rejected(flaw.reason, flaw.detail, source, raw)


def _list_rows(name: str, body: bytes) -> Iterator[Row | Rejected]:
    """Rows of a file that is one JSON list. What breaks the list itself ends the reading: nothing after it can be trusted."""
    text = _decoded(name, body)
    at, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    at, line = _skip(text, at, line)
    while text[at : at + 1] != "]":
        source, start = Source(name, line), at
        if at == len(text):
            yield Rejected("cut_row", "the file ends before its list does", source, "")
            return
        decoder = _Decoder()
        try:
            value, at = decoder.decode(text, at, cut=True)
        except _Flaw as flaw:
            if not decoder.is_whole:
                yield _broken(flaw, source, text[start:])
                return
            at = decoder.end
            yield Rejected(flaw.reason, flaw.detail, source, text[start:at])
        else:
            yield _judged(value, text[start:at], source)
        at, line = _skip(text, at, line + text.count("\n", start, at))
        if text[at : at + 1] == ",":
            at, line = _skip(text, at + 1, line)
        elif at < len(text) and text[at] != "]":
            yield _broken(_Flaw("not_json", "a comma is missing between two rows"), Source(name, line), text[at:])
    after, line = _skip(text, at + 1, line)
    if after < len(text):
        raise DataError("there is more text after the list's end", where=f"{name}:{line}", next_step="keep one list in the file")


def _judged(value: object, raw: str, source: Source) -> Row | Rejected:
    try:
        return Row(_object(value), raw, source)
    except _Flaw as flaw:
        return Rejected(flaw.reason, flaw.detail, source, raw)


def _broken(flaw: _Flaw, source: Source, rest: str) -> Rejected:
    """The cut end of a list is one lost row; damage before it cannot be told from what follows, and is an error."""
    if flaw.reason == "cut_row":
        return Rejected(flaw.reason, flaw.detail, source, rest)
    next_step = "mend the list here, or write one object a line (.jsonl), where a broken row costs only itself"
    raise DataError(f"the list cannot be read on from here ({flaw.detail})", where=str(source), next_step=next_step)


def _decoded(name: str, body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = 1 + body.count(b"\n", 0, error.start)
        problem = f"byte 0x{body[error.start]:02x} at offset {error.start:,} of the file is not UTF-8"
        raise DataError(problem, where=f"{name}:{line}", next_step="save the file as UTF-8") from error


def _skip(text: str, at: int, line: int) -> tuple[int, int]:
    """The next place that is not white space, and its line."""
    start = at
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at, line + text.count("\n", start, at)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Flaw("not_an_object", f"a row is a JSON object {{...}}; this is {_kind(value)}")
    return value


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


class _Decoder:
    """Python's JSON reader, made strict: it notes what the standard forbids (NaN) and what it would drop (a key given twice)."""

    def __init__(self) -> None:
        self.end = 0
        self.is_whole = False
        self._seen: _Flaw | None = None
        self._json = json.JSONDecoder(object_pairs_hook=self._pairs, parse_constant=self._constant)

    def decode(self, text: str, at: int, cut: bool) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends. `cut`: an unfinished value was cut off, not miswritten."""
        try:
            value, self.end = self._json.raw_decode(text, at)
        except json.JSONDecodeError as error:
            if cut and (error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())):
                raise _Flaw("cut_row", "the file ends in the middle of this row") from error
            raise _Flaw("not_json", f"{error.msg} (column {error.colno})") from error
        except RecursionError as error:
            raise _Flaw("too_deep", "lists or objects are nested too deep to be read") from error
        except ValueError as error:
            raise _Flaw("bad_number", "a number has more digits than can be read") from error
        self.is_whole = True
        if self._seen:
            raise self._seen
        if "\\u" in text[at : self.end]:
            _check_surrogates(value)
        return value, self.end

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._seen = _Flaw("duplicate_key", f'the key "{twice}" is given twice')
        return value

    def _constant(self, name: str) -> None:
        self._seen = _Flaw("not_a_number", f"{name} is not a JSON value")


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _Flaw("lone_surrogate", "half of a character (a lone \\ud800-\\udfff escape): it has no UTF-8 form") from error
