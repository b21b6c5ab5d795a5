"""Rows that are there twice: within the training rows, and in both the training rows and the held-out ones. Digests in, numbers out."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.records import Conversation, Turn

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Digests = np.ndarray[Any, np.dtype[np.uint64]]  # (rows, 2)


def normalized(turns: Sequence[Turn]) -> str:
    """Texts that differ only in case and white space are one text here."""
    return "\0".join(" ".join(turn.content.casefold().split()) for turn in turns)


def group(conversation: Conversation) -> str:
    """Rows that ask the same belong to one group, so that a split can keep them on one side. Plain texts are their own."""
    return normalized(conversation.prompt or conversation.turns)


def first_of_each(digests: Digests) -> Numbers:
    """For each row the number of the first row with the same digest: itself, where there is none before it."""
    first = np.arange(len(digests))
    part_of = (digests[:, 0] >> np.uint64(60)).astype(np.uint8)
    for part in range(16):  # what sorting takes beside the digests stays small for millions of rows
        rows = np.flatnonzero(part_of == part)
        first[rows] = rows[_first_of_each(digests[rows])]
    return first


def _first_of_each(digests: Digests) -> Numbers:
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first_in_order = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[first_in_order]  # lexsort is stable: the first of equals in order is the first row
    return first


def twins(digests: Digests, rows: Numbers, others: Numbers) -> Numbers:
    """For each of `rows` the place in `others` of the first that is equal, or -1. Both are numbers of digests."""
    first = first_of_each(digests[np.concatenate([others, rows])])[len(others) :]
    return np.where(first < len(others), first, -1)
