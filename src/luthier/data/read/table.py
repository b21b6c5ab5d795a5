"""Tables as text (.csv, .tsv; RFC 4180): a header, then a row a record. Every value is text."""

import csv
from collections.abc import Callable, Iterable, Iterator

from luthier.data.read.lines import MOST_ROW_BYTES, Line, check_nul, check_size, not_utf_8
from luthier.data.read.marks import Marks
from luthier.data.read.strict_json import Flaw
from luthier.errors import DataError
from luthier.records import Rejected, Row, Source


def rows(name: str, lines: Iterable[Line], delimiter: str, marks: Marks, said: Callable[[str], None]) -> Iterator[Row | Rejected]:
    """A row for each record after the header; its line is the one where it begins.

    Raises DataError where the header cannot be used, or a quote that is never closed swallows the records after it.
    """
    feed = _Feed(lines)
    # The module's own limit is 128 KB a field; it has one limit for the whole process.
    csv.field_size_limit(MOST_ROW_BYTES)
    records = csv.reader(feed, delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        feed.begin()
        record: list[str] = []
        flaw: Flaw | None = None
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            flaw = _flaw(name, feed, error)
        flaw = feed.flaw or flaw
        if not record and not flaw:
            marks.blank_lines += 1
        elif not columns:
            columns = _header(Source(name, feed.first_line), record, flaw, said)
        elif flaw or len(record) != len(columns):
            flaw = flaw or Flaw("ragged_row", f"the record has {len(record)} fields, and the header has {len(columns)}")
            yield Rejected(flaw.reason, flaw.detail, Source(name, feed.first_line), feed.raw)
        else:
            yield Row(dict(zip(columns, record, strict=True)), feed.raw, Source(name, feed.first_line))


class _Feed:
    """Gives the csv module its lines, and keeps those of the record at hand: their text, their flaw and where they begin."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = iter(lines)
        self.begin()

    def begin(self) -> None:
        """A new record starts."""
        self._texts: list[str] = []
        self.flaw: Flaw | None = None
        self.first_line = self.last_line = 0

    @property
    def raw(self) -> str:
        return "".join(self._texts).rstrip("\r\n").encode("utf-8", "backslashreplace").decode()

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first_line = self.first_line or line.number
        self.last_line = line.number
        try:
            text = line.content.decode("utf-8")
        except UnicodeDecodeError as error:
            self.flaw = Flaw("not_utf8", not_utf_8(line.content, error, line.offset_bytes))
            text = line.content.decode("utf-8", "replace")
        try:
            check_size(line)
            check_nul(line)
            if "\0" in text:
                raise Flaw("nul_bytes", f"a NUL byte stands at column {text.index(chr(0)) + 1} of line {line.number}")
        except Flaw as flaw:
            self.flaw = flaw
        text += "\n" if line.ended else ""
        self._texts.append(text)
        return text


def _flaw(name: str, feed: _Feed, error: csv.Error) -> Flaw:
    text = str(error)
    never_closed = "unexpected end of data" in text or "field larger" in text
    if never_closed and feed.last_line > feed.first_line:
        raise DataError(
            f"a quote that opens in the record of this line is not closed before line {feed.last_line:,}, and swallows the records between",
            where=f"{name}:{feed.first_line}",
            next_step='close the quote, or write a quote inside a field twice ("")',
        )
    if "unexpected end of data" in text:
        return Flaw("cut_row", "the file ends inside a quoted field")
    if "new-line character" in text:
        return Flaw("lone_cr", "a CR without LF stands outside of quotes (old Macintosh line ends?); tr '\\r' '\\n' < FILE > NEW mends it")
    return Flaw("bad_quotes", f'the quotes do not fit ({text}); a quote inside a field is written twice ("")')


def _header(source: Source, names: list[str], flaw: Flaw | None, said: Callable[[str], None]) -> list[str]:
    if flaw:
        raise DataError(f"the header cannot be read: {flaw.detail}", where=str(source), next_step="mend the first line: the names of the columns")
    names = [name.strip() for name in names]
    if names[0].casefold().startswith("sep="):
        problem = "the first line tells a spreadsheet what parts the columns, and names none"
        raise DataError(problem, where=str(source), next_step="take that line out: tail -n +2 FILE > NEW")
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise DataError(f'two columns are named "{twice}"', where=str(source), next_step="give each column a name of its own")
    unnamed = [number for number, name in enumerate(names, 1) if not name]
    if unnamed:
        said(f"column {', '.join(map(str, unnamed))} has no name, and is called {', '.join(f'column_{number}' for number in unnamed)}")
    return [name or f"column_{number}" for number, name in enumerate(names, 1)]
