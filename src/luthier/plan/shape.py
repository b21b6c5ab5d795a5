"""The rows of a run in numbers, as the plan needs them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from luthier.config.preference import ROWS
from luthier.plan.cost import DataShape
from luthier.records import Conversation

Counts = np.ndarray[Any, np.dtype[np.int64]]
CHARACTERS_PER_TOKEN = 4  # English text with the usual vocabularies
TOKENS_PER_TURN = 5  # what a chat template writes around one message
SPOKEN = {"assistant", "completion", "text"}  # roles whose text is trained


def of_tokens(lengths: Counts, trained_tokens: Counts, shared_prefix_tokens: int) -> DataShape:
    """From the counts of the training examples, one number an example."""
    return DataShape(
        train_rows=len(lengths),
        train_tokens=int(lengths.sum()),
        trained_tokens=int(trained_tokens.sum()),
        longest=int(lengths.max()),
        shared_prefix_tokens=shared_prefix_tokens,
        answer_p99=int(np.sort(trained_tokens)[min(len(lengths) - 1, int(0.99 * len(lengths)))]),
    )


def of_judged(lengths: Counts, trained_tokens: Counts, shared_prefix_tokens: int, per_row: int, held_out_rows: int) -> DataShape:
    """From the counts of the examples of judged rows, `per_row` of each. A row is what its examples are together; both are run at once."""
    rows, better = lengths.reshape(-1, per_row).sum(axis=1), trained_tokens.reshape(-1, per_row)[:, 0]
    return replace(
        of_tokens(rows, better, shared_prefix_tokens),
        trained_tokens=int(trained_tokens.sum()),
        examples_per_row=per_row,
        held_out_rows=held_out_rows,
    )


def common_prefix(sequences: list[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    first, last = min(sequences), max(sequences)  # in dictionary order: what these two share, all share
    return next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))


def of_text(rows: Sequence[Conversation], objective: str = "sft", held_out_rows: int = 0) -> DataShape:
    """The same from characters, where no tokenizer is at hand. An estimate."""
    if ROWS.get(objective) == "preference":
        sides = [side for row in rows for side in (row, replace(row, turns=(*row.prompt, *row.rejected)))]
        return _together(_of_text(sides), held_out_rows)
    return _of_text(rows) if objective == "sft" else replace(_of_text(rows), held_out_rows=held_out_rows)


def _together(sides: DataShape, held_out_rows: int) -> DataShape:
    """Both sides of pairs as rows."""
    return replace(sides, train_rows=sides.train_rows // 2, longest=2 * sides.longest, examples_per_row=2, held_out_rows=held_out_rows)


def _of_text(rows: Sequence[Conversation]) -> DataShape:
    turns = [[_tokens(turn.content) for turn in row.turns] for row in rows]
    trained = sorted(
        sum(count for turn, count in zip(row.turns, counts, strict=True) if turn.role in SPOKEN) for row, counts in zip(rows, turns, strict=True)
    )
    lengths = [sum(counts) + TOKENS_PER_TURN * len(counts) for counts in turns]
    first = {row.turns[0].content for row in rows if len(row.turns) > 1 and row.turns[0].role == "system"}
    return DataShape(
        train_rows=len(rows),
        train_tokens=sum(lengths),
        trained_tokens=sum(trained),
        longest=max(lengths),
        shared_prefix_tokens=_tokens(first.pop()) + TOKENS_PER_TURN if len(first) == 1 else 0,
        answer_p99=trained[min(len(trained) - 1, int(0.99 * len(trained)))],
    )


def _tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN + 1
