"""Parts of documents as passages: verbatim pieces that end where the text does, and overlap a little."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from luthier.errors import CallError
from luthier.rag.passage import Passage

LEAST_CHARACTERS = 100
# Where a passage may end, the best first.
ENDS = (re.compile(r"\n[ \t]*\n\s*"), re.compile(r"\n|(?<=[.!?])\s+|(?<=[。！？])"), re.compile(r"\s+"))
SENTENCE, SPACE = ENDS[1:]


@dataclass(frozen=True, slots=True)
class Part:
    """What stands between two headings, on one page or in one row. `first` is the line that the text begins at, or the page or row."""

    title: str
    text: str
    first: int
    unit: str = "line"


@dataclass(frozen=True, slots=True)
class Split:
    """How long passages are, and how far the next one begins before the end of the last, in characters."""

    size: int = 1_200
    overlap: int = 150

    def check(self) -> None:
        """Raises CallError for sizes that make no passages."""
        if self.size < LEAST_CHARACTERS:
            raise CallError(f"a passage of {self.size} characters says too little", where="--size", next_step=f"{LEAST_CHARACTERS} or more")
        if not 0 <= self.overlap <= self.size // 2:
            raise CallError(f"is not between 0 and half of --size {self.size}", where=f"--overlap {self.overlap}", next_step="--overlap 150")


def passages_of(document: str, part: Part, split: Split) -> Iterator[Passage]:
    """The passages of a part: none where it is blank. What they leave out between them is white space alone."""
    text = part.text
    breaks = [found.start() for found in re.finditer("\n", text)] if part.unit == "line" else []
    for start, end in spans(text, split):
        piece = text[start:end]
        begin = start + len(piece) - len(piece.lstrip())
        stop = start + len(piece.rstrip())
        if begin >= stop:
            continue
        first, last = (part.first + bisect_right(breaks, at) for at in (begin, stop - 1))
        yield Passage(document, part.unit, first, last, part.title, text[begin:stop])


def spans(text: str, split: Split) -> Iterator[tuple[int, int]]:
    """Where passages begin and end in the text. Each ends after a paragraph, else a line or sentence, else a word, in its later half."""
    start = 0
    while start < len(text):
        end = _end(text, start, split.size)
        yield start, end
        if end >= len(text):
            return
        start = _start(text, start, end, split.overlap)


def _end(text: str, start: int, size: int) -> int:
    if len(text) - start <= size:
        return len(text)
    for pattern in ENDS:
        found = [match.end() for match in pattern.finditer(text, start + size // 2, start + size)]
        if found:
            return found[-1]
    return start + size


def _start(text: str, start: int, end: int, overlap: int) -> int:
    """Where the next passage begins: at a sentence that the last one ends with, else at a word of it."""
    earliest = max(start + 1, end - overlap)
    for pattern in (SENTENCE, SPACE):
        if found := pattern.search(text, earliest, end):
            return found.end()
    return end if overlap == 0 else earliest
