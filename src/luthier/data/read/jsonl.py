"""One JSON object a line."""

from collections.abc import Iterable, Iterator
from typing import Any

from luthier.data.read.lines import Line, check_nul, check_size, decoded, not_utf_8
from luthier.data.read.marks import Marks
from luthier.data.read.strict_json import BLANKS, Decoder, Flaw, NotJson, more_text
from luthier.records import Rejected, Row, Source


def rows(name: str, lines: Iterable[Line], marks: Marks) -> Iterator[Row | Rejected]:
    """A row for each line that is not blank."""
    decoder = Decoder()
    for line in lines:
        if not line.content or line.content.isspace():
            marks.blank_lines += 1
            continue
        source = Source(name, line.number)
        try:
            text = line.content.decode("utf-8").rstrip("\r")
            yield Row(_value(decoder, line, text), text, source)
        except Flaw as flaw:
            yield Rejected(flaw.reason, flaw.detail, source, text)
        except UnicodeDecodeError as error:
            yield _not_text(line, error, source)


def _value(decoder: Decoder, line: Line, text: str) -> dict[str, Any]:
    if line.size_bytes != len(line.content):
        check_size(line)
    start = 0 if text[0] == "{" else len(text) - len(text.lstrip(BLANKS))
    try:
        value, end, flaw = decoder.value_at(text, start)
    except NotJson as cut:
        check_nul(line)
        raise _cut(cut, line.ended) from cut
    if end < len(text) and text[end:].strip(BLANKS):
        check_nul(line)
        raise more_text(text, end)
    if flaw:
        raise flaw
    return as_object(value)


def as_object(value: object) -> dict[str, Any]:
    """The value where it is an object. Raises Flaw where it is another kind."""
    if not isinstance(value, dict):
        names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        raise Flaw("not_an_object", f"a row is a JSON object {{...}}; this is {names.get(type(value), 'a number')}")
    return value


def _cut(flaw: NotJson, ended: bool) -> Flaw:
    if flaw.reason != "cut_row":
        return flaw
    if ended:
        return Flaw("not_json", "the line ends in the middle of a value: a quote or a bracket is not closed")
    return Flaw("cut_row", "the file ends in the middle of this row")


def _not_text(line: Line, error: UnicodeDecodeError, source: Source) -> Rejected:
    raw = line.content.decode("utf-8", errors="backslashreplace").rstrip("\r")
    try:
        check_size(line)
        check_nul(line)
        decoded(line)
    except Flaw as flaw:
        return Rejected(flaw.reason, flaw.detail, source, raw)
    return Rejected("not_utf8", not_utf_8(line.content, error, line.offset_bytes), source, raw)
