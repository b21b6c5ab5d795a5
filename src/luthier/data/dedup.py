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
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first_in_order = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[first_in_order]  # lexsort is stable: the first of equals in order is the first row
    return first


def twins(digests: Digests, others: Digests) -> Numbers:
    """For each row the number of an equal one among `others`, or -1."""
    first = first_of_each(np.concatenate([others, digests]))[len(others) :]
    return np.where(first < len(others), first, -1)
