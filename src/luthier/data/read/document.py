"""A .json file: one list of rows, or one object that holds such lists (splits, or "data"). Read through a sliding window of text."""

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from typing import Any

from luthier.data.read.jsonl import as_object
from luthier.data.read.lines import MOST_ROW_BYTES, not_utf_8
from luthier.data.read.sniff import ROW_KEYS
from luthier.data.read.strict_json import Decoder, Flaw, NotJson
from luthier.errors import DataError
from luthier.records import Rejected, Row, Source

LEAST_FETCH = 1 << 16


class _Cut(Exception):
    """The text ends where something is still to come; with an argument where a rejected row has said so."""


def rows(name: str, chunks: Iterator[bytes], offset_bytes: int, split: str | None, said: Callable[[str], None]) -> Iterator[Row | Rejected]:
    """The rows of the list that the file is, or of the one list among its splits that is asked for.

    A flaw inside a row costs only the row. Raises DataError where the list itself is broken, but for a cut end, which is one rejected row.
    """
    text = _Window(name, chunks, offset_bytes)
    try:
        opening = text.next_mark()
        if opening == "[":
            if split:
                raise DataError(f"holds one list and no split {split}", where=name, next_step="leave split out")
            yield from _list_rows(text)
        else:
            yield from _split_rows(text, split, said)
        text.check_end()
    except _Cut as cut:
        if not cut.args:
            yield Rejected("cut_row", "the file ends before its list does", Source(name, text.line), "")


def _split_rows(text: "_Window", split: str | None, said: Callable[[str], None]) -> Iterator[Row | Rejected]:
    """The rows of one list of an object; what stands beside it is read over, and named."""
    text.take("{")
    wanted = (split,) if split else ROW_KEYS
    read, beside = "", []
    while text.next_mark() != "}":
        line = text.line
        key = text.member_key()
        if text.next_mark() == "[" and key in wanted:
            if read:
                raise DataError(f'holds rows under "{read}" and under "{key}"', where=f"{text.name}:{line}", next_step="say which: split: " + read)
            read = key
            yield from _list_rows(text)
        elif text.next_mark() == "[":
            rows_beside = 0
            for row in _list_rows(text):
                rows_beside += 1
                if isinstance(row, Rejected) and row.reason == "cut_row":
                    yield row
            beside.append(f"{key} ({rows_beside:,} rows)")
        else:
            text.whole_value()
        text.comma("}")
    text.take("}")
    if not read:
        raise _no_rows(text.name, split, beside, more=not text.is_at_end())
    said(f'the rows under "{read}" are read' + (f"; not read: {', '.join(beside)}" if beside else ""))


def _no_rows(name: str, split: str | None, beside: list[str], *, more: bool) -> DataError:
    on_lines = "one object a line (jq -c . FILE > rows.jsonl)"
    if more:
        return DataError("holds one JSON object after the other, over several lines each", where=name, next_step=f"write {on_lines}")
    if split:
        return DataError(f"has no list of rows {split}", where=name, next_step=f"it holds: {', '.join(beside) or 'no list at all'}")
    if beside:
        return DataError(
            f"holds the lists {', '.join(beside)}",
            where=name,
            next_step=f"say which to read: {{path: FILE, split: NAME}}; if it is a single row, write {on_lines}",
        )
    return DataError("holds a single JSON object, not a list of rows", where=name, next_step=f"write a list [{{...}}, {{...}}], or {on_lines}")


def _list_rows(text: "_Window") -> Iterator[Row | Rejected]:
    text.take("[")
    while text.next_mark() != "]":
        source = Source(text.name, text.line)
        try:
            value, raw, flaw = text.value()
            if flaw:
                raise flaw
            yield Row(as_object(value), raw, source)
        except NotJson as broken:
            if broken.reason != "cut_row":
                raise _broken(source, broken.detail) from broken
            yield Rejected("cut_row", "the file ends in the middle of this row", source, text.rest())
            raise _Cut("reported") from broken
        except Flaw as flawed:
            yield Rejected(flawed.reason, flawed.detail, source, raw)
        text.comma("]")
    text.take("]")


def _broken(source: Source, detail: str) -> DataError:
    next_step = "mend the list here, or write one object a line (.jsonl), where a broken row costs only itself"
    return DataError(f"the list cannot be read on from here ({detail})", where=str(source), next_step=next_step)


class _Window:
    """The part of the text that is being read. Grows until a value is whole, at most to MOST_ROW_BYTES, and forgets what was read."""

    def __init__(self, name: str, chunks: Iterator[bytes], offset_bytes: int) -> None:
        self.name, self.line = name, 1
        self._chunks, self._offset_bytes = chunks, offset_bytes
        self._text, self._at, self._is_whole = "", 0, False
        self._characters = getincrementaldecoder("utf-8")()
        self._decoder = Decoder()

    def next_mark(self) -> str:
        """Go to the next character that is not blank, and give it. Raises _Cut at the end of the file."""
        while True:
            start, end = self._at, len(self._text)
            while self._at < end and self._text[self._at] in " \t\r\n":
                self._at += 1
            self.line += self._text.count("\n", start, self._at)
            if self._at < end:
                return self._text[self._at]
            if self._is_whole:
                raise _Cut
            self._fetch(LEAST_FETCH)

    def take(self, mark: str) -> None:
        """Step over `mark`, which stands here."""
        if self.next_mark() != mark:
            raise _broken(Source(self.name, self.line), f"{mark} is missing before {self._text[self._at]!r}")
        self._at += 1

    def comma(self, end: str) -> None:
        """Step over the comma between two members; `end` may stand in its place."""
        mark = self.next_mark()
        if mark == ",":
            self._at += 1
            if self.next_mark() == end:
                raise _broken(Source(self.name, self.line), f"a comma stands before {end}")
        elif mark != end:
            raise _broken(Source(self.name, self.line), "a comma is missing between two rows")

    def member_key(self) -> str:
        """A member's key, with the colon after it."""
        key = self.whole_value()
        if not isinstance(key, str):
            raise _broken(Source(self.name, self.line), "a key in quotes is missing")
        self.take(":")
        return key

    def whole_value(self) -> Any:
        """The value that begins here. Raises DataError where it is broken."""
        line = self.line
        try:
            return self.value()[0]
        except NotJson as broken:
            if broken.reason == "cut_row":
                raise _Cut from broken
            raise _broken(Source(self.name, line), broken.detail) from broken

    def value(self) -> tuple[Any, str, Flaw | None]:
        """The value that begins here, as it is written, and what is wrong inside it. Raises NotJson where it has no end."""
        self.next_mark()
        while True:
            try:
                value, end, flaw = self._decoder.value_at(self._text, self._at)
                # A number at the window's end may go on behind it.
                if end < len(self._text) or self._is_whole:
                    break
            except NotJson as broken:
                if self._is_whole:
                    raise self._by_column(broken) from broken
                if len(self._text) - self._at > MOST_ROW_BYTES:
                    raise self._too_big(broken) from broken
            self._fetch(max(LEAST_FETCH, len(self._text) - self._at))
        raw = self._text[self._at : end]
        if len(raw) > MOST_ROW_BYTES:
            flaw = Flaw("row_too_big", f"the row has {len(raw):,} characters, and the limit is {MOST_ROW_BYTES:,}")
        self._at = end
        self.line += raw.count("\n")
        return value, raw, flaw

    def rest(self) -> str:
        """What is left of the text, which the reading ends with."""
        rest, self._at = self._text[self._at :], len(self._text)
        return rest

    def check_end(self) -> None:
        """Raises DataError where text follows the end."""
        if self.is_at_end():
            return
        if self._text[self._at] == "\0":
            next_step = "fetch the file again, or take them out: tr -d '\\000' < FILE > NEW"
            raise DataError("NUL bytes follow the list: the file is damaged (a power loss?)", where=f"{self.name}:{self.line}", next_step=next_step)
        raise DataError("there is more text after the list's end", where=f"{self.name}:{self.line}", next_step="keep one list in the file")

    def is_at_end(self) -> bool:
        """Whether nothing but blanks follows."""
        try:
            self.next_mark()
        except _Cut:
            return True
        return False

    def _by_column(self, broken: NotJson) -> NotJson:
        """The window's own columns mean nothing to a user: count from the row's beginning."""
        if broken.reason == "cut_row" or "(column" not in broken.detail:
            return broken
        said = broken.detail.partition(" (column")[0]
        line_start = self._text.rfind("\n", self._at, broken.at) + 1
        place = f"{broken.at - line_start + 1} of its line" if line_start else f"{broken.at - self._at + 1} of the row"
        return NotJson(broken.reason, f"{said} (character {place})", broken.at)

    def _too_big(self, broken: NotJson) -> NotJson:
        if broken.reason != "cut_row":
            return self._by_column(broken)
        return NotJson("row_too_big", f"the row has more than {MOST_ROW_BYTES:,} characters, which is the limit", broken.at)

    def _fetch(self, characters: int) -> None:
        """Forget what was read, and add at least so many characters to the window, or the rest of the file."""
        parts = [self._text[self._at :]]
        fetched = 0
        while fetched < characters and not self._is_whole:
            chunk = next(self._chunks, b"")
            self._is_whole = not chunk
            parts.append(self._decoded(chunk, parts))
            fetched += len(parts[-1])
        self._text, self._at = "".join(parts), 0

    def _decoded(self, chunk: bytes, before: list[str]) -> str:
        pending = len(self._characters.getstate()[0])
        try:
            text = self._characters.decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            content = bytes(error.object)
            line = self.line + sum(part.count("\n") for part in before) + content.count(b"\n", 0, error.start)
            said = not_utf_8(content, error, self._offset_bytes - pending)
            raise DataError(said, where=f"{self.name}:{line}", next_step="save the file as UTF-8, or set data.encoding") from error
        self._offset_bytes += len(chunk)
        return text
