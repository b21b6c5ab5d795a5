"""What is noted while the rows of one file are read: columns that are not used, what was mended, and how rows were understood."""

from collections import Counter
from typing import Literal

from luthier.records import Source

MENDED = {
    # short name    what was done
    "joined": "consecutive turns of one speaker were joined with a blank line",
    "system": "system messages that did not stand first were moved there",
    "trailing": "turns after the last answer were left out (nothing answers them)",
}


class Book:
    """The notes of one file, and how strictly its rows are read. `at` is the row that is being read."""

    def __init__(self, strict: bool, tree_paths: Literal["best", "all"]) -> None:
        self.strict, self.tree_paths = strict, tree_paths
        self.at = Source("", 0)
        self.unmatched: list[str] = []  # columns that the settings name and no row has
        self._counts: dict[tuple[str, str], int] = Counter()
        self._first: dict[tuple[str, str], Source] = {}
        self._last: dict[tuple[str, str], Source] = {}

    def mended(self, name: str) -> None:
        """One row was mended so (a name of MENDED)."""
        self._note("mended", name)

    def ignored(self, name: str) -> None:
        """One row has a column or a key that is not read."""
        self._note("ignored", name)

    def remark(self, words: str, times: int = 1) -> None:
        """One row was understood so."""
        self._note("remark", words, times)

    def notes(self) -> list[str]:
        """All of it in sentences, each with its count and the first place."""
        by_kind: dict[str, list[str]] = {"mended": [], "remark": [], "ignored": []}
        for (kind, name), count in self._counts.items():
            rows = f"{count:,} {'row' if count == 1 else 'rows'}, first at line {self._first[kind, name].line}"
            by_kind[kind].append(f"{name} ({count:,})" if kind == "ignored" else f"{MENDED.get(name, name)} ({rows})")
        said = self.unmatched + [f"mended: {words}" for words in by_kind["mended"]] + by_kind["remark"]
        return [*said, f"not read: {', '.join(sorted(by_kind['ignored']))}"] if by_kind["ignored"] else said

    def _note(self, kind: str, name: str, times: int = 1) -> None:
        note = (kind, name)
        if self._last.get(note) is self.at:
            return  # a row counts once
        self._last[note] = self.at
        self._counts[note] += times
        self._first.setdefault(note, self.at)
