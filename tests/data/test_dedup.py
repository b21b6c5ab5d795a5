from luthier.data.dedup import group, without_duplicates, without_held_out
from luthier.records import Conversation, Source, Turn


def row(line: int, question: str, answer: str) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)), Source("rows.jsonl", line))


def lines(rows: list[Conversation]) -> list[int]:
    return [row.source.line for row in rows]


def test_only_exact_repeats_count_within_the_training_rows() -> None:
    kept, repeated = without_duplicates([row(1, "a", "b"), row(2, "A", "b"), row(3, "a", "b"), row(4, "a", "c"), row(5, "a", "b")])
    assert lines(kept) == [1, 2, 4]
    assert [(later.source.line, first.source.line) for later, first in repeated] == [(3, 1), (5, 1)]


def test_a_held_out_row_leaves_training_whatever_its_case_and_spaces() -> None:
    kept, shared = without_held_out([row(1, "What  is\nit?", "A"), row(2, "What is it?", "B")], [row(9, "what is it?", "a")])
    assert lines(kept) == [2]
    assert [(mine.source.line, twin.source.line) for mine, twin in shared] == [(1, 9)]


def test_rows_that_ask_the_same_are_one_group() -> None:
    assert group(row(1, "Who?", "me")) == group(row(2, " who? ", "you"))
    assert group(row(1, "Who?", "me")) != group(row(1, "Why?", "me"))
    text = Conversation((Turn("text", "a"),), Source("t", 1), templated=False)
    assert group(text) != group(Conversation((Turn("text", "b"),), Source("t", 2), templated=False))
