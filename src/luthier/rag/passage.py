"""The record that an index is made of."""

import hashlib
from dataclasses import dataclass

KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, verbatim, and where it stands: lines, pages, rows or sections `first` to `last`, counted from 1.

    `title` holds the headings above it.
    """

    document: str
    unit: str  # line | page | row | section
    first: int
    last: int
    title: str
    text: str

    @property
    def place(self) -> str:
        """Where it can be read: docs/a.md:10-20, b.pdf page 3, c.jsonl:7."""
        span = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.document}:{span}" if self.unit in ("line", "row") else f"{self.document} {self.unit} {span}"

    @property
    def whole(self) -> str:
        """What is looked up and read: the headings and the text."""
        return f"{self.title}\n{self.text}" if self.title else self.text

    @property
    def key(self) -> bytes:
        """The same for the same words, wherever they stand: what is embedded once."""
        return hashlib.blake2b(self.whole.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()
