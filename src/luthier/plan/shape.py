"""The rows of a run in numbers, as the plan needs them."""

from collections.abc import Sequence

from luthier.plan.choose import DataShape
from luthier.records import Conversation, TokenizedExample

CHARACTERS_PER_TOKEN = 4  # English text with the usual vocabularies
TOKENS_PER_TURN = 5  # what a chat template writes around one message
SPOKEN = {"assistant", "completion", "text"}  # roles whose text is trained


def of_rows(examples: list[TokenizedExample]) -> DataShape:
    """Count the training rows. The shared prefix is what all of them begin with, up to the token before the first trained one."""
    lengths = [len(example.token_ids) for example in examples]
    answers = sorted(example.trained_tokens for example in examples)
    common = common_prefix([example.token_ids for example in examples])
    seam = min(example.trained.index(True) for example in examples) - 1
    return DataShape(
        train_rows=len(examples),
        train_tokens=sum(lengths),
        trained_tokens=sum(answers),
        longest=max(lengths),
        shared_prefix_tokens=max(0, min(common, seam)),
        answer_p99=answers[min(len(answers) - 1, int(0.99 * len(answers)))],
    )


def common_prefix(sequences: list[list[int]]) -> int:
    """How many tokens all sequences begin with."""
    first, last = min(sequences), max(sequences)  # in dictionary order: what these two share, all share
    return next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))


def of_text(rows: Sequence[Conversation]) -> DataShape:
    """The same from characters, where no tokenizer is at hand. An estimate."""
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
        shared_prefix_tokens=_tokens(first.pop()) if len(first) == 1 else 0,
        answer_p99=trained[min(len(trained) - 1, int(0.99 * len(trained)))],
    )


def _tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN + 1
