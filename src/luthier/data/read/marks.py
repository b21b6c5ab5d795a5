"""Letters that are content and are kept, but that a user should know of: counted by row, and said once for a file."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

MARKS = {
    # what is said                                                        what is found
    "letters that turn the direction of writing (such as U+202E)":        "[\u202a-\u202e\u2066-\u2069]",
    "zero-width letters (U+200B, U+2060, U+FEFF)":                        "[\u200b\u2060\ufeff]",
    "code points that are no characters (such as U+FFFE)":                "[\ufdd0-\ufdef\ufffe\uffff]",
}  # fmt: skip
NOT_COMPOSED = "accents as letters of their own (NFD)"
FOUND = {said: re.compile(pattern) for said, pattern in MARKS.items()}
ANY = re.compile("|".join(MARKS.values()))


class Marks:
    """Counts the rows of one file in which each kind occurs."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()
        self.blank_lines = 0

    def count(self, raw: str, value: Any) -> None:
        """Look at one row: its text as read, and its value for letters that the text spells as escapes."""
        escaped = "\\u" in raw
        if not escaped and raw.isascii():
            return
        text = json.dumps(value, ensure_ascii=False) if escaped else raw
        if ANY.search(text):
            self._rows.update(said for said, found in FOUND.items() if found.search(text))
        if not unicodedata.is_normalized("NFC", text):
            self._rows[NOT_COMPOSED] += 1

    def said(self) -> Iterator[str]:
        """One sentence for each kind that was found."""
        if self.blank_lines:
            yield f"{self.blank_lines:,} blank lines are no rows"
        for said, rows in self._rows.items():
            yield f"{rows:,} rows hold {said}; kept as they are"
