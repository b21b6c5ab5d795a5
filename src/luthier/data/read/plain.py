"""Plain text: a whole file is one row {"text": ...}; a very long one is cut at blank lines."""

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from itertools import chain

from luthier.data.read.lines import MOST_ROW_BYTES, not_utf_8, nul_tail
from luthier.errors import DataError
from luthier.records import Row, Source


def rows(name: str, chunks: Iterator[bytes], offset_bytes: int, said: Callable[[str], None]) -> Iterator[Row]:
    """The text as one row, or as pieces of at most MOST_ROW_BYTES characters; together they are the text, letter by letter.

    Raises DataError where the file is not UTF-8 or has NUL bytes in it.
    """
    line, text, pieces = 1, "", 0
    for part in _texts(name, chunks, offset_bytes):
        text += part
        while len(text) > MOST_ROW_BYTES:
            end = _cut(text)
            yield Row({"text": text[:end]}, text[:end], Source(name, line))
            line, text, pieces = line + text.count("\n", 0, end), text[end:], pieces + 1
    if text.strip():
        yield Row({"text": text}, text, Source(name, line))
    if pieces:
        said(f"the text is longer than {MOST_ROW_BYTES >> 20} MB, and is cut at blank lines into {pieces + 1} rows")


def _cut(text: str) -> int:
    """Where to cut: after the last blank line, else after the last line, else at the limit."""
    for mark in ("\n\n", "\n\r\n", "\n"):
        if (at := text.rfind(mark, 0, MOST_ROW_BYTES)) > 0:
            return at + len(mark)
    return MOST_ROW_BYTES


def _texts(name: str, chunks: Iterator[bytes], offset_bytes: int) -> Iterator[str]:
    characters = getincrementaldecoder("utf-8")()
    line = 1
    for chunk in chain(chunks, [b""]):
        pending = len(characters.getstate()[0])
        try:
            text = characters.decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            said = not_utf_8(bytes(error.object), error, offset_bytes - pending)
            line += chunk.count(b"\n", 0, error.start)
            raise DataError(said, where=f"{name}:{line}", next_step="save the file as UTF-8, or set data.encoding") from error
        if "\0" in text:
            line += text.count("\n", 0, text.index("\0"))
            raise DataError(
                _nul(text), where=f"{name}:{line}", next_step="take the NUL bytes out (tr -d '\\000' < FILE > NEW), or fetch the file again"
            )
        yield text
        line += text.count("\n")
        offset_bytes += len(chunk)


def _nul(text: str) -> str:
    """What is said of NUL bytes: at the end of a text they are what a power loss leaves."""
    count = len(text) - len(text.rstrip("\0"))
    return nul_tail(count).detail if count else "a NUL byte stands in the text"
