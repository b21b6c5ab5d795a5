"""Which rows are shown as examples."""

from luthier.evaluate.questions import spread
from luthier.records import Conversation, Source, Turn


def row(number: int, length: int) -> Conversation:
    return Conversation((Turn("user", f"question {number}"), Turn("assistant", "x" * length)), Source("rows", number))


def test_examples_are_spread() -> None:
    places = [one.source.line for one in spread([row(number, 5) for number in range(32)], 5)]
    assert places == [0, 6, 12, 18, 24]


def test_few_rows_are_all_shown() -> None:
    rows = [row(number, number) for number in range(1, 4)]
    assert spread(rows, 5) == rows
    assert len(spread(rows, 2)) == 2
