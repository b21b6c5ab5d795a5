"""What a check is, and what it says.

A check looks at all rows once and gives back what it found: how many rows, which are the worst, and what to do. It never changes a row.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from luthier.config.checks import CheckSettings
from luthier.records import Conversation, Source

# good: nothing to do. look: read the examples and decide. stop: do not train on this.
Verdict = Literal["good", "look", "stop"]
WORST = 20


@dataclass(frozen=True, slots=True)
class Concern:
    """A row that a check points at, why, and the row it was compared with where there is one."""

    source: Source
    detail: str
    other: Source | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `places` are the numbers of the rows concerned, in order; `worst` shows up to WORST of them, worst first."""

    check: str
    verdict: Verdict
    said: str  # one sentence with the numbers: "312 of 52,000 rows (0.6 %) answer nothing"
    of: int  # rows that were looked at
    places: Sequence[int] = ()
    worst: Sequence[Concern] = ()
    cure: str = ""  # what to do, with the command or the setting; "" where the verdict is good
    numbers: Mapping[str, Any] = field(default_factory=dict)  # what is worth plotting or comparing; JSON values only
    removable: bool = True  # whether `data clean` may take the rows out

    @property
    def found(self) -> int:
        return len(self.places)

    @property
    def share(self) -> float:
        return self.found / self.of if self.of else 0.0


@dataclass(frozen=True, slots=True)
class Given:
    """What checks may use beside the rows."""

    settings: CheckSettings
    held_out: Sequence[Conversation] = ()  # the evaluation rows
    token_counts: Sequence[int] | None = None  # tokens of each row (rows beside it in number), where a tokenizer is at hand
    tokenizer: Any = None  # where one is at hand
    max_length: int | None = None  # tokens
    losses: Sequence[float] | None = None  # the base model's loss on each row, nats a token, where it was measured
    judge: Callable[[Sequence[tuple[str, str]]], Sequence[str | None]] | None = None  # (prompt, answer) -> "", what is wrong, or None
    special_tokens: Sequence[str] = ()  # the tokenizer's own, which text must not hold; the runner takes them from the tokenizer


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table of checks."""

    what: str  # what it looks for, in a few words
    run: Callable[[Iterable[Conversation], Given], Finding]
    default: bool = True  # False: only where the settings ask for it, since it needs an extra, a model or an opinion


class Note(NamedTuple):
    """What a row check says of one row. A check may note rows that are no fault by themselves, and tell them apart by `kind` at the end."""

    detail: str
    weight: float = 1.0  # the worst rows are shown first
    kind: str = ""


Look = Callable[[Conversation], Note | None]


@dataclass(frozen=True, slots=True)
class Noted:
    """What a row check noted of all rows: the places of rows with their notes, in order."""

    check: str
    rows: Sequence[Conversation]
    notes: Sequence[tuple[int, Note]]

    def of_kind(self, *kinds: str) -> "Noted":
        return Noted(self.check, self.rows, [(place, note) for place, note in self.notes if note.kind in kinds])

    def worst(self) -> list[Concern]:
        """The rows to show: heaviest first, in the order of the file where they weigh the same."""
        worst = heapq.nsmallest(WORST, self.notes, key=lambda noted: (-noted[1].weight, noted[0]))
        return [Concern(self.rows[place].source, note.detail) for place, note in worst]


@dataclass(frozen=True, slots=True)
class RowCheck:
    """A check that looks at one row at a time, so that all of them share one pass and every core.

    `start` runs once in each process and gives the function that looks, or a sentence why there is nothing to do. It must not use
    the evaluation rows, the token counts or the tokenizer, which stay in the first process.
    """

    what: str
    start: Callable[[Given], Look | str]
    conclude: Callable[[Noted, Given], Finding]
    default: bool = True
