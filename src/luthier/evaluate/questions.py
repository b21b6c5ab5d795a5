"""Held-out rows as questions, asked with or without examples in the prompt."""

from collections.abc import Sequence

from luthier.records import Conversation, Turn


def with_examples(question: Sequence[Turn], examples: Sequence[Conversation]) -> list[Turn]:
    """The question with examples before it: few-shot prompting (Brown 2020, arXiv:2005.14165, section 2)."""
    if question and question[0].role not in ("system", "user"):
        # Rows without a template: the examples are text, one paragraph each.
        shown = "".join(f"{example.turns[0].content}{example.answer}\n\n" for example in examples)
        return [Turn(question[0].role, shown + question[0].content), *question[1:]]
    system = [turn for turn in question if turn.role == "system"]
    asked = [turn for turn in question if turn.role != "system"]
    return [*system, *(turn for example in examples for turn in example.turns if turn.role != "system"), *asked]


def spread(rows: Sequence[Conversation], count: int) -> list[Conversation]:
    """`count` rows at even distances among those with the longer half of the answers; all of them where they are no more.

    Short answers are often fragments, and a prompt full of fragments would be no fair baseline.
    """
    middle = sorted(len(row.answer) for row in rows)[len(rows) // 2]
    full = [row for row in rows if len(row.answer) >= middle]
    chosen = full if len(full) >= count else list(rows)
    return chosen[:: max(1, len(chosen) // count)][:count]
