"""Lines of a text, in constant memory. Only \\n ends a line: U+2028, U+0085, form feed and the like stand inside rows."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from luthier.data.read.strict_json import Flaw

MOST_ROW_BYTES = 16 << 20
KEPT_OF_LONG_BYTES = 1000
CONTINUATIONS = bytes(range(0x80, 0xC0))
GUESSES = ("gb18030", "shift_jis", "euc_kr", "cp1251")


class Line(NamedTuple):
    """One line without its \\n. Of one over MOST_ROW_BYTES only the beginning is kept."""

    number: int  # from 1
    offset_bytes: int  # in the unpacked file
    content: bytes
    size_bytes: int
    ended: bool  # False where the file ends before the line does


def lines_of(chunks: Iterable[bytes], offset_bytes: int = 0) -> Iterator[Line]:
    """The lines of the text that `chunks` make together; `offset_bytes` were taken off before."""
    number, rest = 1, b""
    long_bytes = 0  # bytes of a line that is too long, of which `rest` is the beginning
    for chunk in chunks:
        if long_bytes:
            cut, found, chunk = chunk.partition(b"\n")
            long_bytes += len(cut)
            if not found:
                continue
            yield Line(number, offset_bytes, rest, long_bytes, True)
            number, offset_bytes, rest, long_bytes = number + 1, offset_bytes + long_bytes + 1, b"", 0
        whole = (rest + chunk).split(b"\n")
        rest = whole.pop()
        for content in whole:
            size_bytes = len(content)
            yield Line(number, offset_bytes, content if size_bytes <= MOST_ROW_BYTES else content[:KEPT_OF_LONG_BYTES], size_bytes, True)
            number += 1
            offset_bytes += size_bytes + 1
        if len(rest) > MOST_ROW_BYTES:
            long_bytes, rest = len(rest), rest[:KEPT_OF_LONG_BYTES]
    if rest:
        yield Line(number, offset_bytes, rest, long_bytes or len(rest), False)


def check_size(line: Line) -> None:
    """Raises Flaw where the line is over the limit, or is nothing but the zeros of a cut file."""
    if line.size_bytes > len(line.content):
        if not line.content.strip(b"\0"):
            raise nul_tail(line.size_bytes)
        where = f"it begins at byte {line.offset_bytes:,} of the file, and only its beginning is kept here"
        raise Flaw("row_too_big", f"the row has {line.size_bytes:,} bytes, and the limit is {MOST_ROW_BYTES:,}; {where}")


def check_nul(line: Line) -> None:
    """Raises Flaw where zeros end the file, as they do after a power loss."""
    if not line.ended and line.content.endswith(b"\0"):
        raise nul_tail(len(line.content) - len(line.content.rstrip(b"\0")))


def nul_tail(count: int) -> Flaw:
    """The flaw of a file that ends in zeros."""
    return Flaw("nul_bytes", f"{count:,} NUL bytes end the file: it was cut here (a power loss?)")


def decoded(line: Line) -> str:
    """The line's text. Raises Flaw with the place of the first byte that is not UTF-8, and a guess of what the text is written in."""
    try:
        return line.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Flaw("not_utf8", not_utf_8(line.content, error, line.offset_bytes)) from error


def not_utf_8(content: bytes, error: UnicodeDecodeError, offset_bytes: int) -> str:
    """Says which byte is not UTF-8, where it lies in the file, and which encoding would read the text around it."""
    said = f"byte 0x{content[error.start]:02x} at offset {offset_bytes + error.start:,} of the file is not UTF-8"
    around = content[max(0, error.start - 100) : error.start + 100]
    guess = _guess(around)
    return said + (f" (it may be {guess}: data.encoding={guess} reads that)" if guess else "")


def _guess(around: bytes) -> str:
    """Lone high bytes among letters are Western; in long runs they are another script. "" where the text is mixed or binary."""
    high = re.findall(rb"[\x80-\xff]+", around)
    text = around.lstrip(CONTINUATIONS).decode("utf-8", "replace")
    # Where other letters around are UTF-8, any other encoding would spoil them.
    if b"\0" in around or sum(letter > "\x7f" and letter != "\ufffd" for letter in text) > text.count("\ufffd"):
        return ""
    if all(len(run) <= 2 for run in high):
        return "cp1252" if _reads(around, "cp1252") else "latin-1"
    return next((name for name in GUESSES if _reads(around.strip(), name)), "")


def _reads(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
        return True
    except UnicodeDecodeError:
        return False
