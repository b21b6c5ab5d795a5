"""Texts as numbers of words, so that comparing many of them is arithmetic on arrays."""

import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.quality.limits import percent
from luthier.records import Conversation, Turn

# Scripts that are written without spaces: each of their characters is a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
TRIPLE = 3
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd, far from any pattern of small numbers (Knuth's multiplicative hashing)


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return _WORD.findall(text.casefold())


def normalized(turns: Sequence[Turn]) -> str:
    """The turns as one text without case and white space, with their roles."""
    return "\0".join(f"{turn.role}\1{' '.join(turn.content.casefold().split())}" for turn in turns)


def exact_key(row: Conversation) -> int:
    """The same number for rows that are the same but for white space (within one process)."""
    turns = tuple((turn.role, " ".join(turn.content.split()), turn.extra) for turn in (*row.turns, *row.rejected))
    return hash((turns, len(row.rejected), row.tools, row.label))


def question(conversation: Conversation) -> str:
    """What the users of a conversation say (all of a plain text)."""
    return "\n".join(turn.content for turn in conversation.prompt if turn.role != "system") or conversation.answer


def spoken(conversation: Conversation) -> str:
    """Everything that is said, but for the system message, which rows share by design."""
    return "\n".join(turn.content for turn in (*conversation.turns, *conversation.rejected) if turn.role != "system")


@dataclass(frozen=True, slots=True)
class Triples:
    """The word triples of all texts in one array; those of text i lie in hashes[starts[i]:starts[i + 1]]."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, number: int) -> frozenset[int]:
        return frozenset(self.hashes[self.starts[number] : self.starts[number + 1]].tolist())

    def only(self, kept: NDArray[np.bool_]) -> "Triples":
        """Without the triples that are not kept."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return Triples(self.hashes[kept], before[self.starts])


def triples(texts: Iterable[str]) -> Triples:
    """The triples of neighboring words of each text. A text of fewer words has one triple; one without words has what it consists of."""
    numbers: defaultdict[str, int] = defaultdict(count(1).__next__)
    flat, lengths = array("I"), array("q")
    for text in texts:
        found = words(text) or text.split()
        found += [""] * (TRIPLE - len(found)) if found else []
        flat.extend(map(numbers.__getitem__, found))
        lengths.append(len(found))
    return _join(np.frombuffer(flat, np.uint32), np.frombuffer(lengths, np.int64))


def _join(flat: NDArray[np.uint32], lengths: NDArray[np.int64]) -> Triples:
    ends = np.cumsum(lengths)
    starts = np.concatenate([[0], np.cumsum(np.maximum(lengths - TRIPLE + 1, 0))])
    if not len(flat):
        return Triples(np.zeros(0, np.uint64), starts)
    within = np.ones(len(flat), bool)  # a triple may not begin at the last two words of a text
    for last in (1, 2):
        within[ends[lengths > 0] - last] = False
    hashes = _mixed(flat[:-2])
    for later in (flat[1:-1], flat[2:]):
        hashes = _mixed(hashes ^ later)
    return Triples(hashes[within[:-2]], starts)


def _mixed(values: NDArray[Any]) -> NDArray[np.uint64]:
    mixed = (values.astype(np.uint64) + np.uint64(1)) * _SPREAD
    return mixed ^ (mixed >> np.uint64(29))


def of_rows(found: int, of: int) -> str:
    """How many of how many rows, as it is said: "312 of 52,000 rows (0.6 %)"."""
    return f"{found:,} of {of:,} rows ({percent(found, of)})"
