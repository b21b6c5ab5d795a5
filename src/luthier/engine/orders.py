"""Examples as JSON: what the leader of several ranks says to the others names the rows themselves, so that they need no data of their own."""

from collections.abc import Sequence
from typing import Any

from luthier.records import Judged, Source, TokenizedExample


def of_examples(examples: Sequence[TokenizedExample]) -> list[Any]:
    """Rows as `examples_of` reads them."""
    return [[one.token_ids, "".join("1" if trained else "0" for trained in one.trained), one.source.file, one.source.line] for one in examples]


def examples_of(told: Sequence[Any]) -> list[TokenizedExample]:
    return [TokenizedExample(ids, [mark == "1" for mark in marks], Source(file, line)) for ids, marks, file, line in told]


def of_judged(rows: Sequence[Judged]) -> list[Any]:
    """Rows as `judged_of` reads them; what a mismatched answer is for has happened before."""
    return [[[of_examples([one])[0] if one else None for one in (row.chosen, row.rejected)], list(row.reference)] for row in rows]


def judged_of(told: Sequence[Any]) -> list[Judged]:
    found = []
    for sides, reference in told:
        chosen, rejected = (examples_of([one])[0] if one else None for one in sides)
        found.append(Judged(chosen, rejected, reference=tuple(reference)))
    return found
